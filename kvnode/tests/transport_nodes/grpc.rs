//! The same over real gRPC on ports that the system chose, in real time: the machine may stand still for seconds.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use kv_proto::peer::v1::FrameBatch;
use kv_topology::{GroupId, NodeId};
use kvnode::{
    runtime::Tasks,
    transport::{
        CallError, Identity, Lane, Limits, NotSent,
        conduit::{Accept, Connection},
        listen,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket},
    time::{Instant, timeout},
};

use crate::cluster::{
    Addresses, CLUSTER, Cluster, Node, eventually, patient, question, within, write_within,
};

/// For anything that happens at once on a machine that does not stand still.
const PATIENCE: Duration = Duration::from_secs(30);

async fn ask(from: &Node, to: u64, seconds: u64) -> Result<(), CallError> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    from.transport.call(NodeId(to), Lane::Raft, GroupId(7), question(1), deadline).await.map(drop)
}

async fn nodes(addresses: &Addresses, size: u64) -> Vec<Node> {
    let mut nodes = vec![];
    for id in 1..=size {
        let node = addresses.dialler(id, CLUSTER, Limits::default());
        addresses.listen(&node, Limits::default()).await;
        nodes.push(node);
    }
    nodes
}

#[tokio::test]
async fn a_group_elects_replicates_and_outlives_its_leader() {
    let addresses = Addresses::default();
    let cluster = Cluster::with(nodes(&addresses, 3).await, &patient()).await;
    let leader = cluster.leader().await;
    let write = |raft, bytes: Vec<u8>| write_within(PATIENCE, raft, bytes);
    let writes =
        (0..1000).map(|number| write(&leader.raft, vec![7; if number % 100 == 0 { 600_000 } else { 100 }]));
    assert!(futures::future::join_all(writes).await.into_iter().all(|written| written));
    assert_eq!(cluster.agree(1000).await.len(), 1000);
    let node = cluster.nodes.iter().find(|node| node.id == leader.node).unwrap();
    node.transport.stop();
    node.tasks.stop();
    let next = cluster.leader_among(&cluster.others(leader.id)).await;
    assert!(write(&next.raft, b"goes on".to_vec()).await);
}

