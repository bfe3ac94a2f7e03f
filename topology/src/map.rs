//! The cluster as a node or client last heard of it: who is in it, which shard owns which slots, where its
//! replicas are.
//!
//! Placement in it is a hint: the groups themselves know who owns a slot and who leads.

use std::collections::BTreeMap;

use crate::{
    GroupId, NodeId, ReplicaId, ShardId,
    slot::{Slot, SlotRange},
};

/// A node's place in its life; see the membership chapter of the design.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeState {
    /// Registered, and not yet heard of by the meta leader.
    Joining,
    /// Takes replicas.
    Active,
    /// Its replicas are being moved away; it serves until then.
    Draining,
    /// Hosts nothing and takes nothing.
    Drained,
    /// Silent for longer than the grace time.
    Lost,
    /// No longer part of the cluster.
    Removed,
}

/// The registry's entry of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEntry {
    /// Begins with a letter; in Kubernetes the pod's.
    pub name: String,
    /// HOST:PORT of the client API.
    pub client_address: String,
    /// HOST:PORT of the peer streams.
    pub peer_address: String,
    /// Empty: unknown.
    pub zone: String,
    /// Version of kvnode.
    pub version: String,
    /// Where in its life it is.
    pub state: NodeState,
}

/// A replica on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReplicaPlacement {
    /// The replica.
    pub replica: ReplicaId,
    /// Where it lives.
    pub node: NodeId,
}

/// A shard: its slots, its group, its replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardEntry {
    /// The Raft group that holds its data now.
    pub group: GroupId,
    /// Ordered, disjoint. Empty for meta.
    pub slots: Vec<SlotRange>,
    /// Voters and learners alike.
    pub replicas: Vec<ReplicaPlacement>,
    /// Who should lead, for an even spread of leaders. `None`: anyone.
    pub preferred_leader: Option<NodeId>,
}

impl ShardEntry {
    /// The replica of this shard on `node`.
    pub fn replica_on(&self, node: NodeId) -> Option<ReplicaId> {
        self.replicas.iter().find(|placement| placement.node == node).map(|placement| placement.replica)
    }

    /// Where `replica` lives.
    pub fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.replicas.iter().find(|placement| placement.replica == replica).map(|placement| placement.node)
    }
}

/// Nodes and shards at one epoch. The epoch grows with every change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterMap {
    /// Minted at bootstrap.
    pub cluster_id: String,
    /// 0: nothing is known yet.
    pub epoch: u64,
    /// Wished number of voters of a data shard: 1, 3, 5 or 7.
    pub replication_factor: u32,
    /// All nodes ever registered, removed ones included.
    pub nodes: BTreeMap<NodeId, NodeEntry>,
    /// Meta (shard 0) and the data shards.
    pub shards: BTreeMap<ShardId, ShardEntry>,
}

impl ClusterMap {
    /// The shard that owns `slot`; `None` before the data shards were created.
    pub fn shard_of(&self, slot: Slot) -> Option<ShardId> {
        self.shards
            .iter()
            .find(|(_, shard)| shard.slots.iter().any(|range| range.contains(slot)))
            .map(|(id, _)| *id)
    }
}
