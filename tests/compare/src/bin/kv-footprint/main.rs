//! What a node takes with many keys, next to one of etcd: memory, disk, and the time that its start takes.
//!
//! For each number of keys both systems are started, filled, looked at, stopped in order, started again on what they have,
//! and looked at once more. A start ends when every node answers linearizable reads of all shards. `scripts/bench-footprint`
//! builds all that is needed and starts this.

mod etcd;
mod kvcluster;
mod report;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Parser;
use kv_compare::{record, usage};
use report::Footprint;
use serde::Serialize;

/// Measures memory, disk and start-up time next to etcd.
#[derive(Debug, Parser)]
pub struct Options {
    /// Folder with `etcd`, `etcdctl` and `etcd-benchmark`; without it KvCluster is measured alone
    #[arg(long, env = "KV_ETCD_PROGRAMS")]
    etcd: Option<PathBuf>,
    /// Numbers of keys, of 16 B each
    #[arg(long, value_delimiter = ',', default_value = "1000000")]
    keys: Vec<u64>,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    value_size: u32,
    /// Nodes of each system
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Shards of KvCluster
    #[arg(long, default_value_t = 8)]
    shards: usize,
    /// How long each system is left alone between its last key and the first look at it
    #[arg(long, default_value_t = 10)]
    rest_seconds: u64,
    /// Where machine, commit, command and every figure are written as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What is kept of a run.
#[derive(Debug, Serialize)]
struct Measured<'m> {
    footprints: &'m [Footprint],
}

/// A cluster that can be filled, stopped and started again.
trait Subject {
    /// For people.
    const NAME: &'static str;

    /// Writes all keys.
    async fn fill(&self, keys: u64) -> Result<()>;
    /// Stops all nodes in order.
    async fn stop(&mut self) -> Result<()>;
    /// Starts all nodes, and waits until each serves everything.
    async fn start(&mut self) -> Result<()>;
    fn processes(&self) -> Vec<u32>;
    fn data_dirs(&self) -> Vec<PathBuf>;
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let mut footprints = Vec::new();
    for keys in &options.keys {
        if let Some(programs) = &options.etcd {
            footprints.push(measure(etcd::Subject::new(programs, &options)?, &options, *keys).await?);
        }
        footprints.push(measure(kvcluster::Subject::new(&options).await?, &options, *keys).await?);
    }
    if let Some(path) = &options.json {
        record::write(path, &Measured { footprints: &footprints })?;
    }
    println!("{}", report::table(&footprints));
    Ok(())
}

async fn measure<S: Subject>(mut subject: S, options: &Options, keys: u64) -> Result<Footprint> {
    let begun = Instant::now();
    subject.fill(keys).await?;
    let fill = begun.elapsed();
    eprintln!("{}: {keys} keys in {} s", S::NAME, fill.as_secs());
    tokio::time::sleep(Duration::from_secs(options.rest_seconds)).await;
    let memory_bytes = usage::memory(&subject.processes());
    let disks: Result<Vec<u64>, _> = subject.data_dirs().iter().map(|folder| usage::disk(folder)).collect();
    let disk_bytes = disks?.into_iter().max().unwrap_or_default();
    let begun = Instant::now();
    subject.stop().await?;
    let stop = begun.elapsed();
    let begun = Instant::now();
    subject.start().await?;
    let start = begun.elapsed();
    let restarted_memory_bytes = usage::memory(&subject.processes());
    let footprint = Footprint {
        system: S::NAME,
        keys,
        fill_seconds: fill.as_secs_f64(),
        memory_bytes,
        disk_bytes,
        stop_seconds: stop.as_secs_f64(),
        start_seconds: start.as_secs_f64(),
        restarted_memory_bytes,
    };
    eprintln!("{footprint:?}");
    Ok(footprint)
}
