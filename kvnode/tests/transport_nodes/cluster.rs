//! Nodes with a transport and one replica each.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use kv_proto::peer::v1::{Frame, ReadIndexRequest, ReadIndexResponse, Refusal, WriteRequest, frame::Body};
use kv_topology::{GroupId, NodeId, ReplicaId};
use kvnode::{
    group::type_config::{Member, Proposal, TokioConfig},
    runtime::Tasks,
    transport::{
        Dependencies, Handler, Identity, Limits, NetworkFactory, Randomness, Transport,
        conduit::Conduit,
        dial::{GrpcConduit, Resolve},
        listen,
        loopback::Loopback,
    },
};
use openraft::async_runtime::WatchReceiver;
use openraft::{
    Config, Raft, ServerState, SnapshotPolicy,
    errors::{ClientWriteError, RaftError},
};
use openraft_rt_tokio::TokioRuntime;
use rand::{SeedableRng, rngs::SmallRng};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep, timeout},
};

use crate::memory::{Log, Machine, Snapshots};

pub type Group = Raft<TokioConfig, Machine>;

pub const GROUP: GroupId = GroupId(7);
pub const CLUSTER: &str = "the cluster";

/// The shard id that [`Echo`] never answers.
pub const SILENCE: u32 = u32::MAX;

/// Answers the index of a read with the shard's number.
#[derive(Default)]
pub struct Echo;

impl Handler for Echo {
    async fn handle(&self, _: NodeId, frame: Frame) -> Body {
        match frame.body {
            Some(
                Body::ReadIndexRequest(ReadIndexRequest { shard_id: SILENCE, .. })
                | Body::WriteRequest(WriteRequest { shard_id: SILENCE, .. }),
            ) => std::future::pending().await,
            Some(Body::ReadIndexRequest(ReadIndexRequest { shard_id, .. })) => {
                Body::ReadIndexResponse(ReadIndexResponse { index: shard_id.into(), term: 1 })
            }
            _ => Body::Refusal(Refusal::default()),
        }
    }
}

pub fn question(shard_id: u32) -> Body {
    Body::ReadIndexRequest(ReadIndexRequest { shard_id, group_id: 0 })
}

pub struct Node {
    pub id: NodeId,
    pub tasks: Tasks,
    pub transport: Transport,
}

impl Node {
    /// A node of the cluster; `identity` of the cluster's name and the node when it is given.
    pub fn new(id: u64, identity: Option<&str>, conduit: impl Conduit, limits: Limits) -> Self {
        let tasks = Tasks::new("node");
        let id = NodeId(id);
        let transport = Transport::start(Dependencies {
            identity: identity.map(|cluster| Identity { cluster_id: cluster.into(), node: id }),
            conduit,
            handler: Echo,
            spawner: tasks.spawner(),
            randomness: Randomness::new(SmallRng::seed_from_u64(id.0)),
            limits,
            metrics: Default::default(),
        });
        Self { id, tasks, transport }
    }

    pub fn on(network: &Loopback, id: u64, limits: Limits) -> Self {
        let node = Self::new(id, Some(CLUSTER), network.conduit(NodeId(id)), limits);
        network.attach(node.id, node.transport.acceptor());
        node
    }

    pub async fn replica(&self, group: GroupId, replica: ReplicaId, config: Arc<Config>) -> Replica {
        let (log, machine, snapshots) = (Log::default(), Machine::default(), Arc::new(Snapshots::default()));
        let network: NetworkFactory<TokioRuntime, Snapshots> =
            NetworkFactory::new(self.transport.clone(), group, replica, snapshots.clone());
        let raft = Raft::new(replica.0, config, network, log.clone(), machine.clone()).await.unwrap();
        self.transport.register(group, replica, raft.clone(), snapshots.clone());
        Replica { id: replica, node: self.id, raft, log, machine, snapshots }
    }
}

pub struct Replica {
    pub id: ReplicaId,
    pub node: NodeId,
    pub raft: Group,
    pub log: Log,
    pub machine: Machine,
    pub snapshots: Arc<Snapshots>,
}

pub fn config() -> Arc<Config> {
    timed(150, 500)
}

/// For real time: a machine that stands still for seconds must not cost a leader.
pub fn patient() -> Arc<Config> {
    timed(500, 6_000)
}

/// Milliseconds between heartbeats, and until an election at least.
fn timed(heartbeat_interval: u64, election_timeout_min: u64) -> Arc<Config> {
    let config = Config {
        heartbeat_interval,
        election_timeout_min,
        election_timeout_max: election_timeout_min * 9 / 5,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        max_payload_entries: 64,
        enable_pre_vote: Some(true),
        ..Config::default()
    };
    Arc::new(config.validate().unwrap())
}

