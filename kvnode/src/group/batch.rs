//! The queue of writes that wait to become a Raft entry, and how they are cut into entries.
//!
//! Pure: time comes in as an argument. A request's operations stay together in one entry. What waited too long
//! leaves the queue as expired; what is taken becomes one [`Batch`].

use std::collections::VecDeque;

use bytes::Bytes;
use kv_proto::{
    disk::v1::{Operation, Proposal},
    peer::v1::{Outcome, Refusal, outcome},
};
use prost::Message;
use tokio::time::Instant;

use crate::refusal;

/// Most operations of one entry.
pub const ENTRY_OPERATIONS_MAX: usize = 512;
/// Most bytes of one entry, unless a single operation is larger.
pub const ENTRY_BYTES_MAX: usize = 256 * 1024;

/// Writes that a caller waits for together. `T` is how the caller is answered.
#[derive(Debug)]
pub struct Pending<T> {
    /// Not empty; they go into one entry.
    pub operations: Vec<Operation>,
    /// Encoded size of the operations, bytes.
    pub size_bytes: usize,
    /// Dropped from the queue after this.
    pub deadline: Instant,
    /// Who is told.
    pub reply: T,
}

impl<T> Pending<T> {
    /// A pending write of these operations.
    pub fn new(operations: Vec<Operation>, deadline: Instant, reply: T) -> Self {
        let size_bytes = operations.iter().map(Message::encoded_len).sum();
        Self { operations, size_bytes, deadline, reply }
    }
}

/// One entry's worth of writes.
#[derive(Debug)]
pub struct Batch<T> {
    /// All operations, in the order in which they will be applied.
    pub operations: Vec<Operation>,
    /// For each caller: how many of the operations, in order, are its own.
    pub callers: Vec<(usize, T)>,
}

impl<T> Batch<T> {
    /// The encoded `disk.v1.Proposal`, and whom to answer.
    pub fn into_proposal(self, log_time_ms: u64) -> (Bytes, Vec<(usize, T)>) {
        let proposal = Proposal { log_time_ms, operations: self.operations };
        (proposal.encode_to_vec().into(), self.callers)
    }
}

/// Waiting writes of one group, oldest first.
#[derive(Debug)]
pub struct Queue<T> {
    waiting: VecDeque<Pending<T>>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new() }
    }
}

impl<T> Queue<T> {
    /// Adds a write at the end.
    pub fn push(&mut self, pending: Pending<T>) {
        self.waiting.push_back(pending);
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many callers wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Takes the oldest writes that fit into one entry and that `begins` lets begin: nobody has given them up. Expired ones on the
    /// way, and those that were given up, go to `expired`.
    ///
    /// `None` when nothing is left to propose.
    pub fn take(
        &mut self,
        now: Instant,
        mut begins: impl FnMut(&T) -> bool,
        mut expired: impl FnMut(T),
    ) -> Option<Batch<T>> {
        let mut batch = Batch { operations: Vec::new(), callers: Vec::new() };
        let mut bytes = 0;
        while let Some(next) = self.waiting.front() {
            let live = next.deadline > now;
            let fits = batch.operations.is_empty()
                || (batch.operations.len() + next.operations.len() <= ENTRY_OPERATIONS_MAX
                    && bytes + next.size_bytes <= ENTRY_BYTES_MAX);
            if live && !fits {
                break;
            }
            let Some(next) = self.waiting.pop_front() else { break };
            if live && begins(&next.reply) {
                bytes += next.size_bytes;
                batch.callers.push((next.operations.len(), next.reply));
                batch.operations.extend(next.operations);
            } else {
                expired(next.reply);
            }
        }
        (!batch.callers.is_empty()).then_some(batch)
    }

    /// Empties the queue, oldest first.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.waiting.drain(..).map(|pending| pending.reply)
    }
}

/// Cuts a request's operations into runs that fit into entries, so that a bulk write of any length can be queued.
pub fn cut(operations: Vec<Operation>) -> Vec<Vec<Operation>> {
    let mut runs: Vec<Vec<Operation>> = Vec::new();
    let mut bytes = 0;
    for operation in operations {
        let size = operation.encoded_len();
        match runs.last_mut() {
            Some(run) if run.len() < ENTRY_OPERATIONS_MAX && bytes + size <= ENTRY_BYTES_MAX => {
                bytes += size;
                run.push(operation);
            }
            _ => {
                bytes = size;
                runs.push(vec![operation]);
            }
        }
    }
    runs
}

