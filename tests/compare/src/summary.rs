//! Figures, and the table of their medians. Pure.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum System {
    /// Three etcd, one Raft group.
    Etcd,
    /// Three kvnodes, eight shards.
    KvCluster,
}

impl System {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::KvCluster => "KvCluster",
        }
    }
}

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// Writes.
    Put,
    /// Linearizable reads.
    Get,
    /// As many reads as writes.
    Mixed,
}

impl Workload {
    /// As `kvctl bench` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Mixed => "mixed",
        }
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Of what.
    pub system: System,
    /// Doing what.
    pub workload: Workload,
    /// By how many at the same time.
    pub clients: u32,
    /// Calls that succeeded, a second.
    pub per_second: f64,
    /// Half of the calls took no longer, ms.
    pub p50_ms: f64,
    /// 99 of 100 calls took no longer, ms.
    pub p99_ms: f64,
    /// Calls that failed.
    pub errors: u64,
}

impl fmt::Display for Figure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { workload, clients, per_second, p50_ms, p99_ms, errors, .. } = self;
        let name = workload.name();
        write!(
            out,
            "{name:5} {clients:4} clients: {per_second:8.0}/s, p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms"
        )?;
        if *errors > 0 { write!(out, ", {errors} errors") } else { Ok(()) }
    }
}

/// A table in Markdown: a row for each workload and number of clients, medians over the rounds, and the ratio.
pub fn table(figures: &[Figure]) -> String {
    let mut cells: BTreeMap<(Workload, u32), BTreeMap<System, Vec<Figure>>> = BTreeMap::new();
    for figure in figures {
        let row = cells.entry((figure.workload, figure.clients)).or_default();
        row.entry(figure.system).or_default().push(*figure);
    }
    let mut lines = vec![
        "| Workload | Clients | etcd /s | p50 ms | p99 ms | KvCluster /s | p50 ms | p99 ms | Ratio | Errors |".to_owned(),
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|".to_owned(),
    ];
    for ((workload, clients), systems) in &cells {
        let of = |system, value: fn(&Figure) -> f64| {
            let values = systems.get(&system).into_iter().flatten().map(value);
            median(values.collect())
        };
        let mut words = vec![workload.name().to_owned(), clients.to_string()];
        for system in [System::Etcd, System::KvCluster] {
            words.push(number(of(system, |figure| figure.per_second), 0));
            words.push(number(of(system, |figure| figure.p50_ms), 2));
            words.push(number(of(system, |figure| figure.p99_ms), 2));
        }
        let rates = [System::KvCluster, System::Etcd].map(|system| of(system, |figure| figure.per_second));
        let ratio = match rates {
            [Some(ours), Some(theirs)] if theirs > 0.0 => Some(ours / theirs),
            _ => None,
        };
        words.push(number(ratio, 2));
        let errors: u64 = systems.values().flatten().map(|figure| figure.errors).sum();
        words.push(errors.to_string());
        lines.push(format!("| {} |", words.join(" | ")));
    }
    lines.join("\n")
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

/// The middle one, or the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(system: System, per_second: f64, errors: u64) -> Figure {
        Figure { system, workload: Workload::Put, clients: 64, per_second, p50_ms: 1.0, p99_ms: 9.0, errors }
    }

    #[test]
    fn a_row_shows_medians_their_ratio_and_all_errors() {
        let etcd = [100.0, 900.0, 200.0].map(|rate| figure(System::Etcd, rate, 1));
        let ours = [300.0, 500.0].map(|rate| figure(System::KvCluster, rate, 0));
        let table = table(&[&etcd[..], &ours[..]].concat());
        let row = table.lines().nth(2).expect("one row");
        assert_eq!(row, "| put | 64 | 200 | 1.00 | 9.00 | 400 | 1.00 | 9.00 | 2.00 | 3 |");
    }

    #[test]
    fn what_was_not_measured_is_not_made_up() {
        let table = table(&[figure(System::KvCluster, 300.0, 0)]);
        assert!(table.ends_with("| put | 64 | – | – | – | 300 | 1.00 | 9.00 | – | 0 |"), "{table}");
    }
}
