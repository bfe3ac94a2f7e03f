//! The simulated cluster: nodes that live and die, their disks, their network, and what was found wrong.
//!
//! A node here is what `node::Member` puts together in production, without the meta group: its replica comes from its
//! descriptor through [`Host`], its requests go through [`Router`] and [`Requests`]. It starts from its disks alone.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use kv_proto::{
    admin::v1::Role,
    disk::v1 as disk,
    peer::v1::{
        ControlRequest, CreateReplica, Frame, InitializeGroup, NodeDescription, Refusal, control_request,
        frame::Body,
    },
};
use kv_topology::{
    ClusterMap, GroupId, NodeId, ReplicaId, SLOT_COUNT, ShardId, SlotRange,
    map::{ReplicaPlacement, ShardEntry},
};
use kvnode::{
    group::settings::{Timing, raft_config},
    log::{Driver, LogHub, PlantedBug, SimulatedDisk, extent::LogSize},
    metrics::QueueMetric,
    node::{
        compaction,
        forwarded::Forwarded,
        host::{Host, Parts},
        peers::OverTransport,
        points,
        replicas::LocalReplicas,
        requests::{Hosting, Oneself, Requests},
        ticks,
    },
    refusal,
    router::{Maps, Replicas, Router},
    runtime::Tasks,
    state::{
        flush::FlushPolicy,
        hub::{Hooks, StateHub},
        memory::MemoryEngine,
        workers::Workers,
        write_behind::WriteBehind,
    },
    transport::{Dependencies, Handler, Identity, Limits, Randomness, Transport, loopback::Loopback},
};
use openraft::Config;
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use crate::{
    dice::Dice,
    runtime::{Life, SimRuntime},
    weather::{Conditions, Moment, Sky, Trace},
};

/// The one data shard, and its group.
pub const SHARD: ShardId = ShardId(1);
/// What installing a snapshot may take.
const INSTALL_WITHIN: Duration = Duration::from_secs(10);
const GROUP: GroupId = GroupId(1);
/// So little that logs are cut all the time and replicas that were away need snapshots.
const LOG_RETENTION_BYTES: u64 = 4 << 10;
/// So often that a crash finds states of all ages.
const FLUSH: FlushPolicy = FlushPolicy { applied_bytes_max: 4 << 10, interval: Duration::from_secs(2) };
/// So little that it settles between most entries, and a crash finds some that did not.
const GATHERED_BYTES: usize = 600;
/// More than all clients of a simulation write.
const FORWARDED_BYTES: usize = 64 << 20;
/// Replica ids are not node ids.
const REPLICAS_FROM: u64 = 100;

/// A simulated cluster. Handles are shared by all who act in it.
pub struct World {
    pub dice: Dice,
    pub conditions: Arc<Mutex<Conditions>>,
    pub network: Loopback,
    pub trace: Arc<Mutex<Trace>>,
    pub violations: Mutex<Vec<String>>,
    pub crashes: Mutex<u64>,
    lives: Mutex<u64>,
    nodes: BTreeMap<NodeId, Mutex<Machine>>,
    config: Arc<Config>,
    maps: Arc<FixedMap>,
    _network_tasks: Tasks,
}

/// What outlives a crash, and the life that does not.
struct Machine {
    disk: SimulatedDisk,
    engine: Arc<MemoryEngine>,
    running: Option<Arc<Running>>,
}

/// A node that runs.
pub struct Running {
    pub tasks: Tasks,
    pub router: Arc<Router>,
    pub replicas: Arc<LocalReplicas>,
    pub log: LogHub,
    /// Counts the lives of all nodes.
    pub number: u64,
    requests: Arc<Requests>,
    life: Arc<Life>,
}

