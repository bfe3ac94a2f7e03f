//! Replies that their clients do not take: what they hold is bounded, and whoever reads gets all.

use std::{collections::BTreeMap, net::Ipv4Addr};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future::join_all};
use kv_proto::kv::v1::{
    DownloadRequest, GetRequest, KeyValue, PutRequest, ScanRequest, key_value, kv_client::KvClient,
    upload_request,
};
use kvnode::api::{
    limits::{DOWNLOAD_BYTES, Limit, SCAN_MESSAGE_BYTES, SCAN_ROOM_BYTES_MIN, SMALL_REPLY_BYTES_MAX},
    quota::Capacity,
    server::Options,
};
use tonic::transport::Channel;

use crate::{
    raw::RawClient,
    support::{Harness, get, until, upload, value_of, within},
};

const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 77);

/// A node that may hold so many bytes of replies.
async fn with_reply_bytes(reply_bytes: usize) -> Harness {
    let capacity = Capacity { reply_bytes, ..Capacity::default() };
    Harness::with(Options { capacity, ..Options::default() }).await
}

async fn fill(client: &mut KvClient<Channel>, keys: &BTreeMap<String, Bytes>) {
    for (key, value) in keys {
        let put = PutRequest { key: key.clone().into(), value: value.clone(), ..PutRequest::default() };
        client.put(put).await.expect("a put");
    }
}

fn value(kv: &KeyValue) -> &Bytes {
    match &kv.value {
        Some(key_value::Value::Inline(value)) => value,
        other => panic!("no inline value: {other:?}"),
    }
}

#[tokio::test]
async fn small_values_that_nobody_reads_are_few_where_there_is_room_for_few() {
    const GETS: u32 = 100;
    // One connection gets a quarter of it, if that is enough for a scan.
    const ROOM: usize = 64;
    let harness = with_reply_bytes(4 * ROOM * SMALL_REPLY_BYTES_MAX).await;
    let small =
        PutRequest { key: "k".into(), value: value_of(SMALL_REPLY_BYTES_MAX), ..PutRequest::default() };
    harness.client().await.put(small).await.expect("a put");
    let mut lazy = RawClient::connect(&harness).await;
    for stream in 0..GETS {
        // Its window is a byte too small for one of them.
        lazy.ask(stream * 2 + 1, "/kv.v1.Kv/Get", &get("k"), Some("500m")).await.expect("open");
    }
    let mut begun = 0;
    for _ in 0..GETS {
        let reply = within("a reply to each", lazy.headers()).await.expect("an open connection");
        begun += usize::from(!reply.ends);
    }
    assert_eq!(begun, ROOM);
    assert_eq!(harness.taken(Limit::ReplyBytes), ROOM * SMALL_REPLY_BYTES_MAX);
    for from in [Ipv4Addr::LOCALHOST, ELSEWHERE] {
        let mut client = harness.client_from(from).await;
        within("a value", client.get(get("k"))).await.expect("a get");
    }
    drop(lazy);
    until("room again", || harness.taken(Limit::ReplyBytes) == 0).await;
}

#[tokio::test]
async fn tiny_values_need_no_room() {
    let harness = with_reply_bytes(0).await;
    let mut client = harness.client().await;
    let put = PutRequest { key: "k".into(), value: value_of(1_000), ..PutRequest::default() };
    client.put(put).await.expect("a put");
    let got = client.get(get("k")).await.expect("a get").into_inner();
    assert_eq!(value(&got.kv.expect("it is there")).len(), 1_000);
    assert_eq!(harness.taken(Limit::ReplyBytes), 0);
}

#[tokio::test]
async fn scans_of_values_of_all_sizes_are_whole_with_much_room_and_with_little() {
    const SCANS: usize = 6;
    let sizes = [10, 70_000, 500_000, 3, 1_000_000];
    let sized = |number: usize| value_of(sizes[number % sizes.len()]);
    let keys: BTreeMap<_, _> = (0..60).map(|number| (format!("k{number:03}"), sized(number))).collect();
    // One at a time, some, and all at once.
    for reply_bytes in [2 * SCAN_ROOM_BYTES_MIN, 20 << 20, 512 << 20] {
        let harness = with_reply_bytes(reply_bytes).await;
        let mut client = harness.client().await;
        fill(&mut client, &keys).await;
        for reverse in [false, true] {
            let scan = |_| {
                let mut client = client.clone();
                async move {
                    let request = ScanRequest { reverse, ..ScanRequest::default() };
                    let messages = client.scan(request).await.expect("a scan").into_inner();
                    let messages: Vec<_> = messages.try_collect().await.expect("a whole scan");
                    messages.into_iter().flat_map(|message| message.kvs).collect::<Vec<_>>()
                }
            };
            let scanned = within("all scans", join_all((0..SCANS).map(scan))).await;
            for mut kvs in scanned {
                if reverse {
                    kvs.reverse();
                }
                let same =
                    kvs.iter().zip(&keys).all(|(kv, (key, wanted))| kv.key == key && value(kv) == wanted);
                assert!(kvs.len() == keys.len() && same, "reverse {reverse}, room {reply_bytes}");
            }
        }
        until("room again", || harness.taken(Limit::ReplyBytes) == 0).await;
    }
}

