//! The stream Batch on the wire.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{LazyLock, atomic::Ordering},
    time::Duration,
};

use kv_proto::kv::v1::{
    BatchOperation, BatchRequest, BatchResponse, BatchWindow, Compare, DeleteRequest, Failure, GetRequest,
    PutRequest, TxnOperation, TxnOperationResult, TxnRequest, batch_operation::Operation,
    batch_result::Result as Told, compare, key_value, txn_operation, txn_operation_result,
};
use kv_topology::{KeyspaceId, ShardId, Slot};
use kvnode::api::{
    admission::IdleLimits,
    batch_stream::BatchTerms,
    limits::{
        BATCH_WINDOW_BYTES, BATCH_WINDOW_OPERATIONS, LARGE_REPLIES_PER_CONNECTION_MAX, Limit,
        REQUEST_BYTES_PER_CONNECTION_MAX, STREAM_AHEAD_BYTES,
    },
    server::Options,
};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{
    fake::map_of,
    support::{Harness, field, told, until, value_of, within},
};

/// An open stream, and what it has told.
struct Batch {
    requests: Option<mpsc::Sender<BatchRequest>>,
    replies: Streaming<BatchResponse>,
    /// By id. An id that is told twice is a fault.
    told: BTreeMap<u64, Told>,
    /// In the order of the answers.
    order: Vec<u64>,
    window: Option<BatchWindow>,
    cluster_id: String,
    /// Encoded size of the largest message.
    largest: usize,
    _channel: Channel,
}

impl Batch {
    async fn open(harness: &Harness) -> Self {
        let (requests, messages) = mpsc::channel(64);
        let channel = harness.channel().await;
        let mut client = kv_proto::kv::v1::kv_client::KvClient::new(channel.clone());
        let replies =
            within("a stream", client.batch(ReceiverStream::new(messages))).await.expect("a stream");
        Self {
            requests: Some(requests),
            replies: replies.into_inner(),
            told: BTreeMap::new(),
            order: Vec::new(),
            window: None,
            cluster_id: String::new(),
            largest: 0,
            _channel: channel,
        }
    }

    async fn send(&self, operations: Vec<BatchOperation>) {
        let requests = self.requests.as_ref().expect("an open stream");
        requests.send(BatchRequest { operations }).await.expect("an open stream");
    }

    fn close(&mut self) {
        self.requests = None;
    }

    fn take(&mut self, message: BatchResponse) {
        self.largest = self.largest.max(message.encoded_len());
        if let Some(window) = message.window {
            assert!(self.window.replace(window).is_none() && self.order.is_empty(), "in the first message");
            self.cluster_id = message.cluster_id;
        }
        for result in message.results {
            self.order.push(result.id);
            let before = self.told.insert(result.id, result.result.expect("a result"));
            assert!(before.is_none(), "{} is answered twice", result.id);
        }
    }

    /// Reads until so many are told in all.
    async fn told(&mut self, count: usize) {
        while self.told.len() < count {
            let message = within("an answer", self.replies.message()).await.expect("no end");
            self.take(message.expect("no end"));
        }
    }

    /// Reads until the end.
    async fn ended(&mut self) -> Result<(), Status> {
        while let Some(message) = within("the end", self.replies.message()).await? {
            self.take(message);
        }
        Ok(())
    }

    fn failure(&self, id: u64) -> &Failure {
        match &self.told[&id] {
            Told::Failure(failure) => failure,
            other => panic!("{id}: {other:?}"),
        }
    }

    fn reason(&self, id: u64) -> &str {
        &self.failure(id).reason
    }

    fn applied(&self, id: u64) -> bool {
        match &self.told[&id] {
            Told::Put(put) => put.applied,
            Told::Delete(delete) => delete.applied,
            other => panic!("{id}: {other:?}"),
        }
    }
}

fn operation(id: u64, operation: Operation) -> BatchOperation {
    BatchOperation { id, timeout_ms: 0, operation: Some(operation) }
}

fn put(id: u64, key: &str, value: impl Into<bytes::Bytes>) -> BatchOperation {
    let put = PutRequest { key: key.to_owned().into(), value: value.into(), ..PutRequest::default() };
    operation(id, Operation::Put(put))
}

