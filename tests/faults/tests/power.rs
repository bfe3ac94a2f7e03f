//! A power loss takes what was not synced, and nothing else.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use kv_faults::power::{CutReport, PowerLoss, Tail};
use rand::{SeedableRng, rngs::SmallRng};
use tempfile::TempDir;

/// A probe that runs under the shim, in a data folder of its own.
struct Probe {
    folder: TempDir,
    power: PowerLoss,
    random: SmallRng,
    running: Option<(Child, ChildStdin, BufReader<ChildStdout>)>,
}

impl Probe {
    fn start() -> Self {
        Self::start_with_seed(1)
    }

    fn start_with_seed(seed: u64) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let power =
            PowerLoss::new(&folder.path().join("data"), &folder.path().join("synced")).expect("prepared");
        let mut probe = Self { folder, power, random: SmallRng::seed_from_u64(seed), running: None };
        probe.restart();
        probe
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn restart(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_powerloss-probe"));
        command.arg(self.data()).stdin(Stdio::piped()).stdout(Stdio::piped());
        self.power.arm(&mut command);
        let mut child = command.spawn().expect("the probe starts");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        self.running = Some((child, input, output));
        self.run(&["hello"]);
    }

    /// Does what each line says.
    #[track_caller]
    fn run(&mut self, lines: &[&str]) {
        let (_, input, output) = self.running.as_mut().expect("running");
        for line in lines {
            writeln!(input, "{line}").expect("the probe listens");
            let mut answer = String::new();
            output.read_line(&mut answer).expect("the probe answers");
            assert_eq!(answer, "done\n", "{line}");
        }
    }

    fn lose_power(&mut self, tail: Tail) -> CutReport {
        let (mut child, ..) = self.running.take().expect("running");
        self.power.cut(&mut child, tail, &mut self.random).expect("the power is lost")
    }

