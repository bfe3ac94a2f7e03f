//! What processes have taken of the machine, as Linux counts it.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

/// Linux counts in ticks of 10 ms for all programs, whatever the kernel's own clock is.
const TICK: Duration = Duration::from_millis(10);
/// Fields of `/proc/PID/stat` after the name of the program: its own time, and that of its children that have ended, each in
/// the program and in the kernel.
const OWN_TICKS: [usize; 2] = [11, 12];
const CHILDREN_TICKS: [usize; 2] = [13, 14];
/// In which files count the space that they take, on every file system.
const BLOCK_BYTES: u64 = 512;

/// Processor time of running processes.
pub fn cpu(processes: &[u32]) -> Duration {
    processes.iter().map(|id| of(&format!("/proc/{id}/stat"), OWN_TICKS)).sum()
}

/// Processor time of all children of this process that have ended.
pub fn cpu_of_children() -> Duration {
    of("/proc/self/stat", CHILDREN_TICKS)
}

/// Memory of the greatest of these processes that is in RAM, bytes.
pub fn memory(processes: &[u32]) -> u64 {
    let rss = |id| rss(&fs::read_to_string(format!("/proc/{id}/status")).ok()?);
    processes.iter().filter_map(rss).max().unwrap_or_default()
}

/// What a folder takes on the disk, bytes: blocks, and not the lengths of files.
///
/// # Errors
/// When it cannot be read. Files that are gone when they are looked at take nothing.
pub fn disk(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => disk(&entry.path())?,
            Ok(metadata) => metadata.blocks() * BLOCK_BYTES,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
    }
    Ok(bytes)
}

fn of(path: &str, fields: [usize; 2]) -> Duration {
    fs::read_to_string(path).ok().and_then(|stat| ticks(&stat, fields)).unwrap_or_default()
}

fn ticks(stat: &str, fields: [usize; 2]) -> Option<Duration> {
    // The name may have spaces and parentheses of its own.
    let values: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| values.get(number)?.parse::<u32>().ok();
    TICK.checked_mul(field(fields[0])?.checked_add(field(fields[1])?)?)
}

fn rss(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_takes_the_blocks_of_all_files_below_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let below = folder.path().join("below");
        fs::create_dir(&below).expect("a folder");
        assert_eq!(disk(folder.path()).expect("a figure"), 0);
        fs::write(below.join("file"), vec![7; 100_000]).expect("a file");
        let sparse = fs::File::create(folder.path().join("sparse")).expect("a file");
        sparse.set_len(1 << 30).expect("a length");
        let bytes = disk(folder.path()).expect("a figure");
        assert!((100_000..200_000).contains(&bytes), "{bytes}");
        assert!(disk(&folder.path().join("missing")).is_err());
    }

    #[test]
    fn times_and_memory_are_read() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 20 10 20 0 4 0 100 1000 200";
        assert_eq!(ticks(stat, OWN_TICKS), Some(Duration::from_secs(3)));
        assert_eq!(ticks(stat, CHILDREN_TICKS), Some(Duration::from_millis(300)));
        assert_eq!(ticks("garbage", OWN_TICKS), None);
        assert_eq!(rss("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(rss("Name:\tx\n"), None);
    }
}
