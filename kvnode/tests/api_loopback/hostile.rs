//! Clients that mean harm, and others that must not notice.

use std::{
    future::poll_fn,
    net::Ipv4Addr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use kv_proto::{
    codec::INNER_MESSAGES_MAX,
    kv::v1::{
        BatchOperation, BatchRequest, BulkWriteRequest, DownloadRequest, PutRequest, ScanRequest,
        WriteOperation, upload_request,
    },
};
use kvnode::api::{
    admission::IdleLimits,
    connection::Patience,
    limits::{
        LARGE_REPLIES_PER_CONNECTION_MAX, Limit, MESSAGE_BYTES_MAX, REQUEST_BYTES_PER_CONNECTION_MAX,
        STREAM_AHEAD_BYTES, STREAMS_PER_CONNECTION_MAX,
    },
    quota::Capacity,
    server::Options,
    unfinished::UNFINISHED_FREE_BYTES,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest,
};
use tower_service::Service;

use crate::{
    raw::{PING, RawClient},
    support::{Harness, get, until, upload, value_of, within},
};

/// Where floods do not come from.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

#[tokio::test]
async fn ten_thousand_streams_of_one_connection_harm_nobody() {
    let harness = Harness::start().await;
    let mut flood = RawClient::connect(&harness).await;
    // Requests that never come to an end, and more of them than the server allows.
    const { assert!(STREAMS_PER_CONNECTION_MAX < 10_000) };
    for number in 0..10_000 {
        if flood.try_open(number * 2 + 1, "/kv.v1.Kv/Put", None).await.is_err() {
            // The server has had enough and closed the connection: fine as well.
            break;
        }
        if number == 5_000 {
            harness.serves().await;
        }
    }
    harness.serves().await;
    drop(flood);
    harness.serves().await;
}

#[tokio::test]
async fn ten_thousand_streams_of_many_connections_harm_nobody() {
    const CONNECTIONS: u32 = 100;
    let harness = Harness::start().await;
    let mut flood = Vec::new();
    let mut opened = 0;
    for number in 0..CONNECTIONS {
        let mut client = RawClient::connect(&harness).await;
        for stream in 0..10_000 / CONNECTIONS {
            let path = if stream % 2 == 0 { "/kv.v1.Kv/Upload" } else { "/kv.v1.Kv/Put" };
            if client.try_open(stream * 2 + 1, path, None).await.is_err() {
                break;
            }
            opened += 1;
        }
        flood.push(client);
        if number % 20 == 0 {
            harness.serves_from(ELSEWHERE).await;
        }
    }
    assert!(opened >= 1_000, "only {opened} streams could be opened");
    harness.serves_from(ELSEWHERE).await;
    drop(flood);
    let mut client = harness.client().await;
    let served = async {
        while let Err(status) = client.get(get("k")).await {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        }
    };
    within("room again", served).await;
    harness.serves().await;
}

#[tokio::test]
async fn messages_that_would_become_too_much_are_refused_as_bytes() {
    const COUNT: usize = 1 << 20;
    const { assert!(COUNT > INNER_MESSAGES_MAX) };
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    let message = BatchRequest { operations: vec![BatchOperation::default(); COUNT] };
    let mut answers = client.batch(tokio_stream::iter([message])).await.unwrap().into_inner();
    let refused = loop {
        match answers.message().await {
            Ok(Some(answer)) => assert!(answer.results.is_empty(), "{answer:?}"),
            Ok(None) => panic!("the stream ended as if nothing were wrong"),
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("BatchRequest: more than"), "{refused}");

    let operations = vec![WriteOperation::default(); COUNT];
    let request = BulkWriteRequest { operations };
    let refused = client.bulk_write(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("BulkWriteRequest: more than"), "{refused}");
    harness.serves().await;
}

#[tokio::test]
async fn a_flood_of_one_address_leaves_places_to_others_and_is_forgotten() {
    const MAX: usize = 64;
    let capacity = Capacity { connections: MAX, requests: MAX, ..Capacity::default() };
    let harness = Harness::with(Options { capacity, ..Options::default() }).await;
    let mut flood = Vec::new();
    for _ in 0..2 * MAX {
        // Those that find no place are closed: at once, or while they are written to.
        let Ok(mut client) = RawClient::try_connect(&harness).await else { continue };
        for stream in 0..4 {
            client.try_open(stream * 2 + 1, "/kv.v1.Kv/Put", None).await.ok();
        }
        flood.push(client);
    }
    let held = || (harness.taken(Limit::Connections), harness.taken(Limit::Requests));
    until("a flood that holds what it may", || held() == (MAX / 2, MAX / 2)).await;
    for _ in 0..10 {
        harness.serves_from(ELSEWHERE).await;
    }
    until("the end of the good clients alone", || held() == (MAX / 2, MAX / 2)).await;
    let shown = harness.metrics();
    for limit in ["connections", "requests"] {
        assert!(shown.contains(&format!("kv_api_limit{{limit=\"{limit}\"}} {MAX}\n")), "{shown}");
        assert!(shown.contains(&format!("kv_api_in_use{{limit=\"{limit}\"}} {}\n", MAX / 2)), "{shown}");
        assert!(!shown.contains(&format!("kv_api_refused_total{{limit=\"{limit}\"}} 0\n")), "{shown}");
    }
    drop(flood);
    until("an empty node", || harness.addresses() == 0).await;
    for limit in Limit::ALL {
        assert_eq!(harness.taken(limit), 0, "{limit:?}");
    }
    harness.serves().await;
}

#[tokio::test]
async fn watches_of_one_address_are_bounded_and_leave_health_to_others() {
    const WATCHES: usize = Limit::HealthChecks.max();
    let harness = Harness::start().await;
    let mut flood = Vec::new();
    for _ in 0..WATCHES / STREAMS_PER_CONNECTION_MAX as usize {
        let mut client = RawClient::connect(&harness).await;
        for stream in 0..STREAMS_PER_CONNECTION_MAX {
            let request = HealthCheckRequest::default();
            client.ask(stream * 2 + 1, "/grpc.health.v1.Health/Watch", &request, None).await.expect("open");
        }
        flood.push(client);
    }
    until("a flood that holds what it may", || harness.taken(Limit::HealthChecks) == WATCHES / 2).await;
    let status = harness.health_of("").await.expect_err("its address has no place");
    assert_eq!(status, Code::ResourceExhausted);
    let mut health = HealthClient::new(harness.channel_from(ELSEWHERE).await);
    let mut watch = health.watch(HealthCheckRequest::default()).await.expect("a watch").into_inner();
    let state = within("a state", watch.message()).await.expect("a state").expect("a state");
    assert_eq!(state.status(), ServingStatus::Serving);
    // Requests are another matter.
    harness.serves().await;
    drop((flood, watch, health));
    until("room again", || harness.taken(Limit::HealthChecks) == 0).await;
}

#[tokio::test]
async fn a_health_check_that_stops_coming_is_given_up() {
    let idle = IdleLimits { request: Duration::from_millis(200), ..Options::default().idle };
    let harness = Harness::with(Options { idle, ..Options::default() }).await;
    let mut client = RawClient::connect(&harness).await;
    client.open(1, "/grpc.health.v1.Health/Check").await;
    within("the end", client.headers_of(1)).await;
    until("its place back", || harness.taken(Limit::HealthChecks) == 0).await;
}

/// The body of a request that does not come to its end; it breaks when its sender is gone.
struct Unfinished(mpsc::Receiver<Bytes>);

impl Unfinished {
    /// A message of 4 MiB but for its last bytes.
    fn message() -> (mpsc::Sender<Bytes>, Self) {
        let length = u32::try_from(MESSAGE_BYTES_MAX).expect("short").to_be_bytes();
        let piece = Bytes::from_static(&[0; 16 << 10]);
        let pieces = MESSAGE_BYTES_MAX / piece.len();
        let (sender, receiver) = mpsc::channel(pieces);
        sender.try_send([&[0], &length[..]].concat().into()).expect("room");
        (1..pieces).for_each(|_| sender.try_send(piece.clone()).expect("room"));
        (sender, Self(receiver))
    }
}

impl http_body::Body for Unfinished {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        let piece = ready!(self.0.poll_recv(context)).ok_or_else(|| Status::aborted("broken off"));
        Poll::Ready(Some(piece.map(http_body::Frame::data)))
    }
}

#[tokio::test]
async fn messages_without_an_end_count_and_take_no_more_than_a_connection_may_hold() {
    let harness = Harness::start().await;
    let channel = harness.channel().await;
    let send = |path: &'static str| {
        let mut channel = channel.clone();
        let (sender, body) = Unfinished::message();
        let answered = tokio::spawn(async move {
            poll_fn(|context| channel.poll_ready(context)).await.expect("an open connection");
            let request = http::Request::post(path).header("content-type", "application/grpc");
            channel.call(request.body(tonic::body::Body::new(body)).expect("a request")).await
        });
        (sender, answered)
    };
    let mut streams = vec![send("/kv.v1.Kv/Batch"), send("/kv.v1.Kv/Upload")];
    let each = STREAM_AHEAD_BYTES + MESSAGE_BYTES_MAX - (16 << 10) - UNFINISHED_FREE_BYTES;
    until("most of two messages", || harness.taken(Limit::RequestBytes) >= 2 * each).await;
    streams.extend((0..16).map(|_| send("/kv.v1.Kv/Batch")));
    let nearly = REQUEST_BYTES_PER_CONNECTION_MAX - (256 << 10);
    until("all that it may hold", || harness.taken(Limit::RequestBytes) >= nearly).await;
    assert!(harness.taken(Limit::RequestBytes) <= REQUEST_BYTES_PER_CONNECTION_MAX);
    harness.serves().await;
    drop(streams);
    until("what they held", || harness.taken(Limit::RequestBytes) == 0).await;
}

