//! The cluster as its nodes tell it: registry, map and what each node said of itself, put together. Pure.

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::{
    admin::v1::{
        ClusterStatus, NodeInfo, NodeState, NodeStatus, NodeView, ReplicaPlacement, ReplicaStatus, Role,
        ShardMap, ShardStatus, SlotRange,
    },
    disk::v1::{MetaRecord, NodeRecord, ShardRecord},
};
use kv_topology::SLOT_COUNT;

/// What nodes said of themselves, by node id; those that did not answer are missing.
pub type Reports = BTreeMap<u64, NodeStatus>;

/// The registry's record for people and clients.
pub fn node_info(record: &NodeRecord) -> NodeInfo {
    NodeInfo {
        node_id: record.node_id,
        name: record.name.clone(),
        disk_uuid: uuid::Uuid::from_slice(&record.disk_uuid).map(|uuid| uuid.to_string()).unwrap_or_default(),
        client_address: record.client_address.clone(),
        peer_address: record.peer_address.clone(),
        zone: record.zone.clone(),
        version: record.version.clone(),
        // Both enumerations have the same numbers; one that this version does not know is told as it is.
        state: record.state,
        boot_counter: record.boot_counter,
    }
}

/// The map, with leaders as far as `reports` tell them.
pub fn shard_map(meta: &MetaRecord, reports: &Reports) -> ShardMap {
    ShardMap {
        cluster_id: meta.cluster_id.clone(),
        epoch: meta.epoch,
        slot_count: u32::from(SLOT_COUNT),
        shards: meta.shards.iter().map(|shard| shard_status(shard, reports)).collect(),
        nodes: meta.nodes.iter().map(node_info).collect(),
    }
}

/// Everything.
pub fn cluster_status(meta: &MetaRecord, reports: &Reports) -> ClusterStatus {
    let is_part = |record: &&NodeRecord| record.state() != kv_proto::disk::v1::NodeState::Removed;
    let view =
        |record| NodeView { info: Some(node_info(record)), status: reports.get(&record.node_id).cloned() };
    ClusterStatus {
        cluster_id: meta.cluster_id.clone(),
        map_epoch: meta.epoch,
        replication_factor: meta.replication_factor,
        nodes: meta.nodes.iter().filter(is_part).map(view).collect(),
        shards: meta.shards.iter().map(|shard| shard_status(shard, reports)).collect(),
        fault_tolerance: meta
            .shards
            .iter()
            .map(|shard| tolerance(shard, reports))
            .min()
            .unwrap_or(-1)
            .max(-1),
    }
}

/// Whether a node with this record takes part in the cluster.
pub fn is_member(info: &NodeInfo) -> bool {
    info.state() != NodeState::Removed
}

/// Who says that it leads the group; the greatest term where several do.
fn leader<'a>(shard: &ShardRecord, reports: &'a Reports) -> Option<(u64, &'a ReplicaStatus)> {
    let replicas =
        reports.iter().flat_map(|(node, report)| report.replicas.iter().map(|replica| (*node, replica)));
    let leaders =
        replicas.filter(|(_, replica)| replica.group_id == shard.group_id && replica.role() == Role::Leader);
    leaders.max_by_key(|(_, replica)| replica.term)
}

/// The voters as the leader tells them; without one, as meta last observed them or wishes them.
fn voters(shard: &ShardRecord, reports: &Reports) -> BTreeSet<u64> {
    if let Some((_, leader)) = leader(shard, reports) {
        return leader.voter_node_ids.iter().copied().collect();
    }
    let node_of: BTreeMap<_, _> =
        shard.replicas.iter().map(|placement| (placement.replica_id, placement.node_id)).collect();
    let observed = shard.observed.as_ref().and_then(|observed| observed.membership.as_ref());
    let sets = observed.iter().flat_map(|membership| &membership.voters);
    let observed: BTreeSet<_> =
        sets.flat_map(|set| &set.replica_ids).filter_map(|replica| node_of.get(replica).copied()).collect();
    if observed.is_empty() { node_of.into_values().collect() } else { observed }
}

