//! Sessions in the state machine, on RocksDB: what is applied once, what is told of it the second time, and what a
//! restart changes of that (nothing).

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test fails by panicking, and its name says what it shows"
)]

mod state_support;

use std::sync::Arc;

use bytes::Bytes;
use kv_proto::{
    disk::v1::{
        CloseSession, OpenSession, Operation, Put, Txn, TxnOperation, operation::Kind, txn_operation,
    },
    kv::v1::{Compare, compare, precondition::Condition},
    peer::v1::{Outcome, outcome},
};
use kvnode::{
    state::{StateEngine, memory::MemoryEngine, options::MemoryBudget, rocks::RocksEngine},
    state_machine::{ReadyEntry, session, validate},
};
use proptest::prelude::*;
use state_support::*;

const TTL_MS: u32 = 60_000;

fn open(ttl_ms: u32) -> Operation {
    operation(Kind::OpenSession(OpenSession { ttl_ms }))
}

fn close(session_id: u64) -> Operation {
    operation(Kind::CloseSession(CloseSession { session_id }))
}

/// `kind` as the write `sequence` of a session; its fingerprint is that of all writes with this sequence.
fn stamped(session_id: u64, sequence: u64, lowest_outstanding: u64, kind: Kind) -> Operation {
    let fingerprint = sequence;
    Operation { session_id, sequence, lowest_outstanding, fingerprint, ..operation(kind) }
}

fn owning_all() -> Driven {
    let driven = Driven::open(Arc::new(MemoryEngine::new()), REPLICA).unwrap();
    driven.apply(0, own_all());
    driven
}

fn opened(driven: &Driven, log_time_ms: u64) -> u64 {
    match driven.apply(log_time_ms, open(TTL_MS)) {
        outcome::Result::Session(session) => session.session_id,
        other => panic!("{other:?}"),
    }
}

/// The outcome of one operation, applied as the next entry.
fn once(driven: &Driven, log_time_ms: u64, operation: Operation) -> Outcome {
    let index = driven.applied().map_or(0, |applied| applied + 1);
    driven.round(&[proposal(index, log_time_ms, vec![operation])]).unwrap().remove(0).remove(0)
}

fn refused(outcome: Outcome) -> (String, String) {
    match outcome.result {
        Some(outcome::Result::Refusal(refused)) => (refused.reason, refused.field),
        other => panic!("{other:?}"),
    }
}

fn revision(outcome: &Outcome) -> u64 {
    outcome.context.unwrap().revision
}

