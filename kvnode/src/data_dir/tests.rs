//! The life of a data folder: first start, restart, wrong owners, damage, setting aside.

use std::{
    fs,
    path::{Path, PathBuf},
};

use kv_proto::disk::v1::{Founding, NodeIdentity};
use prost::Message;
use rand::{SeedableRng, rngs::StdRng};
use tempfile::TempDir;

use super::{DataDir, DataDirError, Scope, small_file};
use crate::config::NodeName;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn open_as(path: &Path, name: &str, seed: u64) -> Result<DataDir, DataDirError> {
    let name: NodeName = name.parse().expect("a name");
    DataDir::open(path, &name, &mut StdRng::seed_from_u64(seed))
}

fn open(path: &Path) -> DataDir {
    open_as(path, "n1", 1).expect("opened")
}

/// The folder's stored identity, changed.
fn change_identity(path: &Path, change: impl FnOnce(&mut NodeIdentity)) {
    let file = path.join("IDENTITY");
    let content = small_file::read_checked(&file).expect("readable").expect("present");
    let mut identity = NodeIdentity::decode(content.as_slice()).expect("decodable");
    change(&mut identity);
    small_file::write_checked(&file, &identity.encode_to_vec()).expect("written");
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(path)
        .expect("listed")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_folder_keeps_its_uuid_and_counts_its_starts() {
    let temporary = folder();
    let path = temporary.path().join("a/b/n1");
    let first = open(&path).identity().clone();
    assert_eq!((first.boot_counter, first.membership), (1, None));
    let second = open_as(&path, "n1", 2).expect("opened again");
    assert_eq!((second.identity().boot_counter, second.identity().disk_uuid), (2, first.disk_uuid));
    assert_eq!(names(&path), ["IDENTITY", "LOCK", "raftlog", "snapshots", "state"]);
}

#[test]
fn the_uuid_comes_from_the_given_randomness() {
    let uuid = |seed| open_as(folder().path(), "n1", seed).expect("opened").identity().disk_uuid;
    assert_eq!(uuid(1), uuid(1));
    assert_ne!(uuid(1), uuid(2));
    assert_eq!(uuid(1).get_version_num(), 4);
}

#[test]
fn a_folder_in_use_is_refused_and_the_holder_named() {
    let temporary = folder();
    let holder = open(temporary.path());
    let refusal = open_as(temporary.path(), "n2", 1).expect_err("in use").to_string();
    let expected = format!("is in use by process {} (node n1)", std::process::id());
    assert!(refusal.contains(&expected), "{refusal}");
    drop(holder);
    open(temporary.path());
}

#[test]
fn a_folder_of_another_node_is_refused_and_not_counted() {
    let temporary = folder();
    open(temporary.path());
    let refusal = open_as(temporary.path(), "n2", 1).expect_err("of n1");
    assert!(matches!(refusal, DataDirError::AnotherNode { .. }), "{refusal}");
    assert_eq!(open(temporary.path()).identity().boot_counter, 2);
}

#[test]
fn a_folder_of_another_version_is_refused() {
    let temporary = folder();
    open(temporary.path());
    for format in [1, 3] {
        change_identity(temporary.path(), |identity| identity.format = format);
        let refusal = open_as(temporary.path(), "n1", 1).expect_err("another");
        assert!(matches!(refusal, DataDirError::OtherFormat { found, .. } if found == format), "{refusal}");
    }
}

#[test]
fn a_folder_belongs_to_one_cluster_for_ever() {
    let temporary = folder();
    let mut opened = open(temporary.path());
    opened.belong_to("c1", 3).expect("free so far");
    opened.belong_to("c1", 3).expect("the same again");
    drop(opened);
    let mut opened = open(temporary.path());
    let membership = opened.identity().membership.clone().expect("stored");
    assert_eq!((membership.cluster_id.as_str(), membership.node_id), ("c1", 3));
    assert!(matches!(opened.belong_to("c2", 3), Err(DataDirError::AnotherCluster { .. })));
    assert!(matches!(opened.belong_to("c1", 4), Err(DataDirError::AnotherNodeId { .. })));
    opened.belong_to("c1", 3).expect("unchanged");
}

#[test]
fn a_damaged_identity_is_refused() {
    let temporary = folder();
    open(temporary.path());
    let assert_damaged = |why: &str| {
        let refusal = open_as(temporary.path(), "n1", 1).expect_err(why);
        assert!(matches!(refusal, DataDirError::Damaged { .. }), "{why}: {refusal}");
    };
    let good = fs::read(temporary.path().join("IDENTITY")).expect("readable");
    change_identity(temporary.path(), |identity| identity.disk_uuid.truncate(15));
    assert_damaged("a short UUID");
    fs::write(temporary.path().join("IDENTITY"), &good).expect("written");
    change_identity(temporary.path(), |identity| identity.node_id = 7);
    assert_damaged("a node id without a cluster");
    fs::write(temporary.path().join("IDENTITY"), []).expect("written");
    assert_damaged("empty");
}

#[test]
fn data_without_an_identity_and_foreign_folders_are_refused() {
    let temporary = folder();
    open(temporary.path());
    fs::remove_file(temporary.path().join("IDENTITY")).expect("removed");
    let refusal = open_as(temporary.path(), "n1", 1).expect_err("whose data?");
    assert!(matches!(refusal, DataDirError::NoIdentity { .. }), "{refusal}");

    let home = folder();
    fs::write(home.path().join("thesis.tex"), "").expect("written");
    let refusal = open_as(home.path(), "n1", 1).expect_err("a home folder");
    assert!(matches!(refusal, DataDirError::Foreign { .. }), "{refusal}");
    assert_eq!(names(home.path()), ["LOCK", "thesis.tex"]);
}

#[test]
fn a_new_volume_and_a_first_start_that_was_cut_short_are_empty() {
    let temporary = folder();
    fs::create_dir(temporary.path().join("lost+found")).expect("created");
    fs::write(temporary.path().join("IDENTITY.new"), "half").expect("written");
    assert_eq!(open(temporary.path()).identity().boot_counter, 1);
}

#[test]
fn a_folder_that_is_a_file_or_unreachable_is_refused() {
    let temporary = folder();
    let file = temporary.path().join("file");
    fs::write(&file, "").expect("written");
    for path in [file.clone(), file.join("below")] {
        let refusal = open_as(&path, "n1", 1).expect_err("no folder");
        assert!(matches!(refusal, DataDirError::Io { .. }), "{refusal}");
    }
}

/// A used folder with an order to set it aside.
fn ordered(scope: Scope) -> (TempDir, PathBuf) {
    let temporary = folder();
    let path = temporary.path().to_owned();
    let mut opened = open(&path);
    opened.belong_to("c1", 3).expect("free so far");
    fs::write(opened.raftlog().join("data"), "old").expect("written");
    opened.set_aside_at_next_start(scope, "the cluster removed this node").expect("ordered");
    assert!(opened.raftlog().join("data").exists(), "nothing moves under open databases");
    (temporary, path)
}

#[test]
fn what_was_set_aside_is_kept_and_the_node_begins_anew() {
    let (_temporary, path) = ordered(Scope::Everything);
    let opened = open_as(&path, "n1", 2).expect("begins anew");
    assert_eq!((opened.identity().boot_counter, &opened.identity().membership), (1, &None));
    assert_eq!(fs::read(path.join("set-aside-1/raftlog/data")).expect("kept"), b"old");
    let reason = fs::read(path.join("set-aside-1/REASON")).expect("kept");
    assert!(String::from_utf8_lossy(&reason).contains("the cluster removed this node"));
    assert!(!opened.raftlog().join("data").exists());
    opened.set_aside_at_next_start(Scope::Everything, "again").expect("ordered");
    drop(opened);
    open(&path);
    assert!(path.join("set-aside-2/IDENTITY").exists());
}

#[test]
fn databases_are_set_aside_without_the_identity() {
    let (_temporary, path) = ordered(Scope::Databases);
    let opened = open(&path);
    assert_eq!(opened.identity().boot_counter, 2);
    assert!(opened.identity().membership.is_some());
    assert!(path.join("set-aside-1/state").exists());
}

#[test]
fn a_damaged_state_is_set_aside_at_once_and_alone() {
    let temporary = folder();
    let opened = open(temporary.path());
    fs::write(opened.state().join("data"), "damaged").expect("written");
    fs::write(opened.raftlog().join("data"), "sound").expect("written");
    opened.set_aside_now(Scope::State, "a table is truncated").expect("moved");
    assert_eq!(fs::read(temporary.path().join("set-aside-1/state/data")).expect("kept"), b"damaged");
    assert_eq!(names(&opened.state()), Vec::<String>::new());
    assert_eq!(fs::read(opened.raftlog().join("data")).expect("untouched"), b"sound");
    assert!(!temporary.path().join("SET_ASIDE").exists(), "nothing is left to do");
}

#[test]
fn what_was_damaged_before_is_set_aside_with_everything() {
    let (_temporary, path) = ordered(Scope::Everything);
    fs::create_dir(path.join("raftlog.damaged-1")).expect("created");
    fs::write(path.join("CLUSTER"), "").expect("written");
    open(&path);
    let aside = names(&path.join("set-aside-1"));
    assert!(
        ["CLUSTER", "raftlog.damaged-1"].iter().all(|name| aside.contains(&(*name).to_owned())),
        "{aside:?}"
    );
}

#[test]
fn a_founding_and_a_fence_are_kept_until_they_are_taken_back() {
    let temporary = folder();
    let founding =
        Founding { cluster_id: "c1".to_owned(), token: "t".to_owned(), shards: 8, replication_factor: 3 };
    let mut opened = open(temporary.path());
    opened.note_founding(Some(founding.clone())).expect("written");
    opened.fence("a copy was started").expect("written");
    drop(opened);
    let mut opened = open(temporary.path());
    assert_eq!(opened.identity().founding, Some(founding));
    assert_eq!(opened.identity().fenced.as_deref(), Some("a copy was started"));
    opened.note_founding(None).expect("written");
    drop(opened);
    assert_eq!(open(temporary.path()).identity().founding, None);
}

#[test]
fn setting_aside_is_finished_after_a_crash_at_any_step() {
    for moved in 0..=4 {
        let (_temporary, path) = ordered(Scope::Everything);
        fs::create_dir(path.join("set-aside-1")).expect("created");
        for entry in ["IDENTITY", "raftlog", "state", "snapshots"].into_iter().take(moved) {
            fs::rename(path.join(entry), path.join("set-aside-1").join(entry)).expect("moved");
        }
        let opened = open(&path);
        assert_eq!(opened.identity().boot_counter, 1, "{moved} moved before the crash");
        let aside = names(&path.join("set-aside-1"));
        assert_eq!(aside, ["IDENTITY", "REASON", "raftlog", "snapshots", "state"]);
    }
}
