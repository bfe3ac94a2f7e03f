//! The HTTP port over real sockets: what it answers, and whom it survives.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::FutureExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{MAX_CONNECTIONS, MAX_REQUEST_BYTES, Observed, Verdict, serve};
use crate::metrics::Metrics;

const DEADLINE: Duration = Duration::from_secs(30);

struct Node {
    ready: Mutex<Verdict>,
    metrics: Metrics,
}

impl Observed for Node {
    fn live(&self) -> Verdict {
        Verdict::Ok
    }

    fn ready(&self) -> Verdict {
        self.ready.lock().expect("not poisoned").clone()
    }

    fn metrics(&self) -> String {
        self.metrics.encode()
    }
}

/// Runs `test` against a served node, in one task: the server ends with it.
async fn against(test: impl AsyncFnOnce(SocketAddr, &Node)) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("any port");
    let address = listener.local_addr().expect("bound");
    let ready = Mutex::new(Verdict::No("the shard map is not known yet".to_owned()));
    let node = Arc::new(Node { ready, metrics: Metrics::new() });
    tokio::select! {
        () = serve(listener, Arc::clone(&node)) => panic!("the server ended"),
        ended = tokio::time::timeout(DEADLINE, test(address, &node)) => {
            ended.expect("every request is answered within the deadline");
        }
    }
}

async fn send(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    // A server that has heard enough may close before it has read all.
    let _closed_early = stream.write_all(bytes).await;
    let mut reply = Vec::new();
    let _reset_after_reply = stream.read_to_end(&mut reply).await;
    String::from_utf8_lossy(&reply).into_owned()
}

async fn get(address: SocketAddr, path: &str) -> String {
    send(address, format!("GET {path} HTTP/1.1\r\nhost: n1\r\n\r\n").as_bytes()).await
}

fn status(reply: &str) -> &str {
    reply.split(' ').nth(1).unwrap_or("no reply")
}

#[tokio::test]
async fn probes_are_answered_with_a_reason() {
    against(async |address, node| {
        assert!(get(address, "/livez").await.ends_with("\r\n\r\nok\n"));
        let reply = get(address, "/readyz?verbose").await;
        assert_eq!(status(&reply), "503");
        assert!(reply.ends_with("\r\n\r\nthe shard map is not known yet\n"), "{reply}");
        *node.ready.lock().expect("not poisoned") = Verdict::Ok;
        assert_eq!(status(&get(address, "/readyz").await), "200");
    })
    .await;
}

#[tokio::test]
async fn metrics_are_shown_in_openmetrics() {
    against(async |address, node| {
        node.metrics.node.leaderships.set(3);
        let reply = get(address, "/metrics").await;
        assert!(reply.contains("content-type: application/openmetrics-text; version=1.0.0"), "{reply}");
        assert!(reply.contains("\nkv_node_leaderships 3\n"), "{reply}");
        assert!(reply.ends_with("# EOF\n"), "{reply}");
    })
    .await;
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    against(async |address, _| {
        assert_eq!(status(&get(address, "/").await), "404");
        assert_eq!(
            status(&send(address, b"POST /livez HTTP/1.1\r\nhost: n1\r\ncontent-length: 0\r\n\r\n").await),
            "405"
        );
        assert_eq!(status(&send(address, b"HEAD /livez HTTP/1.1\r\nhost: n1\r\n\r\n").await), "200");
    })
    .await;
}

#[tokio::test]
async fn garbage_is_cut_off_and_harms_nobody() {
    against(async |address, _| {
        let endless = [b"GET /".as_slice(), &vec![b'a'; 4 * MAX_REQUEST_BYTES]].concat();
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
        for bytes in [b"\0\xff\x16\x03\x01\r\n\r\n".as_slice(), preface, &endless] {
            let reply = send(address, bytes).await;
            assert_ne!(status(&reply), "200", "{reply}");
            assert_eq!(status(&get(address, "/livez").await), "200");
        }
    })
    .await;
}

#[tokio::test]
async fn idle_connections_do_not_keep_probes_out() {
    against(async |address, _| {
        let mut idle = Vec::new();
        for _ in 0..3 * MAX_CONNECTIONS {
            idle.push(TcpStream::connect(address).await.expect("connected"));
            assert_eq!(status(&get(address, "/livez").await), "200");
        }
        let mut closed = 0;
        for stream in &mut idle {
            let mut byte = [0];
            closed += usize::from(matches!(stream.read(&mut byte).now_or_never(), Some(Ok(0))));
        }
        assert!(closed >= MAX_CONNECTIONS, "the oldest were closed: {closed}");
    })
    .await;
}
