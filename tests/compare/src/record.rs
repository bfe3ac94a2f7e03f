//! What a run leaves for those who come later: the machine, the commit, the command, and what it has measured.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::machine::{Machine, command, commit};

/// A run.
#[derive(Debug, Serialize)]
struct Record<'r, T> {
    machine: Machine,
    /// Of this repository; with `+` when the checkout had changes. Empty: it was none.
    commit: String,
    command: Vec<String>,
    #[serde(flatten)]
    measured: &'r T,
}

/// Writes this run, on this machine, as JSON; the fields of `measured` stand beside those of the run.
///
/// # Errors
/// When the file cannot be written.
pub fn write<T: Serialize>(path: &Path, measured: &T) -> Result<()> {
    let record = Record { machine: Machine::this(), commit: commit(), command: command(), measured };
    let text = serde_json::to_string_pretty(&record)? + "\n";
    fs::write(path, text).with_context(|| path.display().to_string())
}
