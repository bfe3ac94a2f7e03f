//! No replica moves that need not.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::model::{World, n};
use crate::{NodeId, map::NodeState, moves::Why};

impl World {
    fn loads(&self, meta: bool) -> BTreeMap<NodeId, usize> {
        let mut loads: BTreeMap<NodeId, usize> =
            self.in_state(NodeState::Active).map(|node| (node, 0)).collect();
        for (_, group) in self.groups.iter().filter(|(id, _)| id.is_meta() == meta) {
            for placed in &group.placements {
                *loads.entry(placed.node).or_default() += 1;
            }
        }
        loads
    }

    /// The least number of replicas that must move until loads differ by at most one.
    fn excess(&self) -> usize {
        let excess = |meta| {
            let mut loads: Vec<usize> = self.loads(meta).into_values().collect();
            loads.sort_unstable_by_key(|load| std::cmp::Reverse(*load));
            let (all, nodes) = (loads.iter().sum::<usize>(), loads.len().max(1));
            let even = |at: usize| all / nodes + usize::from(at < all % nodes);
            loads.iter().enumerate().map(|(at, load)| load.saturating_sub(even(at))).sum::<usize>()
        };
        excess(true) + excess(false)
    }

    fn begun_for(&self, why: Why) -> usize {
        self.begun.iter().filter(|begun| begun.why == why).count()
    }
}

proptest! {
    #[test]
    fn nodes_that_join_take_their_share_and_nothing_else_moves(
        nodes in 3_usize..7, join in 1_usize..4, shards in 0_u32..14, factor in prop::sample::select(vec![1_usize, 3]),
    ) {
        let mut world = World::new(&vec![""; nodes], shards, factor);
        for _ in 0..join {
            world.add_node("");
        }
        let least = world.excess();
        world.settle();
        prop_assert_eq!(world.begun.len(), least, "{}", world.text);
        prop_assert!(world.begun.iter().all(|begun| begun.to.0 > nodes as u64), "{}", world.text);
    }

    #[test]
    fn each_replica_leaves_a_draining_node_once(
        nodes in 4_usize..8, drained in 1_u64..8, shards in 0_u32..14, factor in prop::sample::select(vec![1_usize, 3]),
    ) {
        let mut world = World::new(&vec![""; nodes], shards, factor);
        let node = n((drained - 1) % nodes as u64 + 1);
        let held = world.held_by(node);
        prop_assert!(world.drain(node));
        world.settle();
        prop_assert_eq!(world.begun_for(Why::Drain), held);
        prop_assert_eq!(world.held_by(node), 0);
        // Some may find every node with room for them busy with their own shard, and land where it is fuller.
        prop_assert!(world.begun_for(Why::Balance) <= held, "{}", world.text);
        prop_assert_eq!(world.begun.len(), held + world.begun_for(Why::Balance));
    }

    #[test]
    fn each_replica_of_a_lost_node_is_rebuilt_once(
        nodes in 4_usize..8, lost in 1_u64..8, shards in 0_u32..14, removed in any::<bool>(),
    ) {
        let mut world = World::new(&vec![""; nodes], shards, 3);
        let node = n((lost - 1) % nodes as u64 + 1);
        let held = world.held_by(node);
        let (state, why) =
            if removed { (NodeState::Removed, Why::Removed) } else { (NodeState::Lost, Why::Lost) };
        world.host(node).there = false;
        world.settle();
        prop_assert_eq!(world.begun.len(), 0, "a node that is silent for a moment is no reason to move");
        world.host(node).state = state;
        world.settle();
        prop_assert_eq!(world.begun_for(why), held);
        prop_assert!(world.begun_for(Why::Balance) <= held, "{}", world.text);
    }

    #[test]
    fn what_a_cancelled_drain_has_moved_comes_back_only_as_far_as_loads_ask_for_it(
        nodes in 4_usize..8, shards in 1_u32..14, rounds in 0_usize..12,
    ) {
        let mut world = World::new(&vec![""; nodes], shards, 3);
        prop_assert!(world.drain(n(2)));
        for _ in 0..rounds {
            world.round(&mut || false);
        }
        let draining = world.begun_for(Why::Drain);
        world.host(n(2)).state = NodeState::Active;
        world.settle();
        prop_assert_eq!(world.begun_for(Why::Drain), draining, "a drain that is cancelled stops");
        prop_assert!(world.begun_for(Why::Balance) <= draining + 1, "{}", world.text);
    }

    #[test]
    fn a_higher_factor_moves_nothing_and_a_lower_one_little(
        nodes in 5_usize..8, shards in 0_u32..14, factors in proptest::collection::vec(prop::sample::select(vec![1_usize, 3, 5]), 1..4),
    ) {
        let mut world = World::new(&vec![""; nodes], shards, 3);
        for factor in factors {
            let grows = factor >= world.factor;
            world.factor = factor;
            world.begun.clear();
            world.settle();
            if grows {
                prop_assert_eq!(world.begun.len(), 0, "{}", world.text);
            }
            prop_assert!(world.begun.len() <= shards as usize, "{}", world.text);
        }
    }

    #[test]
    fn zones_move_one_replica_of_a_shard_for_each_zone_that_lacks_one(
        zones in Just(vec!["a", "a", "b", "b", "c", "c"]).prop_shuffle(), shards in 0_u32..14,
    ) {
        let mut world = World::new(&[""; 6], shards, 3);
        let crowded = |world: &World| -> usize {
            world.groups.values().map(|group| {
                let zone = |node: NodeId| &world.hosts.iter().find(|host| host.node == node).unwrap().zone;
                let mut zones: Vec<&String> = group.placements.iter().map(|placed| zone(placed.node)).collect();
                zones.sort();
                zones.dedup();
                3 - zones.len()
            }).sum()
        };
        for (node, zone) in (1..).zip(zones) {
            world.host(n(node)).zone = zone.to_owned();
        }
        let lacking = crowded(&world);
        world.settle();
        prop_assert_eq!(crowded(&world), 0);
        prop_assert_eq!(world.begun_for(Why::Zones), lacking);
        prop_assert!(world.begun_for(Why::Balance) <= shards as usize, "{}", world.text);
    }
}
