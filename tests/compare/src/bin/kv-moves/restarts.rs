//! What clients see of a planned restart of each node in turn: permit, hand-over, stop, start, release.

use std::{collections::BTreeMap, fmt, time::Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::{Options, cluster, latency::Latencies, writers::Writers};

/// All writes from the first permit to the last release.
#[derive(Debug, Serialize)]
pub struct Restarts {
    restarts: usize,
    seconds_of_each: f64,
    latencies: Latencies,
    /// By what the client said.
    failed_calls: BTreeMap<String, usize>,
}

impl fmt::Display for Restarts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { restarts, seconds_of_each, latencies, failed_calls } = self;
        let failed: usize = failed_calls.values().sum();
        write!(
            formatter,
            "{restarts} planned restarts, {seconds_of_each:.1} s each: {latencies}, {failed} failed calls {failed_calls:?}"
        )
    }
}

/// Restarts each node so often, under load.
pub async fn measure(options: &Options) -> Result<Restarts> {
    let mut cluster = cluster(options).await?;
    let keys = (0..options.clients).map(|client| format!("restart/{client}")).collect();
    let writers = Writers::start(&cluster.addresses(), keys, 256)?;
    let begun = Instant::now();
    let mut restarts = 0;
    for _ in 0..options.restarts {
        for node in 0..cluster.nodes.len() {
            let via = (node + 1) % cluster.nodes.len();
            cluster.restart_with_permit(via, node).await;
            restarts += 1;
        }
    }
    let all = begun.elapsed();
    let calls: Vec<_> = writers.finish().await?.into_iter().flatten().collect();
    let mut failed_calls = BTreeMap::new();
    for error in calls.iter().filter_map(|call| call.error.clone()) {
        *failed_calls.entry(error).or_default() += 1;
    }
    let succeeded = calls.iter().filter(|call| call.error.is_none());
    let latencies = Latencies::of(succeeded.map(crate::writers::Call::latency)).context("no calls")?;
    #[allow(clippy::cast_precision_loss, reason = "a handful of restarts")]
    let seconds_of_each = all.as_secs_f64() / restarts as f64;
    Ok(Restarts { restarts, seconds_of_each, latencies, failed_calls })
}