impl World {
    pub fn new(
        dice: Dice,
        size: u64,
        bug: PlantedBug,
        trace: Trace,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Moment>) {
        let (moments, aimed) = mpsc::unbounded_channel();
        let (trace, conditions) = (Arc::new(Mutex::new(trace)), Arc::new(Mutex::new(Conditions::CALM)));
        let sky = Sky {
            dice: Dice::new(dice.next()),
            conditions: conditions.clone(),
            trace: trace.clone(),
            moments,
        };
        let tasks = Tasks::new("network");
        let network = Loopback::new(tasks.spawner(), sky);
        let machine = || Machine { disk: SimulatedDisk::new(bug), engine: Arc::default(), running: None };
        let world = Self {
            dice,
            conditions,
            network,
            trace,
            violations: Mutex::default(),
            crashes: Mutex::default(),
            lives: Mutex::default(),
            nodes: (1..=size).map(|node| (NodeId(node), Mutex::new(machine()))).collect(),
            config: Arc::new(raft_config(Timing::default()).unwrap()),
            maps: Arc::new(FixedMap::of(size)),
            _network_tasks: tasks,
        };
        (Arc::new(world), aimed)
    }

    pub fn size(&self) -> u64 {
        self.nodes.len() as u64
    }

    pub fn node_ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    pub fn any_node(&self) -> NodeId {
        NodeId(1 + self.dice.below(self.size()))
    }

    pub fn running(&self, node: NodeId) -> Option<Arc<Running>> {
        self.nodes[&node].lock().unwrap().running.clone()
    }

    /// Who leads: of several that think so, the one with the greatest term.
    pub fn leader(&self) -> Option<NodeId> {
        let status = |node: &NodeId| Some(self.running(*node)?.replicas.replica(SHARD)?.control.status());
        let led = self.node_ids().into_iter().filter_map(|node| Some((status(&node)?, node)));
        let led = led.filter(|(status, _)| status.role() == Role::Leader);
        led.max_by_key(|(status, _)| status.term).map(|(_, node)| node)
    }

    pub fn event(&self, what: fmt::Arguments<'_>) {
        self.trace.lock().unwrap().event(what);
    }

    pub fn violated(&self, what: String) {
        self.event(format_args!("VIOLATION {what}"));
        self.violations.lock().unwrap().push(what);
    }

    pub fn is_violated(&self) -> bool {
        !self.violations.lock().unwrap().is_empty()
    }

    /// Gives every node its replica, and forms the group.
    pub async fn form(self: &Arc<Self>) {
        for node in self.node_ids() {
            self.start(node);
            let create = control_request::Request::CreateReplica(CreateReplica {
                shard_id: SHARD.get(),
                group_id: GROUP.get(),
                replica_id: replica_of(node).get(),
            });
            self.control(node, create).await.unwrap();
        }
        let members = self.node_ids().into_iter();
        let members = members
            .map(|node| disk::Member { replica_id: replica_of(node).get(), node_id: node.get() })
            .collect();
        let slots = vec![disk::SlotRange { first: 0, last: u32::from(SLOT_COUNT - 1) }];
        let group = InitializeGroup { shard_id: SHARD.get(), group_id: GROUP.get(), members, slots };
        self.control(NodeId(1), control_request::Request::InitializeGroup(group)).await.unwrap();
    }

    /// Has a node take a step of the controller. `None`: its life ended meanwhile, or it refused.
    pub async fn control(&self, node: NodeId, request: control_request::Request) -> Option<()> {
        let running = self.running(node)?;
        let requests = running.requests.clone();
        let (answer, answered) = oneshot::channel();
        running.tasks.spawner().spawn("control", async move {
            answer.send(requests.control(ControlRequest { request: Some(request) }).await).ok();
        });
        answered.await.ok()?.ok().map(drop)
    }

    /// Begins a life of a node, from its disks.
    pub fn start(self: &Arc<Self>, node: NodeId) {
        let mut machine = self.nodes[&node].lock().unwrap();
        if machine.running.is_some() {
            return;
        }
        self.event(format_args!("start {node}"));
        let life = Life::new(Dice::new(self.dice.next()));
        let tasks = life.tasks();
        let (running, host) = self.assemble(node, &machine, life, tasks);
        let running = Arc::new(running);
        machine.running = Some(running.clone());
        drop(machine);
        running.tasks.spawner().spawn("ticks", ticks::run(running.replicas.clone()));
        let (world, replicas, log) = (self.clone(), running.replicas.clone(), running.log.clone());
        running.tasks.spawner().spawn("start", async move {
            host.start_all().await;
            let sound = log.descriptors().iter().all(|descriptor| descriptor.quarantine_reason.is_empty());
            if !sound || replicas.all().len() != log.descriptors().len() {
                world.violated(format!("{node} does not start all of its replicas"));
            }
            compaction::run(replicas, Arc::new(Logs(log)), LOG_RETENTION_BYTES).await;
        });
    }

