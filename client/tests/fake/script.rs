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
