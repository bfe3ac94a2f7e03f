//! The network between the nodes is cut: nobody lies, the majority goes on, healing makes one cluster again.

use std::time::Duration;

use kv_cluster_tests::{
    Cluster, Load, LoadPlan, Plan, api::Read, seed, status::replica, wait::DEADLINE, wait_until,
};
use kv_faults::proxy::Link;
use kv_proto::admin::v1::Role;
use tokio::time::Instant;

/// Longer than any election, so that a node that is going to lie has had the time to.
const CUT: Duration = Duration::from_secs(4);

const ALL: [usize; 3] = [0, 1, 2];

/// Clients that ask the cut-off side wait there for their deadlines: there are enough others for progress.
fn many_clients() -> LoadPlan {
    LoadPlan { clients: 40, ..LoadPlan::default() }
}

fn others(node: usize) -> Vec<usize> {
    ALL.into_iter().filter(|other| *other != node).collect()
}

/// Cuts the leader of a shard off, one that leads still when it is, and gives it.
async fn isolate_leader(cluster: &Cluster, shard: u32) -> usize {
    let isolated = wait_until("a leader that is cut off while it leads", DEADLINE, || async {
        let leader = cluster.wait_leader(shard, &ALL).await;
        cluster.network.cut_off(&[leader], Link::Silent);
        let status = cluster.status(leader).await;
        if replica(&status, shard).is_some_and(|replica| replica.role() == Role::Leader) {
            return Ok(leader);
        }
        cluster.network.heal();
        Err(format!("node {leader} had lost the lead"))
    });
    isolated.await.unwrap_or_else(|error| panic!("{error}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn isolated_leader_refuses_reads_and_writes_and_never_lies() {
    let Some(cluster) = Cluster::start(Plan::nodes(3).with_network()).await else { return };
    let shard = cluster.shard_of("k").await;
    cluster.put(0, "k", "old").await;
    let leader = isolate_leader(&cluster, shard).await;
    let heir = cluster.wait_leader(shard, &others(leader)).await;
    cluster.put(heir, "k", "new").await;

    let end = Instant::now() + CUT;
    while Instant::now() < end {
        for how in [Read::Linearizable, Read::AtThisNode] {
            let read = cluster.api(leader).get("k", how).await;
            assert!(read.is_err(), "the isolated leader answered a read: {read:?}");
        }
        let write = cluster.api(leader).put("k", "lie".into(), None).await;
        assert!(write.is_err(), "the isolated leader acknowledged a write: {write:?}");
    }
    cluster.network.heal();
    cluster.wait_whole().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_that_only_an_isolated_leader_has_is_truncated() {
    let Some(cluster) = Cluster::start(Plan::nodes(3).with_network()).await else { return };
    let shard = cluster.shard_of("k").await;
    let leader = isolate_leader(&cluster, shard).await;
    // Nobody acknowledges these; they must only get into the log.
    let tail = wait_until("entries that the isolated leader cannot commit", DEADLINE, || async {
        let mut api = cluster.api(leader);
        let write = api.put("k", "divergent".into(), None).await;
        assert!(write.is_err(), "{write:?}");
        let status = cluster.status(leader).await;
        let replica = replica(&status, shard).ok_or("it has no replica")?;
        if replica.last_log_index > replica.committed_index {
            Ok(replica.last_log_index)
        } else {
            Err("none yet")
        }
    });
    let tail = tail.await.unwrap_or_else(|error| panic!("{error}"));

    let heir = cluster.wait_leader(shard, &others(leader)).await;
    let beyond = wait_until("a committed log that is longer than the divergent one", DEADLINE, || async {
        cluster.put(heir, "k", "committed").await;
        let status = cluster.status(heir).await;
        let committed = replica(&status, shard).map_or(0, |replica| replica.committed_index);
        if committed > tail { Ok(()) } else { Err(format!("{committed} of {tail}")) }
    });
    beyond.await.unwrap_or_else(|error| panic!("{error}"));

    cluster.network.heal();
    cluster.wait_whole().await;
    cluster.wait_caught_up().await;
    for node in ALL {
        let got = cluster.get(node, "k", Read::AtThisNode).await;
        let kv = got.kv.expect("it was written");
        assert_eq!(format!("{:?}", kv.value), format!("{:?}", Some(inline("committed"))), "node {node}");
    }
}

fn inline(text: &'static str) -> kv_proto::kv::v1::key_value::Value {
    kv_proto::kv::v1::key_value::Value::Inline(text.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn majority_goes_on_while_a_minority_is_cut_off_and_all_agree_after_healing() {
    let mut random =
        seed::generator("majority_goes_on_while_a_minority_is_cut_off_and_all_agree_after_healing");
    // With fewer replicas than nodes, two nodes would be the majority of some shard.
    let plan = Plan::nodes(5).with_replication_factor(5).with_network();
    let Some(cluster) = Cluster::start(plan).await else { return };
    let load = Load::start(many_clients(), cluster.addresses(), &mut random);
    for (side, link) in [([0, 1], Link::Silent), ([2, 3], Link::Reset), ([1, 4], Link::Stalled)] {
        load.must_progress(100).await;
        cluster.network.cut_off(&side, link);
        // Two of five requests go to the cut-off side and wait there: a few a second are left.
        load.must_progress(60).await;
        cluster.network.heal();
        cluster.wait_whole().await;
    }
    load.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leader_that_hears_and_is_not_heard_is_replaced() {
    one_way(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leader_that_is_heard_and_does_not_hear_is_replaced() {
    one_way(false).await;
}

/// Cuts one direction between a leader and the others, and asks for progress.
async fn one_way(silence_the_leader: bool) {
    let mut random = seed::generator("one_way");
    let Some(cluster) = Cluster::start(Plan::nodes(3).with_network()).await else { return };
    let shard = cluster.shard_of("load/0").await;
    let load = Load::start(many_clients(), cluster.addresses(), &mut random);
    load.must_progress(100).await;
    let leader = cluster.wait_leader(shard, &ALL).await;
    for other in others(leader) {
        let (from, to) = if silence_the_leader { (leader, other) } else { (other, leader) };
        cluster.network.one_way(from, to, Link::Silent);
    }
    cluster.wait_leader(shard, &others(leader)).await;
    load.must_progress(200).await;
    cluster.network.heal();
    cluster.wait_whole().await;
    load.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_between_two_followers_harms_nobody() {
    let mut random = seed::generator("cut_between_two_followers_harms_nobody");
    let Some(cluster) = Cluster::start(Plan::nodes(3).with_network().with_shards(1)).await else { return };
    let shard = cluster.shard_of("load/0").await;
    let leader = cluster.wait_leader(shard, &ALL).await;
    let followers = others(leader);
    let load = Load::start(LoadPlan::default(), cluster.addresses(), &mut random);
    cluster.network.both_ways(followers[0], followers[1], Link::Silent);
    load.must_progress(500).await;
    cluster.network.heal();
    cluster.wait_whole().await;
    load.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_network_is_slow_and_not_wrong() {
    let mut random = seed::generator("slow_network_is_slow_and_not_wrong");
    let Some(cluster) = Cluster::start(Plan::nodes(3).with_network()).await else { return };
    let load = Load::start(LoadPlan::default(), cluster.addresses(), &mut random);
    for node in ALL {
        for other in others(node) {
            cluster.network.one_way(node, other, Link::Delayed(Duration::from_millis(20)));
        }
    }
    load.must_progress(200).await;
    cluster.network.heal();
    cluster.wait_whole().await;
    load.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_cut_into_single_nodes_acknowledges_nothing_and_heals() {
    let Some(cluster) = Cluster::start(Plan::nodes(3).with_network()).await else { return };
    for node in ALL {
        cluster.network.cut_off(&[node], Link::Silent);
    }
    let end = Instant::now() + CUT;
    while Instant::now() < end {
        for node in ALL {
            assert!(cluster.api(node).put("k", "nobody has a quorum".into(), None).await.is_err());
            assert!(cluster.api(node).get("k", Read::Linearizable).await.is_err());
        }
    }
    cluster.network.heal();
    cluster.wait_whole().await;
    cluster.wait_leader(0, &ALL).await;
    cluster.put(0, "k", "healed").await;
}
