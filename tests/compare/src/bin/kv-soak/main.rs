//! A mixed load for an hour: whether the end is as good as the beginning, compaction included.
//!
//! Three kvnodes are loaded by `kvctl bench mixed`, slice after slice without a pause worth the name. After each slice its
//! rate, its p99, the memory of the greatest node and the machine's own pace are told. At the end the last ten minutes are
//! compared with the first ten. `scripts/soak-load` builds all that is needed and starts this.

mod pace;
mod slice;
mod verdict;

use std::{path::PathBuf, time::Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use kv_cluster_tests::{Cluster, Node, Plan};
use kv_compare::{kvctl::Kvctl, record, usage};
use pace::Pace;
use serde::Serialize;
use slice::{Report, Slice};
use verdict::Verdict;

/// Loads a cluster for an hour and compares the end with the beginning.
#[derive(Debug, Parser)]
struct Options {
    /// How long, in minutes
    #[arg(long, env = "KV_SOAK_MINUTES", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=10_080))]
    minutes: u64,
    /// Length of a slice in seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=600))]
    slice_seconds: u64,
    /// How much worse the end may be, in percent
    #[arg(long, default_value_t = 10)]
    tolerance_percent: u8,
    /// Clients, each with one call under way
    #[arg(long, default_value_t = 64)]
    clients: u32,
    /// Number of different keys, of 16 B each; all are written before anything is measured
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    value_size: u32,
    /// Nodes
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Shards
    #[arg(long, default_value_t = 8)]
    shards: usize,
    /// What each node may use, as in kvnode's --memory: little enough that its caches are full within the first ten minutes
    #[arg(long, default_value = "512Mi")]
    memory: String,
    /// Where machine, commit, command, every slice and the verdict are written as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What is kept of a run.
#[derive(Debug, Serialize)]
struct Measured<'m> {
    slices: &'m [Slice],
    verdict: &'m Verdict,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let plan =
        Plan::nodes(options.nodes).with_shards(options.shards).with_flag("--memory", options.memory.clone());
    let mut cluster = Cluster::start(plan).await.context("kvnode was not built")?;
    let slices = run(&options, &mut cluster)?;
    let verdict = Verdict::of(&slices, options.slice_seconds, options.tolerance_percent)?;
    if let Some(path) = &options.json {
        record::write(path, &Measured { slices: &slices, verdict: &verdict })?;
    }
    println!("\n{verdict}");
    ensure!(verdict.holds(), "the end is worse than the beginning");
    Ok(())
}

/// Fills the cluster, and loads it slice by slice.
fn run(options: &Options, cluster: &mut Cluster) -> Result<Vec<Slice>> {
    let kvctl = Kvctl::of(cluster)?;
    let begun = Instant::now();
    load(&kvctl, options, 0, 1)?;
    println!("{} keys, written in {} s\n\n{}", options.keys, begun.elapsed().as_secs(), Slice::HEADER);
    let mut slices = Vec::new();
    for number in 1..=(options.minutes * 60).div_ceil(options.slice_seconds) {
        let pace = Pace::begin();
        let report = load(&kvctl, options, number, options.slice_seconds);
        let (pieces, report) = (pace.end(), report?);
        for node in &mut cluster.nodes {
            ensure!(node.is_running(), "{} has ended:\n{}", node.name, node.log_tail(40));
        }
        let processes: Vec<u32> = cluster.nodes.iter().filter_map(Node::process_id).collect();
        let slice = Slice::of(number, &report, usage::memory(&processes), pieces);
        println!("{slice}");
        ensure!(report.errors.is_empty(), "calls have failed: {:?}", report.errors);
        slices.push(slice);
    }
    Ok(slices)
}

/// One slice; that with the number 0 writes all keys first.
fn load(kvctl: &Kvctl, options: &Options, number: u64, seconds: u64) -> Result<Report> {
    let switches: &[&str] = if number == 0 { &[] } else { &["--no-fill"] };
    let values = [
        ("--seconds", seconds),
        ("--warm-up-seconds", 0),
        ("--seed", number),
        ("--clients", options.clients.into()),
        ("--keys", options.keys),
        ("--value-size", options.value_size.into()),
    ];
    kvctl.bench("mixed", switches, &values)
}
