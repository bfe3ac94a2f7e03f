//! Shards on nodes, while they are being placed: what is counted, and which replica is best given where.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use crate::{
    NodeId, ShardId,
    placement::{Candidate, Placement},
    relief::relieving_path,
};

/// Shards on nodes, while they are being placed.
#[derive(Clone)]
pub(crate) struct Board<'a> {
    zones: BTreeMap<NodeId, &'a str>,
    /// Nodes that take nothing more.
    closed: BTreeSet<NodeId>,
    /// Nodes that take no replica of a shard.
    barred: BTreeSet<(ShardId, NodeId)>,
    loads: BTreeMap<NodeId, usize>,
    holders: Placement,
}

/// A replica that could go elsewhere, and what that is worth: better zones first, then a greater difference of loads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shift {
    /// By how many more the old zone holds of the shard than the new one will.
    pub zone_gain: usize,
    /// By how many more the old node holds than the new one will.
    pub load_gain: usize,
    // Lower ids win ties, hence reversed.
    choice: Reverse<(ShardId, NodeId, NodeId)>,
}

impl Shift {
    pub fn shard(&self) -> ShardId {
        self.choice.0.0
    }

    pub fn from(&self) -> NodeId {
        self.choice.0.1
    }

    pub fn to(&self) -> NodeId {
        self.choice.0.2
    }
}

impl<'a> Board<'a> {
    pub fn new(
        shards: impl IntoIterator<Item = ShardId>,
        candidates: &'a [Candidate],
        existing: &Placement,
    ) -> Self {
        let zones: BTreeMap<NodeId, &str> =
            candidates.iter().map(|candidate| (candidate.node, candidate.zone.as_str())).collect();
        let mut loads: BTreeMap<NodeId, usize> = zones.keys().map(|node| (*node, 0)).collect();
        let kept = |shard: &ShardId| -> BTreeSet<NodeId> {
            existing
                .get(shard)
                .into_iter()
                .flatten()
                .copied()
                .filter(|node| zones.contains_key(node))
                .collect()
        };
        let holders: Placement = shards.into_iter().map(|shard| (shard, kept(&shard))).collect();
        for node in holders.values().flatten() {
            *loads.entry(*node).or_default() += 1;
        }
        Self { zones, closed: BTreeSet::new(), barred: BTreeSet::new(), loads, holders }
    }

    /// Lets `nodes` keep what they have and take nothing more.
    pub fn close(&mut self, nodes: impl IntoIterator<Item = NodeId>) {
        self.closed.extend(nodes);
    }

    /// Lets the node take no replica of the shard.
    pub fn bar(&mut self, shard: ShardId, node: NodeId) {
        self.barred.insert((shard, node));
    }

    /// The nodes that hold each shard.
    pub fn holders(&self) -> &Placement {
        &self.holders
    }

    /// The same, when nothing else is to be done.
    pub fn into_holders(self) -> Placement {
        self.holders
    }

    /// How many replicas of a shard held by `holders` are in the zone of `node`.
    fn in_zone_of(&self, node: NodeId, holders: &BTreeSet<NodeId>) -> usize {
        holders.iter().filter(|holder| self.zones[*holder] == self.zones[&node]).count()
    }

    /// How many replicas the node holds.
    pub fn load(&self, node: NodeId) -> usize {
        self.loads.get(&node).copied().unwrap_or_default()
    }

    /// Puts a replica of the shard there.
    pub fn give(&mut self, shard: ShardId, node: NodeId) {
        self.holders.entry(shard).or_default().insert(node);
        *self.loads.entry(node).or_default() += 1;
    }

    fn take(&mut self, shard: ShardId, node: NodeId) {
        self.holders.entry(shard).or_default().remove(&node);
        *self.loads.entry(node).or_default() -= 1;
    }

    /// Takes surplus replicas away: from the zone with most of the shard, there from the most loaded node.
    pub fn trim(&mut self, replicas: usize) {
        for shard in self.holders.keys().copied().collect::<Vec<_>>() {
            while self.holders[&shard].len() > replicas {
                let holders = &self.holders[&shard];
                let surplus = holders
                    .iter()
                    .max_by_key(|node| (self.in_zone_of(**node, holders), self.loads[*node], **node));
                let Some(node) = surplus.copied() else { break };
                self.take(shard, node);
            }
        }
    }

    /// Gives each shard its missing replicas.
    pub fn fill(&mut self, replicas: usize) {
        for shard in self.holders.keys().copied().collect::<Vec<_>>() {
            while self.holders[&shard].len() < replicas && self.add(shard).is_some() {}
        }
    }

    /// Gives a shard one more replica: in the zone with fewest of it, there on the least loaded node. `None`: no node takes it.
    pub fn add(&mut self, shard: ShardId) -> Option<NodeId> {
        let holders = self.holders.get(&shard)?;
        let free = self.takers(shard, holders);
        let best = free.min_by_key(|node| (self.in_zone_of(*node, holders), self.loads[node], *node))?;
        self.give(shard, best);
        Some(best)
    }

