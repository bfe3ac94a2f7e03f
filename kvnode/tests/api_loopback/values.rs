//! The services of keys over the fake store: points, batches, transactions, scans, deletions, text.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use kv_proto::{
    kv::v1::{
        BatchGetRequest, BulkWriteRequest, Compare, DeleteRangeRequest, DeleteRequest, GetRequest, KeyRange,
        KeyValue, Precondition, PutRequest, ScanRequest, ScanResponse, TextGetRequest, TextPutRequest,
        TextScanRequest, TxnOperation, TxnRequest, WriteOperation, compare, key_value,
        kv_text_client::KvTextClient, precondition, text_key_value, txn_operation, write_operation,
        write_outcome,
    },
    peer::v1::refusal::Kind,
};
use kv_topology::{KeyspaceId, ShardId, Slot};
use kvnode::{
    api::{
        deadline::Deadline, delete_range::delete_range, error::Refused, kv::Caller, quota::Sending,
        scan::scan,
    },
    router::store::Store,
};
use proptest::prelude::*;
use tokio::time::Instant;
use tonic::{Code, Request, metadata::MetadataMap};

use crate::fake::{Asked, FakeStore, map_of, refusal};
use crate::support::{Harness, context, field, metadata, told, within};

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() }
}

fn get(key: &'static str) -> GetRequest {
    GetRequest { key: key.into(), ..GetRequest::default() }
}

fn absent() -> Option<Precondition> {
    Some(Precondition { condition: Some(precondition::Condition::Absent(true)) })
}

fn inline(kv: &KeyValue) -> &[u8] {
    match &kv.value {
        Some(key_value::Value::Inline(value)) => value,
        other => panic!("no inline value: {other:?}"),
    }
}

fn shard_of(key: &[u8]) -> ShardId {
    map_of(5).shard_of(Slot::of(KeyspaceId(0), key)).expect("all slots are owned")
}

fn no_deadline() -> Deadline {
    Deadline::of(&MetadataMap::new(), Instant::now())
}

#[tokio::test]
async fn a_key_is_put_read_and_deleted_with_headers_that_say_where() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    let first = client.put(put("k", "one")).await.expect("a put").into_inner();
    let header = first.header.expect("a header");
    assert_eq!((header.cluster_id.as_str(), header.node_id, header.map_epoch), ("fake", 1, 4));
    assert_eq!((header.shard_id, header.revision), (shard_of(b"k").get(), 2));
    assert_eq!((first.applied, first.mod_revision, first.version), (true, 2, 1));

    let conditional = PutRequest { precondition: absent(), ..put("k", "two") };
    let refused = client.put(conditional).await.expect("a failed precondition is a reply").into_inner();
    assert!(!refused.applied);
    let current = refused.previous.expect("the current key");
    assert_eq!((current.mod_revision, current.value), (2, None));

    let second = PutRequest { return_previous: true, ..put("k", "") };
    let second = client.put(second).await.expect("a put").into_inner();
    assert_eq!(inline(&second.previous.expect("asked for")), b"one");
    let got = client.get(get("k")).await.expect("a get").into_inner().kv.expect("the key");
    assert_eq!((inline(&got), got.version), (&b""[..], 2), "an empty value is not an absent one");

    let delete = DeleteRequest { key: "k".into(), return_previous: true, ..DeleteRequest::default() };
    assert!(client.delete(delete.clone()).await.expect("a delete").into_inner().applied);
    assert!(!client.delete(delete).await.expect("a delete").into_inner().applied);
    assert_eq!(client.get(get("k")).await.expect("a get").into_inner().kv, None);
}

#[tokio::test]
async fn wrong_requests_and_refusals_are_told_with_field_and_reason() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    assert_eq!(field(&client.put(put("", "v")).await.expect_err("no key")), "key");
    let no_leader = refusal(Kind::NotApplied, "NOT_APPLIED_NO_LEADER");
    harness.store.refuse(|asked| matches!(asked, Asked::Write(..)), no_leader);
    let status = client.put(put("k", "v")).await.expect_err("scripted");
    assert_eq!(told(&status), (Code::Unavailable, "NOT_APPLIED_NO_LEADER".to_owned()));
    harness.store.set_map(Default::default());
    let status = client.get(get("k")).await.expect_err("no map");
    assert_eq!(told(&status), (Code::Unavailable, "NOT_APPLIED_STARTING".to_owned()));
}

