//! The cluster as a node or client last heard of it: who is in it, which shard owns which slots, where its
//! replicas are.
//!
//! Placement in it is a hint: the groups themselves know who owns a slot and who leads.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use thiserror::Error;

use crate::{GroupId, NodeId, ReplicaId, SLOT_COUNT, ShardId, Slot, SlotRange};

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

impl NodeState {
    /// Whether new replicas may be placed there.
    pub const fn takes_replicas(self) -> bool {
        matches!(self, Self::Active)
    }

    /// Whether the node is counted on: it is there or about to be, and neither leaves nor was given up.
    pub const fn stays(self) -> bool {
        match self {
            Self::Joining | Self::Active => true,
            Self::Draining | Self::Drained | Self::Lost | Self::Removed => false,
        }
    }

    /// Whether the node never comes back: what it held must be rebuilt elsewhere.
    pub const fn is_gone(self) -> bool {
        matches!(self, Self::Removed)
    }
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
    /// The node that a person calls `name`: a node's name (removed nodes excluded) or its id, as `3` or `#3`.
    ///
    /// A name wins over an id that looks the same.
    pub fn node_called(&self, name: &str) -> Option<NodeId> {
        let by_name = self.nodes.iter().find(|(_, node)| node.name == name && !node.state.is_gone());
        by_name.map(|(id, _)| *id).or_else(|| {
            let number = name.strip_prefix('#').unwrap_or(name).parse().ok()?;
            self.nodes.contains_key(&NodeId(number)).then_some(NodeId(number))
        })
    }

    /// The data shards, in order.
    pub fn data_shards(&self) -> impl Iterator<Item = (ShardId, &ShardEntry)> {
        self.shards.iter().filter(|(id, _)| !id.is_meta()).map(|(id, shard)| (*id, shard))
    }

    /// Checks what every map must be: see [`MapError`]. A map without data shards is whole.
    ///
    /// # Errors
    /// The first breach found.
    pub fn check(&self) -> Result<(), MapError> {
        let mut owners = vec![None; usize::from(SLOT_COUNT)];
        for (id, shard) in &self.shards {
            for slot in shard.slots.iter().flat_map(SlotRange::slots) {
                let owner = &mut owners[usize::from(slot.get())];
                if let Some(other) = owner.replace(*id) {
                    return Err(MapError::SlotOwnedTwice { slot, first: other, second: *id });
                }
            }
            let mut nodes = BTreeSet::new();
            for placement in &shard.replicas {
                if !nodes.insert(placement.node) {
                    return Err(MapError::TwoReplicasOnANode { shard: *id, node: placement.node });
                }
                if !self.nodes.contains_key(&placement.node) {
                    return Err(MapError::UnknownNode { shard: *id, node: placement.node });
                }
            }
        }
        if self.data_shards().next().is_none() {
            return Ok(());
        }
        match (0..SLOT_COUNT).filter_map(Slot::new).find(|slot| owners[usize::from(slot.get())].is_none()) {
            Some(slot) => Err(MapError::SlotWithoutOwner { slot }),
            None => Ok(()),
        }
    }
}

/// What a cluster map must never be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MapError {
    /// Two shards claim one slot.
    #[error("slot {slot} is owned by {first} and by {second}")]
    SlotOwnedTwice {
        /// The slot.
        slot: Slot,
        /// One owner.
        first: ShardId,
        /// The other.
        second: ShardId,
    },
    /// There are data shards, and none of them owns this slot.
    #[error("no shard owns slot {slot}")]
    SlotWithoutOwner {
        /// The slot.
        slot: Slot,
    },
    /// A shard has two replicas on one node.
    #[error("{shard} has two replicas on {node}")]
    TwoReplicasOnANode {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
    /// A replica lives on a node that the registry does not know.
    #[error("{shard} has a replica on {node}, which was never registered")]
    UnknownNode {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
}

/// The owner of every slot in one array: what a router looks at for each key.
///
/// Built once for a map. [`ClusterMap::shard_of`] gives the same answers by walking the shards.
#[derive(Clone, PartialEq, Eq)]
pub struct SlotTable(Box<[Option<ShardId>]>);

impl SlotTable {
    /// The table of `map`. Of two owners of one slot the lower shard id counts, as in [`ClusterMap::shard_of`].
    pub fn of(map: &ClusterMap) -> Self {
        let mut owners = vec![None; usize::from(SLOT_COUNT)].into_boxed_slice();
        for (id, shard) in &map.shards {
            for slot in shard.slots.iter().flat_map(SlotRange::slots) {
                owners[usize::from(slot.get())].get_or_insert(*id);
            }
        }
        Self(owners)
    }

    /// The shard that owns `slot`; `None` before the data shards were created.
    pub fn shard_of(&self, slot: Slot) -> Option<ShardId> {
        self.0[usize::from(slot.get())]
    }
}

impl fmt::Debug for SlotTable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "table of {} owned slots", self.0.iter().flatten().count())
    }
}

