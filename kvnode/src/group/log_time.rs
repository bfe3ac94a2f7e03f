//! Log time: what everything that expires is measured in.
//!
//! The leader stamps each proposal with the log time at its term's start plus the monotonic time since then; `apply`
//! takes the maximum. Wall clocks never move it, so neither a wrong clock nor a long outage expires anything early.

use std::time::Duration;

use tokio::time::Instant;

/// The leader's clock for one term.
#[derive(Clone, Copy, Debug)]
pub struct LogTime {
    term: u64,
    start_ms: u64,
    started: Instant,
}

impl LogTime {
    /// A clock that starts in `term` at the log time that the state machine had reached.
    pub const fn start(term: u64, reached_ms: u64, now: Instant) -> Self {
        Self { term, start_ms: reached_ms, started: now }
    }

    /// The term that it belongs to; a new term needs a new clock.
    pub const fn term(&self) -> u64 {
        self.term
    }

    /// The stamp for a proposal made at `now`, ms.
    pub fn at(&self, now: Instant) -> u64 {
        let elapsed: Duration = now.saturating_duration_since(self.started);
        self.start_ms.saturating_add(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_time_goes_on_from_what_the_state_had_reached() {
        let now = Instant::now();
        let clock = LogTime::start(7, 1_000, now);
        assert_eq!(clock.at(now), 1_000);
        assert_eq!(clock.at(now + Duration::from_millis(250)), 1_250);
        assert_eq!(clock.term(), 7);
    }
}
