//! What a run leaves for those who come later: the machine, the commit, the command, and every figure.

use kv_compare::machine::{Machine, command, commit};
use serde::Serialize;

use crate::{Memory, summary::Figure};

/// A run.
#[derive(Debug, Serialize)]
pub struct Record<'r> {
    machine: Machine,
    /// Of this repository; with `+` when the checkout had changes. Empty: it was none.
    commit: String,
    command: Vec<String>,
    /// Every one, of every round.
    figures: &'r [Figure],
    /// After each round.
    memory: &'r [Memory],
}

impl<'r> Record<'r> {
    /// Of this run, on this machine.
    pub fn of(figures: &'r [Figure], memory: &'r [Memory]) -> Self {
        Self { machine: Machine::this(), commit: commit(), command: command(), figures, memory }
    }
}