/// Puts the results of a request's runs together: (operations, result) of each, in order.
///
/// # Errors
/// The first refusal, when no run can have happened: the whole request may be made again. When some run happened, or
/// may have, every operation of a refused run gets the refusal as its own outcome instead: nobody may repeat the rest.
pub fn join(results: Vec<(usize, Result<Vec<Outcome>, Refusal>)>) -> Result<Vec<Outcome>, Refusal> {
    let surely_nothing = |result: &Result<Vec<Outcome>, Refusal>| {
        result.as_ref().err().is_some_and(refusal::surely_not_applied)
    };
    let nothing_happened = results.iter().all(|(_, result)| surely_nothing(result));
    let mut outcomes = Vec::new();
    let alone = results.len() == 1;
    for (count, result) in results {
        match result {
            Ok(mut applied) => outcomes.append(&mut applied),
            Err(refused) if nothing_happened || alone => return Err(refused),
            Err(refused) => {
                let own = Outcome { result: Some(outcome::Result::Refusal(refused)), ..Outcome::default() };
                outcomes.extend(std::iter::repeat_n(own, count));
            }
        }
    }
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kv_proto::disk::v1::{Delete, operation};
    use proptest::prelude::*;

    use super::*;

    fn operation(key_bytes: usize) -> Operation {
        let key = vec![b'k'; key_bytes].into();
        Operation {
            kind: Some(operation::Kind::Delete(Delete { key, ..Delete::default() })),
            ..Operation::default()
        }
    }

    proptest! {
        #[test]
        fn every_write_is_taken_once_in_order_and_within_the_limits(
            sizes in prop::collection::vec((1usize..300, 1usize..40_000), 1..60),
            expired in prop::collection::vec(any::<bool>(), 60),
            given_up in prop::collection::vec(any::<bool>(), 60),
        ) {
            let now = Instant::now();
            let mut queue = Queue::default();
            for (index, (count, bytes)) in sizes.iter().enumerate() {
                let deadline = if expired[index] { now } else { now + Duration::from_secs(1) };
                let operations = vec![operation(bytes / count + 1); *count];
                queue.push(Pending::new(operations, deadline, index));
            }
            let (mut taken, mut dropped) = (Vec::new(), Vec::new());
            while let Some(batch) = queue.take(now, |index| !given_up[*index], |index| dropped.push(index)) {
                let owned: usize = batch.callers.iter().map(|(count, _)| count).sum();
                prop_assert_eq!(owned, batch.operations.len());
                let bytes: usize = batch.operations.iter().map(Message::encoded_len).sum();
                prop_assert!(batch.callers.len() == 1
                    || (bytes <= ENTRY_BYTES_MAX && owned <= ENTRY_OPERATIONS_MAX));
                taken.extend(batch.callers.iter().map(|(_, index)| *index));
            }
            prop_assert!(queue.is_empty());
            let all: Vec<usize> = (0..sizes.len()).collect();
            let gone = |index: &usize| expired[*index] || given_up[*index];
            prop_assert_eq!(taken, all.iter().copied().filter(|index| !gone(index)).collect::<Vec<_>>());
            prop_assert_eq!(dropped, all.iter().copied().filter(gone).collect::<Vec<_>>());
        }

        #[test]
        fn a_cut_request_keeps_its_operations_in_order(sizes in prop::collection::vec(1usize..100_000, 0..40)) {
            let operations: Vec<_> = sizes.iter().map(|size| operation(*size)).collect();
            let runs = cut(operations.clone());
            for run in &runs {
                let bytes: usize = run.iter().map(Message::encoded_len).sum();
                prop_assert!(run.len() == 1 || bytes <= ENTRY_BYTES_MAX);
            }
            prop_assert_eq!(runs.concat(), operations);
        }
    }

    fn done() -> Result<Vec<Outcome>, Refusal> {
        Ok(vec![Outcome::default()])
    }

    #[test]
    fn a_request_is_refused_as_a_whole_only_when_nothing_of_it_can_have_happened() {
        let nothing = || Err(refusal::not_applied(refusal::NO_LEADER, "no leader"));
        let perhaps = || Err(refusal::outcome_unknown("the leader changed"));
        assert!(join(vec![(1, nothing()), (1, nothing())]).is_err());
        assert!(join(vec![(1, perhaps())]).is_err());
        for (first, second) in [(nothing(), done()), (nothing(), perhaps()), (done(), nothing())] {
            let outcomes = join(vec![(1, first), (1, second)]).expect("told one by one");
            assert_eq!(outcomes.len(), 2);
        }
        let outcomes = join(vec![(3, nothing()), (1, done())]).expect("told one by one");
        let refused = |outcome: &Outcome| matches!(outcome.result, Some(outcome::Result::Refusal(_)));
        assert_eq!(outcomes.iter().map(refused).collect::<Vec<_>>(), [true, true, true, false]);
    }
}
