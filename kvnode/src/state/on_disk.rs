//! What the store has of replicas that do not run, and what it would have: for recovery. Nothing here changes anything.

use std::sync::Arc;

use kv_proto::{
    disk::v1::{GroupRecord, MetaRecord, ReplicaRecord},
    peer::v1::Outcome,
};
use kv_topology::{Generation, ReplicaId, ShardId};

use super::{StateError, engine::with_view, hub::StateHub, keys::Scope};
use crate::state_machine::{
    apply::ApplyError,
    overlay::Overlay,
    replica::{ReadyEntry, Replica, read_group, read_record},
};

/// The meta group's state once some entries are applied.
#[derive(Clone, Debug)]
pub struct Foreseen {
    /// The record.
    pub record: Arc<MetaRecord>,
    /// What each of the entries came to: an outcome for each of its operations.
    pub outcomes: Vec<Vec<Outcome>>,
}

impl StateHub {
    /// The record of a replica and that of its group. `None`: it has no state.
    ///
    /// # Errors
    /// Damage, and failures of the store.
    pub fn records_of(
        &self,
        replica: ReplicaId,
        shard: ShardId,
    ) -> Result<Option<(ReplicaRecord, GroupRecord)>, StateError> {
        with_view(self.shared.engine.as_ref(), |view| {
            let Some(record) = read_record(view, replica)? else { return Ok(None) };
            let scope = Scope::new(replica, Generation(record.generation));
            let group = read_group(view, scope, shard)?;
            Ok(Some((record, group)))
        })
    }

    /// What the state of meta's replica becomes when these entries are applied, which follow the last one that was. They
    /// are applied as they will be when the replica runs, and thrown away.
    ///
    /// # Errors
    /// Damage, failures of the store, and entries that would stop the replica.
    pub fn foresee_meta(&self, replica: ReplicaId, entries: &[ReadyEntry]) -> Result<Foreseen, ApplyError> {
        with_view(self.shared.engine.as_ref(), |view| {
            let mut loaded = Replica::load(view, replica, ShardId::META)?;
            let mut overlay = Overlay::new(view);
            let outcomes = entries.iter().map(|entry| loaded.apply_entry(&mut overlay, entry));
            let outcomes = outcomes.collect::<Result<_, _>>()?;
            Ok(Foreseen { record: loaded.meta().cloned().unwrap_or_default(), outcomes })
        })
    }
}
