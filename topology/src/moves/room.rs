//! How many more moves may begin, in all and at each node.

use std::collections::BTreeMap;

use super::{Limits, Shard, scene::Scene};
use crate::NodeId;

pub(super) struct Room {
    limits: Limits,
    under_way: usize,
    at: BTreeMap<NodeId, usize>,
}

impl Room {
    /// What the moves under way leave.
    pub fn new(limits: Limits, scene: &Scene<'_>, shards: &[Shard]) -> Self {
        let mut room = Self { limits, under_way: 0, at: BTreeMap::new() };
        for (from, to) in shards.iter().filter_map(|shard| shard.moving) {
            room.take(scene, from, to);
        }
        room
    }

    /// Whether a move from the one node to the other may begin.
    pub fn allows(&self, scene: &Scene<'_>, from: NodeId, to: NodeId) -> bool {
        let free = |node: NodeId| self.at.get(&node).is_none_or(|count| *count < self.limits.per_node);
        self.under_way < self.limits.at_once && nodes_of(scene, from, to).all(free)
    }

    /// Counts such a move.
    pub fn take(&mut self, scene: &Scene<'_>, from: NodeId, to: NodeId) {
        self.under_way += 1;
        for node in nodes_of(scene, from, to) {
            *self.at.entry(node).or_default() += 1;
        }
    }
}

/// The nodes that a move keeps busy, each once.
fn nodes_of(scene: &Scene<'_>, from: NodeId, to: NodeId) -> impl Iterator<Item = NodeId> {
    let from = (from != to && !scene.is_dead(from)).then_some(from);
    from.into_iter().chain([to])
}
