//! Disks that are wiped and nodes that do not come back: their shards are whole again without a person.

use std::time::Duration;

use kv_cluster_tests::{
    Cluster, DEADLINE, Load, LoadPlan, Plan,
    admin::{Admin, Removal},
    seed,
    settled::{active, placed_at},
};
use kv_proto::admin::v1::{NodeState, NodeStatus, Phase};
use rand::RngExt;

/// What the wiped disk held beside the keys of the load.
const FILLING: (u64, usize) = (60, 16 << 10);

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_node_comes_back_as_a_new_one_and_its_shards_are_whole_again() {
    let mut random = seed::generator("a_wiped_node_comes_back_as_a_new_one_and_its_shards_are_whole_again");
    let plan = Plan::nodes(3).with_flag("--log-retention-bytes", "64Ki").with_flag("--flush-interval", "1s");
    let Some(mut cluster) = Cluster::start(plan).await else { return };
    cluster.fill(0, FILLING.0, FILLING.1).await;
    cluster.wait_cut_logs().await;
    let load = Load::start(LoadPlan::for_minutes(), cluster.addresses(), &mut random);
    load.must_progress(100).await;
    let wiped = random.random_range(0..3);
    let via = (wiped + 1) % 3;
    let old = cluster.node_id(wiped).await;
    eprintln!("node {wiped}, #{old}, is wiped");
    cluster.nodes[wiped].kill();
    cluster.nodes[wiped].wipe();
    cluster.nodes[wiped].start();
    let new = node_id_unlike(&cluster, wiped, &[old]).await;
    cluster.wait_state(via, old, NodeState::Removed).await;
    cluster.wait_state(via, new, NodeState::Active).await;
    let whole = cluster.wait_settled(via).await;
    assert!(active(&whole).contains(&new) && placed_at(&whole, old).is_empty(), "{:?}", whole.shards);
    cluster.has_filling(wiped, FILLING.0, FILLING.1).await;
    load.must_progress(100).await;
    load.finish().await;
}

/// Waits until a node is a member under an id that is none of these.
async fn node_id_unlike(cluster: &Cluster, node: usize, others: &[u64]) -> u64 {
    let id = |status: &NodeStatus| status.node.as_ref().map_or(0, |node| node.node_id);
    let another = |status: &NodeStatus| {
        status.phase() == Phase::Running && id(status) != 0 && !others.contains(&id(status))
    };
    id(&cluster.wait_status(node, "another node id", another).await)
}

/// The shortest that a policy may ask for.
const GRACE: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_is_replaced_welcomed_back_and_removed_for_good() {
    let mut random = seed::generator("a_lost_node_is_replaced_welcomed_back_and_removed_for_good");
    let Some(mut cluster) = Cluster::start(Plan::nodes(4)).await else { return };
    let lost = random.random_range(0..4);
    let via = (lost + 1) % 4;
    let staying = cluster.all_but(&[lost]);
    let load = Load::start(LoadPlan::for_minutes(), cluster.addresses_of(&staying), &mut random);
    let policy = async |admin: Admin| admin.set_lost_node_grace(GRACE).await;
    let policy = cluster.order(via, "a shorter grace", policy).await;
    assert_eq!(u128::from(policy.lost_node_grace_ms), GRACE.as_millis());
    let id = cluster.node_id(lost).await;
    is_not_removed_while_it_lives(&cluster, via, id).await;

    eprintln!("node {lost}, #{id}, is lost");
    cluster.nodes[lost].kill();
    let known = cluster.wait_state(via, id, NodeState::Lost).await;
    assert!(!known.state_reason.is_empty() && known.state_since_unix_ms > 0, "{known:?}");
    let without = cluster.wait_settled(via).await;
    assert_eq!((active(&without).len(), placed_at(&without, id).len()), (3, 0));
    load.must_progress(100).await;

    cluster.nodes[lost].start();
    cluster.wait_state(via, id, NodeState::Active).await;
    let again = cluster.wait_settled(via).await;
    assert!(active(&again).len() == 4 && !placed_at(&again, id).is_empty(), "{:?}", again.shards);
    load.must_progress(100).await;

    // It is not coming back, says a person, who does not wait for the grace to be over.
    cluster.nodes[lost].kill();
    cluster.remove(via, id, Removal::Lost).await;
    cluster.wait_settled(via).await;
    load.must_progress(100).await;
    cluster.nodes[lost].start();
    let over = cluster.nodes[lost].wants_another_start(DEADLINE).await;
    over.unwrap_or_else(|error| panic!("{error}"));
    let said = cluster.nodes[lost].log_tail(30);
    assert!(said.contains("was removed from the cluster"), "{said}");
    cluster.nodes[lost].start();
    let new = node_id_unlike(&cluster, lost, &[id]).await;
    assert!(cluster.nodes[lost].data_dir.join("set-aside-1/IDENTITY").exists(), "#{new} is #{id}");
    cluster.wait_state(via, new, NodeState::Active).await;
    let whole = cluster.wait_settled(via).await;
    assert!(!placed_at(&whole, new).is_empty(), "{:?}", whole.shards);
    load.must_progress(100).await;
    load.finish_through(&cluster.addresses()).await;
}

async fn is_not_removed_while_it_lives(cluster: &Cluster, via: usize, id: u64) {
    let id = id.to_string();
    let empty = async |admin: Admin| admin.remove(&id, Removal::Empty).await;
    cluster.wait_refused(via, "NODE_NOT_EMPTY", "the removal of a node in use", empty).await;
    let lost = async |admin: Admin| admin.remove(&id, Removal::Lost).await;
    cluster.wait_refused(via, "NODE_IS_ALIVE", "the removal of a living node as lost", lost).await;
}
