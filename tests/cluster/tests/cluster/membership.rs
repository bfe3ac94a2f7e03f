//! A cluster grows at run time.

use kv_cluster_tests::{Cluster, Load, LoadPlan, Plan, api::Read, seed};

#[tokio::test(flavor = "multi_thread")]
async fn single_node_grows_to_three_under_load() {
    let mut random = seed::generator("single_node_grows_to_three_under_load");
    let Some(mut cluster) = Cluster::start(Plan::growing()).await else { return };
    cluster.put(0, "before", "the others came").await;
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
        let got = cluster.get(node, "before", Read::AtThisNode).await;
        assert!(got.kv.is_some(), "node {node}");
    }
    load.finish().await;

    // The first node is dispensable now.
    cluster.nodes[0].kill();
    let got = cluster.get(1, "before", Read::Linearizable).await;
    assert!(got.kv.is_some());
    cluster.wait_leader(got.header.expect("every reply has one").shard_id, &[1, 2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstrapped_node_keeps_its_cluster_over_a_restart() {
    let Some(mut cluster) = Cluster::start(Plan::growing()).await else { return };
    cluster.put(0, "k", "v").await;
    let before = cluster.status(0).await.cluster_id;
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    cluster.wait_whole().await;
    assert_eq!(cluster.status(0).await.cluster_id, before);
    assert!(cluster.get(0, "k", Read::Linearizable).await.kv.is_some());
}
