//! The two databases of a node, and what happens when they fail: a failed device ends the node, damaged bytes
//! quarantine a replica.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use kv_proto::disk::v1::{MetaRecord, ReplicaDescriptor};
use kv_topology::ReplicaId;
use tokio::sync::mpsc;

use super::replicas::LocalReplicas;
use crate::{
    config::Config,
    data_dir::DataDir,
    log::{
        Driver, LogError, LogHub,
        options::LogMemory,
        recovery::{self, OpenError},
    },
    runtime::Spawner,
    state::{
        Damage, StateError,
        flush::FlushPolicy,
        hub::{Hooks, StateHub},
        workers::Workers,
    },
    transport::Transport,
};

/// Share of the node's memory that the state store may use: its caches and memtables.
const STATE_MEMORY_DIVISOR: u64 = 2;

/// Ends the node: a device failed, and an fsync is never retried. Given the reason.
pub type Fatal = Arc<dyn Fn(&str) + Send + Sync>;

/// Why the databases cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoresError {
    /// The Raft log.
    #[error(transparent)]
    OpenLog(#[from] OpenError),
    /// The records in it.
    #[error("raftlog: {0}")]
    Log(#[from] LogError),
    /// The state.
    #[error("state: {0}")]
    State(#[from] StateError),
}

/// Log and state of all replicas of a node.
pub struct Stores {
    /// The Raft logs.
    pub log: LogHub,
    /// The states.
    pub state: Arc<StateHub>,
    damages: Mutex<Option<mpsc::UnboundedReceiver<Damage>>>,
}

impl Stores {
    /// Opens both. A damaged log is set aside and its replicas are quarantined. Blocks.
    ///
    /// # Errors
    /// When a database cannot be opened for a reason that is not damage.
    pub async fn open(
        dir: &DataDir,
        config: &Config,
        spawner: &Spawner,
        fatal: Fatal,
    ) -> Result<Self, StoresError> {
        let opened = recovery::open(&dir.raftlog(), &LogMemory::default())?;
        let log_failed = fatal.clone();
        let log = LogHub::open(
            Arc::new(opened.device),
            Driver::Thread,
            Box::new(move |error| log_failed(&format!("the log device failed: {error}"))),
        )?;
        for damage in opened.damages {
            tracing::error!(folder = %damage.folder.display(), damage.reason, "the Raft log was damaged");
            for replica in &damage.replicas {
                let reason = format!("its Raft log was damaged: {}", damage.reason);
                log.put_descriptor(ReplicaDescriptor { quarantine_reason: reason, ..replica.clone() })
                    .await?;
            }
            damage.settle()?;
        }
        let (found, damages) = mpsc::unbounded_channel();
        let hooks = Hooks {
            fatal: Arc::new(move |error| fatal(&format!("the state store failed: {error}"))),
            // Nobody listens any more when the node stops.
            damaged: Arc::new(move |damage| drop(found.send(damage))),
        };
        let memory = usize::try_from(config.memory.0 / STATE_MEMORY_DIVISOR).unwrap_or(usize::MAX);
        let policy = FlushPolicy { interval: config.compaction.flush_interval, ..FlushPolicy::default() };
        let state = StateHub::open(&dir.state(), memory, policy, hooks, workers(spawner))?;
        Ok(Self { log, state: Arc::new(state), damages: Mutex::new(Some(damages)) })
    }

    /// The registry and map that were kept at the last run.
    pub fn kept_map(&self) -> MetaRecord {
        self.log.cluster_cache().and_then(|cache| cache.meta).unwrap_or_default()
    }

    /// Quarantines replicas whose bytes turn out to be damaged: durably, and then they are stopped.
    pub fn guard(&self, replicas: &Arc<LocalReplicas>, transport: &Transport, spawner: &Spawner) {
        let taken = self.damages.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut damages) = taken else { return };
        let (log, replicas, transport) = (self.log.clone(), replicas.clone(), transport.clone());
        spawner.spawn("quarantine", async move {
            while let Some(damage) = damages.recv().await {
                quarantine(&log, &replicas, &transport, &damage).await;
            }
        });
    }

    /// Replicas that were quarantined, each with its reason.
    pub fn quarantined(&self) -> Vec<ReplicaDescriptor> {
        let all = self.log.descriptors().into_iter();
        all.filter(|descriptor| !descriptor.quarantine_reason.is_empty()).collect()
    }

    /// Flushes and closes both.
    ///
    /// # Errors
    /// The last flush failed; nothing is lost, the log brings it again.
    pub async fn close(&self) -> io::Result<()> {
        let flushed = self.state.close().await;
        self.log.close();
        flushed
    }
}

async fn quarantine(log: &LogHub, replicas: &LocalReplicas, transport: &Transport, damage: &Damage) {
    let descriptors = log.descriptors();
    let known = descriptors.into_iter().find(|descriptor| ReplicaId(descriptor.replica_id) == damage.replica);
    let Some(descriptor) = known.filter(|descriptor| descriptor.quarantine_reason.is_empty()) else { return };
    tracing::error!(replica = damage.replica.get(), damage = %damage, "damaged bytes: replica is quarantined");
    let marked = ReplicaDescriptor { quarantine_reason: damage.to_string(), ..descriptor };
    if let Err(error) = log.put_descriptor(marked).await {
        tracing::error!(%error, "the quarantine could not be written");
    }
    transport.unregister(damage.replica);
    if let Some(replica) = replicas.remove(damage.replica) {
        replica.control.stop().await;
    }
}

/// Threads for what blocks, the node's tasks for what waits.
fn workers(spawner: &Spawner) -> Workers {
    let spawner = spawner.clone();
    Workers::Threads {
        threads: Arc::new(|name, work| thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)),
        tasks: Arc::new(move |name, task| spawner.spawn(name, task)),
    }
}