#[tokio::test]
async fn the_callers_deadline_reaches_the_store() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    let mut request = Request::new(get("k"));
    request.set_timeout(std::time::Duration::from_millis(1500));
    let before = Instant::now();
    client.get(request).await.expect("a get");
    client.get(get("k")).await.expect("a get");
    let deadlines = harness.store.deadlines.lock().expect("no panic").clone();
    let left = deadlines[0] - before;
    assert!(left.as_millis() >= 1_400 && left.as_millis() <= 2_000, "{left:?}");
    assert!(deadlines[1] - before >= std::time::Duration::from_secs(10), "the default");
}

#[tokio::test]
async fn a_batch_answers_in_order_and_each_write_for_itself() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    let keys: Vec<String> = (0..40).map(|number| format!("k{number}")).collect();
    let unlucky = shard_of(b"k3");
    let full = refusal(Kind::ResourceExhausted, "PROPOSAL_QUEUE_FULL");
    harness.store.refuse(move |asked| matches!(asked, Asked::Write(shard, _) if *shard == unlucky), full);
    let write = |key: &String| WriteOperation {
        operation: Some(write_operation::Operation::Put(put(key.clone(), format!("v{key}")))),
    };
    let request = BulkWriteRequest { operations: keys.iter().map(write).collect() };
    let outcomes = client.bulk_write(request).await.expect("a reply").into_inner().outcomes;
    assert_eq!(outcomes.len(), keys.len());
    for (key, outcome) in keys.iter().zip(outcomes) {
        match outcome.outcome {
            Some(write_outcome::Outcome::Put(put)) => {
                assert!(put.applied && shard_of(key.as_bytes()) != unlucky, "{key}");
                assert_eq!(put.header.map(|header| header.shard_id), Some(shard_of(key.as_bytes()).get()));
            }
            Some(write_outcome::Outcome::Failure(failure)) => {
                assert_eq!((failure.code, failure.reason.as_str()), (8, "PROPOSAL_QUEUE_FULL"), "{key}");
                assert_eq!((shard_of(key.as_bytes()), failure.retry_after_ms), (unlucky, 100), "{key}");
            }
            other => panic!("{key}: {other:?}"),
        }
    }
    let request =
        BatchGetRequest { keys: keys.iter().map(|key| key.clone().into()).collect(), ..Default::default() };
    let results = client.batch_get(request).await.expect("a reply").into_inner().results;
    assert_eq!(results.len(), keys.len());
    for (key, result) in keys.iter().zip(results) {
        let value = result.kv.as_ref().map(inline);
        let expected = format!("v{key}");
        assert_eq!(value, (shard_of(key.as_bytes()) != unlucky).then_some(expected.as_bytes()), "{key}");
    }
}

#[tokio::test]
async fn a_batch_that_fills_the_reply_is_cut_and_can_be_asked_again() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    let keys: Vec<Bytes> = (0..9).map(|number| Bytes::from(format!("big{number}"))).collect();
    for key in &keys {
        client.put(put(key.clone(), vec![1; 1 << 20])).await.expect("a put");
    }
    let mut answered = 0;
    while answered < keys.len() {
        let request = BatchGetRequest { keys: keys[answered..].to_vec(), ..BatchGetRequest::default() };
        let results = client.batch_get(request).await.expect("a reply").into_inner().results;
        assert!(!results.is_empty() && results.len() <= 3, "{} values of 1 MiB", results.len());
        for (key, result) in keys[answered..].iter().zip(&results) {
            assert_eq!(result.kv.as_ref().map(|kv| &kv.key), Some(key));
        }
        answered += results.len();
    }
}

fn txn_put(key: &'static str, value: &'static str) -> TxnOperation {
    TxnOperation { operation: Some(txn_operation::Operation::Put(put(key, value))) }
}