fn get(id: u64, key: &str) -> BatchOperation {
    operation(id, Operation::Get(GetRequest { key: key.to_owned().into(), ..GetRequest::default() }))
}

fn delete(id: u64, key: &str) -> BatchOperation {
    operation(id, Operation::Delete(DeleteRequest { key: key.to_owned().into(), ..DeleteRequest::default() }))
}

fn shard_of(key: &str) -> ShardId {
    map_of(5).shard_of(Slot::of(KeyspaceId(0), key.as_bytes())).expect("all slots are owned")
}

/// A key of the slow shard, and keys of others.
const SLOW: &str = "{slow}";
static FAST: LazyLock<String> = LazyLock::new(|| fast_keys().next().expect("there are many"));

fn fast_keys() -> impl Iterator<Item = String> {
    (0..).map(|number| format!("fast{number}")).filter(|key| shard_of(key) != shard_of(SLOW))
}

fn terms(unread_ms: u64, drain_ms: u64) -> BatchTerms {
    BatchTerms {
        unread: Duration::from_millis(unread_ms),
        drain: Duration::from_millis(drain_ms),
        age_notice: Duration::from_millis(50),
    }
}

async fn everything_is_back(harness: &Harness) {
    let held =
        || [Limit::Streams, Limit::RequestBytes, Limit::LargeReplies].map(|limit| harness.taken(limit));
    until("what the stream held", || held() == [0; 3]).await;
}

#[tokio::test]
async fn operations_of_all_kinds_are_answered_each_for_itself() {
    let harness = Harness::start().await;
    let mut batch = Batch::open(&harness).await;
    batch.send((0..100).map(|id| put(id, &format!("k{id}"), format!("v{id}"))).collect()).await;
    batch.told(100).await;
    assert_eq!(batch.cluster_id, "fake");
    let window = batch.window.expect("told first");
    assert_eq!(window.operations as usize, BATCH_WINDOW_OPERATIONS);
    assert_eq!(window.bytes, BATCH_WINDOW_BYTES as u64);
    assert!((0..100).all(|id| batch.applied(id)));

    let compare = Compare { key: "k1".into(), target: Some(compare::Target::Present(true)), operator: 0 };
    let read = TxnOperation {
        operation: Some(txn_operation::Operation::Get(GetRequest { key: "k1".into(), ..Default::default() })),
    };
    let txn = TxnRequest { compare: vec![compare], then: vec![read], ..TxnRequest::default() };
    let mut message: Vec<_> = (0..100).map(|id| get(200 + id, &format!("k{id}"))).collect();
    message.extend([delete(300, "absent"), operation(301, Operation::Txn(txn)), get(302, "absent")]);
    batch.send(message).await;
    batch.told(203).await;
    for id in 0..100 {
        let Told::Get(got) = &batch.told[&(200 + id)] else { panic!("a get") };
        let kv = got.kv.as_ref().expect("it is there");
        assert_eq!(kv.value, Some(key_value::Value::Inline(format!("v{id}").into())));
        let header = got.header.as_ref().expect("a header");
        assert_eq!((header.cluster_id.as_str(), header.shard_id), ("", shard_of(&format!("k{id}")).get()));
    }
    assert!(!batch.applied(300));
    let Told::Txn(txn) = &batch.told[&301] else { panic!("a txn") };
    assert!(txn.succeeded && txn.results.len() == 1);
    assert!(matches!(&batch.told[&302], Told::Get(got) if got.kv.is_none()));
    // One call of each of five shards and each kind, not one of each operation.
    let calls = harness.store.deadlines.lock().expect("no panic").len();
    assert!(calls <= 5 + 5 + 2, "{calls} calls of the store");

    let shown = harness.metrics();
    for line in [
        "kv_batch_streams 1",
        "kv_batch_message_operations_count 2",
        "kv_batch_operations_total{kind=\"put\",status=\"OK\"} 100",
        "kv_batch_operations_total{kind=\"get\",status=\"OK\"} 101",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} in\n{shown}");
    }
    batch.close();
    batch.ended().await.expect("an end in order");
    everything_is_back(&harness).await;
}

