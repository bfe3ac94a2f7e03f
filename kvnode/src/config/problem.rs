//! What is wrong with a configuration, all of it at once.

use std::{error::Error, fmt};

/// One problem: the flag that a person must change, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// With its dashes. The environment variable of the same name is meant too.
    pub flag: &'static str,
    /// A sentence without the flag and without a full stop.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.flag, self.message)
    }
}

/// All problems found, in the order of the flags. As an error it is never empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Notes a problem.
    pub fn note(&mut self, flag: &'static str, message: impl fmt::Display) {
        self.0.push(Problem { flag, message: message.to_string() });
    }

    /// The value, or its problem noted.
    pub(super) fn take<T>(&mut self, flag: &'static str, result: Result<T, impl fmt::Display>) -> Option<T> {
        result.map_err(|message| self.note(flag, message)).ok()
    }

    /// Nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.0.iter().enumerate() {
            if number > 0 {
                formatter.write_str("\n")?;
            }
            write!(formatter, "{problem}")?;
        }
        Ok(())
    }
}

impl Error for Problems {}
