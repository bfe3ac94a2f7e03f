//! The port of clients under bad input and bad clients, its reflection, its health, its end.

use std::{sync::Arc, time::Duration};

use kv_proto::{
    admin::v1::{BootstrapRequest, GetClusterStatusRequest, JoinRequest, admin_client::AdminClient},
    kv::v1::{DownloadRequest, GetRequest, PutRequest, ScanRequest, UploadRequest, upload_request},
};
use kvnode::api::{
    admission::Call, connection::Patience, limits::STREAMS_PER_CONNECTION_MAX, server::Options,
};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt;

use crate::support::{Harness, field, told, upload, value_of, within};

fn get(key: &'static str) -> GetRequest {
    GetRequest { key: key.into(), ..GetRequest::default() }
}

async fn is_served(harness: &Harness) {
    let mut client = harness.client().await;
    let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
    within("a put of another client", client.put(put)).await.expect("a put");
    within("a get of another client", client.get(get("k"))).await.expect("a get");
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_by_its_length_alone() {
    let harness = Harness::start().await;
    let put = PutRequest { key: "k".into(), value: value_of(5 << 20), ..PutRequest::default() };
    let status = harness.client().await.put(put).await.expect_err("too large");
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    // The length alone, without one byte of the message: the answer comes at once.
    let mut client = RawClient::connect(&harness).await;
    client.open(1, "/kv.v1.Kv/Put", false).await;
    client.data(1, &[0, 0x7f, 0xff, 0xff, 0xff]).await;
    within("the refusal", client.headers_of(1)).await;
    is_served(&harness).await;
}

#[tokio::test]
async fn ten_thousand_streams_of_one_connection_harm_nobody() {
    let harness = Harness::start().await;
    let mut flood = RawClient::connect(&harness).await;
    // Requests that never come to an end, and more of them than the server allows.
    const { assert!(STREAMS_PER_CONNECTION_MAX < 10_000) };
    for number in 0..10_000 {
        if flood.try_open(number * 2 + 1, "/kv.v1.Kv/Put", false).await.is_err() {
            // The server has had enough and closed the connection: fine as well.
            break;
        }
        if number == 5_000 {
            is_served(&harness).await;
        }
    }
    is_served(&harness).await;
    drop(flood);
    is_served(&harness).await;
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
            if client.try_open(stream * 2 + 1, "/kv.v1.Kv/Upload", false).await.is_err() {
                break;
            }
            opened += 1;
        }
        flood.push(client);
        if number % 20 == 0 {
            // Held by requests that never come to an end the node may refuse, but it answers at once.
            answers_at_once(&harness).await;
        }
    }
    assert!(opened >= 1_000, "only {opened} streams could be opened");
    drop(flood);
    let mut client = harness.client().await;
    let served = async {
        while let Err(status) = client.get(get("k")).await {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        }
    };
    within("room again", served).await;
    is_served(&harness).await;
}

/// A request of a good client is served or refused for a limit, and health is answered.
async fn answers_at_once(harness: &Harness) {
    let mut client = harness.client().await;
    match within("an answer", client.get(get("k"))).await {
        Ok(_) => {}
        Err(status) => assert_eq!(told(&status), (Code::ResourceExhausted, "REQUESTS_IN_FLIGHT".to_owned())),
    }
    assert_eq!(health_of(harness, "").await, Ok(ServingStatus::Serving));
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
    is_served(&harness).await;
    let reads = harness.store.reads.load(std::sync::atomic::Ordering::Relaxed);
    // A page holds two values at most: all scans in full would need far more reads of the store.
    assert!(reads < SCANS * VALUES / 4, "{reads} reads of the store");
    for mut messages in unread {
        let broken = async { while let Ok(Some(_)) = messages.message().await {} };
        within("the end of the stream", broken).await;
    }
    is_served(&harness).await;
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
    is_served(&harness).await;
    while let Some(done) = within("all requests", running.join_next()).await {
        done.expect("no panic").expect("a get");
    }
}

