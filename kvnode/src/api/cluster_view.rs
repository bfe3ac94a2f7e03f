//! The cluster as its nodes tell it: registry, map and what each node said of itself, put together. Pure.

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::{
    admin::v1::{
        ClusterStatus, Move, NodeInfo, NodeState, NodeStatus, NodeView, ReplicaStatus, Role, ShardMap,
        ShardStatus,
    },
    disk::v1::{MetaRecord, ShardRecord},
};
use kv_topology::{Membership, ReplicaId, quorum::cluster_fault_tolerance};

use crate::meta::view;

/// What nodes said of themselves, by node id; those that did not answer are missing.
pub type Reports = BTreeMap<u64, NodeStatus>;

/// The map, with leaders as far as `reports` tell them. Who else is there is not asked for it: nobody knows how many nodes may
/// fail.
pub fn shard_map(meta: &MetaRecord, reports: &Reports) -> ShardMap {
    let statuses = shard_statuses(meta, reports).into_iter();
    let shards = statuses.map(|status| ShardStatus { fault_tolerance: 0, ..status }).collect();
    ShardMap { shards, ..view::admin_shard_map(meta) }
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
        fault_tolerance: shown(tolerance),
        moves: moves(meta, reports),
        permits: view::permits(meta),
        policy: Some(view::policy(meta)),
    }
}

/// Whether a node with this record takes part in the cluster.
pub fn is_member(info: &NodeInfo) -> bool {
    info.state() != NodeState::Removed
}

/// What the nodes say of the replicas of a shard's group, and which node says it.
fn replicas<'a>(
    shard: &ShardRecord,
    reports: &'a Reports,
) -> impl Iterator<Item = (u64, &'a ReplicaStatus)> + use<'a> {
    let group = shard.group_id;
    let all =
        reports.iter().flat_map(|(node, report)| report.replicas.iter().map(|replica| (*node, replica)));
    all.filter(move |(_, replica)| replica.group_id == group)
}

/// Who says that it leads the group; the greatest term where several do.
fn leader<'a>(shard: &ShardRecord, reports: &'a Reports) -> Option<(u64, &'a ReplicaStatus)> {
    let leaders = replicas(shard, reports).filter(|(_, replica)| replica.role() == Role::Leader);
    leaders.max_by_key(|(_, replica)| replica.term)
}

/// Who votes: as the leader tells it; without one, as the replica that is furthest in its log knows it, since what is in a
/// log counts; else as meta last observed or wishes it.
fn membership(shard: &ShardRecord, reports: &Reports) -> Membership {
    let furthest = || {
        let knows = |(_, replica): &(u64, &ReplicaStatus)| !replica.voter_sets.is_empty();
        replicas(shard, reports).filter(knows).max_by_key(|(_, replica)| replica.last_log_index)
    };
    let told = leader(shard, reports).or_else(furthest).map(|(_, replica)| &replica.voter_sets);
    if let Some(sets) = told.filter(|sets| !sets.is_empty()) {
        let ids = |ids: &Vec<u64>| ids.iter().copied().map(ReplicaId).collect();
        let voters = sets.iter().map(|set| ids(&set.replica_ids)).collect();
        return Membership { voters, learners: BTreeSet::new() };
    }
    let observed = shard.observed.as_ref().map(view::membership).unwrap_or_default();
    if !observed.voters.is_empty() {
        return observed;
    }
    Membership::uniform(view::placements(shard).into_iter().map(|placed| placed.replica))
}

fn shard_statuses(meta: &MetaRecord, reports: &Reports) -> Vec<ShardStatus> {
    meta.shards.iter().map(|shard| shard_status(shard, reports)).collect()
}

/// What meta knows of the shard, and what its leader and voters say.
fn shard_status(shard: &ShardRecord, reports: &Reports) -> ShardStatus {
    let mut status = view::shard_status(shard);
    let membership = membership(shard, reports);
    for placement in &mut status.replicas {
        placement.voter = membership.is_voter(ReplicaId(placement.replica_id));
    }
    status.fault_tolerance = shown(tolerance(shard, reports));
    if let Some((node, leader)) = leader(shard, reports) {
        let lags = leader.lags.iter().filter(|lag| membership.is_voter(ReplicaId(lag.replica_id)));
        status.leader_node_id = node;
        status.max_lag_entries = lags.map(|lag| lag.entries).max().unwrap_or(0);
        status.revision = leader.revision;
    }
    status
}

