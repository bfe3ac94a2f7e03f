//! The port of clients under bad input, its reflection, its health, its end.

use std::{sync::Arc, time::Duration};

use kv_proto::{
    admin::v1::{BootstrapRequest, GetClusterStatusRequest, JoinRequest, admin_client::AdminClient},
    kv::v1::{PutRequest, UploadRequest, upload_request},
};
use kvnode::api::{
    admission::{Call, IdleLimits},
    limits::{DEADLINE_DEFAULT, Limit},
    quota::Capacity,
    server::Options,
};
use prost::Message;
use tokio::{net::TcpStream, sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt;

use crate::{
    raw::{GOAWAY, RawClient},
    support::{Harness, field, get, told, until, value_of, within},
};

#[tokio::test]
async fn a_message_over_the_limit_is_refused_by_its_length_alone() {
    let harness = Harness::start().await;
    let put = PutRequest { key: "k".into(), value: value_of(5 << 20), ..PutRequest::default() };
    let status = harness.client().await.put(put).await.expect_err("too large");
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    // The length alone, without one byte of the message: the answer comes at once.
    let mut client = RawClient::connect(&harness).await;
    client.open(1, "/kv.v1.Kv/Put").await;
    client.data(1, &[0, 0x7f, 0xff, 0xff, 0xff]).await;
    within("the refusal", client.headers_of(1)).await;
    harness.serves().await;
}

#[tokio::test]
async fn the_time_of_a_call_begins_with_its_headers() {
    let harness = Harness::start().await;
    let mut client = RawClient::connect(&harness).await;
    client.open(1, "/kv.v1.Kv/Put").await;
    until("its headers", || harness.taken(Limit::Requests) == 1).await;
    let came = Instant::now();
    // Its body takes a while: that is what is measured.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() }.encode_to_vec();
    let length = u32::try_from(put.len()).expect("short").to_be_bytes();
    client.frame(0, 1, 1, &[&[0], &length[..], &put].concat()).await.expect("an open connection");
    within("the reply", client.headers_of(1)).await;
    let deadlines = harness.store.deadlines.lock().expect("no panic").clone();
    assert_eq!(deadlines.len(), 1);
    assert!(deadlines[0] <= came + DEADLINE_DEFAULT, "{:?} late", deadlines[0] - came - DEADLINE_DEFAULT);
}

#[tokio::test]
async fn beyond_the_limit_requests_are_refused_with_advice_and_health_still_answers() {
    let capacity = Capacity { requests: 4, ..Capacity::default() };
    let harness = Harness::with(Options { capacity, ..Options::default() }).await;
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
    until("two uploads", || harness.store.open_uploads() == 2).await;
    let mut client = harness.client().await;
    let status = client.get(get("k")).await.expect_err("full");
    assert_eq!(told(&status), (Code::ResourceExhausted, "REQUESTS_IN_FLIGHT".to_owned()));
    assert!(status.get_error_details().retry_info().is_some_and(|retry| retry.retry_delay.is_some()));
    assert_eq!(harness.health_of("").await, Ok(ServingStatus::Serving));
    drop(senders);
    for upload in held {
        upload.await.expect("no panic").expect("an empty upload");
    }
    client.get(get("k")).await.expect("room again");
}

#[tokio::test]
async fn a_request_that_stops_coming_is_given_up() {
    let idle = IdleLimits { request: Duration::from_millis(200), ..Options::default().idle };
    let harness = Harness::with(Options { idle, ..Options::default() }).await;
    let mut client = harness.client().await;
    let (sender, messages) = mpsc::channel::<UploadRequest>(1);
    let header = upload_request::Header { key: "k".into(), ..upload_request::Header::default() };
    sender.send(UploadRequest { part: Some(upload_request::Part::Header(header)) }).await.expect("room");
    let status = within("the end", client.upload(ReceiverStream::new(messages))).await.expect_err("idle");
    assert_eq!(told(&status), (Code::Unavailable, "NOT_APPLIED_UPLOAD_INTERRUPTED".to_owned()));
    until("the abort", || harness.store.open_uploads() == 0).await;
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
    assert_eq!(harness.health_of("").await.expect_err("nobody"), Code::Unauthenticated);
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

#[tokio::test]
async fn health_tells_serving_from_routing() {
    let harness = Harness::start().await;
    for (serves, routes, node, kv) in [
        (true, true, ServingStatus::Serving, ServingStatus::Serving),
        (true, false, ServingStatus::Serving, ServingStatus::NotServing),
        (false, true, ServingStatus::NotServing, ServingStatus::NotServing),
    ] {
        harness.health.set(serves, routes).await;
        assert_eq!((harness.health_of("").await, harness.health_of("kv.v1.Kv").await), (Ok(node), Ok(kv)));
    }
    assert_eq!(harness.health_of("no.such.Service").await, Err(Code::NotFound));
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
    until("the upload", || harness.store.open_uploads() == 1).await;

    let mut old = harness.client().await;
    harness.stop();
    let next = within("the next state", watch.message()).await.expect("a state").expect("a state");
    assert_eq!(next.status(), ServingStatus::NotServing);
    old.get(get("k")).await.expect("still served while others look elsewhere");
    let (address, store) = (harness.address, harness.store.clone());
    harness.ended().await;
    assert!(within("the end of the upload", endless).await.expect("no panic").is_err());
    assert!(TcpStream::connect(address).await.is_err(), "the port is free");
    until("the abort", || store.open_uploads() == 0).await;
    assert!(store.keys().is_empty());
}

#[tokio::test]
async fn a_connection_of_age_is_asked_to_come_again() {
    let options = Options { connection_age_max: Duration::from_millis(100), ..Options::default() };
    let harness = Harness::with(options).await;
    let mut old = RawClient::connect(&harness).await;
    within("the GOAWAY", old.frame_of_kind(GOAWAY)).await.expect("an open connection");
    harness.serves().await;
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
