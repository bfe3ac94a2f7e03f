//! What the log needs of the place that keeps it: a narrow, synchronous, ordered key-value device.
//!
//! A device knows nothing of Raft. It takes batches, which are atomic and reach the disk in the order in which they
//! were written: after a power loss what is left is a prefix of them, and everything up to the last sync is in it.
//! Only the committer writes. An error of a device is final: the process ends, and nothing is tried again, because
//! after a failed fsync nobody knows what is on disk.

use std::{
    ops::{ControlFlow, Range},
    time::Duration,
};

use bytes::Bytes;
use kv_topology::ReplicaId;
use thiserror::Error;

use crate::log::keys::{self, Key, Place, UnknownKey};

/// One step of a batch.
#[derive(Clone, Debug)]
pub enum Write {
    /// Sets a record.
    Put(Key, Bytes),
    /// Removes all records in the range.
    DeleteRange(Range<Key>),
}

impl Write {
    /// What it adds to a batch, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Put(key, value) => key.len() + value.len(),
            Self::DeleteRange(range) => range.start.len() + range.end.len(),
        }
    }
}

/// Why a device cannot go on.
#[derive(Clone, Debug, Error)]
pub enum DeviceError {
    /// A write or sync failed. The process must end.
    #[error("raftlog: {operation} failed: {reason}")]
    Failed {
        /// What was tried.
        operation: &'static str,
        /// What the device said.
        reason: String,
        /// The volume is full: an operator can help.
        out_of_space: bool,
    },
    /// What was read is not what was written.
    #[error("raftlog is damaged: {reason}")]
    Damaged {
        /// What the device said.
        reason: String,
    },
    /// The device now belongs to a later life of the node.
    #[error("raftlog: this life of the node is over")]
    Detached,
}

impl From<UnknownKey> for DeviceError {
    fn from(error: UnknownKey) -> Self {
        Self::Damaged { reason: error.to_string() }
    }
}

/// Sees a record's key and value, and says whether to go on.
pub type Visitor<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Sees a replica's record; an error ends the scan.
pub type RecordVisitor<'a> = dyn FnMut(Place, &[u8]) -> Result<(), DeviceError> + 'a;

/// An ordered key-value device with atomic batches.
pub trait LogDevice: Send + Sync + 'static {
    /// Writes one batch atomically. With `sync` it returns when this and all earlier batches are on disk; without,
    /// the batch is readable and may be lost.
    ///
    /// # Errors
    /// When it may not have happened. The device must not be used again.
    fn write(&self, batch: &[Write], sync: bool) -> Result<(), DeviceError>;

    /// Returns when all batches written so far are on disk.
    ///
    /// # Errors
    /// When they may not be. The device must not be used again.
    fn sync(&self) -> Result<(), DeviceError>;

    /// Shows the records in `[from, to)` in the order of their keys, each as of some moment of the call.
    ///
    /// # Errors
    /// When something in the range cannot be read.
    fn visit(&self, from: &[u8], to: &[u8], visitor: &mut Visitor<'_>) -> Result<(), DeviceError>;

    /// Whether reads may wait for a disk, so that they do not belong on a thread that runs tasks.
    fn reads_block(&self) -> bool;

    /// Called between batches: does what is overdue, and says after how long at the latest it wants to be called
    /// again. `last` says that nothing will be written any more.
    ///
    /// # Errors
    /// When the device must not be used again.
    fn rest(&self, last: bool) -> Result<Option<Duration>, DeviceError> {
        let _ = last;
        Ok(None)
    }

    /// Reads entries of a replica in order: at least one if there is any, and no more once `max_bytes` of values
    /// are reached.
    ///
    /// # Errors
    /// When something in the range cannot be read.
    fn read(
        &self,
        replica: ReplicaId,
        indexes: Range<u64>,
        max_bytes: u64,
    ) -> Result<Vec<(u64, Bytes)>, DeviceError> {
        let range = keys::entries(replica, indexes);
        let (mut entries, mut bytes, mut unknown) = (Vec::new(), 0, None);
        self.visit(&range.start, &range.end, &mut |key, value| {
            match keys::decode(key) {
                Ok((_, Place::Entry(index))) => entries.push((index, Bytes::copy_from_slice(value))),
                Ok(_) => unknown = Some(UnknownKey(key.to_vec())),
                Err(error) => unknown = Some(error),
            }
            bytes += value.len() as u64;
            if unknown.is_some() || bytes >= max_bytes {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        unknown.map_or(Ok(entries), |error| Err(error.into()))
    }

    /// Shows everything that a replica has, entries last.
    ///
    /// # Errors
    /// When something of it cannot be read, or `visitor` finds something wrong.
    fn scan(&self, replica: ReplicaId, visitor: &mut RecordVisitor<'_>) -> Result<(), DeviceError> {
        let range = keys::all_of(replica);
        let mut outcome = Ok(());
        self.visit(&range.start, &range.end, &mut |key, value| {
            outcome = keys::decode(key).map_err(Into::into).and_then(|(_, place)| visitor(place, value));
            if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        outcome
    }
}
