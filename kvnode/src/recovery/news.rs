//! Before the replicas on a disk start, the node asks whether its cluster went on without them.
//!
//! It asks everybody whom it knows, by the map that it kept and by its flags, and waits for none longer than a moment: a cold
//! start of the whole cluster needs nobody, and a node that is cut off starts as well. What it does not hear now it hears
//! from the map feed, once somebody who knows can be reached; see `docs/recovery.md` for what that leaves open.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::join_all;
use kv_proto::{admin::v1::ShardMap, disk::v1::MetaRecord};
use kv_topology::{ClusterMap, GroupId, NodeId, ShardId};
use tokio::time::Instant;

use crate::{
    meta::view::cluster_map,
    node::{formation, map_feed::MapFeed},
    transport::Identity,
};

/// For all answers: a node that is there answers within milliseconds, before it does anything else.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Asks all nodes of the kept map, and those at `others`, and takes the newest map that gives groups up; any map of its cluster,
/// when the kept one was lost. The newest map that the node knows then.
pub async fn hear(maps: &MapFeed, own: &Identity, others: &[String]) -> Arc<ClusterMap> {
    let view = maps.registry.view();
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let asked = addresses(&view.map, own.node, others);
    let told = join_all(asked.iter().map(|address| formation::map_of(address, deadline))).await;
    let told: Vec<ShardMap> = told.into_iter().flatten().collect();
    let Some(news) = newest(&own.cluster_id, &view.map, &told) else { return view.map.clone() };
    tracing::warn!(epoch = news.epoch, known = view.epoch(), "the cluster has gone on without this node");
    // What a map does not tell stays as it is known until the whole record comes.
    let recoveries = view.record.recoveries;
    let record = MetaRecord { recoveries, ..formation::first_record(news) };
    let map = cluster_map(&record).map(Arc::new);
    // It passes for one epoch older than it is: where the node was one change behind, it does not take its place, and counts
    // all the same.
    maps.offer(record);
    map.unwrap_or_else(|error| {
        tracing::error!(%error, "a map that makes no sense was refused");
        view.map.clone()
    })
}

/// Client addresses to ask, each once.
fn addresses(map: &ClusterMap, me: NodeId, others: &[String]) -> BTreeSet<String> {
    // Of removed nodes too: somebody else of the cluster may have the address by now.
    let known = map.nodes.iter().filter(|(node, _)| **node != me).map(|(_, entry)| &entry.client_address);
    known.chain(others).filter(|address| !address.is_empty()).cloned().collect()
}

/// Of the maps that were told, the newest one of this cluster that names a later group for a shard than the kept one. Where none
/// is kept, what is on the disk may be of any group: the newest one at all.
fn newest<'a>(cluster_id: &str, kept: &ClusterMap, told: &'a [ShardMap]) -> Option<&'a ShardMap> {
    let gives_up = |told: &&ShardMap| {
        let later = told.shards.iter().any(|shard| {
            let known = kept.shards.get(&ShardId(shard.shard_id));
            known.is_some_and(|known| GroupId(shard.group_id) > known.group)
        });
        later || kept.epoch == 0
    };
    let of_this_cluster = told.iter().filter(|told| told.cluster_id == cluster_id && told.epoch > kept.epoch);
    of_this_cluster.filter(gives_up).max_by_key(|told| told.epoch)
}

#[cfg(test)]
mod tests {
    use kv_proto::admin::v1::ShardStatus;
    use kv_topology::map::{NodeEntry, NodeState, ShardEntry};

    use super::*;

    fn kept(epoch: u64, group: u64) -> ClusterMap {
        let node = |number: u64| NodeEntry {
            name: format!("n{number}"),
            client_address: format!("host-{number}:1"),
            peer_address: format!("host-{number}:2"),
            zone: String::new(),
            version: String::new(),
            state: NodeState::Active,
        };
        let shard = ShardEntry {
            group: GroupId(group),
            slots: Vec::new(),
            replicas: Vec::new(),
            preferred_leader: None,
        };
        ClusterMap {
            cluster_id: "c".to_owned(),
            epoch,
            nodes: (1..=3).map(|number| (NodeId(number), node(number))).collect(),
            shards: [(ShardId(0), shard)].into(),
            ..ClusterMap::default()
        }
    }

    fn told(cluster_id: &str, epoch: u64, group_id: u64) -> ShardMap {
        let shards = vec![ShardStatus { shard_id: 0, group_id, ..ShardStatus::default() }];
        ShardMap { cluster_id: cluster_id.to_owned(), epoch, shards, ..ShardMap::default() }
    }

    #[test]
    fn only_a_newer_map_of_the_same_cluster_that_gives_a_group_up_is_news() {
        let heard = |told: &[ShardMap]| newest("c", &kept(7, 0), told).map(|map| map.epoch);
        assert_eq!(heard(&[]), None);
        assert_eq!(heard(&[told("c", 9, 0)]), None, "newer, and its groups are ours");
        assert_eq!(heard(&[told("d", 9, 5)]), None, "another cluster");
        assert_eq!(heard(&[told("c", 7, 5)]), None, "as old as ours");
        assert_eq!(heard(&[told("c", 1_000_000_009, 5), told("c", 9, 0)]), Some(1_000_000_009));
        assert_eq!(heard(&[told("c", 9, 5), told("c", 11, 6), told("c", 10, 5)]), Some(11));
    }

    #[test]
    fn a_node_that_has_lost_its_map_believes_the_newest_one_of_its_cluster() {
        let heard = |told: &[ShardMap]| newest("c", &ClusterMap::default(), told).map(|map| map.epoch);
        assert_eq!(heard(&[told("c", 9, 5), told("c", 11, 0), told("d", 12, 5), told("", 13, 5)]), Some(11));
        assert_eq!(heard(&[told("", 0, 0), told("", 9, 5)]), None, "of no cluster");
    }

    #[test]
    fn everybody_else_is_asked_once() {
        let others = ["host-2:1".to_owned(), "host-9:1".to_owned(), String::new()];
        let asked = addresses(&kept(7, 0), NodeId(1), &others);
        assert_eq!(asked.into_iter().collect::<Vec<_>>(), ["host-2:1", "host-3:1", "host-9:1"]);
    }
}
