//! The same cluster in its other forms: the meta record as a [`ClusterMap`] and as `admin.v1` shows it.
//!
//! Records come from disk and wire: what cannot be a cluster is an error, never a panic.

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::{admin::v1 as admin, disk::v1 as disk};
use kv_topology::{
    ClusterMap, GroupId, Membership, NodeId, ReplicaId, SLOT_COUNT, ShardId, SlotRange,
    map::{MapError, NodeEntry, NodeState, ReplicaPlacement, ShardEntry},
};
use thiserror::Error;

use super::machine;

/// Why a record is no cluster map.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ViewError {
    /// The number of a state that this version does not know.
    #[error("#{node} is in state {state}, which this version does not know")]
    UnknownNodeState {
        /// The node.
        node: u64,
        /// The number.
        state: i32,
    },
    /// Nodes of a newer version have raised it.
    #[error(
        "the cluster is at feature level {level}, this version knows {}: start a newer one",
        machine::FEATURE_LEVEL
    )]
    FeatureLevel {
        /// That of the cluster.
        level: u32,
    },
    /// Not within 0 to 4,095, or empty.
    #[error("s{shard} claims slots {first}-{last}")]
    SlotRange {
        /// The shard.
        shard: u32,
        /// First slot.
        first: u32,
        /// Last slot.
        last: u32,
    },
    /// The parts do not fit together.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// The map that `record` describes. An empty record is an empty map at epoch 0.
///
/// # Errors
/// When the record describes no possible map.
pub fn cluster_map(record: &disk::MetaRecord) -> Result<ClusterMap, ViewError> {
    let level = record.feature_level;
    if level > machine::FEATURE_LEVEL {
        return Err(ViewError::FeatureLevel { level });
    }
    let node = |node: &disk::NodeRecord| {
        let state = node_state(node.node_id, node.state)?;
        let entry = NodeEntry {
            name: node.name.clone(),
            client_address: node.client_address.clone(),
            peer_address: node.peer_address.clone(),
            zone: zone_of(node).to_owned(),
            version: node.version.clone(),
            state,
        };
        Ok((NodeId(node.node_id), entry))
    };
    let shard = |shard: &disk::ShardRecord| {
        let slots = shard.slots.iter().map(|range| slot_range(shard.shard_id, range.first, range.last));
        let entry = ShardEntry {
            group: GroupId(shard.group_id),
            slots: slots.collect::<Result<_, _>>()?,
            replicas: placements(shard),
            preferred_leader: some_node(shard.preferred_leader_node_id),
        };
        Ok((ShardId(shard.shard_id), entry))
    };
    let map = ClusterMap {
        cluster_id: record.cluster_id.clone(),
        epoch: record.epoch,
        replication_factor: record.replication_factor,
        nodes: record.nodes.iter().map(node).collect::<Result<_, ViewError>>()?,
        shards: record.shards.iter().map(shard).collect::<Result<_, ViewError>>()?,
    };
    map.check()?;
    Ok(map)
}

/// The map as `admin.v1` shows it. Leaders and lags are for those to fill in who know them; see [`shard_status`].
pub fn admin_shard_map(record: &disk::MetaRecord) -> admin::ShardMap {
    admin::ShardMap {
        cluster_id: record.cluster_id.clone(),
        epoch: record.epoch,
        slot_count: u32::from(SLOT_COUNT),
        shards: record.shards.iter().map(shard_status).collect(),
        nodes: record.nodes.iter().map(node_info).collect(),
    }
}

/// The registry's record of a node as `admin.v1` shows it.
pub fn node_info(node: &disk::NodeRecord) -> admin::NodeInfo {
    let disk_uuid = uuid::Uuid::from_slice(&node.disk_uuid).map(|uuid| uuid.to_string()).unwrap_or_default();
    admin::NodeInfo {
        node_id: node.node_id,
        name: node.name.clone(),
        disk_uuid,
        client_address: node.client_address.clone(),
        peer_address: node.peer_address.clone(),
        zone: zone_of(node).to_owned(),
        version: node.version.clone(),
        state: node.state,
        boot_counter: node.boot_counter,
        state_reason: node.state_reason.clone(),
        state_since_unix_ms: node.state_since_unix_ms,
        zone_labelled: node.zone_label.is_some(),
    }
}

/// The zone that counts: the label that somebody gave the node, or else what it tells. Empty: none.
pub fn zone_of(node: &disk::NodeRecord) -> &str {
    node.zone_label.as_deref().unwrap_or(&node.zone)
}

