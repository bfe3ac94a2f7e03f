//! openraft's storage suite on our log and state stores together: both devices, the state machine that nodes run.
//!
//! Two things stand between the suite and the state machine, because the suite has no transport and no engine:
//! a snapshot is carried from one store to the other as nodes do it, and the gap in the entries that one of its tests
//! applies is filled. openraft itself leaves no gaps, and a state machine of ours that meets one stops.

use std::{io, sync::Arc};

use futures::{Stream, TryStreamExt, stream};
use kv_topology::ShardId;
use kvnode::{
    group::type_config::TokioConfig,
    log::{
        LogHub, PlantedBug, SimulatedDisk,
        codec::{Entry, LogId, StoredMembership},
    },
    state::{
        StateEngine, StateError,
        flush::FlushPolicy,
        hub::{Hooks, MachineOptions, StateHub},
        memory::MemoryEngine,
        options::MemoryBudget,
        rocks::RocksEngine,
        snapshot::{SnapshotData, SnapshotSource, StagedSnapshot},
        workers::Workers,
    },
    state_machine::{
        raft::{AlwaysDurable, SnapshotBuilder, StateMachine},
        record::SnapshotMeta,
    },
};
use openraft::{
    OptionalSend, StorageError,
    alias::SnapshotOf,
    entry::RaftEntry,
    storage::{EntryResponder, RaftStateMachine},
    testing::log::{StoreBuilder, Suite},
};

use crate::support::{REPLICA, Store, folder_hub, log_id, task_hub};

const SHARD: ShardId = ShardId(1);
const STATE_MEMORY_BYTES: usize = 32 << 20;

/// Whatever was applied is flushed at once: the suite expects a snapshot of all that it has just applied.
const FLUSH_ALWAYS: FlushPolicy =
    FlushPolicy { applied_bytes_max: 1, interval: std::time::Duration::from_millis(10) };

/// The state machine of a replica as the suite drives it.
struct Machine {
    inner: StateMachine<AlwaysDurable>,
    hub: Arc<StateHub>,
}

impl Machine {
    /// What the transport does: the receiver names a generation, the sender's chunks are staged under it.
    async fn carry_over(&self, source: &SnapshotSource) -> Result<StagedSnapshot, StateError> {
        let mut stage = self.hub.stage_snapshot(REPLICA)?;
        let mut chunks = source.stream(REPLICA, stage.generation())?;
        while let Some(chunk) = chunks.recv().await {
            stage.accept(chunk.map_err(|error| StateError::engine("read a snapshot", error))?).await?;
        }
        stage.finish()
    }

    async fn applied(&mut self) -> io::Result<Option<LogId>> {
        Ok(RaftStateMachine::<TokioConfig>::applied_state(&mut self.inner).await?.0)
    }
}

/// The entries, with blank ones of the same term where indexes are missing.
fn without_gaps(
    applied: Option<LogId>,
    entries: Vec<EntryResponder<TokioConfig>>,
) -> Vec<EntryResponder<TokioConfig>> {
    let mut next = applied.map(|id| id.index + 1);
    let mut filled = Vec::new();
    for (entry, responder) in entries {
        let LogId { leader_id, index } = entry.log_id;
        let missing = next.unwrap_or(index)..index;
        filled.extend(missing.map(|index| (Entry::new_blank(LogId::new(leader_id, index)), None)));
        next = Some(index + 1);
        filled.push((entry, responder));
    }
    filled
}

impl RaftStateMachine<TokioConfig> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        RaftStateMachine::<TokioConfig>::applied_state(&mut self.inner).await
    }

    async fn apply<S>(&mut self, entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TokioConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let entries = without_gaps(self.applied().await?, entries.try_collect().await?);
        let entries = stream::iter(entries.into_iter().map(Ok));
        RaftStateMachine::<TokioConfig>::apply(&mut self.inner, entries).await
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        RaftStateMachine::<TokioConfig>::get_snapshot_builder(&mut self.inner).await
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let SnapshotData::OnDemand(source) = snapshot else { panic!("the suite stages nothing by itself") };
        let staged = SnapshotData::Staged(self.carry_over(&source).await?);
        RaftStateMachine::<TokioConfig>::install_snapshot(&mut self.inner, meta, staged).await
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TokioConfig, SnapshotData>>, io::Error> {
        RaftStateMachine::<TokioConfig>::get_current_snapshot(&mut self.inner).await
    }
}

