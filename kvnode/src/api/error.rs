//! The one file that maps what went wrong to what a client is told.
//!
//! [`Refused`] is everything that can end a call of the API. [`describe`] is the table of the API's errors as a pure
//! function; [`Told`] becomes a gRPC status with `google.rpc` details, or the failure of one operation of a batch.
//! Clients branch on the reason, never on text. Every status of ours carries an `ErrorInfo`: one without it was made
//! by a transport or a proxy, and its outcome is unknown.

use std::{collections::BTreeMap, time::Duration};

use kv_proto::{
    kv::v1::Failure,
    peer::v1::{Refusal, refusal::Kind},
};
use kv_topology::{ClusterMap, NodeId, ShardId};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::{limits::RETRY_AFTER, validate::Violation};
pub use crate::refusal::reason;

/// The domain of our `ErrorInfo`.
pub const DOMAIN: &str = "kvcluster.dev";

/// Metadata: who leads the shard.
const LEADER_NODE_ID: &str = "leader_node_id";

/// Why a call ended without its reply.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A field is wrong.
    #[error("{0}")]
    Invalid(#[from] Violation),
    /// The store refused.
    #[error("refused: {} {}", .0.reason, .0.message)]
    Store(Refusal),
    /// The keys of a transaction lie in several shards.
    #[error("the keys lie in {} shards", .shards.len())]
    SpansShards {
        /// Ordered, at least two.
        shards: Vec<ShardId>,
        /// Put into every key, it would bring them into one shard.
        tag: String,
    },
    /// This node does not know the shard map yet.
    #[error("the shard map is not known yet")]
    Starting,
    /// The deadline passed between two steps of a stream.
    #[error("the deadline has passed")]
    Expired,
    /// A download of a key that does not exist.
    #[error("the key does not exist")]
    KeyNotFound,
    /// The value under a running download was overwritten.
    #[error("the value was replaced while it was read")]
    ValueReplaced,
    /// Stored bytes of this shard failed their checksum.
    #[error("stored bytes of shard {0} failed their checksum")]
    Damaged(ShardId),
    /// A limit of this node was reached before anything was done.
    #[error("{0}: limit reached")]
    Limit(&'static str),
    /// A resumed upload goes on at the wrong byte.
    #[error("the store has {stored_bytes} B of this upload")]
    UploadOffset {
        /// Where it must go on.
        stored_bytes: u64,
    },
    /// The client's stream broke.
    #[error("the request stream ended: {0}")]
    Interrupted(String),
    /// An upload failed before its commit; nothing is visible.
    #[error("{cause}")]
    Upload {
        /// Why.
        cause: Box<Refused>,
        /// To resume it with.
        upload_id: [u8; 16],
        /// Where to resume it.
        stored_bytes: u64,
    },
    /// A bug; the text is for the log.
    #[error("bug: {0}")]
    Bug(String),
}

impl Refused {
    /// Whether what was asked for surely did not happen.
    pub fn is_without_effect(&self) -> bool {
        match self {
            Self::Store(refusal) => match refusal.kind() {
                Kind::Unspecified | Kind::OutcomeUnknown | Kind::Internal => false,
                Kind::DeadlineExceeded => refusal.reason.starts_with("NOT_APPLIED_"),
                Kind::InvalidArgument
                | Kind::NotApplied
                | Kind::WrongShard
                | Kind::ResourceExhausted
                | Kind::DataLoss
                | Kind::FailedPrecondition
                | Kind::NotFound => true,
            },
            Self::Bug(_) => false,
            Self::Invalid(_)
            | Self::SpansShards { .. }
            | Self::Starting
            | Self::Expired
            | Self::KeyNotFound
            | Self::ValueReplaced
            | Self::Damaged(_)
            | Self::Limit(_)
            | Self::UploadOffset { .. }
            | Self::Interrupted(_)
            | Self::Upload { .. } => true,
        }
    }
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The code of the status.
    pub code: Code,
    /// What clients branch on.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Of the `ErrorInfo`.
    pub metadata: BTreeMap<String, String>,
    /// Of the `BadRequest`: field and description.
    pub violation: Option<Violation>,
    /// Of the `RetryInfo`. With it, the same request may be sent again after this time.
    pub retry_after: Option<Duration>,
}

impl Told {
    fn new(code: Code, reason: &str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            message: message.into(),
            metadata: BTreeMap::new(),
            violation: None,
            retry_after: None,
        }
    }

    fn with(mut self, name: &str, value: &dyn ToString) -> Self {
        self.metadata.insert(name.to_owned(), value.to_string());
        self
    }

    fn retry_after(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }

    /// The status with its details.
    pub fn status(self) -> Status {
        let mut details = ErrorDetails::new();
        details.set_error_info(
            self.reason,
            DOMAIN,
            self.metadata.into_iter().collect::<std::collections::HashMap<_, _>>(),
        );
        if let Some(violation) = self.violation {
            details.add_bad_request_violation(violation.field, violation.description);
        }
        if self.retry_after.is_some() {
            details.set_retry_info(self.retry_after);
        }
        Status::with_error_details(self.code, self.message, details)
    }

    /// The failure of one operation of a batch.
    pub fn failure(self) -> Failure {
        let retry_after = self.retry_after.unwrap_or_default().as_millis();
        let (message, field) = match self.violation {
            Some(violation) => (violation.to_string(), violation.field),
            None => (self.message, String::new()),
        };
        let leader_node_id = self.metadata.get(LEADER_NODE_ID).and_then(|id| id.parse().ok());
        Failure {
            code: self.code.into(),
            reason: self.reason,
            message,
            retry_after_ms: u32::try_from(retry_after).unwrap_or(u32::MAX),
            field,
            leader_node_id: leader_node_id.unwrap_or(0),
        }
    }
}

