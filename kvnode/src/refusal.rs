//! Why a request was refused, as one vocabulary of kinds and reasons.
//!
//! A [`Refusal`] is what travels between nodes; `api` maps it to a gRPC status. Its kind answers two questions: may
//! the caller retry, and may it have happened? Reasons are what clients branch on: they never change.

use kv_proto::peer::v1::{Refusal, refusal::Kind};
use kv_topology::{NodeId, ShardId};

/// The shard has no leader at the moment. Nothing was appended.
pub const NO_LEADER: &str = "NOT_APPLIED_NO_LEADER";
/// This node does not lead the shard (any more). Nothing was appended.
pub const NOT_LEADER: &str = "NOT_APPLIED_NOT_LEADER";
/// The node has no replica of the shard, or it is not started yet.
pub const NO_REPLICA: &str = "NOT_APPLIED_NO_REPLICA";
/// The node is stopping.
pub const STOPPING: &str = "NOT_APPLIED_STOPPING";
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
/// Bytes on this node's disk are damaged; the replica is quarantined.
pub const REPLICA_QUARANTINED: &str = "REPLICA_QUARANTINED";
/// A bug or a failure that names no better reason.
pub const INTERNAL: &str = "INTERNAL";

fn refusal(kind: Kind, reason: &str, message: String) -> Refusal {
    Refusal { kind: kind.into(), reason: reason.to_owned(), message, ..Refusal::default() }
}

/// Surely not applied: safe to retry.
pub fn not_applied(reason: &str, message: impl Into<String>) -> Refusal {
    refusal(Kind::NotApplied, reason, message.into())
}

/// Not the leader; `leader` is who is, as far as this node knows.
pub fn not_leader(shard: ShardId, leader: Option<NodeId>) -> Refusal {
    let (reason, message) = match leader {
        Some(leader) => (NOT_LEADER, format!("shard {shard} is led by node {leader}")),
        None => (NO_LEADER, format!("shard {shard} has no leader at the moment")),
    };
    Refusal { leader_node_id: leader.map_or(0, NodeId::get), ..refusal(Kind::NotApplied, reason, message) }
}

/// May or may not have happened.
pub fn outcome_unknown(message: impl Into<String>) -> Refusal {
    refusal(Kind::OutcomeUnknown, OUTCOME_UNKNOWN, message.into())
}

/// A named limit was reached. Nothing was done.
pub fn exhausted(reason: &str, message: impl Into<String>, retry_after_ms: u32) -> Refusal {
    Refusal { retry_after_ms, ..refusal(Kind::ResourceExhausted, reason, message.into()) }
}

/// A request that can never be carried out, however often it comes.
pub fn too_large(message: impl Into<String>) -> Refusal {
    refusal(Kind::InvalidArgument, REQUEST_TOO_LARGE, message.into())
}

/// The caller's deadline passed.
pub fn deadline_exceeded(message: impl Into<String>) -> Refusal {
    refusal(Kind::DeadlineExceeded, EXPIRED, message.into())
}

/// The replica that would have to answer is damaged.
pub fn quarantined(message: impl Into<String>) -> Refusal {
    refusal(Kind::DataLoss, REPLICA_QUARANTINED, message.into())
}

/// A bug, or a failure that has no better name.
pub fn internal(message: impl Into<String>) -> Refusal {
    refusal(Kind::Internal, INTERNAL, message.into())
}

/// Whether the same request may be sent again because it surely had no effect.
pub fn surely_not_applied(refusal: &Refusal) -> bool {
    match refusal.kind() {
        Kind::NotApplied | Kind::WrongShard | Kind::ResourceExhausted => true,
        Kind::Unspecified
        | Kind::InvalidArgument
        | Kind::OutcomeUnknown
        | Kind::DeadlineExceeded
        | Kind::DataLoss
        | Kind::FailedPrecondition
        | Kind::NotFound
        | Kind::Internal => false,
    }
}
