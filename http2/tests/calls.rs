//! Calls over a pipe: a client's connection, a server's, and what becomes of calls when either side goes.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test fails by panicking, and its name says what it shows"
)]

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use kv_http2::{
    KeepAlive, Received, Windows,
    client::{self, Connection},
    gathered::Gathered,
    server::{self, Handler},
    was_not_sent,
};
use tokio::{
    io::{DuplexStream, duplex},
    sync::{Notify, mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tonic::{Code, Status, body::Body};
use tower_service::Service;

const WINDOWS: Windows = Windows { stream: 64 * 1024, connection: 64 * 1024 };
const PATIENT: KeepAlive =
    KeepAlive { interval: Duration::from_secs(600), timeout: Duration::from_secs(600) };
const SOON: Duration = Duration::from_secs(20);

type Out = UnsyncBoxBody<Bytes, Status>;

/// What the server does, by path.
#[derive(Clone, Default)]
struct Answers {
    /// Of a call that waits.
    begun: Arc<Notify>,
    dropped: Arc<AtomicUsize>,
}

struct CountsDrop(Arc<AtomicUsize>);

impl Drop for CountsDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn frames(frames: Vec<Frame<Bytes>>) -> Out {
    StreamBody::new(futures::stream::iter(frames.into_iter().map(Ok))).boxed_unsync()
}

fn trailers(name: &'static str, value: &str) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    trailers.insert(name, value.parse().unwrap());
    Frame::trailers(trailers)
}

impl Handler for Answers {
    type Body = Out;

    async fn handle(&self, request: Request<Received>) -> Response<Out> {
        match request.uri().path() {
            // Its bytes back, each piece as it comes.
            "/echo" => {
                let body = request.into_body().map_frame(|frame| frame);
                Response::new(body.boxed_unsync())
            }
            "/count" => {
                let all = request.into_body().collect().await.unwrap().to_bytes();
                let count = Bytes::from(all.len().to_string());
                Response::new(frames(vec![Frame::data(count), trailers("status", "fine")]))
            }
            "/wait" => {
                let _dropped = CountsDrop(self.dropped.clone());
                self.begun.notify_one();
                std::future::pending().await
            }
            _ => {
                let mut response = Response::new(frames(Vec::new()));
                response.headers_mut().insert("status", "unknown".parse().unwrap());
                response
            }
        }
    }
}

struct Pair {
    connection: Connection,
    serving: JoinHandle<Result<(), server::Ended>>,
    drain: Option<oneshot::Sender<()>>,
    answers: Answers,
}

async fn pair() -> Pair {
    let (here, there) = duplex(16 * 1024);
    serve(here, there, PATIENT, PATIENT).await
}

async fn serve(here: DuplexStream, there: DuplexStream, ours: KeepAlive, theirs: KeepAlive) -> Pair {
    let answers = Answers::default();
    let (drain, drained) = oneshot::channel();
    let options =
        server::Options { windows: WINDOWS, keep_alive: theirs, streams_max: 16, header_bytes_max: 4096 };
    let serving = tokio::spawn(server::serve(Gathered(there), answers.clone(), options, async {
        // Kept or dropped: a test that does not drain keeps it.
        drained.await.ok();
    }));
    let options = client::Options { windows: WINDOWS, keep_alive: ours };
    let connection = Connection::open(Gathered(here), options).await.unwrap();
    Pair { connection, serving, drain: Some(drain), answers }
}

fn request(path: &str, body: Body) -> Request<Body> {
    Request::post(format!("http://node{path}")).body(body).unwrap()
}

fn whole(bytes: impl Into<Bytes>) -> Body {
    Body::new(http_body_util::Full::new(bytes.into()).map_err(|error: Infallible| match error {}))
}

fn piece_by_piece(pieces: mpsc::UnboundedReceiver<&'static str>) -> Body {
    let frames = futures::stream::unfold(pieces, |mut pieces| async move {
        let piece = Bytes::from(pieces.recv().await?);
        Some((Ok::<_, Status>(Frame::data(piece)), pieces))
    });
    Body::new(StreamBody::new(frames))
}

async fn call(connection: &Connection, path: &str, body: Body) -> Result<Response<client::Reply>, Status> {
    timeout(SOON, connection.clone().call(request(path, body))).await.expect("an answer in time")
}

#[tokio::test]
async fn a_call_brings_its_reply_and_its_trailers() {
    let pair = pair().await;
    let reply = call(&pair.connection, "/count", whole("twelve bytes")).await.unwrap();
    let read = timeout(SOON, reply.into_body().collect()).await.unwrap().unwrap();
    assert_eq!(read.trailers().unwrap()["status"], "fine");
    assert_eq!(read.to_bytes(), "12");
    let reply = call(&pair.connection, "/nothing", Body::empty()).await.unwrap();
    assert_eq!(reply.headers()["status"], "unknown");
    assert!(reply.into_body().collect().await.unwrap().to_bytes().is_empty());
}

#[tokio::test]
async fn a_body_larger_than_every_window_comes_whole_both_ways() {
    let pair = pair().await;
    let bytes: Bytes = (0..1_000_000_u32).map(|number| (number % 251) as u8).collect();
    let pieces: Vec<_> = bytes
        .chunks(30_000)
        .map(|piece| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(piece))))
        .collect();
    let body = Body::new(StreamBody::new(futures::stream::iter(pieces)));
    let reply = call(&pair.connection, "/echo", body).await.unwrap();
    let back = timeout(SOON, reply.into_body().collect()).await.unwrap().unwrap().to_bytes();
    assert!(back == bytes);
}