/// The moves under way, with what the leaders say of how far the new replicas have come.
fn moves(meta: &MetaRecord, reports: &Reports) -> Vec<Move> {
    let lag = |under_way: &Move| {
        let shard = meta.shards.iter().find(|shard| shard.shard_id == under_way.shard_id)?;
        let (_, leader) = leader(shard, reports)?;
        let lag = leader.lags.iter().find(|lag| lag.replica_id == under_way.to_replica_id);
        // The new one may lead already.
        lag.map(|lag| lag.entries).or((leader.replica_id == under_way.to_replica_id).then_some(0))
    };
    let moves = view::moves(meta).into_iter();
    moves.map(|under_way| Move { lag_entries: lag(&under_way), ..under_way }).collect()
}

/// How many more nodes with voters of the shard may fail; `None`: it has no quorum. During a joint change both sets of voters
/// count. A voter has failed that no node reports, or that is reported as quarantined or stopped.
fn tolerance(shard: &ShardRecord, reports: &Reports) -> Option<usize> {
    let able = |replica: &ReplicaStatus| match replica.role() {
        Role::Leader | Role::Follower | Role::Learner | Role::Candidate => true,
        Role::Unspecified | Role::Quarantined | Role::Stopped => false,
    };
    let voting: BTreeSet<u64> = replicas(shard, reports)
        .filter(|(_, replica)| able(replica))
        .map(|(_, replica)| replica.replica_id)
        .collect();
    membership(shard, reports).fault_tolerance(|replica| voting.contains(&replica.get()))
}

