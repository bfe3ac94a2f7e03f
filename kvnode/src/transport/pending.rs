//! The requests of one link that have no answer yet.
//!
//! A plain table: requests enter when they are queued, are marked when they are written to a stream, and leave by
//! an answer, by their deadline or because the stream broke. Whoever leaves without an answer is told exactly
//! which of two fates it had: a frame that was never written to a stream is surely not sent.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use super::session::Sequence;

/// What is known about a request that got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It never left this node: safe to repeat.
    NotSent,
    /// It was written to a stream: it may have been done.
    OutcomeUnknown,
}

/// Requests without an answer, each with the token `T` that takes it.
#[derive(Debug)]
pub struct Pending<T> {
    requests: BTreeMap<Sequence, Request<T>>,
    deadlines: BTreeSet<(Instant, Sequence)>,
}

#[derive(Debug)]
struct Request<T> {
    deadline: Instant,
    written: bool,
    token: T,
}

impl<T> Request<T> {
    fn fate(self) -> (T, Fate) {
        (self.token, if self.written { Fate::OutcomeUnknown } else { Fate::NotSent })
    }
}

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Self { requests: BTreeMap::new(), deadlines: BTreeSet::new() }
    }
}

impl<T> Pending<T> {
    /// Enters a request that was queued. Sequences are never used twice.
    pub fn enter(&mut self, sequence: Sequence, deadline: Instant, token: T) {
        self.deadlines.insert((deadline, sequence));
        self.requests.insert(sequence, Request { deadline, written: false, token });
    }

    /// Marks a request that is written now. False: it is no longer wanted, so do not write it.
    pub fn write(&mut self, sequence: Sequence) -> bool {
        self.requests.get_mut(&sequence).map(|request| request.written = true).is_some()
    }

    /// Takes out the request that was answered. `None`: answered or given up before, or never written.
    pub fn answer(&mut self, sequence: Sequence) -> Option<T> {
        if !self.requests.get(&sequence)?.written {
            return None;
        }
        self.remove(sequence).map(|request| request.token)
    }

    /// Takes out every request whose deadline is not after `now`.
    pub fn expire(&mut self, now: Instant) -> Vec<(T, Fate)> {
        let mut expired = Vec::new();
        while let Some((_, sequence)) =
            self.deadlines.first().copied().filter(|(deadline, _)| *deadline <= now)
        {
            expired.extend(self.remove(sequence).map(Request::fate));
        }
        expired
    }

    /// Takes out everything: the stream broke.
    pub fn fail(&mut self) -> Vec<(T, Fate)> {
        self.deadlines.clear();
        std::mem::take(&mut self.requests).into_values().map(Request::fate).collect()
    }

    /// When `expire` has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// How many requests wait.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    fn remove(&mut self, sequence: Sequence) -> Option<Request<T>> {
        let request = self.requests.remove(&sequence)?;
        self.deadlines.remove(&(request.deadline, sequence));
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Enter { deadline_ms: u64 },
        Write(u64),
        Answer(u64),
        Expire { now_ms: u64 },
        Fail,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_u64..100).prop_map(|deadline_ms| Step::Enter { deadline_ms }),
            3 => (1_u64..40).prop_map(Step::Write),
            3 => (1_u64..40).prop_map(Step::Answer),
            1 => (0_u64..100).prop_map(|now_ms| Step::Expire { now_ms }),
            1 => Just(Step::Fail),
        ]
    }

    proptest! {
        /// Each request leaves exactly once, and its fate says whether it was ever written.
        #[test]
        fn every_request_leaves_once_with_its_true_fate(steps in prop::collection::vec(step(), 0..120)) {
            let start = Instant::now();
            let at = |ms| start + Duration::from_millis(ms);
            let mut pending = Pending::default();
            let mut model: BTreeMap<u64, (u64, bool)> = BTreeMap::new();
            let mut next = 0;
            for step in steps {
                match step {
                    Step::Enter { deadline_ms } => {
                        next += 1;
                        pending.enter(Sequence(next), at(deadline_ms), next);
                        model.insert(next, (deadline_ms, false));
                    }
                    Step::Write(number) => {
                        let known = model.get_mut(&number).map(|entry| entry.1 = true).is_some();
                        prop_assert_eq!(pending.write(Sequence(number)), known);
                    }
                    Step::Answer(number) => {
                        let expected = model.get(&number).filter(|entry| entry.1).map(|_| number);
                        prop_assert_eq!(pending.answer(Sequence(number)), expected);
                        if expected.is_some() {
                            model.remove(&number);
                        }
                    }
                    Step::Expire { now_ms } => {
                        let gone = model.iter().filter(|(_, entry)| entry.0 <= now_ms).map(|(n, entry)| (*n, *entry));
                        check(pending.expire(at(now_ms)), gone.collect())?;
                        model.retain(|_, entry| entry.0 > now_ms);
                    }
                    Step::Fail => check(pending.fail(), std::mem::take(&mut model))?,
                }
                prop_assert_eq!(pending.len(), model.len());
                prop_assert_eq!(pending.next_deadline(), model.values().map(|entry| at(entry.0)).min());
            }
        }
    }

    fn check(left: Vec<(u64, Fate)>, expected: BTreeMap<u64, (u64, bool)>) -> Result<(), TestCaseError> {
        let left: BTreeMap<u64, Fate> = left.into_iter().collect();
        let expected: BTreeMap<u64, Fate> = expected
            .into_iter()
            .map(|(n, (_, written))| (n, if written { Fate::OutcomeUnknown } else { Fate::NotSent }))
            .collect();
        prop_assert_eq!(left, expected);
        Ok(())
    }
}
