//! Nodes die and come back, in any number and order.

use kv_cluster_tests::{Cluster, Load, LoadPlan, Plan, seed, wait::DEADLINE};
use rand::seq::SliceRandom;

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_after_the_leader_was_killed() {
    let mut random = seed::generator("writes_go_on_after_the_leader_was_killed");
    let Some(mut cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    let shard = cluster.shard_of("load/0").await;
    let load = Load::start(LoadPlan::default(), cluster.addresses(), &mut random);
    for _ in 0..3 {
        load.must_progress(200).await;
        let leader = cluster.wait_leader(shard, &[0, 1, 2]).await;
        cluster.nodes[leader].kill();
        let others: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
        cluster.wait_leader(shard, &others).await;
        load.must_progress(200).await;
        cluster.nodes[leader].start();
        cluster.wait_whole().await;
    }
    load.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_nodes_carry_the_loss_of_two() {
    let mut random = seed::generator("five_nodes_carry_the_loss_of_two");
    let plan = Plan::nodes(5).with_replication_factor(5);
    let Some(mut cluster) = Cluster::start(plan).await else { return };
    let load = Load::start(LoadPlan::default(), cluster.addresses(), &mut random);
    load.must_progress(200).await;
    cluster.nodes[0].kill();
    cluster.nodes[1].kill();
    load.must_progress(200).await;
    cluster.start_all();
    cluster.wait_whole().await;
    load.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_acknowledged_is_there_after_all_were_killed_and_started_in_any_order() {
    let mut random =
        seed::generator("everything_acknowledged_is_there_after_all_were_killed_and_started_in_any_order");
    let Some(mut cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    let load = Load::start(LoadPlan::default(), cluster.addresses(), &mut random);
    for _ in 0..4 {
        load.must_progress(200).await;
        cluster.kill_all();
        let mut order = [0, 1, 2];
        order.shuffle(&mut random);
        for node in order {
            cluster.nodes[node].start();
        }
        cluster.wait_whole().await;
    }
    load.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orderly_stop_of_the_leader_hands_over_and_harms_no_reader() {
    let mut random = seed::generator("orderly_stop_of_the_leader_hands_over_and_harms_no_reader");
    let Some(mut cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    let shard = cluster.shard_of("load/0").await;
    let load = Load::start(LoadPlan::default(), cluster.addresses(), &mut random);
    for _ in 0..3 {
        load.must_progress(200).await;
        let leader = cluster.wait_leader(shard, &[0, 1, 2]).await;
        cluster.nodes[leader].terminate();
        cluster.nodes[leader].ended(DEADLINE).await.unwrap_or_else(|error| panic!("{error}"));
        load.must_progress(200).await;
        cluster.nodes[leader].start();
        cluster.wait_whole().await;
    }
    load.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_stop_in_order_at_once_and_come_back() {
    let mut random = seed::generator("all_nodes_stop_in_order_at_once_and_come_back");
    let Some(mut cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    let load = Load::start(LoadPlan::default(), cluster.addresses(), &mut random);
    load.must_progress(500).await;
    for node in &mut cluster.nodes {
        node.interrupt();
    }
    for node in &mut cluster.nodes {
        node.ended(DEADLINE).await.unwrap_or_else(|error| panic!("{error}"));
    }
    cluster.start_all();
    cluster.wait_whole().await;
    load.must_progress(100).await;
    load.finish().await;
}
