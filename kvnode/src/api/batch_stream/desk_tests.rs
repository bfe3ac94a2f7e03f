use std::{collections::BTreeMap, time::Duration};

use kv_proto::{
    disk::v1::operation,
    kv::v1::{
        BatchRequest, DeleteRequest, GetRequest, KeyValue, PutRequest, TxnOperation, TxnRequest,
        batch_operation, batch_result, key_value, txn_operation,
    },
    peer::v1::{DeleteOutcome, GetOutcome, PutOutcome, TxnOutcome, outcome},
};
use kv_topology::{GroupId, SLOT_COUNT, SlotRange, map::ShardEntry};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::{api::limits::BATCH_WINDOW_OPERATIONS, refusal};

fn map() -> Arc<ClusterMap> {
    let shard = |number: u16| {
        let (first, last) = (SLOT_COUNT / 4 * (number - 1), SLOT_COUNT / 4 * number - 1);
        let slots = SlotRange::new(first, last).into_iter().collect();
        let group = GroupId(number.into());
        (ShardId(number.into()), ShardEntry { group, slots, replicas: Vec::new(), preferred_leader: None })
    };
    Arc::new(ClusterMap {
        cluster_id: "c".to_owned(),
        epoch: 1,
        replication_factor: 1,
        nodes: BTreeMap::new(),
        shards: (1..=4).map(shard).collect(),
    })
}

/// Bytes that may wait without a share.
const SMALL: usize = 1 << 20;

fn desk() -> Desk {
    Desk::new(map(), None, SMALL)
}

fn put(id: u64, key: &str) -> BatchOperation {
    put_operation(id, PutRequest { key: key.to_owned().into(), ..PutRequest::default() })
}

fn exchange(id: u64, key: &str) -> BatchOperation {
    let key = key.to_owned().into();
    put_operation(id, PutRequest { key, return_previous: true, ..PutRequest::default() })
}

fn put_operation(id: u64, put: PutRequest) -> BatchOperation {
    BatchOperation { id, operation: Some(batch_operation::Operation::Put(put)), ..BatchOperation::default() }
}

fn get(id: u64, key: &str) -> BatchOperation {
    let get = GetRequest { key: key.to_owned().into(), ..GetRequest::default() };
    BatchOperation { id, operation: Some(batch_operation::Operation::Get(get)), ..BatchOperation::default() }
}

/// An operation of each kind in turn, the last kinds of them malformed.
fn operation(id: u64, kind: u8, key: u8, timeout_ms: u32) -> BatchOperation {
    let key = key.to_string();
    let bytes = || bytes::Bytes::from(key.clone());
    let one = match kind {
        0 | 1 => get(id, &key).operation,
        2 => put(id, &key).operation,
        3 => exchange(id, &key).operation,
        4 => Some(batch_operation::Operation::Delete(DeleteRequest { key: bytes(), ..Default::default() })),
        5 => {
            let get = GetRequest { key: bytes(), ..GetRequest::default() };
            let then = vec![TxnOperation { operation: Some(txn_operation::Operation::Get(get)) }];
            Some(batch_operation::Operation::Txn(TxnRequest { then, ..TxnRequest::default() }))
        }
        6 => put(id, "").operation,
        _ => None,
    };
    BatchOperation { id, timeout_ms, operation: one }
}

fn take(desk: &mut Desk, operations: Vec<BatchOperation>, now: Instant) -> Vec<Errand> {
    desk.take(operations, now, |_| Ok(None)).expect("a good message")
}

fn applied(operation: &kv_proto::disk::v1::Operation, previous: &Option<KeyValue>) -> Outcome {
    let previous = previous.clone();
    let result = match operation.kind.as_ref().expect("a kind") {
        operation::Kind::Put(_) => outcome::Result::Put(PutOutcome { previous, ..PutOutcome::default() }),
        operation::Kind::Delete(_) => outcome::Result::Delete(DeleteOutcome::default()),
        operation::Kind::Txn(_) => outcome::Result::Txn(TxnOutcome::default()),
        other => panic!("{other:?} on a stream"),
    };
    Outcome { result: Some(result), ..Outcome::default() }
}

