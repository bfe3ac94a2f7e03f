//! Nodes and shards as the next move finds them: what must leave where it is, and where what is to come is best put.

use std::collections::{BTreeMap, BTreeSet};

use super::{Held, Host, Shard, Why};
use crate::{
    NodeId, ShardId,
    board::Board,
    map::NodeState,
    placement::{Candidate, Placement},
};

pub(super) struct Scene<'a> {
    hosts: BTreeMap<NodeId, &'a Host>,
    candidates: Vec<Candidate>,
    shards: &'a [Shard],
}

impl<'a> Scene<'a> {
    pub fn new(hosts: &'a [Host], shards: &'a [Shard]) -> Self {
        let candidates =
            hosts.iter().map(|host| Candidate { node: host.node, zone: host.zone.clone() }).collect();
        Self { hosts: hosts.iter().map(|host| (host.node, host)).collect(), candidates, shards }
    }

    pub fn host(&self, node: NodeId) -> Option<&'a Host> {
        self.hosts.get(&node).copied()
    }

    /// Empty: unknown, a zone like any other.
    pub fn zone_of(&self, node: NodeId) -> &'a str {
        self.host(node).map_or("", |host| host.zone.as_str())
    }

    /// Why a replica must leave. A node that nobody knows is as good as removed.
    pub fn wish(&self, held: &Held) -> Option<Why> {
        match self.host(held.node).map_or(NodeState::Removed, |host| host.state) {
            NodeState::Removed => Some(Why::Removed),
            NodeState::Lost => Some(Why::Lost),
            NodeState::Joining | NodeState::Active | NodeState::Draining | NodeState::Drained
                if !held.fit =>
            {
                Some(Why::Damaged)
            }
            NodeState::Draining | NodeState::Drained => Some(Why::Drain),
            NodeState::Joining | NodeState::Active => None,
        }
    }

    /// Whether a replica can do its part now: it is fit, and its node is there and not given up.
    pub fn is_sound(&self, held: &Held) -> bool {
        held.fit && self.host(held.node).is_some_and(|host| host.there) && !self.is_dead(held.node)
    }

    /// Whether nothing can leave the node: it is lost or removed.
    pub fn is_dead(&self, node: NodeId) -> bool {
        self.host(node).is_none_or(|host| match host.state {
            NodeState::Lost | NodeState::Removed => true,
            NodeState::Joining | NodeState::Active | NodeState::Draining | NodeState::Drained => false,
        })
    }

    /// Whether the node takes new replicas.
    pub fn takes(&self, node: NodeId) -> bool {
        self.host(node).is_some_and(|host| host.state.takes_replicas() && host.there && host.has_room)
    }

    /// Whether some node could take one more replica of the shard.
    pub fn has_goal(&self, shard: &Shard) -> bool {
        let touched = touched(shard);
        self.hosts.keys().any(|node| self.takes(*node) && !touched.contains(node))
    }

    /// The replicas that stay where they are, of meta or of the data shards. What must leave still keeps others of its shard
    /// off its node.
    pub fn board(&self, meta: bool) -> Board<'_> {
        let shards = || self.shards.iter().filter(|shard| shard.id.is_meta() == meta);
        let stays = |held: &&Held| self.wish(held).is_none();
        let holders = |shard: &Shard| shard.held.iter().filter(stays).map(|held| held.node).collect();
        let existing: Placement = shards().map(|shard| (shard.id, holders(shard))).collect();
        let mut board = Board::new(existing.keys().copied(), &self.candidates, &existing);
        board.close(self.hosts.keys().copied().filter(|node| !self.takes(*node)));
        for shard in shards() {
            for node in touched(shard) {
                board.bar(shard.id, node);
            }
        }
        board
    }

    /// Where so many more replicas of each shard are best put, as many as there are nodes for. The first shards choose first;
    /// of the nodes of a shard the one that holds least comes first.
    ///
    /// What was put is shifted until the loads are as even as they get: a shard that chose late may have found nothing but
    /// full nodes.
    pub fn goals(&self, wanted: &[(&Shard, usize)]) -> BTreeMap<ShardId, Vec<NodeId>> {
        let mut goals = BTreeMap::new();
        for meta in [true, false] {
            let mut board = self.board(meta);
            let mut put: BTreeSet<(ShardId, NodeId)> = BTreeSet::new();
            let wanted = || wanted.iter().filter(|(shard, _)| shard.id.is_meta() == meta);
            for (shard, count) in wanted() {
                put.extend((0..*count).map_while(|_| Some((shard.id, board.add(shard.id)?))));
            }
            board.settle(&mut put);
            let mut board = self.board(meta);
            for (shard, _) in wanted() {
                let nodes = put.iter().filter(|(id, _)| *id == shard.id).map(|(_, node)| *node);
                let mut nodes: Vec<NodeId> = nodes.collect();
                nodes.sort_by_key(|node| (board.load(*node), *node));
                if let Some(first) = nodes.first() {
                    board.give(shard.id, *first);
                }
                goals.insert(shard.id, nodes);
            }
        }
        goals
    }
}

/// The nodes that hold the shard, or will, or did until its move began.
fn touched(shard: &Shard) -> BTreeSet<NodeId> {
    let held = shard.held.iter().map(|held| held.node);
    held.chain(shard.moving.into_iter().flat_map(|(from, to)| [from, to])).collect()
}
