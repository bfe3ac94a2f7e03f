//! A cluster of pretence: several nodes in this process, on ports that the system chose, over one map in memory.
//!
//! Each node serves `kv.v1` and `admin.v1` as a real one would; a script per node makes its next calls fail in a
//! stated way. What every node was asked is recorded.

#![allow(dead_code, reason = "each test binary uses a part of it")]

mod admin;
mod batch;
mod kv;
pub mod membership;
pub mod recovery;
pub mod script;
pub mod sessions;
mod small;
mod store;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

pub use batch::Streams;
use futures::StreamExt as _;
use kv_proto::{
    admin::v1::{admin_server::AdminServer, recovery_server::RecoveryServer},
    kv::v1::kv_server::KvServer,
};
use kv_topology::{KeyspaceId, Slot};
use membership::Membership;
use script::Fault;
pub use sessions::Sessions;
use store::Store;
use tokio::{
    net::{TcpListener, TcpSocket},
    runtime::{Builder, Runtime},
    sync::Notify,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

/// Connections that wait to be taken.
const BACKLOG: u32 = 1024;

/// The cluster. Dropping it stops the nodes.
pub struct FakeCluster {
    pub shared: Arc<Shared>,
    /// Bound, and never listening: so that nobody else gets a port while its node is away.
    ports: Vec<TcpSocket>,
    connections: Connections,
    /// Each node has a runtime of its own, so that a killed one takes its connections along.
    runtimes: Vec<Option<Runtime>>,
}

/// Bounds of connections.
#[derive(Clone, Copy, Default)]
pub struct Connections {
    /// They get a GOAWAY when they are so old.
    pub age: Option<Duration>,
    /// Calls of each that are under way at the same time.
    pub calls: Option<u32>,
}

/// What the nodes share.
pub struct Shared {
    state: Mutex<State>,
    addresses: Vec<SocketAddr>,
    /// Told after each change of the membership.
    pub changed: Notify,
}

/// The cluster's data and the test's wishes.
pub struct State {
    pub store: Store,
    pub epoch: u64,
    /// Node id of the leader of shard 1 (the lower half of the slots) and of shard 2.
    pub leaders: [u64; 2],
    /// Followers refuse writes and linearizable reads, with a hint, instead of forwarding them.
    pub strict: bool,
    /// Keys in a scan message, steps of a deletion.
    pub page_keys: usize,
    /// A call that scans ends after this many messages, with a token.
    pub pages_per_call: usize,
    /// Faults of each node, by node id from 1.
    scripts: Vec<VecDeque<Fault>>,
    /// (node id, method) of every call but of the status of a node and of the list of nodes. Operations on streams count like
    /// calls.
    pub calls: Vec<(u64, &'static str)>,
    /// Connections that all nodes together have taken.
    pub connections: usize,
    /// Messages of a scan, a download and a deletion that connections have taken, by method.
    pub taken: BTreeMap<&'static str, usize>,
    pub sessions: Sessions,
    pub streams: Streams,
    pub membership: Membership,
    /// For `admin.v1.Recovery`.
    pub disks: recovery::Disks,
}

impl FakeCluster {
    /// Starts `nodes` nodes. Node 1 leads everything.
    pub async fn start(nodes: usize) -> Self {
        Self::with_connections(nodes, Connections::default()).await
    }

    /// The same; connections get a GOAWAY when they are so old.
    pub async fn with_connections_of_age(nodes: usize, age: Option<Duration>) -> Self {
        Self::with_connections(nodes, Connections { age, ..Connections::default() }).await
    }

    /// The same with bounds of connections.
    #[allow(clippy::unused_async, reason = "needs a runtime: it spawns the servers")]
    pub async fn with_connections(nodes: usize, connections: Connections) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let ports: Vec<TcpSocket> = (0..nodes).map(|_| bound(any)).collect();
        let addresses = ports.iter().map(|port| port.local_addr().unwrap()).collect();
        let state = State {
            store: Store::default(),
            epoch: 1,
            leaders: [1, 1],
            strict: false,
            page_keys: 2,
            pages_per_call: usize::MAX,
            scripts: vec![VecDeque::new(); nodes],
            calls: Vec::new(),
            connections: 0,
            taken: BTreeMap::new(),
            sessions: Sessions::default(),
            streams: Streams::default(),
            membership: Membership::new(),
            disks: recovery::Disks::default(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), addresses, changed: Notify::new() });
        let runtimes = (0..nodes).map(|_| None).collect();
        let mut cluster = Self { shared, ports, connections, runtimes };
        for node in 1..=cluster.shared.nodes() {
            cluster.revive(node);
        }
        cluster
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    /// Changes the membership; whoever watches is told.
    pub fn change(&self, change: impl FnOnce(&mut Membership)) {
        let mut state = self.state();
        change(&mut state.membership);
        state.epoch += 1;
        drop(state);
        self.shared.changed.notify_waiters();
    }

    /// HOST:PORT of a node, by id from 1.
    pub fn address(&self, node: u64) -> String {
        self.shared.address(node)
    }

    /// All addresses, for a client.
    pub fn addresses(&self) -> String {
        let all: Vec<String> = self.shared.addresses.iter().map(ToString::to_string).collect();
        all.join(",")
    }

    /// The next calls of `kv.v1` at this node, and what administrators ask of it, fail like this, one after the other.
    pub fn script(&self, node: u64, faults: impl IntoIterator<Item = Fault>) {
        self.state().scripts[index(node)].extend(faults);
    }

    /// How often a method was called, at any node.
    pub fn count(&self, method: &str) -> usize {
        self.state().calls.iter().filter(|(_, called)| *called == method).count()
    }

    /// The nodes that a method was called at, in order.
    pub fn asked(&self, method: &str) -> Vec<u64> {
        self.state().calls.iter().filter(|(_, called)| *called == method).map(|(node, _)| *node).collect()
    }

    /// Stops a node: its connections break, and from some moment on its port refuses new ones.
    pub async fn kill(&mut self, node: u64) {
        let runtime = self.runtimes[index(node)].take().unwrap();
        runtime.shutdown_background();
        let deadline = Instant::now() + Duration::from_secs(5);
        while std::net::TcpStream::connect(self.shared.addresses[index(node)]).is_ok() {
            assert!(Instant::now() < deadline, "waited for the port to be closed");
            tokio::task::yield_now().await;
        }
    }

    /// Starts a node, again where it was killed: at the same port, with what the cluster has.
    pub fn revive(&mut self, node: u64) {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = {
            let _inside = runtime.enter();
            bound(self.shared.addresses[index(node)]).listen(BACKLOG).unwrap()
        };
        runtime.spawn(serve(listener, FakeNode { id: node, shared: self.shared.clone() }, self.connections));
        self.runtimes[index(node)] = Some(runtime);
    }

    /// The shard that a key belongs to.
    pub fn shard_of(&self, key: &str) -> u32 {
        shard_of(key.as_bytes())
    }

    /// A key whose slot belongs to this shard.
    pub fn key_of_shard(shard: u32) -> String {
        let keys = (0..).map(|number| format!("key-{number}"));
        keys.into_iter().find(|key| shard_of(key.as_bytes()) == shard).unwrap()
    }
}

impl Drop for FakeCluster {
    fn drop(&mut self) {
        for runtime in self.runtimes.iter_mut().filter_map(Option::take) {
            runtime.shutdown_background();
        }
    }
}

impl Shared {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn address(&self, node: u64) -> String {
        self.addresses[index(node)].to_string()
    }

    pub fn nodes(&self) -> u64 {
        self.addresses.len() as u64
    }
}

/// A socket at this address, where another one may be that does not listen.
fn bound(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

async fn serve(listener: TcpListener, node: FakeNode, connections: Connections) {
    let shared = node.shared.clone();
    let taken = TcpListenerStream::new(listener).inspect(move |_| shared.state().connections += 1);
    let mut builder = Server::builder().max_concurrent_streams(connections.calls);
    if let Some(age) = connections.age {
        builder = builder.max_connection_age(age);
    }
    let server = builder
        .add_service(KvServer::new(node.clone()))
        .add_service(AdminServer::new(node.clone()))
        .add_service(RecoveryServer::new(node))
        .serve_with_incoming(taken);
    server.await.unwrap();
}

/// A node of pretence.
#[derive(Clone)]
pub struct FakeNode {
    pub id: u64,
    pub shared: Arc<Shared>,
}

impl FakeNode {
    /// Records a call and takes the fault that is scripted for it.
    pub fn called(&self, method: &'static str) -> Option<Fault> {
        let mut state = self.shared.state();
        state.calls.push((self.id, method));
        state.scripts[index(self.id)].pop_front()
    }
}

/// Shard 1 has the lower half of the slots.
pub fn shard_of(key: &[u8]) -> u32 {
    if Slot::of(KeyspaceId(0), key).get() < 2048 { 1 } else { 2 }
}

fn index(node: u64) -> usize {
    usize::try_from(node).unwrap() - 1
}
