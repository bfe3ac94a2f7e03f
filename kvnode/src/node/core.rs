//! What all parts of a node share, from its first moment to its last.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use kv_proto::{
    admin::v1::{NodeInfo, NodeStatus, Phase, ReplicaStatus, Role},
    disk::v1::{Founding, NodeRecord, ReplicaDescriptor, meta_command},
    peer::v1::{Refusal, refusal::Kind},
};
use kv_topology::{NodeId, ShardId};
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
    time::{Duration, Instant, sleep},
};

use super::{
    hands::{meta_outcome, operation_of},
    health,
    map_feed::MapFeed,
    measure::{self, Meters},
    member::{Ingredients, Member},
    memory::MemoryPlan,
    oneself::OfCore,
    points::Points,
    readiness::Readiness,
    registration::CutOff,
    space::Disk,
    store::NodeStore,
    stores::{Fatal, Stores},
    sweep::is_superfluous,
};
use crate::{
    config::Config,
    data_dir::{DataDir, Scope},
    http::{Observed, Verdict},
    meta::{envelope, view},
    metrics::Metrics,
    refusal,
    router::{Maps, Replicas, store::Store},
    runtime::Spawner,
    transport::{Identity, Randomness},
};

/// The founder's node and replica ids: the meta group mints the next ones.
const FOUNDER: u64 = 1;
/// Between two attempts to write the first record of a cluster, while its only voter elects itself.
const FOUNDING_PAUSE: Duration = Duration::from_millis(50);
/// For one attempt.
const FOUNDING_TIMEOUT: Duration = Duration::from_secs(5);

/// Shared by all parts of a node.
pub struct Core {
    pub(super) config: Arc<Config>,
    pub(super) dir: Mutex<DataDir>,
    pub(super) memory: MemoryPlan,
    pub(super) disk: Arc<Disk>,
    pub(super) stores: Arc<Stores>,
    pub(super) maps: Arc<MapFeed>,
    pub(super) store: Arc<NodeStore>,
    pub(super) spawner: Spawner,
    pub(super) randomness: Randomness,
    pub(super) metrics: Metrics,
    pub(super) meters: Meters,
    pub(super) peer_listener: Mutex<Option<TcpListener>>,
    pub(super) member: OnceLock<Member>,
    /// Rings when the node has become a member.
    pub(super) joined: Notify,
    pub(super) phase: Mutex<(Phase, String)>,
    pub(super) readiness: Mutex<Readiness>,
    /// One way to become a member at a time.
    pub(super) forming: Arc<tokio::sync::Mutex<()>>,
    /// Itself, for tasks that outlive the request that began them.
    pub(super) me: Weak<Core>,
    pub(super) started: Instant,
    /// Random for this start.
    pub(super) boot_id: Bytes,
    /// Ends the process.
    pub(super) fatal: Fatal,
    /// Told what this node passes.
    pub(super) points: Points,
    /// Why this node wants to be started again, once it does.
    pub(super) over: watch::Sender<Option<String>>,
}

impl Core {
    /// Enters a phase, unless the node is in one that has no way back to it.
    pub(super) fn enter(&self, phase: Phase, message: impl Into<String>) {
        let mut now = lock(&self.phase);
        let over = matches!(now.0, Phase::Failed | Phase::Stopping);
        if !over || phase == Phase::Stopping {
            *now = (phase, message.into());
        }
    }

    pub(super) fn phase(&self) -> (Phase, String) {
        lock(&self.phase).clone()
    }

    /// This node as the registry shall know it.
    pub(super) fn own_record(&self) -> NodeRecord {
        let dir = lock(&self.dir);
        let identity = dir.identity();
        NodeRecord {
            node_id: identity.membership.as_ref().map_or(0, |membership| membership.node_id),
            name: self.config.node_name.to_string(),
            disk_uuid: identity.disk_uuid.as_bytes().to_vec().into(),
            client_address: self.config.advertise.client.to_string(),
            peer_address: self.config.advertise.peer.to_string(),
            zone: self.config.zone.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_counter: identity.boot_counter,
            boot_id: self.boot_id.clone(),
            ..NodeRecord::default()
        }
    }

