//! A cluster grows at run time.

use kv_cluster_tests::{Cluster, Load, LoadPlan, Plan, api::Read, seed};

#[tokio::test(flavor = "multi_thread")]
async fn single_node_grows_to_three_under_load() {
    let mut random = seed::generator("single_node_grows_to_three_under_load");
    let Some(mut cluster) = Cluster::start(Plan::growing()).await else { return };
    cluster.api(0).put("before", "the others came".into(), None).await.expect("the node is ready");
    let load = Load::start(LoadPlan::default(), cluster.addresses(), &mut random);
    load.must_progress(200).await;
    cluster.add_node();
    load.must_progress(200).await;
    cluster.add_node();
    // Three voters everywhere, which the wait asks for.
    cluster.wait_whole().await;
    load.must_progress(200).await;
    cluster.wait_caught_up().await;
    for node in 0..3 {
        let got = cluster.api(node).get("before", Read::AtThisNode).await.expect("the cluster is whole");
        assert!(got.kv.is_some(), "node {node}");
    }
    load.finish().await;

    // The first node is dispensable now.
    cluster.nodes[0].kill();
    let shard = cluster_shard(&cluster).await;
    cluster.wait_leader(shard, &[1, 2]).await;
}

async fn cluster_shard(cluster: &Cluster) -> u32 {
    let got =
        kv_cluster_tests::wait_until("a read at the grown cluster", kv_cluster_tests::DEADLINE, || async {
            cluster.api(1).get("before", Read::Linearizable).await.map_err(|status| status.to_string())
        });
    let got = got.await.unwrap_or_else(|error| panic!("{error}"));
    assert!(got.kv.is_some());
    got.header.expect("every reply has one").shard_id
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstrapped_node_keeps_its_cluster_over_a_restart() {
    let Some(mut cluster) = Cluster::start(Plan::growing()).await else { return };
    cluster.api(0).put("k", "v".into(), None).await.expect("the node is ready");
    let before = cluster.statuses().await[0].as_ref().expect("it answers").cluster_id.clone();
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    cluster.wait_whole().await;
    let after = cluster.statuses().await[0].as_ref().expect("it answers").cluster_id.clone();
    assert_eq!(before, after);
    assert!(cluster.api(0).get("k", Read::Linearizable).await.expect("ready").kv.is_some());
}
