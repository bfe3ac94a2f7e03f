//! What an error of HTTP/2 means to a call.

use h2::Reason;
use thiserror::Error;
use tonic::{Code, Status};

/// The source of a status: the request did not leave, or the other side says that it has not looked at it.
#[derive(Debug, Error)]
#[error("not sent: {0}")]
pub struct NotSent(#[source] pub h2::Error);

/// Whether the other side certainly did nothing: the status is of [`NotSent`].
pub fn was_not_sent(status: &Status) -> bool {
    std::error::Error::source(status).is_some_and(|source| source.is::<NotSent>())
}

/// Of an error after the request was sent: what became of it is not known, unless the error says so.
pub(crate) fn of(error: h2::Error) -> Status {
    if is_refused(&error) { not_sent(error) } else { after_the_head(&error) }
}

/// Of an error after the head of a response came: the other side has looked at the request.
pub(crate) fn after_the_head(error: &h2::Error) -> Status {
    let code = match error.reason() {
        // Of the connection, not of this call.
        _ if error.is_io() || error.is_go_away() => Code::Unavailable,
        Some(Reason::CANCEL) => Code::Cancelled,
        Some(Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
        Some(_) => Code::Internal,
        None => Code::Unavailable,
    };
    Status::new(code, format!("HTTP/2: {error}"))
}

/// Of an error before the request was sent.
pub(crate) fn not_sent(error: h2::Error) -> Status {
    let mut status = Status::unavailable(format!("HTTP/2: {error}"));
    status.set_source(std::sync::Arc::new(NotSent(error)));
    status
}

/// RFC 9113, 8.7: a refused stream, and one that a graceful GOAWAY does not cover, was not processed.
fn is_refused(error: &h2::Error) -> bool {
    let by_reset = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    let by_goodbye = error.is_go_away() && error.reason() == Some(Reason::NO_ERROR);
    error.is_remote() && (by_reset || by_goodbye)
}
