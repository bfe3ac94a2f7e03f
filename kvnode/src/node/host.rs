//! Starts and stops the replicas of this node.
//!
//! A replica exists only because the meta group committed it and its node was told so: its descriptor is written with
//! sync before the replica starts, and only a descriptor makes it start again. Never does a Raft frame create one.

use std::{
    marker::PhantomData,
    sync::{self, Arc, PoisonError},
};

use futures::{FutureExt, future::BoxFuture};
use kv_proto::{
    admin::v1::Role,
    disk::v1::{MetaRecord, ReplicaDescriptor},
    peer::v1::{CreateReplica, Refusal, refusal::Kind},
};
use kv_topology::{GroupId, NodeId, ReplicaId, ShardId};
use openraft::{Config, Raft};
use openraft_rt::AsyncRuntime;
use tokio::sync::Mutex;

use super::{
    compaction::Retention,
    hand_over::Leads,
    points::Points,
    replicas::{Failed, LocalReplicas},
    requests::Hosting,
    snapshots::{Incoming, Outgoing},
};
use crate::{
    data_dir::small_file::SmallFileError,
    group::{
        proposer::Proposer,
        raft_control::{Heard, RaftControl},
        read_gate::{AskLeader, ReadGate},
        replica::Replica,
    },
    log::{codec::log_id_to_disk, hub::LogHub, store::LogStore, view::LogView},
    metrics::GroupMetrics,
    refusal,
    runtime::Spawner,
    state::hub::{MachineOptions, StateHub},
    state_machine::{raft::StateMachine, worker::MetaObserver},
    transport::{NetworkFactory, Transport},
};

/// The state machine of our replicas.
pub type Machine = StateMachine<LogView>;

/// Why a replica did not start.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The timing of Raft contradicts itself.
    #[error("timing of Raft: {0}")]
    Settings(String),
    /// Its log cannot be read.
    #[error("opening the log of {replica}: {source}")]
    Log {
        /// The replica.
        replica: ReplicaId,
        /// What failed.
        source: crate::log::LogError,
    },
    /// Its state cannot be read.
    #[error("opening the state of {replica}: {source}")]
    State {
        /// The replica.
        replica: ReplicaId,
        /// What failed.
        source: crate::state::StateError,
    },
    /// Its state lacks entries that its log no longer has.
    #[error(
        "starting {replica}: its log begins after entry {purged}, and its state reaches {applied:?}: state was lost"
    )]
    StateBehindLog {
        /// The replica.
        replica: ReplicaId,
        /// Index of the last entry that was purged.
        purged: u64,
        /// Index of the last entry that was applied.
        applied: Option<u64>,
    },
    /// openraft refused to start from what is on disk.
    #[error("starting {replica}: {reason}")]
    Raft {
        /// The replica.
        replica: ReplicaId,
        /// What openraft says.
        reason: String,
    },
}

impl HostError {
    /// Whether bytes on this disk are damaged: the replica must never vote or serve again.
    fn is_damage(&self) -> bool {
        match self {
            Self::Log { source, .. } => source.is_damage(),
            Self::State { source, .. } => matches!(source, crate::state::StateError::Damage(_)),
            Self::StateBehindLog { .. } => true,
            Self::Settings(_) | Self::Raft { .. } => false,
        }
    }
}

/// Keeps, durably, that a replica lives here. Blocks.
pub type Keep = Arc<dyn Fn(&ReplicaDescriptor) -> Result<(), SmallFileError> + Send + Sync>;

/// What replicas are made of.
pub struct Parts {
    /// This node.
    pub node: NodeId,
    /// The log of all replicas.
    pub log: LogHub,
    /// The state of all replicas.
    pub state: Arc<StateHub>,
    /// Knows outside the log which replicas live here.
    pub keep: Keep,
    /// To other nodes.
    pub transport: Transport,
    /// Asks leaders for read indexes.
    pub leader: Arc<dyn AskLeader>,
    /// Told what they pass.
    pub points: Points,
    /// Owns the replicas' tasks.
    pub spawner: Spawner,
    /// Settings of every group.
    pub config: Arc<Config>,
    /// What the replicas feed.
    pub metrics: GroupMetrics,
    /// Log that a replica keeps behind its snapshot.
    pub retention: Retention,
    /// Told the meta group's state, when this node has a replica of it.
    pub meta_observer: Arc<dyn Fn(Arc<MetaRecord>) + Send + Sync>,
}

