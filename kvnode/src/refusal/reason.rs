//! Every reason that more than one place gives or asks for. Clients branch on them: they never change.
//!
//! `NOT_APPLIED_` at the beginning promises that nothing happened.

/// The shard has no leader at the moment. Nothing was appended.
pub const NO_LEADER: &str = "NOT_APPLIED_NO_LEADER";
/// This node does not lead the shard (any more). Nothing was appended.
pub const NOT_LEADER: &str = "NOT_APPLIED_NOT_LEADER";
/// The node has no replica of the shard, or it is not started yet.
pub const NO_REPLICA: &str = "NOT_APPLIED_NO_REPLICA";
/// The node is stopping.
pub const STOPPING: &str = "NOT_APPLIED_STOPPING";
/// The node ends a stream, because of its age or because nothing came on it. What it has not answered it has not taken.
pub const STREAM_ENDED: &str = "NOT_APPLIED_STREAM_ENDED";
/// The node does not know the shard map yet.
pub const STARTING: &str = "NOT_APPLIED_STARTING";
/// Its deadline passed while it waited in a queue. Nothing was appended.
pub const EXPIRED: &str = "NOT_APPLIED_EXPIRED";
/// The node that would have to answer could not be reached; nothing was sent.
pub const UNREACHABLE: &str = "NOT_APPLIED_UNREACHABLE";
/// The write may or may not have been applied.
pub const OUTCOME_UNKNOWN: &str = "OUTCOME_UNKNOWN";
/// The replica's state is older than the read allows.
pub const TOO_STALE: &str = "NOT_APPLIED_TOO_STALE";
/// The proposal queue of the shard is full.
pub const PROPOSAL_QUEUE_FULL: &str = "PROPOSAL_QUEUE_FULL";
/// The disk of the leader, or those of a quorum of the shard's nodes, are full.
pub const DISK_FULL: &str = "DISK_FULL";
/// The queue of waiting reads of the shard is full.
pub const READ_QUEUE_FULL: &str = "READ_QUEUE_FULL";
/// The queue of requests to the node that would have to answer is full.
pub const PEER_QUEUE_FULL: &str = "PEER_QUEUE_FULL";
/// No message between nodes can hold the request.
pub const REQUEST_TOO_LARGE: &str = "REQUEST_TOO_LARGE";
/// The group's membership is no longer the one that the change was made for, or another change is under way.
pub const MEMBERSHIP_CHANGED: &str = "NOT_APPLIED_MEMBERSHIP_CHANGED";
/// A leadership cannot be transferred to a replica that lags or is no voter.
pub const TARGET_NOT_READY: &str = "NOT_APPLIED_TARGET_NOT_READY";
/// The leader of a group would leave it: it gives the leadership away first.
pub const LEADER_WOULD_LEAVE: &str = "NOT_APPLIED_LEADER_WOULD_LEAVE";
/// Bytes on this node's disk are damaged; the replica is quarantined.
pub const REPLICA_QUARANTINED: &str = "REPLICA_QUARANTINED";
/// A bug or a failure that names no better reason.
pub const INTERNAL: &str = "INTERNAL";
/// Surely not applied, and nothing more is known.
pub const NOT_APPLIED: &str = "NOT_APPLIED_UNAVAILABLE";
/// An upload broke off. Nothing is visible; it can be sent again or resumed.
pub const UPLOAD_INTERRUPTED: &str = "NOT_APPLIED_UPLOAD_INTERRUPTED";
/// The deadline passed, and it may have been applied or not.
pub const DEADLINE_EXCEEDED: &str = "DEADLINE_EXCEEDED";
/// A field of the request is wrong; the refusal names it.
pub const INVALID_ARGUMENT: &str = "INVALID_ARGUMENT";
/// The slot is not owned by the shard that was asked.
pub const WRONG_SHARD: &str = "WRONG_SHARD";
/// A limit of a node or shard that gave no name.
pub const LIMIT_REACHED: &str = "LIMIT_REACHED";
/// Bytes of a node's disk failed their checksum.
pub const DATA_LOSS: &str = "DATA_LOSS";
/// The session was closed or has expired: whether a write in it was applied is not known any more, and it never will be.
pub const SESSION_EXPIRED: &str = "SESSION_EXPIRED";
/// The outcome of this sequence was acknowledged and forgotten. The write is not applied again.
pub const SEQUENCE_ACKNOWLEDGED: &str = "SEQUENCE_ACKNOWLEDGED";
/// A session, or all sessions of its shard, keep as many outcomes as they may: acknowledge first.
pub const SESSION_WINDOW_FULL: &str = "SESSION_WINDOW_FULL";
/// The shard has as many sessions as it may, all in use.
pub const SESSIONS_FULL: &str = "SESSIONS_FULL";
/// The state of the cluster forbids it.
pub const FAILED_PRECONDITION: &str = "FAILED_PRECONDITION";
/// What was asked for does not exist.
pub const NOT_FOUND: &str = "NOT_FOUND";
/// A download of an absent key.
pub const KEY_NOT_FOUND: &str = "KEY_NOT_FOUND";
/// The value was overwritten while it was downloaded: begin again.
pub const VALUE_REPLACED: &str = "VALUE_REPLACED";
/// The keys of a transaction lie in several shards.
pub const TXN_SPANS_SHARDS: &str = "TXN_SPANS_SHARDS";
/// What the transaction reads is more than a reply may hold. Nothing was done.
pub const TXN_REPLY_TOO_LARGE: &str = "TXN_REPLY_TOO_LARGE";
/// The upload never began, was aborted or swept, or was committed and overwritten.
pub const UPLOAD_NOT_FOUND: &str = "UPLOAD_NOT_FOUND";
/// A resumed upload must go on at another byte: `stored_bytes` says which.
pub const UPLOAD_OFFSET: &str = "UPLOAD_OFFSET";
/// Another start of the same disk counts: this folder is a copy, or was restored.
pub const DISK_CLONED_OR_RESTORED: &str = "DISK_CLONED_OR_RESTORED";
/// The node was removed from the cluster.
pub const NODE_REMOVED: &str = "NODE_REMOVED";
/// The node joined in what meta has lost: the cluster was recovered from a time before. A person must see to its folder.
pub const NODE_FORGOTTEN: &str = "NODE_FORGOTTEN";
/// A permit is open: voters do not change meanwhile, no other permit is granted, and its node is not called lost.
pub const PERMIT_OPEN: &str = "PERMIT_OPEN";
/// A change of voters was begun and not seen to its end.
pub const CHANGE_UNDER_WAY: &str = "CHANGE_UNDER_WAY";
/// The change of voters is not the one that was begun.
pub const CHANGE_MOVED_ON: &str = "CHANGE_MOVED_ON";
/// Fewer active nodes than the replication factor would stay, or are there.
pub const TOO_FEW_NODES: &str = "TOO_FEW_NODES";
/// The node is no longer in the state that was expected.
pub const NODE_STATE_CHANGED: &str = "NODE_STATE_CHANGED";
/// The node still holds replicas.
pub const NODE_NOT_EMPTY: &str = "NODE_NOT_EMPTY";
/// The node was heard of: it is not lost.
pub const NODE_IS_ALIVE: &str = "NODE_IS_ALIVE";
/// The node is lost or was removed.
pub const NODE_IS_GONE: &str = "NODE_IS_GONE";
/// There is no such node.
pub const NODE_UNKNOWN: &str = "NODE_UNKNOWN";
/// The node takes no new replicas: it is not active.
pub const NODE_TAKES_NO_REPLICAS: &str = "NODE_TAKES_NO_REPLICAS";
/// Another replica of the shard is on that node.
pub const NODE_HOLDS_REPLICA: &str = "NODE_HOLDS_REPLICA";
/// A shard would have no replica left, and nobody accepted that.
pub const DATA_LOSS_NOT_ACCEPTED: &str = "DATA_LOSS_NOT_ACCEPTED";
/// Another move of the shard is under way, or this one is not done.
pub const MOVE_UNDER_WAY: &str = "MOVE_UNDER_WAY";
/// The move is not the one that the shard has now.
pub const MOVE_MOVED_ON: &str = "MOVE_MOVED_ON";
/// The group still has the replica.
pub const REPLICA_IS_MEMBER: &str = "REPLICA_IS_MEMBER";
/// The shard has no such replica.
pub const REPLICA_UNKNOWN: &str = "REPLICA_UNKNOWN";
/// There is no such shard.
pub const SHARD_UNKNOWN: &str = "SHARD_UNKNOWN";
/// The group of the shard was not seen yet.
pub const GROUP_NOT_FORMED: &str = "GROUP_NOT_FORMED";
/// The shard lives in another group.
pub const GROUP_REPLACED: &str = "GROUP_REPLACED";
/// What was decided was decided on an older record.
pub const EPOCH_MOVED_ON: &str = "EPOCH_MOVED_ON";
/// What was decided was decided on an older membership.
pub const MEMBERSHIP_MOVED_ON: &str = "MEMBERSHIP_MOVED_ON";
/// No permit has this token, or it has expired.
pub const PERMIT_UNKNOWN: &str = "PERMIT_UNKNOWN";
/// Without the node a shard would lose its quorum.
pub const QUORUM_AT_RISK: &str = "QUORUM_AT_RISK";
