//! Opening what a crash, a power loss or a bad disk left behind.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use kv_proto::disk::v1::ReplicaDescriptor;
use openraft::{RaftLogReader, storage::RaftLogStorage};

use crate::support::*;

const ENTRIES: u64 = 1000;

/// A folder with a log of synced batches, and `SYNCED` as it was after the first of them and at the end.
struct Written {
    folder: tempfile::TempDir,
    early: Vec<u8>,
}

impl Written {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("raftlog");
        let hub = rocks_hub(&path);
        hub.put_descriptor(ReplicaDescriptor { replica_id: REPLICA.get(), ..Default::default() })
            .await
            .unwrap();
        let mut store: Store = hub.replica(REPLICA).unwrap();
        store.save_vote(&vote(4)).await.unwrap();
        hub.close();
        drop((hub, store));
        let early = fs::read(path.join("SYNCED")).unwrap();
        let hub = rocks_hub(&path);
        let mut store: Store = hub.replica(REPLICA).unwrap();
        for index in 0..ENTRIES {
            append_durably(&mut store, entries(1, index..index + 1, 300)).await;
        }
        hub.close();
        Self { folder, early }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("raftlog")
    }

    /// As after a crash within a second of the first batch.
    fn with_early_synced(self) -> Self {
        fs::write(self.path().join("SYNCED"), &self.early).unwrap();
        self
    }

    fn wal(&self) -> PathBuf {
        let files = fs::read_dir(self.path().join("db")).unwrap().map(|file| file.unwrap().path());
        let logs = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.max_by_key(|path| fs::metadata(path).unwrap().len()).expect("a write-ahead log")
    }

    fn change_wal(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.wal()).unwrap();
        change(&mut bytes);
        fs::write(self.wal(), bytes).unwrap();
    }

    /// Opens it, and says how many entries there are.
    async fn entries(&self) -> u64 {
        let hub = rocks_hub(&self.path());
        let mut store: Store = hub.replica(REPLICA).unwrap();
        assert_eq!(store.read_vote().await.unwrap(), Some(vote(4)));
        let all = read_all(&mut store).await;
        assert_eq!(all, entries(1, 0..all.len() as u64, 300));
        hub.close();
        all.len() as u64
    }

    fn assert_damaged(&self) {
        let opened = open_folder(&self.path());
        assert_eq!(opened.damages.len(), 1);
        let aside = self.folder.path().join("raftlog.damaged-1");
        assert_eq!(opened.damages[0].folder, aside);
        assert!(aside.join("db").exists() && self.path().join("db").exists());
        let hub = thread_hub(Arc::new(opened.device));
        assert!(hub.descriptors().is_empty(), "the new log is empty");
        hub.close();
    }
}

fn damages(path: &Path) -> Vec<kvnode::log::recovery::Damage> {
    open_folder(path).damages
}

#[tokio::test]
async fn a_sound_log_opens_whole() {
    let written = Written::new().await;
    assert_eq!(written.entries().await, ENTRIES);
}

