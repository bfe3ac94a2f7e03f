//! A replica's state as apply holds it: the records that every entry touches, decoded, and the rest in the store.
//!
//! ```text
//! load ─► { apply_entry … seal ─► one write of the store ─► commit } … ─► load again after a snapshot came in
//! ```
//!
//! `apply_entry` changes the records in memory and an overlay; `seal` puts the records into the overlay. If the
//! write does not happen, the replica in memory is ahead of the store and must not be used: it is stopped.

use std::sync::Arc;

use bytes::Bytes;
use kv_proto::{
    disk::v1::{GroupRecord, LogId, Membership, MetaRecord, Proposal, ReplicaRecord, StoredMembership},
    peer::v1::Outcome,
};
use kv_topology::{Generation, ReplicaId, ShardId};
use prost::Message;

use super::{
    apply::{self, ApplyError, Step},
    heads::{HeadBudget, Heads},
    overlay::Overlay,
    session_store,
    sessions::{Sessions, Tally},
    value,
};
use crate::state::{
    StateError, View,
    keys::{self, Scope},
};

/// What a committed entry carries.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// Nothing.
    Blank,
    /// An encoded `disk.v1.Proposal`.
    Proposal(Bytes),
    /// The group's membership from here on.
    Membership(Membership),
}

/// A committed entry that is durable in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadyEntry {
    /// Its id; indexes follow one another.
    pub id: LogId,
    /// What it carries.
    pub payload: Payload,
}

impl ReadyEntry {
    /// About how many bytes it brings.
    pub fn bytes(&self) -> usize {
        match &self.payload {
            Payload::Proposal(bytes) => bytes.len(),
            Payload::Blank | Payload::Membership(_) => 64,
        }
    }
}

/// The decoded records of a replica.
#[derive(Debug)]
pub struct Replica {
    id: ReplicaId,
    shard: ShardId,
    record: ReplicaRecord,
    group: GroupRecord,
    sessions: Sessions,
    /// In the meta group only.
    meta: Option<Arc<MetaRecord>>,
    /// Meta changed since [`Self::commit`].
    meta_changed: bool,
    heads: Heads,
    stopped: Option<String>,
}

/// Reads the replica's record. `None`: it has no state yet.
///
/// # Errors
/// Damage, and failures of the store.
pub fn read_record(view: &dyn View, replica: ReplicaId) -> Result<Option<ReplicaRecord>, StateError> {
    let bytes = view.get(&keys::replica_record(replica))?;
    let record: Option<ReplicaRecord> =
        bytes.map(|bytes| value::decode(replica, "the replica's record", bytes)).transpose()?;
    match record {
        Some(record) if record.generation == 0 => {
            Err(StateError::damage(replica, "the replica's record names no generation"))
        }
        record => Ok(record),
    }
}

/// Reads the group's record; the first one when there is none.
///
/// # Errors
/// Damage, and failures of the store.
pub fn read_group(view: &dyn View, scope: Scope, shard: ShardId) -> Result<GroupRecord, StateError> {
    match view.get(&scope.group())? {
        Some(bytes) => value::decode(scope.replica, "the group's record", bytes),
        None => Ok(apply::first_group(shard)),
    }
}

/// Reads the meta group's state; an empty one when there is none.
///
/// # Errors
/// Damage, and failures of the store.
pub fn read_meta(view: &dyn View, scope: Scope) -> Result<MetaRecord, StateError> {
    let bytes = view.get(&scope.meta())?;
    let record = bytes.map(|bytes| value::decode(scope.replica, "the meta record", bytes)).transpose()?;
    Ok(record.unwrap_or_default())
}

impl Replica {
    /// Reads a replica's records; those of an empty one when there are none.
    ///
    /// # Errors
    /// Damage, and failures of the store.
    pub fn load(view: &dyn View, id: ReplicaId, shard: ShardId) -> Result<Self, StateError> {
        let record = read_record(view, id)?.unwrap_or(ReplicaRecord {
            generation: 1,
            applied: None,
            membership: None,
        });
        let scope = Scope::new(id, Generation(record.generation));
        let group = read_group(view, scope, shard)?;
        if group.shard_id != shard.0 {
            return Err(StateError::damage(
                id,
                format!("it holds shard {}, not {}", group.shard_id, shard.0),
            ));
        }
        let meta = if shard.is_meta() { Some(Arc::new(read_meta(view, scope)?)) } else { None };
        let sessions = session_store::load(view, scope, shard)?;
        Ok(Self {
            id,
            shard,
            record,
            group,
            sessions,
            meta,
            meta_changed: false,
            heads: Heads::default(),
            stopped: None,
        })
    }