    pub(super) fn own_info(&self) -> NodeInfo {
        view::node_info(&self.own_record())
    }

    pub(super) fn identity(&self) -> Option<Identity> {
        let dir = lock(&self.dir);
        let membership = dir.identity().membership.as_ref()?;
        Some(Identity { cluster_id: membership.cluster_id.clone(), node: NodeId(membership.node_id) })
    }

    /// Becomes, durably, a node of this cluster, and starts to act as one.
    pub(super) async fn become_member(&self, identity: Identity) -> anyhow::Result<()> {
        lock(&self.dir).belong_to(&identity.cluster_id, identity.node.get())?;
        let peer_listener = lock(&self.peer_listener).take();
        let peer_listener = peer_listener.ok_or_else(|| anyhow::anyhow!("the node is a member already"))?;
        let member = Member::start(Ingredients {
            identity,
            own: self.own_record(),
            config: self.config.clone(),
            stores: self.stores.clone(),
            memory: self.memory,
            disk: self.disk.clone(),
            meters: self.meters.clone(),
            maps: self.maps.clone(),
            spawner: self.spawner.clone(),
            randomness: self.randomness.clone(),
            points: self.points.clone(),
            peer_listener,
            oneself: Arc::new(OfCore(self.me.clone())),
            cut_off: self.when_cut_off(),
        })
        .await?;
        self.store.open(member.router.clone());
        self.member.set(member).map_err(|_| anyhow::anyhow!("the node is a member already"))?;
        self.joined.notify_waiters();
        Ok(())
    }

    /// What happens when the cluster goes on without this folder.
    fn when_cut_off(&self) -> Box<dyn FnOnce(CutOff) + Send> {
        let me = self.me.clone();
        Box::new(move |cut_off| {
            let Some(core) = me.upgrade() else { return };
            let spawner = core.spawner.clone();
            spawner.spawn("cut off", async move { core.cut_off(cut_off).await });
        })
    }

    /// First of all no replica here votes any more; then it is seen to that none ever will.
    async fn cut_off(&self, cut_off: CutOff) {
        tracing::error!(?cut_off, "the cluster goes on without this data folder");
        let message = match &cut_off {
            CutOff::Fenced(reason) => fenced(reason),
            CutOff::Removed(reason) => {
                format!(
                    "{reason}; its data folder is set aside at the next start, and the node joins as a new one"
                )
            }
        };
        self.enter(Phase::Failed, message.clone());
        let member = self.member().await;
        // No frame goes out or comes in any more.
        member.transport.stop();
        member.host.stop_all().await;
        let kept = match &cut_off {
            CutOff::Fenced(reason) => lock(&self.dir).fence(reason),
            CutOff::Removed(reason) => lock(&self.dir).set_aside_at_next_start(Scope::Everything, reason),
        };
        if let Err(error) = kept {
            (self.fatal)(&format!("{message}; and that cannot be noted: {error}"));
        }
        if let CutOff::Removed(_) = cut_off {
            self.over.send_replace(Some(message));
        }
    }

    /// The part that runs once the node belongs to a cluster; waits until it does.
    async fn member(&self) -> &Member {
        loop {
            let joined = self.joined.notified();
            if let Some(member) = self.member.get() {
                return member;
            }
            joined.await;
        }
    }

    /// Makes a cluster of this node. That it is being founded is noted first of all: what is written before the identity
    /// is forgotten when the node dies there, and what comes after is done again at the next start.
    pub(super) async fn found(
        &self,
        token: &str,
        shards: u32,
        replication_factor: u32,
    ) -> anyhow::Result<()> {
        let cluster_id = self.new_cluster_id();
        let founding =
            Founding { cluster_id: cluster_id.clone(), token: token.to_owned(), shards, replication_factor };
        lock(&self.dir).note_founding(Some(founding))?;
        let meta = ReplicaDescriptor { replica_id: FOUNDER, ..ReplicaDescriptor::default() };
        self.stores.host(meta).await?;
        self.become_member(Identity { cluster_id, node: NodeId(FOUNDER) }).await?;
        self.finish_founding().await
    }

