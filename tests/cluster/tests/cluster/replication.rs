//! Leaders are elected, writes reach every node, every node answers.

use kv_cluster_tests::{Cluster, Load, LoadPlan, Plan, api::Read, seed, status, wait::DEADLINE, wait_until};
use kv_proto::kv::v1::ServedBy;

#[tokio::test(flavor = "multi_thread")]
async fn every_shard_of_a_new_cluster_has_one_leader() {
    for nodes in [1, 3, 5] {
        let Some(cluster) = Cluster::start(Plan::nodes(nodes)).await else { return };
        let led = wait_until(format!("leaders of all shards of {nodes} nodes"), DEADLINE, || async {
            let statuses = cluster.statuses().await;
            let leaderless = status::shards(&statuses)
                .into_iter()
                .find(|shard| status::leader(&statuses, *shard).is_none());
            match leaderless {
                None if statuses.iter().all(Option::is_some) => Ok(statuses),
                None => Err("a node does not answer".to_owned()),
                Some(shard) => Err(format!("shard {shard} has none")),
            }
        });
        let statuses = led.await.unwrap_or_else(|error| panic!("{error}"));
        let clusters: Vec<_> = statuses.iter().flatten().map(|status| &status.cluster_id).collect();
        assert!(clusters.iter().all(|id| *id == clusters[0] && !id.is_empty()), "{clusters:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_through_any_node_is_read_from_every_replica() {
    let Some(cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    for writer in 0..3 {
        let key = format!("from-{writer}");
        let put = cluster.put(writer, &key, key.clone()).await;
        assert!(put.applied && put.mod_revision > 0);
        for reader in 0..3 {
            let got = cluster.get(reader, &key, Read::AtThisNode).await;
            let kv = got.kv.expect("a linearizable read sees an acknowledged write");
            assert_eq!(kv.mod_revision, put.mod_revision);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn follower_serves_linearizable_reads_itself() {
    let Some(cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    let shard = cluster.shard_of("k").await;
    for number in 0..50 {
        let put = cluster.put(0, "k", format!("value {number}")).await;
        let by_followers = wait_until("the reads of two followers", DEADLINE, || async {
            let leader = cluster.wait_leader(shard, &[0, 1, 2]).await;
            for follower in (0..3).filter(|node| *node != leader) {
                let got = cluster.get(follower, "k", Read::AtThisNode).await;
                assert_eq!(got.kv.map(|kv| kv.mod_revision), Some(put.mod_revision));
                let served_by = got.header.expect("every reply has one").served_by();
                // The leader may be another one now.
                if served_by != ServedBy::Follower {
                    return Err(format!("node {follower} answered as {served_by:?}"));
                }
            }
            Ok(())
        });
        by_followers.await.unwrap_or_else(|error| panic!("{error}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_read_at_a_follower_catches_up() {
    let Some(cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    let put = cluster.put(0, "k", "new").await;
    for node in 0..3 {
        let seen = wait_until(format!("the write in a stale read at node {node}"), DEADLINE, || async {
            let revision = cluster.get(node, "k", Read::Stale).await.kv.map(|kv| kv.mod_revision);
            if revision == Some(put.mod_revision) { Ok(()) } else { Err(format!("it saw {revision:?}")) }
        });
        seen.await.unwrap_or_else(|error| panic!("{error}"));
    }
}

/// An error shows that something is wrong, or that the machine stood still for longer than an election takes. It does not
/// do that each time.
const ATTEMPTS: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_clients_of_a_healthy_cluster_see_a_linearizable_store() {
    let mut random = seed::generator("concurrent_clients_of_a_healthy_cluster_see_a_linearizable_store");
    let Some(cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    for attempt in 1.. {
        // Three chunks, of which the last is small and overtakes the others if it can.
        let plan = LoadPlan { upload_bytes: 540_000, ..LoadPlan::of_all_kinds() };
        let plan = LoadPlan { prefix: format!("load{attempt}/"), ..plan };
        let load = Load::start(plan, cluster.addresses(), &mut random);
        load.must_progress(3_000).await;
        let errors = load.finish().await.errors;
        if errors.is_empty() {
            return;
        }
        assert!(attempt < ATTEMPTS, "each of {ATTEMPTS} attempts met errors, at last {errors:?}");
    }
}
