//! The demonstration that the idea began with: upload a photo, Ctrl-C all three nodes, start them again, download it
//! from a follower, compare.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use kv_cluster_tests::{
    Cluster, Plan,
    api::Read,
    binary::{self, Binary},
    seed,
    wait::DEADLINE,
};
use rand::{Rng, rngs::SmallRng};
use tokio::task::spawn_blocking;

/// A photo of a good camera; more than one chunk, and no multiple of one.
const PHOTO_BYTES: usize = 5 * 1024 * 1024 + 12_345;

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
    write_photo(&photo, &mut random);

    let first = format!("http://{}", cluster.nodes[0].ports.client_address());
    let uploaded = run(&kvctl, ["--addr", &first, "upload", "my-file", path(&photo)]).await;
    assert!(uploaded.status.success(), "{uploaded:?}");

    for node in &mut cluster.nodes {
        node.interrupt();
    }
    for node in &mut cluster.nodes {
        node.ended(DEADLINE).await.unwrap_or_else(|error| panic!("{error}"));
    }
    cluster.start_all();
    cluster.wait_whole().await;

    let got = cluster.api(0).get("my-file", Read::Linearizable).await.expect("the cluster is whole");
    let shard = got.header.expect("every reply has one").shard_id;
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
    let photo = folder.path().join("photo.jpg");
    write_photo(&photo, &mut random);
    let address = cluster.nodes[0].ports.client_address().to_string();
    let mut upload = std::process::Command::new(&kvctl)
        .args(["--addr", &address, "upload", "my-file", path(&photo)])
        .spawn()
        .expect("kvctl starts");
    cluster.kill_all();
    upload.kill().expect("it is ours");
    upload.wait().expect("it is ours");
    cluster.start_all();
    cluster.wait_whole().await;
    let got = cluster.api(1).get("my-file", Read::Linearizable).await.expect("the cluster is whole");
    // The upload may have been faster than the kill: then it is there whole, which the download verifies.
    if got.kv.is_some() {
        let copy = folder.path().join("copy.jpg");
        let downloaded = run(&kvctl, ["--addr", &address, "download", "my-file", path(&copy)]).await;
        assert!(downloaded.status.success(), "{downloaded:?}");
        assert!(fs::read(&photo).expect("written") == fs::read(&copy).expect("downloaded"));
    }
}

fn write_photo(photo: &Path, random: &mut SmallRng) {
    let mut bytes = vec![0; PHOTO_BYTES];
    random.fill_bytes(&mut bytes);
    fs::write(photo, bytes).expect("a file");
}

fn path(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

async fn run<'a>(kvctl: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Output {
    let mut command = std::process::Command::new(PathBuf::from(kvctl));
    command.args(arguments);
    spawn_blocking(move || command.output()).await.expect("it does not panic").expect("kvctl starts")
}
