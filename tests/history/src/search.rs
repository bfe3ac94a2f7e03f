//! Linearizability of a key with deletes and compare-and-swap: the search of Wing and Gong with the memory of Lowe
//! ("Testing for linearizability", 2017).
//!
//! It extends an order of operations step by step: next may come any operation that began before every operation
//! not yet placed has ended. A pair (set of placed operations, current value) that led nowhere is never entered
//! again. Operations with unknown outcome end never and need not be placed. Known mod revisions prune: a write
//! below the greatest revision placed cannot come next.
//!
//! The work is bounded by a number of entered states; beyond it the verdict is "undecided".

use std::{
    collections::{HashSet, hash_map::DefaultHasher},
    hash::BuildHasherDefault,
};

use crate::{
    operation::{Call, Nanos, Operation, Outcome, Reply, Revision, ValueId},
    values::Values,
};

/// What the search found.
pub(crate) enum Verdict<'h> {
    /// An order exists.
    Linearizable,
    /// No order exists. This is the longest one that could be built.
    Violated { placed: Vec<&'h Operation> },
    /// The budget ran out.
    Undecided,
}

/// The register while an order is built.
#[derive(Clone, Copy)]
struct State {
    value: Option<ValueId>,
    /// Greatest mod revision placed.
    floor: Revision,
}

/// A step of the order being built, and what else could have been placed instead.
struct Frame {
    before: State,
    candidates: Vec<usize>,
    /// Index of the next candidate to try.
    next: usize,
    /// What was placed in this step, while deeper steps are tried.
    placed: Option<usize>,
}

type Memory = HashSet<(Box<[u64]>, Option<ValueId>), BuildHasherDefault<DefaultHasher>>;

/// Decides one key's operations, given by invocation, within `budget` states.
pub(crate) fn decide<'h>(operations: &[&'h Operation], values: &Values<'_>, budget: usize) -> Verdict<'h> {
    let operations: Vec<&Operation> =
        operations.iter().copied().filter(|operation| has_effect_or_reply(operation)).collect();
    Search::new(&operations, values).run(budget)
}

fn has_effect_or_reply(operation: &Operation) -> bool {
    match operation.outcome {
        Outcome::Failed => false,
        Outcome::Unknown => !matches!(operation.call, Call::Get),
        Outcome::Returned { .. } => true,
    }
}

struct Search<'s, 'h> {
    operations: &'s [&'h Operation],
    values: &'s Values<'s>,
    /// Indexes of operations with a reply, by invocation.
    returned: Vec<usize>,
    unknown: Vec<usize>,
    placed: Box<[u64]>,
    /// Operations with a reply that are not placed yet.
    left: usize,
    /// All of `returned` before this position are placed.
    first_left: usize,
}