#[tokio::test]
async fn beyond_the_limit_requests_are_refused_with_advice_and_health_still_answers() {
    let harness = Harness::with(Options { requests_max: 2, ..Options::default() }).await;
    let mut held = Vec::new();
    let mut senders = Vec::new();
    for _ in 0..2 {
        let (sender, messages) = mpsc::channel::<UploadRequest>(1);
        let header = upload_request::Header { key: "k".into(), ..upload_request::Header::default() };
        sender.send(UploadRequest { part: Some(upload_request::Part::Header(header)) }).await.expect("room");
        let mut client = harness.client().await;
        held.push(tokio::spawn(async move { client.upload(ReceiverStream::new(messages)).await }));
        senders.push(sender);
    }
    crate::support::until("two uploads", || harness.store.open_uploads() == 2).await;
    let mut client = harness.client().await;
    let status = client.get(get("k")).await.expect_err("full");
    assert_eq!(told(&status), (Code::ResourceExhausted, "REQUESTS_IN_FLIGHT".to_owned()));
    assert!(status.get_error_details().retry_info().is_some_and(|retry| retry.retry_delay.is_some()));
    assert_eq!(health_of(&harness, "").await, Ok(ServingStatus::Serving));
    drop(senders);
    for upload in held {
        upload.await.expect("no panic").expect("an empty upload");
    }
    client.get(get("k")).await.expect("room again");
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
    is_served(&harness).await;
    for mut stream in [silent, slow, garbage, web] {
        let mut rest = Vec::new();
        // Closed or reset, both will do.
        within("the connection to be closed", stream.read_to_end(&mut rest)).await.ok();
    }
    is_served(&harness).await;
}

#[tokio::test]
async fn garbage_inside_of_http2_ends_its_stream_or_connection_only() {
    let harness = Harness::start().await;
    let mut client = RawClient::connect(&harness).await;
    client.open(1, "/kv.v1.Kv/Put", false).await;
    client.data(1, &[0, 0, 0, 0, 3, 0xff, 0xff, 0xff]).await;
    within("an answer to garbage", client.headers_of(1)).await;
    client.open(3, "/no.such/Method", true).await;
    within("an answer to nonsense", client.headers_of(3)).await;
    client.frame(0x2a, 0xff, 5, &[1, 2, 3]).await.ok();
    client.frame(0x1, 0x4, 7, &[0xff; 64]).await.ok();
    is_served(&harness).await;
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
    is_served(&harness).await;
    // Nobody reads the replies: no more than the windows hold is read from the store.
    assert!(reads() < 20 * 8, "{} reads of the store", reads());
    for mut messages in unread {
        let broken = async { while let Ok(Some(_)) = messages.message().await {} };
        within("the end of the stream", broken).await;
    }
    is_served(&harness).await;
}

#[tokio::test]
async fn a_request_that_stops_coming_is_given_up() {
    let options = Options { request_idle_max: Duration::from_millis(200), ..Options::default() };
    let harness = Harness::with(options).await;
    let mut client = harness.client().await;
    let (sender, messages) = mpsc::channel::<UploadRequest>(1);
    let header = upload_request::Header { key: "k".into(), ..upload_request::Header::default() };
    sender.send(UploadRequest { part: Some(upload_request::Part::Header(header)) }).await.expect("room");
    let status = within("the end", client.upload(ReceiverStream::new(messages))).await.expect_err("idle");
    assert_eq!(told(&status), (Code::Unavailable, "NOT_APPLIED_UPLOAD_INTERRUPTED".to_owned()));
    crate::support::until("the abort", || harness.store.open_uploads() == 0).await;
}

#[tokio::test]
async fn one_hook_stands_before_every_method() {
    let authorize = |call: Call<'_>| match call.headers.get("authorization") {
        Some(token) if token == "let me in" => Ok(()),
        _ => {
            Err(Status::unauthenticated(format!("{} from {:?}", call.method, call.remote.map(|at| at.ip()))))
        }
    };
    let harness = Harness::with(Options { authorize: Arc::new(authorize), ..Options::default() }).await;
    let mut client = harness.client().await;
    let status = client.get(get("k")).await.expect_err("nobody");
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unauthenticated, "/kv.v1.Kv/Get from Some(127.0.0.1)")
    );
    assert_eq!(health_of(&harness, "").await.expect_err("nobody"), Code::Unauthenticated);
    let mut request = tonic::Request::new(get("k"));
    request.metadata_mut().insert("authorization", "let me in".parse().expect("ascii"));
    request.metadata_mut().insert(
        "traceparent",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().expect("ascii"),
    );
    client.get(request).await.expect("somebody");
}

