//! How large the states of this node's replicas are, about: looked at now and then, told at once.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kv_topology::ReplicaId;
use tokio::time::{MissedTickBehavior, interval};

use crate::{log::LogHub, state::hub::StateHub};

/// Between two looks: often enough for who watches a replica move, and rare next to everything else.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What was found last, by replica, in bytes.
#[derive(Debug, Default)]
pub struct Sizes(Mutex<BTreeMap<ReplicaId, u64>>);

impl Sizes {
    /// Of one replica; 0 while nobody has looked.
    pub fn of(&self, replica: ReplicaId) -> u64 {
        self.known().get(&replica).copied().unwrap_or(0)
    }

    /// Of all.
    pub fn all(&self) -> BTreeMap<ReplicaId, u64> {
        self.known().clone()
    }

    /// Looks for ever, never on a thread of the runtime.
    pub async fn watch(self: Arc<Self>, log: LogHub, state: Arc<StateHub>) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let hosted = log.descriptors().into_iter().filter(|replica| !replica.removed);
            match state.sizes(hosted.map(|replica| ReplicaId(replica.replica_id)).collect()).await {
                Ok(found) => *self.known() = found,
                // A store that failed ends the node; until then the last look counts.
                Err(error) => tracing::debug!(%error, "the sizes of states are not known"),
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
