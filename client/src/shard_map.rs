//! The shard map as this client last heard of it, and who leads, learned from answers.
//!
//! A hint: a wrong entry costs a forwarded request, never a wrong answer.

use std::collections::BTreeMap;

use kv_proto::admin::v1 as proto;
use kv_topology::{
    ClusterMap, GroupId, NodeId, ReplicaId, ShardId, Slot, SlotRange,
    map::{NodeEntry, NodeState, ReplicaPlacement, ShardEntry},
};
use thiserror::Error;

use crate::address::Address;

/// Nodes, shards and leaders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardMap {
    /// Nodes and shards. The replication factor is not part of this answer, and 0 here.
    pub cluster: ClusterMap,
    /// Who was last seen leading each shard.
    pub leaders: BTreeMap<ShardId, NodeId>,
}

/// Why a node's answer is no map.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ShardMapError {
    /// Another number of slots would route keys elsewhere.
    #[error("{0} slots, expected {expected}", expected = kv_topology::SLOT_COUNT)]
    SlotCount(u32),
    /// Not a range of slots.
    #[error("shard {shard} has the malformed slot range {first} to {last}")]
    SlotRange {
        /// The shard.
        shard: u32,
        /// First slot.
        first: u32,
        /// Last slot.
        last: u32,
    },
}

impl ShardMap {
    /// Reads a node's answer.
    ///
    /// # Errors
    /// When it speaks of other slots than ours.
    pub fn from_proto(map: proto::ShardMap) -> Result<Self, ShardMapError> {
        if map.slot_count != 0 && map.slot_count != u32::from(kv_topology::SLOT_COUNT) {
            return Err(ShardMapError::SlotCount(map.slot_count));
        }
        let mut shards = BTreeMap::new();
        let mut leaders = BTreeMap::new();
        for shard in map.shards {
            let id = ShardId(shard.shard_id);
            if shard.leader_node_id != 0 {
                leaders.insert(id, NodeId(shard.leader_node_id));
            }
            shards.insert(id, shard_entry(&shard)?);
        }
        let nodes = map.nodes.into_iter().map(|node| (NodeId(node.node_id), node_entry(node))).collect();
        let cluster =
            ClusterMap { cluster_id: map.cluster_id, epoch: map.epoch, replication_factor: 0, nodes, shards };
        Ok(Self { cluster, leaders })
    }

    /// Where to send what concerns `slot`, best first: its leader, then its other replicas.
    pub fn addresses_of(&self, slot: Slot) -> Vec<Address> {
        let Some(shard) = self.cluster.shard_of(slot) else { return Vec::new() };
        let Some(entry) = self.cluster.shards.get(&shard) else { return Vec::new() };
        let first = self.leaders.get(&shard).copied().or(entry.preferred_leader);
        let replicas = entry.replicas.iter().map(|replica| replica.node);
        let rest = replicas.filter(|node| Some(*node) != first);
        first.into_iter().chain(rest).filter_map(|node| self.address_of(node)).collect()
    }

    /// Where a node listens.
    pub fn address_of(&self, node: NodeId) -> Option<Address> {
        self.cluster.nodes.get(&node)?.client_address.parse().ok()
    }
}

fn shard_entry(shard: &proto::ShardStatus) -> Result<ShardEntry, ShardMapError> {
    let mut slots = Vec::with_capacity(shard.slots.len());
    for range in &shard.slots {
        let (first, last) = (u16::try_from(range.first), u16::try_from(range.last));
        let parsed = first.ok().zip(last.ok()).and_then(|(first, last)| SlotRange::new(first, last));
        slots.push(parsed.ok_or(ShardMapError::SlotRange {
            shard: shard.shard_id,
            first: range.first,
            last: range.last,
        })?);
    }
    let replicas = shard.replicas.iter().map(|placement| ReplicaPlacement {
        replica: ReplicaId(placement.replica_id),
        node: NodeId(placement.node_id),
    });
    Ok(ShardEntry {
        group: GroupId(shard.group_id),
        slots,
        replicas: replicas.collect(),
        preferred_leader: None,
    })
}

fn node_entry(node: proto::NodeInfo) -> NodeEntry {
    let state = match node.state() {
        // A client that is older than the state treats the node as one that may serve.
        proto::NodeState::Unspecified | proto::NodeState::Active => NodeState::Active,
        proto::NodeState::Joining => NodeState::Joining,
        proto::NodeState::Draining => NodeState::Draining,
        proto::NodeState::Drained => NodeState::Drained,
        proto::NodeState::Lost => NodeState::Lost,
        proto::NodeState::Removed => NodeState::Removed,
    };
    NodeEntry {
        name: node.name,
        client_address: node.client_address,
        peer_address: node.peer_address,
        zone: node.zone,
        version: node.version,
        state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> ShardMap {
        let node = |id: u64| proto::NodeInfo {
            node_id: id,
            client_address: format!("10.0.0.{id}:50051"),
            ..Default::default()
        };
        let shard = |id: u32, first: u32, last: u32, leader: u64| proto::ShardStatus {
            shard_id: id,
            leader_node_id: leader,
            slots: vec![proto::SlotRange { first, last }],
            replicas: (1..=3)
                .map(|node| proto::ReplicaPlacement { replica_id: node, node_id: node, voter: true })
                .collect(),
            ..Default::default()
        };
        ShardMap::from_proto(proto::ShardMap {
            epoch: 4,
            slot_count: 4096,
            nodes: (1..=3).map(node).collect(),
            shards: vec![shard(1, 0, 2047, 2), shard(2, 2048, 4095, 0)],
            ..Default::default()
        })
        .unwrap()
    }

    fn addresses(map: &ShardMap, slot: u16) -> Vec<String> {
        map.addresses_of(Slot::new(slot).unwrap()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_leader_is_asked_first_and_then_the_other_replicas() {
        assert_eq!(addresses(&map(), 2047), ["10.0.0.2:50051", "10.0.0.1:50051", "10.0.0.3:50051"]);
        assert_eq!(addresses(&map(), 2048), ["10.0.0.1:50051", "10.0.0.2:50051", "10.0.0.3:50051"]);
    }

    #[test]
    fn a_map_with_other_slots_is_refused() {
        let other = proto::ShardMap { slot_count: 1024, ..Default::default() };
        assert_eq!(ShardMap::from_proto(other), Err(ShardMapError::SlotCount(1024)));
        let bad = proto::ShardStatus {
            slots: vec![proto::SlotRange { first: 9, last: 70_000 }],
            ..Default::default()
        };
        let other = proto::ShardMap { slot_count: 4096, shards: vec![bad], ..Default::default() };
        assert!(ShardMap::from_proto(other).is_err());
    }
}
