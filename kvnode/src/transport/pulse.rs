//! Whether the other side of a stream is alive: when to ask, and when to give it up.
//!
//! An empty batch asks, an empty batch answers, in order; anything else that arrives is a sign of life as well. What is
//! measured between question and answer is the round trip of the stream, queues included.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// The keep-alive of one connection.
pub(super) struct Pulse {
    keep_alive: Duration,
    idle: Duration,
    heard: Instant,
    next_question: Instant,
    questions: VecDeque<Instant>,
}

impl Pulse {
    pub(super) fn new(now: Instant, keep_alive: Duration, idle: Duration) -> Self {
        Self { keep_alive, idle, heard: now, next_question: now + keep_alive, questions: VecDeque::new() }
    }

    /// When something is to be done next.
    pub(super) fn next(&self) -> Instant {
        self.next_question.min(self.heard + self.idle)
    }

    pub(super) fn is_idle(&self, now: Instant) -> bool {
        now >= self.heard + self.idle
    }

    /// Moves the next question on, whether this one can be asked or not.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let due = now >= self.next_question;
        if due {
            self.next_question = now + self.keep_alive;
        }
        due
    }

    pub(super) fn asked(&mut self, now: Instant) {
        self.questions.push_back(now);
    }

    /// Something was heard; the answer to the oldest question measures the round trip.
    pub(super) fn heard(&mut self, now: Instant, is_answer: bool) -> Option<Duration> {
        self.heard = now;
        let asked = if is_answer { self.questions.pop_front() } else { None };
        asked.map(|asked| now - asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_asks_measures_and_gives_up() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pulse = Pulse::new(start, Duration::from_millis(1000), Duration::from_millis(3000));
        assert_eq!(pulse.next(), at(1000));
        assert!(!pulse.is_due(at(999)) && pulse.is_due(at(1000)));
        pulse.asked(at(1000));
        assert_eq!(pulse.heard(at(1010), false), None);
        assert_eq!(pulse.heard(at(1040), true), Some(Duration::from_millis(40)));
        assert_eq!(pulse.heard(at(1050), true), None, "an answer that nobody asked for measures nothing");
        assert!(!pulse.is_idle(at(4049)) && pulse.is_idle(at(4050)));
    }
}
