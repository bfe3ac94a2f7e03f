//! Which replicas of a node were given up with their group, by what the node knows of the cluster. Pure.
//!
//! Group ids only grow, and a shard gets a new one only when its old group is given up. So a replica whose group is less than
//! the one that the map names was given up, however many of its kind there are. One whose group is greater is ahead of the
//! map: it was rewritten on this disk, and the map is of before.

use kv_proto::disk::v1::ReplicaDescriptor;
use kv_topology::{ClusterMap, GroupId, ShardId};

use super::rewrite::closed_out;

/// The group in which the shard of a replica goes on without it; `None`: it is of the group that the map names, or of a
/// later one, or the map does not know its shard.
pub fn replaced_by(map: &ClusterMap, replica: &ReplicaDescriptor) -> Option<GroupId> {
    let group = map.shards.get(&ShardId(replica.shard_id))?.group;
    (group > GroupId(replica.group_id)).then_some(group)
}

/// The replicas that were given up and are not marked yet, each with its mark.
pub fn given_up(map: &ClusterMap, replicas: &[ReplicaDescriptor]) -> Vec<ReplicaDescriptor> {
    // What is damaged or leaves anyway keeps its own reason.
    let is_in_service =
        |replica: &&ReplicaDescriptor| replica.quarantine_reason.is_empty() && !replica.removed;
    let marked = |replica: &ReplicaDescriptor| Some(closed_out(replica, replaced_by(map, replica)?.get()));
    replicas.iter().filter(is_in_service).filter_map(marked).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kv_topology::map::ShardEntry;

    use super::*;

    fn map(groups: &[(u32, u64)]) -> ClusterMap {
        let entry = |group: u64| ShardEntry {
            group: GroupId(group),
            slots: Vec::new(),
            replicas: Vec::new(),
            preferred_leader: None,
        };
        let shards: BTreeMap<_, _> =
            groups.iter().map(|(shard, group)| (ShardId(*shard), entry(*group))).collect();
        ClusterMap { shards, ..ClusterMap::default() }
    }

    fn replica(replica_id: u64, shard_id: u32, group_id: u64) -> ReplicaDescriptor {
        ReplicaDescriptor { replica_id, shard_id, group_id, ..ReplicaDescriptor::default() }
    }

    #[test]
    fn a_replica_of_an_older_group_than_the_map_names_was_given_up() {
        let map = map(&[(0, 0), (1, 12), (2, 3)]);
        for (of, expected) in [
            (replica(1, 0, 0), None),
            (replica(2, 1, 1), Some(12)),
            (replica(3, 1, 12), None),
            (replica(4, 1, 13), None),
            (replica(5, 2, 3), None),
            (replica(6, 9, 9), None),
        ] {
            assert_eq!(replaced_by(&map, &of).map(GroupId::get), expected, "{of:?}");
        }
    }

    #[test]
    fn a_map_that_knows_nothing_fences_nobody() {
        assert_eq!(given_up(&ClusterMap::default(), &[replica(1, 0, 0), replica(2, 1, 1)]), []);
    }

    #[test]
    fn what_is_given_up_is_marked_once_and_only_while_it_is_in_service() {
        let map = map(&[(0, 1_000_009), (1, 12)]);
        let damaged = ReplicaDescriptor { quarantine_reason: "a bit".to_owned(), ..replica(4, 1, 1) };
        let leaving = ReplicaDescriptor { removed: true, ..replica(5, 1, 1) };
        let marked =
            given_up(&map, &[replica(1, 0, 0), replica(2, 1, 1), replica(3, 1, 12), damaged, leaving]);
        let of: Vec<_> = marked.iter().map(|mark| (mark.replica_id, mark.replaced_by_group_id)).collect();
        assert_eq!(of, [(1, 1_000_009), (2, 12)]);
        assert_eq!(given_up(&map, &marked), [], "once");
    }
}
