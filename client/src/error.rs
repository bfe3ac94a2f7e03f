//! How an operation ended when it did not succeed: what happened, may it be repeated, may it have happened.

use std::io;

use thiserror::Error;

use crate::{
    address::AddressError,
    failure::Failure,
    retry::{Cause, Happened, Kind},
};

/// Result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed.
///
/// Absent keys and preconditions that did not hold are no errors: they are in the reply.
#[derive(Debug, Error)]
pub enum Error {
    /// A given address is malformed.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The request is malformed or over a limit. [`Failure::violations`] names the fields.
    #[error("{0}")]
    InvalidArgument(Box<Failure>),
    /// The node refused, and would again: forbidden, unknown, or not possible in this state.
    #[error("{0}")]
    Refused(Box<Failure>),
    /// No connection to any node: the request never left.
    #[error("{0}")]
    Unreachable(Box<Failure>),
    /// The cluster could not take it until the deadline, and surely did not apply it.
    #[error("{0}")]
    Unavailable(Box<Failure>),
    /// A limit of the cluster was reached; surely not applied.
    #[error("{0}")]
    Overloaded(Box<Failure>),
    /// No answer until the deadline to what changes nothing: a read, or the opening of the session that a write was to be in.
    #[error("{0}")]
    TimedOut(Box<Failure>),
    /// A write whose outcome nobody can tell: it may have been applied, may be applied yet, or never.
    #[error("the outcome is unknown: {0}")]
    OutcomeUnknown(Box<Failure>),
    /// A node found its own bytes damaged.
    #[error("{0}")]
    DataLoss(Box<Failure>),
    /// A bug of a node.
    #[error("{0}")]
    Internal(Box<Failure>),
    /// A node answered something that the protocol does not allow.
    #[error("{operation}: unexpected answer: {problem}")]
    Protocol {
        /// The operation's name.
        operation: &'static str,
        /// What was wrong.
        problem: String,
    },
    /// The bytes that arrived are not those that were sent. After an upload, the damaged value is visible.
    #[error("{operation}: SHA-256 is {found}, expected {expected}")]
    ChecksumMismatch {
        /// Upload or Download.
        operation: &'static str,
        /// In hexadecimal.
        expected: String,
        /// In hexadecimal.
        found: String,
    },
    /// More or fewer bytes than announced.
    #[error("{operation}: {found_bytes} bytes, expected {expected_bytes}")]
    LengthMismatch {
        /// Upload or Download.
        operation: &'static str,
        /// What was announced.
        expected_bytes: u64,
        /// What came.
        found_bytes: u64,
    },
    /// The value was overwritten or deleted while its download was being resumed, or for longer than a node keeps it.
    #[error("Download: the value was replaced meanwhile; start again")]
    ValueReplaced,
    /// The source of an upload could not be read. Nothing is visible.
    #[error("cannot read what to upload: {0}")]
    Source(#[source] io::Error),
    /// What was downloaded could not be written.
    #[error("cannot write what was downloaded: {0}")]
    Sink(#[source] io::Error),
}

impl Error {
    /// The error that an operation of this kind ends with after this failure.
    pub(crate) fn of(kind: Kind, failure: Failure) -> Self {
        let failure = Box::new(failure);
        match (kind, failure.cause()) {
            (_, Cause::NotSent) => Self::Unreachable(failure),
            (_, Cause::NotApplied | Cause::WrongShard) => Self::Unavailable(failure),
            (_, Cause::Exhausted { .. }) => Self::Overloaded(failure),
            (_, Cause::Refused) if failure.code == tonic::Code::InvalidArgument => {
                Self::InvalidArgument(failure)
            }
            (_, Cause::Refused | Cause::NoSession) => Self::Refused(failure),
            (Kind::Write | Kind::Once | Kind::Idempotent, Cause::OutcomeUnknown | Cause::Lost) => {
                Self::OutcomeUnknown(failure)
            }
            (Kind::Read, Cause::OutcomeUnknown | Cause::Lost) => Self::TimedOut(failure),
            (_, Cause::DataLoss) => Self::DataLoss(failure),
            (_, Cause::Bug) => Self::Internal(failure),
        }
    }

    /// The same, in the light of earlier attempts: one of them may have been applied.
    pub(crate) fn end(kind: Kind, failure: Failure, in_doubt: bool) -> Self {
        if in_doubt && failure.cause().happened() == Happened::No {
            return Self::OutcomeUnknown(Box::new(failure));
        }
        Self::of(kind, failure)
    }

    /// The error once more, for one more operation that it ended.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::Address(error) => Self::Address(error.clone()),
            Self::InvalidArgument(failure) => Self::InvalidArgument(failure.clone()),
            Self::Refused(failure) => Self::Refused(failure.clone()),
            Self::Unreachable(failure) => Self::Unreachable(failure.clone()),
            Self::Unavailable(failure) => Self::Unavailable(failure.clone()),
            Self::Overloaded(failure) => Self::Overloaded(failure.clone()),
            Self::TimedOut(failure) => Self::TimedOut(failure.clone()),
            Self::OutcomeUnknown(failure) => Self::OutcomeUnknown(failure.clone()),
            Self::DataLoss(failure) => Self::DataLoss(failure.clone()),
            Self::Internal(failure) => Self::Internal(failure.clone()),
            Self::Protocol { operation, problem } => Self::Protocol { operation, problem: problem.clone() },
            Self::ChecksumMismatch { operation, expected, found } => {
                Self::ChecksumMismatch { operation, expected: expected.clone(), found: found.clone() }
            }
            &Self::LengthMismatch { operation, expected_bytes, found_bytes } => {
                Self::LengthMismatch { operation, expected_bytes, found_bytes }
            }
            Self::ValueReplaced => Self::ValueReplaced,
            Self::Source(error) => Self::Source(io::Error::new(error.kind(), error.to_string())),
            Self::Sink(error) => Self::Sink(io::Error::new(error.kind(), error.to_string())),
        }
    }

