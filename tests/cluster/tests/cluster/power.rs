//! The power of all nodes is lost at once, under load, and what they had not synced is gone.

use kv_cluster_tests::{Cluster, DEADLINE, Load, LoadPlan, Plan, seed, wait_until};
use kv_faults::power::Tail;
use rand::{RngExt, rngs::SmallRng};

/// The write-ahead log of RocksDB: the one file that is written ahead of its sync and read back after a crash.
const LOG_SUFFIX: &str = ".log";

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_with_the_power_of_all_nodes() {
    let mut random = seed::generator("nothing_acknowledged_is_lost_with_the_power_of_all_nodes");
    let plan = Plan::nodes(3).with_power_loss().with_flag("--flush-interval", "1s");
    let plan = plan.with_flag("--log-retention-bytes", "256Ki");
    let Some(mut cluster) = Cluster::start(plan).await else { return };
    let (mut lost_bytes, mut lost_files) = (0, 0);
    for round in 0..seed::rounds(8) {
        let plan = LoadPlan { prefix: format!("load{round}/"), value_bytes: 500, ..LoadPlan::of_all_kinds() };
        let load = Load::start(plan, cluster.addresses(), &mut random);
        load.must_progress(random.random_range(50..600)).await;
        wait_purged(&cluster, &load).await;
        cluster.kill_all();
        for node in &mut cluster.nodes {
            let tail = choose_tail(&mut random);
            let report = node.lose_power(tail, &mut random);
            eprintln!("round {round}, {}: {tail:?}, {report:?}", node.name);
            lost_bytes += report.lost_bytes;
            lost_files += report.lost_files;
        }
        cluster.start_all();
        cluster.wait_whole().await;
        load.must_progress(20).await;
        load.finish().await;
    }
    assert!(lost_bytes > 0, "nothing was ever unsynced ({lost_files} files lost): the shim sees nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn power_loss_of_one_node_after_the_other_costs_nothing() {
    let mut random = seed::generator("power_loss_of_one_node_after_the_other_costs_nothing");
    let Some(mut cluster) = Cluster::start(Plan::nodes(3).with_power_loss()).await else { return };
    let load = Load::start(LoadPlan::default(), cluster.addresses(), &mut random);
    for round in 0..seed::rounds(6) {
        load.must_progress(100).await;
        let node = &mut cluster.nodes[round % 3];
        node.lose_power(choose_tail(&mut random), &mut random);
        node.start();
        cluster.wait_whole().await;
    }
    load.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_lost_while_snapshots_are_sent_costs_nothing() {
    let mut random = seed::generator("power_lost_while_snapshots_are_sent_costs_nothing");
    let plan = Plan::nodes(3).with_shards(1).with_power_loss().with_flag("--flush-interval", "1s");
    let plan = plan.with_flag("--log-retention-bytes", "64Ki");
    let Some(mut cluster) = Cluster::start(plan).await else { return };
    let plan = LoadPlan { value_bytes: 4_000, deletes: 0, ..LoadPlan::default() };
    let load = Load::start(plan, cluster.addresses(), &mut random);
    for round in 0..seed::rounds(6) {
        let away = round % 3;
        cluster.nodes[away].kill();
        load.must_progress(200).await;
        cluster.nodes[away].start();
        load.must_progress(random.random_range(1..60)).await;
        cluster.kill_all();
        for node in &mut cluster.nodes {
            node.lose_power(choose_tail(&mut random), &mut random);
        }
        cluster.start_all();
        cluster.wait_whole().await;
    }
    load.finish().await;
}

/// Waits until a log was cut: what it had before must be in the state now, and on disk.
async fn wait_purged(cluster: &Cluster, load: &Load) {
    let purged = wait_until("a log that was purged", DEADLINE, || async {
        load.progress(20, DEADLINE).await.map_err(|error| error.to_string())?;
        let statuses = cluster.statuses().await;
        let mut replicas = statuses.iter().flatten().flat_map(|status| &status.replicas);
        if replicas.any(|replica| replica.purged_index > 0) {
            Ok(())
        } else {
            Err("all begin at 0".to_owned())
        }
    });
    purged.await.unwrap_or_else(|error| panic!("{error}"));
}

fn choose_tail(random: &mut SmallRng) -> Tail {
    [Tail::Lost, Tail::Prefix, Tail::Garbage { suffix: LOG_SUFFIX }][random.random_range(0..3)]
}
