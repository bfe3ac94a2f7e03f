//! Figures, and the table of their medians. Pure.

use std::{collections::BTreeMap, fmt};

use clap::ValueEnum;
use kv_compare::figures::median;
use serde::Serialize;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum System {
    /// etcd, which has one Raft group.
    Etcd,
    /// KvCluster, each operation a call of its own.
    Unary,
    /// KvCluster, operations on streams.
    Streamed,
}

impl System {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Unary => "unary",
            Self::Streamed => "streamed",
        }
    }
}

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
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
    /// Half of the calls took no longer, ms. `None`: nobody told.
    pub p50_ms: Option<f64>,
    /// 99 of 100 calls took no longer, ms. `None`: nobody told.
    pub p99_ms: Option<f64>,
    /// Processor time of all nodes and of the load generator, by call, µs.
    pub cpu_us: f64,
    /// Calls that failed.
    pub errors: u64,
}

impl fmt::Display for Figure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { system, workload, clients, per_second, p50_ms, p99_ms, cpu_us, errors } = self;
        let (system, workload) = (system.name(), workload.name());
        let (p50, p99) = (number(*p50_ms, 2), number(*p99_ms, 2));
        write!(
            out,
            "{system:8} {workload:5} {clients:4} clients: {per_second:8.0}/s, p50 {p50} ms, p99 {p99} ms, {cpu_us:.0} µs"
        )?;
        if *errors > 0 { write!(out, ", {errors} errors") } else { Ok(()) }
    }
}

/// A table in Markdown: a row for each workload and number of clients, medians over the rounds, and the ratios.
pub fn table(figures: &[Figure]) -> String {
    let mut cells: BTreeMap<(Workload, u32), BTreeMap<System, Vec<Figure>>> = BTreeMap::new();
    for figure in figures {
        let row = cells.entry((figure.workload, figure.clients)).or_default();
        row.entry(figure.system).or_default().push(*figure);
    }
    let ours = |name: &str| format!("{name} /s | p50 ms | p99 ms | CPU µs | Ratio");
    let header = format!("etcd /s | p50 ms | p99 ms | CPU µs | {} | {}", ours("unary"), ours("streamed"));
    let mut lines =
        vec![format!("| Workload | Clients | {header} | Errors |"), format!("|---|{}", "---:|".repeat(16))];
    lines.extend(cells.iter().map(|((workload, clients), systems)| row(*workload, *clients, systems)));
    lines.join("\n")
}

fn row(workload: Workload, clients: u32, systems: &BTreeMap<System, Vec<Figure>>) -> String {
    let of = |system, value: fn(&Figure) -> Option<f64>| {
        let values = systems.get(&system).into_iter().flatten().filter_map(value);
        median(values.collect())
    };
    let rate = |system| of(system, |figure| Some(figure.per_second));
    let mut words = vec![workload.name().to_owned(), clients.to_string()];
    for system in [System::Etcd, System::Unary, System::Streamed] {
        words.push(number(rate(system), 0));
        words.push(number(of(system, |figure| figure.p50_ms), 2));
        words.push(number(of(system, |figure| figure.p99_ms), 2));
        words.push(number(of(system, |figure| Some(figure.cpu_us)), 0));
        if system != System::Etcd {
            let theirs = rate(System::Etcd).filter(|theirs| *theirs > 0.0);
            words.push(number(rate(system).zip(theirs).map(|(ours, theirs)| ours / theirs), 2));
        }
    }
    let errors: u64 = systems.values().flatten().map(|figure| figure.errors).sum();
    words.push(errors.to_string());
    format!("| {} |", words.join(" | "))
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(system: System, per_second: f64, errors: u64) -> Figure {
        let (workload, clients) = (Workload::Put, 64);
        let (p50_ms, p99_ms, cpu_us) = (Some(1.0), Some(9.0), 50.0);
        Figure { system, workload, clients, per_second, p50_ms, p99_ms, cpu_us, errors }
    }

    #[test]
    fn a_row_shows_medians_their_ratios_and_all_errors() {
        let etcd = [100.0, 900.0, 200.0].map(|rate| figure(System::Etcd, rate, 1));
        let unary = [300.0, 500.0].map(|rate| figure(System::Unary, rate, 0));
        let streamed = [figure(System::Streamed, 2000.0, 0)];
        let table = table(&[&etcd[..], &unary[..], &streamed[..]].concat());
        let row = table.lines().nth(2).expect("one row");
        let cells =
            "200 | 1.00 | 9.00 | 50 | 400 | 1.00 | 9.00 | 50 | 2.00 | 2000 | 1.00 | 9.00 | 50 | 10.00";
        assert_eq!(row, format!("| put | 64 | {cells} | 3 |"));
        let columns = |line: &str| line.matches('|').count();
        assert!(table.lines().all(|line| columns(line) == columns(row)), "{table}");
    }

    #[test]
    fn what_was_not_measured_is_not_made_up() {
        let lone = Figure { p50_ms: None, ..figure(System::Unary, 300.0, 0) };
        let table = table(&[lone]);
        let row = "| put | 64 | – | – | – | – | 300 | – | 9.00 | 50 | – | – | – | – | – | – | 0 |";
        assert!(table.ends_with(row), "{table}");
    }
}