    /// Nodes that may take a replica of a shard held by `holders`.
    fn takers(&self, shard: ShardId, holders: &BTreeSet<NodeId>) -> impl Iterator<Item = NodeId> {
        self.zones.keys().copied().filter(move |node| {
            !holders.contains(node) && !self.closed.contains(node) && !self.barred.contains(&(shard, *node))
        })
    }

    /// Moves replicas while that spreads a shard better over zones, or loads better over nodes at no cost in zones.
    ///
    /// Ends: each shift lowers (sum of squared zone counts, sum of squared loads).
    pub fn balance(&mut self) {
        while let Some(shift) = self.best_shift(|_| true) {
            self.take_shift(&shift);
        }
    }

    /// Moves the replica.
    pub fn take_shift(&mut self, shift: &Shift) {
        self.take(shift.shard(), shift.from());
        self.give(shift.shard(), shift.to());
    }

    /// The most worthwhile of the shifts that are worth something and that `accept` takes.
    pub fn best_shift(&self, accept: impl Fn(&Shift) -> bool) -> Option<Shift> {
        let mut best: Option<Shift> = None;
        for (shard, holders) in &self.holders {
            for from in holders {
                let worth = |shift: &Shift| shift.zone_gain > 0 || shift.load_gain > 0;
                for shift in self.shifts(*shard, *from).filter(worth) {
                    if Some(shift) > best && accept(&shift) {
                        best = Some(shift);
                    }
                }
            }
        }
        best
    }

    /// Where the replica could go without making its shard's spread over zones worse.
    fn shifts(&self, shard: ShardId, from: NodeId) -> impl Iterator<Item = Shift> {
        let holders = &self.holders[&shard];
        let from_count = self.in_zone_of(from, holders);
        self.takers(shard, holders).filter_map(move |to| {
            // Counted as it would be after the shift.
            let same_zone = self.zones[&from] == self.zones[&to];
            let to_count = self.in_zone_of(to, holders) + usize::from(!same_zone);
            let zone_gain = from_count.checked_sub(to_count)?;
            let load_gain = self.loads[&from].saturating_sub(self.loads[&to] + 1);
            Some(Shift { zone_gain, load_gain, choice: Reverse((shard, from, to)) })
        })
    }

    /// Shifts the replicas `put` until they are spread as well over zones, and then as evenly over nodes, as they can be.
    ///
    /// Ends: each round lowers (sum of squared zone counts, sum of squared loads).
    pub fn settle(&mut self, put: &mut BTreeSet<(ShardId, NodeId)>) {
        loop {
            let best = self.best_shift(|shift| put.contains(&(shift.shard(), shift.from())));
            let shifts = best.map(|shift| vec![shift]).or_else(|| self.relieving_shifts(put));
            let Some(shifts) = shifts else { return };
            for shift in shifts {
                self.take_shift(&shift);
                put.remove(&(shift.shard(), shift.from()));
                put.insert((shift.shard(), shift.to()));
            }
        }
    }

    /// Shifts that are worth something only together, at most one of a shard.
    fn relieving_shifts(&self, put: &BTreeSet<(ShardId, NodeId)>) -> Option<Vec<Shift>> {
        let ways = |node: NodeId| {
            let there = put.iter().filter(|(_, at)| *at == node);
            there.flat_map(|(shard, _)| self.shifts(*shard, node)).map(|shift| (shift, shift.to())).collect()
        };
        let path = relieving_path(&self.loads, ways)?;
        let shifts: Vec<Shift> = path.into_iter().map(|(shift, _)| shift).collect();
        let shards: BTreeSet<ShardId> = shifts.iter().map(Shift::shard).collect();
        (shards.len() == shifts.len()).then_some(shifts)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// So moves can begin a few at a time, and the next ones be planned anew when these are over.
        #[test]
        fn some_shift_towards_the_even_placement_is_worth_something_by_itself(
            zones in proptest::collection::vec(0_u8..4, 1..10),
            held in proptest::collection::vec(proptest::collection::btree_set(1_u64..10, 0..6), 0..24),
            closed in proptest::collection::btree_set((1_u64..10).prop_map(NodeId), 0..3),
        ) {
            let candidates: Vec<Candidate> = (1..)
                .zip(zones)
                .map(|(node, zone)| Candidate { node: NodeId(node), zone: format!("z{zone}") })
                .collect();
            let existing: Placement = (1..)
                .zip(held)
                .map(|(shard, nodes)| (ShardId(shard), nodes.into_iter().map(NodeId).collect()))
                .collect();
            let mut board = Board::new(existing.keys().copied(), &candidates, &existing);
            board.close(closed);
            let mut even = board.clone();
            even.balance();
            let leads_there = |shift: &Shift| {
                let holders = &even.holders()[&shift.shard()];
                !holders.contains(&shift.from()) && holders.contains(&shift.to())
            };
            prop_assert_eq!(board.best_shift(leads_there).is_none(), even.holders() == board.holders());
        }
    }
}
