//! Two nodes under one name: the living one keeps it.

use kv_cluster_tests::{Cluster, DEADLINE, Load, LoadPlan, Node, Plan, admin::Admin, seed, wait_until};
use kv_proto::admin::v1::{GetNodeStatusRequest, NodeInfo, NodeState, Phase};

/// How a node is refused whose name another one has.
const REFUSED: &str = "another node called n2";

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_under_the_name_of_a_living_one_waits_until_that_one_is_gone() {
    let mut random =
        seed::generator("a_second_node_under_the_name_of_a_living_one_waits_until_that_one_is_gone");
    let Some(mut cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    let first = cluster.node_id(1).await;
    let before = cluster.wait_settled(0).await.nodes.len();
    let load = Load::start(LoadPlan::for_minutes(), cluster.addresses_of(&[0, 2]), &mut random);
    let mut second = cluster.namesake(1);
    second.start();
    logs(&second, REFUSED).await;
    let status = second.api().admin.get_node_status(GetNodeStatusRequest {}).await;
    let status = status.expect("it answers").into_inner();
    assert!(status.phase() != Phase::Running && status.cluster_id.is_empty(), "{status:?}");
    // Nobody else noticed.
    let after = cluster.wait_settled(0).await;
    assert_eq!((after.nodes.len(), cluster.node_id(1).await), (before, first));
    load.must_progress(100).await;

    cluster.nodes[1].kill();
    let heir = wait_heir(&cluster, first).await;
    assert_eq!(heir.client_address, second.ports.client_address().to_string());
    cluster.wait_state(0, first, NodeState::Removed).await;
    cluster.wait_settled(0).await;
    load.must_progress(100).await;

    // The first one is told that it was removed, and that its name is taken.
    cluster.nodes[1].start();
    let over = cluster.nodes[1].wants_another_start(DEADLINE).await;
    over.unwrap_or_else(|error| panic!("{error}"));
    cluster.nodes[1].start();
    logs(&cluster.nodes[1], REFUSED).await;
    let all = [cluster.addresses_of(&[0, 2]), vec![second.ports.client_address()]].concat();
    load.finish_through(&all).await;
}

/// Waits until a node's log has this text.
async fn logs(node: &Node, text: &str) {
    let what = format!("{text:?} in the log of {}", node.name);
    let logged = wait_until(what, DEADLINE, || async {
        let log = node.log_tail(20);
        if log.contains(text) { Ok(()) } else { Err(log) }
    });
    logged.await.unwrap_or_else(|error| panic!("{error}"));
}

/// Waits until another node than `first` is active under the name n2.
async fn wait_heir(cluster: &Cluster, first: u64) -> NodeInfo {
    let nodes = async |admin: Admin| admin.nodes().await;
    let found = wait_until("another node under the name n2", DEADLINE, || async {
        let known = cluster.order(0, "the registry", nodes).await;
        let mut heirs = known.into_iter().filter(|node| node.name == "n2" && node.node_id != first);
        heirs.find(|node| node.state() == NodeState::Active).ok_or("there is none")
    });
    found.await.unwrap_or_else(|error| panic!("{error}"))
}
