//! `kvctl bench --compare`: which words another program gets, and what is missing where it is not there.

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;

use crate::{Run, kvctl, run, script};

/// Prints its arguments, one a line.
const ECHO: &str = "#!/bin/sh\nfor word; do echo \"$word\"; done\n";

/// kvctl alone in a folder, as where nothing else was built. A link: a file that was just written cannot always be run.
fn alone() -> TempDir {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::hard_link(env!("CARGO_BIN_EXE_kvctl"), folder.path().join("kvctl")).unwrap();
    folder
}

/// Runs the kvctl of this folder, whose cache is empty.
fn bench(folder: &Path, etcd: Option<&str>, arguments: &[&str]) -> Run {
    let mut command = Command::new(folder.join("kvctl"));
    command.env_remove("KV_ETCD_PROGRAMS").env("XDG_CACHE_HOME", folder).arg("bench").args(arguments);
    run(command.envs(etcd.map(|etcd| ("KV_ETCD_PROGRAMS", etcd))), b"")
}

#[test]
fn what_was_given_reaches_the_other_program() {
    let folder = alone();
    script(folder.path(), "kv-compare", ECHO);
    let arguments =
        ["get", "--compare", "etcd", "--clients", "64", "--value-size", "4096", "--", "--rounds", "1"];
    let words = bench(folder.path(), Some("/etcd"), &arguments).expect(0);
    assert_eq!(words, "--workloads\nget\n--clients\n64\n--value-size\n4096\n--rounds\n1\n");
    assert_eq!(bench(folder.path(), Some("/etcd"), &["--compare", "etcd"]).expect(0), "");
}

#[test]
fn what_it_would_not_get_is_refused() {
    let run = kvctl(&["bench", "get", "--compare", "etcd", "--stale"], b"");
    assert!(run.err.contains("--stale cannot be used with --compare"), "{run:?}");
    run.expect(2);
}

#[test]
fn missing_programs_say_how_to_build_them() {
    let folder = alone();
    let run = bench(folder.path(), None, &["--compare", "etcd"]);
    assert!(run.err.contains("kv-compare is not there: run `make bench`"), "{run:?}");
    run.expect(2);
    script(folder.path(), "kv-compare", ECHO);
    let run = bench(folder.path(), None, &["--compare", "etcd"]);
    assert!(run.err.contains("no etcd in") && run.err.contains("KV_ETCD_PROGRAMS"), "{run:?}");
    run.expect(2);
}
