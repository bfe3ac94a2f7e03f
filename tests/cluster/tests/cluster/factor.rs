//! The replication factor changes while clients write.

use std::collections::BTreeSet;

use kv_cluster_tests::{
    Cluster, Load, LoadPlan, Plan,
    admin::Admin,
    seed,
    settled::{Wanted, placed_at},
};
use rand::RngExt;

const NODES: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn replication_factor_grows_and_shrinks_and_clients_do_not_notice() {
    let mut random = seed::generator("replication_factor_grows_and_shrinks_and_clients_do_not_notice");
    let plan = Plan::nodes(NODES).with_replication_factor(1);
    let Some(cluster) = Cluster::start(plan).await else { return };
    cluster.wait_settled(0).await;
    let load = Load::start(LoadPlan::of_programs(), cluster.addresses(), &mut random);
    load.must_progress(100).await;
    states_the_outage_of_what_has_one_replica(&cluster).await;
    // The only replica of a shard moves, too.
    let moved = cluster.wait_leader(1, &cluster.all_but(&[])).await;
    let via = (moved + random.random_range(1..NODES)) % NODES;
    cluster.drain_to_the_end(via, moved).await;
    cluster.undrain(via, moved).await;
    cluster.wait_settled(via).await;
    load.must_progress(100).await;

    let too_many = async |admin: Admin| admin.set_replication_factor(7).await;
    cluster.wait_refused(via, "TOO_FEW_NODES", "seven replicas on five nodes", too_many).await;
    for factor in [3_u32, 5, 3, 1] {
        let wish = async |admin: Admin| admin.set_replication_factor(factor).await;
        let policy = cluster.order(via, format!("replication factor {factor}"), wish).await;
        assert_eq!(policy.replication_factor, factor);
        let wanted = Wanted { replication_factor: factor as usize, ..cluster.wanted() };
        let settled = cluster.wait_settled_as(via, wanted).await;
        assert_eq!(settled.replication_factor, factor);
        load.must_progress(100).await;
    }
    load.finish().await.without_errors();
}

/// A permit is granted all the same, and says what will be away.
async fn states_the_outage_of_what_has_one_replica(cluster: &Cluster) {
    let status = cluster.cluster_status(0).await;
    for node in 0..NODES {
        let placed = placed_at(&status, cluster.node_id(node).await);
        let data: BTreeSet<u32> = placed.into_iter().filter(|shard| *shard != 0).collect();
        let name = &cluster.nodes[node].name;
        let asked = async |admin: Admin| admin.would_permit(name).await;
        let answer = cluster.order(0, format!("what a restart of {name} costs"), asked).await;
        let outages: BTreeSet<u32> = answer.outage_shard_ids.iter().copied().collect();
        assert!(answer.objections.is_empty() && outages == data, "{name} holds {data:?}: {answer:?}");
    }
}
