//! The kvctl binary against a cluster of pretence: what it prints, and how it exits.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::cast_possible_truncation,
    clippy::too_many_lines,
    reason = "a test fails by panicking; the cluster of pretence takes messages as they come"
)]

#[path = "../../../client/tests/fake/mod.rs"]
mod fake;

mod comparing;
mod dev;
mod errors;
mod keys;
mod nodes;
mod recovering;
mod tables;
mod transfers;

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use fake::FakeCluster;

/// What a run of kvctl left behind.
#[derive(Debug)]
struct Run {
    code: i32,
    out: String,
    err: String,
}

impl Run {
    /// Asserts the exit code and gives standard output.
    fn expect(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        self.out
    }
}

/// A program of these lines. Another process writes it: while this one had it open, a test that starts a process beside this
/// one would hand it on as open for writing, and such a file cannot be run.
fn script(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name).to_str().unwrap().to_owned();
    let mut writer = Command::new("sh");
    writer.args(["-c", "cat > \"$0\" && chmod +x \"$0\"", &path]).stdin(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
    path
}

/// Runs kvctl to its end.
fn kvctl(arguments: &[&str], input: &[u8]) -> Run {
    run(Command::new(env!("CARGO_BIN_EXE_kvctl")).args(arguments), input)
}

fn run(command: &mut Command, input: &[u8]) -> Run {
    let mut child = command
        .env_remove("KVCTL_ADDR")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end without having read its input.
    let _written = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    Run {
        code: output.status.code().unwrap(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs kvctl against this cluster.
fn against(cluster: &FakeCluster, arguments: &[&str]) -> Run {
    with_input(cluster, arguments, b"")
}

fn with_input(cluster: &FakeCluster, arguments: &[&str], input: &[u8]) -> Run {
    let addresses = cluster.addresses();
    kvctl(&[&["--addr", &addresses], arguments].concat(), input)
}