/// As a number; -1: no quorum.
fn shown(tolerance: Option<usize>) -> i32 {
    tolerance.map_or(-1, |nodes| i32::try_from(nodes).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use kv_proto::{
        admin::v1::{ReplicaLag, VoterSet},
        disk::v1::{self as disk, NodeRecord},
    };

    use super::*;

    const GROUP: u64 = 7;

    fn meta(nodes: u64) -> MetaRecord {
        let placement = |node| disk::ReplicaPlacement { replica_id: 100 + node, node_id: node };
        let shard = ShardRecord {
            shard_id: 1,
            group_id: GROUP,
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

    fn sets(sets: &[&[u64]]) -> Vec<VoterSet> {
        sets.iter().map(|set| VoterSet { replica_ids: set.to_vec() }).collect()
    }

    /// Of replica 100 + `node`.
    fn report(node: u64, role: Role, term: u64, voters: &[&[u64]]) -> NodeStatus {
        let replica = ReplicaStatus {
            shard_id: 1,
            group_id: GROUP,
            replica_id: 100 + node,
            role: role.into(),
            term,
            revision: term * 10,
            voter_sets: sets(voters),
            ..ReplicaStatus::default()
        };
        NodeStatus { replicas: vec![replica], ..NodeStatus::default() }
    }

    /// Of these nodes, the first of which leads.
    fn reports(nodes: &[u64], voters: &[&[u64]]) -> Reports {
        let role = |node| if node == 1 { Role::Leader } else { Role::Follower };
        nodes.iter().map(|node| (*node, report(*node, role(*node), 3, voters))).collect()
    }

    #[test]
    fn fault_tolerance_counts_the_voters_that_answer() {
        let all = |nodes: &[u64]| reports(nodes, &[&[101, 102, 103]]);
        let tolerance = |reports: &Reports| {
            let status = cluster_status(&meta(3), reports);
            assert_eq!(status.shards[0].fault_tolerance, status.fault_tolerance, "there is one shard");
            status.fault_tolerance
        };
        assert_eq!(tolerance(&all(&[1, 2, 3])), 1);
        assert_eq!(tolerance(&all(&[1, 2])), 0);
        assert_eq!(tolerance(&all(&[2, 3])), 0, "voters are known without a leader");
        assert_eq!(tolerance(&all(&[1])), -1);
        assert_eq!(tolerance(&all(&[])), -1);
        for role in [Role::Quarantined, Role::Stopped] {
            let mut one_less = all(&[1, 2, 3]);
            one_less.insert(3, report(3, role, 3, &[]));
            assert_eq!(tolerance(&one_less), 0, "{role:?}");
        }
    }

    #[test]
    fn both_sets_of_a_joint_configuration_must_decide() {
        let joint: [&[u64]; 2] = [&[101, 102, 103], &[103, 104, 105]];
        let tolerance = |nodes: &[u64]| cluster_status(&meta(5), &reports(nodes, &joint)).fault_tolerance;
        assert_eq!(tolerance(&[1, 2, 3, 4, 5]), 1, "of the union two might fail");
        assert_eq!(tolerance(&[1, 2, 3, 4]), 0);
        assert_eq!(tolerance(&[1, 4, 5]), -1, "three of five, and the old set has one of three");
        // One voter becomes three: the old set bears no failure.
        let growing: [&[u64]; 2] = [&[101], &[101, 102, 103]];
        assert_eq!(cluster_status(&meta(3), &reports(&[1, 2, 3], &growing)).fault_tolerance, 0);
    }

    #[test]
    fn without_a_leader_the_newest_membership_in_a_log_counts() {
        let follower = |node, index, voters: &[&[u64]]| {
            let mut status = report(node, Role::Follower, 3, voters);
            status.replicas[0].last_log_index = index;
            (node, status)
        };
        let reports =
            [follower(2, 10, &[&[101, 102, 103]]), follower(3, 11, &[&[101, 102, 103], &[102, 103, 104]])];
        let status = cluster_status(&meta(4), &reports.into());
        assert_eq!(status.fault_tolerance, 0);
        let voters: Vec<bool> = status.shards[0].replicas.iter().map(|replica| replica.voter).collect();
        assert_eq!(voters, [true; 4]);
    }

    #[test]
    fn the_leader_of_the_greatest_term_is_believed() {
        let voters: [&[u64]; 1] = [&[101, 102, 103]];
        let reports =
            [(1, report(1, Role::Leader, 3, &voters)), (2, report(2, Role::Leader, 4, &voters))].into();
        let status = cluster_status(&meta(3), &reports);
        assert_eq!((status.shards[0].leader_node_id, status.shards[0].revision), (2, 40));
        assert!(status.nodes[2].status.is_none(), "a silent node is listed as such");
    }

    #[test]
    fn a_move_says_how_far_its_new_replica_is() {
        let mut meta = meta(4);
        let moving = |to_replica_id| disk::Move {
            from_replica_id: 103,
            from_node_id: 3,
            to_replica_id,
            to_node_id: 4,
            reason: disk::MoveReason::Drain.into(),
            ..disk::Move::default()
        };
        let mut reports = reports(&[1, 2, 3, 4], &[&[101, 102, 103]]);
        let lag = |node_id, entries| ReplicaLag { node_id, entries, replica_id: 100 + node_id };
        reports.get_mut(&1).expect("the leader").replicas[0].lags = vec![lag(2, 1), lag(3, 2), lag(4, 900)];
        let shown = |meta: &MetaRecord, reports: &Reports| {
            let status = cluster_status(meta, reports);
            (status.moves[0].reason.clone(), status.moves[0].lag_entries, status.shards[0].max_lag_entries)
        };
        meta.shards[0].r#move = Some(moving(104));
        assert_eq!(
            shown(&meta, &reports),
            ("drain".to_owned(), Some(900), 2),
            "only voters lag for the shard"
        );
        meta.shards[0].r#move = Some(moving(105));
        assert_eq!(shown(&meta, &reports).1, None, "it does not follow yet");
        reports.remove(&1);
        meta.shards[0].r#move = Some(moving(104));
        assert_eq!(shown(&meta, &reports).1, None, "nobody knows");
    }

    #[test]
    fn permits_and_policy_are_part_of_the_status() {
        let permit =
            disk::Permit { node_id: 2, overdue: true, token: "t".to_owned(), ..disk::Permit::default() };
        let policy = disk::Policy { moves_at_once: 9, ..disk::Policy::default() };
        let meta =
            MetaRecord { permits: vec![permit], policy: Some(policy), replication_factor: 3, ..meta(3) };
        let status = cluster_status(&meta, &Reports::new());
        assert_eq!((status.permits[0].node_id, status.permits[0].overdue), (2, true));
        let policy = status.policy.expect("told");
        assert_eq!((policy.replication_factor, policy.moves_at_once), (3, 9));
    }
}
