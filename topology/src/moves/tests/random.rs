//! Clusters to which anything happens between any two steps. The model checks each plan; here is what must come of it.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::model::{Group, World};
use crate::{
    NodeId, ReplicaId,
    map::{NodeState, ReplicaPlacement},
    moves::{gains, next_moves, surplus},
    quorum::odd_voters,
};

/// What may happen. Numbers choose among what there is, round and round.
#[derive(Clone, Debug)]
enum Event {
    /// Rounds of the controller; in each a step is left out where the bits say so.
    Rounds(u8, u64),
    Silence(usize),
    Wake(usize),
    /// A silent node has been silent for too long.
    Lose(usize),
    /// A node will never come back.
    Remove(usize),
    Join(u8),
    Drain(usize),
    Undrain(usize),
    Fill(usize),
    Clear(usize),
    Damage(usize, usize),
    Label(usize, u8),
    Factor(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let node = 0_usize..16;
    prop_oneof![
        8 => (1_u8..5, any::<u64>()).prop_map(|(rounds, bits)| Event::Rounds(rounds, bits)),
        2 => node.clone().prop_map(Event::Silence),
        2 => node.clone().prop_map(Event::Wake),
        2 => node.clone().prop_map(Event::Lose),
        1 => node.clone().prop_map(Event::Remove),
        2 => (0_u8..4).prop_map(Event::Join),
        2 => node.clone().prop_map(Event::Drain),
        1 => node.clone().prop_map(Event::Undrain),
        1 => node.clone().prop_map(Event::Fill),
        1 => node.clone().prop_map(Event::Clear),
        2 => (0_usize..8, node.clone()).prop_map(|(shard, replica)| Event::Damage(shard, replica)),
        1 => (node, 0_u8..4).prop_map(|(node, zone)| Event::Label(node, zone)),
        1 => prop::sample::select(vec![1_usize, 3, 5]).prop_map(Event::Factor),
    ]
}

impl World {
    fn nth(&self, number: usize, state: impl Fn(NodeState) -> bool) -> Option<NodeId> {
        let nodes: Vec<NodeId> =
            self.hosts.iter().filter(|host| state(host.state)).map(|host| host.node).collect();
        nodes.get(number % nodes.len().max(1)).copied()
    }

    fn happen(&mut self, event: &Event) {
        let member = |state: NodeState| state != NodeState::Removed;
        self.text += &format!("> {event:?}\n");
        match *event {
            Event::Rounds(rounds, mut bits) => {
                for _ in 0..rounds {
                    self.round(&mut || {
                        bits = bits.rotate_left(7).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
                        bits >> 62 == 0
                    });
                }
            }
            Event::Silence(number) => self.change(number, member, |world, node| {
                world.host(node).there = false;
            }),
            Event::Wake(number) => self.change(number, member, Self::wake),
            Event::Lose(number) => self.change(number, member, |world, node| {
                if !world.host(node).there {
                    world.host(node).state = NodeState::Lost;
                }
            }),
            Event::Remove(number) => self.change(number, member, |world, node| {
                let before = world.clone();
                world.host(node).state = NodeState::Removed;
                world.host(node).there = false;
                world.unless_a_quorum_is_lost(before);
            }),
            Event::Join(zone) if self.hosts.len() < 12 => {
                self.add_node(&format!("z{zone}"));
            }
            Event::Join(_) => {}
            Event::Drain(number) => self.change(number, member, |world, node| {
                world.drain(node);
            }),
            Event::Undrain(number) => {
                let drains = |state| matches!(state, NodeState::Draining | NodeState::Drained);
                self.change(number, drains, |world, node| world.host(node).state = NodeState::Active);
            }
            Event::Fill(number) => {
                self.change(number, member, |world, node| world.host(node).has_room = false);
            }
            Event::Clear(number) => {
                self.change(number, member, |world, node| world.host(node).has_room = true);
            }
            Event::Damage(shard, replica) => self.damage(shard, replica),
            Event::Label(number, zone) => self.change(number, member, |world, node| {
                world.host(node).zone = format!("z{zone}");
            }),
            Event::Factor(factor) => {
                if factor <= self.factor || factor <= self.in_state(NodeState::Active).count() {
                    self.factor = factor;
                }
            }
        }
    }

    fn change(&mut self, number: usize, of: impl Fn(NodeState) -> bool, change: impl Fn(&mut Self, NodeId)) {
        if let Some(node) = self.nth(number, of) {
            change(self, node);
        }
    }

    fn wake(&mut self, node: NodeId) {
        let host = self.host(node);
        host.there = true;
        if host.state == NodeState::Lost {
            host.state = NodeState::Active;
        }
    }

    fn damage(&mut self, shard: usize, replica: usize) {
        let before = self.clone();
        let count = self.groups.len();
        let Some(group) = self.groups.values_mut().nth(shard % count) else { return };
        let Some(placed) = group.placements.get(replica % group.placements.len().max(1)) else { return };
        group.unfit.insert(placed.replica);
        self.unless_a_quorum_is_lost(before);
    }

