//! Where and of what something is measured: the machine and the commit.

use std::{env, fs, process::Command, thread};

use serde::Serialize;

/// The machine, as Linux tells of it; empty and 0 where it does not.
#[derive(Debug, Serialize)]
pub struct Machine {
    processor: String,
    cores: usize,
    memory_bytes: u64,
    kernel: String,
}

impl Machine {
    /// The one that this runs on.
    pub fn this() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let memory = value(&read("/proc/meminfo"), "MemTotal").and_then(|total| {
            let kib = total.strip_suffix("kB")?.trim().parse::<u64>().ok()?;
            Some(kib * 1024)
        });
        Self {
            processor: value(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            cores: thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: memory.unwrap_or_default(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

/// The words that this program was called with, but for where etcd's programs lie, which is of no use elsewhere.
pub fn command() -> Vec<String> {
    told(env::args().skip(1))
}

fn told(words: impl Iterator<Item = String>) -> Vec<String> {
    let mut is_place = false;
    let is_told = |word: &String| {
        let is_value = std::mem::replace(&mut is_place, word == "--etcd");
        !is_value && !word.starts_with("--etcd")
    };
    words.filter(is_told).collect()
}

/// The first value of a `name: value` file.
fn value(text: &str, name: &str) -> Option<String> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
}

/// Of this repository; with `+` when the checkout had changes other than results, which a run of several settings leaves
/// behind. Empty: it was none.
pub fn commit() -> String {
    let git = |words: &[&str]| {
        let output = Command::new("git").args(words).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return String::new() };
    let is_changed = git(&["status", "--porcelain", "--", ":(top,exclude)docs/benchmarks"])
        .is_none_or(|changes| !changes.is_empty());
    if is_changed { commit + "+" } else { commit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_etcd_lies_is_not_told() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for line in
            ["--etcd /somewhere --rounds 1", "--etcd=/somewhere --rounds 1", "--rounds 1 --etcd /somewhere"]
        {
            assert_eq!(told(words(line).into_iter()), ["--rounds", "1"], "{line}");
        }
    }

    #[test]
    fn values_are_found_by_name() {
        let text = "processor\t: 0\nmodel name\t: A: fast one\nmodel name\t: other\n";
        assert_eq!(value(text, "model name").as_deref(), Some("A: fast one"));
        assert_eq!(value(text, "missing"), None);
    }
}
