//! The proxy forwards, cuts, delays, resets, heals, and leaves nothing behind.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use kv_faults::proxy::{Direction, Link, Proxy};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{Instant, timeout},
};

/// Long enough for anything that is going to happen.
const DEADLINE: Duration = Duration::from_secs(10);
/// Long enough to believe that nothing happens.
const QUIET: Duration = Duration::from_millis(100);

/// A connection through a proxy: what the dialler holds, what the listener holds.
struct Pair {
    proxy: Proxy,
    listener: TcpListener,
    dialler: TcpStream,
    listened: TcpStream,
}

impl Pair {
    async fn connect() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let proxy = Proxy::start(listener.local_addr().expect("bound")).await.expect("a port");
        let dialler = TcpStream::connect(proxy.address()).await.expect("the proxy listens");
        let (listened, _) = timeout(DEADLINE, listener.accept()).await.expect("passed on").expect("accepted");
        Self { proxy, listener, dialler, listened }
    }
}

async fn hears(stream: &mut TcpStream, expected: &[u8]) {
    let mut heard = vec![0; expected.len()];
    timeout(DEADLINE, stream.read_exact(&mut heard))
        .await
        .expect("bytes arrive in time")
        .expect("still connected");
    assert_eq!(heard, expected);
}

async fn hears_nothing(stream: &mut TcpStream) {
    let mut byte = [0];
    timeout(QUIET, stream.read(&mut byte)).await.expect_err("nothing arrives");
}

async fn is_reset(stream: &mut TcpStream) {
    let mut byte = [0];
    let read = timeout(DEADLINE, stream.read(&mut byte)).await.expect("the connection ends in time");
    assert_eq!(read.expect_err("no orderly end").kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn open_link_passes_both_ways_and_orderly_ends() {
    let mut pair = Pair::connect().await;
    pair.dialler.write_all(b"question").await.expect("connected");
    hears(&mut pair.listened, b"question").await;
    pair.listened.write_all(b"answer").await.expect("connected");
    hears(&mut pair.dialler, b"answer").await;
    drop(pair.dialler);
    let end =
        timeout(DEADLINE, pair.listened.read(&mut [0])).await.expect("the end arrives").expect("in order");
    assert_eq!(end, 0);
}

#[tokio::test]
async fn cut_in_one_direction_leaves_the_other_open() {
    let mut pair = Pair::connect().await;
    pair.proxy.set(Direction::ToListener, Link::Silent);
    pair.dialler.write_all(b"lost").await.expect("taken");
    hears_nothing(&mut pair.listened).await;
    pair.listened.write_all(b"heard").await.expect("connected");
    hears(&mut pair.dialler, b"heard").await;
}

#[tokio::test]
async fn connection_that_lost_bytes_is_reset_on_healing_and_a_new_one_works() {
    let mut pair = Pair::connect().await;
    pair.proxy.set_both(Link::Silent);
    pair.dialler.write_all(b"lost").await.expect("taken");
    hears_nothing(&mut pair.listened).await;
    pair.proxy.heal();
    is_reset(&mut pair.dialler).await;
    is_reset(&mut pair.listened).await;

    let mut dialler = TcpStream::connect(pair.proxy.address()).await.expect("the proxy listens");
    let (mut listened, _) =
        timeout(DEADLINE, pair.listener.accept()).await.expect("passed on").expect("accepted");
    dialler.write_all(b"again").await.expect("connected");
    hears(&mut listened, b"again").await;
}

#[tokio::test]
async fn stalled_link_delivers_everything_after_healing() {
    let mut pair = Pair::connect().await;
    pair.proxy.set_both(Link::Stalled);
    pair.dialler.write_all(b"late").await.expect("buffered");
    hears_nothing(&mut pair.listened).await;
    pair.proxy.heal();
    hears(&mut pair.listened, b"late").await;
}

#[tokio::test]
async fn new_connection_waits_out_a_cut() {
    let mut pair = Pair::connect().await;
    pair.proxy.set(Direction::ToDialler, Link::Silent);
    let mut dialler = TcpStream::connect(pair.proxy.address()).await.expect("the port is open");
    dialler.write_all(b"patience").await.expect("buffered");
    timeout(QUIET, pair.listener.accept()).await.expect_err("nobody comes through");
    pair.proxy.heal();
    let (listened, _) =
        timeout(DEADLINE, pair.listener.accept()).await.expect("passed on").expect("accepted");
    pair.listened = listened;
    hears(&mut pair.listened, b"patience").await;
}

#[tokio::test]
async fn reset_link_ends_running_and_new_connections() {
    let mut pair = Pair::connect().await;
    pair.proxy.set(Direction::ToListener, Link::Reset);
    is_reset(&mut pair.dialler).await;
    is_reset(&mut pair.listened).await;
    let mut dialler = TcpStream::connect(pair.proxy.address()).await.expect("the port is open");
    is_reset(&mut dialler).await;
}

#[tokio::test]
async fn reset_ends_a_connection_whose_reader_is_stuck() {
    let mut pair = Pair::connect().await;
    // Nobody reads at the listener: the proxy blocks in its write.
    let flood = vec![7; 1 << 20];
    while timeout(QUIET, pair.dialler.write_all(&flood)).await.is_ok() {}
    pair.proxy.set_both(Link::Reset);
    let error = timeout(DEADLINE, async {
        loop {
            if let Err(error) = pair.dialler.write_all(&flood).await {
                return error;
            }
        }
    });
    error.await.expect("the connection ends in time");
}

#[tokio::test]
async fn delayed_link_delivers_later() {
    let mut pair = Pair::connect().await;
    let delay = Duration::from_millis(80);
    pair.proxy.set(Direction::ToListener, Link::Delayed(delay));
    let begin = Instant::now();
    pair.dialler.write_all(b"slow").await.expect("connected");
    hears(&mut pair.listened, b"slow").await;
    assert!(begin.elapsed() >= delay);
}

#[tokio::test]
async fn dropped_proxy_closes_port_and_connections() {
    let mut pair = Pair::connect().await;
    let address: SocketAddr = pair.proxy.address();
    drop(pair.proxy);
    let ended = timeout(DEADLINE, pair.dialler.read(&mut [0])).await.expect("the connection ends in time");
    assert!(matches!(ended, Ok(0) | Err(_)));
    let refused = timeout(DEADLINE, async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    refused.await.expect("the port is closed in time");
}

#[tokio::test]
async fn target_that_is_down_resets_the_dialler() {
    // It has the port and does not listen: nobody else can.
    let deaf = TcpSocket::new_v4().expect("a socket");
    deaf.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a port");
    let proxy = Proxy::start(deaf.local_addr().expect("bound")).await.expect("a port");
    let mut dialler = TcpStream::connect(proxy.address()).await.expect("the proxy listens");
    is_reset(&mut dialler).await;
}