/// What a node said of itself over `admin.v1`, for the meta group. A disk UUID that is none becomes empty, which the
/// meta group refuses.
pub fn node_record(node: &admin::NodeInfo) -> disk::NodeRecord {
    let disk_uuid =
        uuid::Uuid::parse_str(&node.disk_uuid).map(|uuid| uuid.as_bytes().to_vec()).unwrap_or_default();
    disk::NodeRecord {
        node_id: node.node_id,
        name: node.name.clone(),
        disk_uuid: disk_uuid.into(),
        client_address: node.client_address.clone(),
        peer_address: node.peer_address.clone(),
        zone: node.zone.clone(),
        version: node.version.clone(),
        state: node.state,
        boot_counter: node.boot_counter,
        ..disk::NodeRecord::default()
    }
}

/// A shard as meta knows it, with the voters that were last seen. The leader is 0 and the revision too: only the group
/// knows them.
pub fn shard_status(shard: &disk::ShardRecord) -> admin::ShardStatus {
    let seen = shard.observed.as_ref().map(membership).unwrap_or_default();
    let replicas = shard.replicas.iter().map(|placement| admin::ReplicaPlacement {
        replica_id: placement.replica_id,
        node_id: placement.node_id,
        voter: seen.is_voter(ReplicaId(placement.replica_id)),
    });
    let slots = shard.slots.iter().map(|range| admin::SlotRange { first: range.first, last: range.last });
    admin::ShardStatus {
        shard_id: shard.shard_id,
        group_id: shard.group_id,
        leader_node_id: 0,
        replicas: replicas.collect(),
        slots: slots.collect(),
        max_lag_entries: 0,
        revision: 0,
        fault_tolerance: 0,
    }
}

/// The moves under way, in the order of their shards. How far the new replicas have come only the groups know.
pub fn moves(record: &disk::MetaRecord) -> Vec<admin::Move> {
    let shown = |shard: &disk::ShardRecord| {
        let under_way = shard.r#move?;
        Some(admin::Move {
            shard_id: shard.shard_id,
            from_node_id: under_way.from_node_id,
            to_node_id: under_way.to_node_id,
            from_replica_id: under_way.from_replica_id,
            to_replica_id: under_way.to_replica_id,
            reason: move_reason(under_way.reason()).to_owned(),
            begun_unix_ms: under_way.begun_unix_ms,
            lag_entries: None,
        })
    };
    record.shards.iter().filter_map(shown).collect()
}

/// The word of `admin.v1` for why a replica moves.
pub const fn move_reason(reason: disk::MoveReason) -> &'static str {
    match reason {
        disk::MoveReason::Unspecified => "unknown",
        disk::MoveReason::Drain => "drain",
        disk::MoveReason::Lost => "lost",
        disk::MoveReason::Removed => "removed",
        disk::MoveReason::Damaged => "damaged",
        disk::MoveReason::Zones => "zones",
        disk::MoveReason::Balance => "balance",
    }
}

/// The open permit and overdue ones. Their tokens are not shown: whoever has one may release it.
pub fn permits(record: &disk::MetaRecord) -> Vec<admin::Permit> {
    let shown = |permit: &disk::Permit| admin::Permit {
        node_id: permit.node_id,
        ttl_ms: permit.ttl_ms,
        granted_unix_ms: permit.granted_unix_ms,
        overdue: permit.overdue,
        outage_shard_ids: permit.outage_shard_ids.clone(),
    };
    record.permits.iter().map(shown).collect()
}

/// What persons wish of the whole cluster, defaults filled in.
pub fn policy(record: &disk::MetaRecord) -> admin::Policy {
    let disk::Policy { lost_node_grace_ms, moves_at_once } = machine::policy(record);
    admin::Policy { replication_factor: record.replication_factor, lost_node_grace_ms, moves_at_once }
}

/// All that meta knows, as those get it who wait for changes.
pub fn cluster_event(record: &disk::MetaRecord) -> admin::ClusterEvent {
    admin::ClusterEvent {
        epoch: record.epoch,
        nodes: record.nodes.iter().map(node_info).collect(),
        shards: record.shards.iter().map(shard_status).collect(),
        moves: moves(record),
        permits: permits(record),
        policy: Some(policy(record)),
    }
}

/// The membership in the words of the topology. Empty voter sets are left out.
pub fn membership(stored: &disk::StoredMembership) -> Membership {
    let Some(membership) = &stored.membership else { return Membership::default() };
    let sets = membership.voters.iter().filter(|set| !set.replica_ids.is_empty());
    let voters: Vec<BTreeSet<ReplicaId>> =
        sets.map(|set| set.replica_ids.iter().copied().map(ReplicaId).collect()).collect();
    let learners = membership.members.iter().map(|member| ReplicaId(member.replica_id));
    let learners = learners.filter(|replica| voters.iter().all(|set| !set.contains(replica))).collect();
    Membership { voters, learners }
}