#[tokio::test]
async fn scans_that_stand_still_hold_what_is_not_sent_and_others_go_on() {
    const STANDING: u32 = 6;
    // A message of each, and of neighbours.
    const ROOM: usize = 40 << 20;
    let harness = with_reply_bytes(ROOM).await;
    let mut client = harness.client().await;
    fill(&mut client, &(0..40).map(|number| (format!("k{number:03}"), value_of(200_000))).collect()).await;
    let mut lazy = RawClient::connect(&harness).await;
    for stream in 0..STANDING {
        lazy.ask(stream * 2 + 1, "/kv.v1.Kv/Scan", &ScanRequest::default(), None).await.expect("open");
        within("the head of its reply", lazy.headers()).await.expect("an open connection");
    }
    let messages = STANDING as usize * 2 * SCAN_MESSAGE_BYTES;
    until("what was made and not sent", || harness.taken(Limit::ReplyBytes) >= messages).await;
    let whole = client.scan(ScanRequest::default()).await.expect("a scan").into_inner();
    let whole: Vec<_> = within("another scan", whole.try_collect()).await.expect("a whole scan");
    assert_eq!(whole.iter().map(|message| message.kvs.len()).sum::<usize>(), 40);
    assert!(harness.taken(Limit::ReplyBytes) >= messages, "it is not sent");
    drop((lazy, whole));
    until("room again", || harness.taken(Limit::ReplyBytes) == 0).await;
}

#[tokio::test]
async fn the_only_message_of_a_reply_counts_until_it_is_sent() {
    let harness = with_reply_bytes(40 << 20).await;
    let mut client = harness.client().await;
    fill(&mut client, &BTreeMap::from([("k".to_owned(), value_of(200_000))])).await;
    for (path, stream) in [("/kv.v1.Kv/Scan", 1), ("/kv.v1.Kv/Download", 3)] {
        let mut lazy = RawClient::connect(&harness).await;
        if stream == 1 {
            let request = ScanRequest { limit: 1, ..ScanRequest::default() };
            lazy.ask(stream, path, &request, None).await.expect("open");
        } else {
            let request = DownloadRequest { key: "k".into(), ..DownloadRequest::default() };
            lazy.ask(stream, path, &request, None).await.expect("open");
        }
        within("the head of the reply", lazy.headers()).await.expect("an open connection");
        // All there is was handed over: the window of the client lets a third of it through.
        until("the end of the stream", || harness.taken(Limit::Streams) == 0).await;
        assert!(harness.taken(Limit::ReplyBytes) >= 200_000, "{path}: {}", harness.taken(Limit::ReplyBytes));
        drop(lazy);
        until("room again", || harness.taken(Limit::ReplyBytes) == 0).await;
    }
}

#[tokio::test]
async fn downloads_wait_for_room_and_are_refused_with_advice_when_there_is_none() {
    let harness = with_reply_bytes(4 * DOWNLOAD_BYTES).await;
    let mut client = harness.client().await;
    let header = upload_request::Header { key: "big".into(), ..upload_request::Header::default() };
    upload(&mut client, header, &value_of(8 << 20), 1 << 20).await.expect("an upload");
    let download = || DownloadRequest { key: "big".into(), ..DownloadRequest::default() };
    let mut lazy = RawClient::connect(&harness).await;
    for stream in 0..2 {
        lazy.ask(stream * 2 + 1, "/kv.v1.Kv/Download", &download(), None).await.expect("open");
    }
    until("both", || harness.taken(Limit::ReplyBytes) == 2 * DOWNLOAD_BYTES).await;
    let mut hurried = RawClient::connect(&harness).await;
    hurried.ask(1, "/kv.v1.Kv/Download", &download(), Some("300m")).await.expect("open");
    let reply = within("a refusal", hurried.headers()).await.expect("an open connection");
    assert!(reply.ends, "a refusal is a head that ends its stream");
    assert!(
        harness.metrics().contains("kv_api_refused_total{limit=\"reply_bytes\"} 1"),
        "{}",
        harness.metrics()
    );
    let mut elsewhere = harness.client_from(ELSEWHERE).await;
    let read = elsewhere.download(download()).await.expect("room for others").into_inner();
    let parts = within("a whole download", read.collect::<Vec<_>>()).await;
    assert!(parts.iter().all(Result::is_ok));
    let waits = tokio::spawn(async move { client.download(download()).await });
    drop(lazy);
    let read = within("its turn", waits).await.expect("no panic").expect("room again").into_inner();
    drop(read);
    until("room again", || harness.taken(Limit::ReplyBytes) == 0).await;
    let request = GetRequest { key: "big".into(), ..GetRequest::default() };
    harness.client().await.get(request).await.expect("what the value is");
}
