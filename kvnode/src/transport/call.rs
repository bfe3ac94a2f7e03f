//! How a request to another node can fail, and whether it may have happened.

use kv_proto::peer::v1::{Refusal, frame::Body, refusal};

use super::pending::Fate;

/// Why a request has no result.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CallError {
    /// It never left this node.
    #[error("not sent: {0}")]
    NotSent(NotSent),
    /// It was written, and then the stream broke.
    #[error("the stream broke before the answer")]
    OutcomeUnknown,
    /// It was written, and the deadline passed.
    #[error("no answer before the deadline")]
    Deadline,
    /// The other node refused it before doing anything; the refusal's kind says why.
    #[error("refused: {} {}", .0.reason, .0.message)]
    Refused(Refusal),
    /// The addressed replica is not at that node (any more, or not yet).
    #[error("the replica is not there")]
    Removed,
}

/// Why a request never left this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// This node belongs to no cluster yet.
    #[error("this node does not belong to a cluster yet")]
    NoClusterYet,
    /// The request is for this node itself.
    #[error("a node does not call itself")]
    OwnNode,
    /// The node cannot be reached now.
    #[error("the node is unreachable")]
    Unreachable,
    /// Too much waits for that node: `RESOURCE_EXHAUSTED`.
    #[error("the queue of that node is full")]
    QueueFull,
    /// No message can hold it.
    #[error("a frame of {bytes} B, at most {limit} B are sent")]
    TooLarge {
        /// Of the frame.
        bytes: usize,
        /// Of any frame.
        limit: usize,
    },
    /// The deadline passed while it waited.
    #[error("the deadline passed before it was written")]
    Expired,
    /// The transport was stopped.
    #[error("the transport was stopped")]
    Stopped,
}

impl CallError {
    /// Whether the request may have taken effect, so that only a request that tolerates it may be repeated.
    pub fn may_have_happened(&self) -> bool {
        match self {
            Self::NotSent(_) | Self::Removed => false,
            Self::OutcomeUnknown | Self::Deadline => true,
            Self::Refused(refusal) => match refusal.kind() {
                refusal::Kind::OutcomeUnknown | refusal::Kind::DeadlineExceeded | refusal::Kind::Internal => {
                    true
                }
                refusal::Kind::Unspecified
                | refusal::Kind::InvalidArgument
                | refusal::Kind::NotApplied
                | refusal::Kind::WrongShard
                | refusal::Kind::ResourceExhausted
                | refusal::Kind::DataLoss
                | refusal::Kind::FailedPrecondition
                | refusal::Kind::NotFound => false,
            },
        }
    }

    /// The deadline of a request passed.
    pub(super) fn expired(fate: Fate) -> Self {
        match fate {
            Fate::NotSent => Self::NotSent(NotSent::Expired),
            Fate::OutcomeUnknown => Self::Deadline,
        }
    }

    /// The stream of a request broke, or none could be made.
    pub(super) fn broken(fate: Fate) -> Self {
        match fate {
            Fate::NotSent => Self::NotSent(NotSent::Unreachable),
            Fate::OutcomeUnknown => Self::OutcomeUnknown,
        }
    }
}

/// The result in an answer.
pub(super) fn result_of(body: Option<Body>) -> Result<Body, CallError> {
    match body {
        Some(Body::Removed(_)) => Err(CallError::Removed),
        Some(Body::Refusal(refusal)) => Err(CallError::Refused(refusal)),
        Some(body) => Ok(body),
        // An answer of a kind that this version does not know: it may have done anything.
        None => Err(CallError::OutcomeUnknown),
    }
}

/// A refusal as an answer's body.
pub(super) fn refusal(kind: refusal::Kind, reason: &str, message: impl Into<String>) -> Body {
    Body::Refusal(crate::refusal::of(kind, reason, message))
}
