//! How a call fails.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// What happens to one call.
#[derive(Clone)]
pub enum Fault {
    /// Nothing: the call passes.
    None,
    /// Refused before anything happened.
    Refuse(Status),
    /// Done, and then this status instead of the reply.
    Lose(Status),
    /// No answer, ever.
    Hang,
    /// A stream ends with this status after so many messages.
    BreakAfter(usize, Status),
    /// A stream ends in order after so many messages, too early.
    EndAfter(usize),
    /// One bit of the data differs.
    FlipBit,
}

/// A status of ours.
pub fn refusal(code: Code, reason: &str, metadata: &[(&str, &str)], retry_after: Option<Duration>) -> Status {
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "kvcluster.dev", metadata);
    if retry_after.is_some() {
        details.set_retry_info(retry_after);
    }
    Status::with_error_details(code, reason.to_lowercase(), details)
}

/// No leader known, surely not applied.
pub fn no_leader() -> Status {
    refusal(Code::Unavailable, "NOT_APPLIED_NO_LEADER", &[], Some(Duration::from_millis(1)))
}

/// What a proxy or a dying connection says.
pub fn lost() -> Status {
    Status::unavailable("connection reset")
}

/// A refusal that names a field.
pub fn bad_field(field: &str, description: &str) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info("INVALID_KEY", "kvcluster.dev", HashMap::new());
    details.add_bad_request_violation(field, description);
    Status::with_error_details(Code::InvalidArgument, "the request is malformed", details)
}

/// The same inside a message of many.
pub fn failure_of(status: &Status) -> kv_proto::kv::v1::Failure {
    let details = status.get_error_details();
    let info = details.error_info();
    let advice = details.retry_info().and_then(|info| info.retry_delay);
    let field = details.bad_request().and_then(|bad| bad.field_violations.first());
    kv_proto::kv::v1::Failure {
        code: status.code().into(),
        reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
        message: field
            .map_or(status.message().to_owned(), |field| format!("{}: {}", field.field, field.description)),
        retry_after_ms: advice.map_or(0, |advice| u32::try_from(advice.as_millis()).unwrap()),
        field: field.map(|field| field.field.clone()).unwrap_or_default(),
        leader_node_id: info
            .and_then(|info| info.metadata.get("leader_node_id"))
            .map_or(0, |id| id.parse().unwrap()),
    }
}

/// Whether it has a word of ours, so that it can be told of one operation.
pub fn is_ours(status: &Status) -> bool {
    status.get_error_details().error_info().is_some()
}

/// The node does not know what became of it.
pub fn unknown() -> Status {
    refusal(Code::Unknown, "OUTCOME_UNKNOWN", &[], None)
}
