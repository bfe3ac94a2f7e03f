//! A cap on bytes a second.

use std::time::Duration;

use tokio::time::Instant;

/// Hands out moments at which so many bytes may go. Shared by everything that the cap is on.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: u64,
    free_at: Option<Instant>,
}

impl Pace {
    /// 0 bytes a second: no cap.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, free_at: None }
    }

    /// When the next `bytes` may go: now, or when those before them are through. Idle time is not saved up.
    pub fn book(&mut self, now: Instant, bytes: u64) -> Instant {
        let start = self.free_at.map_or(now, |free_at| free_at.max(now));
        if self.bytes_per_second > 0 {
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
            self.free_at = Some(start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        }
        start
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_second_carries_more_than_the_cap_and_one_chunk(
            chunks in prop::collection::vec((1_u64..400, 0_u64..300), 1..100),
        ) {
            let mut pace = Pace::new(1000);
            let mut now = Instant::now();
            let mut sent: Vec<(Instant, u64)> = vec![];
            for (bytes, pause_ms) in chunks {
                now += Duration::from_millis(pause_ms);
                let at = pace.book(now, bytes);
                prop_assert!(at >= now);
                now = at;
                sent.push((at, bytes));
            }
            for (start, _) in &sent {
                let end = *start + Duration::from_secs(1);
                let carried: u64 = sent.iter().filter(|(at, _)| at >= start && *at < end).map(|(_, b)| b).sum();
                prop_assert!(carried <= 1000 + 400);
            }
        }
    }

    #[test]
    fn nothing_waits_without_a_cap() {
        let (mut pace, now) = (Pace::new(0), Instant::now());
        assert_eq!([pace.book(now, u64::MAX), pace.book(now, 1)], [now, now]);
    }
}
