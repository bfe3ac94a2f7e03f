//! Ids, slots, the shard map, placement and quorum arithmetic: everything that decides where data lives.
//!
//! Pure: no clock, no randomness, no I/O, no tokio. What flows through it are plain values; the same arguments
//! give the same answer on every node and in every simulation.

pub mod id;
pub mod map;
pub mod slot;

pub use id::{Generation, GroupId, KeyspaceId, NodeId, ReplicaId, ShardId};
pub use map::ClusterMap;
pub use slot::{SLOT_COUNT, Slot, SlotRange};
