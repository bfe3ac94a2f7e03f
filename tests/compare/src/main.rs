//! KvCluster and etcd under the same load on the same machine, in one run.
//!
//! Each round starts three etcd, loads them, stops them, and does the same with three kvnodes; the rounds alternate,
//! so that a machine that drifts drifts for both. Figures of one machine and one run compare; figures of two runs do
//! not. Each system is driven by its own program: `benchmark` of etcd and `kvctl bench`, with the same number of
//! clients, connections, keys and bytes. `scripts/bench` builds all that is needed and starts this.

mod etcd;
mod kvcluster;
mod summary;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;

use crate::summary::{System, Workload};

/// Compares KvCluster with etcd.
#[derive(Debug, Parser)]
pub struct Options {
    /// Folder with `etcd`, `etcdctl` and `etcd-benchmark`
    #[arg(long)]
    etcd: PathBuf,
    /// How often each system is measured; the table shows medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Numbers of clients, each with one call under way
    #[arg(long, value_delimiter = ',', default_value = "1,64,512")]
    clients: Vec<u32>,
    /// Length of each measurement in seconds; etcd's benchmark counts calls, and gets as many as that takes about
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    value_size: u32,
    /// Number of different keys
    #[arg(long, default_value_t = 10_000)]
    keys: u64,
    /// Connections that the clients share
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// Every figure of every round too, a JSON object each
    #[arg(long)]
    json: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let mut figures = Vec::new();
    for round in 1..=options.rounds {
        for system in [System::Etcd, System::KvCluster] {
            eprintln!("round {round} of {}: {}", options.rounds, system.name());
            let measured = match system {
                System::Etcd => etcd::measure(&options).context("etcd")?,
                System::KvCluster => kvcluster::measure(&options).await.context("KvCluster")?,
            };
            for figure in &measured {
                eprintln!("  {figure}");
            }
            figures.extend(measured);
        }
    }
    if let Some(path) = &options.json {
        let lines: Result<Vec<String>, _> = figures.iter().map(serde_json::to_string).collect();
        std::fs::write(path, lines?.join("\n") + "\n").with_context(|| path.display().to_string())?;
    }
    println!("{}", summary::table(&figures));
    Ok(())
}

/// Every measurement of a system, in order: writes first, so that there is something to read.
fn plan(options: &Options) -> Vec<(Workload, u32)> {
    let workloads = [Workload::Put, Workload::Get, Workload::Mixed];
    workloads.into_iter().flat_map(|workload| options.clients.iter().map(move |n| (workload, *n))).collect()
}

/// Clients share connections, and have no more of them than clients.
fn connections(options: &Options, clients: u32) -> u32 {
    options.connections.min(clients)
}
