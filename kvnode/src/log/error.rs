//! What can go wrong between the Raft library and the log.

use std::io;

use kv_topology::ReplicaId;
use thiserror::Error;

use crate::log::{codec::CodecError, device::DeviceError};

/// Why the log refuses or fails.
#[derive(Clone, Debug, Error)]
pub enum LogError {
    /// The device failed, or holds damaged bytes.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A record is not what was written.
    #[error("log of {replica}: {record}: {source}")]
    Record {
        /// Whose log.
        replica: ReplicaId,
        /// Which record.
        record: String,
        /// What is wrong with it.
        source: CodecError,
    },
    /// An entry that must be there is not.
    #[error("log of {replica}: entry {index} is missing")]
    Hole {
        /// Whose log.
        replica: ReplicaId,
        /// Where.
        index: u64,
    },
    /// Entries were appended that do not follow the last one.
    #[error("log of {replica}: entry {index} appended where {expected} is next")]
    NotNext {
        /// Whose log.
        replica: ReplicaId,
        /// What was appended.
        index: u64,
        /// What would have been right.
        expected: u64,
    },
    /// Somebody waits for an entry that was not appended.
    #[error("log of {replica}: there is no entry {index} to wait for")]
    Absent {
        /// Whose log.
        replica: ReplicaId,
        /// The entry.
        index: u64,
    },
    /// The log is closed, the replica removed, or the device has failed: nothing more happens.
    #[error("the log has stopped")]
    Stopped,
    /// A thread for the committer or for a read could not be had.
    #[error("log: no thread: {0}")]
    Thread(String),
}

impl LogError {
    /// Whether bytes on disk are damaged, so that the replica must be quarantined.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Device(DeviceError::Damaged { .. }) | Self::Record { .. } | Self::Hole { .. } => true,
            Self::Device(DeviceError::Failed { .. } | DeviceError::Detached)
            | Self::NotNext { .. }
            | Self::Absent { .. }
            | Self::Stopped
            | Self::Thread(_) => false,
        }
    }
}

impl From<LogError> for io::Error {
    fn from(error: LogError) -> Self {
        let kind = if error.is_damage() { io::ErrorKind::InvalidData } else { io::ErrorKind::Other };
        Self::new(kind, error)
    }
}
