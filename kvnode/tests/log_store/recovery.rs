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
        let hub = folder_hub(&path);
        hub.put_descriptor(ReplicaDescriptor { replica_id: REPLICA.get(), ..Default::default() })
            .await
            .unwrap();
        let mut store: Store = hub.replica(REPLICA).unwrap();
        store.save_vote(&vote(4)).await.unwrap();
        hub.close();
        drop((hub, store));
        let early = fs::read(path.join("SYNCED")).unwrap();
        let hub = folder_hub(&path);
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

    /// The file that holds all of it.
    fn segment(&self) -> PathBuf {
        let mut files = fs::read_dir(self.path().join("segments")).unwrap().map(|file| file.unwrap().path());
        let segment = files.next().expect("a segment");
        assert!(files.next().is_none(), "one is enough for so little");
        segment
    }

    /// Changes what was written of it; behind that it is empty.
    fn change(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.segment()).unwrap();
        let written = bytes.iter().rposition(|byte| *byte != 0).expect("it was written") + 1;
        bytes.truncate(written);
        change(&mut bytes);
        fs::write(self.segment(), bytes).unwrap();
    }

    /// Opens it, and says how many entries there are.
    async fn entries(&self) -> u64 {
        let hub = folder_hub(&self.path());
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
        assert!(aside.join("segments").exists() && self.path().join("segments").exists());
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
    written.change(|bytes| {
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
    written.change(|bytes| bytes[40] ^= 1);
    written.assert_damaged();
    fs::remove_dir_all(written.path().join("segments")).unwrap();
    let hub = thread_hub(Arc::new(open_folder(&written.path()).device));
    let mut store: Store = hub.replica(REPLICA).unwrap();
    append_durably(&mut store, entries(1, 0..10, 300)).await;
    hub.close();
    drop((hub, store));
    fs::remove_dir_all(written.path().join("segments")).unwrap();
    let folders: Vec<_> = damages(&written.path()).into_iter().map(|damage| damage.folder).collect();
    assert_eq!(
        folders,
        ["raftlog.damaged-1", "raftlog.damaged-2"].map(|name| written.folder.path().join(name))
    );
}

#[tokio::test]
async fn a_flipped_bit_before_later_entries_is_damage_however_new_they_are() {
    let written = Written::new().await.with_early_synced();
    written.change(|bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    written.assert_damaged();
}

#[tokio::test]
async fn a_truncated_tail_opens() {
    let written = Written::new().await.with_early_synced();
    written.change(|bytes| bytes.truncate(bytes.len() - 100));
    assert_eq!(written.entries().await, ENTRIES - 1);
}

#[tokio::test]
async fn garbage_behind_the_synced_end_opens_whole() {
    let written = Written::new().await;
    written.change(|bytes| {
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
    written.change(|bytes| {
        let end = bytes.len();
        bytes[end - 50..].fill(0xa5);
    });
    assert_eq!(written.entries().await, ENTRIES - 1);
}

#[tokio::test]
async fn a_synced_log_that_was_cut_short_is_damage() {
    let written = Written::new().await;
    written.change(|bytes| bytes.truncate(bytes.len() - 100));
    written.assert_damaged();
}

#[tokio::test]
async fn a_missing_segment_is_damage() {
    let written = Written::new().await;
    fs::remove_file(written.segment()).unwrap();
    written.assert_damaged();
}

#[tokio::test]
async fn a_folder_without_segments_is_damage() {
    let written = Written::new().await;
    fs::remove_dir_all(written.path().join("segments")).unwrap();
    written.assert_damaged();
}

#[tokio::test]
async fn a_log_of_a_later_release_is_refused_and_stays() {
    let written = Written::new().await;
    written.change(|bytes| {
        bytes[7] = 2;
        let checksum = crc32c::crc32c(&bytes[..24]);
        bytes[24..28].copy_from_slice(&checksum.to_le_bytes());
    });
    let refused = kvnode::log::recovery::open(&written.path()).map(drop).unwrap_err().to_string();
    assert!(refused.contains("segment 1 has format 2"), "{refused}");
    assert!(written.segment().exists());
}

#[tokio::test]
async fn a_log_that_is_in_use_is_refused_and_not_damage() {
    let written = Written::new().await;
    let hub = folder_hub(&written.path());
    assert!(kvnode::log::recovery::open(&written.path()).is_err());
    hub.close();
}

#[tokio::test]
async fn an_image_taken_at_any_moment_opens_without_damage() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raftlog");
    let hub = folder_hub(&path);
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
        let copy = folder_hub(&image);
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
