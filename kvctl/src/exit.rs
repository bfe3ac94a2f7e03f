//! How a command ended, in numbers for scripts.

use std::{fmt, io, process::ExitCode};

use kv_client::Error;

use crate::advice;

/// Exit codes. Part of the interface: they never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Failed.
    Error = 1,
    /// The command line or the input is malformed; clap uses the same number.
    Usage = 2,
    /// The key is absent.
    Absent = 3,
    /// A precondition or comparison did not hold; nothing was written.
    Precondition = 4,
    /// A write may have been applied or not.
    OutcomeUnknown = 5,
    /// No node could be reached or took it; surely not applied.
    Unavailable = 6,
    /// No permit was granted: the node is not to be restarted now.
    NotPermitted = 7,
    /// Ctrl-C ended the waiting, not what was waited for; 128 and the number of the signal, as shells have it.
    Interrupted = 130,
}

/// For `--help`.
pub const HELP: &str = "Exit codes:
  0  ok
  1  error
  2  the command line or the input is malformed
  3  the key is absent
  4  a precondition did not hold, nothing was written
  5  the outcome of a write is unknown: it may have been applied, or may be yet
  6  unavailable: no node could be reached or took it; nothing was written
  7  no permit was granted: the node is not to be restarted now
130  Ctrl-C ended the waiting; what was begun goes on";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Input that makes no sense; says what would.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Builds a [`Usage`] error.
pub fn usage(problem: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Usage(problem.into()))
}

/// A failure of the client of which the command knows better what to do about it.
#[derive(Debug)]
pub struct Advised {
    /// What failed.
    pub error: Error,
    /// What to do next.
    pub advice: String,
}

impl fmt::Display for Advised {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.error)
    }
}

impl std::error::Error for Advised {}

/// The code for a failure of the client.
pub fn of_error(error: &Error) -> Exit {
    match error {
        Error::Address(_) | Error::InvalidArgument(_) => Exit::Usage,
        Error::OutcomeUnknown(_) => Exit::OutcomeUnknown,
        Error::Unreachable(_) | Error::Unavailable(_) | Error::Overloaded(_) | Error::TimedOut(_) => {
            Exit::Unavailable
        }
        Error::Refused(_)
        | Error::DataLoss(_)
        | Error::Internal(_)
        | Error::Protocol { .. }
        | Error::ChecksumMismatch { .. }
        | Error::LengthMismatch { .. }
        | Error::ValueReplaced
        | Error::Source(_)
        | Error::Sink(_) => Exit::Error,
    }
}

/// Tells a person why, and what to do next, on standard error.
pub fn report(error: &anyhow::Error) -> Exit {
    if is_broken_pipe(error) {
        // The reader, `head` for example, has seen enough.
        return Exit::Ok;
    }
    let of_client = error.downcast_ref::<Error>().map(|error| (error, advice::of(error)));
    let advised = error.downcast_ref::<Advised>();
    let of_client = of_client.or(advised.map(|advised| (&advised.error, Some(advised.advice.clone()))));
    if let Some((error, advice)) = of_client {
        eprintln!("error: {error}");
        if let Some(advice) = advice {
            eprintln!("hint: {advice}");
        }
        return of_error(error);
    }
    if let Some(usage) = error.downcast_ref::<Usage>() {
        eprintln!("error: {usage}");
        return Exit::Usage;
    }
    eprintln!("error: {error:#}");
    Exit::Error
}

/// Whether standard output is not read any more.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let of_download = match error.downcast_ref::<Error>() {
        Some(Error::Sink(error)) => Some(error),
        _ => None,
    };
    let error = error.downcast_ref::<io::Error>().or(of_download);
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
