//! What others than the Raft library may ask of a replica's log.
//!
//! The state machine waits here for durability before it applies, compaction asks where to cut, status asks for
//! numbers. None of it reads the device.

use std::sync::Arc;

use kv_topology::ReplicaId;

use crate::log::{codec::LogId, error::LogError, extent::LogSize, replica::LogStatus, replica::Replica};

/// Entries whose bytes are added up under the lock of the log: 20 µs. Who lacks more is far behind, however small they are.
pub const ENTRIES_SUMMED_MAX: u64 = 65_536;

/// A handle to ask a replica's log. Clones are the same log.
#[derive(Clone)]
pub struct LogView {
    replica: Arc<Replica>,
}

impl LogView {
    pub(in crate::log) fn new(replica: Arc<Replica>) -> Self {
        Self { replica }
    }

    /// Whose log it is.
    pub fn replica(&self) -> ReplicaId {
        self.replica.id()
    }

    /// Returns when the entry at this index, as it is now, is on disk, and with it all entries before.
    ///
    /// # Errors
    /// When there is no such entry, the replica was removed, the log is closed, or the device has failed.
    pub async fn wait_durable(&self, index: u64) -> Result<(), LogError> {
        self.replica.wait_durable(index).await
    }

    /// Returns when the batch that the node's log writes now, of whatever replicas, has ended: what is appended before that
    /// waits for the next one anyway.
    pub async fn batch_ended(&self) {
        self.replica.batches().ended().await;
    }

    /// Whether the log has this index, and it is on disk.
    pub fn is_durable(&self, index: u64) -> bool {
        self.replica.is_durable(index)
    }

    /// Numbers for status: last and purged entry, bytes, memory.
    pub fn status(&self) -> LogStatus {
        self.replica.status()
    }

    /// How large the log is.
    pub fn size(&self) -> LogSize {
        let LogStatus { bytes, entries, .. } = self.status();
        LogSize { bytes, entries }
    }

    /// Encoded bytes of the entries after index `after`, up to and including `upto`. `None`: some of them are not here any
    /// more, or there are more of them than [`ENTRIES_SUMMED_MAX`].
    pub fn bytes_between(&self, after: u64, upto: u64) -> Option<u64> {
        self.replica.lock().extent.bytes_between(after, upto, ENTRIES_SUMMED_MAX)
    }

    /// The log id of an entry, or of the last purged one; `None` if the log has no such entry.
    pub fn log_id(&self, index: u64) -> Option<LogId> {
        let purged = self.status().purged.filter(|purged| purged.index == index);
        self.replica.lock().extent.log_id(index).or(purged)
    }

    /// The lowest entry such that the entries after it are no more than `keep`: the log may be purged up to and including
    /// it. `None` if the log has no more than that.
    pub fn cut_keeping(&self, keep: LogSize) -> Option<LogId> {
        let state = self.replica.lock();
        state.extent.cut_keeping(keep).and_then(|index| state.extent.log_id(index))
    }
}