#[tokio::test]
async fn a_slow_shard_holds_nobody_else_up() {
    let harness = Harness::start().await;
    harness.store.slow([shard_of(SLOW)]);
    let mut batch = Batch::open(&harness).await;
    let keys: Vec<_> = fast_keys().take(50).collect();
    let mut message = vec![put(1_000, SLOW, "v"), get(1_001, SLOW)];
    message.extend(keys.iter().zip(0..).map(|(key, id)| put(id, key, "v")));
    batch.send(message).await;
    batch.told(50).await;
    batch.send(keys.iter().zip(100..).map(|(key, id)| get(id, key)).collect()).await;
    batch.told(100).await;
    assert!(batch.order.iter().all(|id| *id < 1_000), "{:?}", batch.order);
    harness.store.slow([]);
    batch.told(102).await;
    assert!(batch.applied(1_000));
}

#[tokio::test]
async fn a_slow_shard_keeps_the_bytes_of_its_own_operations_only() {
    const MESSAGES: u64 = 160;
    let harness = Harness::start().await;
    harness.store.slow([shard_of(SLOW)]);
    let mut batch = Batch::open(&harness).await;
    let (keys, value) = (fast_keys().take(31).collect::<Vec<_>>(), value_of(16 << 10));
    let fast = keys.len() as u64;
    let is_slow = |id: &u64| *id >= 1 << 40;
    for message in 0..MESSAGES {
        let slow = BatchOperation { timeout_ms: 60_000, ..put((1 << 40) + message, SLOW, value.clone()) };
        let others = keys.iter().zip(message * fast..).map(|(key, id)| put(id, key, value.clone()));
        batch.send([slow].into_iter().chain(others).collect()).await;
        batch.told(usize::try_from((message + 1) * fast).expect("few")).await;
    }
    assert!(MESSAGES * (fast + 1) * value.len() as u64 > REQUEST_BYTES_PER_CONNECTION_MAX as u64);
    assert!(!batch.told.keys().any(is_slow) && batch.told.keys().all(|id| batch.applied(*id)));
    let held = harness.taken(Limit::RequestBytes);
    assert!(held < 8 << 20, "{held} B for {MESSAGES} operations without an answer");
    harness.store.slow([]);
    batch.told(usize::try_from(MESSAGES * (fast + 1)).expect("few")).await;
    assert!(batch.told.keys().all(|id| batch.applied(*id)));
    batch.close();
    batch.ended().await.expect("an end in order");
    everything_is_back(&harness).await;
}

#[tokio::test]
async fn what_exceeds_the_window_is_refused_with_advice_and_other_shards_go_on() {
    let harness = Harness::start().await;
    harness.store.slow([shard_of(SLOW)]);
    let mut batch = Batch::open(&harness).await;
    let half = BATCH_WINDOW_OPERATIONS as u64 / 2;
    let slow = |ids: Range<u64>| ids.map(|id| put(id, SLOW, "v")).collect::<Vec<_>>();
    batch.send(slow(0..half)).await;
    batch.send(slow(half..half + 100)).await;
    batch.told(100).await;
    for id in half..half + 100 {
        let failure = batch.failure(id);
        assert_eq!((failure.code, failure.reason.as_str()), (Code::ResourceExhausted as i32, "BATCH_WINDOW"));
        assert!(failure.retry_after_ms > 0);
    }
    batch.send(fast_keys().take(1_000).zip(10_000..).map(|(key, id)| put(id, &key, "v")).collect()).await;
    batch.told(1_100).await;
    assert!((10_000..11_000).all(|id| batch.applied(id)));
    harness.store.slow([]);
    batch.told(1_100 + BATCH_WINDOW_OPERATIONS / 2).await;
    batch
        .send(slow(half..half + 1).into_iter().map(|put| BatchOperation { id: 1 << 40, ..put }).collect())
        .await;
    batch.told(1_101 + BATCH_WINDOW_OPERATIONS / 2).await;
    assert!(batch.applied(1 << 40), "there is room again");
    let shown = harness.metrics();
    assert!(shown.contains("kv_batch_window_refused_total 100\n"), "{shown}");
}