#[tokio::test]
async fn the_administration_checks_and_answers() {
    let harness = Harness::start().await;
    let mut admin = AdminClient::new(harness.channel().await);
    let status = admin.get_cluster_status(GetClusterStatusRequest {}).await.expect("a reply").into_inner();
    assert_eq!((status.cluster_id.as_str(), status.fault_tolerance), ("fake", -1));
    let status = admin.bootstrap(BootstrapRequest::default()).await.expect_err("no token");
    assert_eq!(field(&status), "token");
    let request = BootstrapRequest { token: "t".to_owned(), ..BootstrapRequest::default() };
    assert_eq!(told(&admin.bootstrap(request).await.expect_err("scripted")).1, "NOT_EMPTY");
    assert_eq!(field(&admin.join(JoinRequest::default()).await.expect_err("no node")), "node");
}

async fn health_of(harness: &Harness, service: &str) -> Result<ServingStatus, Code> {
    let mut client = HealthClient::new(harness.channel().await);
    let reply = client.check(HealthCheckRequest { service: service.to_owned() }).await;
    reply.map(|reply| reply.into_inner().status()).map_err(|status| status.code())
}

#[tokio::test]
async fn health_tells_serving_from_routing() {
    let harness = Harness::start().await;
    for (serves, routes, node, kv) in [
        (true, true, ServingStatus::Serving, ServingStatus::Serving),
        (true, false, ServingStatus::Serving, ServingStatus::NotServing),
        (false, true, ServingStatus::NotServing, ServingStatus::NotServing),
    ] {
        harness.health.set(serves, routes).await;
        assert_eq!(
            (health_of(&harness, "").await, health_of(&harness, "kv.v1.Kv").await),
            (Ok(node), Ok(kv))
        );
    }
    assert_eq!(health_of(&harness, "no.such.Service").await, Err(Code::NotFound));
}

#[tokio::test]
async fn the_end_is_not_serving_then_goaway_then_closed() {
    let options = Options {
        stop_notice: Duration::from_millis(300),
        stop_grace: Duration::from_millis(300),
        ..Options::default()
    };
    let mut harness = Harness::with(options).await;
    let mut health = HealthClient::new(harness.channel().await);
    let request = HealthCheckRequest { service: "kv.v1.Kv".to_owned() };
    let mut watch = health.watch(request).await.expect("a watch").into_inner();
    let first = within("the first state", watch.message()).await.expect("a state").expect("a state");
    assert_eq!(first.status(), ServingStatus::Serving);
    // An upload that never ends: it must not hold up the end.
    let (sender, messages) = mpsc::channel::<UploadRequest>(1);
    let header = upload_request::Header { key: "k".into(), ..upload_request::Header::default() };
    sender.send(UploadRequest { part: Some(upload_request::Part::Header(header)) }).await.expect("room");
    let mut client = harness.client().await;
    let endless = tokio::spawn(async move { client.upload(ReceiverStream::new(messages)).await });
    crate::support::until("the upload", || harness.store.open_uploads() == 1).await;

    let mut old = harness.client().await;
    harness.stop();
    let next = within("the next state", watch.message()).await.expect("a state").expect("a state");
    assert_eq!(next.status(), ServingStatus::NotServing);
    old.get(get("k")).await.expect("still served while others look elsewhere");
    let (address, store) = (harness.address, harness.store.clone());
    harness.ended().await;
    assert!(within("the end of the upload", endless).await.expect("no panic").is_err());
    assert!(TcpStream::connect(address).await.is_err(), "the port is free");
    crate::support::until("the abort", || store.open_uploads() == 0).await;
    assert!(store.keys().is_empty());
}

#[tokio::test]
async fn a_connection_of_age_is_asked_to_come_again() {
    let options = Options { connection_age_max: Duration::from_millis(100), ..Options::default() };
    let harness = Harness::with(options).await;
    let mut old = RawClient::connect(&harness).await;
    within("the GOAWAY", old.frame_of_kind(7)).await;
    is_served(&harness).await;
}