fn value(bytes: usize) -> Option<KeyValue> {
    let value = key_value::Value::Inline(vec![7; bytes].into());
    Some(KeyValue { value: Some(value), ..KeyValue::default() })
}

fn got(count: usize, bytes: usize) -> (Option<ReplyContext>, GotKeys) {
    let results = vec![GetOutcome { kv: value(bytes), ..GetOutcome::default() }; count];
    (None, GotKeys { results })
}

fn sent(desk: &mut Desk) -> Vec<BatchResult> {
    std::iter::from_fn(|| desk.has_answers().then(|| desk.message())).flatten().collect()
}

fn ids(results: &[BatchResult]) -> Vec<u64> {
    results.iter().map(|result| result.id).collect()
}

fn failures(results: &[BatchResult]) -> Vec<(u64, String, String)> {
    let failure = |result: &BatchResult| match &result.result {
        Some(batch_result::Result::Failure(failure)) => {
            Some((result.id, failure.reason.clone(), failure.field.clone()))
        }
        _ => None,
    };
    results.iter().filter_map(failure).collect()
}

#[test]
fn a_message_becomes_one_call_of_each_shard_and_kind() {
    let mut desk = desk();
    let both = |id: u64| [put(2 * id, &format!("k{id}")), get(2 * id + 1, &format!("k{id}"))];
    let errands = take(&mut desk, (0..100).flat_map(both).collect(), Instant::now());
    assert_eq!(errands.len(), 8, "four shards, reads and writes");
    let asked = |errand: &Errand| match &errand.ask {
        Ask::Write(operations) => operations.len(),
        Ask::Read(reading) => reading.keys.len(),
    };
    assert_eq!(errands.iter().map(asked).sum::<usize>(), 200);
}

#[test]
fn a_bad_operation_is_refused_by_its_field_and_the_others_go_on() {
    let mut desk = desk();
    let operations = vec![put(1, "k"), put(2, ""), operation(3, 9, 0, 0), get(4, "k")];
    assert_eq!(take(&mut desk, operations, Instant::now()).len(), 2);
    let told = sent(&mut desk);
    let named = |id, field: &str| (id, "INVALID_ARGUMENT".to_owned(), field.to_owned());
    assert_eq!(failures(&told), [named(2, "key"), named(3, "operation")]);
    assert!(!desk.is_idle());
}

#[test]
fn an_id_that_is_under_way_ends_the_stream_and_nothing_of_its_message_is_taken() {
    let mut desk = desk();
    let errands = take(&mut desk, vec![get(1, "a"), get(2, "b")], Instant::now());
    let broken = desk.take(vec![put(3, "c"), put(1, "d")], Instant::now(), |_| Ok(None));
    assert_eq!(broken.expect_err("twice").field, "operations[1].id");
    for errand in errands {
        let Ask::Read(reading) = errand.ask else { panic!("a read") };
        desk.read(errand.number, Ok(got(reading.keys.len(), 1)), Instant::now(), &mut || false);
    }
    assert!(desk.is_idle());
    let mut told = ids(&sent(&mut desk));
    told.sort_unstable();
    assert_eq!(told, [1, 2]);
}

#[test]
fn what_exceeds_the_window_is_refused_at_once_and_nothing_else_suffers() {
    let mut desk = desk();
    let one_shard = |ids: std::ops::Range<u64>| ids.map(|id| put(id, "{slow}")).collect::<Vec<_>>();
    let half = BATCH_WINDOW_OPERATIONS as u64 / 2;
    assert_eq!(take(&mut desk, one_shard(0..half + 2), Instant::now()).len(), 1);
    let told = sent(&mut desk);
    assert!(failures(&told).iter().all(|(_, reason, _)| reason == "BATCH_WINDOW"));
    assert_eq!(ids(&told), [half, half + 1]);
    assert!(told.iter().all(|result| matches!(
        &result.result,
        Some(batch_result::Result::Failure(failure)) if failure.retry_after_ms > 0 && failure.code == 8
    )));
    let elsewhere = (0..).map(|id| format!("k{id}")).filter(|key| {
        let atlas = Atlas::new(map());
        atlas.map.shard_of(kv_topology::Slot::of(crate::api::context::KEYSPACE, key.as_bytes()))
            != atlas.map.shard_of(kv_topology::Slot::of(crate::api::context::KEYSPACE, b"{slow}"))
    });
    let others: Vec<_> = elsewhere.take(100).zip(half + 2..).map(|(key, id)| get(id, &key)).collect();
    assert!(!take(&mut desk, others, Instant::now()).is_empty());
    assert!(!desk.has_answers(), "other shards go on");
}

