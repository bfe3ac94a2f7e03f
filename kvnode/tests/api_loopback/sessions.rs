//! Sessions over the fake store, which keeps real ones: open, write, retry, expire, close.

use kv_proto::{
    kv::v1::{
        BulkWriteRequest, CloseSessionRequest, DeleteRequest, OpenSessionRequest, OpenSessionResponse,
        PutRequest, TextDeleteRequest, TextPutRequest, TxnOperation, TxnRequest, WriteOperation,
        kv_client::KvClient, kv_text_client::KvTextClient, open_session_request::Shard, txn_operation,
        write_operation, write_outcome,
    },
    peer::v1::refusal::Kind,
};
use kvnode::state_machine::limits::{SESSION_OUTCOMES_MAX, SESSION_TTL_DEFAULT_MS};
use std::sync::atomic::Ordering;
use tonic::{Code, transport::Channel};

use crate::fake::{Asked, refusal};
use crate::support::{Harness, field, get, told};

fn of_key(key: &'static str) -> OpenSessionRequest {
    OpenSessionRequest { shard: Some(Shard::Key(key.into())), ttl_ms: 0 }
}

async fn open(client: &mut KvClient<Channel>, request: OpenSessionRequest) -> OpenSessionResponse {
    client.open_session(request).await.expect("a session").into_inner()
}

/// Writes "k" as the write `sequence` of a session.
fn put(session_id: u64, sequence: u64) -> PutRequest {
    PutRequest {
        key: "k".into(),
        value: "v".into(),
        session_id,
        sequence,
        lowest_outstanding: 1,
        ..PutRequest::default()
    }
}

async fn version(client: &mut KvClient<Channel>) -> u64 {
    client.get(get("k")).await.expect("a get").into_inner().kv.map_or(0, |kv| kv.version)
}

#[tokio::test]
async fn a_write_that_is_sent_again_is_applied_once_and_says_so() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    let opened = open(&mut client, of_key("k")).await;
    let shard = opened.header.as_ref().map(|header| header.shard_id).expect("a header");
    assert_eq!(opened.session_id >> 48, u64::from(shard));
    assert_eq!((opened.ttl_ms, opened.window), (SESSION_TTL_DEFAULT_MS, SESSION_OUTCOMES_MAX));
    let id = opened.session_id;
    let asked = PutRequest { return_previous: true, ..put(id, 1) };
    let first = client.put(asked.clone()).await.expect("a put").into_inner();
    client.put(PutRequest { key: "k".into(), ..PutRequest::default() }).await.expect("another's put");
    let again = client.put(asked).await.expect("a retry").into_inner();
    assert!(!first.replayed && again.replayed && again.applied && again.previous.is_none());
    assert_eq!((again.mod_revision, again.version), (first.mod_revision, first.version));
    assert_eq!(again.header, first.header, "the revision of then");
    assert_eq!(version(&mut client).await, 2);

    let delete = DeleteRequest {
        key: "k".into(),
        session_id: id,
        sequence: 2,
        lowest_outstanding: 2,
        ..DeleteRequest::default()
    };
    for replayed in [false, true] {
        let deleted = client.delete(delete.clone()).await.expect("a delete").into_inner();
        assert_eq!((deleted.applied, deleted.replayed), (true, replayed));
    }
    let inside = PutRequest { key: "k".into(), ..PutRequest::default() };
    let operation = TxnOperation { operation: Some(txn_operation::Operation::Put(inside)) };
    let txn = TxnRequest {
        then: vec![operation],
        session_id: id,
        sequence: 3,
        lowest_outstanding: 3,
        ..TxnRequest::default()
    };
    for replayed in [false, true] {
        let done = client.txn(txn.clone()).await.expect("a transaction").into_inner();
        assert_eq!((done.succeeded, done.replayed, done.results.is_empty()), (true, replayed, replayed));
    }
    assert_eq!(version(&mut client).await, 1);
}

