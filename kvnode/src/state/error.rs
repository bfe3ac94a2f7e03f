//! What can go wrong in the state store, and whom it concerns: one replica, or the node.

use std::io;

use kv_topology::ReplicaId;

/// Bytes of a replica that are not what was written. It is quarantined: it never votes or serves again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("damaged state of {replica}: {detail}")]
pub struct Damage {
    /// Whose bytes they are.
    pub replica: ReplicaId,
    /// What was found. Names records, never values.
    pub detail: String,
}

/// A failure of the state store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// A checksum or an encoding does not hold: that replica stops, the node goes on.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// The device or RocksDB failed: the node stops. What was asked for may have happened in part.
    #[error("state store: {operation}: {detail}")]
    Engine {
        /// What was being done.
        operation: &'static str,
        /// What the library said.
        detail: String,
    },
    /// A bound was reached and nothing was done; it may be asked again later.
    #[error("state store: {what} is at its limit of {limit}")]
    Busy {
        /// What is limited.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// A snapshot from another node is not what it should be; nothing of it was installed.
    #[error("snapshot: {0}")]
    BadSnapshot(String),
}

impl StateError {
    /// Damaged bytes of `replica`.
    pub fn damage(replica: ReplicaId, detail: impl Into<String>) -> Self {
        Self::Damage(Damage { replica, detail: detail.into() })
    }

    /// A failure of the device or the engine.
    #[allow(clippy::needless_pass_by_value, reason = "it is given errors as `map_err` has them")]
    pub fn engine(operation: &'static str, detail: impl ToString) -> Self {
        Self::Engine { operation, detail: detail.to_string() }
    }

    /// Whether the whole node must stop.
    pub fn ends_node(&self) -> bool {
        match self {
            Self::Engine { .. } => true,
            Self::Damage(_) | Self::Busy { .. } | Self::BadSnapshot(_) => false,
        }
    }
}

impl From<StateError> for io::Error {
    fn from(error: StateError) -> Self {
        let kind = match &error {
            StateError::Damage(_) | StateError::BadSnapshot(_) => io::ErrorKind::InvalidData,
            StateError::Engine { .. } => io::ErrorKind::Other,
            StateError::Busy { .. } => io::ErrorKind::ResourceBusy,
        };
        Self::new(kind, error)
    }
}