#[tokio::test]
async fn a_transaction_of_one_shard_runs_and_of_several_names_them_and_a_tag() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    let compare = |target| Compare { key: "{t}a".into(), target: Some(target), operator: 0 };
    let request = TxnRequest {
        compare: vec![compare(compare::Target::Present(false))],
        then: vec![txn_put("{t}a", "1"), txn_put("{t}b", "2")],
        r#else: vec![TxnOperation { operation: Some(txn_operation::Operation::Get(get("{t}a"))) }],
        ..TxnRequest::default()
    };
    let first = client.txn(request.clone()).await.expect("a reply").into_inner();
    assert!(first.succeeded && first.results.len() == 2);
    assert_eq!(first.header.map(|header| header.shard_id), Some(shard_of(b"{t}").get()));
    let second = client.txn(request).await.expect("a reply").into_inner();
    assert!(!second.succeeded && second.results.len() == 1);

    let keys = ["{t}a", "b", "c", "d", "e", "f"];
    let request = TxnRequest { then: keys.map(|key| txn_put(key, "x")).into(), ..TxnRequest::default() };
    let status = client.txn(request).await.expect_err("several shards");
    assert_eq!(told(&status), (Code::FailedPrecondition, "TXN_SPANS_SHARDS".to_owned()));
    let mut shards: Vec<_> = keys.iter().map(|key| shard_of(key.as_bytes()).get()).collect();
    shards.sort_unstable();
    shards.dedup();
    let shards: Vec<_> = shards.iter().map(u32::to_string).collect();
    assert_eq!(metadata(&status, "shards"), Some(shards.join(",")));
    assert_eq!(metadata(&status, "tag").as_deref(), Some("{t}"));
}

async fn filled(keys: &BTreeMap<Vec<u8>, Vec<u8>>, page_keys: usize) -> std::sync::Arc<FakeStore> {
    let store = FakeStore::new(5);
    store.page_keys.store(page_keys, std::sync::atomic::Ordering::Relaxed);
    let context = context(store.clone());
    for (key, value) in keys {
        context.put(put(key.clone(), value.clone()), Instant::now()).await.expect("a put");
    }
    store
}

async fn scanned(
    store: &std::sync::Arc<FakeStore>,
    request: ScanRequest,
) -> Result<Vec<ScanResponse>, Refused> {
    scan(context(store.clone()), request, &Caller::of(&Request::new(())), Sending::default())?
        .try_collect()
        .await
}

