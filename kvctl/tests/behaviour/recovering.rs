//! `kvctl recover` against disks of pretence: what it shows, what it asks, and what it sends.

use kv_client::admin::{
    InspectResponse, LogPosition, MembershipOnDisk, RecordOnDisk, RecordedNode, RecordedShard, ReplicaOnDisk,
    VoterReplicas,
};
use serde_json::Value as Json;

use crate::{
    Run, against,
    fake::{FakeCluster, recovery::new_group},
    with_input,
};

const CLUSTER_ID: &str = "8d1f-fake";

fn at(term: u64, index: u64) -> Option<LogPosition> {
    Some(LogPosition { term, replica_id: 1, index })
}

fn replica(shard_id: u32, node: u64, index: u64) -> ReplicaOnDisk {
    let base = u64::from(shard_id) * 10;
    let voters = vec![VoterReplicas { replica_ids: vec![base + 1, base + 2, base + 3] }];
    let membership = MembershipOnDisk { at: at(1, 0), voters, ..MembershipOnDisk::default() };
    ReplicaOnDisk {
        shard_id,
        group_id: shard_id.into(),
        replica_id: base + node,
        vote_term: 5,
        last: at(5, index),
        committed: at(5, index),
        applied: at(5, index),
        membership: Some(membership.clone()),
        applied_membership: Some(membership),
        revision: index * 2,
        ..ReplicaOnDisk::default()
    }
}

/// Meta and shard 1 on a node of three.
fn disk(node_id: u64, index: u64) -> InspectResponse {
    let node = |node_id: u64| RecordedNode {
        node_id,
        name: format!("n{node_id}"),
        client_address: format!("h{node_id}:1"),
        removed: false,
    };
    let shard =
        |shard_id: u32| RecordedShard { shard_id, group_id: shard_id.into(), ..RecordedShard::default() };
    let record = RecordOnDisk {
        epoch: 7,
        of_replica: true,
        nodes: (1..=3).map(node).collect(),
        shards: (0..2).map(shard).collect(),
        ..RecordOnDisk::default()
    };
    InspectResponse {
        node_id,
        node_name: format!("n{node_id}"),
        cluster_id: CLUSTER_ID.to_owned(),
        recovering: true,
        replicas: vec![replica(0, node_id, index), replica(1, node_id, index)],
        record: Some(record),
        ..InspectResponse::default()
    }
}

/// So many of three nodes are there, each under recovery; a later one has a longer log.
async fn survivors(nodes: u64) -> FakeCluster {
    let cluster = FakeCluster::start(usize::try_from(nodes).unwrap()).await;
    for node in 1..=nodes {
        cluster.state().disks.by_node.insert(node, disk(node, 100 + node));
    }
    cluster
}

fn recover(cluster: &FakeCluster, arguments: &[&str], input: &str) -> Run {
    let nodes = cluster.addresses();
    let command = [&["recover"], &arguments[..1], &["--nodes", &nodes], &arguments[1..]].concat();
    with_input(cluster, &command, input.as_bytes())
}

fn rewrites(cluster: &FakeCluster) -> usize {
    cluster.state().disks.rewrites.len()
}

#[tokio::test]
async fn an_inspection_shows_the_disks_and_what_could_be_done() {
    let cluster = survivors(1).await;
    let shown = recover(&cluster, &["inspect", "--without", "n2", "--without", "n3"], "").expect(0);
    for expected in
        ["n1 (node 1)", "under --recovery", "5/101", "1,2,3", "11,12,13", "shard 1: 1 of its voters survive"]
    {
        assert!(shown.contains(expected), "{expected} is missing in\n{shown}");
    }
    let shown = recover(&cluster, &["inspect"], "").expect(0);
    assert!(
        shown.contains("Nothing can be recovered like this: n2 (h2:1), n3 (h3:1) did not answer"),
        "{shown}"
    );
    let json = recover(&cluster, &["inspect", "-o", "json"], "").expect(0);
    let json: Json = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json[0]["cluster_id"], &json[0]["replicas"][1]["replica"]),
        (&CLUSTER_ID.into(), &11.into())
    );
    assert_eq!(rewrites(&cluster), 0);
}

#[tokio::test]
async fn nothing_is_written_before_the_clusters_id_was_typed() {
    let cluster = survivors(1).await;
    let all = ["all", "--without", "n2", "--without", "n3"];
    let run = recover(&cluster, &all, "yes\n");
    assert!(
        run.err.contains("Type the id of the cluster") && run.err.contains("nothing was changed"),
        "{run:?}"
    );
    assert!(run.out.contains("Given up for good: n2, n3"), "{run:?}");
    run.expect(4);
    recover(&cluster, &all, "").expect(4);
    recover(&cluster, &[&all[..], &["--yes", "another"]].concat(), "").expect(4);
    let dry = recover(&cluster, &[&all[..], &["--dry-run"]].concat(), "").expect(0);
    assert!(
        dry.contains("goes on with replica 11 on n1 alone") && dry.contains("Given up for good"),
        "{dry}"
    );
    assert_eq!(rewrites(&cluster), 0);

    let done = recover(&cluster, &all, &format!("{CLUSTER_ID}\n")).expect(0);
    assert!(done.contains(&format!("shard 1: goes on in group {} on n1", new_group(1))), "{done}");
    assert!(done.contains("Start these nodes without --recovery"), "{done}");
    assert_eq!(rewrites(&cluster), 1, "all of it at once");
}