impl<'s, 'h> Search<'s, 'h> {
    fn new(operations: &'s [&'h Operation], values: &'s Values<'s>) -> Self {
        let (returned, unknown): (Vec<usize>, Vec<usize>) =
            (0..operations.len()).partition(|index| operations[*index].reply().is_some());
        let placed = vec![0; operations.len().div_ceil(64)].into_boxed_slice();
        Self { operations, values, left: returned.len(), returned, unknown, placed, first_left: 0 }
    }

    fn run(&mut self, budget: usize) -> Verdict<'h> {
        let mut memory = Memory::default();
        let mut longest: Vec<usize> = Vec::new();
        let start = State { value: None, floor: Revision::ABSENT };
        let mut order = vec![self.frame(start)];
        loop {
            if self.left == 0 {
                return Verdict::Linearizable;
            }
            let Some(frame) = order.last_mut() else {
                let placed = longest.into_iter().map(|index| self.operations[index]).collect();
                return Verdict::Violated { placed };
            };
            if let Some(index) = frame.placed.take() {
                self.unplace(index);
            }
            let Some(&index) = frame.candidates.get(frame.next) else {
                order.pop();
                continue;
            };
            frame.next += 1;
            let Some(after) = self.step(frame.before, self.operations[index]) else { continue };
            self.place(index);
            if !memory.insert((self.placed.clone(), after.value)) {
                self.unplace(index);
                continue;
            }
            if memory.len() > budget {
                return Verdict::Undecided;
            }
            frame.placed = Some(index);
            order.push(self.frame(after));
            if order.len() > longest.len() + 1 {
                longest = order.iter().filter_map(|frame| frame.placed).collect();
            }
        }
    }

    fn frame(&self, before: State) -> Frame {
        Frame { before, candidates: self.candidates(), next: 0, placed: None }
    }

    fn is_placed(&self, index: usize) -> bool {
        self.placed[index / 64] & (1 << (index % 64)) != 0
    }

    fn place(&mut self, index: usize) {
        self.placed[index / 64] |= 1 << (index % 64);
        if self.operations[index].reply().is_some() {
            self.left -= 1;
        }
        while self.returned.get(self.first_left).is_some_and(|first| self.is_placed(*first)) {
            self.first_left += 1;
        }
    }

    fn unplace(&mut self, index: usize) {
        self.placed[index / 64] &= !(1 << (index % 64));
        if self.operations[index].reply().is_some() {
            self.left += 1;
            // `returned` is sorted by index.
            self.first_left = self.first_left.min(self.returned.partition_point(|other| *other < index));
        }
    }

    /// What may come next: known outcomes by their end (the likeliest order first), then unknown ones.
    fn candidates(&self) -> Vec<usize> {
        let mut least_end = Nanos(u64::MAX);
        let mut candidates = Vec::new();
        for index in self.returned[self.first_left..].iter().copied() {
            let operation = self.operations[index];
            // By invocation: nothing that follows can end before this one begins.
            if operation.invoked_at > least_end {
                break;
            }
            if !self.is_placed(index) {
                least_end = least_end.min(operation.ended_at());
                candidates.push(index);
            }
        }
        candidates.sort_by_key(|index| self.operations[*index].ended_at());
        candidates.extend(self.unknown_candidates(least_end));
        candidates
    }

    /// Unknown outcomes that nobody saw are interchangeable: only the earliest put and delete of them are tried.
    fn unknown_candidates(&self, least_end: Nanos) -> impl Iterator<Item = usize> {
        let (mut put_tried, mut delete_tried) = (false, false);
        self.unknown.iter().copied().filter(move |index| {
            let operation = self.operations[*index];
            if self.is_placed(*index) || operation.invoked_at > least_end {
                return false;
            }
            match operation.call {
                Call::Get => false,
                Call::Delete => !std::mem::replace(&mut delete_tried, true),
                Call::Put { value } => {
                    self.values.was_seen(value) || !std::mem::replace(&mut put_tried, true)
                }
                Call::Cas { .. } => true,
            }
        })
    }

    /// The register after `operation`, if it may come next.
    fn step(&self, state: State, operation: &Operation) -> Option<State> {
        let may = match (operation.call, operation.reply()) {
            (Call::Get, Some(Reply::Got(observed))) => observed.map(|observed| observed.value) == state.value,
            (Call::Get, _) => false,
            (Call::Put { .. }, _) => true,
            (Call::Delete, Some(Reply::Deleted(was_there))) => was_there == state.value.is_some(),
            (Call::Delete, Some(Reply::Cleared)) => true,
            // An unknown delete of an absent key would change nothing.
            (Call::Delete, _) => state.value.is_some(),
            (Call::Cas { expected, .. }, Some(Reply::NotSwapped(found))) => {
                self.may_have(state.value, expected) != Some(true)
                    && found.is_none_or(|found| self.may_have(state.value, found) != Some(false))
            }
            (Call::Cas { expected, .. }, _) => self.may_have(state.value, expected) != Some(false),
        };
        if !may {
            return None;
        }
        match (operation.call, operation.reply()) {
            (Call::Get, _) | (Call::Cas { .. }, Some(Reply::NotSwapped(_))) => Some(state),
            (Call::Delete, _) => Some(State { value: None, ..state }),
            (Call::Put { value } | Call::Cas { value, .. }, _) => self.after_write(state, value),
        }
    }

    fn after_write(&self, state: State, value: ValueId) -> Option<State> {
        let floor = match self.values.revision_of(value) {
            Some(revision) if revision <= state.floor => return None,
            Some(revision) => revision,
            None => state.floor,
        };
        Some(State { value: Some(value), floor })
    }

    /// Whether a register that holds `value` is at `revision`; `None` when no reply told.
    fn may_have(&self, value: Option<ValueId>, revision: Revision) -> Option<bool> {
        let Some(value) = value else { return Some(revision == Revision::ABSENT) };
        if revision == Revision::ABSENT {
            return Some(false);
        }
        match (self.values.revision_of(value), self.values.value_at(revision)) {
            (Some(known), _) => Some(known == revision),
            (None, Some(_)) => Some(false),
            (None, None) => None,
        }
    }
}
