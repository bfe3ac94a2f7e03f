//! Whoever takes part in a move dies at each step of it, before it and after it: the move comes to its end.

use kv_cluster_tests::{Cluster, Load, LoadPlan, Plan, seed};
use kv_proto::admin::v1::NodeState;
use rand::seq::SliceRandom;

/// Of a drain. Who passes them: the leader of meta those of commands; the target `create-replica` and `received-snapshot`;
/// the leaders of the groups that move, among them the draining node, the other steps; the draining node the rest.
const POINTS: [&str; 22] = [
    "before begin-move",
    "after begin-move",
    "before create-replica",
    "after create-replica",
    "before add-learner",
    "after add-learner",
    "received-snapshot",
    "before begin-change",
    "after begin-change",
    "before transfer-leader",
    "after transfer-leader",
    "before change-voters",
    "after change-voters",
    "before observe",
    "after observe",
    "before end-move",
    "after end-move",
    "before set-state",
    "after set-state",
    "condemned-replicas",
    "retired-replicas",
    "erased-replicas",
];
/// Each shard has more than its log keeps.
const FILLING: (u64, usize) = (48, 16 << 10);

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_at_any_step_of_a_move_it_comes_to_its_end() {
    let mut random = seed::generator("whoever_dies_at_any_step_of_a_move_it_comes_to_its_end");
    let plan = Plan::nodes(4)
        .with_failpoints()
        .with_flag("--log-retention-bytes", "64Ki")
        .with_flag("--flush-interval", "1s");
    let Some(mut cluster) = Cluster::start(plan).await else { return };
    cluster.fill(0, FILLING.0, FILLING.1).await;
    cluster.wait_cut_logs().await;
    let load = Load::start(LoadPlan::for_minutes(), cluster.addresses(), &mut random);
    let mut points = POINTS;
    points.shuffle(&mut random);
    for point in points {
        dies_at(&mut cluster, point).await;
        load.must_progress(20).await;
    }
    load.must_progress(100).await;
    load.finish().await;
}

async fn dies_at(cluster: &mut Cluster, point: &str) {
    let all = cluster.all_but(&[]);
    // It leads something, so that leaderships move, too.
    let leaving = cluster.wait_leader(1, &all).await;
    let via = (leaving + 1) % all.len();
    let ids = cluster.wait_active(via, &all).await;
    cluster.arm(point);
    cluster.drain(via, leaving).await;
    let dead = cluster.wait_struck(point).await;
    eprintln!("node {dead} died at `{point}` while node {leaving} drained");
    cluster.nodes[dead].start();
    cluster.wait_state(via, ids[leaving], NodeState::Drained).await;
    cluster.undrain(via, leaving).await;
    cluster.wait_settled(via).await;
}
