//! A node: a value that is started from its configuration and its disk, and stopped by dropping its tasks.
//!
//! Its life: the data folder is locked and both databases are opened; the ports of clients and of metrics answer, so
//! that others can ask what this node is; [`formation`] finds out where it belongs; as a [`member`] it starts the
//! replicas on its disk and takes part. A stop hands the leaderships over first.

mod admin;
pub mod compaction;
pub mod core;
pub mod failures;
pub mod formation;
pub mod forwarded;
pub mod hand_over;
pub mod hands;
mod health;
pub mod host;
pub mod kept;
pub mod losses;
pub mod map_feed;
pub mod measure;
pub mod member;
pub mod memory;
mod oneself;
pub mod operations;
pub mod peers;
pub mod points;
pub(crate) mod quarantine;
pub mod readiness;
mod reclaim;
pub mod record;
mod recovering;
pub mod registration;
pub mod replicas;
pub mod requests;
mod seams;
pub mod sizes;
pub mod snapshots;
pub mod space;
pub mod store;
pub mod stores;
#[cfg(test)]
mod stores_tests;
mod successor;
pub mod sweep;
#[cfg(test)]
mod tests;
pub mod ticks;
mod tolerance;

use std::{
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use kv_proto::{admin::v1::Phase, disk::v1::MetaRecord};
use kv_topology::NodeId;
use rand::{Rng as _, rngs::StdRng};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::spawn_blocking,
    time::{Instant, interval, timeout},
};

use self::{
    core::Core, formation::Formed, map_feed::MapFeed, measure::Meters, memory::MemoryPlan, points::Points,
    space::Disk, store::NodeStore, stores::Stores,
};
use crate::{
    api::{context::Context, health::Health, limits::MESSAGE_BYTES_MAX, quota::Capacity, server},
    config::{Config, Listeners},
    data_dir::DataDir,
    http::{self, Observed, Verdict},
    meta::{registry::Registry, startup},
    metrics::Metrics,
    recovery,
    router::Maps,
    runtime::{Spawner, Tasks, open_files::OpenFiles},
    transport::{Identity, Limits, Randomness},
};

pub use stores::Fatal;

/// How often health is brought in line with readiness.
const HEALTH_EVERY: Duration = Duration::from_millis(200);
/// For handing all leaderships over before a stop.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(5);
/// For running requests after GOAWAY.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);
/// For the last flush, and for the end of all tasks: a disk that is slower than that would keep the process for ever.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A running node. Dropping it ends its tasks; [`Node::stop`] ends it gracefully.
pub struct Node {
    core: Arc<Core>,
    tasks: Tasks,
    health: Health,
    stop_serving: Option<oneshot::Sender<()>>,
    served: oneshot::Receiver<()>,
}

impl Node {
    /// Starts a node. It returns as soon as the node answers on its ports; what it is then, its status says.
    ///
    /// # Errors
    /// When a port is taken, or the data folder cannot be used.
    pub async fn start(config: Config, rng: StdRng, fatal: Fatal) -> anyhow::Result<Self> {
        Self::start_with(config, rng, fatal, points::nobody()).await
    }