#[test]
fn far_too_many_operations_in_a_message_are_not_looked_at() {
    let message = (0..=2 * BATCH_WINDOW_OPERATIONS as u64).map(|id| get(id, "k")).collect();
    let refused = desk().take(message, Instant::now(), |_| Ok(None)).expect_err("too many");
    assert_eq!(refused.field, "operations");
}

#[test]
fn bytes_that_the_node_cannot_hold_are_refused_operation_by_operation() {
    let mut desk = desk();
    let hold = |bytes| {
        assert!(bytes > 2 * 512);
        Err(Refused::Limit("REQUEST_BYTES_IN_FLIGHT"))
    };
    let errands = desk.take(vec![get(1, "a"), put(2, "b")], Instant::now(), hold).expect("a good message");
    assert!(errands.is_empty() && desk.is_idle());
    assert_eq!(failures(&sent(&mut desk)).len(), 2);
}

/// Whether what a call asks for lies in the memory of `message`.
fn is_slice_of(message: &bytes::Bytes, ask: &Ask) -> bool {
    let memory = message.as_ptr_range();
    let is_within = |field: &bytes::Bytes| memory.contains(&field.as_ptr());
    match ask {
        Ask::Read(reading) => reading.keys.iter().any(is_within),
        Ask::Write(operations) => operations.iter().any(|operation| match operation.kind.as_ref() {
            Some(operation::Kind::Put(put)) => is_within(&put.key) || is_within(&put.value),
            other => panic!("{other:?}"),
        }),
    }
}

#[test]
fn a_call_keeps_its_message_in_memory_only_when_it_is_most_of_it() {
    let valued = |id, key: &str, bytes: usize| {
        let (key, value) = (key.to_owned().into(), vec![u8::try_from(id).expect("few"); bytes].into());
        put_operation(id, PutRequest { key, value, ..PutRequest::default() })
    };
    let (small, large) = (1 << 14, 1 << 20);
    let messages = [
        (vec![valued(1, "{a}", small), valued(2, "{b}", small), get(3, "{c}")], 0),
        (vec![valued(1, "{a}", small), valued(2, "{b}", large), get(3, "{b}")], 1),
        (vec![valued(1, "{a}", small), valued(2, "{a}", small)], 1),
    ];
    for (operations, kept) in messages {
        let wanted: BTreeMap<_, _> = operations.iter().map(|one| (one.id, one.operation.clone())).collect();
        let message: bytes::Bytes = BatchRequest { operations }.encode_to_vec().into();
        let decoded = BatchRequest::decode(message.clone()).expect("a message").operations;
        let errands = take(&mut desk(), decoded, Instant::now());
        assert_eq!(errands.iter().filter(|errand| is_slice_of(&message, &errand.ask)).count(), kept);
        for errand in &errands {
            let Ask::Write(operations) = &errand.ask else { continue };
            for operation in operations {
                let Some(operation::Kind::Put(put)) = &operation.kind else { panic!("a put") };
                let asked = wanted.values().flatten().any(|wanted| match wanted {
                    batch_operation::Operation::Put(asked) => {
                        asked.key == put.key && asked.value == put.value
                    }
                    _ => false,
                });
                assert!(asked, "what was copied is what was asked for");
            }
        }
    }
}