    /// The end of `operation`, which was not sent because of this: it did not happen, whatever became of what failed.
    pub(crate) fn unsent(self, operation: &'static str) -> Self {
        if !self.may_have_happened() {
            return self;
        }
        let why = self.failure().map_or_else(|| self.to_string(), ToString::to_string);
        let failure = Failure::local(operation, None, Cause::NotApplied, format!("not sent: {why}"));
        Self::Unavailable(Box::new(failure))
    }

    /// The end of an operation that met this after an attempt which may have been applied.
    pub(crate) fn in_doubt(self) -> Self {
        match self {
            Self::InvalidArgument(failure)
            | Self::Refused(failure)
            | Self::Unreachable(failure)
            | Self::Unavailable(failure)
            | Self::Overloaded(failure)
            | Self::TimedOut(failure)
            | Self::DataLoss(failure)
            | Self::Internal(failure) => Self::OutcomeUnknown(failure),
            other => other,
        }
    }

    pub(crate) fn protocol(operation: &'static str, problem: impl Into<String>) -> Self {
        Self::Protocol { operation, problem: problem.into() }
    }

    /// The last attempt, where a node or the way to it failed.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::InvalidArgument(failure)
            | Self::Refused(failure)
            | Self::Unreachable(failure)
            | Self::Unavailable(failure)
            | Self::Overloaded(failure)
            | Self::TimedOut(failure)
            | Self::OutcomeUnknown(failure)
            | Self::DataLoss(failure)
            | Self::Internal(failure) => Some(failure),
            Self::Address(_)
            | Self::Protocol { .. }
            | Self::ChecksumMismatch { .. }
            | Self::LengthMismatch { .. }
            | Self::ValueReplaced
            | Self::Source(_)
            | Self::Sink(_) => None,
        }
    }

    /// The reason in the node's `ErrorInfo`.
    pub fn reason(&self) -> Option<&str> {
        self.failure().and_then(|failure| failure.reason.as_deref())
    }

    /// Whether the same call may be made again without the risk of applying a write twice, and with some hope.
    pub fn may_retry(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Unavailable(_) | Self::Overloaded(_) | Self::TimedOut(_) => true,
            Self::ValueReplaced => true,
            Self::LengthMismatch { operation, .. } | Self::ChecksumMismatch { operation, .. } => {
                *operation == "Download"
            }
            Self::Address(_)
            | Self::InvalidArgument(_)
            | Self::Refused(_)
            | Self::OutcomeUnknown(_)
            | Self::DataLoss(_)
            | Self::Internal(_)
            | Self::Protocol { .. }
            | Self::Source(_)
            | Self::Sink(_) => false,
        }
    }

    /// Whether a write that ended like this may have been applied, or may be applied yet.
    pub fn may_have_happened(&self) -> bool {
        match self {
            Self::OutcomeUnknown(_) | Self::Protocol { .. } => true,
            Self::ChecksumMismatch { .. } | Self::LengthMismatch { .. } => true,
            Self::DataLoss(failure) | Self::Internal(failure) => {
                failure.cause().happened() == Happened::Perhaps
            }
            Self::Address(_)
            | Self::InvalidArgument(_)
            | Self::Refused(_)
            | Self::Unreachable(_)
            | Self::Unavailable(_)
            | Self::Overloaded(_)
            | Self::TimedOut(_)
            | Self::ValueReplaced
            | Self::Source(_)
            | Self::Sink(_) => false,
        }
    }
}
