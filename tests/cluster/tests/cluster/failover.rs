//! Nodes die and come back, in any number and order.

use std::time::Duration;

use kv_cluster_tests::{
    Cluster, Load, LoadPlan, Plan,
    node::Node,
    seed, status,
    wait::{DEADLINE, wait_until},
};
use kv_proto::{
    admin::v1::NodeStatus,
    kv::v1::{UploadRequest, kv_client::KvClient, upload_request},
};
use rand::seq::SliceRandom;
use tokio::time::Instant;
use tonic::transport::Endpoint;

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_after_the_leader_was_killed() {
    writes_go_on("writes_go_on_after_the_leader_was_killed", async |node| node.kill()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orderly_stop_of_the_leader_hands_over_and_harms_no_reader() {
    writes_go_on("orderly_stop_of_the_leader_hands_over_and_harms_no_reader", async |node| {
        node.terminate();
        node.ended(DEADLINE).await.unwrap_or_else(|error| panic!("{error}"));
    })
    .await;
}

/// Takes the leader away, three times; the others go on.
async fn writes_go_on(test: &str, take_away: impl AsyncFn(&mut Node)) {
    let mut random = seed::generator(test);
    let Some(mut cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    let shard = cluster.shard_of("load/0").await;
    let load = Load::start(LoadPlan::default(), cluster.addresses(), &mut random);
    for _ in 0..3 {
        load.must_progress(200).await;
        let leader = cluster.wait_leader(shard, &[0, 1, 2]).await;
        take_away(&mut cluster.nodes[leader]).await;
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

/// How the leaderships go is looked at for so long while the node waits for its last request: several rounds of the
/// controller, which would give them back.
const WATCHED: Duration = Duration::from_secs(6);

/// For so long a node that stops waits for its last request.
const PATIENCE: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_gives_its_leaderships_away_and_does_not_get_them_back() {
    let Some(mut cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    let leader = cluster.wait_leader(1, &[0, 1, 2]).await;
    let others: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
    let node_id = cluster.status(leader).await.node.expect("it is a member").node_id;
    // A request that does not end keeps the process there for as long as it waits for its clients.
    let (held, messages) = tokio::sync::mpsc::channel::<UploadRequest>(1);
    let header = upload_request::Header { key: "held".into(), ..upload_request::Header::default() };
    held.send(UploadRequest { part: Some(upload_request::Part::Header(header)) }).await.expect("room");
    // Without the deadline of the others.
    let address = format!("http://{}", cluster.nodes[leader].ports.client_address());
    let channel = Endpoint::from_shared(address).expect("an address").connect().await.expect("it is there");
    let mut client = KvClient::new(channel);
    let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
    let upload = tokio::spawn(async move { client.upload(messages).await });
    let begun = wait_until("an upload that is under way", DEADLINE, || async {
        if held.capacity() == held.max_capacity() { Ok(()) } else { Err("not taken yet".to_owned()) }
    });
    begun.await.unwrap_or_else(|error| panic!("{error}"));

    cluster.nodes[leader].terminate();
    let asked = Instant::now();
    let led_there = |statuses: &[Option<NodeStatus>]| {
        let all = others.iter().filter_map(|other| statuses[*other].as_ref());
        let still = all.flat_map(|status| &status.replicas).find(|replica| {
            replica.leader_node_id == node_id || status::leader(statuses, replica.shard_id) == Some(leader)
        });
        still.map(|replica| replica.shard_id)
    };
    let moved = wait_until("leaders elsewhere for all shards", DEADLINE, || async {
        match led_there(&cluster.statuses().await) {
            None => Ok(()),
            Some(shard) => Err(format!("shard {shard} is still led there")),
        }
    });
    moved.await.unwrap_or_else(|error| panic!("{error}"));
    println!("all leaderships had moved {:?} after SIGTERM", asked.elapsed());
    let end = Instant::now() + WATCHED;
    while Instant::now() < end && cluster.nodes[leader].is_running() {
        let back = led_there(&cluster.statuses().await);
        assert_eq!(back, None, "a leadership came back {:?} after SIGTERM", asked.elapsed());
    }
    let (runs, waited) = (cluster.nodes[leader].is_running(), asked.elapsed());
    assert!(runs || waited > PATIENCE, "it left its last request after {waited:?}");
    drop(held);
    // Cut off or completed: nobody asks what became of it.
    upload.await.expect("it does not panic").ok();
    cluster.nodes[leader].ended(DEADLINE).await.unwrap_or_else(|error| panic!("{error}"));
    cluster.nodes[leader].start();
    cluster.wait_whole().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_stop_in_order_at_once_and_come_back() {
    let mut random = seed::generator("all_nodes_stop_in_order_at_once_and_come_back");
    let Some(mut cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    let load = Load::start(LoadPlan::default(), cluster.addresses(), &mut random);
    load.must_progress(500).await;
    cluster.stop_all().await;
    cluster.start_all();
    cluster.wait_whole().await;
    load.must_progress(100).await;
    load.finish().await;
}
