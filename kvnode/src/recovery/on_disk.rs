//! A replica as it lies on a disk: what its log and its state have, read without starting it.

use std::{ops::Range, sync::Arc};

use kv_proto::disk::v1::{
    LogEntry, LogId, Membership, ReplicaDescriptor, StoredMembership, Vote, log_entry::Payload,
};
use kv_topology::{ReplicaId, ShardId};

use crate::{
    log::{LogError, LogHub, hub::rewrite::Ends},
    state::{StateError, hub::StateHub},
    state_machine::replica::{Payload as Ready, ReadyEntry},
};

/// Entries that are read at once, bytes.
const CHUNK_BYTES: u64 = 2 << 20;

/// A replica on a disk.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OnDisk {
    /// What the node was told of it.
    pub descriptor: ReplicaDescriptor,
    /// Its vote.
    pub vote: Vote,
    /// How far it has come, in Raft's order: the last entry of its log, or that of its state if a snapshot was put in and the
    /// log not cut yet.
    /// `None`: it never had anything.
    pub last: Option<LogId>,
    /// The last entry of the log itself, purged or not.
    pub last_of_log: Option<LogId>,
    /// What it knew to be committed.
    pub committed: Option<LogId>,
    /// What its state covers.
    pub applied: Option<LogId>,
    /// The newest membership, committed or not: Raft goes by it.
    pub membership: StoredMembership,
    /// That at `applied`.
    pub applied_membership: StoredMembership,
    /// Of its data, at `applied`.
    pub revision: u64,
}