#[tokio::test]
async fn a_node_that_comes_back_elsewhere_is_found() {
    let addresses = Addresses::default();
    let mut both = nodes(&addresses, 2).await;
    ask(&both[0], 2, 30).await.unwrap();
    let gone = both.pop().unwrap();
    gone.transport.stop();
    gone.tasks.shutdown().await;
    let one = both.pop().unwrap();
    let back = addresses.dialler(2, CLUSTER, Limits::default());
    addresses.listen(&back, Limits::default()).await;
    let found = async {
        while ask(&one, 2, 5).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    within(40, "the node at its new address", found).await;
}

#[tokio::test]
async fn another_cluster_is_refused() {
    let addresses = Addresses::default();
    let stranger = addresses.dialler(1, "another cluster", Limits::default());
    addresses.listen(&stranger, Limits::default()).await;
    let native = addresses.dialler(2, CLUSTER, Limits::default());
    addresses.listen(&native, Limits::default()).await;
    for (from, to) in [(&stranger, 2), (&native, 1)] {
        assert_eq!(ask(from, to, 30).await, Err(CallError::NotSent(NotSent::Unreachable)));
    }
}

#[tokio::test]
async fn garbage_on_the_peer_port_harms_nobody() {
    let addresses = Addresses::default();
    let both = nodes(&addresses, 2).await;
    let address = addresses.0.lock().unwrap()[&NodeId(2)].clone();
    let mut noise = vec![];
    for number in 0..50_u8 {
        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        stream.write_all(&[number; 200]).await.unwrap();
        noise.push(stream);
    }
    within(40, "a question beside the noise", ask(&both[0], 2, 30)).await.unwrap();
}

/// A node whose peer port has so many sockets at most, each for so long without a word; and so many silent ones on it, of
/// which each ends with its socket.
async fn beset(sockets: usize, connect: Duration, silent: usize) -> (Node, Addresses, Silence) {
    let addresses = Addresses::default();
    let limits = Limits { sockets, connect, ..Limits::default() };
    let node = addresses.dialler(2, CLUSTER, limits.clone());
    addresses.listen(&node, limits).await;
    let address = addresses.0.lock().unwrap()[&NodeId(2)].clone();
    let silence = Silence::new();
    for _ in 0..silent {
        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        silence.push(
            async move {
                // The server's own preface may come first. An error is an end too.
                stream.read_to_end(&mut vec![]).await.ok();
            }
            .boxed(),
        );
    }
    (node, addresses, silence)
}

type Silence = FuturesUnordered<BoxFuture<'static, ()>>;

#[tokio::test]
async fn silent_sockets_on_the_peer_port_are_bounded_and_keep_nobody_out() {
    // Those beyond the bound are closed at once: one address holds half of the places.
    let (_node, _addresses, mut silence) = beset(8, Duration::from_secs(600), 40).await;
    within(30, "the end of sockets beyond the bound", silence.by_ref().take(36).collect::<Vec<_>>()).await;
    let more = timeout(Duration::from_millis(200), silence.next()).await;
    assert!(more.is_err(), "those within the bound have time to say something");

    // Those within it when nothing was said on them.
    let (_node, addresses, silence) = beset(8, Duration::from_millis(300), 40).await;
    within(30, "the end of all silent sockets", silence.collect::<Vec<_>>()).await;
    let other = addresses.dialler(1, CLUSTER, Limits::default());
    let found = async {
        while ask(&other, 2, 5).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    within(40, "a node beside silent sockets", found).await;
}

/// They greet in HTTP/2 and could stay until they miss a PING, 20 s later.
#[tokio::test]
async fn sockets_of_one_address_on_the_peer_port_leave_places_to_others() {
    let addresses = Addresses::default();
    let limits = Limits { sockets: 8, ..Limits::default() };
    let node = addresses.dialler(2, CLUSTER, limits.clone());
    addresses.listen(&node, limits).await;
    let address = addresses.0.lock().unwrap()[&NodeId(2)].parse().unwrap();
    let mut held = vec![];
    for _ in 0..40 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 3], 0).into()).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        // Those beyond the bound may be closed already. SETTINGS follow the preface.
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.ok();
        held.push(stream);
    }
    let other = addresses.dialler(1, CLUSTER, Limits::default());
    let found = async {
        while ask(&other, 2, 5).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    within(40, "a node beside those of another address", found).await;
}

/// Says hello, then nothing more: not even that it is alive.
struct Sleeper;

impl Accept for Sleeper {
    fn accept(&self, _: Lane, mut connection: Connection) {
        tokio::spawn(async move {
            let identity = Identity { cluster_id: CLUSTER.into(), node: NodeId(2) };
            let hello: FrameBatch = connection.inbound.next().await.unwrap().unwrap();
            connection.outbound.send(Ok(identity.seal(NodeId(hello.from_node), vec![]))).await.unwrap();
            std::future::pending::<()>().await;
        });
    }
}

#[tokio::test]
async fn a_stalled_peer_is_failed_by_the_idle_time_out() {
    let addresses = Addresses::default();
    let limits = Limits {
        keep_alive: Duration::from_millis(100),
        raft_idle: Duration::from_millis(400),
        ..Limits::default()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    addresses.0.lock().unwrap().insert(NodeId(2), listener.local_addr().unwrap().to_string());
    let tasks = Tasks::new("sleeper");
    tasks.spawner().spawn("peer port", async move {
        listen::serve(listener, Arc::new(Sleeper), Limits::default()).await.unwrap();
    });
    let one = addresses.dialler(1, CLUSTER, limits);
    let failed = async {
        loop {
            match ask(&one, 2, 300).await {
                // The stream was idle for too long before the question was written.
                Err(CallError::NotSent(_)) => {}
                other => return other,
            }
        }
    };
    assert_eq!(within(60, "the idle time-out", failed).await, Err(CallError::OutcomeUnknown));
    let breaks = || (one.transport.counters()[0].1.breaks >= 1).then_some(());
    eventually("the broken stream is counted", breaks).await;
}
