//! The part of a node that runs once the node belongs to a cluster: replicas, router, controller, their tasks.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use kv_proto::{
    disk::v1::{MetaRecord, NodeRecord},
    peer::v1::{ControlRequest, ControlResponse, Frame, Refusal, frame::Body},
};
use kv_topology::NodeId;
use tokio::{net::TcpListener, time::Instant};

use super::{
    compaction::{self, Retention},
    failures,
    forwarded::Forwarded,
    hand_over::HandOver,
    hands::NodeHands,
    host::{Host, HostError, Parts},
    map_feed::MapFeed,
    measure::Meters,
    memory::MemoryPlan,
    peers::OverTransport,
    points::{self, Points},
    reclaim,
    registration::{self, CutOff},
    replicas::LocalReplicas,
    requests::{Oneself, Requests},
    seams::NodeLogs,
    space::{self, Disk},
    stores::Stores,
    sweep::Sweep,
    ticks,
};
use crate::{
    config::{Config, Formation},
    group::settings::{Timing, raft_config},
    meta::controller::{Controller, Pace},
    metrics::GroupMetrics,
    recovery::watch,
    refusal,
    router::Router,
    runtime::{GridRuntime, Spawner, open_files::OpenFiles},
    transport::{
        Dependencies, Handler, Identity, Limits, Randomness, Transport,
        dial::{GrpcConduit, Resolve},
        listen,
    },
};

/// As many snapshots may share the rate of a node: two of moves, and of followers that lag.
const SNAPSHOTS_AT_ONCE: u64 = 4;

/// What a member is made of.
pub struct Ingredients {
    /// Cluster and node id.
    pub identity: Identity,
    /// This node as the registry shall know it.
    pub own: NodeRecord,
    /// What the node was told.
    pub config: Arc<Config>,
    /// Log and state.
    pub stores: Arc<Stores>,
    /// Who may use how much.
    pub memory: MemoryPlan,
    /// How full its disk is.
    pub disk: Arc<Disk>,
    /// What it feeds.
    pub meters: Meters,
    /// What is known of the cluster.
    pub maps: Arc<MapFeed>,
    /// Owns all tasks.
    pub spawner: Spawner,
    /// For sessions and jitter.
    pub randomness: Randomness,
    /// Told what this node passes.
    pub points: Points,
    /// Where other nodes dial; bound already.
    pub peer_listener: TcpListener,
    /// Answers for the node as a whole.
    pub oneself: Arc<dyn Oneself>,
    /// Told when the cluster goes on without this folder.
    pub cut_off: Box<dyn FnOnce(CutOff) + Send>,
}

/// The running part.
pub struct Member {
    /// Cluster and node id.
    pub identity: Identity,
    /// The replicas that run here.
    pub replicas: Arc<LocalReplicas>,
    /// Starts and stops them.
    pub host: Arc<Host<GridRuntime>>,
    /// Routes requests.
    pub router: Arc<Router>,
    /// To other nodes.
    pub transport: Transport,
    /// Gives leaderships away for a restart on purpose.
    pub hand_over: HandOver,
    answers: Arc<Answers>,
}

