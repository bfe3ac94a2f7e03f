//! Who decides: meta where it works, and nobody by what may never have been committed.

use super::*;

/// On the only node that is left of three: meta goes on alone, and the shard has not been decided on.
async fn meta_recovered() -> (TempDir, InspectResponse, u64) {
    let folder = disk(|_| {}).await;
    let running = Running::start(folder.path(), RECOVERY).await;
    let before = running.inspect().await;
    let mut only_meta = order(&before);
    only_meta.replicas.clear();
    if let Some(meta) = &mut only_meta.meta {
        meta.replace.clear();
    }
    let reply = running.rewrite(only_meta).await.unwrap();
    assert_eq!(reply.groups.len(), 1, "{reply:?}");
    running.node.stop().await;
    (folder, before, reply.groups[0].group_id)
}

/// Lets the shard go on with the replica of this disk.
fn question(before: &InspectResponse) -> ReplaceGroupRequest {
    let order = order(before);
    ReplaceGroupRequest {
        cluster_id: order.cluster_id,
        replace: order.meta.map(|meta| meta.replace[0]),
        actor: order.actor,
        reason: order.reason,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_lost_its_quorum_is_decided_by_a_meta_that_works_and_written_after_that() {
    let (folder, before, meta_group) = meta_recovered().await;
    let running = Running::start(folder.path(), &[]).await;
    let leads = |status: &NodeStatus, replica| role_of(status, replica) == Some(Role::Leader);
    running.wait("a leader of meta", |status| leads(status, META)).await;
    let group = running.replace_group(question(&before)).await.unwrap();
    assert!(group > meta_group, "{group}");
    // Its own node learns that the group is over, and closes the survivor out until it is rewritten.
    let is_out = |status: &NodeStatus| role_of(status, DATA) == Some(Role::Quarantined);
    running.wait("a survivor that is closed out", is_out).await;
    assert_eq!(running.replace_group(question(&before)).await.unwrap(), group, "decided once");
    running.node.stop().await;

    let running = Running::start(folder.path(), RECOVERY).await;
    let decided = running.inspect().await;
    assert_eq!(of(&decided, DATA).replaced_by_group_id, group);
    assert_eq!(decided.settled, None, "what stands in a log of one voter is decided");
    let mut only_data = order(&decided);
    only_data.meta = None;
    only_data.replicas[0].new_group_id = group;
    assert_eq!(groups(&running.rewrite(only_data).await.unwrap()), [(1, group)]);
    running.node.stop().await;

    let running = Running::start(folder.path(), &[]).await;
    running.wait("readiness", |status| status.ready).await;
    assert_eq!(running.get("k").await.unwrap(), Some(Bytes::from_static(b"v")));
    let mut again = question(&before);
    if let Some(replace) = &mut again.replace {
        replace.expected_group_id = group;
    }
    let refused = running.replace_group(again).await.unwrap_err();
    assert!(refused.message().contains("has a leader"), "{}", refused.message());
    running.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn meta_decides_nothing_for_those_who_ask_the_wrong_node_or_too_little() {
    let (folder, before, _) = meta_recovered().await;
    let good = question(&before);
    let under_recovery = Running::start(folder.path(), RECOVERY).await;
    let refused = under_recovery.replace_group(good.clone()).await.unwrap_err();
    assert!(refused.message().contains("does not speak to meta"), "{}", refused.message());
    under_recovery.node.stop().await;

    let running = Running::start(folder.path(), &[]).await;
    let leads = |status: &NodeStatus, replica| role_of(status, replica) == Some(Role::Leader);
    let epoch = running.wait("a leader of meta", |status| leads(status, META)).await.map_epoch;
    let of_meta = ReplaceShardGroup { shard_id: 0, ..good.replace.unwrap() };
    for (wrong, expected) in [
        (ReplaceGroupRequest { cluster_id: "c2".to_owned(), ..good.clone() }, "is of cluster c1, not of c2"),
        (ReplaceGroupRequest { replace: Some(of_meta), ..good.clone() }, "meta cannot decide on itself"),
    ] {
        let refused = running.replace_group(wrong).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains(expected), "{}", refused.message());
    }
    let mut hasty = tonic::Request::new(good);
    hasty.set_timeout(Duration::from_secs(3));
    let refused = RecoveryClient::new(running.channel.clone()).replace_group(hasty).await.unwrap_err();
    assert!(refused.message().contains("give it longer"), "{}", refused.message());
    let status = running.status().await;
    assert!(status.map_epoch >= epoch && role_of(&status, DATA) != Some(Role::Quarantined), "{status:?}");
    running.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_stands_at_the_end_of_metas_log_is_told_apart() {
    // As the node heard it: without the last thing in its own log, of which nobody knows whether it was committed.
    let mut heard = 0;
    let folder = disk(|record| {
        record.epoch -= 1;
        heard = record.epoch;
    })
    .await;
    let running = Running::start(folder.path(), RECOVERY).await;
    let before = running.inspect().await;
    let (record, settled) = (before.record.clone().unwrap(), before.settled.clone().unwrap());
    assert_eq!((settled.epoch, settled.of_replica), (heard, false));
    assert_eq!((record.epoch, record.of_replica), (heard + 1, true));
    // Alone, all of it is decided.
    running.rewrite(order(&before)).await.unwrap();
    assert_eq!(running.inspect().await.settled, None);
    running.node.stop().await;
}

/// What the node kept of its cluster is lost, or as old as it can be; and somebody knows better.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_an_old_map_or_none_asks_before_its_replicas_start() {
    let recovered = disk(|_| {}).await;
    let running = Running::start(recovered.path(), RECOVERY).await;
    running.rewrite(order(&running.inspect().await)).await.unwrap();
    running.node.stop().await;
    let other = Running::start(recovered.path(), &[]).await;
    let epoch = other.wait("readiness", |status| status.ready).await.map_epoch;

    let without_map = disk(|_| {}).await;
    fs::remove_file(without_map.path().join("CLUSTER")).unwrap();
    // Nothing was decided in between but that its groups are over.
    let one_behind = disk(|record| record.epoch = epoch - 1).await;
    for folder in [without_map, one_behind] {
        let running = Running::start(folder.path(), &["--join", &other.address]).await;
        let status = running.wait("a node that runs", |status| status.phase() == Phase::Running).await;
        assert_eq!(role_of(&status, META), Some(Role::Quarantined), "{status:?}");
        running.node.stop().await;
    }
    other.node.stop().await;
}