/// Both stores of a node. The suite drops it last.
struct Stores {
    _log: LogHub,
    state: Arc<StateHub>,
    folder: Option<tempfile::TempDir>,
}

impl Drop for Stores {
    fn drop(&mut self) {
        let (state, folder) = (self.state.clone(), self.folder.take());
        tokio::spawn(async move {
            state.close().await.expect("closed");
            drop(folder);
        });
    }
}

type Built = (Stores, Store, Machine);

fn build(
    log: LogHub,
    engine: Arc<dyn StateEngine>,
    workers: Workers,
    folder: Option<tempfile::TempDir>,
) -> Built {
    let hooks = Hooks {
        fatal: Arc::new(|error| panic!("{error}")),
        damaged: Arc::new(|damage| panic!("{damage}")),
        metrics: Default::default(),
    };
    let hub = Arc::new(StateHub::with_engine(engine, FLUSH_ALWAYS, hooks, workers).expect("state"));
    // The suite applies what it never appends.
    let options =
        MachineOptions { durability: AlwaysDurable, retention: Arc::new(|| None), meta_observer: None };
    let inner = hub.machine(REPLICA, SHARD, options).expect("machine");
    let store = log.replica(REPLICA).expect("replica");
    (Stores { _log: log, state: hub.clone(), folder }, store, Machine { inner, hub })
}

struct OnRocks;

impl StoreBuilder<TokioConfig, Store, Machine, Stores> for OnRocks {
    async fn build(&self) -> Result<Built, StorageError<TokioConfig>> {
        let folder = tempfile::tempdir().expect("folder");
        let log = folder_hub(&folder.path().join("raftlog"));
        let budget = MemoryBudget::of(STATE_MEMORY_BYTES);
        let engine = RocksEngine::open(&folder.path().join("state"), budget).expect("engine");
        let workers = Workers::Threads {
            threads: Arc::new(|name, work| {
                std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
            }),
            tasks: Arc::new(|_, task| drop(tokio::spawn(task))),
        };
        Ok(build(log, Arc::new(engine), workers, Some(folder)))
    }
}

struct Simulated;

impl StoreBuilder<TokioConfig, Store, Machine, Stores> for Simulated {
    async fn build(&self) -> Result<Built, StorageError<TokioConfig>> {
        let log = task_hub(&SimulatedDisk::new(PlantedBug::None), PlantedBug::None);
        let workers = Workers::Simulated { tasks: Arc::new(|_, task| drop(tokio::spawn(task))) };
        Ok(build(log, Arc::new(MemoryEngine::new()), workers, None))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_and_state_on_disk_pass_openrafts_suite() {
    Suite::test_all(OnRocks).await.expect("suite");
}

#[tokio::test(start_paused = true)]
async fn log_and_state_in_simulation_pass_openrafts_suite() {
    Suite::test_all(Simulated).await.expect("suite");
}

#[test]
fn gaps_are_filled_and_nothing_else_is_changed() {
    let entries = |indexes: &[u64]| -> Vec<EntryResponder<TokioConfig>> {
        indexes.iter().map(|index| (Entry::new_blank(log_id(2, *index)), None)).collect()
    };
    let indexes = |applied, from: &[u64]| -> Vec<u64> {
        without_gaps(applied, entries(from)).iter().map(|(entry, _)| entry.log_id.index).collect()
    };
    assert_eq!(indexes(None, &[3, 4]), [3, 4]);
    assert_eq!(indexes(Some(log_id(1, 3)), &[5, 6]), [4, 5, 6]);
    assert_eq!(indexes(Some(log_id(1, 3)), &[3]), [3], "the state machine refuses it");
}