/// The table of errors.
pub fn describe(refused: &Refused, map: &ClusterMap) -> Told {
    match refused {
        Refused::Invalid(violation) => invalid(reason::INVALID_ARGUMENT, violation.clone()),
        Refused::Store(refusal) => of_refusal(refusal, map),
        Refused::SpansShards { shards, tag } => {
            let shards: Vec<_> = shards.iter().map(|shard| shard.get().to_string()).collect();
            let text = format!("{refused}; the tag {tag} in every key would put them into one");
            Told::new(Code::FailedPrecondition, reason::TXN_SPANS_SHARDS, text)
                .with("shards", &shards.join(","))
                .with("tag", tag)
        }
        Refused::Starting => {
            Told::new(Code::Unavailable, reason::STARTING, refused.to_string()).retry_after(RETRY_AFTER)
        }
        Refused::Expired => Told::new(Code::DeadlineExceeded, reason::EXPIRED, refused.to_string()),
        Refused::KeyNotFound => Told::new(Code::NotFound, reason::KEY_NOT_FOUND, refused.to_string()),
        Refused::ValueReplaced => {
            Told::new(Code::Unavailable, reason::VALUE_REPLACED, refused.to_string()).retry_after(RETRY_AFTER)
        }
        Refused::Damaged(shard) => {
            Told::new(Code::DataLoss, reason::DATA_LOSS, refused.to_string()).with("shards", &shard.get())
        }
        Refused::Limit(limit) => {
            Told::new(Code::ResourceExhausted, limit, refused.to_string()).retry_after(RETRY_AFTER)
        }
        Refused::UploadOffset { stored_bytes } => {
            Told::new(Code::FailedPrecondition, reason::UPLOAD_OFFSET, refused.to_string())
                .with("stored_bytes", stored_bytes)
        }
        Refused::Interrupted(_) => {
            Told::new(Code::Unavailable, reason::UPLOAD_INTERRUPTED, refused.to_string())
                .retry_after(RETRY_AFTER)
        }
        Refused::Upload { cause, upload_id, stored_bytes } => {
            of_upload(cause, map).with("upload_id", &hex(upload_id)).with("stored_bytes", stored_bytes)
        }
        Refused::Bug(text) => bug(text),
    }
}

