//! Frames between nodes: two long-lived streams to every other node, shared by all groups.
//!
//! Down the sending side: [`network`] (Raft's requests) and [`Transport::call`] (everything else) put requests on a
//! `link`, which numbers them ([`session`]), remembers them ([`pending`]), queues them by urgency ([`outbox`]) and writes
//! all that is ready as one batch to the connection that the [`conduit`] made. Answers come back on the same stream.
//!
//! Up the receiving side: [`conduit::Accept`] takes a connection, `accepted` checks whose it is, `dispatch` hands each frame
//! to the replica, the transfer or the [`Handler`] that it is for, and `answers` collects what they say.
//!
//! What it promises: nothing on a stream waits for a slow replica, every bound refuses one request and no other, and
//! whoever gets no answer learns whether the request was surely not sent. What it does not do: it decides nothing about
//! groups, resends nothing, and authenticates nobody.

mod accepted;
mod answers;
mod append_stream;
mod backoff;
pub mod call;
pub mod codec;
mod codec_error;
pub mod conduit;
mod crew;
pub mod dial;
mod dispatch;
mod handler;
mod held;
pub mod identity;
mod inbox;
pub mod limits;
mod link;
pub mod listen;
pub mod loopback;
pub mod network;
pub mod outbox;
pub mod pace;
mod peers;
pub mod pending;
mod pulse;
mod randomness;
mod replica;
pub mod session;
pub mod snapshot;
mod snapshot_in;
mod snapshot_out;
mod socket;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kv_proto::peer::v1::{DiskLevel, frame::Body};
use kv_topology::{GroupId, NodeId, ReplicaId};
use openraft::{Raft, storage::RaftStateMachine};
use openraft_rt::AsyncRuntime;
use tokio::{sync::Semaphore, time::Instant};

use self::{
    accepted::{Acceptor, Connections},
    conduit::{Accept, Conduit},
    dispatch::Shared,
    identity::IdentityCell,
    link::{Address, Link, Request},
    outbox::Class,
    peers::Peers,
    replica::{RaftReplica, Registry},
    session::StreamNumber,
    snapshot_out::Outgoing,
};
pub use self::{
    call::{CallError, NotSent},
    conduit::Lane,
    handler::Handler,
    identity::Identity,
    limits::Limits,
    network::{Network, NetworkFactory},
    peers::{PeerCounters, RoundTrip},
    randomness::Randomness,
    snapshot::{NoSnapshots, SnapshotIn, SnapshotInFactory, SnapshotOut},
};
use crate::{
    group::type_config::TypeConfig,
    metrics::LinkMetrics,
    runtime::{Spawner, Tasks},
};

/// What a transport needs.
pub struct Dependencies<C, H> {
    /// Cluster and node, if they are known; see [`Transport::identify`].
    pub identity: Option<Identity>,
    /// Makes connections to other nodes.
    pub conduit: C,
    /// Answers what is not Raft's own.
    pub handler: H,
    /// Spawns; the transport's tasks end with its owner.
    pub spawner: Spawner,
    /// For jitter and session numbers.
    pub randomness: Randomness,
    /// Bounds.
    pub limits: Limits,
    /// What it feeds.
    pub metrics: LinkMetrics,
}

/// The transport of a node: a handle, cheap to clone. Its tasks run until [`Transport::stop`], or until the owner of the
/// spawner stops.
#[derive(Clone)]
pub struct Transport(Arc<Inner>);

struct Inner {
    identity: Arc<IdentityCell>,
    conduit: Arc<dyn Conduit>,
    spawner: Spawner,
    tasks: Tasks,
    randomness: Randomness,
    limits: Arc<Limits>,
    peers: Arc<Peers>,
    registry: Arc<Registry>,
    connections: Arc<Connections>,
    outgoing: Outgoing,
    acceptor: Arc<Acceptor>,
    links: Mutex<Links>,
    metrics: LinkMetrics,
}

#[derive(Default)]
struct Links {
    stopped: bool,
    open: BTreeMap<(NodeId, Lane), (Arc<Link>, Tasks)>,
}

