//! Latencies of many calls, in the histogram in which `kvctl bench` keeps them. Pure.

use std::{fmt, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

/// Digits that count of a latency, as for `kvctl bench`.
const DIGITS: u8 = 3;

/// What is told of them, ms.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Latencies {
    calls: u64,
    p50_ms: f64,
    p99_ms: f64,
    worst_ms: f64,
}

impl Latencies {
    /// Of these calls; `None` of none.
    pub fn of(calls: impl IntoIterator<Item = Duration>) -> Option<Self> {
        // It grows as the calls ask for, and is never full.
        let mut histogram: Histogram<u64> = Histogram::new(DIGITS).ok()?;
        for call in calls {
            histogram.record(u64::try_from(call.as_micros()).ok()?).ok()?;
        }
        let ms = |micros: u64| Duration::from_micros(micros).as_secs_f64() * 1e3;
        (!histogram.is_empty()).then(|| Self {
            calls: histogram.len(),
            p50_ms: ms(histogram.value_at_quantile(0.5)),
            p99_ms: ms(histogram.value_at_quantile(0.99)),
            worst_ms: ms(histogram.max()),
        })
    }

    /// The median, ms.
    pub fn p50_ms(&self) -> f64 {
        self.p50_ms
    }

    /// The 99th percentile, ms.
    pub fn p99_ms(&self) -> f64 {
        self.p99_ms
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, p50_ms, p99_ms, worst_ms } = self;
        write!(formatter, "{calls} calls: p50 {p50_ms:.2} ms, p99 {p99_ms:.1} ms, worst {worst_ms:.0} ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_the_worst_are_told_with_three_digits() {
        let latencies = Latencies::of((1..=200).map(Duration::from_millis)).unwrap();
        let Latencies { calls, p50_ms, p99_ms, worst_ms } = latencies;
        assert_eq!(calls, 200);
        for (told, expected) in [(p50_ms, 100.0), (p99_ms, 198.0), (worst_ms, 200.0)] {
            assert!((told / expected - 1.0_f64).abs() < 1e-3, "{told} {expected}");
        }
        assert_eq!(Latencies::of([]), None);
    }
}
