//! Uploads and downloads of files.

use std::{
    fs,
    process::{Command, Stdio},
};

use crate::{
    against,
    fake::{
        FakeCluster,
        script::{Fault, lost, no_leader},
    },
    with_input,
};

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

#[tokio::test]
async fn a_file_comes_back_whole() {
    let cluster = FakeCluster::start(3).await;
    let folder = tempfile::tempdir().unwrap();
    let (file, copy) = (folder.path().join("a"), folder.path().join("b"));
    fs::write(&file, bytes(700_000)).unwrap();
    let out = against(&cluster, &["upload", "k", file.to_str().unwrap()]).expect(0);
    assert!(out.starts_with("ok, 700000 bytes, sha256 "), "{out}");
    let out = against(&cluster, &["download", "k", copy.to_str().unwrap(), "--node", "n3"]).expect(0);
    assert_eq!(out, "ok, 700000 bytes, sha256 verified\n");
    assert_eq!(fs::read(&copy).unwrap(), bytes(700_000));
    assert_eq!(cluster.asked("Download"), [3]);
    let run = against(&cluster, &["get", "k"]);
    assert!(run.err.contains("kvctl download k FILE"), "{run:?}");
    assert_eq!(run.expect(1), "", "nothing that could be taken for the value");
    assert!(against(&cluster, &["get", "k", "--metadata"]).expect(0).contains("700000 bytes"));
    against(&cluster, &["upload", "k", file.to_str().unwrap(), "--if-absent"]).expect(4);
}

#[tokio::test]
async fn standard_streams_are_files_too() {
    let cluster = FakeCluster::start(1).await;
    with_input(&cluster, &["upload", "k", "-"], b"some text").expect(0);
    assert_eq!(against(&cluster, &["download", "k", "-"]).expect(0), "some text");
    assert_eq!(against(&cluster, &["download", "k", "-", "--offset", "5", "--length", "2"]).expect(0), "te");
}

#[tokio::test]
async fn a_failed_download_leaves_nothing_and_keeps_the_old_file() {
    let cluster = FakeCluster::start(1).await;
    with_input(&cluster, &["upload", "k", "-"], &bytes(10_000)).expect(0);
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    fs::write(&copy, "old").unwrap();
    for fault in [Fault::FlipBit, Fault::EndAfter(3)] {
        cluster.script(1, [fault]);
        let run = against(&cluster, &["download", "k", copy.to_str().unwrap()]);
        assert!(run.err.contains("nothing was kept"), "{run:?}");
        run.expect(1);
        assert_eq!(fs::read(&copy).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
    against(&cluster, &["download", "none", copy.to_str().unwrap()]).expect(3);
    against(&cluster, &["download", "k", folder.path().to_str().unwrap()]).expect(2);
}

#[tokio::test]
async fn what_was_printed_of_a_failed_download_is_said_to_be_worthless() {
    let cluster = FakeCluster::start(1).await;
    with_input(&cluster, &["upload", "k", "-"], &bytes(10_000)).expect(0);
    cluster.script(1, [Fault::FlipBit]);
    let run = against(&cluster, &["download", "k", "-"]);
    assert!(run.err.contains("10000 of 10000 bytes were printed and are not verified"), "{}", run.err);
    assert!(!run.err.contains("nothing was kept"), "{}", run.err);
    run.expect(1);
    cluster.script(1, [Fault::EndAfter(1)]);
    let run = against(&cluster, &["download", "k", "-"]);
    assert!(run.err.contains("nothing was printed"), "{run:?}");
    run.expect(1);
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_failure() {
    let cluster = FakeCluster::start(1).await;
    with_input(&cluster, &["upload", "k", "-"], &bytes(1_000_000)).expect(0);
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvctl"))
        .args(["--addr", &cluster.address(1), "download", "k", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[tokio::test]
async fn a_file_is_uploaded_again_and_from_where_the_cluster_has_got_to() {
    let cluster = FakeCluster::start(1).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a");
    // More than is on the way when the stream breaks.
    let value = bytes(16_000_000);
    fs::write(&file, &value).unwrap();
    cluster.script(1, [Fault::Refuse(no_leader()), Fault::BreakAfter(2, lost())]);
    against(&cluster, &["upload", "k", file.to_str().unwrap()]).expect(0);
    assert!(cluster.state().store.received_bytes < value.len() as u64 + 300_000, "nothing was sent twice");
    assert_eq!(cluster.state().store.records[&b"k"[..]].value, value);
}

#[tokio::test]
async fn a_broken_download_goes_on() {
    let cluster = FakeCluster::start(2).await;
    with_input(&cluster, &["upload", "k", "-"], &bytes(10_000)).expect(0);
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    cluster.script(1, [Fault::BreakAfter(3, lost())]);
    against(&cluster, &["download", "k", copy.to_str().unwrap()]).expect(0);
    assert_eq!(fs::read(&copy).unwrap(), bytes(10_000));
}

#[tokio::test]
async fn what_cannot_be_read_is_named() {
    let cluster = FakeCluster::start(1).await;
    let run = against(&cluster, &["upload", "k", "/no/such/file"]);
    assert!(run.err.contains("/no/such/file"), "{run:?}");
    run.expect(1);
    assert_eq!(cluster.count("Upload"), 0);
}