#[tokio::test]
async fn a_bad_operation_harms_none_of_its_neighbours() {
    let harness = Harness::start().await;
    let mut batch = Batch::open(&harness).await;
    let nothing = BatchOperation { id: 3, ..BatchOperation::default() };
    let spans = [get(0, "a"), get(0, "b"), get(0, "c"), get(0, "d"), get(0, "e"), get(0, "f")].map(|get| {
        let Some(Operation::Get(get)) = get.operation else { panic!("a get") };
        TxnOperation { operation: Some(txn_operation::Operation::Get(get)) }
    });
    let txn = TxnRequest { then: spans.to_vec(), ..TxnRequest::default() };
    let bad = [put(1, "", "v"), get(2, &"k".repeat(5_000)), nothing, operation(4, Operation::Txn(txn))];
    let good = [put(5, "k", "v"), get(6, "k"), delete(7, "gone")];
    batch.send(bad.into_iter().chain(good).collect()).await;
    batch.told(7).await;
    for (id, field) in [(1, "key"), (2, "key"), (3, "operation")] {
        let failure = batch.failure(id);
        assert_eq!((failure.code, failure.field.as_str()), (Code::InvalidArgument as i32, field));
    }
    assert_eq!(batch.reason(4), "TXN_SPANS_SHARDS");
    assert!(batch.applied(5));
}

#[tokio::test]
async fn an_operation_is_answered_at_its_time_and_its_late_outcome_dropped() {
    let harness = Harness::start().await;
    harness.store.slow([shard_of(SLOW)]);
    let mut batch = Batch::open(&harness).await;
    let patient = |ms, operation| BatchOperation { timeout_ms: ms, ..operation };
    let operations = [(1, 100), (2, 150), (4, 60_000)].map(|(id, ms)| patient(ms, put(id, SLOW, "v")));
    batch.send(operations.into_iter().chain([patient(100, get(3, SLOW))]).collect()).await;
    batch.told(3).await;
    assert_eq!((batch.reason(1), batch.reason(2)), ("OUTCOME_UNKNOWN", "OUTCOME_UNKNOWN"));
    assert_eq!(batch.failure(3).code, Code::DeadlineExceeded as i32);
    harness.store.slow([]);
    batch.told(4).await;
    assert!(batch.applied(4));
    batch.close();
    batch.ended().await.expect("an end in order");
    assert_eq!(batch.told.len(), 4);
    everything_is_back(&harness).await;
}

#[tokio::test]
async fn a_client_that_ends_its_stream_gets_all_answers_and_one_that_leaves_holds_nothing() {
    let harness = Harness::start().await;
    harness.store.slow([shard_of(SLOW)]);
    let mut batch = Batch::open(&harness).await;
    batch.send(vec![put(1, SLOW, "v"), get(2, &FAST)]).await;
    batch.told(1).await;
    batch.close();
    let mut gone = Batch::open(&harness).await;
    gone.send(vec![put(1, SLOW, "v"), get(2, &FAST)]).await;
    gone.told(1).await;
    assert_eq!(harness.taken(Limit::Streams), 2);
    drop(gone);
    until("its place", || harness.taken(Limit::Streams) == 1).await;
    harness.store.slow([]);
    batch.ended().await.expect("an end in order");
    assert!(batch.applied(1));
    everything_is_back(&harness).await;
}

#[tokio::test]
async fn an_id_that_is_under_way_ends_the_stream_after_what_was_taken() {
    let harness = Harness::start().await;
    harness.store.slow([shard_of(SLOW)]);
    let mut batch = Batch::open(&harness).await;
    batch.send(vec![put(1, SLOW, "v")]).await;
    batch.send(vec![put(2, "k", "v"), put(1, "k", "v")]).await;
    batch.send(vec![put(3, "k", "v")]).await;
    until("the first call", || !harness.store.deadlines.lock().expect("no panic").is_empty()).await;
    harness.store.slow([]);
    let status = batch.ended().await.expect_err("the protocol is broken");
    assert_eq!(field(&status), "operations[1].id");
    assert_eq!(batch.order, [1]);
    assert_eq!(harness.store.keys(), [SLOW.as_bytes()], "nothing else was taken");
    everything_is_back(&harness).await;
}

