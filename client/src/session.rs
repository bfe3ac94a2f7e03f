//! A session of one shard, as a value: which sequences are given out, and which of them somebody still waits for.
//!
//! A sequence is given to one write and goes along with each of its attempts. It is finished when the write has ended for
//! its caller, however: answered, failed or given up. What lies below the lowest unfinished sequence is acknowledged with the
//! next write, and forgotten by the shard.
//!
//! A write that was given up may still be on its way. Acknowledging its sequence is safe all the same: a copy that comes
//! late is refused, because its sequence is below the lowest outstanding one; one that comes before is applied, once, late.
//! Either way the caller was told that the outcome is unknown, and nobody sends it again.

use std::collections::VecDeque;

/// What goes along with a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) session_id: u64,
    pub(crate) sequence: u64,
    /// At most `sequence`.
    pub(crate) lowest_outstanding: u64,
}

/// Sequences of one session.
#[derive(Debug)]
pub(crate) struct Session {
    id: u64,
    /// Sequences from the lowest outstanding one on, that the shard keeps outcomes of.
    window: usize,
    /// At least 1.
    lowest: u64,
    /// From `lowest` on: whether it is finished. The first is not.
    finished: VecDeque<bool>,
    /// The next sequence at the last look; 0 before the first one.
    seen: u64,
}

impl Session {
    /// Nothing was sent in it yet. A `window` of 0 is one of 1.
    pub(crate) fn new(id: u64, window: usize) -> Self {
        Self { id, window: window.max(1), lowest: 1, finished: VecDeque::new(), seen: 0 }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The stamp of a write's first attempt; `None`: the window is full.
    pub(crate) fn next(&mut self) -> Option<Stamp> {
        if self.finished.len() >= self.window {
            return None;
        }
        let sequence = self.lowest + self.finished.len() as u64;
        self.finished.push_back(false);
        Some(self.stamp(sequence))
    }

    /// Whether nobody waits for an outcome, and nobody came since the last look.
    pub(crate) fn is_idle_since_last_look(&mut self) -> bool {
        let next = self.lowest + self.finished.len() as u64;
        let was_seen = std::mem::replace(&mut self.seen, next) == next;
        was_seen && self.finished.is_empty()
    }

    /// The stamp of a further attempt: what was acknowledged meanwhile goes along.
    pub(crate) fn stamp(&self, sequence: u64) -> Stamp {
        Stamp { session_id: self.id, sequence, lowest_outstanding: self.lowest.min(sequence) }
    }

    /// Nobody waits for this one any more. Returns whether the window moved.
    pub(crate) fn finish(&mut self, sequence: u64) -> bool {
        let index = sequence.checked_sub(self.lowest).and_then(|index| usize::try_from(index).ok());
        let Some(finished) = index.and_then(|index| self.finished.get_mut(index)) else { return false };
        *finished = true;
        let before = self.lowest;
        while self.finished.front() == Some(&true) {
            self.finished.pop_front();
            self.lowest += 1;
        }
        self.lowest > before
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_sequence_is_one_and_acknowledges_nothing() {
        let mut session = Session::new(9, 2);
        assert_eq!(session.next(), Some(Stamp { session_id: 9, sequence: 1, lowest_outstanding: 1 }));
    }

    #[test]
    fn a_session_is_idle_when_nobody_came_since_the_last_look_and_nobody_waits() {
        let mut session = Session::new(1, 8);
        assert!(!session.is_idle_since_last_look(), "it was opened for somebody");
        assert!(session.is_idle_since_last_look());
        session.next();
        assert!(!session.is_idle_since_last_look());
        assert!(!session.is_idle_since_last_look(), "somebody waits");
        session.finish(1);
        assert!(session.is_idle_since_last_look());
        session.next();
        session.finish(2);
        assert!(!session.is_idle_since_last_look(), "somebody came and went");
    }

    #[test]
    fn a_retry_acknowledges_what_was_finished_meanwhile() {
        let mut session = Session::new(1, 8);
        for _ in 0..3 {
            session.next();
        }
        assert!(session.finish(1));
        assert!(!session.finish(3), "the second is outstanding");
        assert_eq!(session.stamp(2).lowest_outstanding, 2);
        assert!(session.finish(2));
        assert_eq!(session.next().map(|stamp| stamp.lowest_outstanding), Some(4));
    }

    #[test]
    fn the_window_counts_from_the_lowest_outstanding_sequence() {
        let mut session = Session::new(1, 3);
        for _ in 0..3 {
            assert!(session.next().is_some());
        }
        assert!(!session.finish(2) && !session.finish(3));
        assert_eq!(session.next(), None, "the first still waits");
        assert!(session.finish(1));
        assert_eq!(session.next().map(|stamp| stamp.sequence), Some(4));
    }

    proptest! {
        /// Against a set of what is outstanding: no sequence twice, nothing outstanding acknowledged, everything else is
        /// acknowledged at the next chance, and the window is never left.
        #[test]
        fn nothing_is_acknowledged_while_somebody_waits_for_it(
            window in 1_usize..20,
            steps in prop::collection::vec(prop::option::weighted(0.5, 0_usize..20), 1..300),
        ) {
            let mut session = Session::new(3, window);
            let mut outstanding = BTreeSet::new();
            let mut next = 1;
            for step in steps {
                let lowest = outstanding.first().copied().unwrap_or(next);
                match step {
                    None => match session.next() {
                        Some(stamp) => {
                            prop_assert_eq!(stamp.sequence, next);
                            prop_assert_eq!(stamp.lowest_outstanding, lowest);
                            prop_assert!(stamp.sequence < lowest + window as u64);
                            outstanding.insert(next);
                            next += 1;
                        }
                        None => prop_assert_eq!(next, lowest + window as u64),
                    },
                    Some(index) => {
                        let Some(sequence) = outstanding.iter().nth(index).copied() else { continue };
                        prop_assert_eq!(session.stamp(sequence).lowest_outstanding, lowest);
                        outstanding.remove(&sequence);
                        let moved = outstanding.first().copied().unwrap_or(next) > lowest;
                        prop_assert_eq!(session.finish(sequence), moved);
                        prop_assert!(!session.finish(sequence), "twice changes nothing");
                    }
                }
            }
        }
    }
}