    /// Remembers revisions within `budget`; without this, none.
    #[must_use]
    pub fn with_heads(self, budget: Arc<HeadBudget>) -> Self {
        Self { heads: Heads::new(budget), ..self }
    }

    /// Which one it is.
    pub fn id(&self) -> ReplicaId {
        self.id
    }

    /// Of which shard.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Names of its records now.
    pub fn scope(&self) -> Scope {
        Scope::new(self.id, Generation(self.record.generation))
    }

    /// Generation, applied id and membership.
    pub fn record(&self) -> &ReplicaRecord {
        &self.record
    }

    /// Revision, log time and slots.
    pub fn group(&self) -> &GroupRecord {
        &self.group
    }

    /// Which writes were applied already.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// What happened to sessions since it was taken last.
    pub fn take_session_tally(&mut self) -> Tally {
        self.sessions.take_tally()
    }

    /// The meta group's state; `None` in a data group.
    pub fn meta(&self) -> Option<&Arc<MetaRecord>> {
        self.meta.as_ref()
    }

    /// Index of the last entry applied; 0: none, or entry 0.
    pub fn applied_index(&self) -> u64 {
        self.record.applied.as_ref().map_or(0, |id| id.index)
    }

    /// Makes all further calls fail.
    pub fn stop(&mut self, why: String) {
        self.stopped.get_or_insert(why);
    }

    /// Applies one entry. One outcome for each operation of a proposal, in order.
    ///
    /// # Errors
    /// When the replica must stop; it then refuses all further entries.
    pub fn apply_entry(
        &mut self,
        overlay: &mut Overlay<'_>,
        entry: &ReadyEntry,
    ) -> Result<Vec<Outcome>, ApplyError> {
        if let Some(why) = &self.stopped {
            return Err(ApplyError::Stopped(why.clone()));
        }
        let result = self.apply_in_order(overlay, entry);
        if let Err(error) = &result {
            self.stop(error.to_string());
        }
        result
    }

    fn apply_in_order(
        &mut self,
        overlay: &mut Overlay<'_>,
        entry: &ReadyEntry,
    ) -> Result<Vec<Outcome>, ApplyError> {
        let index = entry.id.index;
        if let Some(applied) = &self.record.applied
            && index != applied.index + 1
        {
            return Err(ApplyError::OutOfOrder { index, applied: applied.index });
        }
        let outcomes = match &entry.payload {
            Payload::Blank => Vec::new(),
            Payload::Membership(membership) => {
                self.record.membership =
                    Some(StoredMembership { log_id: Some(entry.id), membership: Some(membership.clone()) });
                Vec::new()
            }
            Payload::Proposal(bytes) => self.apply_proposal(overlay, entry.id, bytes.clone())?,
        };
        self.record.applied = Some(entry.id);
        Ok(outcomes)
    }

    fn apply_proposal(
        &mut self,
        overlay: &mut Overlay<'_>,
        id: LogId,
        bytes: Bytes,
    ) -> Result<Vec<Outcome>, ApplyError> {
        let proposal = Proposal::decode(bytes)
            .map_err(|error| ApplyError::Undecodable { index: id.index, detail: error.to_string() })?;
        self.group.log_time_ms = self.group.log_time_ms.max(proposal.log_time_ms);
        let mut meta = self.meta.as_deref().cloned();
        let mut step = Step {
            scope: self.scope(),
            group: &mut self.group,
            sessions: &mut self.sessions,
            meta: meta.as_mut(),
            overlay,
            heads: &mut self.heads,
        };
        apply::expire_permits(&mut step);
        let mut outcomes = Vec::with_capacity(proposal.operations.len());
        for operation in &proposal.operations {
            outcomes.push(apply::apply(&mut step, operation, id.index, id.term)?);
        }
        if let (Some(new), Some(old)) = (meta, &self.meta)
            && new != **old
        {
            self.meta = Some(Arc::new(new));
            self.meta_changed = true;
        }
        Ok(outcomes)
    }

    /// Puts the records into the batch, so that they are written with the data that they describe.
    pub fn seal(&mut self, overlay: &mut Overlay<'_>) {
        let scope = self.scope();
        session_store::seal(&mut self.sessions, scope, overlay);
        overlay.put(scope.group(), self.group.encode_to_vec());
        if let Some(meta) = self.meta.as_ref().filter(|_| self.meta_changed) {
            overlay.put(scope.meta(), meta.encode_to_vec());
        }
        overlay.put(keys::replica_record(self.id), self.record.encode_to_vec());
    }

    /// The batch was written. The meta group's state if it changed with it.
    pub fn commit(&mut self) -> Option<Arc<MetaRecord>> {
        if self.meta_changed {
            self.meta_changed = false;
            return self.meta.clone();
        }
        None
    }
}
