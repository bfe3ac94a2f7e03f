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

/// Why a record is no cluster map.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ViewError {
    /// The number of a state that this version does not know.
    #[error("n{node} is in state {state}, which this version does not know")]
    UnknownNodeState {
        /// The node.
        node: u64,
        /// The number.
        state: i32,
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
    let node = |node: &disk::NodeRecord| {
        let state = node_state(node.node_id, node.state)?;
        let entry = NodeEntry {
            name: node.name.clone(),
            client_address: node.client_address.clone(),
            peer_address: node.peer_address.clone(),
            zone: node.zone.clone(),
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
        zone: node.zone.clone(),
        version: node.version.clone(),
        state: node.state,
        boot_counter: node.boot_counter,
    }
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
        boot_id: bytes::Bytes::new(),
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
    stored.log_id.as_ref().map(|id| (id.term, id.replica_id, id.index))
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
