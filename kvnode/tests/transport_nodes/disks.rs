//! What a full disk means for a group, over the loopback, in simulated time.

use std::time::Duration;

use kv_proto::peer::v1::DiskLevel;
use kvnode::{
    runtime::Tasks,
    transport::{Limits, loopback::Loopback},
};
use openraft::async_runtime::WatchReceiver;

use crate::{
    cluster::{Cluster, eventually, within, write},
    weather::Distance,
};

async fn group() -> (Tasks, Cluster) {
    let tasks = Tasks::new("network");
    let network = Loopback::new(tasks.spawner(), Distance(Duration::from_millis(2)));
    let cluster = Cluster::over(&network, 3, &Limits::default()).await;
    (tasks, cluster)
}

#[tokio::test(start_paused = true)]
async fn a_node_with_a_full_disk_takes_no_proposals_and_catches_up_when_there_is_room() {
    let (_tasks, cluster) = group().await;
    let leader = cluster.leader().await;
    assert!(write(&leader.raft, "before").await);
    cluster.agree(1).await;
    let full = cluster.at(cluster.others(leader.id)[0]);
    let node_of = |id| cluster.nodes.iter().find(|node| node.id == id).expect("it has a node");
    node_of(full.node).transport.set_disk_level(DiskLevel::DiskHard);
    eventually("the leader knows of the full disk", || {
        (node_of(leader.node).transport.disk_level(full.node) == DiskLevel::DiskHard).then_some(())
    })
    .await;
    for number in 0..20 {
        assert!(within(5, "a write", write(&leader.raft, number.to_string())).await, "two have room");
    }
    assert_eq!(full.machine.state().proposals.len(), 1, "it took proposals");
    let followed = full.raft.metrics().borrow_watched().current_leader;
    assert_eq!(followed, Some(leader.id.0), "heartbeats are not refused");
    node_of(full.node).transport.set_disk_level(DiskLevel::DiskEnough);
    assert_eq!(cluster.agree(21).await.len(), 21);
}

#[tokio::test(start_paused = true)]
async fn a_group_without_any_room_still_finds_a_leader() {
    let (_tasks, cluster) = group().await;
    let leader = cluster.leader().await;
    assert!(write(&leader.raft, "before").await);
    cluster.agree(1).await;
    for node in &cluster.nodes {
        node.transport.set_disk_level(DiskLevel::DiskHard);
    }
    let successor = cluster.others(leader.id)[0];
    leader.raft.trigger().transfer_leader(successor.0).await.expect("it runs");
    eventually("the blank entry of the new term committed", || {
        let metrics = cluster.at(successor).raft.metrics();
        let metrics = metrics.borrow_watched();
        let committed = metrics.local_committed.as_ref().map(|id| id.leader_id.term);
        (metrics.current_leader == Some(successor.0) && committed == Some(metrics.current_term)).then_some(())
    })
    .await;
    assert!(!write(&cluster.at(successor).raft, "more").await, "a proposal needs a quorum with room");
}
