//! A piece of the load: what `kvctl bench` told of it, and what the nodes took after it.

use std::{collections::BTreeMap, fmt};

use kv_compare::figures::median;
use serde::{Deserialize, Serialize};

/// What `kvctl bench -o json` says.
#[derive(Debug, Deserialize)]
pub struct Report {
    operations_per_second: f64,
    latency_us: Latency,
    /// By reason.
    pub errors: BTreeMap<String, u64>,
}

#[derive(Debug, Deserialize)]
struct Latency {
    p50: f64,
    p99: f64,
    max: f64,
}

/// A slice of the load.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Slice {
    /// From 1 on.
    pub number: u64,
    /// Calls that succeeded, a second.
    pub per_second: f64,
    /// Half of them took no longer, ms.
    pub p50_ms: f64,
    /// 99 of 100 took no longer, ms.
    pub p99_ms: f64,
    /// None took longer, ms.
    pub max_ms: f64,
    /// Of the greatest node, in RAM, after the slice.
    pub node_bytes: u64,
    /// Processor time of a fixed piece of work meanwhile, ms: more of it is a slower machine.
    pub piece_ms: f64,
}

impl Slice {
    /// Above the rows.
    pub const HEADER: &'static str = "slice     ops/s    p50 ms    p99 ms    max ms   node MB  piece ms";

    /// Of what was told.
    pub fn of(number: u64, report: &Report, node_bytes: u64, pieces: Vec<f64>) -> Self {
        let Report { operations_per_second, latency_us: Latency { p50, p99, max }, errors: _ } = report;
        Self {
            number,
            per_second: *operations_per_second,
            p50_ms: p50 / 1000.0,
            p99_ms: p99 / 1000.0,
            max_ms: max / 1000.0,
            node_bytes,
            piece_ms: median(pieces).unwrap_or_default(),
        }
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, per_second, p50_ms, p99_ms, max_ms, node_bytes, piece_ms } = self;
        let megabytes = node_bytes / 1_000_000;
        write!(
            formatter,
            "{number:5} {per_second:9.0} {p50_ms:9.2} {p99_ms:9.2} {max_ms:9.2} {megabytes:9} {piece_ms:9.2}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kvctl_tells_becomes_a_row() {
        let text = r#"{"operations_per_second": 1000.4, "errors": {}, "elapsed_ms": 5,
            "latency_us": {"p50": 1500, "p90": 2000, "p99": 4250, "p99.9": 5000, "max": 9000}}"#;
        let report: Report = serde_json::from_str(text).expect("it is read");
        let row = Slice::of(3, &report, 42_500_000, vec![3.0, 1.0, 2.0, 9.0]).to_string();
        assert_eq!(row, "    3      1000      1.50      4.25      9.00        42      2.50");
        assert_eq!(row.len(), Slice::HEADER.len());
    }
}