#[tokio::test]
async fn writes_of_a_bulk_are_in_sessions_each_for_itself() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    let id = open(&mut client, of_key("k")).await.session_id;
    let write = |put| WriteOperation { operation: Some(write_operation::Operation::Put(put)) };
    let plain = PutRequest { key: "other".into(), ..PutRequest::default() };
    let operations = vec![write(put(id, 1)), write(put(id, 1)), write(plain), write(put(id + 1, 1))];
    let outcomes = client.bulk_write(BulkWriteRequest { operations }).await.expect("a reply").into_inner();
    let seen: Vec<String> = outcomes
        .outcomes
        .into_iter()
        .map(|outcome| match outcome.outcome {
            Some(write_outcome::Outcome::Put(put)) => format!("{}", put.replayed),
            Some(write_outcome::Outcome::Failure(failure)) => failure.reason,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(seen, ["false", "true", "false", "SESSION_EXPIRED"]);
    let wrong = WriteOperation { operation: Some(write_operation::Operation::Put(put(id, 0))) };
    let refused =
        client.bulk_write(BulkWriteRequest { operations: vec![wrong] }).await.expect_err("no sequence");
    assert_eq!(field(&refused), "operations[0].put.sequence");
}

#[tokio::test]
async fn text_has_sessions_too() {
    let harness = Harness::start().await;
    let id = open(&mut harness.client().await, of_key("k")).await.session_id;
    let mut text = KvTextClient::new(harness.channel().await);
    let put = TextPutRequest {
        key: "k".to_owned(),
        session_id: id,
        sequence: 1,
        lowest_outstanding: 1,
        ..TextPutRequest::default()
    };
    let delete = TextDeleteRequest {
        key: "k".to_owned(),
        session_id: id,
        sequence: 2,
        lowest_outstanding: 1,
        ..TextDeleteRequest::default()
    };
    for replayed in [false, true] {
        assert_eq!(text.put(put.clone()).await.expect("a put").into_inner().replayed, replayed);
    }
    for replayed in [false, true] {
        assert_eq!(text.delete(delete.clone()).await.expect("a delete").into_inner().replayed, replayed);
    }
}

#[tokio::test]
async fn what_a_session_refuses_is_told_with_its_reason() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    let request = OpenSessionRequest { ttl_ms: 1_000, ..of_key("k") };
    let id = open(&mut client, request).await.session_id;
    client.put(PutRequest { lowest_outstanding: 5, ..put(id, 5) }).await.expect("a put");
    let other = PutRequest { value: "other".into(), ..put(id, 5) };
    assert_eq!(field(&client.put(other).await.expect_err("a sequence with other content")), "sequence");
    let acknowledged = client.put(put(id, 4)).await.expect_err("acknowledged");
    assert_eq!(told(&acknowledged), (Code::FailedPrecondition, "SEQUENCE_ACKNOWLEDGED".to_owned()));
    let far = put(id, 5 + u64::from(SESSION_OUTCOMES_MAX));
    let full = client.put(far).await.expect_err("beyond the window");
    assert_eq!(told(&full), (Code::ResourceExhausted, "SESSION_WINDOW_FULL".to_owned()));
    harness.store.log_time_ms.store(1_001, Ordering::Relaxed);
    let expired = client.put(put(id, 5)).await.expect_err("expired");
    assert_eq!(told(&expired), (Code::FailedPrecondition, "SESSION_EXPIRED".to_owned()));
    let id = open(&mut client, of_key("k")).await.session_id;
    for _ in 0..2 {
        client.close_session(CloseSessionRequest { session_id: id }).await.expect("closed");
    }
    let closed = client.put(put(id, 1)).await.expect_err("closed");
    assert_eq!(told(&closed).1, "SESSION_EXPIRED");
    assert_eq!(version(&mut client).await, 1);
}

#[tokio::test]
async fn wrong_fields_of_sessions_are_named() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    let opened =
        open(&mut client, OpenSessionRequest { shard: Some(Shard::ShardId(2)), ttl_ms: 1_000 }).await;
    assert_eq!(opened.header.map(|header| header.shard_id), Some(2));
    let bad_opens = [
        (OpenSessionRequest { shard: None, ttl_ms: 0 }, "shard"),
        (OpenSessionRequest { shard: Some(Shard::ShardId(0)), ttl_ms: 0 }, "shard_id"),
        (OpenSessionRequest { shard: Some(Shard::ShardId(6)), ttl_ms: 0 }, "shard_id"),
        (OpenSessionRequest { shard: Some(Shard::Key("".into())), ttl_ms: 0 }, "key"),
        (OpenSessionRequest { ttl_ms: 999, ..of_key("k") }, "ttl_ms"),
        (OpenSessionRequest { ttl_ms: 86_400_001, ..of_key("k") }, "ttl_ms"),
    ];
    for (request, name) in bad_opens {
        assert_eq!(field(&client.open_session(request).await.expect_err(name)), name);
    }
    let id = open(&mut client, of_key("k")).await.session_id;
    let bad_puts = [
        (put(0, 1), "sequence"),
        (PutRequest { sequence: 0, ..put(0, 1) }, "lowest_outstanding"),
        (put(id, 0), "sequence"),
        (PutRequest { lowest_outstanding: 0, ..put(id, 1) }, "lowest_outstanding"),
        (PutRequest { lowest_outstanding: 2, ..put(id, 1) }, "lowest_outstanding"),
        (put(id ^ 7 << 48, 1), "session_id"),
    ];
    for (request, name) in bad_puts {
        assert_eq!(field(&client.put(request).await.expect_err(name)), name);
    }
    let inside = TxnOperation { operation: Some(txn_operation::Operation::Put(put(id, 1))) };
    let txn = TxnRequest { then: vec![inside], ..TxnRequest::default() };
    assert_eq!(field(&client.txn(txn).await.expect_err("a stamp inside")), "then[0].put.session_id");
    let foreign = CloseSessionRequest { session_id: 77 << 48 | 1 };
    assert_eq!(field(&client.close_session(foreign).await.expect_err("no such shard")), "session_id");
}

#[tokio::test]
async fn an_unknown_outcome_is_settled_by_sending_the_write_again() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    let id = open(&mut client, of_key("k")).await.session_id;
    client.put(put(id, 1)).await.expect("a put");
    let lost = refusal(Kind::OutcomeUnknown, "OUTCOME_UNKNOWN");
    harness.store.refuse(|asked| matches!(asked, Asked::Write(..)), lost);
    let unknown = client.put(put(id, 1)).await.expect_err("lost");
    assert_eq!(told(&unknown), (Code::Unknown, "OUTCOME_UNKNOWN".to_owned()));
    assert!(client.put(put(id, 1)).await.expect("a retry").into_inner().replayed);
    assert_eq!(version(&mut client).await, 1);
}