#[tokio::test]
async fn both_sides_of_a_stream_go_on_at_the_same_time() {
    let pair = pair().await;
    let (pieces, body) = mpsc::unbounded_channel();
    let reply = call(&pair.connection, "/echo", piece_by_piece(body)).await.unwrap();
    let mut reply = reply.into_body();
    for text in ["one", "two", "three"] {
        pieces.send(text).unwrap();
        let frame = timeout(SOON, reply.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), text);
    }
    drop(pieces);
    assert!(timeout(SOON, reply.frame()).await.unwrap().is_none());
    assert!(reply.is_end_stream());
}

#[tokio::test]
async fn a_call_that_is_given_up_ends_at_the_server() {
    let pair = pair().await;
    let waiting = tokio::spawn(pair.connection.clone().call(request("/wait", whole("x"))));
    timeout(SOON, pair.answers.begun.notified()).await.unwrap();
    waiting.abort();
    let ended = async {
        while pair.answers.dropped.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, ended).await.expect("the server gives it up too");
    // The connection goes on.
    call(&pair.connection, "/count", whole("x")).await.unwrap();
}

#[tokio::test]
async fn a_draining_server_finishes_what_it_has_and_refuses_the_rest_as_not_sent() {
    let mut pair = pair().await;
    let (pieces, body) = mpsc::unbounded_channel();
    let running = call(&pair.connection, "/echo", piece_by_piece(body)).await.unwrap();
    drop(pair.drain.take());
    let refused = async {
        loop {
            match call(&pair.connection, "/count", whole("x")).await {
                // Until the client has heard of it.
                Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                Err(status) => return status,
            }
        }
    };
    let status = timeout(SOON, refused).await.unwrap();
    assert!(was_not_sent(&status), "{status:?}");
    assert_eq!(status.code(), Code::Unavailable);
    pieces.send("last").unwrap();
    drop(pieces);
    let all = timeout(SOON, running.into_body().collect()).await.unwrap().unwrap().to_bytes();
    assert_eq!(all, "last");
    timeout(SOON, pair.serving).await.unwrap().unwrap().expect("it ends in order");
}

#[tokio::test]
async fn what_became_of_a_call_is_not_known_when_the_server_dies() {
    let pair = pair().await;
    let waiting = tokio::spawn(pair.connection.clone().call(request("/wait", whole("x"))));
    timeout(SOON, pair.answers.begun.notified()).await.unwrap();
    pair.serving.abort();
    let status = timeout(SOON, waiting).await.unwrap().unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(!was_not_sent(&status), "{status:?}");
    // What comes later is known not to have left.
    let status = call(&pair.connection, "/count", whole("x")).await.unwrap_err();
    assert!(was_not_sent(&status), "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_end_is_given_up_by_both_sides() {
    let eager = KeepAlive { interval: Duration::from_secs(10), timeout: Duration::from_secs(5) };
    // A client whose server never reads.
    let (here, _silent) = duplex(1024 * 1024);
    let options = client::Options { windows: WINDOWS, keep_alive: eager };
    let connection = Connection::open(Gathered(here), options).await.unwrap();
    let status = connection.clone().call(request("/wait", whole("x"))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    // A server whose client is open and does nothing: h2 answers PINGs as long as somebody polls it.
    let (here, there) = duplex(1024 * 1024);
    let pair = serve(here, there, PATIENT, eager).await;
    let serving = pair.serving;
    assert!(timeout(Duration::from_secs(120), serving).await.is_err(), "a living client is kept");
}
