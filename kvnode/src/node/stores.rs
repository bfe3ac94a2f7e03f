//! The two databases of a node, and what happens when they fail: a failed device ends the node, damaged bytes
//! quarantine a replica.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use kv_proto::disk::v1::{MetaRecord, ReplicaDescriptor};
use kv_topology::ReplicaId;
use openraft_rt_tokio::TokioRuntime;
use tokio::sync::mpsc;

use super::{
    kept::Kept,
    losses::{self, Traces},
    memory::MemoryPlan,
    quarantine::{self, Finding},
    replicas::LocalReplicas,
    sizes::Sizes,
};
use crate::{
    config::Config,
    data_dir::{DataDir, DataDirError, Scope, small_file::SmallFileError},
    log::{Driver, LogError, LogHub, budget::LogBudget, recovery},
    metrics::LogMetrics,
    runtime::{Handover, Spawner, lasting::THREADS},
    state::{
        Damage, StateError,
        flush::FlushPolicy,
        hub::{Hooks, StateHub},
        rocks,
        workers::Workers,
    },
    transport::Transport,
};

/// Ends the node: a device failed, and an fsync is never retried. Given the reason.
pub type Fatal = Arc<dyn Fn(&str) + Send + Sync>;

/// Why the databases cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoresError {
    /// The Raft log.
    #[error(transparent)]
    OpenLog(#[from] recovery::OpenError),
    /// The records in it.
    #[error("raftlog: {0}")]
    Log(#[from] LogError),
    /// The state.
    #[error("state: {0}")]
    OpenState(#[from] rocks::OpenError),
    /// The records in it.
    #[error("state: {0}")]
    State(#[from] StateError),
    /// The file `CLUSTER`.
    #[error(transparent)]
    Kept(#[from] SmallFileError),
    /// Something cannot be set aside.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Work on one of them was not done.
    #[error("data folder: {0}")]
    Work(io::Error),
    /// The log and the file `CLUSTER` are damaged: a replica that is not known to have been here could vote twice.
    #[error(
        "the Raft log is damaged and so is the list of the replicas that it was of ({0}); move the data folder away, \
         the node then joins its cluster as a new one"
    )]
    LostTrack(String),
}

/// Log and state of all replicas of a node.
pub struct Stores {
    /// The Raft logs.
    pub log: LogHub,
    /// The states.
    pub state: Arc<StateHub>,
    /// What is known without them.
    pub kept: Arc<Kept>,
    /// How large the states are.
    pub sizes: Arc<Sizes>,
    findings: Mutex<Option<mpsc::UnboundedReceiver<Finding>>>,
}

impl Stores {
    /// Opens both. What is damaged as a whole is set aside, and the replicas that are lost with it are quarantined;
    /// see [`losses`]. Blocks.
    ///
    /// # Errors
    /// When a database cannot be opened for a reason that is not damage.
    pub async fn open(
        dir: &DataDir,
        config: &Config,
        memory: &MemoryPlan,
        spawner: &Spawner,
        fatal: Fatal,
        metrics: &LogMetrics,
    ) -> Result<Self, StoresError> {
        let (kept, list_damage) = Kept::open(&dir.cluster())?;
        let (log, lost_logs) = open_log(&dir.raftlog(), memory, spawner, &fatal, metrics)?;
        metrics.storage.corruptions.inc_by(lost_logs.len() as u64);
        if let Some(damage) = list_damage {
            if !lost_logs.is_empty() {
                return Err(StoresError::LostTrack(damage));
            }
            tracing::error!(damage, "the map that was kept is lost; the log says which replicas live here");
        }
        // Unbounded, since those who find damage must not wait; a replica that is quarantined finds no more.
        let (found, findings) = mpsc::unbounded_channel();
        let (in_log, corruptions) = (found.clone(), metrics.storage.corruptions.clone());
        log.on_damage(Box::new(move |replica, error| {
            corruptions.inc();
            // Nobody listens any more when the node stops.
            drop(in_log.send(Finding { replica, reason: error.to_string() }));
        }));
        let policy = FlushPolicy { interval: config.compaction.flush_interval, ..FlushPolicy::default() };
        let open_state = || {
            let hooks = hooks(&found, &fatal, metrics);
            StateHub::open(&dir.state(), memory.state, policy, hooks, workers(spawner))
        };
        let state = match open_state() {
            Err(rocks::OpenError::Damaged(reason)) => Err(reason),
            opened => Ok(opened?),
        };
        let in_state = match &state {
            Ok(state) => state.replicas_on_disk()?,
            Err(_) => Vec::new(),
        };
        let (hosted, map) = (kept.hosted(), kept.meta());
        let traces = Traces { lost_logs: &lost_logs, hosted: &hosted, in_state: &in_state, map: &map };
        for lost in losses::without_log(&traces, &log.descriptors()) {
            let (replica, reason) = (lost.replica_id, &lost.quarantine_reason);
            tracing::error!(replica, shard = lost.shard_id, reason, "replica is quarantined");
            log.put_descriptor(lost).await?;
        }
        lost_logs.into_iter().try_for_each(recovery::Damage::settle)?;
        for descriptor in log.descriptors() {
            kept.keep_hosted(&descriptor)?;
        }
        let state = match state {
            Ok(state) => state,
            Err(reason) => {
                tracing::error!(reason, "the state is damaged as a whole, setting it aside");
                quarantine_without_state(&log, &reason).await?;
                dir.set_aside_now(Scope::State, &format!("the state is damaged: {reason}"))?;
                open_state()?
            }
        };
        let findings = Mutex::new(Some(findings));
        Ok(Self { log, state: Arc::new(state), kept: Arc::new(kept), sizes: Arc::default(), findings })
    }

    /// Notes durably that a replica lives here: before it starts for the first time.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn host(&self, replica: ReplicaDescriptor) -> Result<(), StoresError> {
        // In this order: what only the list knows has lost its log.
        self.log.put_descriptor(replica.clone()).await?;
        Ok(self.kept.keep_hosted(&replica)?)
    }

    /// Forgets all replicas and the map. None of them may ever have run.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn forget_all(&self) -> Result<(), StoresError> {
        for descriptor in self.log.descriptors() {
            let replica = ReplicaId(descriptor.replica_id);
            self.kept.forget_hosted(&[replica])?;
            self.log.remove_replica(replica).await?;
        }
        Ok(self.kept.forget_meta()?)
    }

    /// Keeps the registry and map, unless a newer one is kept.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn keep_meta(&self, record: MetaRecord) -> Result<(), StoresError> {
        let kept = self.kept.clone();
        let keep = self.state.blocking("keep the map", move || kept.keep_meta(record)).await;
        Ok(keep.map_err(StoresError::Work)??)
    }

    /// Replicas that are to be removed.
    pub fn condemned(&self) -> Vec<ReplicaId> {
        let condemned = self.log.descriptors().into_iter().filter(|replica| replica.removed);
        condemned.map(|replica| ReplicaId(replica.replica_id)).collect()
    }

    /// Notes durably that a replica is to be removed: from now on it never starts, and [`Self::erase`] may be cut off and
    /// begun again. `false`: there is none.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn condemn(&self, replica: ReplicaId) -> Result<bool, StoresError> {
        let Some(known) = self.log.descriptor(replica) else { return Ok(false) };
        if !known.removed {
            self.log.put_descriptor(ReplicaDescriptor { removed: true, ..known }).await?;
        }
        Ok(true)
    }

    /// Removes all that condemned replicas have. Their Raft must have ended. Done already is done.
    ///
    /// # Errors
    /// When it is not durable. It is begun again at the next start at the latest.
    pub async fn erase(&self, replicas: Vec<ReplicaId>) -> Result<(), StoresError> {
        // In this order: a state without a descriptor, and a replica that only the list knows, have lost their log.
        self.state.remove_replicas(replicas.clone()).await.map_err(StoresError::Work)?;
        let (kept, forgotten) = (self.kept.clone(), replicas.clone());
        let forget = move || kept.forget_hosted(&forgotten);
        self.state.blocking("forget replicas", forget).await.map_err(StoresError::Work)??;
        for replica in replicas {
            self.log.remove_replica(replica).await?;
        }
        Ok(())
    }

    /// Quarantines replicas whose bytes turn out to be damaged: at once they are cut off, durably marked, stopped. Called
    /// before the first of them starts.
    pub fn guard(&self, replicas: &Arc<LocalReplicas>, transport: &Transport, spawner: &Spawner) {
        let taken = self.findings.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(findings) = taken else { return };
        let (log, replicas, transport) = (self.log.clone(), replicas.clone(), transport.clone());
        spawner.spawn("quarantine", quarantine::run(findings, log, replicas, transport));
    }

    /// Replicas that were quarantined, each with its reason.
    pub fn quarantined(&self) -> Vec<ReplicaDescriptor> {
        let damaged = |descriptor: &ReplicaDescriptor| !descriptor.quarantine_reason.is_empty();
        self.log.descriptors().into_iter().filter(|known| damaged(known) && !known.removed).collect()
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

/// Opens the log and reads which replicas it is of. Also the logs that were lost, now or earlier, and not dealt with.
fn open_log(
    folder: &Path,
    memory: &MemoryPlan,
    spawner: &Spawner,
    fatal: &Fatal,
    metrics: &LogMetrics,
) -> Result<(LogHub, Vec<recovery::Damage>), StoresError> {
    let budget = LogBudget { tail_bytes: memory.log_tails, queue_bytes: memory.log_queue };
    let hub = |device| {
        let fatal = fatal.clone();
        let failed = Box::new(move |error| fatal(&format!("the log device failed: {error}")));
        let (handover, telling) = Handover::to_task();
        spawner.spawn("log completions", telling);
        LogHub::with(Arc::new(device), Driver::Thread(handover), failed, budget, metrics.clone())
    };
    let opened = recovery::open(folder)?;
    match hub(opened.device) {
        Ok(log) => Ok((log, opened.damages)),
        Err(unreadable) if unreadable.is_damage() => {
            let opened = recovery::replace(folder, &unreadable.to_string())?;
            Ok((hub(opened.device)?, opened.damages))
        }
        Err(error) => Err(error.into()),
    }
}

fn hooks(found: &mpsc::UnboundedSender<Finding>, fatal: &Fatal, metrics: &LogMetrics) -> Hooks {
    let (found, fatal) = (found.clone(), fatal.clone());
    Hooks {
        fatal: Arc::new(move |error| fatal(&format!("the state store failed: {error}"))),
        // Nobody listens any more when the node stops.
        damaged: Arc::new(move |damage: Damage| drop(found.send(damage.into()))),
        metrics: metrics.storage.clone(),
    }
}

/// Before a lost state is replaced by an empty one: only a log that begins with the first entry brings it back. One that
/// is empty does not show that there never was more, so it counts as cut.
async fn quarantine_without_state(log: &LogHub, reason: &str) -> Result<(), StoresError> {
    for descriptor in log.descriptors() {
        let replica = ReplicaId(descriptor.replica_id);
        if !descriptor.quarantine_reason.is_empty() || descriptor.removed {
            continue;
        }
        let why = match log.replica::<TokioRuntime>(replica) {
            Ok(store) if store.view().status().begins_with_the_first_entry() => continue,
            Ok(_) => format!("its state was lost, and its log does not reach back: {reason}"),
            Err(error) if error.is_damage() => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        tracing::error!(replica = replica.get(), shard = descriptor.shard_id, why, "replica is quarantined");
        log.put_descriptor(ReplicaDescriptor { quarantine_reason: why, ..descriptor }).await?;
    }
    Ok(())
}

/// Threads for what blocks, the node's tasks for what waits.
fn workers(spawner: &Spawner) -> Workers {
    let spawner = spawner.clone();
    Workers::Threads {
        threads: Arc::new(|name, work| THREADS.spawn(name, work)),
        tasks: Arc::new(move |name, task| spawner.spawn(name, task)),
    }
}