fn keys_of(messages: &[ScanResponse]) -> Vec<Vec<u8>> {
    messages.iter().flat_map(|message| &message.kvs).map(|kv| kv.key.to_vec()).collect()
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(0), Just(255)], 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn a_scan_is_the_sorted_map_whatever_the_pages(
        keys in prop::collection::btree_map(key(), prop::collection::vec(any::<u8>(), 0..20), 0..40),
        range in prop_oneof![
            Just(None),
            key().prop_map(|prefix| Some(KeyRange { prefix: prefix.into(), ..KeyRange::default() })),
            (key(), key()).prop_map(|(one, other)| {
                let (start, end) = (one.clone().min(other.clone()).into(), one.max(other).into());
                Some(KeyRange { start, end, ..KeyRange::default() })
            }),
        ],
        page_keys in 1usize..6, limit in 0u64..8, max_bytes in prop_oneof![Just(0u64), 1u64..200], reverse: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        runtime.block_on(async {
            let store = filled(&keys, page_keys).await;
            let inside = |key: &[u8]| match &range {
                None => true,
                Some(range) if !range.prefix.is_empty() => key.starts_with(&range.prefix),
                Some(range) => key >= &range.start[..] && (range.end.is_empty() || key < &range.end[..]),
            };
            let mut model: Vec<_> = keys.keys().filter(|key| inside(key)).cloned().collect();
            if reverse {
                model.reverse();
            }
            // Call after call, each with the last token of the one before.
            let (mut seen, mut page_token) = (Vec::new(), Bytes::new());
            loop {
                let request = ScanRequest { range: range.clone(), limit, max_bytes, reverse, page_token, ..ScanRequest::default() };
                let messages = scanned(&store, request).await.expect("a scan");
                let page = keys_of(&messages);
                prop_assert!(limit == 0 || page.len() as u64 <= limit);
                prop_assert_eq!(messages.iter().map(|message| message.count).sum::<u64>(), page.len() as u64);
                prop_assert_eq!(&model[seen.len()..seen.len() + page.len()], &page[..]);
                seen.extend(page);
                page_token = messages.last().expect("a message").next_page_token.clone();
                if page_token.is_empty() {
                    break;
                }
                prop_assert!(!messages.iter().all(|message| message.kvs.is_empty()), "a page without progress");
            }
            prop_assert_eq!(&seen, &model);

            let count = |limit| ScanRequest { range: range.clone(), limit, reverse, count_only: true, ..ScanRequest::default() };
            let all = scanned(&store, count(0)).await.expect("a count");
            prop_assert_eq!((all.len(), all[0].count), (1, model.len() as u64));
            let limited = scanned(&store, count(3)).await.expect("a count");
            prop_assert_eq!(limited[0].count, model.len().min(3) as u64);
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn a_large_scan_comes_in_messages_that_each_resume_exactly() {
    let keys: BTreeMap<_, _> =
        (0..60).map(|number| (format!("key{number:03}").into_bytes(), vec![7; 64 << 10])).collect();
    let store = filled(&keys, 3).await;
    let messages = scanned(&store, ScanRequest::default()).await.expect("a scan");
    assert!(messages.len() > 3, "{} messages", messages.len());
    let sorted: Vec<_> = keys.keys().cloned().collect();
    assert_eq!(keys_of(&messages), sorted);
    let mut behind = 0;
    for message in &messages {
        behind += message.kvs.len();
        if message.next_page_token.is_empty() {
            assert_eq!(behind, keys.len(), "only the last message has no token");
            continue;
        }
        let page_token = message.next_page_token.clone();
        let rest =
            scanned(&store, ScanRequest { page_token, ..ScanRequest::default() }).await.expect("a scan");
        assert_eq!(keys_of(&rest), sorted[behind..]);
    }
    let keys_only = ScanRequest { keys_only: true, ..ScanRequest::default() };
    let messages = scanned(&store, keys_only).await.expect("a scan");
    assert!(messages.iter().flat_map(|message| &message.kvs).all(|kv| kv.value.is_none()));
}

#[tokio::test]
async fn a_scan_reads_no_further_than_its_client() {
    let keys: BTreeMap<_, _> =
        (0..200).map(|number| (format!("key{number:03}").into_bytes(), vec![7; 64 << 10])).collect();
    let store = filled(&keys, 3).await;
    let reads = || store.reads.load(std::sync::atomic::Ordering::Relaxed);
    let caller = Caller::of(&Request::new(()));
    let mut messages = Box::pin(
        scan(context(store.clone()), ScanRequest::default(), &caller, Sending::default()).expect("a scan"),
    );
    messages.next().await.expect("a message").expect("no refusal");
    let after_one = reads();
    assert!(after_one < 20, "{after_one} pages for one message");
    drop(messages);
    tokio::task::yield_now().await;
    assert_eq!(reads(), after_one);
}

#[tokio::test]
async fn garbled_and_foreign_page_tokens_name_the_field() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    for number in 0..9 {
        client.put(put(format!("k{number}"), "v")).await.expect("a put");
    }
    let limited = ScanRequest { limit: 4, ..ScanRequest::default() };
    let mut messages = client.scan(limited.clone()).await.expect("a scan").into_inner();
    let token = messages.message().await.expect("no refusal").expect("a message").next_page_token;
    let mut garbled = token.to_vec();
    garbled[3] ^= 0x10;
    let foreign = Some(KeyRange { prefix: "k".into(), ..KeyRange::default() });
    for request in [
        ScanRequest { page_token: garbled.into(), ..limited.clone() },
        ScanRequest { page_token: "garbage".into(), ..limited.clone() },
        ScanRequest { page_token: token.clone(), reverse: true, ..limited.clone() },
        ScanRequest { page_token: token, range: foreign, ..limited },
    ] {
        assert_eq!(field(&client.scan(request).await.expect_err("a wrong token")), "page_token");
    }
}

#[tokio::test]
async fn a_deletion_takes_steps_resumes_by_token_and_spares_the_rest() {
    let store = FakeStore::new(5);
    let context = context(store.clone());
    for number in 0..2_500 {
        context.put(put(format!("{{tag}}k{number:04}"), "v"), Instant::now()).await.expect("a put");
    }
    context.put(put("other", "v"), Instant::now()).await.expect("a put");
    let range = Some(KeyRange { prefix: "{tag}k".into(), ..KeyRange::default() });
    let request = DeleteRangeRequest { range: range.clone(), page_token: Bytes::new() };
    let mut steps = Box::pin(delete_range(context.clone(), request, no_deadline()).expect("a deletion"));
    let first = steps.next().await.expect("a message").expect("no refusal");
    assert_eq!(first.deleted, 1_000);
    drop(steps);
    let request = DeleteRangeRequest { range: range.clone(), page_token: first.next_page_token };
    let steps = delete_range(context.clone(), request.clone(), no_deadline()).expect("a deletion");
    let steps: Vec<_> = steps.try_collect().await.expect("no refusal");
    assert_eq!(steps.iter().map(|step| step.deleted).sum::<u64>(), 1_500);
    assert!(steps.iter().all(|step| step.deleted <= 1_000));
    assert!(steps.last().is_some_and(|step| step.next_page_token.is_empty()));
    assert_eq!(store.keys(), [b"other".to_vec()]);

    // Slots have moved: the token begins anew, and finds what is left.
    context.put(put("{tag}k0000", "v"), Instant::now()).await.expect("a put");
    let mut map = (*store.map()).clone();
    let moved = map.shards.get_mut(&ShardId(1)).and_then(|shard| shard.slots.pop()).expect("slots");
    map.shards.get_mut(&ShardId(2)).expect("a shard").slots.push(moved);
    store.set_map(map);
    let steps = delete_range(context.clone(), request, no_deadline()).expect("a deletion");
    let steps: Vec<_> = steps.try_collect().await.expect("no refusal");
    assert_eq!(steps.iter().map(|step| step.deleted).sum::<u64>(), 1);
}

#[tokio::test]
async fn a_stream_ends_with_the_refusal_that_stopped_it() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    client.put(put("k", "v")).await.expect("a put");
    let damaged = refusal(Kind::DataLoss, "REPLICA_QUARANTINED");
    harness.store.refuse(|asked| matches!(asked, Asked::Read(_)), damaged);
    let mut messages = client.scan(ScanRequest::default()).await.expect("a stream").into_inner();
    let status = within("the refusal", messages.message()).await.expect_err("scripted");
    assert_eq!(told(&status), (Code::DataLoss, "REPLICA_QUARANTINED".to_owned()));
}

#[tokio::test]
async fn text_goes_in_and_out_as_text_and_other_bytes_are_described() {
    let harness = Harness::start().await;
    let mut text = KvTextClient::new(harness.channel().await);
    let request =
        TextPutRequest { key: "grüße".to_owned(), value: "hällo".to_owned(), ..TextPutRequest::default() };
    assert!(text.put(request).await.expect("a put").into_inner().applied);
    let request = TextGetRequest { key: "grüße".to_owned(), options: None };
    let got = text.get(request).await.expect("a get").into_inner().kv.expect("the key");
    assert_eq!(got.value, Some(text_key_value::Value::Text("hällo".to_owned())));
    harness.client().await.put(put("grb", &b"\xff\xfe"[..])).await.expect("a put");
    let request = TextScanRequest { prefix: "gr".to_owned(), ..TextScanRequest::default() };
    let messages: Vec<_> =
        text.scan(request).await.expect("a scan").into_inner().try_collect().await.expect("no refusal");
    let values: Vec<_> = messages.into_iter().flat_map(|message| message.kvs).map(|kv| kv.value).collect();
    assert_eq!(
        values,
        [
            Some(text_key_value::Value::Binary(b"\xff\xfe".to_vec().into())),
            Some(text_key_value::Value::Text("hällo".to_owned())),
        ]
    );
    let request =
        TextScanRequest { prefix: "a".to_owned(), start: "b".to_owned(), ..TextScanRequest::default() };
    assert_eq!(field(&text.scan(request).await.expect_err("a prefix and a start")), "prefix");
}