#[tokio::test]
async fn a_flipped_bit_in_the_middle_is_damage_and_is_reported_until_it_is_settled() {
    let written = Written::new().await;
    written.change_wal(|bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    written.assert_damaged();
    let found = damages(&written.path());
    assert_eq!(found.len(), 1, "not settled");
    let replicas: Vec<u64> = found[0].replicas.iter().map(|replica| replica.replica_id).collect();
    assert_eq!(replicas, [REPLICA.get()], "{}", found[0].reason);
    for damage in found {
        damage.settle().unwrap();
    }
    assert!(damages(&written.path()).is_empty());
}

#[tokio::test]
async fn a_second_damage_is_set_aside_beside_the_first() {
    let written = Written::new().await;
    written.change_wal(|bytes| bytes[40] ^= 1);
    written.assert_damaged();
    fs::remove_dir_all(written.path().join("db")).unwrap();
    let hub = thread_hub(Arc::new(open_folder(&written.path()).device));
    let mut store: Store = hub.replica(REPLICA).unwrap();
    append_durably(&mut store, entries(1, 0..10, 300)).await;
    hub.close();
    drop((hub, store));
    fs::remove_dir_all(written.path().join("db")).unwrap();
    let folders: Vec<_> = damages(&written.path()).into_iter().map(|damage| damage.folder).collect();
    assert_eq!(
        folders,
        ["raftlog.damaged-1", "raftlog.damaged-2"].map(|name| written.folder.path().join(name))
    );
}

#[tokio::test]
async fn a_flipped_bit_in_what_was_not_known_to_be_synced_opens_up_to_it() {
    let written = Written::new().await.with_early_synced();
    written.change_wal(|bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    let entries = written.entries().await;
    assert!((ENTRIES / 3..ENTRIES * 2 / 3).contains(&entries), "{entries} entries");
}

#[tokio::test]
async fn a_truncated_tail_opens() {
    let written = Written::new().await.with_early_synced();
    written.change_wal(|bytes| bytes.truncate(bytes.len() - 100));
    assert_eq!(written.entries().await, ENTRIES - 1);
}

#[tokio::test]
async fn garbage_behind_the_synced_end_opens_whole() {
    let written = Written::new().await;
    written.change_wal(|bytes| {
        let mut noise = 1u32;
        for _ in 0..5000 {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bytes.push((noise >> 24) as u8);
        }
    });
    assert_eq!(written.entries().await, ENTRIES);
}

#[tokio::test]
async fn garbage_in_the_last_record_opens_up_to_it() {
    let written = Written::new().await.with_early_synced();
    written.change_wal(|bytes| {
        let end = bytes.len();
        bytes[end - 50..].fill(0xa5);
    });
    assert_eq!(written.entries().await, ENTRIES - 1);
}

#[tokio::test]
async fn a_synced_log_that_was_cut_short_is_damage() {
    let written = Written::new().await;
    written.change_wal(|bytes| bytes.truncate(bytes.len() - 100));
    written.assert_damaged();
}

#[tokio::test]
async fn a_missing_write_ahead_log_is_damage() {
    let written = Written::new().await;
    fs::remove_file(written.wal()).unwrap();
    written.assert_damaged();
}

#[tokio::test]
async fn a_missing_database_is_damage() {
    let written = Written::new().await;
    fs::remove_dir_all(written.path().join("db")).unwrap();
    written.assert_damaged();
}

#[tokio::test]
async fn a_database_without_its_root_or_manifest_is_damage_and_is_kept_whole() {
    for part in ["CURRENT", "MANIFEST"] {
        let written = Written::new().await;
        let wal = fs::read(written.wal()).unwrap();
        let name = written.wal().file_name().unwrap().to_owned();
        for file in fs::read_dir(written.path().join("db")).unwrap() {
            let path = file.unwrap().path();
            if path.to_string_lossy().contains(part) {
                fs::remove_file(path).unwrap();
            }
        }
        written.assert_damaged();
        let kept = written.folder.path().join("raftlog.damaged-1/db").join(name);
        assert_eq!(fs::read(kept).unwrap(), wal, "without {part}");
    }
}

#[tokio::test]
async fn a_log_that_was_marked_by_a_process_that_had_to_end_is_damage() {
    let written = Written::new().await;
    kvnode::data_dir::database::mark_damaged(&written.path(), "compaction met damage");
    written.assert_damaged();
    assert_eq!(damages(&written.path())[0].reason, "compaction met damage");
}

#[tokio::test]
async fn a_log_that_is_in_use_is_refused_and_not_damage() {
    let written = Written::new().await;
    let hub = rocks_hub(&written.path());
    assert!(kvnode::log::recovery::open(&written.path(), &Default::default()).is_err());
    hub.close();
}

#[tokio::test]
async fn an_image_taken_at_any_moment_opens_without_damage() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raftlog");
    let hub = rocks_hub(&path);
    let mut store: Store = hub.replica(REPLICA).unwrap();
    let mut next = 0;
    for round in 0..8 {
        for _ in 0..40 {
            append_durably(&mut store, entries(1, next..next + 1, 300)).await;
            next += 1;
        }
        // What SIGKILL would leave: everything written, `SYNCED` of any age.
        let image = folder.path().join(format!("image-{round}"));
        copy_folder(&path, &image);
        let copy = rocks_hub(&image);
        let mut reopened: Store = copy.replica(REPLICA).unwrap();
        assert_eq!(read_all(&mut reopened).await, entries(1, 0..next, 300), "round {round}");
        copy.close();
    }
    hub.close();
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for item in fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let target = to.join(item.file_name());
        if item.file_type().unwrap().is_dir() {
            copy_folder(&item.path(), &target);
        } else if item.file_name() != "LOCK" {
            fs::copy(item.path(), target).unwrap();
        }
    }
}