impl Member {
    /// Starts everything, the replicas on this disk included.
    ///
    /// # Errors
    /// The settings of Raft are invalid.
    pub async fn start(with: Ingredients) -> Result<Self, HostError> {
        let Ingredients {
            identity,
            own,
            config,
            stores,
            memory,
            disk,
            meters,
            maps,
            spawner,
            randomness,
            points,
            peer_listener,
            oneself,
            cut_off,
        } = with;
        let me = identity.node;
        let answers = Arc::new(Answers::default());
        let limits = limits(&config, &memory);
        let resolver = resolver(&config, &maps);
        let transport = Transport::start(Dependencies {
            identity: Some(identity.clone()),
            conduit: GrpcConduit::new(resolver, limits.clone()),
            handler: answers.clone(),
            spawner: spawner.clone(),
            randomness,
            limits: limits.clone(),
            metrics: meters.links,
        });
        let replicas = Arc::new(LocalReplicas::default());
        let peers = OverTransport(transport.clone());
        let kept = config.compaction.log_retention.0;
        let retention = Retention::of_node(kept, memory.log_index, disk.clone(), replicas.clone());
        let parts = parts(me, &config, &stores, &maps, &spawner, &transport)?;
        let parts =
            Parts { metrics: meters.groups, retention: retention.clone(), points: points.clone(), ..parts };
        let host = Host::new(parts, replicas.clone());
        let router = Arc::new(Router::new(me, replicas.clone(), Arc::new(peers.clone()), maps.clone()));
        let forwarded = Forwarded::new(memory.forwarded, meters.forwarded_bytes);
        let (hosting, routing) = (host.clone(), router.clone());
        let requests = Requests::new(replicas.clone(), hosting, oneself, maps.clone(), routing, forwarded);
        let requests = Arc::new(requests.passing(points.clone()));
        answers.open(requests.clone());
        // First: damage that is met while replicas start does not wait for the last of them.
        stores.guard(&replicas, &transport, &spawner);
        fence(&maps, &stores, &replicas, &transport, &spawner);
        host.start_all().await;
        spawn_listener(&spawner, peer_listener, &transport, limits);
        let hands =
            NodeHands::new(me, replicas.clone(), maps.clone(), requests, transport.clone(), disk.clone());
        control(hands.passing(points.clone()), &config, &spawner);
        let sweep = Sweep {
            stores: stores.clone(),
            host: host.clone(),
            transport: transport.clone(),
            maps: maps.clone(),
            store: router.clone(),
            disk,
            spawner: spawner.clone(),
            points,
        };
        keep_house(me, &replicas, retention, sweep);
        let hand_over = HandOver::new(me, host.clone(), maps.clone(), spawner.clone());
        spawner.spawn("map feed", maps.clone().run(me, replicas.clone(), peers));
        spawner.spawn("ticks", ticks::run(replicas.clone()));
        spawner.spawn("ticks of meta", ticks::run_for_meta(replicas.clone(), maps.clone()));
        let registering = registration::run(own, maps, router.clone());
        spawner.spawn("registration", async move { cut_off(registering.await) });
        Ok(Self { identity, replicas, host, router, transport, hand_over, answers })
    }

    /// Asks a node, this one included.
    ///
    /// # Errors
    /// The node refused, or could not be asked.
    pub async fn control(
        &self,
        node: NodeId,
        request: ControlRequest,
        deadline: Instant,
    ) -> Result<ControlResponse, Refusal> {
        if node != self.identity.node {
            return OverTransport(self.transport.clone()).control(node, request, deadline).await;
        }
        match self.answers.requests() {
            Some(requests) => requests.control(request).await,
            None => Err(refusal::not_applied(refusal::STOPPING, "the node is stopping")),
        }
    }

    /// Answers as if another node had asked.
    #[cfg(test)]
    pub(super) async fn answer(&self, from: NodeId, body: Body) -> Body {
        let frame = Frame { body: Some(body), ..Frame::default() };
        self.answers.handle(from, frame).await
    }

    /// Stops the replicas, then everything that speaks to other nodes. Their databases may be closed after it.
    pub async fn stop(&self) {
        self.host.stop_all().await;
        self.transport.stop();
        self.answers.close();
    }
}

/// The bounds of the transport on this machine.
fn limits(config: &Config, memory: &MemoryPlan) -> Limits {
    let limits = Limits::default().within(memory.peers);
    Limits {
        sockets: limits.sockets.min(OpenFiles::of_this_process().peers),
        snapshot_bytes_per_second: config.snapshot_rate.get(),
        ..limits
    }
}

fn parts(
    node: NodeId,
    config: &Config,
    stores: &Stores,
    maps: &Arc<MapFeed>,
    spawner: &Spawner,
    transport: &Transport,
) -> Result<Parts, HostError> {
    let timing = Timing {
        heartbeat: config.raft.heartbeat,
        election_min: config.raft.election_min,
        election_max: config.raft.election_max,
    };
    GridRuntime::align(timing.heartbeat);
    let settings = raft_config(timing).map_err(|error| HostError::Settings(error.to_string()))?;
    let told = maps.clone();
    Ok(Parts {
        node,
        log: stores.log.clone(),
        state: stores.state.clone(),
        keep: {
            let kept = stores.kept.clone();
            Arc::new(move |replica| kept.keep_hosted(replica))
        },
        transport: transport.clone(),
        leader: Arc::new(OverTransport(transport.clone())),
        spawner: spawner.clone(),
        config: Arc::new(settings),
        metrics: GroupMetrics::default(),
        points: points::nobody(),
        retention: config.compaction.log_retention.0.into(),
        meta_observer: Arc::new(move |record: Arc<MetaRecord>| told.offer((*record).clone())),
    })
}