#[test]
fn a_replay_tells_what_the_first_time_did_and_leaves_out_what_was_read() {
    let driven = owning_all();
    let id = opened(&driven, 0);
    assert_eq!(session::shard_of(id), SHARD);
    let first_put = Put { return_previous: true, ..put("k", b"one") };
    let failing = Put { precondition: condition(Condition::Absent(true)), ..put("k", b"two") };
    let compare =
        Compare { key: "k".into(), target: Some(compare::Target::Present(false)), ..Compare::default() };
    let read = TxnOperation {
        operation: Some(txn_operation::Operation::Put(Put { return_previous: true, ..put("k", b"3") })),
    };
    let txn = Txn { compare: vec![compare], then: vec![], r#else: vec![read] };
    driven.apply(0, operation(Kind::Put(put("k", b"before"))));
    let writes = [
        Kind::Put(first_put),
        Kind::Put(failing),
        Kind::Txn(txn),
        Kind::Delete(delete("k")),
        Kind::Delete(delete("k")),
    ];
    let write = |number: usize| stamped(id, number as u64 + 1, 1, writes[number].clone());
    let first: Vec<Outcome> = (0..writes.len()).map(|number| once(&driven, 0, write(number))).collect();
    driven.apply(0, operation(Kind::Put(put("other", b"moves the revision"))));
    let before = driven.dump();
    for (number, first) in first.iter().enumerate() {
        let again = once(&driven, 0, write(number));
        assert!(again.replayed && !first.replayed, "write {number}");
        assert_eq!(revision(&again), revision(first), "write {number}");
        match (first.result.clone().unwrap(), again.result.unwrap()) {
            (outcome::Result::Put(first), outcome::Result::Put(again)) => {
                assert!(first.previous.is_some() && again.previous.is_none());
                let told =
                    |put: &kv_proto::peer::v1::PutOutcome| (put.applied, put.mod_revision, put.version);
                assert_eq!(told(&first), told(&again));
            }
            (outcome::Result::Delete(first), outcome::Result::Delete(again)) => {
                assert_eq!(first.applied, again.applied);
            }
            (outcome::Result::Txn(first), outcome::Result::Txn(again)) => {
                assert!(!first.succeeded && !again.succeeded);
                assert!(first.results.len() == 1 && again.results.is_empty());
            }
            other => panic!("{other:?}"),
        }
    }
    let mut after = driven.dump();
    // A replay moves the applied index, and no data.
    let record = kvnode::state::keys::replica_record(REPLICA);
    after.insert(record.clone(), before[&record].clone());
    assert_eq!(after, before);
}

#[test]
fn the_second_of_two_in_one_entry_is_a_replay() {
    let driven = owning_all();
    let id = opened(&driven, 0);
    let write = stamped(id, 1, 1, Kind::Put(put("k", b"v")));
    let outcomes = driven.round(&[proposal(2, 0, vec![write.clone(), write])]).unwrap().remove(0);
    assert_eq!(outcomes.iter().map(|outcome| outcome.replayed).collect::<Vec<_>>(), [false, true]);
    assert_eq!(driven.get("k").unwrap().version, 1);
}

#[test]
fn what_was_refused_did_not_happen_and_may_come_again() {
    let driven = Driven::open(Arc::new(MemoryEngine::new()), REPLICA).unwrap();
    let id = opened(&driven, 0);
    let write = stamped(id, 1, 1, Kind::Put(put("k", b"v")));
    assert_eq!(refused(once(&driven, 0, write.clone())).0, "WRONG_SHARD");
    driven.apply(0, own_all());
    let outcome = once(&driven, 0, write);
    assert!(!outcome.replayed && matches!(outcome.result, Some(outcome::Result::Put(put)) if put.applied));
}

#[test]
fn refusals_name_their_reason_and_field() {
    let driven = owning_all();
    let id = opened(&driven, 0);
    let k = || Kind::Put(put("k", b"v"));
    let refused_at = |log_time_ms, operation| refused(once(&driven, log_time_ms, operation));
    let field = |operation| {
        let (reason, field) = refused_at(0, operation);
        assert_eq!(reason, "INVALID_ARGUMENT");
        field
    };
    assert_eq!(field(stamped(0, 1, 0, k())), "sequence");
    assert_eq!(field(stamped(0, 0, 1, k())), "lowest_outstanding");
    assert_eq!(field(stamped(id, 0, 0, k())), "sequence");
    assert_eq!(field(stamped(id, 1, 0, k())), "lowest_outstanding");
    assert_eq!(field(stamped(id, 1, 2, k())), "lowest_outstanding");
    assert_eq!(field(stamped(id, 1, 1, Kind::DeleteRange(delete_range("", "", 0)))), "session_id");
    assert_eq!(field(open(999)), "ttl_ms");
    assert_eq!(field(open(86_400_001)), "ttl_ms");
    let foreign = session::id_of(kv_topology::ShardId(9), 1).unwrap();
    assert_eq!(field(stamped(foreign, 1, 1, k())), "session_id");
    assert_eq!(field(close(foreign)), "session_id");
    assert!(validate(&stamped(id, 1, 2, k())).is_err(), "not even proposed");
    assert!(driven.get("k").is_none());

    once(&driven, 0, stamped(id, 5, 5, k()));
    assert_eq!(field(Operation { fingerprint: 77, ..stamped(id, 5, 5, k()) }), "sequence");
    assert_eq!(refused_at(0, stamped(id, 4, 4, k())).0, "SEQUENCE_ACKNOWLEDGED");
    assert_eq!(refused_at(0, stamped(id, 5 + 4_096, 5, k())).0, "SESSION_WINDOW_FULL");
    assert_eq!(refused_at(0, stamped(id + 1, 1, 1, k())).0, "SESSION_EXPIRED");
    assert_eq!(refused_at(u64::from(TTL_MS) + 1, stamped(id, 6, 6, k())).0, "SESSION_EXPIRED");
    assert_eq!(driven.get("k").unwrap().version, 1);
    driven.apply(u64::from(TTL_MS) + 1, tick());
    assert_eq!(driven.replica.lock().unwrap().sessions().open_now(), 0);
    let later = opened(&driven, u64::from(TTL_MS) + 1);
    assert_eq!(later, id + 1, "ids are not used again");
    assert!(matches!(driven.apply(0, close(later)), outcome::Result::Done(_)));
    assert!(matches!(driven.apply(0, close(later)), outcome::Result::Done(_)), "closed already");
    assert_eq!(refused_at(0, stamped(later, 1, 1, k())).0, "SESSION_EXPIRED");
}

// ---- Restarts ------------------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Step {
    Open,
    Close(u64),
    /// Session, sequence, how far the lowest outstanding lies below it, which key, and whether its condition may fail.
    Write(u64, u64, u64, usize, bool),
    Tick,
}

const KEYS: [&str; 3] = ["a", "b", "c"];

fn step() -> impl Strategy<Value = Step> {
    let write = (1..4_u64, prop_oneof![1..10_u64, 120..140_u64], 0..12_u64, 0..KEYS.len(), any::<bool>());
    prop_oneof![
        1 => Just(Step::Open),
        1 => (1..4_u64).prop_map(Step::Close),
        20 => write.prop_map(|(session, sequence, below, key, conditional)| {
            Step::Write(session, sequence, below, key, conditional)
        }),
        1 => Just(Step::Tick),
    ]
}