    /// The content of a file; `None`: there is none.
    fn read(&self, name: &str) -> Option<String> {
        fs::read(self.data().join(name)).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Some((child, ..)) = &mut self.running {
            child.kill().expect("it is ours");
            child.wait().expect("it is ours");
        }
    }
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn unsynced_bytes_vanish_and_synced_bytes_stay() {
    let mut probe = Probe::start();
    probe.run(&["create f", "write f one", "sync f", "sync-folder .", "write f two"]);
    assert_eq!(probe.read("f"), some("onetwo"));
    let report = probe.lose_power(Tail::Lost);
    assert_eq!(probe.read("f"), some("one"));
    assert_eq!((report.lost_bytes, report.lost_files), (3, 0));
}

#[test]
fn synced_file_without_a_synced_name_vanishes() {
    let mut probe = Probe::start();
    probe.run(&["create f", "write f one", "sync f"]);
    let report = probe.lose_power(Tail::Lost);
    assert_eq!(probe.read("f"), None);
    assert_eq!(report.lost_files, 1);
}

#[test]
fn synced_name_without_synced_bytes_is_an_empty_file() {
    let mut probe = Probe::start();
    probe.run(&["create f", "write f one", "sync-folder ."]);
    probe.lose_power(Tail::Lost);
    assert_eq!(probe.read("f"), some(""));
}

#[test]
fn rename_without_a_synced_folder_vanishes() {
    let steps = ["create CURRENT", "write CURRENT old", "sync CURRENT", "sync-folder ."];
    let replace = ["create tmp", "write tmp new", "sync tmp", "rename tmp CURRENT"];
    let mut probe = Probe::start();
    probe.run(&steps);
    probe.run(&replace);
    probe.lose_power(Tail::Lost);
    assert_eq!(probe.read("CURRENT"), some("old"));

    probe.restart();
    probe.run(&replace);
    probe.run(&["sync-folder ."]);
    probe.lose_power(Tail::Lost);
    assert_eq!((probe.read("CURRENT"), probe.read("tmp")), (some("new"), None));
}

#[test]
fn removal_without_a_synced_folder_is_undone() {
    let mut probe = Probe::start();
    probe.run(&["create f", "write f one", "sync f", "sync-folder .", "remove f"]);
    probe.lose_power(Tail::Lost);
    assert_eq!(probe.read("f"), some("one"));
    probe.restart();
    probe.run(&["remove f", "sync-folder ."]);
    probe.lose_power(Tail::Lost);
    assert_eq!(probe.read("f"), None);
}

#[test]
fn folders_keep_what_was_synced_in_each() {
    let mut probe = Probe::start();
    probe.run(&["mkdir a", "create a/f", "write a/f one", "sync a/f", "sync-folder a"]);
    probe.lose_power(Tail::Lost);
    assert_eq!(probe.read("a/f"), None);
    assert!(!probe.data().join("a").exists());

    probe.restart();
    probe.run(&["mkdir a", "create a/f", "write a/f one", "sync a/f", "sync-folder a", "sync-folder ."]);
    probe.run(&["rename a b", "create b/g", "sync b/g"]);
    probe.lose_power(Tail::Lost);
    assert_eq!((probe.read("a/f"), probe.read("a/g")), (some("one"), None));

    probe.restart();
    probe.run(&["rename a b", "sync-folder ."]);
    probe.lose_power(Tail::Lost);
    assert_eq!((probe.read("b/f"), probe.data().join("a").exists()), (some("one"), false));
}

#[test]
fn overwrites_truncations_and_parts_follow_the_last_sync() {
    let mut probe = Probe::start();
    probe.run(&["create f", "write-parts f hello world", "sync f", "sync-folder .", "write-at f 0 HELLO"]);
    probe.lose_power(Tail::Lost);
    assert_eq!(probe.read("f"), some("helloworld"));

    probe.restart();
    probe.run(&["append f", "write f !", "sync f", "cut f 5"]);
    probe.lose_power(Tail::Lost);
    assert_eq!(probe.read("f"), some("helloworld!"));

    probe.restart();
    probe.run(&["append f", "cut f 2", "sync f", "write-by-clone f y"]);
    probe.lose_power(Tail::Lost);
    assert_eq!(probe.read("f"), some("he"));

    probe.restart();
    probe.run(&["create f", "write-at f 3 z", "sync f"]);
    probe.lose_power(Tail::Lost);
    assert_eq!(probe.read("f"), some("\0\0\0z"));
}

#[test]
fn each_sync_adds_what_was_written_since_the_last() {
    let mut probe = Probe::start();
    probe.run(&[
        "append f",
        "sync-folder .",
        "write f one",
        "sync f",
        "write f two",
        "sync f",
        "write f three",
    ]);
    probe.run(&[
        "create g",
        "sync-folder .",
        "write g abcdef",
        "sync g",
        "write-at g 4 E",
        "write-at g 1 B",
        "sync g",
    ]);
    probe.lose_power(Tail::Lost);
    assert_eq!((probe.read("f"), probe.read("g")), (some("onetwo"), some("aBcdEf")));

    // More separate ranges than the shim remembers.
    probe.restart();
    probe.run(&["create h", "sync-folder .", "sync h"]);
    for place in 0..100 {
        probe.run(&[&format!("write-at h {} x", (place * 37) % 100 * 2)]);
    }
    probe.run(&["sync h"]);
    probe.lose_power(Tail::Lost);
    assert_eq!(probe.read("h"), Some("x\0".repeat(99) + "x"));
}

#[test]
fn bytes_written_through_a_duplicated_descriptor_are_synced_too() {
    let mut probe = Probe::start();
    probe.run(&["create f", "sync-folder .", "write-by-clone f one", "sync f", "write-by-clone f two"]);
    probe.lose_power(Tail::Lost);
    assert_eq!(probe.read("f"), some("one"));
}

#[test]
fn copied_file_needs_a_sync_of_its_own() {
    let mut probe = Probe::start();
    probe.run(&["create f", "write f one", "copy f g", "sync-folder ."]);
    probe.run(&["append g", "sync g"]);
    probe.lose_power(Tail::Lost);
    assert_eq!((probe.read("f"), probe.read("g")), (some(""), some("one")));
}

#[test]
fn synchronous_writes_are_durable_at_once() {
    let mut probe = Probe::start();
    probe.run(&["open-dsync f", "sync-folder .", "write f one"]);
    probe.lose_power(Tail::Lost);
    assert_eq!(probe.read("f"), some("one"));
}

#[test]
fn bytes_of_an_earlier_process_stay_unsynced_until_synced() {
    let mut probe = Probe::start();
    probe.run(&["create f", "sync-folder .", "write f one"]);
    // SIGKILL without power loss: the page cache survives, the shadow too.
    let (mut child, ..) = probe.running.take().expect("running");
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    probe.restart();
    assert_eq!(probe.read("f"), some("one"));
    probe.lose_power(Tail::Lost);
    assert_eq!(probe.read("f"), some(""));

    probe.restart();
    probe.run(&["append f", "write f one"]);
    let (mut child, ..) = probe.running.take().expect("running");
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    probe.restart();
    probe.run(&["append f", "sync f", "write f two"]);
    probe.lose_power(Tail::Lost);
    assert_eq!(probe.read("f"), some("one"));
}

#[test]
fn unsynced_tail_may_survive_in_part_or_as_garbage() {
    let (mut shortest, mut longest, mut garbage) = (usize::MAX, 0, 0);
    for seed in 0..20 {
        let mut probe = Probe::start_with_seed(seed);
        probe.run(&[
            "create f.log",
            "write f.log synced",
            "sync f.log",
            "sync-folder .",
            "write f.log 0123456789",
        ]);
        let report = probe.lose_power(Tail::Prefix);
        let kept = probe.read("f.log").expect("its name was synced");
        assert!("synced0123456789".starts_with(&kept) && kept.starts_with("synced"), "{kept}");
        assert_eq!(report.kept_bytes + report.lost_bytes, 10);
        (shortest, longest) = (shortest.min(kept.len()), longest.max(kept.len()));

        probe.restart();
        probe.run(&[
            "append f.log",
            "sync f.log",
            "write f.log 0123456789",
            "create g",
            "sync-folder .",
            "write g xyz",
        ]);
        garbage += probe.lose_power(Tail::Garbage { suffix: ".log" }).garbage_bytes;
        let now = fs::read(probe.data().join("f.log")).expect("its name was synced");
        assert!(now.starts_with(kept.as_bytes()) && now.len() <= kept.len() + 10);
        assert_eq!(probe.read("g"), some(""));
    }
    assert!(shortest < 10 && longest > 12 && garbage > 0, "{shortest} {longest} {garbage}");
}

#[test]
fn threads_that_write_and_sync_lose_nothing() {
    let mut probe = Probe::start();
    probe.run(&["create f", "sync-folder .", "write-by-threads f 8 50"]);
    probe.lose_power(Tail::Lost);
    assert_eq!(probe.read("f"), Some("0123456789abcdef".repeat(400)));
    for worker in 0..8 {
        assert_eq!(probe.read(&format!("f.{worker}")), Some("0123456789abcdef".repeat(50)));
    }
}

/// What this is for: a program that says "done" before its sync has returned is found out, an honest one is not.
#[test]
fn acknowledgement_before_the_sync_is_caught() {
    let lost_acknowledged = |acknowledge_early: bool| {
        let mut probe = Probe::start();
        probe.run(&["create log", "sync-folder ."]);
        let mut acknowledged = String::new();
        for number in 0..10 {
            probe.run(&[&format!("write log {number}")]);
            if !acknowledge_early {
                probe.run(&["sync log"]);
            }
            acknowledged.push_str(&number.to_string());
            if acknowledge_early && number < 9 {
                probe.run(&["sync log"]);
            }
        }
        probe.lose_power(Tail::Lost);
        probe.read("log") != Some(acknowledged)
    };
    assert!(lost_acknowledged(true));
    assert!(!lost_acknowledged(false));
}

#[test]
fn process_that_does_not_load_the_shim_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut power =
        PowerLoss::new(&folder.path().join("data"), &folder.path().join("synced")).expect("prepared");
    let mut child = Command::new(env!("CARGO_BIN_EXE_powerloss-probe"))
        .arg(Path::new("."))
        .stdin(Stdio::piped())
        .spawn()
        .expect("the probe starts");
    let error =
        power.cut(&mut child, Tail::Lost, &mut SmallRng::seed_from_u64(1)).expect_err("nothing was watched");
    assert!(error.to_string().contains("shim"), "{error}");
}