    /// The cluster that is being founded here, until its first record is committed.
    pub(super) fn founding(&self) -> Option<Founding> {
        lock(&self.dir).identity().founding.clone()
    }

    /// Commits the first record of the cluster that is being founded here, if there is one. Each step may be repeated.
    pub(super) async fn finish_founding(&self) -> anyhow::Result<()> {
        let Some(founding) = self.founding() else { return Ok(()) };
        let meta = self.member.get().and_then(|member| member.replicas.replica(ShardId::META));
        let (Some(member), Some(meta)) = (self.member.get(), meta) else {
            anyhow::bail!("the founding of cluster {} cannot go on: meta does not run", founding.cluster_id);
        };
        let voter = kv_proto::disk::v1::Member { replica_id: FOUNDER, node_id: FOUNDER };
        let bootstrap = meta_command::Bootstrap {
            cluster_id: founding.cluster_id,
            token: founding.token,
            shards: founding.shards,
            replication_factor: founding.replication_factor,
            node: Some(self.own_record()),
        };
        let command = meta_command::Command::Bootstrap(bootstrap);
        let command = envelope::command(self.config.node_name.to_string(), "the cluster is founded", command);
        loop {
            let deadline = Instant::now() + FOUNDING_TIMEOUT;
            let written = match meta.control.initialize(vec![voter]).await {
                Ok(()) => {
                    member.router.write(ShardId::META, vec![operation_of(command.clone())], deadline).await
                }
                Err(refused) => Err(refused),
            };
            match written.and_then(meta_outcome) {
                Ok(_) => break,
                Err(refused) if may_pass(&refused) => sleep(FOUNDING_PAUSE).await,
                Err(refused) => return Err(to_error(refused)),
            }
        }
        Ok(lock(&self.dir).note_founding(None)?)
    }

    fn new_cluster_id(&self) -> String {
        let (high, low) = (self.randomness.next(), self.randomness.next());
        uuid::Builder::from_random_bytes((u128::from(high) << 64 | u128::from(low)).to_be_bytes())
            .into_uuid()
            .to_string()
    }