/// Three nodes or more with one group.
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub replicas: Vec<Replica>,
}

impl Cluster {
    pub async fn over(network: &Loopback, size: u64, limits: &Limits) -> Self {
        let nodes: Vec<Node> = (1..=size).map(|id| Node::on(network, id, limits.clone())).collect();
        Self::with(nodes, &config()).await
    }

    pub async fn with(nodes: Vec<Node>, config: &Arc<Config>) -> Self {
        let mut replicas = vec![];
        for node in &nodes {
            replicas.push(node.replica(GROUP, ReplicaId(node.id.0 + 10), config.clone()).await);
        }
        let members: BTreeMap<u64, Member> =
            replicas.iter().map(|replica| (replica.id.0, Member { node: replica.node.0 })).collect();
        replicas[0].raft.initialize(members).await.unwrap();
        Self { nodes, replicas }
    }

    /// The leader that a majority follows.
    pub async fn leader(&self) -> &Replica {
        self.leader_among(&self.replicas.iter().map(|replica| replica.id).collect::<Vec<_>>()).await
    }

    pub async fn leader_among(&self, ids: &[ReplicaId]) -> &Replica {
        let leader = || {
            let mut replicas = self.replicas.iter().filter(|replica| ids.contains(&replica.id));
            replicas.find(|replica| {
                let metrics = replica.raft.metrics();
                let metrics = metrics.borrow_watched();
                metrics.state == ServerState::Leader
                    && ids.iter().all(|id| {
                        self.at(*id).raft.metrics().borrow_watched().current_leader == Some(replica.id.0)
                    })
            })
        };
        eventually("one leader that all follow", leader).await
    }

    pub fn at(&self, id: ReplicaId) -> &Replica {
        self.replicas.iter().find(|replica| replica.id == id).unwrap()
    }

    pub fn others(&self, leader: ReplicaId) -> Vec<ReplicaId> {
        self.replicas.iter().map(|replica| replica.id).filter(|id| *id != leader).collect()
    }

    /// Waits until all of them have applied exactly what the first has, and returns it.
    pub async fn agree(&self, proposals: usize) -> Vec<Bytes> {
        eventually("all replicas at the same state", || {
            let states: Vec<_> =
                self.replicas.iter().map(|replica| replica.machine.state().proposals).collect();
            let all = states.iter().all(|state| state.len() >= proposals && *state == states[0]);
            all.then(|| states[0].clone())
        })
        .await
    }
}

/// Whether a proposal was acknowledged within 5 s.
pub async fn write(raft: &Group, bytes: impl Into<Bytes>) -> bool {
    write_within(Duration::from_secs(5), raft, bytes).await
}

/// Whether a proposal was acknowledged in time. A new leader refuses for a few milliseconds: it is asked again.
pub async fn write_within(time: Duration, raft: &Group, bytes: impl Into<Bytes>) -> bool {
    let proposal = Proposal(bytes.into());
    let writing = async {
        loop {
            match raft.client_write(proposal.clone()).await {
                Ok(_) => return true,
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) if raft.is_leader() => {
                    sleep(Duration::from_millis(5)).await;
                }
                Err(_) => return false,
            }
        }
    };
    timeout(time, writing).await.unwrap_or(false)
}

/// Waits for a condition, at most 30 s, and says what it waited for.
pub async fn eventually<T>(what: &str, condition: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Fails when something takes longer than it may.
pub async fn within<F: Future>(seconds: u64, what: &str, future: F) -> F::Output {
    timeout(Duration::from_secs(seconds), future).await.unwrap_or_else(|_| panic!("too slow: {what}"))
}

/// Addresses of nodes that listen on ports that the system chose.
#[derive(Clone, Default)]
pub struct Addresses(pub Arc<Mutex<BTreeMap<NodeId, String>>>);

impl Resolve for Addresses {
    fn peer_address(&self, node: NodeId) -> Option<String> {
        self.0.lock().unwrap().get(&node).cloned()
    }
}

impl Addresses {
    /// A node that dials these addresses.
    pub fn dialler(&self, id: u64, cluster: &str, limits: Limits) -> Node {
        Node::new(id, Some(cluster), GrpcConduit::new(Arc::new(self.clone()), limits.clone()), limits)
    }

    /// Opens the node's peer port.
    pub async fn listen(&self, node: &Node, limits: Limits) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.0.lock().unwrap().insert(node.id, listener.local_addr().unwrap().to_string());
        let accept = node.transport.acceptor();
        node.tasks.spawner().spawn("peer port", async move {
            listen::serve(listener, accept, limits).await.unwrap();
        });
    }
}
