//! How long to wait before the next attempt to connect.

use std::time::Duration;

/// The pause before attempt number `attempt` (0: the first one after a break).
///
/// Doubles from `first` up to `longest`; `random` picks a point in the upper half of it, so that nodes that lost the same
/// peer at the same moment do not come back to it together.
pub fn pause(first: Duration, longest: Duration, attempt: u32, random: u64) -> Duration {
    let whole = first.saturating_mul(1 << attempt.min(16)).min(longest);
    let half = whole / 2;
    let steps = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
    half + Duration::from_nanos(if steps == 0 { 0 } else { random % steps })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pauses_stay_between_half_and_whole(attempt: u32, random: u64) {
            let (first, longest) = (Duration::from_millis(50), Duration::from_secs(1));
            let pause = pause(first, longest, attempt, random);
            prop_assert!(pause >= first / 2 && pause < longest);
        }
    }
}