/// Why a replica cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Its state.
    #[error(transparent)]
    State(#[from] StateError),
    /// There is no thread to read it.
    #[error("reading a replica: {0}")]
    Thread(#[from] std::io::Error),
    /// Its log begins after what its state covers.
    #[error("its log begins after entry {purged}, and its state reaches {applied:?}: state was lost")]
    StateBehindLog {
        /// Index of the last entry that was purged.
        purged: u64,
        /// Index of the last entry that was applied.
        applied: Option<u64>,
    },
}

impl OnDisk {
    /// Its id.
    pub fn id(&self) -> ReplicaId {
        ReplicaId(self.descriptor.replica_id)
    }

    /// Whether it is the only voter of its group, so that what it appends is decided.
    pub fn is_alone(&self) -> bool {
        let voters = self.membership.membership.as_ref().map_or(&[][..], |membership| &membership.voters);
        matches!(voters, [set] if set.replica_ids == [self.descriptor.replica_id])
    }

    /// The entries that its state lacks.
    pub fn unapplied(&self) -> Range<u64> {
        let next = |id: Option<LogId>| id.map_or(0, |id| id.index + 1);
        next(self.applied)..next(self.last)
    }
}

/// Reads a replica: all of its log once, and what its state says of itself.
///
/// # Errors
/// When something of it cannot be read, or bytes are damaged.
pub async fn read(
    log: &LogHub,
    state: &Arc<StateHub>,
    descriptor: ReplicaDescriptor,
) -> Result<OnDisk, ReadError> {
    let (id, shard) = (ReplicaId(descriptor.replica_id), ShardId(descriptor.shard_id));
    let hub = log.clone();
    let ends = state.blocking("read a log", move || hub.ends(id)).await??;
    let store = state.clone();
    let records = state.blocking("read a state", move || store.records_of(id, shard)).await??;
    let (record, group) = records.unwrap_or_default();
    let Ends { vote, purged, last: last_of_log, committed } = ends;
    if let Some(purged) = purged
        && record.applied.is_none_or(|applied| applied.index < purged.index)
    {
        let applied = record.applied.map(|applied| applied.index);
        return Err(ReadError::StateBehindLog { purged: purged.index, applied });
    }
    let last = later(last_of_log, record.applied);
    let found = OnDisk {
        descriptor,
        vote: vote.unwrap_or_default(),
        last,
        last_of_log,
        committed: later(committed, record.applied),
        applied: record.applied,
        membership: StoredMembership::default(),
        applied_membership: record.membership.unwrap_or_default(),
        revision: group.revision,
    };
    let newest = newest_membership(log, &found).await?;
    Ok(OnDisk { membership: newest.unwrap_or_else(|| found.applied_membership.clone()), ..found })
}

/// In Raft's order: of a log that is longer than a snapshot of a later term, the end was never committed.
fn later(one: Option<LogId>, other: Option<LogId>) -> Option<LogId> {
    let reach = |id: &LogId| (id.term, id.index);
    match (one, other) {
        (Some(one), Some(other)) => Some(if reach(&other) > reach(&one) { other } else { one }),
        (one, other) => one.or(other),
    }
}

/// The last membership among the entries that the state lacks.
async fn newest_membership(log: &LogHub, found: &OnDisk) -> Result<Option<StoredMembership>, LogError> {
    let mut newest = None;
    let mut rest = found.unapplied();
    while !rest.is_empty() {
        let chunk = log.entries(found.id(), rest.clone(), CHUNK_BYTES).await?;
        let Some(last) = chunk.last().and_then(|entry| entry.log_id) else { break };
        rest.start = last.index + 1;
        if let Some(found) = chunk.into_iter().rev().find_map(membership_of) {
            newest = Some(found);
        }
    }
    Ok(newest)
}

fn membership_of(entry: LogEntry) -> Option<StoredMembership> {
    match entry.payload {
        Some(Payload::Membership(membership)) => {
            Some(StoredMembership { log_id: entry.log_id, membership: Some(membership) })
        }
        Some(Payload::Blank(_) | Payload::Proposal(_)) | None => None,
    }
}

/// All entries that the state lacks, as they are applied. Of meta, whose entries are few and small.
///
/// # Errors
/// When they cannot be read.
pub async fn unapplied(log: &LogHub, found: &OnDisk) -> Result<Vec<ReadyEntry>, LogError> {
    let mut ready = Vec::new();
    let mut rest = found.unapplied();
    while !rest.is_empty() {
        let chunk = log.entries(found.id(), rest.clone(), CHUNK_BYTES).await?;
        let Some(last) = chunk.last().and_then(|entry| entry.log_id) else { break };
        rest.start = last.index + 1;
        ready.extend(chunk.into_iter().map(ready_entry));
    }
    Ok(ready)
}

/// An entry as the state machine takes it.
pub fn ready_entry(entry: LogEntry) -> ReadyEntry {
    let payload = match entry.payload {
        Some(Payload::Proposal(bytes)) => Ready::Proposal(bytes),
        Some(Payload::Membership(membership)) => Ready::Membership(membership),
        // One without a payload is of a kind that nobody knows: the log's own codec refuses it before it comes here.
        Some(Payload::Blank(_)) | None => Ready::Blank,
    };
    ReadyEntry { id: entry.log_id.unwrap_or_default(), payload }
}

/// A membership of one voter.
pub fn alone(replica_id: u64, node_id: u64) -> Membership {
    use kv_proto::disk::v1::{Member, VoterSet};
    Membership {
        voters: vec![VoterSet { replica_ids: vec![replica_id] }],
        members: vec![Member { replica_id, node_id }],
    }
}

#[cfg(test)]
mod tests {
    use kv_proto::disk::v1::VoterSet;

    use super::*;

    fn with_voters(sets: &[&[u64]]) -> OnDisk {
        let voters = sets.iter().map(|ids| VoterSet { replica_ids: ids.to_vec() }).collect();
        let membership = Some(Membership { voters, members: Vec::new() });
        OnDisk {
            descriptor: ReplicaDescriptor { replica_id: 5, ..ReplicaDescriptor::default() },
            membership: StoredMembership { log_id: None, membership },
            ..OnDisk::default()
        }
    }

    #[test]
    fn only_a_uniform_membership_of_one_decides_alone() {
        assert!(with_voters(&[&[5]]).is_alone());
        for sets in [&[][..], &[&[4][..]], &[&[4, 5][..]], &[&[5][..], &[4, 5][..]], &[&[5][..], &[5][..]]] {
            assert!(!with_voters(sets).is_alone(), "{sets:?}");
        }
        let made = StoredMembership { log_id: None, membership: Some(alone(5, 1)) };
        assert!(OnDisk { membership: made, ..with_voters(&[]) }.is_alone());
    }

    #[test]
    fn what_a_state_lacks_is_what_comes_after_it() {
        let at = |index: u64| Some(LogId { term: 2, replica_id: 5, index });
        let found = |applied, last| OnDisk { applied, last, ..OnDisk::default() };
        for (on_disk, expected) in [
            (found(None, None), 0..0),
            (found(None, at(3)), 0..4),
            (found(at(0), at(3)), 1..4),
            (found(at(3), at(3)), 4..4),
        ] {
            assert_eq!(on_disk.unapplied(), expected);
        }
        assert_eq!(later(at(3), at(7)), at(7), "a snapshot that the log was not cut for");
        assert_eq!(later(at(7), at(3)), at(7));
        assert_eq!(later(None, at(3)), at(3));
        let of_later_term = Some(LogId { term: 3, replica_id: 6, index: 5 });
        assert_eq!(
            later(at(7), of_later_term),
            of_later_term,
            "a snapshot in place of what was never committed"
        );
        assert_eq!(later(of_later_term, at(7)), of_later_term);
    }
}