/// Whether replicas of this node may lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// They do.
    TakesPart,
    /// Not for now: the node is to be restarted on purpose.
    Abstains,
    /// Not any more: the node is about to stop.
    Leaves,
}

/// The replicas of this node and how they come to be.
pub struct Host<RT> {
    parts: Parts,
    replicas: Arc<LocalReplicas>,
    /// One replica starts at a time, so that a repeated request finds the first one's replica.
    starting: Mutex<()>,
    standing: sync::Mutex<Standing>,
    runtime: PhantomData<fn() -> RT>,
}

impl<RT: AsyncRuntime> Host<RT> {
    /// A host whose replicas are found in `replicas`.
    pub fn new(parts: Parts, replicas: Arc<LocalReplicas>) -> Arc<Self> {
        let (starting, standing) = (Mutex::new(()), sync::Mutex::new(Standing::TakesPart));
        Arc::new(Self { parts, replicas, starting, standing, runtime: PhantomData })
    }

    /// Starts every replica that has a descriptor and is not quarantined. One that does not start leaves the others
    /// alone: damage quarantines it, anything else is reported, and the next request to create it tries again.
    pub async fn start_all(&self) {
        let _one_at_a_time = self.starting.lock().await;
        for known in self.parts.log.descriptors() {
            // The start of those before it took time, in which damage of this one may have been met.
            let descriptor = self.parts.log.descriptor(ReplicaId(known.replica_id)).unwrap_or(known);
            let (replica, shard) = (descriptor.replica_id, descriptor.shard_id);
            if descriptor.removed {
                tracing::info!(replica, shard, "replica is being removed");
            } else if !descriptor.quarantine_reason.is_empty() {
                tracing::error!(
                    replica,
                    shard,
                    reason = descriptor.quarantine_reason,
                    "replica is quarantined"
                );
                let reason = descriptor.quarantine_reason.clone();
                self.replicas.quarantine(ShardId(shard), ReplicaId(replica), reason);
            } else if let Err(error) = self.start(&descriptor).await {
                self.give_up(descriptor, &error).await;
            }
        }
    }

    /// After a failed start.
    async fn give_up(&self, descriptor: ReplicaDescriptor, error: &HostError) {
        let (replica, shard) = (descriptor.replica_id, descriptor.shard_id);
        tracing::error!(replica, shard, %error, "replica did not start");
        if error.is_damage() {
            let marked = ReplicaDescriptor { quarantine_reason: error.to_string(), ..descriptor };
            if let Err(error) = self.parts.log.put_descriptor(marked).await {
                tracing::error!(replica, shard, %error, "the quarantine could not be written");
            }
            self.replicas.quarantine(ShardId(shard), ReplicaId(replica), error.to_string());
        } else {
            self.replicas.fail(Failed {
                shard: ShardId(shard),
                group: GroupId(descriptor.group_id),
                id: ReplicaId(replica),
                reason: error.to_string(),
            });
            // Damage that was met while it started may have been dealt with before.
            if self
                .parts
                .log
                .descriptor(ReplicaId(replica))
                .is_some_and(|known| !known.quarantine_reason.is_empty())
            {
                self.replicas.forget_failure(ReplicaId(replica));
            }
        }
    }