#[test]
fn reads_and_writes_that_are_overdue_are_told_apart() {
    let (mut desk, now) = (desk(), Instant::now());
    let operations = [(1, 0), (2, 2), (3, 0)].map(|(id, kind)| operation(id, kind, 1, 100)).to_vec();
    take(&mut desk, operations, now);
    desk.expire(now + Duration::from_millis(100));
    let mut told = failures(&sent(&mut desk));
    told.sort();
    let reasons: Vec<_> = told.iter().map(|(_, reason, _)| reason.as_str()).collect();
    assert_eq!(reasons, ["NOT_APPLIED_EXPIRED", "OUTCOME_UNKNOWN", "NOT_APPLIED_EXPIRED"]);
    assert!(desk.is_idle());
}

#[test]
fn large_values_are_let_go_and_read_again_and_those_of_writes_are_told() {
    let (mut desk, now) = (desk(), Instant::now());
    let reads = take(&mut desk, (0..10).map(|id| get(id, "{r}")).collect(), now);
    desk.read(reads[0].number, Ok(got(10, 400 << 10)), now, &mut || false);
    assert_eq!(ids(&sent(&mut desk)), [0, 1], "what fits into a MiB");
    let (number, _, reading, _) = desk.again().expect("the rest");
    assert_eq!(reading.keys.len(), 8);
    desk.granted();
    desk.read(number, Ok(got(8, 400 << 10)), now, &mut || panic!("it is granted"));
    assert_eq!(ids(&sent(&mut desk)), [2, 3, 4, 5, 6, 7, 8, 9]);

    let writes = take(&mut desk, (0..4).map(|id| exchange(id, "{w}")).collect(), now);
    assert!(writes.iter().all(|errand| errand.returns_values));
    let mut outcomes = 0;
    for errand in writes {
        let Ask::Write(operations) = &errand.ask else { panic!("writes") };
        assert!(operations.len() <= 3, "what fits into a reply");
        outcomes += operations.len();
        let applied = operations.iter().map(|operation| applied(operation, &value(1 << 20))).collect();
        desk.written(errand.number, Ok(applied), now);
        assert!(desk.exceeds_small(), "its share is still needed");
    }
    assert_eq!(outcomes, 4);
    let with_value = |result: &BatchResult| match &result.result {
        Some(batch_result::Result::Put(put)) => put.previous.as_ref().is_some_and(|kv| kv.value.is_some()),
        other => panic!("{other:?}"),
    };
    assert_eq!(sent(&mut desk).iter().map(with_value).collect::<Vec<_>>(), [true; 4]);
    assert!(!desk.exceeds_small());
}

#[test]
fn a_transaction_that_returns_values_goes_alone_and_those_that_return_none_together() {
    let txn = |id: u64, metadata_only| {
        let get = GetRequest { key: "{t}".into(), metadata_only, ..GetRequest::default() };
        let then = vec![TxnOperation { operation: Some(txn_operation::Operation::Get(get)) }];
        let txn = TxnRequest { then, ..TxnRequest::default() };
        BatchOperation { id, operation: Some(batch_operation::Operation::Txn(txn)), ..Default::default() }
    };
    let operations = (0..6).map(|id| txn(id, id % 2 == 0)).collect();
    let errands = take(&mut desk(), operations, Instant::now());
    let mut calls: Vec<_> = errands
        .iter()
        .map(|errand| match &errand.ask {
            Ask::Write(operations) => (errand.returns_values, operations.len()),
            Ask::Read(_) => panic!("writes"),
        })
        .collect();
    calls.sort_unstable();
    assert_eq!(calls, [(false, 3), (true, 1), (true, 1), (true, 1)]);
}

