//! What clients see of a cluster that changes: the gap of writes when a leader is killed, the requests of a planned restart of
//! each node in turn, and what the rebuilding of a lost disk takes and costs.
//!
//! Three kvnodes with their defaults; the clients are those of the Rust client, in sessions, as programs use it. Each part
//! starts a cluster of its own. `scripts/bench-moves` builds all that is needed and starts this.

mod failover;
mod filling;
mod latency;
mod restarts;
mod writers;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;
use failover::Failover;
use filling::Filling;
use kv_cluster_tests::{Cluster, Plan};
use kv_compare::record;
use restarts::Restarts;
use serde::Serialize;

/// Measures what clients see while nodes are killed, restarted and rebuilt.
#[derive(Debug, Parser)]
pub struct Options {
    /// How often a leader is killed
    #[arg(long, default_value_t = 30)]
    kills: usize,
    /// How often each node is restarted
    #[arg(long, default_value_t = 3)]
    restarts: usize,
    /// Clients that write while nodes are restarted and filled, each with one call under way
    #[arg(long, default_value_t = 32)]
    clients: usize,
    /// Bytes of values that are on the disk that is lost
    #[arg(long, default_value_t = 1 << 30)]
    bytes: u64,
    /// Bytes of each of these values
    #[arg(long, default_value_t = 4096)]
    value_size: usize,
    /// For how long puts are measured before the disk is lost
    #[arg(long, default_value_t = 20)]
    quiet_seconds: u64,
    /// Shards
    #[arg(long, default_value_t = 8)]
    shards: usize,
    /// Where machine, commit, command and every figure are written as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What is kept of a run.
#[derive(Debug, Serialize)]
struct Measured {
    failover: Failover,
    restarts: Restarts,
    filling: Filling,
}

/// Three nodes.
async fn cluster(options: &Options) -> Result<Cluster> {
    Cluster::start(Plan::nodes(3).with_shards(options.shards)).await.context("kvnode was not built")
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let failover = failover::measure(&options).await?;
    println!("{failover}");
    let restarts = restarts::measure(&options).await?;
    println!("{restarts}");
    let filling = filling::measure(&options).await?;
    println!("{filling}");
    if let Some(path) = &options.json {
        record::write(path, &Measured { failover, restarts, filling })?;
    }
    Ok(())
}