    async fn start(&self, descriptor: &ReplicaDescriptor) -> Result<(), HostError> {
        let parts = &self.parts;
        let replica = ReplicaId(descriptor.replica_id);
        let (shard, group) = (ShardId(descriptor.shard_id), GroupId(descriptor.group_id));
        let hub = parts.log.clone();
        // Reads the whole log.
        let log = self.blocking(replica, move || hub.replica::<RT>(replica)).await?;
        let log = log.map_err(|source| HostError::Log { replica, source })?;
        let machine = self.machine(replica, shard, &log).await?;
        let state = parts.state.reader(replica).map(Arc::new);
        let state = state.ok_or_else(|| raft_error(replica, "its state is gone"))?;
        let view = log.view();
        let purged = view.status().purged.map(|purged| purged.index);
        lacks_nothing(replica, purged, state.applied_index())?;
        let outgoing = Arc::new(Outgoing { spawner: parts.spawner.clone() });
        let network = NetworkFactory::new(parts.transport.clone(), group, replica, outgoing);
        let raft = Raft::new(replica.get(), parts.config.clone(), network, log, machine)
            .await
            .map_err(|error| raft_error(replica, &error.to_string()))?;
        let incoming = Arc::new(Incoming { state: parts.state.clone(), points: parts.points.clone() });
        parts.transport.register(group, replica, raft.clone(), incoming);
        let (proposer, proposing) =
            Proposer::new(shard, raft.clone(), state.clone(), view.clone(), &parts.metrics);
        let (gate, reading) =
            ReadGate::new(shard, group, raft.clone(), state.clone(), parts.leader.clone(), &parts.metrics);
        parts.spawner.spawn("proposer", proposing);
        parts.spawner.spawn("read gate", reading);
        let (node, heard) = (parts.node, self.heard());
        let control = RaftControl { shard, group, node, raft, state: state.clone(), heard, log: view };
        let control = Arc::new(control);
        self.insert(Replica { shard, group, id: replica, node, proposer, gate, state, control });
        // Damage that was met while it started found nothing to stop.
        let marked = parts.log.descriptor(replica).filter(|known| !known.quarantine_reason.is_empty());
        if let Some(marked) = marked {
            parts.transport.unregister(replica);
            if let Some(running) = self.replicas.quarantine(shard, replica, marked.quarantine_reason) {
                running.control.stop().await;
            }
            return Ok(());
        }
        tracing::info!(shard = shard.get(), replica = replica.get(), group = group.get(), "replica started");
        Ok(())
    }

    /// Makes a replica known that has just started.
    fn insert(&self, replica: Replica) {
        let standing = self.standing();
        replica.control.set_campaigning(*standing == Standing::TakesPart);
        self.replicas.insert(replica);
    }

    /// Work that waits for the disk.
    async fn blocking<T: Send + 'static>(
        &self,
        replica: ReplicaId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, HostError> {
        let done = self.parts.state.blocking("open a replica", work).await;
        done.map_err(|error| raft_error(replica, &error.to_string()))
    }

    async fn machine(
        &self,
        replica: ReplicaId,
        shard: ShardId,
        log: &LogStore<RT>,
    ) -> Result<Machine, HostError> {
        let (retained, retention) = (log.view(), self.parts.retention.clone());
        let observer: MetaObserver = self.parts.meta_observer.clone();
        let options = MachineOptions {
            durability: log.view(),
            retention: Arc::new(move || retained.cut_keeping(retention.each()).as_ref().map(log_id_to_disk)),
            meta_observer: shard.is_meta().then_some(observer),
        };
        let state = self.parts.state.clone();
        let machine = self.blocking(replica, move || state.machine(replica, shard, options)).await?;
        machine.map_err(|source| HostError::State { replica, source })
    }

    fn heard(&self) -> Heard {
        let transport = self.parts.transport.clone();
        Arc::new(move |node| transport.heard_from(node))
    }

    async fn create_once(&self, create: CreateReplica) -> Result<(), Refusal> {
        let _one_at_a_time = self.starting.lock().await;
        let replica = ReplicaId(create.replica_id);
        if self.replicas.all().iter().any(|running| running.id == replica) {
            return Ok(());
        }
        if let Some(known) = self.parts.log.descriptor(replica) {
            return self.start_again(known).await;
        }
        // An id is never used again on an empty log: what it voted and held would be forgotten.
        let state = self.parts.state.clone();
        let used = self
            .blocking(replica, move || state.has_records(replica))
            .await
            .map_err(internal)?
            .map_err(internal)?;
        if used {
            return Err(refusal::quarantined(format!("{replica} lost its log on this node")));
        }
        let descriptor = ReplicaDescriptor {
            replica_id: create.replica_id,
            shard_id: create.shard_id,
            group_id: create.group_id,
            ..ReplicaDescriptor::default()
        };
        self.parts.log.put_descriptor(descriptor.clone()).await.map_err(internal)?;
        self.keep(&descriptor).await?;
        self.start(&descriptor).await.map_err(internal)
    }

    /// Notes outside the log that the replica lives here, before it votes for the first time.
    async fn keep(&self, descriptor: &ReplicaDescriptor) -> Result<(), Refusal> {
        let (keep, descriptor) = (self.parts.keep.clone(), descriptor.clone());
        let replica = ReplicaId(descriptor.replica_id);
        self.blocking(replica, move || keep(&descriptor)).await.map_err(internal)?.map_err(internal)
    }

