//! What an operation on a Batch stream costs in the API alone: decoding, judging, answering, encoding, over a store that
//! does nothing. Printed, and compared with nothing: `--ignored --nocapture`.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt;
use kv_proto::{
    disk::v1::{MetaRecord, Operation},
    kv::v1::{BatchOperation, BatchRequest, GetRequest, KeyValue, PutRequest, batch_operation, key_value},
    peer::v1::{
        GetOutcome, GotKeys, Outcome, PutOutcome, ReadRequest, ReadResponse, Refusal, ReplyContext, outcome,
        read_request, read_response,
    },
};
use kv_topology::{ClusterMap, ShardId};
use kvnode::{
    api::{
        batch_stream::{BatchTerms, Streams, batch_stream},
        context::Context,
        kv::Caller,
        quota::Sending,
    },
    metrics::Metrics,
    router::store::Store,
};
use prost::Message;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Request;

use crate::{fake::map_of, support::spawner};

/// Answers everything at once.
struct Nothing {
    map: Arc<ClusterMap>,
    value: Bytes,
}

impl Store for Nothing {
    async fn write(
        &self,
        shard: ShardId,
        operations: Vec<Operation>,
        _: Instant,
    ) -> Result<Vec<Outcome>, Refusal> {
        let context =
            Some(ReplyContext { shard_id: shard.get(), node_id: 1, revision: 1 << 20, ..Default::default() });
        let put = PutOutcome { applied: true, mod_revision: 1 << 20, version: 3, ..PutOutcome::default() };
        let outcome = Outcome { context, result: Some(outcome::Result::Put(put)), replayed: false };
        tokio::task::yield_now().await;
        Ok(operations.iter().map(|_| outcome.clone()).collect())
    }

    async fn read(&self, request: ReadRequest, _: Instant) -> Result<ReadResponse, Refusal> {
        let Some(read_request::Read::Get(get)) = request.read else { return Ok(ReadResponse::default()) };
        let kv = |key: Bytes| KeyValue {
            key,
            mod_revision: 1 << 20,
            version: 3,
            value: Some(key_value::Value::Inline(self.value.clone())),
            ..KeyValue::default()
        };
        tokio::task::yield_now().await;
        let results =
            get.keys.into_iter().map(|key| GetOutcome { kv: Some(kv(key)), ..GetOutcome::default() });
        let read = Some(read_response::Read::Get(GotKeys { results: results.collect() }));
        Ok(ReadResponse { context: Some(ReplyContext::default()), read })
    }

    fn map(&self) -> Arc<ClusterMap> {
        self.map.clone()
    }

    fn meta(&self) -> Arc<MetaRecord> {
        Arc::default()
    }
}

/// Messages of so many operations, encoded; keys of 16 B, values of 256 B.
fn messages(count: usize, operations: usize, puts: bool) -> Vec<Bytes> {
    let value = Bytes::from(vec![7; 256]);
    let operation = |id: usize| {
        let key = Bytes::from(format!("{:016}", id * 7919 % 1_000_000));
        let operation = if puts {
            batch_operation::Operation::Put(PutRequest { key, value: value.clone(), ..PutRequest::default() })
        } else {
            batch_operation::Operation::Get(GetRequest { key, ..GetRequest::default() })
        };
        BatchOperation { id: id as u64, timeout_ms: 10_000, operation: Some(operation) }
    };
    let message = |number: usize| {
        let ids = number * operations..(number + 1) * operations;
        BatchRequest { operations: ids.map(operation).collect() }.encode_to_vec().into()
    };
    (0..count).map(message).collect()
}

/// Sends all messages, as many at a time as the window of one shard allows.
async fn run(context: &Arc<Context<Nothing>>, streams: &Arc<Streams>, messages: Vec<Bytes>) -> usize {
    let (sender, requests) = mpsc::unbounded_channel::<Bytes>();
    let requests = UnboundedReceiverStream::new(requests)
        .map(|bytes| Ok(BatchRequest::decode(bytes).expect("a message")));
    let caller = Caller::of(&Request::new(()));
    let mut replies =
        batch_stream(context, streams, &caller, requests, Sending::default()).expect("a stream");
    let mut buffer = Vec::with_capacity(1 << 20);
    let (mut sent, mut answered) = (0, 0);
    for message in messages {
        let operations = BatchRequest::decode(message.clone()).expect("a message").operations.len();
        sent += operations;
        sender.send(message).expect("an open stream");
        while sent - answered + operations > 2_048 {
            let reply = replies.next().await.expect("no end").expect("no failure");
            buffer.clear();
            reply.encode(&mut buffer).expect("room");
            answered += reply.results.len();
        }
    }
    drop(sender);
    while let Some(reply) = replies.next().await {
        answered += reply.expect("no failure").results.len();
    }
    answered
}

/// What this thread has used of a processor.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    text.split(' ').next().and_then(|used| used.parse::<f64>().ok()).expect("nanoseconds first") / 1e9
}

#[test]
#[ignore = "a measurement"]
fn cost_of_an_operation_on_a_stream() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        for shards in [1, 8, 64] {
            let store = Nothing { map: Arc::new(map_of(shards)), value: vec![7; 256].into() };
            let ids = Mutex::new(0_u128);
            let ids = move || {
                *ids.lock().expect("no panic") += 1;
                [0; 16]
            };
            let context = Context::new(Arc::new(store), spawner(), Box::new(ids));
            let (_drain, draining) = watch::channel(false);
            let never = std::time::Duration::MAX;
            let streams =
                Streams::new(BatchTerms::default(), never, 1 << 20, Metrics::new().batch.clone(), draining);
            for operations in [1, 16, 128, 512] {
                for (what, puts) in [("put", true), ("get", false)] {
                    let count = 200_000 / operations;
                    let messages = messages(count, operations, puts);
                    let began = cpu_seconds();
                    let answered = run(&context, &streams, messages).await;
                    let each = (cpu_seconds() - began) * 1e6 / (count * operations) as f64;
                    assert_eq!(answered, count * operations);
                    println!("{shards:>3} shards, {operations:>4} in a message: {each:.2} us a {what}");
                }
            }
        }
    });
}