#[tokio::test]
async fn the_decision_says_who_decided_and_why() {
    let cluster = survivors(1).await;
    let all = ["all", "--without", "n2", "--without", "n3", "--yes", CLUSTER_ID];
    recover(&cluster, &[&all[..], &["--reason", "two disks burnt"]].concat(), "").expect(0);
    let (node, request) = cluster.state().disks.rewrites[0].clone();
    assert_eq!((node, request.reason.as_str()), (1, "two disks burnt"));
    assert!(request.actor.starts_with("kvctl"), "{}", request.actor);
}

#[tokio::test]
async fn what_was_recovered_is_not_recovered_again() {
    let cluster = survivors(1).await;
    let all = ["all", "--without", "n2", "--without", "n3", "--yes", CLUSTER_ID];
    recover(&cluster, &all, "").expect(0);
    let again = recover(&cluster, &all, "").expect(0);
    assert!(again.contains("shard 1: 1 voters survive and 1 are needed: it keeps its quorum"), "{again}");
    assert_eq!(rewrites(&cluster), 1);
}

#[tokio::test]
async fn a_quorum_that_survives_refuses_a_recovery_by_name() {
    let cluster = survivors(2).await;
    for what in ["meta", "all"] {
        let run = recover(&cluster, &[what, "--without", "n3", "--yes", CLUSTER_ID], "");
        assert!(
            run.out.contains("it keeps its quorum, and there is nothing to recover. Start the nodes."),
            "{run:?}"
        );
        run.expect(if what == "all" { 0 } else { 4 });
    }
    assert_eq!(rewrites(&cluster), 0);
}

#[tokio::test]
async fn a_node_that_is_not_named_and_not_given_up_stops_everything() {
    let cluster = survivors(1).await;
    let run = recover(&cluster, &["all", "--without", "n2", "--yes", CLUSTER_ID], "");
    assert!(run.err.contains("n3 (h3:1) did not answer") && run.err.contains("--without NAME"), "{run:?}");
    run.expect(1);
    assert_eq!(rewrites(&cluster), 0);
}

#[tokio::test]
async fn a_node_that_is_named_and_does_not_answer_stops_everything() {
    let cluster = survivors(1).await;
    let nodes = format!("{},127.0.0.1:1", cluster.addresses());
    let given = ["--nodes", &nodes, "--without", "n2", "--without", "n3"];
    let run = against(&cluster, &[&["recover", "all"], &given[..], &["--yes", CLUSTER_ID]].concat());
    assert!(run.err.contains("127.0.0.1:1 was not inspected"), "{run:?}");
    assert!(run.err.contains("nothing is decided without it"), "{run:?}");
    run.expect(1);
    assert_eq!(rewrites(&cluster), 0);
    let run = against(&cluster, &[&["recover", "inspect"], &given[..]].concat());
    assert!(run.err.contains("warning: 127.0.0.1:1 was not inspected"), "{run:?}");
    assert!(run.expect(0).contains("shard 1: 1 of its voters survive"));
}

#[tokio::test]
async fn what_somebody_else_does_while_one_reads_is_not_written_over() {
    let cluster = survivors(1).await;
    let grown = disk(1, 200);
    cluster.state().disks.then.insert(1, grown);
    let all = ["all", "--without", "n2", "--without", "n3"];
    let run = recover(&cluster, &all, &format!("{CLUSTER_ID}\n"));
    assert!(run.err.contains("not any more as they were shown; nothing was changed"), "{run:?}");
    run.expect(4);
    assert_eq!(rewrites(&cluster), 0);
    recover(&cluster, &all, &format!("{CLUSTER_ID}\n")).expect(0);
    assert_eq!(rewrites(&cluster), 1);
}

#[tokio::test]
async fn a_shard_is_decided_where_meta_runs_and_written_where_it_survives() {
    let cluster = survivors(2).await;
    // The second node has no replica of the shard, and runs.
    cluster.state().disks.by_node.get_mut(&2).unwrap().replicas.truncate(1);
    cluster.state().disks.by_node.get_mut(&2).unwrap().recovering = false;
    let nodes = cluster.addresses();
    let command = ["recover", "shard", "1", "--nodes", &nodes, "--without", "n3", "--yes", CLUSTER_ID];
    let done = against(&cluster, &command).expect(0);
    assert!(done.contains(&format!("shard 1: decided, group {}", new_group(1))), "{done}");
    let state = cluster.state();
    let asked: Vec<u64> = state.disks.decisions.iter().map(|(node, _)| *node).collect();
    assert_eq!(asked, [2]);
    let [(1, request)] = &state.disks.rewrites[..] else { panic!("{:?}", state.disks.rewrites) };
    assert_eq!((request.replicas[0].replica_id, request.replicas[0].new_group_id), (11, new_group(1)));
}

#[tokio::test]
async fn meta_is_no_shard_to_be_recovered_by_number() {
    let cluster = survivors(1).await;
    let nodes = cluster.addresses();
    let run = against(&cluster, &["recover", "shard", "0", "--nodes", &nodes]);
    assert!(run.err.contains("kvctl recover meta"), "{run:?}");
    run.expect(2);
}
