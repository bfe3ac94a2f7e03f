//! The gap of writes that a client sees when the leader of its key's shard is killed.

use std::{fmt, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kv_compare::figures::median;
use serde::Serialize;
use tokio::time::sleep;

use crate::{
    Options, cluster,
    writers::{Writers, longest_gap},
};

/// Writes before each kill, and after the gap: enough to tell a gap from the usual time between two writes.
const STEADY: Duration = Duration::from_millis(1_500);
/// Longer than any gap that is not a failure.
const AFTER: Duration = Duration::from_secs(6);

/// The gaps of all kills.
#[derive(Debug, Serialize)]
pub struct Failover {
    kills: usize,
    median_ms: f64,
    worst_ms: f64,
    failed_calls: usize,
    gaps_ms: Vec<f64>,
}

impl fmt::Display for Failover {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kills, median_ms, worst_ms, failed_calls, gaps_ms: _ } = self;
        write!(
            formatter,
            "write gap on SIGKILL of a leader, {kills} kills: median {median_ms:.0} ms, worst {worst_ms:.0} ms, \
             {failed_calls} failed calls"
        )
    }
}

/// Kills leaders, one after the other; each is started again and catches up before the next one.
pub async fn measure(options: &Options) -> Result<Failover> {
    let mut cluster = cluster(options).await?;
    let (mut gaps_ms, mut failed_calls) = (Vec::new(), 0);
    for kill in 0..options.kills {
        let key = format!("gap/{kill}");
        let shard = cluster.shard_of(&key).await;
        let everybody: Vec<usize> = (0..cluster.nodes.len()).collect();
        // Until then leaderships still go back to the node that was killed before.
        cluster.wait_even_leaders(0).await;
        let writers = Writers::start(&cluster.addresses(), vec![key], 256)?;
        sleep(STEADY).await;
        let leader = cluster.wait_leader(shard, &everybody).await;
        cluster.nodes[leader].kill();
        sleep(AFTER).await;
        let calls = writers.finish().await?.pop().context("one writer")?;
        ensure!(calls.len() > 100, "{} calls are too few to see a gap", calls.len());
        failed_calls += calls.iter().filter(|call| call.error.is_some()).count();
        gaps_ms.push(longest_gap(&calls).as_secs_f64() * 1e3);
        cluster.nodes[leader].start();
        cluster.wait_whole().await;
        cluster.wait_caught_up().await;
    }
    let worst_ms = gaps_ms.iter().copied().fold(0.0, f64::max);
    let median_ms = median(gaps_ms.clone()).context("no kills")?;
    Ok(Failover { kills: options.kills, median_ms, worst_ms, failed_calls, gaps_ms })
}