#[tokio::test]
async fn a_reflection_stream_that_asks_nothing_is_ended() {
    let idle = IdleLimits { reflection: Duration::from_millis(200), ..Options::default().idle };
    let harness = Harness::with(Options { idle, ..Options::default() }).await;
    let mut client = ServerReflectionClient::new(harness.channel().await);
    let question = MessageRequest::ListServices(String::new());
    let question = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let (sender, questions) = mpsc::channel(1);
    sender.send(question).await.expect("room");
    let questions = tokio_stream::wrappers::ReceiverStream::new(questions);
    let mut answers = client.server_reflection_info(questions).await.expect("a stream").into_inner();
    within("an answer", answers.message()).await.expect("an answer").expect("an answer");
    let end = within("the end of the stream", answers.message()).await;
    assert!(!matches!(end, Ok(Some(_))), "{end:?}");
    until("its place back", || harness.taken(Limit::Requests) == 0).await;
    drop(sender);
}

#[tokio::test]
async fn large_values_that_nobody_reads_are_few() {
    const GETS: u32 = 50;
    let harness = Harness::start().await;
    let large = PutRequest { key: "large".into(), value: value_of(512 << 10), ..PutRequest::default() };
    harness.client().await.put(large).await.expect("a put");
    let mut lazy = RawClient::connect(&harness).await;
    for stream in 0..GETS {
        // It may send 64 KiB only, and none of the replies comes to its end.
        lazy.ask(stream * 2 + 1, "/kv.v1.Kv/Get", &get("large"), Some("500m")).await.expect("open");
    }
    let mut begun = 0;
    for _ in 0..GETS {
        let reply = within("a reply to each", lazy.headers()).await.expect("an open connection");
        // A refusal is a head that ends its stream.
        begun += usize::from(!reply.ends);
    }
    assert_eq!(begun, LARGE_REPLIES_PER_CONNECTION_MAX);
    for from in [Ipv4Addr::LOCALHOST, ELSEWHERE] {
        let mut client = harness.client_from(from).await;
        within("a large value", client.get(get("large"))).await.expect("a get");
    }
    drop(lazy);
    until("room again", || harness.taken(Limit::LargeReplies) == 0).await;
}