fn shard_status(shard: &ShardRecord, reports: &Reports) -> ShardStatus {
    let leader = leader(shard, reports);
    let voters = voters(shard, reports);
    let placement = |placement: &kv_proto::disk::v1::ReplicaPlacement| ReplicaPlacement {
        replica_id: placement.replica_id,
        node_id: placement.node_id,
        voter: voters.contains(&placement.node_id),
    };
    let lags = leader.iter().flat_map(|(_, leader)| &leader.lags);
    let lags = lags.filter(|lag| voters.contains(&lag.node_id));
    ShardStatus {
        shard_id: shard.shard_id,
        group_id: shard.group_id,
        leader_node_id: leader.map_or(0, |(node, _)| node),
        replicas: shard.replicas.iter().map(placement).collect(),
        slots: shard.slots.iter().map(|range| SlotRange { first: range.first, last: range.last }).collect(),
        max_lag_entries: lags.map(|lag| lag.entries).max().unwrap_or(0),
        revision: leader.map_or(0, |(_, leader)| leader.revision),
    }
}

/// How many more voters of the shard may fail; below 0: it has no quorum. A voter whose node does not answer, or
/// that is quarantined, has failed.
fn tolerance(shard: &ShardRecord, reports: &Reports) -> i32 {
    let voters = voters(shard, reports);
    let votes = |node: &&u64| {
        let replicas = reports.get(node).into_iter().flat_map(|report| &report.replicas);
        replicas.into_iter().any(|replica| {
            replica.group_id == shard.group_id && !matches!(replica.role(), Role::Quarantined | Role::Stopped)
        })
    };
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    count(voters.iter().filter(votes).count()) - count(voters.len() / 2 + 1)
}

#[cfg(test)]
mod tests {
    use kv_proto::disk::v1 as disk;

    use super::*;

    fn meta(nodes: u64) -> MetaRecord {
        let placement = |node| disk::ReplicaPlacement { replica_id: 100 + node, node_id: node };
        let shard = ShardRecord {
            shard_id: 1,
            group_id: 7,
            slots: vec![disk::SlotRange { first: 0, last: 4095 }],
            replicas: (1..=nodes).map(placement).collect(),
            ..ShardRecord::default()
        };
        let node = |node_id| NodeRecord { node_id, name: format!("n{node_id}"), ..NodeRecord::default() };
        MetaRecord {
            cluster_id: "c".to_owned(),
            epoch: 5,
            nodes: (1..=nodes).map(node).collect(),
            shards: vec![shard],
            ..MetaRecord::default()
        }
    }

    fn report(role: Role, term: u64, voters: u64) -> NodeStatus {
        let replica = ReplicaStatus {
            shard_id: 1,
            group_id: 7,
            role: role.into(),
            term,
            revision: term * 10,
            voter_node_ids: (1..=voters).collect(),
            ..ReplicaStatus::default()
        };
        NodeStatus { replicas: vec![replica], ..NodeStatus::default() }
    }

    #[test]
    fn fault_tolerance_counts_the_voters_that_answer() {
        let all = |nodes: &[u64]| -> Reports {
            let role = |node| if node == 1 { Role::Leader } else { Role::Follower };
            nodes.iter().map(|node| (*node, report(role(*node), 3, 3))).collect()
        };
        assert_eq!(cluster_status(&meta(3), &all(&[1, 2, 3])).fault_tolerance, 1);
        assert_eq!(cluster_status(&meta(3), &all(&[1, 2])).fault_tolerance, 0);
        assert_eq!(
            cluster_status(&meta(3), &all(&[2, 3])).fault_tolerance,
            0,
            "voters are known without a leader"
        );
        assert_eq!(cluster_status(&meta(3), &all(&[1])).fault_tolerance, -1);
        assert_eq!(cluster_status(&meta(3), &all(&[])).fault_tolerance, -1);
        let mut quarantined = all(&[1, 2, 3]);
        quarantined.insert(3, report(Role::Quarantined, 3, 3));
        assert_eq!(cluster_status(&meta(3), &quarantined).fault_tolerance, 0);
    }

    #[test]
    fn the_leader_of_the_greatest_term_is_believed() {
        let reports = [(1, report(Role::Leader, 3, 3)), (2, report(Role::Leader, 4, 3))].into();
        let status = cluster_status(&meta(3), &reports);
        assert_eq!((status.shards[0].leader_node_id, status.shards[0].revision), (2, 40));
        assert!(status.nodes[2].status.is_none(), "a silent node is listed as such");
    }
}
