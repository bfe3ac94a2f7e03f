//! The logs of replicas that do not run are read and rewritten: for recovery, where nobody is left to agree with.

use std::{ops::Range, sync::Arc};

use kv_proto::disk::v1 as disk;
use kv_topology::ReplicaId;
use openraft_rt_tokio::TokioRuntime;

use super::LogHub;
use crate::log::{
    codec,
    device::Write,
    error::LogError,
    keys::{self, Place},
    lock, reader,
    replica::Replica,
};

/// What a log begins and ends with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// The vote of its replica.
    pub vote: Option<disk::Vote>,
    /// The last purged entry.
    pub purged: Option<disk::LogId>,
    /// The last entry, or the last purged one if there is none.
    pub last: Option<disk::LogId>,
    /// The last entry that its replica knew to be committed.
    pub committed: Option<disk::LogId>,
}

/// What becomes of one replica.
#[derive(Clone, Debug, PartialEq)]
pub struct Rewrite {
    /// What the node knows of it from now on.
    pub descriptor: disk::ReplicaDescriptor,
    /// Its vote from now on; `None`: as it is.
    pub vote: Option<disk::Vote>,
    /// The state, which is on disk, reaches up to this one and further than the log: all entries are given up, those beyond it
    /// too, which were never committed. `None`: the log stays as it is.
    pub purged: Option<disk::LogId>,
    /// What is appended, each with its log id. It follows the last entry, or the purged one.
    pub entries: Vec<disk::LogEntry>,
}

impl Rewrite {
    fn writes(&self) -> Result<Vec<Write>, LogError> {
        let id = ReplicaId(self.descriptor.replica_id);
        let put = |place, value| Write::Put(keys::encode(id, place), value);
        let mut writes = Vec::new();
        if let Some(purged) = &self.purged {
            writes.push(Write::DeleteRange(keys::entries(id, 0..u64::MAX)));
            writes.push(put(Place::Purged, codec::to_bytes(purged)));
        }
        if let Some(vote) = &self.vote {
            writes.push(put(Place::Vote, codec::to_bytes(vote)));
        }
        for entry in &self.entries {
            // As it will be read: what cannot be decoded then must not be written now.
            let decoded = codec::decode_entry(entry.clone());
            let index = decoded.map(|entry| entry.log_id.index).map_err(|source| {
                let record = "an appended entry".to_owned();
                LogError::Record { replica: id, record, source }
            })?;
            writes.push(put(Place::Entry(index), codec::to_bytes(entry)));
        }
        writes.push(put(Place::Descriptor, codec::to_bytes(&self.descriptor)));
        Ok(writes)
    }
}

impl LogHub {
    /// Where a replica's log begins and ends. Opens it, which reads all of it, and blocks.
    ///
    /// # Errors
    /// When the replica's records cannot be read or contradict each other.
    pub fn ends(&self, id: ReplicaId) -> Result<Ends, LogError> {
        let replica = self.opened(id)?;
        let status = replica.status();
        Ok(Ends {
            vote: replica.vote().as_ref().map(codec::vote_to_disk),
            purged: status.purged.as_ref().map(codec::log_id_to_disk),
            last: status.last.as_ref().map(codec::log_id_to_disk),
            committed: replica.committed().as_ref().map(codec::log_id_to_disk),
        })
    }

    /// Entries of a replica's log that was opened: at least one if there is any, and no more once `max_bytes` are reached.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn entries(
        &self,
        id: ReplicaId,
        indexes: Range<u64>,
        max_bytes: u64,
    ) -> Result<Vec<disk::LogEntry>, LogError> {
        let replica: Arc<Replica> = self.opened(id)?;
        let entries = reader::read::<TokioRuntime>(&replica, indexes, max_bytes).await?;
        Ok(entries.iter().map(codec::encode_entry).collect())
    }

    /// Rewrites replicas of which none has a Raft instance, all of them with one write: after a crash either all of it is
    /// there or nothing. Returns when it is on disk. Whoever held one of these logs must open it again.
    ///
    /// # Errors
    /// When an entry is none, the log is closed or the device has failed.
    pub async fn rewrite(&self, rewrites: Vec<Rewrite>) -> Result<(), LogError> {
        let Some(first) = rewrites.first() else { return Ok(()) };
        let id = ReplicaId(first.descriptor.replica_id);
        let mut writes = Vec::new();
        for rewrite in &rewrites {
            writes.extend(rewrite.writes()?);
        }
        self.write_all_synced(id, writes).await?;
        // What was read of them is what they were.
        let mut open = lock(&self.node.replicas);
        let mut records = lock(&self.node.records);
        for Rewrite { descriptor, .. } in rewrites {
            let id = ReplicaId(descriptor.replica_id);
            open.remove(&id);
            records.descriptors.insert(id, descriptor);
        }
        Ok(())
    }
}
