//! What a failed attempt said: a gRPC status read into words of ours.

use std::{collections::BTreeMap, error::Error as _, fmt, time::Duration};

use kv_http2::was_not_sent;
use kv_topology::NodeId;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{address::Address, retry::Cause};

/// The domain of our `ErrorInfo`; reasons of other domains say nothing about us.
pub const ERROR_DOMAIN: &str = "kvcluster.dev";

/// End of the path of the field that is refused when the session is one of another shard: the key's slot has moved.
const SESSION_FIELD: &str = "session_id";

/// A field that a node refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// Path of the field in the request, as in the proto.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

/// Who leads the shard, as far as the refusing node knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaderHint {
    /// The node.
    pub node: Option<NodeId>,
    /// Where it listens.
    pub address: Option<Address>,
}

/// One failed attempt, the last one of an operation that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The operation's name, as in `kv.v1`.
    pub operation: &'static str,
    /// The node that was asked; `None` when none was.
    pub node: Option<Address>,
    /// Status code.
    pub code: Code,
    /// The reason in our `ErrorInfo`. Branch on this, never on `message`. `None`: the answer, if there was one, came
    /// from a transport, a proxy or this library.
    pub reason: Option<String>,
    /// For people.
    pub message: String,
    /// The fields that were refused.
    pub violations: Vec<FieldViolation>,
    /// Who leads.
    pub leader: LeaderHint,
    /// Come again no sooner than this.
    pub retry_after: Option<Duration>,
    /// What else came with the reason, for example the name of a limit.
    pub metadata: BTreeMap<String, String>,
    /// Attempts made, this one included.
    pub attempts: u32,
    cause: Cause,
}

impl Failure {
    /// What the attempt tells.
    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// Reads the status that `node` (or the way to it) gave.
    pub(crate) fn of_status(operation: &'static str, node: &Address, status: &Status) -> Self {
        let details = status.get_error_details();
        let ours = details.error_info().filter(|info| info.domain == ERROR_DOMAIN);
        let retry_after = details.retry_info().and_then(|info| info.retry_delay);
        let metadata: BTreeMap<String, String> =
            ours.map(|info| info.metadata.clone().into_iter().collect()).unwrap_or_default();
        let reason = ours.map(|info| info.reason.clone());
        let violations = details.bad_request().map(|bad| &bad.field_violations[..]).unwrap_or_default();
        let cause = if was_not_sent(status) {
            Cause::NotSent
        } else if violations.iter().any(|violation| violation.field.ends_with(SESSION_FIELD)) {
            Cause::NoSession
        } else {
            Cause::of(status.code(), reason.as_deref(), retry_after.is_some())
        };
        Self {
            operation,
            node: Some(node.clone()),
            code: status.code(),
            reason,
            message: message_of(status),
            violations: violations
                .iter()
                .map(|violation| FieldViolation {
                    field: violation.field.clone(),
                    description: violation.description.clone(),
                })
                .collect(),
            leader: LeaderHint {
                node: metadata.get("leader_node_id").and_then(|id| id.parse().ok()).map(NodeId),
                address: metadata.get("leader_address").and_then(|address| address.parse().ok()),
            },
            retry_after,
            metadata,
            attempts: 1,
            cause,
        }
    }

    /// Reads the error of one operation inside a message of many.
    pub(crate) fn of_part(operation: &'static str, node: &Address, part: kv_proto::kv::v1::Failure) -> Self {
        let advised = part.retry_after_ms != 0;
        let cause = if part.field.ends_with(SESSION_FIELD) {
            Cause::NoSession
        } else {
            Cause::of(Code::from(part.code), Some(&part.reason), advised)
        };
        // The text begins with the field.
        let description = part.message.strip_prefix(&part.field).and_then(|rest| rest.strip_prefix(": "));
        let description = description.unwrap_or(&part.message).to_owned();
        let violation = FieldViolation { field: part.field, description };
        Self {
            code: Code::from(part.code),
            reason: Some(part.reason),
            retry_after: advised.then(|| Duration::from_millis(part.retry_after_ms.into())),
            violations: if violation.field.is_empty() { Vec::new() } else { vec![violation] },
            leader: LeaderHint {
                node: (part.leader_node_id != 0).then_some(NodeId(part.leader_node_id)),
                address: None,
            },
            ..Self::local(operation, Some(node), cause, part.message)
        }
    }

    /// A failure that this library noticed.
    pub(crate) fn local(
        operation: &'static str,
        node: Option<&Address>,
        cause: Cause,
        message: impl Into<String>,
    ) -> Self {
        let code = match cause {
            Cause::Refused => Code::InvalidArgument,
            Cause::Lost => Code::DeadlineExceeded,
            Cause::DataLoss => Code::DataLoss,
            Cause::Bug => Code::Internal,
            Cause::OutcomeUnknown => Code::Unknown,
            Cause::NoSession => Code::FailedPrecondition,
            Cause::Exhausted { .. } => Code::ResourceExhausted,
            Cause::NotSent | Cause::NotApplied | Cause::WrongShard => Code::Unavailable,
        };
        Self {
            operation,
            node: node.cloned(),
            code,
            reason: None,
            message: message.into(),
            violations: Vec::new(),
            leader: LeaderHint::default(),
            retry_after: None,
            metadata: BTreeMap::new(),
            attempts: 1,
            cause,
        }
    }

    /// The same with the cause that the caller knows better.
    pub(crate) fn with_cause(mut self, cause: Cause) -> Self {
        self.cause = cause;
        self
    }

    /// The same with another text.
    pub(crate) fn with_message(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }
}

/// The status's message; a transport's is often empty words around a cause that says it.
fn message_of(status: &Status) -> String {
    let mut message = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !message.contains(&cause) {
            if !message.is_empty() {
                message.push_str(": ");
            }
            message.push_str(&cause);
        }
        source = error.source();
    }
    message
}

/// The canonical name of a code, as people know it from gRPC.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.operation)?;
        if let Some(node) = &self.node {
            write!(formatter, " at {node}")?;
        }
        write!(formatter, ": {}", code_name(self.code))?;
        if let Some(reason) = self.reason.as_deref().filter(|reason| *reason != code_name(self.code)) {
            write!(formatter, " {reason}")?;
        }
        if !self.message.is_empty() {
            write!(formatter, ": {}", self.message)?;
        }
        for violation in &self.violations {
            let said = format!("{}: {}", violation.field, violation.description);
            // The store's own message names the first one.
            if !self.message.contains(&said) {
                write!(formatter, "; {said}")?;
            }
        }
        if self.attempts > 1 {
            write!(formatter, " (after {} attempts)", self.attempts)?;
        }
        Ok(())
    }
}
