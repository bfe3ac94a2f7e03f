//! What the log promises while it runs: order, durability, back-pressure, memory, reading.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt};
use kv_proto::disk::v1::ReplicaDescriptor;
use kv_topology::ReplicaId;
use kvnode::{
    log::{
        Driver, LogDevice, LogError, LogHub, PlantedBug, SimulatedDisk,
        budget::REPLICA_QUEUE_BYTES,
        device::Write,
        extent::LogSize,
        keys::{self, Place},
        store::APPEND_BYTES,
    },
    runtime::Handover,
};
use openraft::{RaftLogReader, storage::RaftLogStorage};

use crate::support::*;

const LONG: Duration = Duration::from_secs(20);

fn gated() -> (SimulatedDisk, LogHub, Arc<Gate>) {
    let disk = SimulatedDisk::new(PlantedBug::None);
    let (device, gate) = Gated::new(disk.open());
    (disk, thread_hub(device), gate)
}

#[tokio::test]
async fn entries_are_readable_before_they_are_durable() {
    let (_disk, hub, gate) = gated();
    let mut store: Store = hub.replica(REPLICA).unwrap();
    let view = store.view();
    let flushed = append(&mut store, entries(1, 0..5, 10)).await;
    assert_eq!(read_all(&mut store).await, entries(1, 0..5, 10));
    gate.wait_for_committer();
    assert!(!view.is_durable(0));
    let mut flushed = Box::pin(flushed);
    assert!((&mut flushed).now_or_never().is_none(), "reported before the device wrote");
    let mut wait = Box::pin(view.wait_durable(4));
    assert!((&mut wait).now_or_never().is_none(), "durable before the device wrote");
    gate.set(true);
    tokio::time::timeout(LONG, wait).await.expect("durability of 4").unwrap();
    tokio::time::timeout(LONG, flushed).await.expect("IOFlushed").unwrap().unwrap();
    assert!(view.is_durable(4) && !view.is_durable(5));
    assert!(matches!(view.wait_durable(5).await, Err(LogError::Absent { index: 5, .. })));
}

