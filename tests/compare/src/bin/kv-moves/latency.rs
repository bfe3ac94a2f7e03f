//! Latencies of many calls. Pure.

use std::{fmt, time::Duration};

use serde::Serialize;

/// What is told of them, ms.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Latencies {
    calls: usize,
    p50_ms: f64,
    p99_ms: f64,
    worst_ms: f64,
}

impl Latencies {
    /// Of these calls; `None` of none.
    pub fn of(calls: impl IntoIterator<Item = Duration>) -> Option<Self> {
        let mut calls: Vec<f64> = calls.into_iter().map(|call| call.as_secs_f64() * 1e3).collect();
        calls.sort_by(f64::total_cmp);
        let worst_ms = *calls.last()?;
        Some(Self { calls: calls.len(), p50_ms: rank(&calls, 50), p99_ms: rank(&calls, 99), worst_ms })
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

/// The nearest rank, of sorted figures that are not none.
fn rank(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
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
    fn ranks_are_those_of_the_nearest_call() {
        let latencies = Latencies::of((1..=200).map(Duration::from_millis)).unwrap();
        assert_eq!((latencies.p50_ms, latencies.p99_ms, latencies.worst_ms), (100.0, 198.0, 200.0));
        assert_eq!(Latencies::of([]), None);
    }
}