/// Where replicas of the shard live.
pub fn placements(shard: &disk::ShardRecord) -> Vec<ReplicaPlacement> {
    let placement = |placement: &disk::ReplicaPlacement| ReplicaPlacement {
        replica: ReplicaId(placement.replica_id),
        node: NodeId(placement.node_id),
    };
    shard.replicas.iter().map(placement).collect()
}

/// The order of memberships of one group; a later one has a greater position. `None` comes first: never formed.
pub fn log_position(stored: &disk::StoredMembership) -> Option<(u64, u64, u64)> {
    stored.log_id.as_ref().map(log_id_position)
}

/// The order of log ids of one group, as far as memberships are concerned.
pub const fn log_id_position(id: &disk::LogId) -> (u64, u64, u64) {
    (id.term, id.replica_id, id.index)
}

/// The nodes by id.
pub fn nodes_by_id(record: &disk::MetaRecord) -> BTreeMap<NodeId, &disk::NodeRecord> {
    record.nodes.iter().map(|node| (NodeId(node.node_id), node)).collect()
}

/// The node with this number; 0 means none.
pub const fn some_node(number: u64) -> Option<NodeId> {
    if number == 0 { None } else { Some(NodeId(number)) }
}

fn node_state(node: u64, state: i32) -> Result<NodeState, ViewError> {
    match disk::NodeState::try_from(state) {
        Ok(disk::NodeState::Joining) => Ok(NodeState::Joining),
        Ok(disk::NodeState::Active) => Ok(NodeState::Active),
        Ok(disk::NodeState::Draining) => Ok(NodeState::Draining),
        Ok(disk::NodeState::Drained) => Ok(NodeState::Drained),
        Ok(disk::NodeState::Lost) => Ok(NodeState::Lost),
        Ok(disk::NodeState::Removed) => Ok(NodeState::Removed),
        Ok(disk::NodeState::Unspecified) | Err(_) => Err(ViewError::UnknownNodeState { node, state }),
    }
}

fn slot_range(shard: u32, first: u32, last: u32) -> Result<SlotRange, ViewError> {
    let number = |slot: u32| u16::try_from(slot).ok();
    let range = number(first).zip(number(last)).and_then(|(first, last)| SlotRange::new(first, last));
    range.ok_or(ViewError::SlotRange { shard, first, last })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_of_a_newer_version_is_not_read_as_if_it_were_one_of_this() {
        let at = |feature_level| disk::MetaRecord { feature_level, ..disk::MetaRecord::default() };
        assert!(cluster_map(&at(machine::FEATURE_LEVEL)).is_ok());
        let error = cluster_map(&at(machine::FEATURE_LEVEL + 1)).unwrap_err();
        assert!(error.to_string().contains("start a newer one"), "{error}");
    }

    #[test]
    fn what_goes_on_is_shown_without_tokens() {
        let moving = disk::Move {
            move_id: 1,
            from_replica_id: 2,
            from_node_id: 3,
            to_replica_id: 4,
            to_node_id: 5,
            reason: disk::MoveReason::Zones.into(),
            begun_unix_ms: 6,
        };
        let shard = |shard_id, under_way| disk::ShardRecord {
            shard_id,
            r#move: under_way,
            ..disk::ShardRecord::default()
        };
        let permit = disk::Permit {
            token: "secret".to_owned(),
            node_id: 5,
            ttl_ms: 60_000,
            granted_unix_ms: 7,
            overdue: true,
            outage_shard_ids: vec![1],
            ..disk::Permit::default()
        };
        let node = disk::NodeRecord { node_id: 5, zone: "a".to_owned(), ..disk::NodeRecord::default() };
        let labelled = disk::NodeRecord { zone_label: Some("b".to_owned()), ..node.clone() };
        let record = disk::MetaRecord {
            epoch: 9,
            replication_factor: 3,
            nodes: vec![node, labelled],
            shards: vec![shard(0, None), shard(1, Some(moving))],
            permits: vec![permit],
            ..disk::MetaRecord::default()
        };
        let event = cluster_event(&record);
        let zones: Vec<_> = event.nodes.iter().map(|node| (node.zone.as_str(), node.zone_labelled)).collect();
        assert_eq!((event.epoch, event.shards.len(), zones), (9, 2, vec![("a", false), ("b", true)]));
        let [shown] = &event.moves[..] else { panic!("{event:?}") };
        assert_eq!((shown.shard_id, shown.reason.as_str(), shown.lag_entries), (1, "zones", None));
        assert_eq!((shown.from_node_id, shown.to_node_id), (3, 5));
        assert_eq!((shown.from_replica_id, shown.to_replica_id, shown.begun_unix_ms), (2, 4, 6));
        assert!(event.permits[0].overdue && !format!("{event:?}").contains("secret"));
        let policy = event.policy.unwrap();
        assert_eq!((policy.replication_factor, policy.moves_at_once), (3, 4));
    }
}
