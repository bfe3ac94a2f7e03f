//! A replica's state on its way to another node.
//!
//! ```text
//! sender: a moment of the store ─► tables of 64 MiB ─► chunks of 256 KiB ─┐
//!                                                                        │ the transport
//! receiver: checked, staged, synced ◄────────────────────────────────────┘
//!           └─► ingested with the replica's new record in one step
//! ```
//!
//! Nothing is stored for it beforehand: [`SnapshotSource`] reads when it is asked to. The receiver names its replica
//! and a new generation first, and the sender writes its tables under those names, so that what arrives lies beside
//! the receiver's present state until the record switches over. The last chunk says what the state holds; that may
//! be more than was announced when the snapshot was offered.
//!
//! Never the whole state in memory, at most [`OUTGOING_MAX`] going out and [`INCOMING_MAX`] coming in.

pub mod source;
pub mod stage;
pub mod table;

pub use source::{Sending, SnapshotSource};
pub use stage::{SnapshotStage, StagedSnapshot};

/// Most snapshots that a node sends at a time: each holds a view of the store, which holds back compaction.
pub const OUTGOING_MAX: usize = 2;
/// Most snapshots that a node receives at a time: each fills the disk beside what is there.
pub const INCOMING_MAX: usize = 2;
/// Records of a table before the next one is begun, bytes. As large as the store's own tables.
pub const TABLE_BYTES: u64 = 64 << 20;
/// Most bytes of a chunk: frames hold so much.
pub const CHUNK_BYTES: usize = 256 << 10;

/// What openraft passes along for a snapshot.
#[derive(Debug)]
pub enum SnapshotData {
    /// Of this node: read when it is sent.
    OnDemand(SnapshotSource),
    /// Received from another node: ready to be installed.
    Staged(StagedSnapshot),
}
