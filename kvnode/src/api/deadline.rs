//! How long a call may take: the caller's `grpc-timeout`, or our default.

use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use super::limits::{DEADLINE_DEFAULT, DEADLINE_MAX};

/// The end of a call, when its caller named one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    call: Option<Instant>,
}

impl Deadline {
    /// Reads the `grpc-timeout` of a request that came in at `now`. One that cannot be read counts as none.
    pub fn of(metadata: &MetadataMap, now: Instant) -> Self {
        let timeout = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(parse);
        Self { call: timeout.and_then(|timeout| now.checked_add(timeout)) }
    }

    /// When a unary call that came in at `now` must be answered.
    pub fn unary(self, now: Instant) -> Instant {
        self.call.map_or(now + DEADLINE_DEFAULT, |call| call.min(now + DEADLINE_MAX))
    }

    /// When a step of a streaming call that begins at `now` must end. The stream as a whole ends with the caller's
    /// deadline only.
    pub fn step(self, now: Instant) -> Instant {
        let step = now + DEADLINE_DEFAULT;
        self.call.map_or(step, |call| call.min(step))
    }

    /// The caller's own deadline, if it named one.
    pub fn call(self) -> Option<Instant> {
        self.call
    }

    /// Whether the caller's own deadline has passed.
    pub fn has_passed(self, now: Instant) -> bool {
        self.call.is_some_and(|call| call <= now)
    }
}

/// Milliseconds from `now` to `deadline`, for the wire.
pub fn left_ms(deadline: Instant, now: Instant) -> u32 {
    u32::try_from(deadline.saturating_duration_since(now).as_millis()).unwrap_or(u32::MAX)
}

/// At most eight digits and a unit; see the gRPC protocol over HTTP/2.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3_600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_units_of_grpc_and_nothing_else() {
        let read =
            [("1H", 3_600_000), ("2M", 120_000), ("3S", 3_000), ("4m", 4), ("5000u", 5), ("6000000n", 6)];
        for (text, ms) in read {
            assert_eq!(parse(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "S", "1", "-1S", "1.5S", "123456789S", "1s", "1 S", "é", "1é"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_has_the_default_for_each_step_and_the_callers_deadline_for_all() {
        let now = Instant::now();
        let none = Deadline { call: None };
        assert_eq!(none.unary(now), now + DEADLINE_DEFAULT);
        assert_eq!(none.step(now), now + DEADLINE_DEFAULT);
        assert!(!none.has_passed(now + DEADLINE_MAX));
        let long = Deadline { call: Some(now + DEADLINE_MAX * 2) };
        assert_eq!(long.unary(now), now + DEADLINE_MAX);
        assert_eq!(long.step(now), now + DEADLINE_DEFAULT);
        let short = Deadline { call: Some(now + Duration::from_secs(1)) };
        assert_eq!(short.step(now), now + Duration::from_secs(1));
        assert!(short.has_passed(now + Duration::from_secs(1)));
    }
}
