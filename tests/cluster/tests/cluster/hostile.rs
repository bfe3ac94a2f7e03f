//! A node that may open few files, and somebody who floods all of its ports.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use kv_cluster_tests::{Cluster, Load, LoadPlan, Plan, api::Read, metrics::ask, seed, wait_until};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
};

/// What a container runtime or a shell gives when nobody asks for more.
const OPEN_FILES: u32 = 1_024;
/// Where the flood comes from; nodes and good clients are elsewhere.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
/// More than a node has descriptors, all ports together.
const SOCKETS: usize = 500;
/// Streams that are opened on each.
const STREAMS: u32 = 100;
/// For good clients to be served beside a flood: long before the node gives up on those that do not answer its PINGs,
/// which is after 40 s.
const SOON: Duration = Duration::from_secs(20);

/// HTTP/2 is spoken: the preface, and SETTINGS.
fn greeting() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat()
}

/// The same, and requests that never come to an end: streamed ones and others.
fn requests() -> Vec<u8> {
    let mut said = greeting();
    for number in 0..STREAMS {
        let block = head(if number % 2 == 0 { "/kv.v1.Kv/Upload" } else { "/kv.v1.Kv/Put" });
        said.extend([0, 0, u8::try_from(block.len()).expect("short"), 1, 4]);
        said.extend((number * 2 + 1).to_be_bytes());
        said.extend(&block);
    }
    said
}

/// The headers of a request, as literals without an index; RFC 7541, 6.2.2.
fn head(path: &str) -> Vec<u8> {
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("short"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((ATTACKER, 0).into())?;
    socket.connect(to).await
}

/// Opens sockets, says the same on each, and leaves them open. Those that are refused stay, too, as the attacker's end.
async fn flood(to: SocketAddr, sockets: usize, said: &[u8]) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..sockets {
        let mut socket = connect(to).await.expect("a port takes connections, if only to close them");
        // The node may have closed it already.
        drop(socket.write_all(said).await);
        held.push(socket);
    }
    held
}

/// This node takes and answers requests of good clients.
async fn serves(cluster: &Cluster, node: usize) {
    let served = wait_until(format!("puts and gets at node {node}"), SOON, || async {
        let mut api = cluster.api(node);
        for number in 0..20 {
            let key = format!("good/{number}");
            api.put(&key, "v".into(), None).await.map_err(|status| status.to_string())?;
            api.get(&key, Read::Linearizable).await.map_err(|status| status.to_string())?;
        }
        Ok::<_, String>(())
    });
    served.await.unwrap_or_else(|error| panic!("{error}"));
}

/// This process holds more than the node may.
fn open_many_files() {
    let Rlimit { current: _, maximum } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("the soft limit may be raised");
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_all_ports_of_a_node_with_few_descriptors_harm_nobody() {
    open_many_files();
    let mut random = seed::generator("floods_of_all_ports_of_a_node_with_few_descriptors_harm_nobody");
    let plan = Plan::nodes(3).with_open_files(OPEN_FILES).with_flag("--flush-interval", "1s");
    let Some(mut cluster) = Cluster::start(plan).await else { return };
    let ports = cluster.nodes[0].ports;
    let load = Load::start(LoadPlan::of_all_kinds(), cluster.addresses(), &mut random);
    load.must_progress(50).await;

    let garbage = vec![0xa5; 4_096];
    let mut held = Vec::new();
    for (port, said) in [
        (ports.client_address(), requests()),
        (ports.peer_address(), greeting()),
        (ports.http_address(), b"GET /livez HT".to_vec()),
    ] {
        held.extend(flood(port, SOCKETS, &said).await);
        held.extend(flood(port, SOCKETS / 10, &garbage).await);
        let live = ask(ports.http_address(), "/livez").expect("an answer of the HTTP port");
        assert!(live.starts_with("HTTP/1.1 200"), "{live}");
        serves(&cluster, 0).await;
        load.must_progress(200).await;
    }
    let shown = ask(ports.http_address(), "/metrics").expect("an answer of the HTTP port");
    for limit in ["connections", "requests", "streams"] {
        let series = format!("kv_api_refused_total{{limit=\"{limit}\"}} ");
        let refused = shown.lines().find_map(|line| line.strip_prefix(&series));
        assert!(
            refused.is_some_and(|refused| refused != "0"),
            "the flood met no limit of {limit}: {refused:?}"
        );
    }
    // Another node finds its way through the flooded port of nodes.
    cluster.nodes[1].kill();
    cluster.nodes[1].start();
    cluster.wait_whole().await;
    load.must_progress(200).await;
    drop(held);
    load.finish().await;
    for node in &mut cluster.nodes {
        assert!(node.is_running(), "{} has ended", node.name);
        let log = node.log_tail(usize::MAX);
        assert!(!log.contains("Too many open files"), "{} ran out of descriptors:\n{log}", node.name);
    }
}