    /// The same, for one whose [`points`] somebody watches.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(
        config: Config,
        mut rng: StdRng,
        fatal: Fatal,
        points: Points,
    ) -> anyhow::Result<Self> {
        let ends = fatal.clone();
        let tasks = Tasks::watched(
            "node",
            Arc::new(move |task, said| ends(&format!("task {task} panicked: {said}"))),
        );
        let spawner = tasks.spawner();
        let listeners = Listeners::bind(&config.listen).await?;
        space::make_room(&config.data_dir, config.disk);
        let mut dir = recovering::open_folder(&config, &mut rng)?;
        // Under recovery nobody is kept waiting for an answer.
        let peer_listener = (!config.recovery).then_some(listeners.peer);
        let disk = Arc::new(Disk::of(&dir, config.disk));
        let watched = disk.clone();
        spawner.spawn("disk space", async move { watched.watch().await });
        let metrics = Metrics::new();
        let memory = MemoryPlan::of(config.memory);
        let meters = Meters::of(&metrics, &Limits::default(), &memory);
        let stores = Stores::open(&dir, &config, &memory, &spawner, fatal.clone(), &meters.log).await?;
        forget_unfinished_founding(&mut dir, &stores).await.context("clearing an unfinished founding")?;
        let mut boot_id = [0; 16];
        rng.fill_bytes(&mut boot_id);
        let registry = registry(&stores, &spawner).context("the kept map")?;
        let maps = Arc::new(MapFeed::new(registry.clone()));
        let core = Arc::new_cyclic(|me| Core {
            store: Arc::new(NodeStore::new(registry)),
            config: Arc::new(config),
            dir: Mutex::new(dir),
            memory,
            disk,
            stores: Arc::new(stores),
            maps,
            spawner: spawner.clone(),
            randomness: Randomness::new(rng),
            metrics,
            meters,
            peer_listener: Mutex::new(peer_listener),
            member: OnceLock::new(),
            joined: Notify::new(),
            phase: Mutex::new((Phase::Starting, String::new())),
            readiness: Mutex::default(),
            forming: Arc::default(),
            me: me.clone(),
            started: Instant::now(),
            boot_id: Bytes::copy_from_slice(&boot_id),
            fatal,
            points,
            over: watch::Sender::new(None),
        });
        spawner.spawn("http", http::serve(listeners.http, core.clone()));
        let health = Health::starting().await;
        let (stop_serving, served) = serve_clients(&core, listeners.client, health.clone());
        begin(&core);
        Ok(Self { core, tasks, health, stop_serving: Some(stop_serving), served })
    }

    /// Ends when the node cannot go on with its data folder and would begin anew at the next start; says why. Until then
    /// it answers on its ports, and serves nothing.
    pub async fn over(&self) -> String {
        let mut over = self.core.over.subscribe();
        match over.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The sender is in the core.
            Err(_) => std::future::pending().await,
        }
    }

    /// Stops gracefully: hands leaderships over, lets running requests finish, flushes.
    pub async fn stop(mut self) {
        self.core.enter(Phase::Stopping, "the node is stopping");
        // First of all: clients that look go elsewhere while the leaderships move.
        self.health.set(true, false).await;
        if let Some(member) = self.core.member.get() {
            // Bounded: when everybody leaves there is nobody to take over.
            timeout(HAND_OVER_TIMEOUT, member.host.hand_over()).await.ok();
        }
        if let Some(stop) = self.stop_serving.take() {
            stop.send(()).ok();
        }
        timeout(DRAIN_TIMEOUT, &mut self.served).await.ok();
        if let Some(member) = self.core.member.get() {
            member.stop().await;
        }
        match timeout(CLOSE_TIMEOUT, self.core.stores.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last flush failed; the log has what it lacks"),
            Err(_) => tracing::warn!("the last flush takes too long; the log has what it lacks"),
        }
        if timeout(CLOSE_TIMEOUT, self.tasks.shutdown()).await.is_err() {
            tracing::warn!("tasks of the node did not end in time");
        }
    }
}

/// A founding that died before the node belonged to its cluster: nobody has heard of that cluster, and its replica never
/// ran.
async fn forget_unfinished_founding(dir: &mut DataDir, stores: &Stores) -> anyhow::Result<()> {
    let identity = dir.identity();
    if identity.membership.is_some() {
        return Ok(());
    }
    if identity.founding.is_some() {
        stores.forget_all().await?;
        return Ok(dir.note_founding(None)?);
    }
    let nothing = stores.log.descriptors().is_empty();
    anyhow::ensure!(
        nothing,
        "the Raft log holds replicas, and IDENTITY names no cluster that they belong to"
    );
    Ok(())
}

/// What was known at the last run, kept again whenever it changes. Maps come from the apply thread too, which must not
/// wait: one task keeps them, in order.
fn registry(stores: &Stores, spawner: &Spawner) -> anyhow::Result<Arc<Registry>> {
    let (keep, mut kept) = mpsc::unbounded_channel::<Arc<MetaRecord>>();
    let file = stores.kept.clone();
    spawner.spawn("keep the map", async move {
        while let Some(record) = kept.recv().await {
            let file = file.clone();
            let written = spawn_blocking(move || file.keep_meta((*record).clone())).await;
            if let Some(error) = written.map_or_else(
                |error| Some(error.to_string()),
                |written| written.err().map(|error| error.to_string()),
            ) {
                tracing::error!(error, "the map could not be kept");
            }
        }
    });
    // Nobody keeps it any more when the node stops.
    let persist = move |record| drop(keep.send(record));
    Ok(Arc::new(Registry::new(stores.kept.meta(), Box::new(persist))?))
}

