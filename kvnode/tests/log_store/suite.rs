//! openraft's storage suite on both devices, with a state machine that is just enough for it.

use std::{
    io,
    sync::{Arc, Mutex},
};

use futures::{Stream, TryStreamExt};
use kvnode::{
    group::type_config::{Applied, TokioConfig},
    log::{
        PlantedBug, SimulatedDisk,
        codec::{LogId, Payload, StoredMembership},
    },
};
use openraft::{
    OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta, StorageError,
    storage::{EntryResponder, RaftStateMachine},
    testing::log::{StoreBuilder, Suite},
};

use crate::support::{REPLICA, Store, rocks_hub, task_hub};

type SnapshotOf = openraft::alias::SnapshotOf<TokioConfig, ()>;
type MetaOf = openraft::alias::SnapshotMetaOf<TokioConfig>;

#[derive(Clone, Default)]
struct Machine(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    applied: Option<LogId>,
    membership: StoredMembership,
    snapshot: Option<MetaOf>,
}

impl RaftSnapshotBuilder<TokioConfig> for Machine {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> Result<SnapshotOf, io::Error> {
        let mut state = self.0.lock().unwrap();
        let meta = SnapshotMeta { last_log_id: state.applied, last_membership: state.membership.clone() };
        state.snapshot = Some(meta.clone());
        Ok(Snapshot { meta, snapshot: () })
    }
}

impl RaftStateMachine<TokioConfig> for Machine {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let state = self.0.lock().unwrap();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TokioConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            {
                let mut state = self.0.lock().unwrap();
                state.applied = Some(entry.log_id);
                if let Payload::Membership(membership) = entry.payload {
                    state.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
            }
            if let Some(responder) = responder {
                responder.send(Applied::default());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &MetaOf, (): ()) -> Result<(), io::Error> {
        let mut state = self.0.lock().unwrap();
        state.applied = meta.last_log_id;
        state.membership = meta.last_membership.clone();
        state.snapshot = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf>, io::Error> {
        Ok(self.0.lock().unwrap().snapshot.clone().map(|meta| Snapshot { meta, snapshot: () }))
    }
}

struct OnRocks;

impl StoreBuilder<TokioConfig, Store, Machine, tempfile::TempDir> for OnRocks {
    async fn build(&self) -> Result<(tempfile::TempDir, Store, Machine), StorageError<TokioConfig>> {
        let folder = tempfile::tempdir().expect("folder");
        let hub = rocks_hub(&folder.path().join("raftlog"));
        let store = hub.replica(REPLICA).expect("replica");
        keep(hub);
        Ok((folder, store, Machine::default()))
    }
}

struct OnSimulated;

impl StoreBuilder<TokioConfig, Store, Machine, ()> for OnSimulated {
    async fn build(&self) -> Result<((), Store, Machine), StorageError<TokioConfig>> {
        let hub = task_hub(&SimulatedDisk::new(PlantedBug::None), PlantedBug::None);
        let store = hub.replica(REPLICA).expect("replica");
        keep(hub);
        Ok(((), store, Machine::default()))
    }
}

/// The suite drops the guard before the store: the committer of a dropped hub would end too early.
fn keep(hub: kvnode::log::LogHub) {
    std::mem::forget(hub);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_on_rocksdb_passes_openrafts_suite() {
    Suite::test_all(OnRocks).await.expect("suite");
}

#[tokio::test(start_paused = true)]
async fn the_store_on_a_simulated_device_passes_openrafts_suite() {
    Suite::test_all(OnSimulated).await.expect("suite");
}
