//! The state store: what the replicas of a node hold, in one RocksDB without a write-ahead log.
//!
//! [`keys`] says how records are named and ordered, [`engine`] what a store must do, [`rocks`] and [`memory`] do it, and
//! [`write_behind`] lets writes gather before. A write is durable with the flush that follows it ([`flush`]); what a
//! crash takes back, the Raft log brings again. [`snapshot`] carries a replica's state to another node, [`pins`] keep
//! moments of it for downloads, [`hub`] holds it all together for a node.
//!
//! Nothing here knows what an operation means: that is [`crate::state_machine`].

pub mod engine;
pub mod error;
pub mod flush;
pub mod hub;
pub mod keys;
pub mod memory;
pub mod on_disk;
pub mod options;
pub mod pinned_reads;
pub mod pins;
pub mod read_pool;
pub mod reclaim;
pub mod removal;
pub mod rocks;
pub mod sizes;
pub mod snapshot;
pub mod workers;
pub mod write_behind;

pub use engine::{Batch, Change, Direction, Span, StateEngine, View};
pub use error::{Damage, StateError};