#[tokio::test]
async fn a_client_that_leaves_its_socket_unread_is_closed() {
    const DOWNLOADS: u32 = 8;
    let patience = Patience { send_stall: Duration::from_millis(500), ..Options::default().patience };
    let harness = Harness::with(Options { patience, ..Options::default() }).await;
    let mut client = harness.client().await;
    let header = upload_request::Header { key: "big".into(), ..upload_request::Header::default() };
    upload(&mut client, header, &value_of(8 << 20), 1 << 20).await.expect("an upload");
    let mut lazy = RawClient::connect(&harness).await;
    lazy.open_windows().await;
    for stream in 0..DOWNLOADS {
        let request = DownloadRequest { key: "big".into(), ..DownloadRequest::default() };
        lazy.ask(stream * 2 + 1, "/kv.v1.Kv/Download", &request, None).await.expect("open");
    }
    until("all downloads", || harness.taken(Limit::Streams) == DOWNLOADS as usize).await;
    // The windows are open; what is full is the socket. HTTP/2 does not read while an answer to a PING waits.
    let ping = async {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        while lazy.frame(PING, 0, 0, &[0; 8]).await.is_ok() {
            tick.tick().await;
        }
    };
    within("the end of the connection", ping).await;
    until("their end", || harness.taken(Limit::Streams) == 0).await;
    harness.serves().await;
}