/// Life.
impl Transport {
    /// A transport that dials when it is first asked, and accepts what [`Transport::acceptor`] is given.
    pub fn start<C: Conduit, H: Handler>(dependencies: Dependencies<C, H>) -> Self {
        let Dependencies { identity, conduit, handler, spawner, randomness, limits, metrics } = dependencies;
        let tasks = spawner.scope("transport");
        let spawner = tasks.spawner();
        let cell = Arc::new(IdentityCell::default());
        if let Some(identity) = identity {
            cell.set(&identity);
        }
        let (limits, peers) = (Arc::new(limits), Arc::new(Peers::measured(&metrics)));
        let (registry, connections) = (Arc::new(Registry::default()), Arc::new(Connections::default()));
        let shared = Shared {
            metrics: metrics.clone(),
            limits: limits.clone(),
            registry: registry.clone(),
            handler: Arc::new(handler),
            snapshots_in: Arc::new(Semaphore::new(limits.snapshots_in)),
        };
        let acceptor = Arc::new(Acceptor {
            identity: cell.clone(),
            peers: peers.clone(),
            shared,
            spawner: spawner.clone(),
            connections: connections.clone(),
        });
        let outgoing = Outgoing::new(&limits, metrics.transport.snapshot_sent_bytes.clone());
        let conduit = Arc::new(conduit);
        let links = Mutex::default();
        Self(Arc::new(Inner {
            identity: cell,
            conduit,
            spawner,
            tasks,
            randomness,
            limits,
            peers,
            registry,
            connections,
            outgoing,
            acceptor,
            links,
            metrics,
        }))
    }

    /// Tells who this node is, once it knows. Before, it refuses all frames and sends none. False: it is somebody else
    /// already.
    pub fn identify(&self, identity: &Identity) -> bool {
        self.0.identity.set(identity)
    }

    /// Takes the connections that other nodes dial.
    pub fn acceptor(&self) -> Arc<dyn Accept> {
        self.0.acceptor.clone()
    }

    /// Ends all tasks and connections. Every request that waits is told what became of it; later ones are refused.
    pub fn stop(&self) {
        let open = {
            let mut links = self.links();
            links.stopped = true;
            std::mem::take(&mut links.open)
        };
        self.0.tasks.stop();
        self.0.connections.close();
        self.0.registry.clear();
        open.values().for_each(|(link, _)| link.stop());
    }

    /// Ends both links to a node that left the cluster.
    pub fn forget(&self, node: NodeId) {
        let mut links = self.links();
        let ended = [links.open.remove(&(node, Lane::Raft)), links.open.remove(&(node, Lane::Bulk))];
        drop(links);
        ended.iter().flatten().for_each(|(link, _)| link.stop());
    }
}

/// Replicas.
impl Transport {
    /// Makes a local replica reachable. `snapshots` stages what it receives.
    pub fn register<RT, SM, F>(
        &self,
        group: GroupId,
        replica: ReplicaId,
        raft: Raft<TypeConfig<RT>, SM>,
        snapshots: Arc<F>,
    ) where
        RT: AsyncRuntime,
        SM: RaftStateMachine<TypeConfig<RT>>,
        F: SnapshotInFactory<Data = SM::SnapshotData>,
    {
        self.0.registry.insert(group, replica, Arc::new(RaftReplica { id: replica, raft, snapshots }));
    }

    /// Whether replicas of this node let themselves be made the leader by another one, from now on. They do until they are
    /// told.
    pub fn set_leaderships(&self, taken: bool) {
        self.0.registry.set_leaderships(taken);
    }

    /// Answers `Removed` for this replica from now on. Streams and transfers to it that are under way end.
    pub fn unregister(&self, replica: ReplicaId) {
        self.0.registry.remove(replica);
    }
}

/// Requests.
impl Transport {
    /// Asks another node, and waits for its answer until the deadline.
    ///
    /// # Errors
    /// [`CallError`] says whether the request may have happened.
    pub async fn call(
        &self,
        node: NodeId,
        lane: Lane,
        group: GroupId,
        body: Body,
        deadline: Instant,
    ) -> Result<Body, CallError> {
        let address = Address { group: group.0, ..Address::default() };
        self.ask_until((node, lane), address, Class::Request, body, deadline).await
    }