/// Answers clients. The first end asks for the end of it, the second one tells it.
fn serve_clients(
    core: &Arc<Core>,
    listener: tokio::net::TcpListener,
    health: Health,
) -> (oneshot::Sender<()>, oneshot::Receiver<()>) {
    let (stop, stopping) = oneshot::channel();
    let (serving, served) = oneshot::channel();
    let (spawner, randomness) = (core.spawner.clone(), core.randomness.clone());
    let context = Context::new(
        core.store.clone(),
        Arc::new(move |name, task| spawner.spawn(name, task)),
        Box::new(move || upload_id(&randomness)),
    );
    let (node, told, metrics) = (core.clone(), health.clone(), core.meters.api.clone());
    core.spawner.spawn("clients", async move {
        let stopping = async {
            stopping.await.ok();
        };
        let memory = node.memory;
        let capacity = Capacity {
            connections: OpenFiles::of_this_process().clients,
            request_bytes: memory.requests,
            large_replies: memory.large_replies / MESSAGE_BYTES_MAX,
            reply_bytes: memory.replies / 2,
            batch_reply_bytes: memory.replies / 2,
            ..Capacity::default()
        };
        let of_disk = Some(recovering::service(&node));
        let options = server::Options { metrics, capacity, recovery: of_disk, ..server::Options::default() };
        let ended = server::serve(listener, context, node, told, options, stopping).await;
        if let Err(error) = ended {
            tracing::error!(%error, "the client port has failed");
        }
        serving.send(()).ok();
    });
    core.spawner.spawn("health", keep_health(core.clone(), health));
    (stop, served)
}

fn upload_id(randomness: &Randomness) -> [u8; 16] {
    let (high, low) = (randomness.next(), randomness.next());
    (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
}

async fn keep_health(core: Arc<Core>, health: Health) {
    let mut ticks = interval(HEALTH_EVERY);
    let mut told = None;
    loop {
        ticks.tick().await;
        let now = (core.live() == Verdict::Ok, core.ready() == Verdict::Ok);
        let phase = core.phase().0;
        if !matches!(phase, Phase::Stopping | Phase::Recovering) && told != Some(now) {
            health.set(now.0, now.1).await;
            told = Some(now);
        }
    }
}

/// What the node does of itself.
fn begin(core: &Arc<Core>) {
    if core.config.recovery {
        recovering::enter(core);
        return;
    }
    let forming = core.clone();
    core.spawner.spawn("formation", async move { form(&forming).await });
}

/// Finds out where the node belongs, and makes it belong there.
async fn form(core: &Core) {
    let kept = core::lock(&core.dir).identity().fenced.clone();
    if let Some(reason) = kept {
        tracing::error!(reason, "this data folder is fenced, its replicas do not start");
        core.enter(Phase::Failed, core::fenced(&reason));
        return;
    }
    let own = core.own_info();
    let identity = match core.identity() {
        Some(identity) => startup::Identity::Member { cluster_id: identity.cluster_id },
        None => {
            core.enter(Phase::Empty, "");
            startup::Identity::Empty
        }
    };
    let told = |awaited: &startup::Awaited| {
        tracing::info!(%awaited, "not in a cluster yet");
        core.enter(Phase::Empty, awaited.to_string());
    };
    let intent = formation::intent(&core.config);
    let formed = tokio::select! {
        biased;
        () = core.joined.notified() => return,
        formed = formation::form(&intent, &identity, &own, told) => formed,
    };
    let _one_at_a_time = core.forming.lock().await;
    match act(core, formed).await {
        Ok(()) => {
            core.enter(Phase::Running, "");
            tracing::info!(epoch = core.maps.map().epoch, "running");
        }
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the node cannot serve");
            core.enter(Phase::Failed, format!("{error:#}"));
        }
    }
}

async fn act(core: &Core, formed: Formed) -> anyhow::Result<()> {
    match formed {
        Formed::Bootstrap if core.identity().is_none() => {
            tracing::info!("founding a cluster");
            let (shards, factor) = (core.config.shards, core.config.replication_factor);
            // Founded by its flags: nobody retries it with a token.
            core.found("", shards, factor).await
        }
        Formed::Joined(joined) if core.identity().is_none() => {
            tracing::info!(cluster = joined.cluster_id, node = joined.node_id, "joining");
            core.maps.offer(formation::first_record(&joined.map.clone().unwrap_or_default()));
            let identity = Identity { cluster_id: joined.cluster_id.clone(), node: NodeId(joined.node_id) };
            core.become_member(identity).await
        }
        Formed::Bootstrap | Formed::Joined(_) | Formed::Resume => {
            if let Some(identity) = core.identity().filter(|_| core.member.get().is_none()) {
                let others = startup::addresses_to_ask(&formation::intent(&core.config));
                let known = recovery::news::hear(&core.maps, &identity, &others).await;
                recovery::watch::before_start(&core.stores.log, &known).await?;
                core.become_member(identity).await?;
            }
            core.finish_founding().await
        }
        Formed::Refused(reason) => anyhow::bail!(reason),
    }
}
