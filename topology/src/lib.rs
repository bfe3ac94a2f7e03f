//! Ids, slots, the shard map, placement and quorum arithmetic: everything that decides where data lives.
//!
//! Pure: no clock, no randomness, no I/O, no tokio. What flows through it are plain values; the same arguments
//! give the same answer on every node and in every simulation.
//!
//! * [`id`]: newtypes for every id. [`slot`]: from a key to its slot. [`map`]: who owns a slot, who holds it.
//! * [`placement`]: which nodes should hold a shard, and which of them should lead it.
//! * [`quorum`]: majorities, also of joint configurations; how many nodes may still fail.
//! * [`growth`]: the one next step that brings a group nearer to its placement. [`moves`]: which replicas should move.
//! * [`permit`]: whether a node may be restarted now.

mod board;
pub mod growth;
pub mod id;
pub mod map;
pub mod moves;
pub mod permit;
pub mod placement;
pub mod quorum;
mod relief;
pub mod slot;

pub use id::{Generation, GroupId, KeyspaceId, NodeId, ReplicaId, ShardId};
pub use map::{ClusterMap, SlotTable};
pub use quorum::Membership;
pub use slot::{SLOT_COUNT, Slot, SlotRange};
