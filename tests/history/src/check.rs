//! The whole check of a history: key by key, cheap oracles first, then the decider that fits the key.

use crate::{
    history::History,
    operation::{Call, Nanos, Operation, Outcome},
    revisions,
    search::{self, Verdict},
    values::Values,
    violation::{Violation, ViolationKind},
    zones,
};

/// Bounds of a check.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// States that the search may enter for one key. One takes about a hundred bytes and a microsecond.
    pub states_per_key: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { states_per_key: 1_000_000 }
    }
}

/// What was checked, when nothing was violated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Operations with a reply.
    pub returned: usize,
    /// Operations with unknown outcome.
    pub unknown: usize,
    /// Operations that surely had no effect.
    pub failed: usize,
    /// Keys decided by zones.
    pub keys_by_zones: usize,
    /// Keys decided by search.
    pub keys_by_search: usize,
    /// Keys for which the budget ran out; the cheap oracles held for them.
    pub undecided_keys: Vec<String>,
}

/// Operations in an explanation found by search: the last ones placed, and those that fit no more.
const EXPLAINED_PLACED: usize = 6;
/// See [`EXPLAINED_PLACED`].
const EXPLAINED_STUCK: usize = 12;
/// States a key of each of the many searches that make an explanation small: what takes longer is left as it is.
const EXPLANATION_LIMITS: Limits = Limits { states_per_key: 10_000 };

/// Checks that a linearizable store can have told `history`.
///
/// # Errors
/// The first violation found, by key.
pub fn check(history: &History, limits: Limits) -> Result<Report, Violation> {
    let mut report = Report::default();
    for operation in history.operations() {
        match operation.outcome {
            Outcome::Returned { .. } => report.returned += 1,
            Outcome::Unknown => report.unknown += 1,
            Outcome::Failed => report.failed += 1,
        }
    }
    for (key, operations) in history.by_key() {
        check_key(key, &operations, limits, &mut report)?;
    }
    Ok(report)
}

fn check_key(
    key: &str,
    operations: &[&Operation],
    limits: Limits,
    report: &mut Report,
) -> Result<(), Violation> {
    let values = Values::collect(operations)?;
    revisions::check(operations)?;
    if zones::can_decide(operations) {
        report.keys_by_zones += 1;
        return zones::check(operations);
    }
    match search::decide(operations, &values, limits.states_per_key) {
        Verdict::Linearizable => report.keys_by_search += 1,
        Verdict::Undecided => report.undecided_keys.push(key.to_owned()),
        Verdict::Violated { placed } => return Err(explain(operations, placed)),
    }
    Ok(())
}

/// Looks for the smallest part of the history that still has no order, and says where it got stuck.
fn explain<'h>(operations: &[&'h Operation], placed: Vec<&'h Operation>) -> Violation {
    let (mut operations, mut placed) = shortest_prefix(operations, placed);
    let mut index = 0;
    while index < operations.len() {
        let mut fewer = operations.clone();
        let dropped = fewer.remove(index);
        // A read constrains the others and changes nothing: without it, a legal order stays legal.
        match matches!(dropped.call, Call::Get).then(|| stuck(&fewer)).flatten() {
            Some(placed_of_fewer) => (operations, placed) = (fewer, placed_of_fewer),
            None => index += 1,
        }
    }
    let is_placed = |operation: &&&Operation| placed.iter().any(|other| other.id == operation.id);
    let left: Vec<&Operation> = operations
        .iter()
        .filter(|operation| !is_placed(operation) && !matches!(operation.outcome, Outcome::Failed))
        .copied()
        .take(EXPLAINED_STUCK)
        .collect();
    let last = placed.iter().rev().take(EXPLAINED_PLACED).copied();
    let explanation = format!(
        "The longest order that could be built places {} of {} operations, at last {}; then none of the others fits.",
        placed.len(),
        operations.len(),
        placed.last().map_or_else(|| "nothing".to_owned(), |operation| format!("#{}", operation.id.0))
    );
    Violation::new(ViolationKind::NotLinearizable, last.chain(left), explanation)
}

/// The history up to the earliest moment at which it is violated already. Later replies are not heard yet.
fn shortest_prefix<'h>(
    operations: &[&'h Operation],
    placed: Vec<&'h Operation>,
) -> (Vec<&'h Operation>, Vec<&'h Operation>) {
    let mut ends: Vec<Nanos> =
        operations.iter().filter(|o| o.reply().is_some()).map(|o| o.ended_at()).collect();
    ends.sort_unstable();
    // Only reads are dropped: that can never make a legal history illegal.
    let prefix = |end: Nanos| -> Vec<&'h Operation> {
        operations
            .iter()
            .copied()
            .filter(|operation| operation.ended_at() <= end || !matches!(operation.call, Call::Get))
            .collect()
    };
    let mut best = (operations.to_vec(), placed);
    let (mut low, mut high) = (0, ends.len());
    while low < high {
        let middle = low.midpoint(high);
        let candidate = prefix(ends[middle]);
        match stuck(&candidate) {
            Some(placed) => (best, high) = ((candidate, placed), middle),
            None => low = middle + 1,
        }
    }
    best
}

/// The longest order of a history that has no whole one.
fn stuck<'h>(operations: &[&'h Operation]) -> Option<Vec<&'h Operation>> {
    let values = Values::collect(operations).ok()?;
    match search::decide(operations, &values, EXPLANATION_LIMITS.states_per_key) {
        Verdict::Violated { placed } => Some(placed),
        Verdict::Linearizable | Verdict::Undecided => None,
    }
}
