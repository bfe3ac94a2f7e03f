//! Why a request was refused, as one vocabulary of kinds and reasons.
//!
//! A [`Refusal`] is what travels between nodes; `api` maps it to a gRPC status. Its kind answers two questions: may
//! the caller retry, and may it have happened? Its [`reason`] is what clients branch on.

use kv_proto::peer::v1::{Refusal, refusal::Kind};
use kv_topology::{NodeId, ShardId};

pub mod reason;

pub use reason::*;

/// Of this kind and reason; `message` is for people.
pub fn of(kind: Kind, reason: &str, message: impl Into<String>) -> Refusal {
    Refusal { kind: kind.into(), reason: reason.to_owned(), message: message.into(), ..Refusal::default() }
}

/// Surely not applied: safe to retry.
pub fn not_applied(reason: &str, message: impl Into<String>) -> Refusal {
    of(Kind::NotApplied, reason, message)
}

/// Not the leader; `leader` is who is, as far as this node knows.
pub fn not_leader(shard: ShardId, leader: Option<NodeId>) -> Refusal {
    let (reason, message) = match leader {
        Some(leader) => (NOT_LEADER, format!("{} is led by node {leader}", called(shard))),
        None => (NO_LEADER, format!("{} has no leader at the moment", called(shard))),
    };
    Refusal { leader_node_id: leader.map_or(0, NodeId::get), ..of(Kind::NotApplied, reason, message) }
}

/// A shard in messages. Whoever administers a cluster meets meta without having asked for a shard.
pub fn called(shard: ShardId) -> String {
    if shard.is_meta() { "the meta group (shard 0)".to_owned() } else { format!("shard {shard}") }
}

/// May or may not have happened.
pub fn outcome_unknown(message: impl Into<String>) -> Refusal {
    of(Kind::OutcomeUnknown, OUTCOME_UNKNOWN, message)
}

/// A named limit was reached. Nothing was done.
pub fn exhausted(reason: &str, message: impl Into<String>, retry_after_ms: u32) -> Refusal {
    Refusal { retry_after_ms, ..of(Kind::ResourceExhausted, reason, message) }
}

/// A request that can never be carried out, however often it comes.
pub fn too_large(message: impl Into<String>) -> Refusal {
    of(Kind::InvalidArgument, REQUEST_TOO_LARGE, message)
}

/// The caller's deadline passed.
pub fn deadline_exceeded(message: impl Into<String>) -> Refusal {
    of(Kind::DeadlineExceeded, EXPIRED, message)
}

/// The replica that would have to answer is damaged.
pub fn quarantined(message: impl Into<String>) -> Refusal {
    of(Kind::DataLoss, REPLICA_QUARANTINED, message)
}

/// A bug, or a failure that has no better name.
pub fn internal(message: impl Into<String>) -> Refusal {
    of(Kind::Internal, INTERNAL, message)
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
