//! What all parts of a node share, from its first moment to its last.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kv_proto::{
    admin::v1::{NodeInfo, NodeStatus, Phase, ReplicaStatus, Role},
    disk::v1::{MetaCommand, MetaRecord, NodeRecord, ReplicaDescriptor, meta_command},
    peer::v1::Refusal,
};
use kv_topology::{NodeId, ShardId};
use tokio::{
    net::TcpListener,
    sync::Notify,
    time::{Duration, Instant, sleep},
};

use super::{
    hands::{meta_outcome, operation_of},
    map_feed::MapFeed,
    member::{Ingredients, Member},
    readiness::{self, Readiness},
    store::NodeStore,
    stores::Stores,
};
use crate::{
    config::Config,
    data_dir::{DataDir, Space, space_of},
    http::{Observed, Verdict},
    meta::view,
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
    pub(super) stores: Arc<Stores>,
    pub(super) maps: Arc<MapFeed>,
    pub(super) store: Arc<NodeStore>,
    pub(super) spawner: Spawner,
    pub(super) randomness: Randomness,
    pub(super) metrics: Metrics,
    pub(super) peer_listener: Mutex<Option<TcpListener>>,
    pub(super) member: OnceLock<Member>,
    /// Rings when the node has become a member.
    pub(super) joined: Notify,
    pub(super) phase: Mutex<(Phase, String)>,
    pub(super) readiness: Mutex<Readiness>,
    /// One way to become a member at a time.
    pub(super) forming: tokio::sync::Mutex<()>,
    pub(super) started: Instant,
}

impl Core {
    pub(super) fn enter(&self, phase: Phase, message: impl Into<String>) {
        *lock(&self.phase) = (phase, message.into());
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
            maps: self.maps.clone(),
            spawner: self.spawner.clone(),
            randomness: self.randomness.clone(),
            peer_listener,
        })
        .await?;
        self.store.open(member.router.clone());
        self.member.set(member).map_err(|_| anyhow::anyhow!("the node is a member already"))?;
        self.joined.notify_waiters();
        Ok(())
    }

    /// Makes a cluster of this node. What is written before the identity is forgotten when the node dies there; what
    /// comes after is done again at the next start.
    pub(super) async fn found(
        &self,
        token: &str,
        shards: u32,
        replication_factor: u32,
    ) -> anyhow::Result<()> {
        let cluster_id = self.new_cluster_id();
        let kept = MetaRecord {
            cluster_id: cluster_id.clone(),
            bootstrap_token: token.to_owned(),
            shard_count: shards,
            replication_factor,
            ..MetaRecord::default()
        };
        let cache = kv_proto::disk::v1::ClusterCache { meta: Some(kept) };
        self.stores.log.put_cluster_cache(cache).await?;
        let meta = ReplicaDescriptor { replica_id: FOUNDER, ..ReplicaDescriptor::default() };
        self.stores.log.put_descriptor(meta).await?;
        self.become_member(Identity { cluster_id, node: NodeId(FOUNDER) }).await?;
        self.finish_founding().await
    }

    /// Writes the first record of the cluster, if this node founded it and died before that.
    pub(super) async fn finish_founding(&self) -> anyhow::Result<()> {
        let kept = self.stores.kept_map();
        let Some(member) = self.member.get() else { return Ok(()) };
        if kept.epoch > 0 || member.identity.node != NodeId(FOUNDER) {
            return Ok(());
        }
        let Some(meta) = member.replicas.replica(ShardId::META) else { return Ok(()) };
        let voter = kv_proto::disk::v1::Member { replica_id: FOUNDER, node_id: FOUNDER };
        meta.control.initialize(vec![voter]).await.map_err(to_error)?;
        let bootstrap = meta_command::Bootstrap {
            cluster_id: kept.cluster_id,
            token: kept.bootstrap_token,
            shards: kept.shard_count,
            replication_factor: kept.replication_factor,
            node: Some(self.own_record()),
        };
        let command = MetaCommand { command: Some(meta_command::Command::Bootstrap(bootstrap)) };
        loop {
            let deadline = Instant::now() + FOUNDING_TIMEOUT;
            let written =
                member.router.write(ShardId::META, vec![operation_of(command.clone())], deadline).await;
            match written.and_then(meta_outcome) {
                Ok(_) => return Ok(()),
                Err(refused) if refusal::surely_not_applied(&refused) => sleep(FOUNDING_PAUSE).await,
                Err(refused) => return Err(to_error(refused)),
            }
        }
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
        let space = self.space();
        NodeStatus {
            node: Some(registered.unwrap_or_else(|| self.own_info())),
            cluster_id: identity.map(|identity| identity.cluster_id).unwrap_or_default(),
            phase: phase.into(),
            message,
            ready: self.verdict() == Verdict::Ok,
            map_epoch: map.epoch,
            replicas: self.replica_statuses(),
            disk_used_bytes: space.map_or(0, |space| space.total.0.saturating_sub(space.free.0)),
            disk_total_bytes: space.map_or(0, |space| space.total.0),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn space(&self) -> Option<Space> {
        space_of(lock(&self.dir).path()).ok()
    }

    fn replica_statuses(&self) -> Vec<ReplicaStatus> {
        let running = self.member.get().map(|member| member.replicas.all()).unwrap_or_default();
        let quarantined = self.stores.quarantined().into_iter().map(|descriptor| ReplicaStatus {
            shard_id: descriptor.shard_id,
            group_id: descriptor.group_id,
            replica_id: descriptor.replica_id,
            role: Role::Quarantined.into(),
            message: descriptor.quarantine_reason,
            ..ReplicaStatus::default()
        });
        running.iter().map(|replica| replica.control.status()).chain(quarantined).collect()
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
        let failed = self.member.get().map(|member| member.replicas.failed()).unwrap_or_default();
        if let Some((shard, reason)) = failed.into_iter().next() {
            return Verdict::No(format!("the replica of shard {shard} has stopped: {reason}"));
        }
        let statuses = self.replica_statuses();
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
        readiness::measure(&self.metrics, &self.node_status());
        self.metrics.encode()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn to_error(refused: Refusal) -> anyhow::Error {
    anyhow::anyhow!("{}: {}", refused.reason, refused.message)
}
