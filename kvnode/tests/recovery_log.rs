//! The two things that a recovery leaves in logs: one write for all replicas of a disk, and a jump of what clients hold.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test fails by panicking, and its name says what it shows"
)]

mod state_support;

use std::{sync::Arc, time::Duration};

use kv_proto::{
    disk::v1::{
        LogEntry, LogId, OpenSession, Recovered, ReplicaDescriptor, Vote, log_entry::Payload, operation::Kind,
    },
    peer::v1::outcome,
};
use kv_topology::ReplicaId;
use kvnode::{
    log::{Driver, LogHub, PlantedBug, SimulatedDisk, hub::rewrite::Rewrite},
    state::memory::MemoryEngine,
    state_machine::{recovered, session},
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use state_support::*;

fn hub(disk: &SimulatedDisk) -> LogHub {
    let delay = || {
        let time = Duration::from_millis(5);
        Box::pin(tokio::time::sleep(time)) as futures::future::BoxFuture<'static, ()>
    };
    let driver = Driver::Task {
        spawn: Box::new(|task| drop(tokio::spawn(task))),
        delay: Box::new(delay),
        bug: PlantedBug::None,
    };
    LogHub::open(disk.open(), driver, Box::new(|_| {})).unwrap()
}

fn rewritten(replica_id: u64, group_id: u64, term: u64, first: u64) -> Rewrite {
    let log_id = |index| Some(LogId { term, replica_id, index });
    let blank = |index| LogEntry { log_id: log_id(index), payload: Some(Payload::Blank(Default::default())) };
    Rewrite {
        descriptor: ReplicaDescriptor { replica_id, group_id, ..ReplicaDescriptor::default() },
        vote: Some(Vote { term, replica_id, committed: true }),
        purged: None,
        entries: (first..first + 3).map(blank).collect(),
    }
}

/// Group and last index of both replicas.
fn seen(hub: &LogHub) -> Vec<(u64, u64)> {
    let of = |descriptor: ReplicaDescriptor| {
        let ends = hub.ends(ReplicaId(descriptor.replica_id)).unwrap();
        assert_eq!(
            ends.vote.map(|vote| vote.term),
            ends.last.map(|last| last.term),
            "vote and log go together"
        );
        (descriptor.group_id, ends.last.map_or(0, |last| last.index))
    };
    hub.descriptors().into_iter().map(of).collect()
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_all_replicas_are_rewritten_or_none() {
    let (mut kept, mut lost) = (0, 0);
    for seed in 0..40 {
        let mut random = SmallRng::seed_from_u64(seed);
        let disk = SimulatedDisk::new(PlantedBug::None);
        let before = hub(&disk);
        before.rewrite(vec![rewritten(1, 10, 2, 0), rewritten(2, 20, 2, 0)]).await.unwrap();
        assert_eq!(seen(&before), [(10, 2), (20, 2)]);
        let writing = before.clone();
        let rewriting = tokio::spawn(async move {
            writing.rewrite(vec![rewritten(1, 11, 5, 3), rewritten(2, 21, 5, 3)]).await
        });
        tokio::time::sleep(Duration::from_millis(random.random_range(0..8))).await;
        disk.crash(&mut random);
        rewriting.abort();
        let after = seen(&hub(&disk));
        match after == [(11, 5), (21, 5)] {
            true => kept += 1,
            false => {
                assert_eq!(after, [(10, 2), (20, 2)], "seed {seed}");
                lost += 1;
            }
        }
    }
    assert!(kept > 0 && lost > 0, "both are met: {kept} times kept, {lost} times lost");
}

#[tokio::test(start_paused = true)]
async fn a_log_that_was_open_is_read_anew_after_it_was_rewritten() {
    let disk = SimulatedDisk::new(PlantedBug::None);
    let hub = hub(&disk);
    hub.rewrite(vec![rewritten(1, 10, 2, 0)]).await.unwrap();
    assert_eq!(seen(&hub), [(10, 2)]);
    hub.rewrite(vec![rewritten(1, 11, 5, 3)]).await.unwrap();
    assert_eq!(seen(&hub), [(11, 5)]);
    let entries = hub.entries(ReplicaId(1), 0..9, u64::MAX).await.unwrap();
    let terms: Vec<u64> = entries.iter().filter_map(|entry| entry.log_id).map(|id| id.term).collect();
    assert_eq!(terms, [2, 2, 2, 5, 5, 5]);
}

/// A snapshot was put in, and the log was not cut for it yet.
#[tokio::test(start_paused = true)]
async fn entries_before_a_snapshot_go_when_a_log_is_rewritten_behind_it() {
    let disk = SimulatedDisk::new(PlantedBug::None);
    let hub = hub(&disk);
    hub.rewrite(vec![rewritten(1, 10, 2, 0)]).await.unwrap();
    let purged = Some(LogId { term: 4, replica_id: 9, index: 70 });
    hub.rewrite(vec![Rewrite { purged, ..rewritten(1, 11, 5, 71) }]).await.unwrap();
    let ends = hub.ends(ReplicaId(1)).unwrap();
    assert_eq!((ends.purged, ends.last.map(|last| last.index)), (purged, Some(73)));
}

/// The snapshot was of a later term than the end of the log, which was never committed.
#[tokio::test(start_paused = true)]
async fn entries_beyond_a_snapshot_of_a_later_term_do_not_come_back() {
    let disk = SimulatedDisk::new(PlantedBug::None);
    let log = hub(&disk);
    log.rewrite(vec![rewritten(1, 10, 2, 0)]).await.unwrap();
    log.rewrite(vec![rewritten(1, 10, 3, 3)]).await.unwrap();
    log.rewrite(vec![rewritten(1, 10, 3, 6)]).await.unwrap();
    let purged = Some(LogId { term: 4, replica_id: 9, index: 1 });
    log.rewrite(vec![Rewrite { purged, ..rewritten(1, 11, 5, 2) }]).await.unwrap();
    // Read anew from the disk, too.
    drop(log);
    let log = hub(&disk);
    let ends = log.ends(ReplicaId(1)).unwrap();
    assert_eq!((ends.purged, ends.last.map(|last| (last.term, last.index))), (purged, Some((5, 4))));
}

#[test]
fn revisions_and_sessions_that_were_lost_are_not_given_out_again() {
    let engine = Arc::new(MemoryEngine::default());
    let driven = Driven::open(engine, REPLICA).unwrap();
    driven.apply(1, own_all());
    let opened = |driven: &Driven| match driven
        .apply(1, operation(Kind::OpenSession(OpenSession { ttl_ms: 60_000 })))
    {
        outcome::Result::Session(session) => session.session_id,
        other => panic!("{other:?}"),
    };
    let written = |driven: &Driven| match driven.apply(1, operation(Kind::Put(put("k", b"v")))) {
        outcome::Result::Put(put) => put.mod_revision,
        other => panic!("{other:?}"),
    };
    let (session, revision) = (opened(&driven), written(&driven));
    let done = driven.apply(1, operation(Kind::Recovered(Recovered { gap: recovered::GAP })));
    assert!(matches!(done, outcome::Result::Done(_)), "{done:?}");
    assert_eq!(written(&driven), revision + recovered::GAP + 1);
    assert_eq!(opened(&driven), session + recovered::GAP + 1);
    assert_eq!(
        session::shard_of(session + recovered::GAP + 1),
        SHARD,
        "the jump stays within the shard's numbers"
    );
}