/// In the background: replicas that fail are taken out of service and those that left are removed, logs are cut, states are
/// measured, and a disk that fills up has its consequences.
fn keep_house(
    me: NodeId,
    replicas: &Arc<LocalReplicas>,
    retention: Retention,
    sweep: Sweep<GridRuntime, Router>,
) {
    let (disk, transport, spawner) = (sweep.disk.clone(), sweep.transport.clone(), sweep.spawner.clone());
    let (log, state) = (sweep.stores.log.clone(), sweep.stores.state.clone());
    spawner.spawn("failures", failures::watch(replicas.clone(), transport.clone()));
    let logs = Arc::new(NodeLogs(log.clone(), state.clone()));
    spawner.spawn("compaction", compaction::run(replicas.clone(), logs, retention));
    spawner.spawn("sizes", sweep.stores.sizes.clone().watch(log, state.clone()));
    spawner.spawn("reclaim", reclaim::run(disk.clone(), state.clone()));
    spawner.spawn("sweep", sweep.run());
    let pins = state.pins().clone();
    spawner.spawn("disk limits", space::enforce(disk, me, replicas.clone(), transport, pins));
}

fn spawn_listener(spawner: &Spawner, listener: TcpListener, transport: &Transport, limits: Limits) {
    let acceptor = transport.acceptor();
    spawner.spawn("peer listener", async move {
        if let Err(error) = listen::serve(listener, acceptor, limits).await {
            tracing::error!(%error, "the peer port has failed");
        }
    });
}

/// Whoever leads meta, this node or not, looks after the cluster.
fn control(hands: NodeHands, config: &Config, spawner: &Spawner) {
    let controller = Controller::new(Arc::new(hands), pace(config), expected_nodes(config));
    spawner.spawn("controller", controller.run());
}

/// Where snapshots may be sent slowly only, moves are waited for as long as that takes. The rate of this node stands for that of
/// all, and some snapshots share it.
fn pace(config: &Config) -> Pace {
    let pace = Pace::default();
    match config.snapshot_rate.get() {
        0 => pace,
        rate => Pace { slowest_snapshot: pace.slowest_snapshot.min(rate / SNAPSHOTS_AT_ONCE), ..pace },
    }
}

/// Stops what was given up elsewhere.
fn fence(
    maps: &Arc<MapFeed>,
    stores: &Stores,
    replicas: &Arc<LocalReplicas>,
    transport: &Transport,
    spawner: &Spawner,
) {
    // Before anybody can ask for a step.
    transport.set_recoveries(maps.registry.view().record.recoveries);
    let given_up = watch::run(maps.clone(), stores.log.clone(), replicas.clone(), transport.clone());
    spawner.spawn("fence", given_up);
}

fn resolver(config: &Config, maps: &Arc<MapFeed>) -> Arc<Resolver> {
    Arc::new(Resolver { maps: maps.clone(), overrides: overrides(config) })
}

/// How many nodes the data groups wait for.
fn expected_nodes(config: &Config) -> usize {
    match &config.formation {
        Formation::InitialNodes(nodes) => nodes.len(),
        Formation::Wait | Formation::Bootstrap { .. } | Formation::Join(_) => 1,
    }
}

/// By node name: where this node dials it.
fn overrides(config: &Config) -> BTreeMap<String, String> {
    let pairs = config.peer_address_overrides.iter();
    pairs.map(|(name, address)| (name.to_string(), address.to_string())).collect()
}

/// Finds peers in the registry, each time anew: pods change their address.
struct Resolver {
    maps: Arc<MapFeed>,
    overrides: BTreeMap<String, String>,
}

impl Resolve for Resolver {
    fn peer_address(&self, node: NodeId) -> Option<String> {
        let view = self.maps.registry.view();
        let entry = view.map.nodes.get(&node)?;
        Some(self.overrides.get(&entry.name).unwrap_or(&entry.peer_address).clone())
    }
}

/// The transport's handler, which is there before what it asks, and lets go of it at the end: what it asks holds the
/// transport too, and neither would ever be dropped.
#[derive(Default)]
struct Answers(RwLock<Option<Arc<Requests>>>);

impl Answers {
    fn open(&self, requests: Arc<Requests>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(requests);
    }

    fn close(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn requests(&self) -> Option<Arc<Requests>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Handler for Arc<Answers> {
    async fn handle(&self, from: NodeId, frame: Frame) -> Body {
        match (self.requests(), frame.body) {
            (Some(requests), Some(body)) => requests.answer(from, body).await,
            (None, _) => Body::Refusal(refusal::not_applied(refusal::STARTING, "starting")),
            (_, None) => Body::Refusal(refusal::internal("an empty frame")),
        }
    }
}
