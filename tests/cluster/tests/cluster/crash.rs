//! Crash points: SIGKILL at random moments, many times, and the state compared with what was acknowledged.

use std::time::Duration;

use kv_cluster_tests::{Cluster, Load, LoadPlan, Plan, seed};
use rand::{RngExt, rngs::SmallRng};

/// Rounds between two comparisons with what was acknowledged.
const ROUNDS_PER_COMPARISON: usize = 20;

/// A round whose load cannot make progress (no quorum is up yet) ends after this time: its kill falls into a start.
const ROUND_TIME: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_by_kills_at_random_moments() {
    let mut random = seed::generator("nothing_acknowledged_is_lost_by_kills_at_random_moments");
    let rounds = seed::rounds(200);
    // Little log and frequent flushes: compaction, purging and snapshots get their share of the kills.
    let plan = Plan::nodes(3).with_flag("--log-retention-bytes", "256Ki").with_flag("--flush-interval", "2s");
    let Some(mut cluster) = Cluster::start(plan).await else { return };
    let mut acknowledged = 0;
    for comparison in 0..rounds.div_ceil(ROUNDS_PER_COMPARISON) {
        let value_bytes = [20, 200, 5_000][random.random_range(0..3)];
        let plan = LoadPlan { prefix: format!("load{comparison}/"), value_bytes, ..LoadPlan::default() };
        let load = Load::start(plan, cluster.addresses(), &mut random);
        for _ in 0..ROUNDS_PER_COMPARISON.min(rounds - comparison * ROUNDS_PER_COMPARISON) {
            let _ = load.progress(random.random_range(0..150), ROUND_TIME).await;
            kill_some(&mut cluster, &mut random);
        }
        cluster.wait_whole().await;
        load.must_progress(20).await;
        acknowledged += load.finish().await.acknowledged_writes;
    }
    eprintln!("{rounds} rounds, {acknowledged} acknowledged writes");
    assert!(acknowledged > rounds as u64, "the load hardly ran");
}

/// One, two or all nodes, which start again at once.
fn kill_some(cluster: &mut Cluster, random: &mut SmallRng) {
    let first = random.random_range(0..3);
    let count = [1, 1, 1, 2, 3][random.random_range(0..5)];
    for node in first..first + count {
        cluster.nodes[node % 3].kill();
    }
    cluster.start_all();
}
