//! A node that was away for longer than the log reaches back is brought up by a snapshot.

use kv_cluster_tests::{Cluster, Load, LoadPlan, Plan, seed, status::replica, wait::DEADLINE, wait_until};
use kv_proto::admin::v1::NodeStatus;

/// So little log is kept, and so often is the state flushed, that a short absence is too long.
fn plan() -> Plan {
    Plan::nodes(3)
        .with_shards(1)
        .with_flag("--log-retention-bytes", "64Ki")
        .with_flag("--flush-interval", "1s")
}

fn load_plan() -> LoadPlan {
    LoadPlan { value_bytes: 4_000, deletes: 0, ..LoadPlan::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_follower_is_brought_back_by_a_snapshot() {
    brought_back(|cluster, node| cluster.nodes[node].pause(), |cluster, node| cluster.nodes[node].resume())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_follower_is_brought_back_by_a_snapshot() {
    brought_back(|cluster, node| cluster.nodes[node].kill(), |cluster, node| cluster.nodes[node].start())
        .await;
}

async fn brought_back(take_away: impl Fn(&mut Cluster, usize), bring_back: impl Fn(&mut Cluster, usize)) {
    let mut random = seed::generator("brought_back");
    let Some(mut cluster) = Cluster::start(plan()).await else { return };
    let shard = cluster.shard_of("load/0").await;
    let load = Load::start(load_plan(), cluster.addresses(), &mut random);
    load.must_progress(100).await;
    let leader = cluster.wait_leader(shard, &[0, 1, 2]).await;
    let follower = (leader + 1) % 3;
    let had = replica(&cluster.status(follower).await, shard).expect("it has one").last_log_index;
    take_away(&mut cluster, follower);

    let purged = wait_until("a log that begins after what the follower has", DEADLINE, || async {
        load.progress(50, DEADLINE).await.map_err(|error| error.to_string())?;
        let statuses = cluster.statuses().await;
        let purged = statuses
            .iter()
            .flatten()
            .filter_map(|status| replica(status, shard))
            .map(|r| r.purged_index)
            .min();
        if purged > Some(had) {
            Ok(())
        } else {
            Err(format!("purged up to {purged:?}, the follower has {had}"))
        }
    });
    purged.await.unwrap_or_else(|error| panic!("{error}"));

    bring_back(&mut cluster, follower);
    cluster.wait_whole().await;
    let has_more = |status: &NodeStatus| replica(status, shard).is_some_and(|mine| mine.applied_index > had);
    cluster.wait_status(follower, "a snapshot", has_more).await;
    load.must_progress(50).await;
    load.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_killed_while_snapshots_are_sent_lose_nothing() {
    let mut random = seed::generator("all_nodes_killed_while_snapshots_are_sent_lose_nothing");
    let Some(mut cluster) = Cluster::start(plan()).await else { return };
    let load = Load::start(load_plan(), cluster.addresses(), &mut random);
    for round in 0..6 {
        let away = round % 3;
        cluster.nodes[away].kill();
        load.must_progress(300).await;
        cluster.nodes[away].start();
        load.must_progress(20).await;
        cluster.kill_all();
        cluster.start_all();
        cluster.wait_whole().await;
    }
    load.finish().await;
}