    async fn start_again(&self, known: ReplicaDescriptor) -> Result<(), Refusal> {
        if known.removed {
            return Err(removed(ReplicaId(known.replica_id)));
        }
        if !known.quarantine_reason.is_empty() {
            return Err(refusal::quarantined(known.quarantine_reason));
        }
        // The first attempt may have failed before it came to this.
        self.keep(&known).await?;
        match self.start(&known).await {
            Ok(()) => Ok(()),
            Err(error) => {
                let refused = refusal::internal(error.to_string());
                self.give_up(known, &error).await;
                Err(refused)
            }
        }
    }

    /// Gives all leaderships away and takes none any more: the node is about to stop.
    pub async fn hand_over(&self) {
        self.stand(Standing::Leaves);
        self.give_away().await;
    }

    /// Stops a replica that is not to start again: its descriptor says so already. Returns when nothing of it runs any more
    /// or, after seconds, when that is not to be seen.
    pub async fn retire(&self, replica: ReplicaId) {
        let running = {
            // One that starts now is there when it has started.
            let _one_at_a_time = self.starting.lock().await;
            self.parts.transport.unregister(replica);
            self.replicas.forget(replica)
        };
        if let Some(running) = running {
            running.control.stop().await;
        }
    }

    fn standing(&self) -> sync::MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a standing, unless the node is about to stop.
    fn stand(&self, new: Standing) {
        let mut standing = self.standing();
        if *standing == Standing::Leaves {
            return;
        }
        *standing = new;
        let takes_part = new == Standing::TakesPart;
        self.replicas.set_leaving(!takes_part);
        self.parts.transport.set_leaderships(takes_part);
        for replica in self.replicas.all() {
            replica.control.set_campaigning(takes_part);
        }
    }

    /// Stops all replicas. Their durable state stays.
    pub async fn stop_all(&self) {
        let all = self.replicas.all();
        for replica in &all {
            self.replicas.remove(replica.id);
            self.parts.transport.unregister(replica.id);
        }
        futures::future::join_all(all.iter().map(|replica| replica.control.stop())).await;
    }
}

impl<RT: AsyncRuntime> Leads for Host<RT> {
    fn abstain(&self) {
        self.stand(Standing::Abstains);
    }

    fn take_part(&self) {
        self.stand(Standing::TakesPart);
    }

    fn give_away(&self) -> BoxFuture<'static, ()> {
        // All groups at once.
        let handing = self.replicas.all().into_iter().map(|replica| replica.control.give_away());
        futures::future::join_all(handing).map(drop).boxed()
    }

    fn led(&self) -> Vec<ShardId> {
        let is_led = |replica: &Replica| {
            let status = replica.control.status();
            status.role() == Role::Leader && status.voter_node_ids.len() > 1
        };
        self.replicas.all().iter().filter(|replica| is_led(replica)).map(|replica| replica.shard).collect()
    }
}

impl<RT: AsyncRuntime> Hosting for Host<RT> {
    fn create(self: Arc<Self>, replica: CreateReplica) -> BoxFuture<'static, Result<(), Refusal>> {
        async move { self.create_once(replica).await }.boxed()
    }
}

/// What was purged from the log must be in the state: an older state would be served as if nothing were missing.
fn lacks_nothing(replica: ReplicaId, purged: Option<u64>, applied: Option<u64>) -> Result<(), HostError> {
    match purged {
        Some(purged) if applied < Some(purged) => Err(HostError::StateBehindLog { replica, purged, applied }),
        Some(_) | None => Ok(()),
    }
}

fn removed(replica: ReplicaId) -> Refusal {
    let message = format!("{replica} is being removed from this node");
    refusal::of(Kind::FailedPrecondition, refusal::REPLICA_UNKNOWN, message)
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn internal(error: impl std::fmt::Display) -> Refusal {
    refusal::internal(error.to_string())
}

fn raft_error(replica: ReplicaId, reason: &str) -> HostError {
    HostError::Raft { replica, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_is_older_than_its_log_is_damage() {
        let check = |purged, applied| lacks_nothing(ReplicaId(1), purged, applied);
        for (purged, applied) in [(None, None), (None, Some(3)), (Some(3), Some(3)), (Some(3), Some(9))] {
            assert!(check(purged, applied).is_ok(), "{purged:?} {applied:?}");
        }
        for (purged, applied) in [(Some(0), None), (Some(3), None), (Some(3), Some(2))] {
            let refused = check(purged, applied).expect_err("state is missing");
            assert!(refused.is_damage(), "{refused}");
        }
    }
}
