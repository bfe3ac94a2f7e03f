//! A session's id.

use kv_topology::ShardId;

/// Bits of a session's id that number the sessions of its shard; the shard's id stands above them.
const NUMBER_BITS: u32 = 48;

/// The shard of a session. `None`: it is no session's id.
pub fn shard_of(session_id: u64) -> Option<ShardId> {
    u32::try_from(session_id >> NUMBER_BITS).ok().map(ShardId)
}