    fn assemble(
        self: &Arc<Self>,
        node: NodeId,
        machine: &Machine,
        life: Arc<Life>,
        tasks: Tasks,
    ) -> (Running, Arc<Host<SimRuntime>>) {
        let answers = Answers::default();
        let transport = Transport::start(Dependencies {
            identity: Some(Identity { cluster_id: "simulation".to_owned(), node }),
            conduit: self.network.conduit(node),
            handler: answers.clone(),
            spawner: tasks.spawner(),
            randomness: Randomness::new(self.dice.fork()),
            // Nothing is slow to install here; whoever lost the answer tries again within a time of calm.
            limits: Limits { snapshot_install: INSTALL_WITHIN, ..Limits::default() },
            metrics: Default::default(),
        });
        let (log, state) = (self.open_log(node, machine, &tasks), self.open_state(node, machine, &tasks));
        let replicas = Arc::new(LocalReplicas::default());
        let peers = Arc::new(OverTransport(transport.clone()));
        let parts = Parts {
            points: points::nobody(),
            node,
            log: log.clone(),
            state: Arc::new(state),
            keep: Arc::new(|_| Ok(())),
            transport: transport.clone(),
            leader: peers.clone(),
            spawner: tasks.spawner(),
            config: self.config.clone(),
            metrics: Default::default(),
            retention: LOG_RETENTION_BYTES.into(),
            meta_observer: Arc::new(|_| {}),
        };
        let host = Host::new(parts, replicas.clone());
        let maps: Arc<dyn Maps> = self.maps.clone();
        let router = Arc::new(Router::new(node, replicas.clone(), peers, maps.clone()));
        let hosting: Arc<dyn Hosting> = host.clone();
        let forwarded = Forwarded::new(FORWARDED_BYTES, QueueMetric::default());
        let (oneself, routing) = (Arc::new(Nobody), router.clone());
        let requests = Requests::new(replicas.clone(), hosting, oneself, maps, routing, forwarded);
        let requests = Arc::new(requests);
        answers.0.set(requests.clone()).ok();
        self.network.attach(node, transport.acceptor());
        let number = {
            let mut lives = self.lives.lock().unwrap();
            *lives += 1;
            *lives
        };
        (Running { tasks, router, replicas, log, number, requests, life }, host)
    }

    fn open_log(self: &Arc<Self>, node: NodeId, machine: &Machine, tasks: &Tasks) -> LogHub {
        let (spawner, world) = (tasks.spawner(), self.clone());
        let driver = Driver::Task {
            spawn: Box::new(move |task| spawner.spawn("committer", task)),
            delay: Box::new(move || sleep(world.sync_time(node)).boxed()),
            bug: machine.disk.bug(),
        };
        let world = self.clone();
        let fatal = move |error| world.violated(format!("the log of {node} failed: {error}"));
        LogHub::open(machine.disk.open(), driver, Box::new(fatal)).unwrap()
    }

    fn open_state(self: &Arc<Self>, node: NodeId, machine: &Machine, tasks: &Tasks) -> StateHub {
        let (fatal, damaged, spawner) = (self.clone(), self.clone(), tasks.spawner());
        let hooks = Hooks {
            fatal: Arc::new(move |error| fatal.violated(format!("the state of {node} failed: {error}"))),
            damaged: Arc::new(move |damage| damaged.violated(format!("damage at {node}: {damage:?}"))),
            metrics: Default::default(),
        };
        let workers = Workers::Simulated { tasks: Arc::new(move |name, task| spawner.spawn(name, task)) };
        let engine = WriteBehind::new(machine.engine.clone(), GATHERED_BYTES);
        StateHub::with_engine(Arc::new(engine), FLUSH, hooks, workers).unwrap()
    }

