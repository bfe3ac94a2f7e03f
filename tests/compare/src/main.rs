//! KvCluster and etcd under the same load on the same machine, in one run.
//!
//! Each round starts etcd, loads it, stops it, and does the same with kvnodes; the rounds alternate, so that a machine that
//! drifts drifts for both. Figures of one machine and one run compare; figures of two runs do not. Each system is driven by
//! its own program: `benchmark` of etcd and `kvctl bench`, with the same number of clients, connections, keys and bytes.
//! `scripts/bench` builds all that is needed and starts this, and so does `kvctl bench --compare etcd` where it is built.

mod etcd;
mod kvcluster;
mod summary;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser;
use kv_compare::record;
use serde::Serialize;

use crate::summary::{Figure, Workload};

/// Compares KvCluster with etcd.
#[derive(Debug, Parser)]
pub struct Options {
    /// Folder with `etcd`, `etcdctl` and `etcd-benchmark`
    #[arg(long, env = "KV_ETCD_PROGRAMS")]
    etcd: PathBuf,
    /// How often each system is measured; the table shows medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// What the clients do
    #[arg(long, value_enum, value_delimiter = ',', default_value = "put,get,mixed")]
    workloads: Vec<Workload>,
    /// Numbers of clients, each with one call under way
    #[arg(long, value_delimiter = ',', default_value = "1,64,512")]
    clients: Vec<u32>,
    /// Length of each measurement in seconds; etcd's benchmark counts calls, and gets as many as that takes about
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    value_size: u32,
    /// Number of different keys, of 16 B each; all are written before anything is measured
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    /// Sockets that the clients share, of all nodes together
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// Nodes of each system
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Shards of KvCluster
    #[arg(long, default_value_t = 8)]
    shards: usize,
    /// Where the machine, the commit, the command and every figure of every round are written as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One measurement of a system.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    workload: Workload,
    clients: u32,
}

/// What a system takes after all measurements of a round.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    system: &'static str,
    /// Of the greatest node, in RAM.
    node_bytes: u64,
}

/// What is kept of a run.
#[derive(Debug, Serialize)]
struct Measured<'m> {
    /// Every one, of every round.
    figures: &'m [Figure],
    /// After each round.
    memory: &'m [Memory],
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let steps = plan(&options);
    let (mut figures, mut memory) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        let etcd = etcd::measure(&options, &steps).context("etcd")?;
        tell(&etcd);
        let ours = kvcluster::measure(&options, &steps).await.context("KvCluster")?;
        tell(&ours);
        for (measured, taken) in [etcd, ours] {
            figures.extend(measured);
            memory.push(taken);
        }
    }
    if let Some(path) = &options.json {
        record::write(path, &Measured { figures: &figures, memory: &memory })?;
    }
    println!("{}", summary::table(&figures));
    Ok(())
}

fn tell((figures, memory): &(Vec<Figure>, Memory)) {
    for figure in figures {
        eprintln!("  {figure}");
    }
    eprintln!("  a node of {} takes {} MB", memory.system, memory.node_bytes / 1_000_000);
}

/// Every measurement of a system, in order: writes first, so that caches hold what was written.
fn plan(options: &Options) -> Vec<Step> {
    let steps = options.workloads.iter().flat_map(|workload| {
        options.clients.iter().map(|clients| Step { workload: *workload, clients: *clients })
    });
    steps.collect()
}

/// Clients share connections, and have no more of them than clients.
fn connections(options: &Options, clients: u32) -> u32 {
    options.connections.min(clients)
}

/// Of each call.
#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
fn microseconds(time: Duration, calls: u64) -> f64 {
    time.as_secs_f64() * 1e6 / calls.max(1) as f64
}