/// Before its commit an upload has no visible effect: an unknown outcome of a part of it is a known one of the whole.
fn of_upload(cause: &Refused, map: &ClusterMap) -> Told {
    let told = describe(cause, map);
    if told.reason == reason::OUTCOME_UNKNOWN {
        return Told::new(Code::Unavailable, reason::UPLOAD_INTERRUPTED, told.message)
            .retry_after(RETRY_AFTER);
    }
    told
}

fn of_refusal(refusal: &Refusal, map: &ClusterMap) -> Told {
    let named = |code, default: &str| {
        let reason = if refusal.reason.is_empty() { default } else { &refusal.reason };
        Told::new(code, reason, refusal.message.clone())
    };
    let advice = match refusal.retry_after_ms {
        0 => RETRY_AFTER,
        ms => Duration::from_millis(ms.into()),
    };
    let violation = || Violation::new(refusal.field.clone(), refusal.message.clone());
    match refusal.kind() {
        Kind::InvalidArgument => {
            let violation = violation();
            let reason = if refusal.reason.is_empty() { reason::INVALID_ARGUMENT } else { &refusal.reason };
            invalid(reason, violation)
        }
        Kind::NotApplied => {
            hinted(named(Code::Unavailable, reason::NOT_APPLIED), refusal, map).retry_after(advice)
        }
        Kind::WrongShard => {
            let told = Told::new(Code::Unavailable, reason::WRONG_SHARD, refusal.message.clone());
            told.with("epoch", &map.epoch).retry_after(advice)
        }
        Kind::ResourceExhausted => named(Code::ResourceExhausted, reason::LIMIT_REACHED).retry_after(advice),
        Kind::OutcomeUnknown => Told::new(Code::Unknown, reason::OUTCOME_UNKNOWN, refusal.message.clone()),
        Kind::DeadlineExceeded => named(Code::DeadlineExceeded, reason::DEADLINE_EXCEEDED),
        Kind::DataLoss => named(Code::DataLoss, reason::DATA_LOSS),
        Kind::FailedPrecondition => named(Code::FailedPrecondition, reason::FAILED_PRECONDITION),
        // The field that names what does not exist, where the request has several.
        Kind::NotFound => Told {
            violation: (!refusal.field.is_empty()).then(violation),
            ..named(Code::NotFound, reason::NOT_FOUND)
        },
        Kind::Internal | Kind::Unspecified => bug(&format!("{} {}", refusal.reason, refusal.message)),
    }
}

fn invalid(reason: &str, violation: Violation) -> Told {
    let told = Told::new(Code::InvalidArgument, reason, violation.to_string());
    Told { violation: Some(violation), ..told }
}

/// Adds who leads, as far as it is known.
fn hinted(told: Told, refusal: &Refusal, map: &ClusterMap) -> Told {
    let told = told.with("epoch", &map.epoch);
    if refusal.leader_node_id == 0 {
        return told;
    }
    let told = told.with(LEADER_NODE_ID, &refusal.leader_node_id);
    match map.nodes.get(&NodeId(refusal.leader_node_id)) {
        Some(node) => told.with("leader_address", &node.client_address),
        None => told,
    }
}

/// The client gets an id that finds the text in the log, and nothing of the text.
fn bug(text: &str) -> Told {
    let log_id = format!("{:08x}", crc32c::crc32c(text.as_bytes()));
    tracing::error!(log_id, text, "internal error");
    Told::new(Code::Internal, reason::INTERNAL, format!("internal error, log id {log_id}"))
        .with("log_id", &log_id)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[path = "error_table.rs"]
mod tests;