#[tokio::test]
async fn appends_and_votes_are_reported_in_order() {
    let (_disk, hub, gate) = gated();
    let mut store: Store = hub.replica(REPLICA).unwrap();
    let (told, mut order) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = Vec::new();
    let mut report = |name: String, flushed: Flushed| {
        let told = told.clone();
        tasks.push(tokio::spawn(async move {
            flushed.await.unwrap().unwrap();
            told.send(name).unwrap();
        }));
    };
    // Bulk and small appends, and a vote in between.
    for round in 0..6u64 {
        let bytes = if round % 2 == 0 { 200 << 10 } else { 10 };
        report(format!("append {round}"), append(&mut store, entries(1, round..round + 1, bytes)).await);
        if round == 2 {
            let (mut other, told) = (store.clone(), told.clone());
            let mut saved = Box::pin(async move {
                other.save_vote(&vote(5)).await.unwrap();
                told.send("vote".to_owned()).unwrap();
            });
            assert!((&mut saved).now_or_never().is_none(), "the vote returned before it was written");
            tokio::spawn(saved);
        }
    }
    gate.wait_for_committer();
    drop(told);
    tokio::task::yield_now().await;
    assert!(order.try_recv().is_err(), "reported before the device wrote");
    gate.set(true);
    let mut seen = Vec::new();
    while let Some(name) = tokio::time::timeout(LONG, order.recv()).await.expect("all reports") {
        seen.push(name);
    }
    let expected = ["append 0", "append 1", "append 2", "vote", "append 3", "append 4", "append 5"];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn an_index_appended_again_is_durable_only_with_its_second_append() {
    let (_disk, hub, gate) = gated();
    let mut store: Store = hub.replica(REPLICA).unwrap();
    let view = store.view();
    gate.set(true);
    append_durably(&mut store, entries(1, 0..5, 10)).await;
    gate.set(false);
    store.truncate_after(Some(log_id(1, 2))).await.unwrap();
    let flushed = append(&mut store, entries(2, 3..5, 10)).await;
    gate.wait_for_committer();
    assert!(view.is_durable(2) && !view.is_durable(3) && !view.is_durable(4));
    assert_eq!(view.log_id(4), Some(log_id(2, 4)));
    gate.set(true);
    tokio::time::timeout(LONG, view.wait_durable(4)).await.expect("durability of 4").unwrap();
    flushed.await.unwrap().unwrap();
    drop(hub);
}

#[tokio::test]
async fn the_committed_id_waits_for_the_next_operation() {
    let disk = SimulatedDisk::new(PlantedBug::None);
    let hub = thread_hub(disk.open());
    let mut store: Store = hub.replica(REPLICA).unwrap();
    append_durably(&mut store, entries(1, 0..5, 10)).await;
    store.save_committed(Some(log_id(1, 3))).await.unwrap();
    assert_eq!(store.read_committed().await.unwrap(), Some(log_id(1, 3)));
    let reopened =
        |disk: &SimulatedDisk| thread_hub(disk.open()).replica::<openraft_rt_tokio::TokioRuntime>(REPLICA);
    assert_eq!(store.view().status().queued, 0, "nothing was queued for it");
    append_durably(&mut store, entries(1, 5..6, 10)).await;
    assert_eq!(reopened(&disk).unwrap().read_committed().await.unwrap(), Some(log_id(1, 3)));
}

#[tokio::test]
async fn an_orderly_end_writes_the_committed_id() {
    let disk = SimulatedDisk::new(PlantedBug::None);
    let hub = thread_hub(disk.open());
    let mut store: Store = hub.replica(REPLICA).unwrap();
    let flushed = append(&mut store, entries(1, 0..5, 10)).await;
    store.save_committed(Some(log_id(1, 4))).await.unwrap();
    hub.close();
    flushed.await.unwrap().unwrap();
    assert!(store.save_vote(&vote(3)).await.is_err(), "a closed log takes no votes");
    let mut store: Store = thread_hub(disk.open()).replica(REPLICA).unwrap();
    assert_eq!(store.read_committed().await.unwrap(), Some(log_id(1, 4)));
}

#[tokio::test]
async fn a_flooded_replica_waits_and_others_do_not() {
    let (_disk, hub, gate) = gated();
    let mut flooded: Store = hub.replica(REPLICA).unwrap();
    let mut calm: Store = hub.replica(ReplicaId(8)).unwrap();
    let piece = 256 << 10;
    let mut index = 0;
    let blocked = loop {
        let (callback, _) = callback();
        let mut store = flooded.clone();
        let batch = entries(1, index..index + 1, piece);
        let mut attempt = Box::pin(async move { store.append(batch, callback).await });
        match (&mut attempt).now_or_never() {
            Some(result) => result.unwrap(),
            None => break attempt,
        }
        index += 1;
        assert!(index < 100, "no back-pressure");
    };
    assert!(index * piece as u64 <= REPLICA_QUEUE_BYTES as u64, "took {index} pieces");
    let other = append(&mut calm, entries(1, 0..3, 100)).now_or_never().expect("another replica has room");
    gate.set(true);
    tokio::time::timeout(LONG, blocked).await.expect("room").unwrap();
    other.await.unwrap().unwrap();
    tokio::time::timeout(LONG, flooded.view().wait_durable(index)).await.expect("the flood").unwrap();
    assert_eq!(read_all(&mut flooded).await.len() as u64, index + 1);
}

#[tokio::test]
async fn tails_keep_to_the_budget_and_bulk_leaves_first() {
    let disk = SimulatedDisk::new(PlantedBug::None);
    let budget = 1 << 20;
    let hub = LogHub::with_tail_budget(disk.open(), Driver::Thread(Handover::in_place()), no_fatal(), budget)
        .unwrap();
    let mut bulky: Store = hub.replica(ReplicaId(1)).unwrap();
    let mut small: Store = hub.replica(ReplicaId(2)).unwrap();
    for index in 0..400 {
        append_durably(&mut small, entries(1, index..index + 1, 1000)).await;
        if index % 10 == 0 {
            append_durably(&mut bulky, entries(1, index / 10..index / 10 + 1, 128 << 10)).await;
        }
        assert!(hub.tail_bytes() <= budget + (129 << 10), "{} bytes at {index}", hub.tail_bytes());
    }
    let kept = small.view().status();
    assert!(kept.tail_bytes >= 400 * 1000, "small entries left before bulk: {kept:?}");
    assert_eq!(
        read_all(&mut bulky).await,
        (0..40).flat_map(|i| entries(1, i..i + 1, 128 << 10)).collect::<Vec<_>>()
    );
    for index in 400..3000 {
        append_durably(&mut small, entries(1, index..index + 1, 1000)).await;
    }
    assert!(hub.tail_bytes() <= budget + 2000, "{} bytes", hub.tail_bytes());
    assert_eq!(read_all(&mut small).await, entries(1, 0..3000, 1000));
    hub.remove_replica(ReplicaId(2)).await.unwrap();
    hub.remove_replica(ReplicaId(1)).await.unwrap();
    assert_eq!(hub.tail_bytes(), 0);
}

#[tokio::test]
async fn what_is_not_durable_stays_in_memory_over_the_budget() {
    let disk = SimulatedDisk::new(PlantedBug::None);
    let (device, gate) = Gated::new(disk.open());
    let hub =
        LogHub::with_tail_budget(device, Driver::Thread(Handover::in_place()), no_fatal(), 1000).unwrap();
    let mut store: Store = hub.replica(REPLICA).unwrap();
    let flushed = append(&mut store, entries(1, 0..20, 1000)).await;
    assert_eq!(read_all(&mut store).await, entries(1, 0..20, 1000));
    gate.set(true);
    flushed.await.unwrap().unwrap();
    assert!(hub.tail_bytes() <= 1000, "{} bytes when all is durable", hub.tail_bytes());
    assert_eq!(read_all(&mut store).await, entries(1, 0..20, 1000));
}

#[tokio::test]
async fn reads_have_a_byte_cap_and_give_at_least_one_entry() {
    let disk = SimulatedDisk::new(PlantedBug::None);
    for tail in [64 << 20, 0] {
        let hub =
            LogHub::with_tail_budget(disk.open(), Driver::Thread(Handover::in_place()), no_fatal(), tail)
                .unwrap();
        let mut store: Store = hub.replica(REPLICA).unwrap();
        if store.view().status().last.is_none() {
            append_durably(&mut store, entries(1, 0..20, 300 << 10)).await;
            append_durably(&mut store, entries(1, 20..21, 5 << 20)).await;
        }
        let some = store.limited_get_log_entries(0, 21).await.unwrap();
        assert_eq!(some, entries(1, 0..7, 300 << 10), "{APPEND_BYTES} bytes, then no more");
        assert_eq!(store.limited_get_log_entries(20, 21).await.unwrap().len(), 1);
        assert_eq!(store.limited_get_log_entries(3, 5).await.unwrap().len(), 2);
        let stream = store.entries_stream(2..).await;
        let all: Vec<_> = stream.try_collect().await.unwrap();
        assert_eq!(all.len(), 19);
        assert_eq!(store.entries_stream(30..40).await.count().await, 0);
    }
}

#[tokio::test]
async fn numbers_for_compaction_tell_where_to_cut() {
    let disk = SimulatedDisk::new(PlantedBug::None);
    let hub = thread_hub(disk.open());
    let mut store: Store = hub.replica(REPLICA).unwrap();
    append_durably(&mut store, entries(1, 0..10, 1000)).await;
    append_durably(&mut store, entries(2, 10..20, 1000)).await;
    let view = store.view();
    let one = view.status().bytes / 20;
    let keep = LogSize::of_bytes;
    assert_eq!(view.cut_keeping(keep(10 * one + 100)), Some(log_id(1, 9)));
    assert_eq!(view.cut_keeping(keep(3 * one + 100)), Some(log_id(2, 16)));
    assert_eq!(view.cut_keeping(keep(u64::MAX)), None);
    assert_eq!(view.cut_keeping(LogSize { entries: 3, ..keep(10 * one + 100) }), Some(log_id(2, 16)));
    assert_eq!(view.cut_keeping(LogSize { entries: 15, ..keep(10 * one + 100) }), Some(log_id(1, 9)));
    store.purge(log_id(1, 9)).await.unwrap();
    let status = view.status();
    assert_eq!((status.purged, status.last, status.entries), (Some(log_id(1, 9)), Some(log_id(2, 19)), 10));
    assert_eq!(view.log_id(9), Some(log_id(1, 9)));
    assert_eq!(view.log_id(8), None);
}

#[tokio::test]
async fn a_gap_in_an_append_is_refused() {
    let disk = SimulatedDisk::new(PlantedBug::None);
    let hub = thread_hub(disk.open());
    let mut store: Store = hub.replica(REPLICA).unwrap();
    append_durably(&mut store, entries(1, 0..5, 10)).await;
    let (gap, _) = callback();
    assert!(store.append(entries(1, 6..7, 10), gap).await.is_err());
    let (inner, _) = callback();
    assert!(store.append([entry(1, 5, 1), entry(1, 7, 1)], inner).await.is_err());
    assert_eq!(read_all(&mut store).await.len(), 5, "nothing of it was taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_reads_everything_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raftlog");
    let (one, two) = (ReplicaId(1), ReplicaId(2));
    let descriptor =
        |id: ReplicaId| ReplicaDescriptor { replica_id: id.get(), shard_id: 3, ..Default::default() };
    {
        let hub = folder_hub(&path);
        for id in [one, two] {
            hub.put_descriptor(descriptor(id)).await.unwrap();
            let mut store: Store = hub.replica(id).unwrap();
            store.save_vote(&vote(id.get())).await.unwrap();
            append_durably(&mut store, entries(1, 0..500, 2000)).await;
            store.truncate_after(Some(log_id(1, 399))).await.unwrap();
            append_durably(&mut store, entries(2, 400..450, 100_000)).await;
            store.purge(log_id(1, 99)).await.unwrap();
            store.save_committed(Some(log_id(1, 300))).await.unwrap();
        }
        hub.close();
    }
    {
        let hub = folder_hub(&path);
        assert_eq!(hub.descriptors(), [descriptor(one), descriptor(two)]);
        for id in [one, two] {
            let mut store: Store = hub.replica(id).unwrap();
            assert_eq!(store.read_vote().await.unwrap(), Some(vote(id.get())));
            assert_eq!(store.read_committed().await.unwrap(), Some(log_id(1, 300)));
            let state = store.get_log_state().await.unwrap();
            assert_eq!(state.last_purged_log_id, Some(log_id(1, 99)));
            assert_eq!(state.last_log_id, Some(log_id(2, 449)));
            let all = read_all(&mut store).await;
            let expected = entries(1, 100..400, 2000).into_iter().chain(entries(2, 400..450, 100_000));
            assert_eq!(all, expected.collect::<Vec<_>>());
            let keys = store.get_key_log_ids(log_id(1, 100)..=log_id(2, 449)).await.unwrap();
            assert_eq!(keys, [log_id(1, 399), log_id(2, 449)]);
        }
        hub.remove_replica(one).await.unwrap();
        hub.close();
    }
    let hub = folder_hub(&path);
    assert_eq!(hub.descriptors(), [descriptor(two)]);
    let mut store: Store = hub.replica(one).unwrap();
    assert_eq!(store.read_vote().await.unwrap(), None);
    assert!(read_all(&mut store).await.is_empty());
    assert_eq!(hub.replica::<openraft_rt_tokio::TokioRuntime>(two).unwrap().view().status().entries, 350);
}

/// A device that fails once it is told to.
struct Failing {
    device: Arc<dyn LogDevice>,
    fail: std::sync::atomic::AtomicBool,
    writes: std::sync::atomic::AtomicUsize,
}

impl LogDevice for Failing {
    fn write(&self, batch: &[Write], sync: bool) -> Result<(), kvnode::log::DeviceError> {
        use std::sync::atomic::Ordering::SeqCst;
        self.writes.fetch_add(1, SeqCst);
        if self.fail.load(SeqCst) {
            let reason = "planted".to_owned();
            return Err(kvnode::log::DeviceError::Failed { operation: "fsync", reason, out_of_space: false });
        }
        self.device.write(batch, sync)
    }
    fn sync(&self) -> Result<(), kvnode::log::DeviceError> {
        self.device.sync()
    }
    fn visit(
        &self,
        from: &[u8],
        to: &[u8],
        visitor: &mut kvnode::log::device::Visitor<'_>,
    ) -> Result<(), kvnode::log::DeviceError> {
        self.device.visit(from, to, visitor)
    }
    fn reads_block(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_failed_sync_is_reported_once_and_never_tried_again() {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
    let disk = SimulatedDisk::new(PlantedBug::None);
    let device =
        Arc::new(Failing { device: disk.open(), fail: AtomicBool::new(false), writes: AtomicUsize::new(0) });
    let (sender, fatal) = tokio::sync::oneshot::channel();
    let hub = LogHub::open(
        device.clone(),
        Driver::Thread(Handover::in_place()),
        Box::new(|error| drop(sender.send(error))),
    )
    .unwrap();
    let mut store: Store = hub.replica(REPLICA).unwrap();
    append_durably(&mut store, entries(1, 0..5, 10)).await;
    let before = device.writes.load(SeqCst);
    device.fail.store(true, SeqCst);
    let flushed = append(&mut store, entries(1, 5..6, 10)).await;
    let error = tokio::time::timeout(LONG, fatal).await.expect("the fatal callback").unwrap();
    assert!(error.to_string().contains("planted"), "{error}");
    assert!(flushed.await.unwrap().is_err());
    assert!(store.save_vote(&vote(9)).await.is_err());
    let (late, _) = callback();
    assert!(store.append(entries(1, 6..7, 10), late).await.is_err());
    assert!(store.view().wait_durable(5).await.is_err());
    assert_eq!(device.writes.load(SeqCst), before + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_that_is_met_while_a_replica_runs_is_told_with_the_replica() {
    let disk = SimulatedDisk::new(PlantedBug::None);
    let device = disk.open();
    let hub = LogHub::with_tail_budget(device.clone(), Driver::Thread(Handover::in_place()), no_fatal(), 0)
        .unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let hear = told.clone();
    hub.on_damage(Box::new(move |replica, error| hear.lock().unwrap().push((replica, error.to_string()))));
    let mut store: Store = hub.replica(REPLICA).unwrap();
    append_durably(&mut store, entries(1, 0..50, 100)).await;
    assert_eq!(read_all(&mut store).await.len(), 50, "nothing is in memory, and all of it is sound");
    assert!(told.lock().unwrap().is_empty());
    let entry = keys::encode(REPLICA, Place::Entry(30));
    device.write(&[Write::Put(entry, Bytes::from_static(b"garbage"))], true).unwrap();
    let refused = store.try_get_log_entries(..).await.expect_err("entry 30 is damaged");
    assert_eq!(refused.kind(), std::io::ErrorKind::InvalidData);
    let told = told.lock().unwrap();
    assert!(matches!(&told[..], [(REPLICA, reason)] if reason.contains("entry 30")), "{told:?}");
    hub.close();
}
