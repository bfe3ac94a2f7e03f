//! Replicas spread over the zones that nodes are said to be in.

use std::collections::BTreeMap;

use kv_cluster_tests::{Cluster, Load, LoadPlan, Plan, admin::Admin, seed, settled::is_settled};
use kv_proto::admin::v1::ClusterStatus;

/// What the nodes themselves tell.
const TOLD: &str = "told";

#[tokio::test(flavor = "multi_thread")]
async fn replicas_spread_over_zones_as_they_are_labelled() {
    let mut random = seed::generator("replicas_spread_over_zones_as_they_are_labelled");
    let Some(cluster) = Cluster::start(Plan::nodes(4).with_flag("--zone", TOLD)).await else { return };
    let load = Load::start(LoadPlan::of_programs(), cluster.addresses(), &mut random);
    // Scans, uploads, transactions and the like, of which each is one request: replicas move under them.
    let kinds = Load::start(LoadPlan::of_all_kinds_for_minutes(), cluster.addresses(), &mut random);
    let told = cluster.wait_settled(0).await;
    assert_eq!(zones(&told).into_values().collect::<Vec<_>>(), [TOLD; 4]);

    let last = cluster.node_id(3).await.to_string();
    // Names and ids both do.
    for (node, zone) in [("n1", "a"), ("n2", "a"), ("n3", "b"), (last.as_str(), "c")] {
        label(&cluster, node, Some(zone)).await;
    }
    wait_spread(&cluster, ["a", "a", "b", "c"], &[1, 1, 1]).await;
    label(&cluster, "n4", Some("b")).await;
    wait_spread(&cluster, ["a", "a", "b", "b"], &[1, 2]).await;
    load.must_progress(100).await;
    for node in ["n1", "n2", "n3", "n4"] {
        label(&cluster, node, None).await;
    }
    wait_spread(&cluster, [TOLD; 4], &[3]).await;
    load.must_progress(100).await;
    kinds.must_progress(100).await;
    load.finish().await.without_errors();
    kinds.finish().await;
}

async fn label(cluster: &Cluster, node: &str, zone: Option<&str>) {
    let label = async |admin: Admin| admin.label(node, zone).await;
    cluster.order(1, format!("the zone {zone:?} of {node}"), label).await;
}

/// The zone of each node, by name.
fn zones(cluster: &ClusterStatus) -> BTreeMap<&str, &str> {
    let infos = cluster.nodes.iter().filter_map(|node| node.info.as_ref());
    infos.map(|info| (info.name.as_str(), info.zone.as_str())).collect()
}

/// The zone of a node.
fn zone_of(cluster: &ClusterStatus, node_id: u64) -> &str {
    let mut infos = cluster.nodes.iter().filter_map(|node| node.info.as_ref());
    infos.find(|info| info.node_id == node_id).map_or("", |info| &info.zone)
}

/// Waits until the nodes are known to be in these zones and the cluster has come to rest with so many replicas of each shard in
/// a zone, the emptiest zone first.
async fn wait_spread(cluster: &Cluster, expected: [&str; 4], each: &[usize]) {
    let wanted = cluster.wanted();
    cluster
        .wait_cluster(0, &format!("replicas spread over {expected:?}"), |cluster| {
            let zones = zones(cluster);
            if zones.values().copied().ne(expected) {
                return Err(format!("the zones are {zones:?}"));
            }
            is_settled(cluster, wanted)?;
            for shard in &cluster.shards {
                let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
                for replica in &shard.replicas {
                    *counts.entry(zone_of(cluster, replica.node_id)).or_default() += 1;
                }
                let mut sorted: Vec<usize> = counts.values().copied().collect();
                sorted.sort_unstable();
                if sorted != each {
                    return Err(format!("shard {} is spread like {counts:?}", shard.shard_id));
                }
            }
            Ok(())
        })
        .await;
}
