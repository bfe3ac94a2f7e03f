//! What the rebuilding of a lost disk takes, and what it costs those who write meanwhile.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use kv_cluster_tests::{Cluster, settled};
use kv_compare::patience::reach;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use serde::Serialize;
use tokio::time::sleep;

use crate::{
    Options, cluster,
    latency::Latencies,
    writers::{Call, Writers, client},
};

/// A disk that is not rebuilt by then will not be.
const REBUILD_TIMEOUT: Duration = Duration::from_secs(900);
/// Values that are written at the same time.
const FILLERS: usize = 64;

/// A disk that was lost and is whole again.
#[derive(Debug, Serialize)]
pub struct Filling {
    bytes: u64,
    /// From the start of the node on an empty folder until each shard has all its voters again.
    rebuild_seconds: f64,
    quiet: Latencies,
    filling: Latencies,
    /// Filling by quiet.
    p50_ratio: f64,
    p99_ratio: f64,
    failed_calls: usize,
}

impl fmt::Display for Filling {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, rebuild_seconds, quiet, filling, p50_ratio, p99_ratio, failed_calls } = self;
        writeln!(formatter, "a wiped node with {} MiB was whole after {rebuild_seconds:.1} s", bytes >> 20)?;
        writeln!(formatter, "  puts before it: {quiet}")?;
        writeln!(formatter, "  puts meanwhile: {filling}, {failed_calls} failed calls")?;
        write!(formatter, "  ratio: p50 {p50_ratio:.2}, p99 {p99_ratio:.2}")
    }
}

/// Fills a cluster, measures puts, wipes a node, and measures puts again until it is whole.
pub async fn measure(options: &Options) -> Result<Filling> {
    let mut cluster = cluster(options).await?;
    fill(&cluster, options).await?;
    let keys = || (0..options.clients).map(|client| format!("filling/{client}")).collect();
    let writers = Writers::start(&cluster.addresses(), keys(), 256)?;
    sleep(Duration::from_secs(options.quiet_seconds)).await;
    let quiet = writers.finish().await?;
    let wiped = cluster.nodes.len() - 1;
    cluster.nodes[wiped].kill();
    cluster.nodes[wiped].wipe();
    cluster.nodes[wiped].start();
    let begun = Instant::now();
    // Begun when the leaders are elected: the gap of a kill is measured elsewhere.
    cluster.wait_status(wiped, "a place in the cluster", |status| !status.replicas.is_empty()).await;
    let writers = Writers::start(&cluster.addresses(), keys(), 256)?;
    let wanted = cluster.wanted();
    reach(&cluster, 0, "whole cluster", REBUILD_TIMEOUT, |status| settled::stands_still(status, wanted))
        .await?;
    let rebuild_seconds = begun.elapsed().as_secs_f64();
    let filling = writers.finish().await?;
    let failed_calls = filling.iter().flatten().filter(|call| call.error.is_some()).count();
    let (quiet, filling) = (latencies(&quiet)?, latencies(&filling)?);
    Ok(Filling {
        bytes: options.bytes,
        rebuild_seconds,
        p50_ratio: filling.p50_ms() / quiet.p50_ms(),
        p99_ratio: filling.p99_ms() / quiet.p99_ms(),
        quiet,
        filling,
        failed_calls,
    })
}

fn latencies(calls: &[Vec<Call>]) -> Result<Latencies> {
    let succeeded = calls.iter().flatten().filter(|call| call.error.is_none());
    Latencies::of(succeeded.map(Call::latency)).context("no call succeeded")
}

/// Writes all the bytes.
async fn fill(cluster: &Cluster, options: &Options) -> Result<()> {
    let client = client(&cluster.addresses())?;
    let values = options.bytes.div_ceil(options.value_size as u64);
    let mut fillers = tokio::task::JoinSet::new();
    for filler in 0..FILLERS as u64 {
        let (client, size) = (client.clone(), options.value_size);
        fillers.spawn(async move {
            for number in (filler..values).step_by(FILLERS) {
                // No compression makes them smaller: what is told are bytes that travel.
                let mut value = vec![0; size];
                SmallRng::seed_from_u64(number).fill_bytes(&mut value);
                client.put(format!("filled/{number:010}"), value).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(filled) = fillers.join_next().await {
        filled.context("a filler")??;
    }
    Ok(())
}