    /// The same for a request of Raft.
    async fn ask(
        &self,
        to: (NodeId, Lane),
        address: Address,
        class: Class,
        body: Body,
        time: Duration,
    ) -> Result<Body, CallError> {
        self.ask_until(to, address, class, body, Instant::now() + time).await
    }

    async fn ask_until(
        &self,
        (node, lane): (NodeId, Lane),
        address: Address,
        class: Class,
        body: Body,
        deadline: Instant,
    ) -> Result<Body, CallError> {
        let link = self.link(node, lane)?;
        let answer = link.ask(Request { address, stream: StreamNumber::ALONE, class, deadline, body })?;
        // The link answers every request; it drops one only when its tasks were ended with the node.
        answer.await.unwrap_or(Err(CallError::OutcomeUnknown))
    }

    /// The link to a node, dialled when it is first asked for.
    fn link(&self, node: NodeId, lane: Lane) -> Result<Arc<Link>, CallError> {
        let identity = self.0.identity.get().ok_or(CallError::NotSent(NotSent::NoClusterYet))?;
        if identity.node == node {
            return Err(CallError::NotSent(NotSent::OwnNode));
        }
        let mut links = self.links();
        if links.stopped {
            return Err(CallError::NotSent(NotSent::Stopped));
        }
        let (link, _) = links.open.entry((node, lane)).or_insert_with(|| self.open(identity, node, lane));
        Ok(link.clone())
    }

    fn open(&self, identity: &Identity, node: NodeId, lane: Lane) -> (Arc<Link>, Tasks) {
        let inner = &self.0;
        let (peer, first_session) = (inner.peers.peer(node), inner.randomness.next());
        let link = Link::new((node, lane), identity.clone(), inner.limits.clone(), peer, first_session);
        let link = Arc::new(link);
        let tasks = inner.spawner.scope("peer link");
        tasks.spawner().spawn("peer link", link.clone().run(inner.conduit.clone(), inner.randomness.clone()));
        (link, tasks)
    }

    fn limits(&self) -> &Arc<Limits> {
        &self.0.limits
    }

    fn outgoing(&self) -> &Outgoing {
        &self.0.outgoing
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.0.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Status.
impl Transport {
    /// When something last arrived from a node, on any stream.
    pub fn heard_from(&self, node: NodeId) -> Option<Instant> {
        self.0.peers.known(node)?.heard()
    }

    /// The round trip to a node, once it was measured.
    pub fn round_trip(&self, node: NodeId) -> Option<RoundTrip> {
        self.0.peers.known(node)?.round_trip()
    }

    /// Fills the gauges that are not kept all the time.
    pub fn measure(&self) {
        let (mut connected, mut queued) = (0, 0);
        for ((_, lane), (link, _)) in &self.links().open {
            connected += i64::from(*lane == Lane::Raft && link.is_up());
            queued += link.queued();
        }
        self.0.metrics.transport.connected_nodes.set(connected);
        self.0.metrics.outbox.length.set(i64::try_from(queued).unwrap_or(i64::MAX));
    }

    /// Tells every other node, with all that is sent to it, how full this node's disk is. From
    /// [`DiskLevel::DiskHard`] on, proposals and snapshots of other leaders are refused.
    pub fn set_disk_level(&self, level: DiskLevel) {
        self.0.peers.set_own_disk(level);
    }

    /// Tells every other node, with all that is sent to it, of how many recoveries of meta this node knows. From now on steps of
    /// a controller that knows of fewer are refused.
    pub fn set_recoveries(&self, recoveries: u64) {
        self.0.peers.set_own_recoveries(recoveries);
    }

    /// A node that knows of a recovery of meta of which this node has not heard.
    pub fn ahead(&self) -> Option<NodeId> {
        self.0.peers.ahead()
    }

    /// How full a node's disk was when it was last heard; enough, when it never was.
    pub fn disk_level(&self, node: NodeId) -> DiskLevel {
        self.0.peers.known(node).map_or(DiskLevel::DiskEnough, |peer| peer.disk())
    }

    /// Counters of every node that was ever talked to.
    pub fn counters(&self) -> Vec<(NodeId, PeerCounters)> {
        self.0.peers.list().into_iter().map(|(node, peer)| (node, peer.counters())).collect()
    }
}