/// A step of a stream's life.
#[derive(Clone, Debug)]
enum Step {
    /// A message: kind, key and patience of each operation.
    Message(Vec<(u8, u8, u32)>),
    /// A call ends: which of those that run, how, and how large the values are.
    Done(usize, u8, usize),
    /// Time passes.
    Pass(u64),
    /// The transport takes a message.
    Send,
    /// What was put off is asked for again.
    Again,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let operations = prop::collection::vec((0_u8..9, 0_u8..20, 1_u32..400), 0..40);
    let step = prop_oneof![
        3 => operations.prop_map(Step::Message),
        4 => (0_usize..100, 0_u8..6, prop_oneof![1_usize..100, 100_000_usize..900_000])
            .prop_map(|(which, how, bytes)| Step::Done(which, how, bytes)),
        1 => (0_u64..200).prop_map(Step::Pass),
        2 => Just(Step::Send),
        1 => Just(Step::Again),
    ];
    prop::collection::vec(step, 0..60)
}

/// The store answers: everything, or too little, or nothing.
fn end_call(desk: &mut Desk, errand: Errand, how: u8, bytes: usize, now: Instant) {
    let grant = &mut || how.is_multiple_of(2);
    match errand.ask {
        Ask::Write(operations) => {
            let mut outcomes: Vec<_> = operations.iter().map(|one| applied(one, &value(bytes))).collect();
            let result = match how {
                0 => Err(refusal::outcome_unknown("the leader changed")),
                1 => Err(refusal::not_applied(refusal::NO_LEADER, "none")),
                2 => {
                    outcomes.pop();
                    Ok(outcomes)
                }
                _ => Ok(outcomes),
            };
            desk.written(errand.number, result, now);
        }
        Ask::Read(reading) => {
            let count = reading.keys.len();
            let result = match how {
                0 => Err(Refused::Store(refusal::not_applied(refusal::NO_LEADER, "none"))),
                1 => Ok(got(0, 0)),
                2 => Ok(got(count.div_ceil(2), bytes)),
                _ => Ok(got(count, bytes)),
            };
            desk.read(errand.number, result, now, grant);
        }
    }
}

proptest! {
    /// Whatever the order of completions, deadlines and the end of the stream.
    #[test]
    fn every_operation_gets_exactly_one_answer(steps in steps(), drains in any::<bool>()) {
        let (mut desk, mut now) = (desk(), Instant::now());
        let mut running: Vec<Errand> = Vec::new();
        let mut asked = 0_u64;
        let mut told: Vec<BatchResult> = Vec::new();
        for step in steps {
            match step {
                Step::Message(operations) => {
                    let ids = asked..;
                    let operations: Vec<_> = operations.iter().zip(ids)
                        .map(|((kind, key, ms), id)| operation(id, *kind, *key, *ms)).collect();
                    asked += operations.len() as u64;
                    running.extend(take(&mut desk, operations, now));
                }
                Step::Done(which, how, bytes) if !running.is_empty() => {
                    let errand = running.swap_remove(which % running.len());
                    end_call(&mut desk, errand, how, bytes, now);
                }
                Step::Done(..) => {}
                Step::Pass(ms) => {
                    now += Duration::from_millis(ms);
                    desk.expire(now);
                }
                Step::Send if desk.has_answers() => told.extend(desk.message()),
                Step::Send => {}
                Step::Again => running.extend(again(&mut desk)),
            }
            prop_assert!(desk.ledger.taken().operations <= BATCH_WINDOW_OPERATIONS);
        }
        if drains {
            desk.expire_all();
        }
        while !desk.is_idle() {
            running.extend(again(&mut desk));
            let errand = running.pop().expect("who waits, waits for a call");
            end_call(&mut desk, errand, 4, 10, now);
            told.extend(sent(&mut desk));
        }
        // Late calls tell nobody anything.
        told.extend(sent(&mut desk));
        for errand in running {
            end_call(&mut desk, errand, 4, 10, now);
        }
        prop_assert!(!desk.has_answers() && again(&mut desk).is_none());
        prop_assert_eq!(desk.ledger.taken(), crate::api::batch_stream::window::Load::default());
        let mut ids = ids(&told);
        ids.sort_unstable();
        prop_assert_eq!(ids, (0..asked).collect::<Vec<_>>());
    }
}

fn again(desk: &mut Desk) -> Option<Errand> {
    let (number, shard, reading, deadline) = desk.again()?;
    Some(Errand { number, shard, ask: Ask::Read(reading), returns_values: false, deadline })
}