    /// Goes back to before when some group could never decide again: of that one nothing can be asked.
    fn unless_a_quorum_is_lost(&mut self, before: Self) {
        let lives = |group: &Group, voter: ReplicaId| {
            let placed = group.placements.iter().find(|placed| placed.replica == voter);
            let removed = |placed: &ReplicaPlacement| {
                self.hosts.iter().any(|host| host.node == placed.node && host.state == NodeState::Removed)
            };
            group.caught_up.contains(&voter)
                && !group.unfit.contains(&voter)
                && placed.is_some_and(|placed| !removed(placed))
        };
        let decides = |group: &Group| group.membership.has_quorum(|voter| lives(group, voter));
        if !self.groups.values().all(decides) {
            *self = before;
        }
    }

    /// Everybody who can come back does.
    fn calm_down(&mut self) {
        for node in self.hosts.iter().map(|host| host.node).collect::<Vec<_>>() {
            if self.host(node).state != NodeState::Removed {
                self.wake(node);
            }
        }
    }

    /// At rest nothing is planned, moves, or is surplus, and every shard has what the nodes allow.
    fn check_rest(&self) {
        let shards = self.shards();
        assert_eq!(next_moves(&self.hosts, &shards, self.limits), []);
        assert!(gains(&self.hosts, &shards).is_empty());
        let usable: Vec<NodeId> = self.in_state(NodeState::Active).collect();
        let roomy = |node: &NodeId| self.hosts.iter().any(|host| host.node == *node && host.has_room);
        let full = !usable.iter().all(roomy);
        for shard in &shards {
            let group = &self.groups[&shard.id];
            assert!(surplus(&self.hosts, shard).is_empty(), "{shard:?}");
            assert_eq!(group.moving, None, "{}", self.text);
            assert!(!group.membership.is_joint());
            let good = shard.held.iter().filter(|held| held.fit && usable.contains(&held.node)).count();
            if full {
                continue;
            }
            // Data shards of nodes that drain or are gone stay when there are fewer nodes than replicas.
            let wished = shard.factor.min(usable.len());
            assert_eq!(good, wished, "{shard:?} in {:?}\n{}", self.hosts, self.text);
            let voters = group.membership.goal().map_or(0, BTreeSet::len);
            assert!(voters >= odd_voters(wished, shard.factor), "{group:?}");
            if usable.len() >= shard.factor {
                assert_eq!(shard.held.len(), wished, "{shard:?}");
            }
            // Of an even number a dead voter may be left over, which nobody can take the place of.
            if usable.len() >= shard.factor && wished % 2 == 1 {
                assert_eq!(voters, odd_voters(wished, shard.factor), "{group:?}");
                assert_eq!(group.membership.all_voters().len() + group.membership.learners.len(), wished);
            }
        }
        if !full && usable.len() >= self.factor {
            assert!(self.in_state(NodeState::Draining).next().is_none(), "{:?}", self.hosts);
            self.check_spread(&usable);
        }
    }

    /// Within a zone the loads of two nodes differ by at most one; so they do over all when there are no zones.
    fn check_spread(&self, usable: &[NodeId]) {
        for meta in [true, false] {
            let load = |node: &NodeId| {
                let groups = self.groups.iter().filter(|(id, _)| id.is_meta() == meta);
                groups.filter(|(_, group)| group.placements.iter().any(|placed| placed.node == *node)).count()
            };
            let zone = |node: &NodeId| &self.hosts.iter().find(|host| host.node == *node).unwrap().zone;
            for a in usable {
                for b in usable.iter().filter(|b| zone(b) == zone(a)) {
                    assert!(load(a) <= load(b) + 1, "{a} and {b} of {:?}\n{}", self.hosts, self.text);
                }
            }
        }
    }
}

proptest! {
    /// Whatever happens, nothing unsafe is planned; when it ends, everything is in its place and nothing is planned.
    #[test]
    fn after_anything_the_cluster_comes_to_rest_and_is_whole(
        nodes in 1_usize..8,
        zones in proptest::collection::vec(0_u8..3, 8),
        shards in 0_u32..8,
        factor in prop::sample::select(vec![1_usize, 3, 5]),
        at_once in 1_usize..6,
        per_node in 1_usize..3,
        events in proptest::collection::vec(event(), 0..40),
    ) {
        let zones: Vec<String> = zones.into_iter().take(nodes).map(|zone| format!("z{zone}")).collect();
        let zones: Vec<&str> = zones.iter().map(String::as_str).collect();
        let mut world = World::new(&zones, shards, factor.min(nodes - (nodes + 1) % 2));
        world.limits.at_once = at_once;
        world.limits.per_node = per_node;
        for event in &events {
            world.happen(event);
        }
        world.calm_down();
        world.settle();
        world.check_rest();
        let before = world.groups.clone();
        world.settle();
        prop_assert_eq!(before, world.groups, "it stays at rest");
    }
}
