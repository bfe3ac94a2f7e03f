//! The cluster as its nodes tell it: registry, map and what each node said of itself, put together. Pure.

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::{
    admin::v1::{
        ClusterStatus, NodeInfo, NodeState, NodeStatus, NodeView, ReplicaStatus, Role, ShardMap, ShardStatus,
    },
    disk::v1::{MetaRecord, ShardRecord},
};
use kv_topology::quorum::{cluster_fault_tolerance, spare_voters};

use crate::meta::view;

/// What nodes said of themselves, by node id; those that did not answer are missing.
pub type Reports = BTreeMap<u64, NodeStatus>;

/// The map, with leaders as far as `reports` tell them.
pub fn shard_map(meta: &MetaRecord, reports: &Reports) -> ShardMap {
    ShardMap { shards: shard_statuses(meta, reports), ..view::admin_shard_map(meta) }
}

/// Everything.
pub fn cluster_status(meta: &MetaRecord, reports: &Reports) -> ClusterStatus {
    let members = meta.nodes.iter().map(view::node_info).filter(is_member);
    let view = |info: NodeInfo| NodeView { status: reports.get(&info.node_id).cloned(), info: Some(info) };
    let tolerance = cluster_fault_tolerance(meta.shards.iter().map(|shard| tolerance(shard, reports)));
    ClusterStatus {
        cluster_id: meta.cluster_id.clone(),
        map_epoch: meta.epoch,
        replication_factor: meta.replication_factor,
        nodes: members.map(view).collect(),
        shards: shard_statuses(meta, reports),
        fault_tolerance: tolerance.map_or(-1, |nodes| i32::try_from(nodes).unwrap_or(i32::MAX)),
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

/// The nodes of the voters as the leader tells them; without one, as meta last observed them or wishes them.
fn voters(shard: &ShardRecord, reports: &Reports) -> BTreeSet<u64> {
    if let Some((_, leader)) = leader(shard, reports) {
        return leader.voter_node_ids.iter().copied().collect();
    }
    let observed = shard.observed.as_ref().map(view::membership).unwrap_or_default();
    let placements = view::placements(shard).into_iter();
    let placed = placements.filter(|placed| observed.voters.is_empty() || observed.is_voter(placed.replica));
    placed.map(|placed| placed.node.get()).collect()
}

fn shard_statuses(meta: &MetaRecord, reports: &Reports) -> Vec<ShardStatus> {
    meta.shards.iter().map(|shard| shard_status(shard, reports)).collect()
}

/// What meta knows of the shard, and what its leader and voters say.
fn shard_status(shard: &ShardRecord, reports: &Reports) -> ShardStatus {
    let mut status = view::shard_status(shard);
    let voters = voters(shard, reports);
    for placement in &mut status.replicas {
        placement.voter = voters.contains(&placement.node_id);
    }
    if let Some((node, leader)) = leader(shard, reports) {
        let lags = leader.lags.iter().filter(|lag| voters.contains(&lag.node_id));
        status.leader_node_id = node;
        status.max_lag_entries = lags.map(|lag| lag.entries).max().unwrap_or(0);
        status.revision = leader.revision;
    }
    status
}

/// How many more voters of the shard may fail; `None`: it has no quorum. A voter whose node does not answer, or that is
/// quarantined, has failed.
fn tolerance(shard: &ShardRecord, reports: &Reports) -> Option<usize> {
    let voters = voters(shard, reports);
    let votes = |node: &&u64| {
        let replicas = reports.get(node).into_iter().flat_map(|report| &report.replicas);
        replicas.into_iter().any(|replica| {
            replica.group_id == shard.group_id && !matches!(replica.role(), Role::Quarantined | Role::Stopped)
        })
    };
    spare_voters(voters.iter().filter(votes).count(), voters.len())
}

#[cfg(test)]
mod tests {
    use kv_proto::disk::v1::{self as disk, NodeRecord};

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