    /// What this node is and what its replicas do.
    pub fn node_status(&self) -> NodeStatus {
        let (phase, message) = self.phase();
        let identity = self.identity();
        let map = self.maps.map();
        let registered = identity.as_ref().and_then(|identity| {
            let nodes = &self.maps.meta().nodes;
            nodes.iter().find(|node| node.node_id == identity.node.get()).map(view::node_info)
        });
        let space = self.disk.space();
        let replicas = self.replica_statuses();
        let complaints = [message, self.disk.complaint().unwrap_or_default(), health::summary(&replicas)];
        let message = complaints.into_iter().find(|complaint| !complaint.is_empty()).unwrap_or_default();
        NodeStatus {
            node: Some(registered.unwrap_or_else(|| self.own_info())),
            cluster_id: identity.map(|identity| identity.cluster_id).unwrap_or_default(),
            phase: phase.into(),
            message,
            ready: self.verdict() == Verdict::Ok,
            map_epoch: map.epoch,
            replicas,
            disk_used_bytes: space.map_or(0, |space| space.total.0.saturating_sub(space.free.0)),
            disk_total_bytes: space.map_or(0, |space| space.total.0),
            disk_level: self.disk.told_level().into(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn replica_statuses(&self) -> Vec<ReplicaStatus> {
        let running = self.member.get().map(|member| member.replicas.all()).unwrap_or_default();
        let failed = self.member.get().map(|member| member.replicas.all_failed()).unwrap_or_default();
        let stopped = failed.into_iter().map(|failed| ReplicaStatus {
            shard_id: failed.shard.get(),
            group_id: failed.group.get(),
            replica_id: failed.id.get(),
            role: Role::Stopped.into(),
            message: failed.reason,
            ..ReplicaStatus::default()
        });
        let quarantined = self.stores.quarantined().into_iter().map(|descriptor| ReplicaStatus {
            shard_id: descriptor.shard_id,
            group_id: descriptor.group_id,
            replica_id: descriptor.replica_id,
            role: Role::Quarantined.into(),
            message: descriptor.quarantine_reason,
            ..ReplicaStatus::default()
        });
        let running = running.iter().map(|replica| ReplicaStatus {
            state_bytes: self.stores.sizes.of(replica.id),
            ..replica.control.status()
        });
        running.chain(stopped).chain(quarantined).collect()
    }

    /// The same without replicas that the cluster goes on without: they go soon, and nobody is sent to them.
    fn needed_replicas(&self) -> Vec<ReplicaStatus> {
        let record = self.maps.meta();
        let mut statuses = self.replica_statuses();
        statuses.retain(|status| {
            let (replica_id, shard_id) = (status.replica_id, status.shard_id);
            let replica = ReplicaDescriptor { replica_id, shard_id, ..ReplicaDescriptor::default() };
            !is_superfluous(&record, &replica)
        });
        statuses
    }

    /// A shard whose replica here counts and refuses every key: its group was formed a moment ago.
    fn shard_without_slots(&self, statuses: &[ReplicaStatus]) -> Option<ShardId> {
        let counts =
            |id: u64| statuses.iter().any(|status| status.replica_id == id && status.role() != Role::Learner);
        let running = self.member.get().map(|member| member.replicas.all()).unwrap_or_default();
        let unusable = running.into_iter().find(|replica| {
            !replica.shard.is_meta() && counts(replica.id.get()) && !replica.state.owns_slots()
        });
        unusable.map(|replica| replica.shard)
    }

    fn verdict(&self) -> Verdict {
        let (phase, message) = self.phase();
        if phase != Phase::Running {
            return Verdict::No(if message.is_empty() { phase.as_str_name().to_owned() } else { message });
        }
        if self.maps.map().shards.keys().all(|shard| shard.is_meta()) {
            return Verdict::No("the data shards are not known yet".to_owned());
        }
        if self.member.get().is_some_and(|member| member.replicas.are_leaving()) {
            return Verdict::No("its leaderships are handed over: it is about to be restarted".to_owned());
        }
        self.caught_up()
    }

    /// Whether the replicas that count here have caught up with what they know to be committed.
    pub(super) fn caught_up(&self) -> Verdict {
        let statuses = self.needed_replicas();
        if let Some(unfit) = health::unfit(&statuses) {
            return Verdict::No(unfit);
        }
        if let Some(shard) = self.shard_without_slots(&statuses) {
            return Verdict::No(format!("shard {shard} has not applied its slots yet"));
        }
        lock(&self.readiness).observe(&statuses)
    }
}

impl Observed for Core {
    fn live(&self) -> Verdict {
        match self.phase() {
            (Phase::Failed, message) => Verdict::No(message),
            _ => Verdict::Ok,
        }
    }

    fn ready(&self) -> Verdict {
        self.verdict()
    }

    fn metrics(&self) -> String {
        measure::gauges(self);
        self.metrics.encode()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a person reads of a node that is fenced.
pub(super) fn fenced(reason: &str) -> String {
    format!("{reason}; use the other copy, or move this data folder away to let the node join as a new one")
}

/// Whether a step of founding may succeed when it is repeated. The command is the same each time, so that it does not
/// matter whether it has happened already.
fn may_pass(refused: &Refusal) -> bool {
    refusal::surely_not_applied(refused)
        || matches!(refused.kind(), Kind::OutcomeUnknown | Kind::DeadlineExceeded)
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn to_error(refused: Refusal) -> anyhow::Error {
    anyhow::anyhow!("{}: {}", refused.reason, refused.message)
}