#[tokio::test]
async fn an_oversized_message_ends_its_stream_after_what_was_taken() {
    let harness = Harness::start().await;
    let mut batch = Batch::open(&harness).await;
    batch.send((0..10).map(|id| put(id, "k", "v")).collect()).await;
    batch.send((10..16).map(|id| put(id, "large", value_of(1 << 20))).collect()).await;
    let status = batch.ended().await.expect_err("too large");
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert_eq!(batch.told.keys().copied().collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    everything_is_back(&harness).await;
    harness.serves().await;
}

#[tokio::test]
async fn large_values_come_all_in_messages_of_bounded_size_and_are_few_at_a_time() {
    const VALUES: u64 = 24;
    let harness = Harness::start().await;
    let mut batch = Batch::open(&harness).await;
    for id in 0..VALUES {
        batch.send(vec![put(id, &format!("k{id}"), value_of(700 << 10))]).await;
        batch.told(usize::try_from(id).expect("few") + 1).await;
    }
    assert!((0..VALUES).all(|id| batch.applied(id)));
    batch.send((0..VALUES).map(|id| get(100 + id, &format!("k{id}"))).collect()).await;
    batch.told(2 * usize::try_from(VALUES).expect("few")).await;
    for id in 0..VALUES {
        let Told::Get(got) = &batch.told[&(100 + id)] else { panic!("{:?}", batch.told[&(100 + id)]) };
        let value = got.kv.as_ref().and_then(|kv| kv.value.as_ref());
        assert!(matches!(value, Some(key_value::Value::Inline(value)) if value.len() == 700 << 10), "{id}");
    }
    assert!(batch.largest <= 4 << 20, "{} B in one message", batch.largest);
    batch.close();
    batch.ended().await.expect("an end in order");
    everything_is_back(&harness).await;
}

#[tokio::test]
async fn large_values_of_a_slow_shard_hold_up_none_of_another_one() {
    const VALUES: u64 = 24;
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    let key_of = |shard| (0..).map(|number| format!("k{number}")).find(|key| shard_of(key) == ShardId(shard));
    // The slow one would be asked first, if they were asked in turn.
    let [slow, fast] = [1, 2].map(|shard| key_of(shard).expect("there are many"));
    for key in [&slow, &fast] {
        let put = PutRequest { key: key.clone().into(), value: value_of(700 << 10), ..PutRequest::default() };
        client.put(put).await.expect("a put");
    }
    let patient = |id, key: &str| BatchOperation { timeout_ms: 60_000, ..get(id, key) };
    let mut batch = Batch::open(&harness).await;
    batch.send((0..VALUES).flat_map(|id| [patient(id, &slow), patient(VALUES + id, &fast)]).collect()).await;
    // More than fits at once: values of both are read again, several times.
    let slow_told = |batch: &Batch| batch.told.keys().filter(|id| **id < VALUES).count();
    while slow_told(&batch) == 0 {
        batch.told(batch.told.len() + 1).await;
    }
    harness.store.slow([shard_of(&slow)]);
    let all = usize::try_from(VALUES).expect("few");
    while batch.told.len() < all + slow_told(&batch) {
        batch.told(batch.told.len() + 1).await;
    }
    assert!(slow_told(&batch) < all, "some of them are still put off");
    harness.store.slow([]);
    batch.told(2 * all).await;
    let has_value = |told: &Told| match told {
        Told::Get(got) => got.kv.as_ref().is_some_and(|kv| kv.value.is_some()),
        _ => false,
    };
    assert!(batch.told.values().all(has_value));
    batch.close();
    batch.ended().await.expect("an end in order");
    everything_is_back(&harness).await;
}

#[tokio::test]
async fn values_that_writes_return_are_all_told_however_many_wait() {
    const TXNS: u64 = 32;
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    for key in ["{t}a", "{t}b"] {
        let put = PutRequest { key: key.into(), value: value_of(750 << 10), ..PutRequest::default() };
        client.put(put).await.expect("a put");
    }
    let read = |key: &'static str| txn_operation::Operation::Get(crate::support::get(key));
    let write = |id: u64| PutRequest { key: format!("{{t}}{id}").into(), ..PutRequest::default() };
    let mut batch = Batch::open(&harness).await;
    let txn = |id| {
        let all = [read("{t}a"), read("{t}b"), txn_operation::Operation::Put(write(id))];
        let then = all.map(|operation| TxnOperation { operation: Some(operation) }).to_vec();
        operation(id, Operation::Txn(TxnRequest { then, ..TxnRequest::default() }))
    };
    batch.send((0..TXNS).map(txn).collect()).await;
    // Nothing is read yet: those whose values wait hold their places, and the others wait for one.
    let places = LARGE_REPLIES_PER_CONNECTION_MAX;
    until("large replies", || harness.taken(Limit::LargeReplies) == places).await;
    let calls = || harness.store.deadlines.lock().expect("no panic").len();
    let before = calls();
    for _ in 0..10 {
        harness.serves().await;
    }
    assert!(calls() - before <= 2 * 10 + places, "{} transactions went on", calls() - before - 2 * 10);
    batch.told(usize::try_from(TXNS).expect("few")).await;
    for id in 0..TXNS {
        let Told::Txn(txn) = &batch.told[&id] else { panic!("{:?}", batch.told[&id]) };
        let with_value = |result: &TxnOperationResult| match &result.result {
            Some(txn_operation_result::Result::Get(get)) => {
                get.kv.as_ref().is_some_and(|kv| kv.value.is_some())
            }
            _ => false,
        };
        assert_eq!(txn.results.iter().filter(|result| with_value(result)).count(), 2, "{id}");
    }
    assert!(batch.largest <= 4 << 20, "{} B in one message", batch.largest);
    batch.close();
    batch.ended().await.expect("an end in order");
    everything_is_back(&harness).await;
}

#[tokio::test]
async fn a_client_that_reads_no_answers_is_not_read_any_more_and_its_stream_ended() {
    let harness = Harness::with(Options { batch: terms(700, 8_000), ..Options::default() }).await;
    harness
        .client()
        .await
        .put(PutRequest { key: "k".into(), value: value_of(1 << 20), ..PutRequest::default() })
        .await
        .expect("a put");
    let mut batch = Batch::open(&harness).await;
    let requests = batch.requests.clone().expect("an open stream");
    let flood = tokio::spawn(async move {
        for id in 0..100_000 {
            if requests.send(BatchRequest { operations: vec![get(id, "k")] }).await.is_err() {
                return;
            }
        }
        panic!("everything was read");
    });
    until("a stream that holds a large reply", || harness.taken(Limit::LargeReplies) > 0).await;
    harness.serves().await;
    until("the end of the stream", || harness.taken(Limit::Streams) == 0).await;
    let counted = harness.taken(Limit::RequestBytes);
    assert!(counted <= STREAM_AHEAD_BYTES, "{counted} B of a stream that is read no more");
    let reads = harness.store.reads.load(Ordering::Relaxed);
    assert!(reads < 5_000, "{reads} reads for a client that takes nothing");
    batch.close();
    let status = batch.ended().await.expect_err("given up");
    assert_eq!(told(&status), (Code::Unknown, "OUTCOME_UNKNOWN".to_owned()));
    within("the end of the flood", flood).await.expect("no panic");
    everything_is_back(&harness).await;
}

#[tokio::test]
async fn a_stopping_node_answers_what_it_took_and_refuses_the_rest() {
    let options = Options {
        batch: terms(30_000, 5_000),
        stop_notice: Duration::from_millis(10),
        stop_grace: Duration::from_secs(10),
        ..Options::default()
    };
    let mut harness = Harness::with(options).await;
    harness.store.slow([shard_of(SLOW)]);
    let mut batch = Batch::open(&harness).await;
    batch.send(vec![put(0, SLOW, "v"), get(1, &FAST)]).await;
    batch.told(1).await;
    harness.stop();
    let mut id = 1;
    while !matches!(&batch.told[&id], Told::Failure(_)) {
        id += 1;
        batch.send(vec![put(id, &FAST, "v")]).await;
        batch.told(usize::try_from(id).expect("few")).await;
    }
    assert_eq!(batch.reason(id), "NOT_APPLIED_STOPPING");
    let store = harness.store.clone();
    store.slow([]);
    let status = batch.ended().await.expect_err("the node stops");
    assert_eq!(told(&status), (Code::Unavailable, "NOT_APPLIED_STOPPING".to_owned()));
    assert!(batch.applied(0), "what was taken was answered");
    drop(batch);
    harness.ended().await;
}

#[tokio::test]
async fn a_stopping_node_does_not_wait_for_ever() {
    let options = Options {
        batch: terms(30_000, 300),
        stop_notice: Duration::from_millis(10),
        stop_grace: Duration::from_secs(10),
        ..Options::default()
    };
    let mut harness = Harness::with(options).await;
    harness.store.slow([shard_of(SLOW)]);
    let mut batch = Batch::open(&harness).await;
    let patient = BatchOperation { timeout_ms: 60_000, ..put(1, SLOW, "v") };
    batch.send(vec![patient, get(2, &FAST)]).await;
    batch.told(1).await;
    harness.stop();
    let status = batch.ended().await.expect_err("the node stops");
    assert_eq!(told(&status).1, "NOT_APPLIED_STOPPING");
    assert_eq!(batch.reason(1), "OUTCOME_UNKNOWN");
    drop(batch);
    harness.ended().await;
}

#[tokio::test]
async fn a_stream_ends_with_the_age_of_its_connection_and_without_use() {
    let old = Options {
        batch: terms(30_000, 5_000),
        connection_age_max: Duration::from_millis(100),
        ..Options::default()
    };
    let idle = IdleLimits { batch: Duration::from_millis(200), ..Options::default().idle };
    let unused = Options { idle, ..Options::default() };
    for options in [old, unused] {
        let harness = Harness::with(options).await;
        let mut batch = Batch::open(&harness).await;
        batch.send(vec![put(1, "k", "v")]).await;
        let status = batch.ended().await.expect_err("it has to end");
        assert_eq!(told(&status), (Code::Unavailable, "NOT_APPLIED_STREAM_ENDED".to_owned()));
        assert!(batch.applied(1));
        everything_is_back(&harness).await;
        harness.serves().await;
    }
}

#[tokio::test]
async fn writes_in_sessions_carry_their_stamps_and_others_go_apart() {
    let harness = Harness::start().await;
    let (seen, stamps) = std::sync::mpsc::channel();
    // Never refuses: it only looks.
    harness.store.refuse(
        move |asked| {
            if let crate::fake::Asked::Write(_, operations) = asked {
                let stamp = |operation: &kv_proto::disk::v1::Operation| {
                    (operation.session_id, operation.sequence, operation.lowest_outstanding)
                };
                seen.send(operations.iter().map(stamp).collect::<Vec<_>>()).expect("somebody looks");
            }
            false
        },
        crate::fake::refusal(kv_proto::peer::v1::refusal::Kind::Internal, ""),
    );
    let mut batch = Batch::open(&harness).await;
    let stamped = PutRequest {
        key: "k".into(),
        session_id: (u64::from(shard_of("k").get()) << 48) | 1,
        sequence: 7,
        lowest_outstanding: 3,
        ..PutRequest::default()
    };
    let session_id = stamped.session_id;
    batch.send(vec![operation(1, Operation::Put(stamped)), put(2, "k", "v"), delete(3, "k")]).await;
    batch.told(3).await;
    let calls: BTreeSet<_> = stamps.try_iter().collect();
    assert_eq!(calls, [vec![(0, 0, 0)], vec![(session_id, 7, 3)]].into());
}

#[tokio::test]
async fn streams_are_bounded_as_others_are() {
    let harness = Harness::start().await;
    let channel = harness.channel().await;
    let mut client = kv_proto::kv::v1::kv_client::KvClient::new(channel);
    let mut held = Vec::new();
    let refused = loop {
        let (requests, messages) = mpsc::channel::<BatchRequest>(1);
        match within("an answer", client.batch(ReceiverStream::new(messages))).await {
            Ok(replies) => held.push((requests, replies)),
            Err(status) => break status,
        }
    };
    assert_eq!(told(&refused), (Code::ResourceExhausted, "STREAMS".to_owned()));
    assert_eq!(held.len(), kvnode::api::limits::STREAMED_REPLIES_PER_CONNECTION_MAX);
    drop(held);
    everything_is_back(&harness).await;
}
