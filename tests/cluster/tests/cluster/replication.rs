//! Leaders are elected, writes reach every node, every node answers.

use kv_cluster_tests::{Cluster, Load, LoadPlan, Plan, api::Read, seed, status, wait::DEADLINE, wait_until};
use kv_proto::kv::v1::ServedBy;

#[tokio::test(flavor = "multi_thread")]
async fn every_shard_of_a_new_cluster_has_one_leader() {
    for nodes in [1, 3, 5] {
        let Some(cluster) = Cluster::start(Plan::nodes(nodes)).await else { return };
        let statuses = cluster.statuses().await;
        for shard in status::shards(&statuses) {
            assert!(status::leader(&statuses, shard).is_some(), "shard {shard} of {nodes} nodes");
        }
        let clusters: Vec<_> = statuses.iter().flatten().map(|status| &status.cluster_id).collect();
        assert!(clusters.iter().all(|id| *id == clusters[0] && !id.is_empty()), "{clusters:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_through_any_node_is_read_from_every_replica() {
    let Some(cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    for writer in 0..3 {
        let key = format!("from-{writer}");
        let put =
            cluster.api(writer).put(&key, key.clone().into(), None).await.expect("the cluster is whole");
        assert!(put.applied && put.mod_revision > 0);
        for reader in 0..3 {
            let got = cluster.api(reader).get(&key, Read::AtThisNode).await.expect("the cluster is whole");
            let kv = got.kv.expect("a linearizable read sees an acknowledged write");
            assert_eq!(kv.mod_revision, put.mod_revision);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn follower_serves_linearizable_reads_itself() {
    let Some(cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    let shard = cluster.shard_of("k").await;
    let leader = cluster.wait_leader(shard, &[0, 1, 2]).await;
    for number in 0..50 {
        let value = format!("value {number}");
        let put = cluster.api(leader).put("k", value.into(), None).await.expect("the cluster is whole");
        for follower in (0..3).filter(|node| *node != leader) {
            let got = cluster.api(follower).get("k", Read::AtThisNode).await.expect("the cluster is whole");
            let header = got.header.expect("every reply has one");
            assert_eq!(header.served_by(), ServedBy::Follower);
            assert_eq!(got.kv.map(|kv| kv.mod_revision), Some(put.mod_revision));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_read_at_a_follower_catches_up() {
    let Some(cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    let put = cluster.api(0).put("k", "new".into(), None).await.expect("the cluster is whole");
    for node in 0..3 {
        let seen = wait_until(format!("the write in a stale read at node {node}"), DEADLINE, || async {
            let got = cluster.api(node).get("k", Read::Stale).await.map_err(|status| status.to_string())?;
            let revision = got.kv.map(|kv| kv.mod_revision);
            if revision == Some(put.mod_revision) { Ok(()) } else { Err(format!("it saw {revision:?}")) }
        });
        seen.await.unwrap_or_else(|error| panic!("{error}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_clients_of_a_healthy_cluster_see_a_linearizable_store() {
    let mut random = seed::generator("concurrent_clients_of_a_healthy_cluster_see_a_linearizable_store");
    let Some(cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    // Three chunks, of which the last is small and overtakes the others if it can.
    let plan = LoadPlan { upload_bytes: 540_000, ..LoadPlan::of_all_kinds() };
    let load = Load::start(plan, cluster.addresses(), &mut random);
    load.must_progress(3_000).await;
    let verdict = load.finish().await;
    assert!(verdict.errors.is_empty(), "{:?}", verdict.errors);
}
