//! Whether the end of a run is as good as its beginning. Pure.
//!
//! Of ten minutes at each end (a third of the run, when it is shorter than half an hour) rate and p99 are medians of their
//! slices, so that one compaction more or less decides nothing; memory is the greatest. What the rates would have been at one pace
//! of the machine is told beside it, for whoever looks for a reason, and decides nothing.

use std::fmt;

use anyhow::{Context as _, Result, ensure};
use kv_compare::figures::median;
use serde::Serialize;

use crate::slice::Slice;

/// What is compared of a long run, seconds.
const END_SECONDS: u64 = 600;

/// One figure at both ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Compared {
    name: &'static str,
    first: f64,
    last: f64,
    holds: bool,
}

/// What a run has shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Slices at each end.
    slices: usize,
    tolerance_percent: u8,
    compared: [Compared; 3],
    /// Rates at both ends, on a machine whose pace is the median of all slices.
    at_one_pace: [f64; 2],
}

impl Verdict {
    /// Of these slices, each of which took so long.
    ///
    /// # Errors
    /// When there are fewer than two, or the tolerance is more than all.
    pub fn of(slices: &[Slice], slice_seconds: u64, tolerance_percent: u8) -> Result<Self> {
        ensure!(slices.len() >= 2, "a run of one slice has no end to compare with its beginning");
        ensure!(tolerance_percent < 100, "--tolerance-percent: {tolerance_percent} is not below 100");
        let wanted = usize::try_from(END_SECONDS.div_ceil(slice_seconds.max(1)))?;
        let count = wanted.min((slices.len() / 3).max(1));
        let pace = median(slices.iter().map(|slice| slice.piece_ms).collect());
        let pace = pace.filter(|pace| *pace > 0.0).context("the pace of the machine was not measured")?;
        let (first, last) = (&slices[..count], &slices[slices.len() - count..]);
        let share = f64::from(tolerance_percent) / 100.0;
        let compared = |name, of: &dyn Fn(&[Slice]) -> f64, more_is_better| {
            let (first, last) = (of(first), of(last));
            let holds =
                if more_is_better { last >= first * (1.0 - share) } else { last <= first * (1.0 + share) };
            Compared { name, first, last, holds }
        };
        let compared = [
            compared("ops/s", &|slices| middle(slices, |slice| slice.per_second), true),
            compared("p99 ms", &|slices| middle(slices, |slice| slice.p99_ms), false),
            compared("node MB", &greatest_megabytes, false),
        ];
        let at_one_pace =
            [first, last].map(|slices| middle(slices, |slice| slice.per_second * slice.piece_ms / pace));
        Ok(Self { slices: count, tolerance_percent, compared, at_one_pace })
    }

    /// Whether nothing is worse than it may be.
    pub fn holds(&self) -> bool {
        self.compared.iter().all(|compared| compared.holds)
    }
}

fn middle(slices: &[Slice], figure: impl Fn(&Slice) -> f64) -> f64 {
    median(slices.iter().map(figure).collect()).unwrap_or_default()
}

#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
fn greatest_megabytes(slices: &[Slice]) -> f64 {
    slices.iter().map(|slice| slice.node_bytes).max().unwrap_or_default() as f64 / 1e6
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { slices, tolerance_percent, compared, at_one_pace: [first, last] } = self;
        writeln!(formatter, "first and last {slices} slices, within {tolerance_percent} %:")?;
        for Compared { name, first, last, holds } in compared {
            let verdict = if *holds { "holds" } else { "WORSE" };
            writeln!(formatter, "{name:>8} {first:10.2} {last:10.2}  {verdict}")?;
        }
        writeln!(formatter, "   ops/s {first:10.2} {last:10.2}  if the machine had kept one pace")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(per_second: f64, p99_ms: f64, node_bytes: u64) -> Slice {
        Slice { number: 1, per_second, p50_ms: 1.0, p99_ms, max_ms: 90.0, node_bytes, piece_ms: 2.0 }
    }

    /// An hour whose second half is like this.
    fn verdict_of(second_half: &Slice) -> Vec<bool> {
        let slices = [vec![slice(1000.0, 10.0, 100_000_000); 30], vec![second_half.clone(); 30]].concat();
        let verdict = Verdict::of(&slices, 60, 10).expect("enough slices");
        assert_eq!(verdict.slices, 10);
        assert_eq!(verdict.holds(), verdict.compared.iter().all(|compared| compared.holds));
        verdict.compared.iter().map(|compared| compared.holds).collect()
    }

    #[test]
    fn each_figure_may_be_a_tenth_worse_and_not_more() {
        assert_eq!(verdict_of(&slice(900.0, 11.0, 110_000_000)), [true, true, true]);
        assert_eq!(verdict_of(&slice(2000.0, 1.0, 1_000_000)), [true, true, true]);
        assert_eq!(verdict_of(&slice(899.0, 10.0, 100_000_000)), [false, true, true]);
        assert_eq!(verdict_of(&slice(1000.0, 11.1, 100_000_000)), [true, false, true]);
        assert_eq!(verdict_of(&slice(1000.0, 10.0, 111_000_000)), [true, true, false]);
    }

    #[test]
    fn one_slow_slice_decides_nothing_and_one_moment_of_memory_does() {
        let mut slices = vec![slice(1000.0, 10.0, 100_000_000); 60];
        slices[55] = slice(10.0, 500.0, 100_000_000);
        assert!(Verdict::of(&slices, 60, 10).expect("enough").holds());
        slices[55].node_bytes = 200_000_000;
        assert!(!Verdict::of(&slices, 60, 10).expect("enough").holds());
    }

    #[test]
    fn the_pace_of_the_machine_explains_and_excuses_nothing() {
        let slow = Slice { piece_ms: 4.0, ..slice(500.0, 10.0, 100_000_000) };
        assert_eq!(verdict_of(&slow), [false, true, true]);
        let slices = [vec![slice(1000.0, 10.0, 100_000_000); 30], vec![slow; 29]].concat();
        let verdict = Verdict::of(&slices, 60, 10).expect("enough slices");
        assert_eq!(verdict.at_one_pace, [1000.0, 1000.0]);
        let unknown = Slice { piece_ms: 0.0, ..slice(1000.0, 10.0, 100_000_000) };
        assert!(Verdict::of(&vec![unknown; 60], 60, 10).is_err());
    }

    #[test]
    fn a_short_run_compares_its_thirds_and_one_slice_nothing() {
        let slices = vec![slice(1000.0, 10.0, 100_000_000); 7];
        assert_eq!(Verdict::of(&slices, 60, 10).expect("enough").slices, 2);
        assert_eq!(Verdict::of(&slices[..2], 60, 10).expect("enough").slices, 1);
        assert!(Verdict::of(&slices[..1], 60, 10).is_err());
        assert!(Verdict::of(&slices, 60, 100).is_err());
    }
}