    fn sync_time(&self, node: NodeId) -> Duration {
        let now = *self.conditions.lock().unwrap();
        let slower = if now.slow_disk == Some(node) { 10 } else { 1 };
        Duration::from_millis(slower * (1 + self.dice.below(now.sync_ms)))
    }

    /// Power loss: what was not synced is gone, but for a prefix.
    pub fn crash(&self, node: NodeId) {
        let mut machine = self.nodes[&node].lock().unwrap();
        let Some(running) = machine.running.take() else { return };
        running.tasks.stop();
        running.life.end();
        self.network.detach(node);
        let crash = machine.disk.crash(&mut self.dice.fork());
        let unflushed = machine.engine.unflushed() as u64;
        let kept = self.dice.below(unflushed + 1);
        machine.engine.crash(usize::try_from(kept).unwrap());
        *self.crashes.lock().unwrap() += 1;
        self.event(format_args!("crash {node} {crash:?}, {kept} of {unflushed} unflushed"));
    }

    /// Power loss after so long, and a new start soon or later.
    pub fn bounce(self: &Arc<Self>, node: NodeId, after: Duration) {
        let down =
            if self.dice.below(2) == 0 { self.dice.millis(0, 100) } else { self.dice.millis(0, 6_000) };
        let world = self.clone();
        drop(tokio::spawn(async move {
            sleep(after).await;
            world.crash(node);
            sleep(down).await;
            world.start(node);
        }));
    }
}

/// The replica of a node.
pub const fn replica_of(node: NodeId) -> ReplicaId {
    ReplicaId(REPLICAS_FROM + node.0)
}

/// The transport's handler, which is there before what it asks.
#[derive(Clone, Default)]
struct Answers(Arc<OnceLock<Arc<Requests>>>);

impl Handler for Answers {
    async fn handle(&self, from: NodeId, frame: Frame) -> Body {
        match (self.0.get(), frame.body) {
            (Some(requests), Some(body)) => requests.answer(from, body).await,
            _ => Body::Refusal(refusal::not_applied(refusal::STARTING, "starting")),
        }
    }
}

/// Replicas without a node around them.
struct Nobody;

impl Oneself for Nobody {
    fn describe(&self) -> NodeDescription {
        NodeDescription::default()
    }

    fn hand_over(&self, _: String) -> BoxFuture<'static, Result<(), Refusal>> {
        std::future::ready(Err(refusal::internal("there are no permits here"))).boxed()
    }
}

struct Logs(LogHub);

impl compaction::Logs for Logs {
    fn size(&self, replica: ReplicaId) -> Option<LogSize> {
        Some(self.0.view(replica)?.size())
    }

    /// Never needed: these logs are bounded in bytes only.
    fn flush(&self) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }
}

/// A map that never changes: one shard with a replica on every node.
struct FixedMap {
    map: Arc<ClusterMap>,
    record: Arc<disk::MetaRecord>,
}

impl FixedMap {
    fn of(size: u64) -> Self {
        let nodes = (1..=size).map(NodeId);
        let shard = ShardEntry {
            group: GROUP,
            slots: vec![SlotRange::new(0, SLOT_COUNT - 1).unwrap()],
            replicas: nodes.map(|node| ReplicaPlacement { replica: replica_of(node), node }).collect(),
            preferred_leader: None,
        };
        let map = ClusterMap { epoch: 1, shards: BTreeMap::from([(SHARD, shard)]), ..ClusterMap::default() };
        Self { map: Arc::new(map), record: Arc::default() }
    }
}

impl Maps for FixedMap {
    fn map(&self) -> Arc<ClusterMap> {
        self.map.clone()
    }

    fn meta(&self) -> Arc<disk::MetaRecord> {
        self.record.clone()
    }

    fn refresh(&self) {}
}