/// The map as text, a line for each node and shard: for golden files and logs.
impl fmt::Display for ClusterMap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster_id, epoch, replication_factor, nodes, shards } = self;
        writeln!(formatter, "cluster {cluster_id:?} epoch {epoch} replication factor {replication_factor}")?;
        for (id, node) in nodes {
            let NodeEntry { name, client_address, peer_address, zone, version, state } = node;
            write!(formatter, "node {id} {name} {state:?} client {client_address} peer {peer_address}")?;
            writeln!(formatter, " zone {zone:?} version {version:?}")?;
        }
        for (id, shard) in shards {
            let ShardEntry { group, slots, replicas, preferred_leader } = shard;
            write!(formatter, "shard {id} {group} slots")?;
            for range in slots {
                write!(formatter, " {range}")?;
            }
            write!(formatter, " replicas")?;
            for placement in replicas {
                let wished = if *preferred_leader == Some(placement.node) { "*" } else { "" };
                write!(formatter, " {}@{}{wished}", placement.replica, placement.node)?;
            }
            writeln!(formatter)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::slot::contiguous_runs;

    fn map(shards: u16) -> ClusterMap {
        let nodes = (1..=3).map(|number| {
            let entry = NodeEntry {
                name: format!("n{number}"),
                client_address: format!("host-{number}:50051"),
                peer_address: format!("host-{number}:50061"),
                zone: String::new(),
                version: "0.1.0".to_owned(),
                state: NodeState::Active,
            };
            (NodeId(number), entry)
        });
        let data = contiguous_runs(shards).into_iter().zip(1_u32..).map(|(range, number)| {
            let group = GroupId(u64::from(number));
            let replicas = (1..=3).map(|node| ReplicaPlacement {
                replica: ReplicaId(u64::from(number) * 3 - 3 + node),
                node: NodeId(node),
            });
            let preferred_leader = Some(NodeId(u64::from(number) % 3 + 1));
            let entry =
                ShardEntry { group, slots: vec![range], replicas: replicas.collect(), preferred_leader };
            (ShardId(number), entry)
        });
        ClusterMap {
            cluster_id: "c".to_owned(),
            epoch: 7,
            replication_factor: 3,
            nodes: nodes.collect(),
            shards: data.collect(),
        }
    }

    #[test]
    fn map_reads_as_text() {
        let expected = "\
cluster \"c\" epoch 7 replication factor 3
node #1 n1 Active client host-1:50051 peer host-1:50061 zone \"\" version \"0.1.0\"
node #2 n2 Active client host-2:50051 peer host-2:50061 zone \"\" version \"0.1.0\"
node #3 n3 Active client host-3:50051 peer host-3:50061 zone \"\" version \"0.1.0\"
shard s1 g1 slots 0-1365 replicas r1@#1 r2@#2* r3@#3
shard s2 g2 slots 1366-2730 replicas r4@#1 r5@#2 r6@#3*
shard s3 g3 slots 2731-4095 replicas r7@#1* r8@#2 r9@#3
";
        assert_eq!(map(3).to_string(), expected);
    }

    #[test]
    fn a_slot_without_owner_or_with_two_is_found() {
        let mut broken = map(3);
        broken.shards.get_mut(&ShardId(2)).unwrap().slots = vec![SlotRange::new(1365, 2730).unwrap()];
        let slot = Slot::new(1365).unwrap();
        let twice = MapError::SlotOwnedTwice { slot, first: ShardId(1), second: ShardId(2) };
        assert_eq!(broken.check(), Err(twice));
        broken.shards.remove(&ShardId(2));
        assert_eq!(broken.check(), Err(MapError::SlotWithoutOwner { slot: Slot::new(1366).unwrap() }));
        broken.shards.clear();
        assert_eq!(broken.check(), Ok(()), "before the data shards were created");
    }

    #[test]
    fn replicas_on_one_node_or_on_none_are_found() {
        let mut broken = map(3);
        broken.shards.get_mut(&ShardId(1)).unwrap().replicas[0].node = NodeId(2);
        let shard = ShardId(1);
        assert_eq!(broken.check(), Err(MapError::TwoReplicasOnANode { shard, node: NodeId(2) }));
        broken.shards.get_mut(&shard).unwrap().replicas[0].node = NodeId(9);
        assert_eq!(broken.check(), Err(MapError::UnknownNode { shard, node: NodeId(9) }));
    }

    #[test]
    fn a_node_is_called_by_name_or_id() {
        let mut map = map(1);
        map.nodes.get_mut(&NodeId(1)).unwrap().name = "n2".to_owned();
        map.nodes.get_mut(&NodeId(2)).unwrap().name = "data-1".to_owned();
        assert_eq!(map.node_called("n2"), Some(NodeId(1)), "a name wins");
        assert_eq!(map.node_called("data-1"), Some(NodeId(2)));
        assert_eq!(map.node_called("2"), Some(NodeId(2)));
        assert_eq!(map.node_called("#2"), Some(NodeId(2)));
        assert_eq!(map.node_called("4"), None);
        map.nodes.get_mut(&NodeId(1)).unwrap().state = NodeState::Removed;
        assert_eq!(map.node_called("n2"), None, "a removed node gives its name up, and a name is no id");
    }

    proptest! {
        #[test]
        fn table_and_map_agree_on_every_slot(shards in 0_u16..=256) {
            let map = map(shards);
            prop_assert_eq!(map.check(), Ok(()));
            let table = SlotTable::of(&map);
            for slot in (0..SLOT_COUNT).step_by(7).filter_map(Slot::new) {
                prop_assert_eq!(table.shard_of(slot), map.shard_of(slot));
                prop_assert_eq!(table.shard_of(slot).is_some(), shards > 0);
            }
        }
    }
}
