//! The demonstration that the idea began with: upload a photo, Ctrl-C all three nodes, start them again, download it
//! from a follower, compare. And what else a person types into kvctl first.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
};

use kv_cluster_tests::{
    Cluster, Plan,
    api::Read,
    binary::{self, Binary},
    seed,
    wait::{DEADLINE, wait_until},
};
use rand::{Rng, rngs::SmallRng};
use tokio::task::spawn_blocking;

/// A photo of a good camera; more than one chunk, and no multiple of one.
const PHOTO_BYTES: usize = 5 * 1024 * 1024 + 12_345;

/// The beginning of something larger: what kvctl reads of it is never all of it.
const FILM_BYTES: usize = 16 * 1024 * 1024;

/// At three replicas: the entry that begins an upload, and its first chunks.
const BEGUN_ENTRIES: u64 = 9;

/// The defaults of the product: eight shards.
const SHARDS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn photo_survives_the_stop_of_all_nodes_and_is_downloaded_from_a_follower() {
    let mut random =
        seed::generator("photo_survives_the_stop_of_all_nodes_and_is_downloaded_from_a_follower");
    let (Some(kvctl), Some(mut cluster)) =
        (binary::find(Binary::Kvctl), Cluster::start(Plan::nodes(3).with_shards(SHARDS)).await)
    else {
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (photo, copy) = (folder.path().join("photo.jpg"), folder.path().join("copy.jpg"));
    write_file(&photo, PHOTO_BYTES, &mut random);

    let first = format!("http://{}", cluster.nodes[0].ports.client_address());
    let uploaded = run(&kvctl, ["--addr", &first, "upload", "my-file", path(&photo)]).await;
    assert!(uploaded.status.success(), "{uploaded:?}");

    cluster.stop_all().await;
    cluster.start_all();
    cluster.wait_whole().await;

    let shard = cluster.shard_of("my-file").await;
    let leader = cluster.wait_leader(shard, &[0, 1, 2]).await;
    for follower in (0..3).filter(|node| *node != leader) {
        let address = cluster.nodes[follower].ports.client_address().to_string();
        let arguments = ["--addr", &address, "download", "my-file", path(&copy), "--serve-at-node"];
        let downloaded = run(&kvctl, arguments).await;
        assert!(downloaded.status.success(), "{downloaded:?}");
        let same = fs::read(&photo).expect("written") == fs::read(&copy).expect("downloaded");
        assert!(same, "the copy from node {follower} differs");
        fs::remove_file(&copy).expect("ours");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_upload_leaves_nothing_visible() {
    let mut random = seed::generator("interrupted_upload_leaves_nothing_visible");
    let (Some(kvctl), Some(mut cluster)) =
        (binary::find(Binary::Kvctl), Cluster::start(Plan::nodes(3)).await)
    else {
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut film = vec![0; FILM_BYTES];
    random.fill_bytes(&mut film);
    let address = cluster.nodes[0].ports.client_address().to_string();
    cluster.wait_caught_up().await;
    let before = entries(&cluster).await;
    let mut upload = Command::new(&kvctl)
        .args(["--addr", &address, "upload", "my-file", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("kvctl starts");
    let mut input = upload.stdin.take().expect("piped");
    // It stays open until kvctl is killed; then whatever is still to be written fails.
    let writing = thread::spawn(move || input.write_all(&film).map(|()| input));
    let begun = wait_until("chunks of the upload in the log", DEADLINE, || async {
        let now = entries(&cluster).await;
        if now > before + BEGUN_ENTRIES { Ok(()) } else { Err(format!("{now} entries, {before} before")) }
    });
    begun.await.unwrap_or_else(|error| panic!("{error}"));
    cluster.kill_all();
    upload.kill().expect("it is ours");
    let ended = upload.wait().expect("it is ours");
    assert!(!ended.success(), "the upload was not interrupted");
    drop(writing.join());
    cluster.start_all();
    cluster.wait_whole().await;
    for node in 0..3 {
        let got = cluster.get(node, "my-file", Read::AtThisNode).await;
        assert!(got.kv.is_none(), "a part of an upload is visible at node {node}");
    }
    let missing = run(&kvctl, ["--addr", &address, "download", "my-file", "-"]).await;
    assert!(!missing.status.success() && missing.stdout.is_empty(), "{missing:?}");
    // And the key is as free as before.
    let again = folder.path().join("photo.jpg");
    write_file(&again, PHOTO_BYTES, &mut random);
    let uploaded = run(&kvctl, ["--addr", &address, "upload", "my-file", path(&again)]).await;
    assert!(uploaded.status.success(), "{uploaded:?}");
}

/// The last log index of all replicas, summed up.
async fn entries(cluster: &Cluster) -> u64 {
    let mut entries = 0;
    for node in 0..cluster.nodes.len() {
        entries +=
            cluster.status(node).await.replicas.iter().map(|replica| replica.last_log_index).sum::<u64>();
    }
    entries
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_types_first_works() {
    let (Some(kvctl), Some(cluster)) =
        (binary::find(Binary::Kvctl), Cluster::start(Plan::nodes(3).with_shards(SHARDS)).await)
    else {
        return;
    };
    let terminal = Terminal { kvctl, address: cluster.nodes[1].ports.client_address().to_string() };
    terminal.says("put greeting hello", "ok").await;
    terminal.says("get greeting", "hello").await;
    terminal.says("set greeting hallo", "version 2").await;
    terminal.says("scan --prefix g", "greeting").await;
    terminal.says("delete greeting", "").await;
    let absent = terminal.run("get greeting").await;
    assert!(!absent.status.success(), "{absent:?}");
    for words in ["status", "shard list", "node list"] {
        terminal.says(words, "n3").await;
        let json = terminal.says(&format!("{words} -o json"), "").await;
        assert!(json.starts_with(['{', '[']), "{words}: {json}");
    }
    let typed = terminal.typed("put a 1\nput b 2\nscan --keys-only\nget b\n").await;
    assert!(typed.ends_with("2\n") || typed.ends_with('2'), "{typed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_looked_after_by_typing() {
    let (Some(kvctl), Some(mut cluster)) =
        (binary::find(Binary::Kvctl), Cluster::start(Plan::nodes(4)).await)
    else {
        return;
    };
    let terminal = Terminal { kvctl, address: cluster.nodes[1].ports.client_address().to_string() };
    cluster.wait_settled(1).await;
    terminal.says("node label n3 zone=b", "").await;
    terminal.says("node list", " b ").await;
    terminal.says("cluster policy --moves-at-once 2 --lost-node-grace 30m", "30").await;

    terminal.says("node drain n4 --wait --reason old-disk", "n4").await;
    terminal.says("node list", "drained").await;
    terminal.says("node undrain n4", "n4").await;
    cluster.wait_settled(1).await;

    let token = terminal.gets("node permit n2 --for 60s").await;
    let refused = terminal.run("node permit n3 --for 60s").await;
    assert_eq!(refused.status.code(), Some(7), "{refused:?}");
    terminal.says(&format!("node hand-over n2 --permit {token}"), "restart it now").await;
    cluster.nodes[1].terminate();
    cluster.nodes[1].ended(DEADLINE).await.unwrap_or_else(|error| panic!("{error}"));
    cluster.nodes[1].start();
    cluster.wait_status(1, "readiness", |status| status.ready).await;
    terminal.says(&format!("node permit n2 --release {token}"), "given back").await;

    let shard = cluster.cluster_status(1).await.shards.into_iter().find(|shard| shard.shard_id == 1);
    let shard = shard.expect("shard 1");
    let other = shard.replicas.iter().find(|replica| replica.node_id != shard.leader_node_id);
    let other = other.expect("three replicas").node_id;
    terminal.gets(&format!("shard transfer 1 --to {other}")).await;

    terminal.says("node drain n4 --wait", "n4").await;
    terminal.says("node remove n4", "n4").await;
    let over = cluster.nodes[3].wants_another_start(DEADLINE).await;
    over.unwrap_or_else(|error| panic!("{error}"));
    for told in
        ["old-disk", "draining", "labelled", "may be restarted", "leadership of shard 1", "is removed"]
    {
        terminal.says("why --limit 0", told).await;
    }
    let log = cluster.nodes[1].log_tail(10_000);
    assert!(log.contains("order carried out") && log.contains("old-disk"), "it is in the log, too: {log}");
}

/// kvctl as a person uses it, who has set `KVCTL_ADDR`.
struct Terminal {
    kvctl: PathBuf,
    address: String,
}

impl Terminal {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.kvctl);
        command.env("KVCTL_ADDR", &self.address);
        command
    }

    async fn run(&self, words: &str) -> Output {
        let mut command = self.command();
        command.args(words.split(' '));
        spawn_blocking(move || command.output()).await.expect("it does not panic").expect("kvctl starts")
    }

    /// What it printed; it must have succeeded, and shown this.
    async fn says(&self, words: &str, shown: &str) -> String {
        let output = self.run(words).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains(shown), "kvctl {words}: {output:?}");
        text
    }

    /// What it printed in the end, when it may be refused for a while.
    async fn gets(&self, words: &str) -> String {
        let output = wait_until(format!("kvctl {words}"), DEADLINE, || async {
            let output = self.run(words).await;
            if output.status.success() { Ok(output) } else { Err(format!("{output:?}")) }
        });
        let output = output.await.unwrap_or_else(|error| panic!("{error}"));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// What `kvctl shell` prints to these lines.
    async fn typed(&self, lines: &'static str) -> String {
        let mut command = self.command();
        command.arg("shell").stdin(Stdio::piped()).stdout(Stdio::piped());
        let run = move || {
            let mut shell = command.spawn().expect("kvctl starts");
            shell.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("it reads");
            shell.wait_with_output().expect("it is ours")
        };
        let output = spawn_blocking(run).await.expect("it does not panic");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

fn write_file(file: &Path, length: usize, random: &mut SmallRng) {
    let mut bytes = vec![0; length];
    random.fill_bytes(&mut bytes);
    fs::write(file, bytes).expect("a file");
}

fn path(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

async fn run<'a>(kvctl: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Output {
    let mut command = Command::new(kvctl);
    command.args(arguments);
    spawn_blocking(move || command.output()).await.expect("it does not panic").expect("kvctl starts")
}