fn operation_of(step: &Step) -> Operation {
    let id = |number| session::id_of(SHARD, number).unwrap();
    match *step {
        Step::Open => open(2_000),
        Step::Close(session) => close(id(session)),
        Step::Tick => tick(),
        Step::Write(session, sequence, below, key, conditional) => {
            let precondition = conditional.then(|| condition(Condition::Version(sequence % 3))).flatten();
            let put = Put { precondition, ..put(KEYS[key], &sequence.to_be_bytes()) };
            let lowest = sequence.saturating_sub(below).max(1);
            let fingerprint = sequence * 2 + u64::from(conditional) + key as u64 * 1_000;
            Operation { fingerprint, ..stamped(id(session), sequence, lowest, Kind::Put(put)) }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Three replicas get the same entries: one in memory that never restarts, one on RocksDB that is read from disk
    /// before every round, and one that meets the entries in rounds of another size. All answer alike and end alike.
    #[test]
    fn a_replica_that_restarts_decides_like_one_that_does_not(
        entries in prop::collection::vec((prop::collection::vec(step(), 1..6), 0..900_u64), 4..40),
        rounds in 1..7_usize,
    ) {
        let mut log_time_ms = 0;
        let mut all = vec![proposal(0, 0, vec![own_all(), open(2_000), open(2_000)])];
        for (number, (steps, ms)) in entries.iter().enumerate() {
            log_time_ms += ms;
            all.push(proposal(number as u64 + 1, log_time_ms, steps.iter().map(operation_of).collect()));
        }
        let folder = tempfile::tempdir().unwrap();
        let rocks = RocksEngine::open(folder.path(), MemoryBudget::of(64 << 20)).unwrap();
        let rocks: Arc<dyn StateEngine> = Arc::new(rocks);
        let steady = Driven::open(Arc::new(MemoryEngine::new()), REPLICA).unwrap();
        let coarse = Driven::open(Arc::new(MemoryEngine::new()), REPLICA).unwrap();
        let (mut one, mut many) = (Vec::new(), Vec::new());
        for entry in &all {
            let expected = steady.round(std::slice::from_ref(entry)).unwrap();
            let restarted = Driven::open(rocks.clone(), REPLICA).unwrap();
            prop_assert_eq!(&restarted.round(std::slice::from_ref(entry)).unwrap(), &expected);
            one.extend(expected);
        }
        for round in all.chunks(rounds) {
            many.extend(coarse.round(round).unwrap());
        }
        prop_assert_eq!(&many, &one);
        let reborn = Driven::open(rocks.clone(), REPLICA).unwrap();
        prop_assert_eq!(reborn.dump(), steady.dump());
        prop_assert_eq!(coarse.dump(), steady.dump());
    }
}

#[test]
fn sessions_are_there_after_the_store_was_closed_and_opened() {
    let folder = tempfile::tempdir().unwrap();
    let engine = || -> Arc<dyn StateEngine> {
        Arc::new(RocksEngine::open(folder.path(), MemoryBudget::of(64 << 20)).unwrap())
    };
    let driven = Driven::open(engine(), REPLICA).unwrap();
    driven.apply(0, own_all());
    let id = opened(&driven, 0);
    let entries: Vec<ReadyEntry> = (1..=300)
        .map(|sequence| {
            let write = stamped(id, sequence, 1.max(sequence.saturating_sub(200)), Kind::Put(put("k", b"v")));
            proposal(sequence + 1, 0, vec![write])
        })
        .collect();
    driven.round(&entries).unwrap();
    driven.engine.flush().unwrap();
    drop(driven);
    let reborn = Driven::open(engine(), REPLICA).unwrap();
    assert_eq!(reborn.replica.lock().unwrap().sessions().kept(), 201);
    for sequence in [100, 128, 255, 300] {
        let again = once(&reborn, 0, stamped(id, sequence, 100, Kind::Put(put("k", b"v"))));
        assert!(again.replayed);
        assert_eq!(revision(&again), sequence + 1);
    }
    assert_eq!(
        refused(once(&reborn, 0, stamped(id, 99, 99, Kind::Put(put("k", b"v"))))).0,
        "SEQUENCE_ACKNOWLEDGED"
    );
    assert_eq!(reborn.get("k").unwrap().version, 300);
}

#[test]
fn a_damaged_record_of_a_session_is_damage_of_its_replica() {
    let engine = Arc::new(MemoryEngine::new());
    let driven = Driven::open(engine.clone(), REPLICA).unwrap();
    let id = opened(&driven, 0);
    let scope = driven.replica.lock().unwrap().scope();
    let mut batch = kvnode::state::Batch::default();
    batch.put(scope.session(id, 0), Bytes::from_static(b"\xff\xff"));
    engine.write(batch).unwrap();
    let error = Driven::open(engine, REPLICA).err().unwrap();
    assert!(error.to_string().contains("damaged state of r7"), "{error}");
}