#[tokio::test]
async fn scans_that_nobody_reads_hold_little_and_are_closed() {
    const SCANS: usize = 20;
    const VALUES: usize = 64;
    let patience = Patience { send_stall: Duration::from_millis(500), ..Options::default().patience };
    let harness = Harness::with(Options { patience, ..Options::default() }).await;
    let mut client = harness.client().await;
    for number in 0..VALUES {
        let key = format!("scanned/{number:03}");
        let put = PutRequest { key: key.into(), value: value_of(512 << 10), ..PutRequest::default() };
        client.put(put).await.expect("a put");
    }
    let mut lazy = harness.client().await;
    let mut unread = Vec::new();
    for _ in 0..SCANS {
        let reply = within("a scan", lazy.scan(ScanRequest::default())).await.expect("a scan");
        unread.push(reply.into_inner());
    }
    harness.serves().await;
    let reads = harness.store.reads.load(std::sync::atomic::Ordering::Relaxed);
    // A page holds two values at most: all scans in full would need far more reads of the store.
    assert!(reads < SCANS * VALUES / 4, "{reads} reads of the store");
    for mut messages in unread {
        let broken = async { while let Ok(Some(_)) = messages.message().await {} };
        within("the end of the stream", broken).await;
    }
    harness.serves().await;
}

#[tokio::test]
async fn a_polite_client_with_ten_thousand_requests_waits_its_turn() {
    let harness = Harness::start().await;
    let client = harness.client().await;
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..10_000 {
        let mut client = client.clone();
        running.spawn(async move { client.get(get("k")).await.map(|_| ()) });
    }
    harness.serves().await;
    while let Some(done) = within("all requests", running.join_next()).await {
        done.expect("no panic").expect("a get");
    }
}

#[tokio::test]
async fn silence_and_garbage_are_closed_and_others_served() {
    let patience = Patience { preface: Duration::from_millis(200), ..Options::default().patience };
    let harness = Harness::with(Options { patience, ..Options::default() }).await;
    let silent = TcpStream::connect(harness.address).await.expect("a connection");
    let mut slow = TcpStream::connect(harness.address).await.expect("a connection");
    slow.write_all(b"PRI * HTTP").await.expect("a part of the preface");
    let mut garbage = TcpStream::connect(harness.address).await.expect("a connection");
    garbage.write_all(&[0xa5; 4096]).await.expect("garbage");
    let mut web = TcpStream::connect(harness.address).await.expect("a connection");
    web.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a request of the past");
    harness.serves().await;
    for mut stream in [silent, slow, garbage, web] {
        let mut rest = Vec::new();
        // Closed or reset, both will do.
        within("the connection to be closed", stream.read_to_end(&mut rest)).await.ok();
    }
    harness.serves().await;
}

#[tokio::test]
async fn garbage_inside_of_http2_ends_its_stream_or_connection_only() {
    let harness = Harness::start().await;
    let mut client = RawClient::connect(&harness).await;
    client.open(1, "/kv.v1.Kv/Put").await;
    client.data(1, &[0, 0, 0, 0, 3, 0xff, 0xff, 0xff]).await;
    within("an answer to garbage", client.headers_of(1)).await;
    client.open(3, "/no.such/Method").await;
    within("an answer to nonsense", client.headers_of(3)).await;
    client.frame(0x2a, 0xff, 5, &[1, 2, 3]).await.ok();
    client.frame(0x1, 0x4, 7, &[0xff; 64]).await.ok();
    harness.serves().await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_closed_and_others_served() {
    let patience = Patience { send_stall: Duration::from_millis(500), ..Options::default().patience };
    let harness = Harness::with(Options { patience, ..Options::default() }).await;
    let mut client = harness.client().await;
    let header = upload_request::Header { key: "big".into(), ..upload_request::Header::default() };
    upload(&mut client, header, &value_of(8 << 20), 1 << 20).await.expect("an upload");
    let mut unread = Vec::new();
    for _ in 0..20 {
        let request = DownloadRequest { key: "big".into(), ..DownloadRequest::default() };
        unread.push(within("a download", client.download(request)).await.expect("a download").into_inner());
    }
    let reads = || harness.store.reads.load(std::sync::atomic::Ordering::Relaxed);
    harness.serves().await;
    // Nobody reads the replies: no more than the windows hold is read from the store.
    assert!(reads() < 20 * 8, "{} reads of the store", reads());
    for mut messages in unread {
        let broken = async { while let Ok(Some(_)) = messages.message().await {} };
        within("the end of the stream", broken).await;
    }
    harness.serves().await;
}