/// Asks for what a tool asks for: the services, a symbol, and all files that it needs.
macro_rules! reflection_test {
    ($name:ident, $version:ident) => {
        #[tokio::test]
        async fn $name() {
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
            };
            let harness = Harness::start().await;
            let mut client = ServerReflectionClient::new(harness.channel().await);
            let mut ask = async |request| {
                let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
                let replies = client.server_reflection_info(tokio_stream::iter([request])).await;
                let reply = replies
                    .expect("a stream")
                    .into_inner()
                    .message()
                    .await
                    .expect("no error")
                    .expect("a reply");
                reply.message_response.expect("a response")
            };
            let MessageResponse::ListServicesResponse(list) =
                ask(MessageRequest::ListServices(String::new())).await
            else {
                panic!("no list");
            };
            let services: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
            for service in ["kv.v1.Kv", "kv.v1.KvText", "admin.v1.Admin", "grpc.health.v1.Health"] {
                assert!(services.iter().any(|name| name == service), "{service} in {services:?}");
            }
            assert!(!services.iter().any(|name| name.starts_with("peer.")), "{services:?}");
            for symbol in [
                "kv.v1.Kv",
                "google.rpc.ErrorInfo",
                "google.rpc.BadRequest",
                "google.rpc.RetryInfo",
                "google.rpc.Status",
            ] {
                let MessageResponse::FileDescriptorResponse(files) =
                    ask(MessageRequest::FileContainingSymbol(symbol.to_owned())).await
                else {
                    panic!("{symbol} is unknown");
                };
                let mut files = files.file_descriptor_proto;
                while let Some(file) = files.pop() {
                    for name in dependencies(&file) {
                        match ask(MessageRequest::FileByFilename(name.clone())).await {
                            MessageResponse::FileDescriptorResponse(more) => {
                                files.extend(more.file_descriptor_proto)
                            }
                            other => panic!("{symbol} needs {name}: {other:?}"),
                        }
                    }
                }
            }
        }
    };
}

reflection_test!(reflection_v1_lists_services_and_resolves_error_details, v1);
reflection_test!(reflection_v1alpha_lists_services_and_resolves_error_details, v1alpha);

/// The field `dependency` of a `FileDescriptorProto`.
fn dependencies(file: &[u8]) -> Vec<String> {
    #[derive(Clone, PartialEq, Message)]
    struct File {
        #[prost(string, repeated, tag = "3")]
        dependency: Vec<String>,
    }
    File::decode(file).expect("a descriptor").dependency
}

/// HTTP/2 by hand, because a proper client keeps the server's limits.
struct RawClient {
    stream: TcpStream,
}

impl RawClient {
    async fn connect(harness: &Harness) -> Self {
        let mut stream = TcpStream::connect(harness.address).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("the preface");
        let mut client = Self { stream };
        client.frame(4, 0, 0, &[]).await.expect("settings");
        client
    }

    async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> std::io::Result<()> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.stream.write_all(&frame).await
    }

    /// HEADERS of a gRPC request, as literals without an index; RFC 7541, 6.2.2.
    async fn try_open(&mut self, stream: u32, path: &str, ends: bool) -> std::io::Result<()> {
        let mut block = Vec::new();
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "x"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ] {
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).expect("short"));
                block.extend_from_slice(text.as_bytes());
            }
        }
        self.frame(1, if ends { 0x5 } else { 0x4 }, stream, &block).await
    }

    async fn open(&mut self, stream: u32, path: &str, ends: bool) {
        self.try_open(stream, path, ends).await.expect("an open connection");
    }

    async fn data(&mut self, stream: u32, bytes: &[u8]) {
        self.frame(0, 0, stream, bytes).await.expect("an open connection");
    }

    async fn next_frame(&mut self) -> (u8, u32, Vec<u8>) {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.expect("a frame");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).await.expect("its payload");
        (head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload)
    }

    async fn headers_of(&mut self, stream: u32) -> Vec<u8> {
        loop {
            match self.next_frame().await {
                (1, of, payload) if of == stream => return payload,
                _ => {}
            }
        }
    }

    async fn frame_of_kind(&mut self, kind: u8) -> Vec<u8> {
        loop {
            match self.next_frame().await {
                (of, _, payload) if of == kind => return payload,
                _ => {}
            }
        }
    }
}
