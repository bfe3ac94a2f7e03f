//! A volume is as small and as slow as it is said to be, and only for what is on it.

use std::{
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use kv_faults::volume::Volume;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A volume of this size, in a folder that also has room beside it.
fn volume(capacity_bytes: u64) -> (TempDir, Volume) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let volume = Volume::new(&folder.path().join("data"), &folder.path().join("control"), capacity_bytes);
    (folder, volume.expect("prepared"))
}

/// Writes a file of so many MiB and syncs it.
fn write(volume: &Volume, file: &Path, mib: u64) -> Output {
    let mut command = Command::new("dd");
    volume.arm(&mut command);
    command.args(["if=/dev/zero", "bs=1048576", "conv=fsync", &format!("count={mib}")]);
    command.arg(format!("of={}", file.display())).output().expect("dd is there")
}

fn free(volume: &Volume, folder: &Path) -> u64 {
    let mut command = Command::new("df");
    volume.arm(&mut command);
    let output = command.args(["--output=avail", "-B1"]).arg(folder).output().expect("df is there");
    let text = String::from_utf8(output.stdout).expect("numbers");
    text.lines().nth(1).and_then(|line| line.trim().parse().ok()).unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn a_write_without_room_fails_until_there_is_room() {
    let (folder, mut volume) = volume(4 * MIB);
    let (data, file) = (folder.path().join("data"), folder.path().join("data/file"));
    let output = write(&volume, &file, 8);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("No space left"), "{output:?}");
    assert!(free(&volume, &data) < MIB, "it is full");
    assert!(write(&volume, &folder.path().join("beside"), 8).status.success(), "that is another volume");

    volume.resize(16 * MIB).expect("resized");
    assert!(write(&volume, &file, 8).status.success(), "there is room now");
    let (before, after) = (free(&volume, &data), 3 * MIB);
    assert!((7 * MIB..=8 * MIB).contains(&before), "{before}");
    volume.leave_free(after).expect("resized");
    assert!(free(&volume, &data).abs_diff(after) < MIB);
}

#[test]
fn a_sync_takes_as_long_as_it_is_told() {
    const DELAY: Duration = Duration::from_millis(300);
    let (folder, mut volume) = volume(16 * MIB);
    volume.delay_syncs(DELAY).expect("slowed");
    let began = Instant::now();
    assert!(write(&volume, &folder.path().join("data/file"), 1).status.success());
    assert!(began.elapsed() >= DELAY, "{:?}", began.elapsed());
}
