//! Which nodes hold a shard, and which of them leads it.
//!
//! The order of wishes: replicas of a shard on different nodes; then spread over zones; then nodes equally loaded;
//! then as few replicas moved as that takes. Leaders are spread on top of it. Every tie is broken by the lower id,
//! so the same arguments give the same placement everywhere.
//!
//! Two questions: [`place`] answers where everything should be when it is placed for the first time, [`spread_leaders`] who
//! should lead. From then on [`crate::moves`] says what moves, by the same order of wishes.

use std::collections::{BTreeMap, BTreeSet};

use crate::{NodeId, ShardId, board::Board, relief::relieving_path};

/// A node that may take replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Nodes of one zone may fail together. Empty: unknown, a zone like any other.
    pub zone: String,
}

/// The nodes that hold each shard.
pub type Placement = BTreeMap<ShardId, BTreeSet<NodeId>>;

/// Places `replicas` copies of each of `shards`, moving as little of `existing` as an even spread takes.
///
/// Guaranteed: never two replicas of a shard on a node; each shard has min(replicas, candidates) of them; the counts
/// of its replicas in two zones differ by at most one unless the emptier zone has no further node; within a zone the
/// loads of two nodes differ by at most one, so without zones over the whole cluster. What is already so stays.
pub fn place(
    shards: impl IntoIterator<Item = ShardId>,
    replicas: usize,
    candidates: &[Candidate],
    existing: &Placement,
) -> Placement {
    let mut board = Board::new(shards, candidates, existing);
    board.trim(replicas);
    board.fill(replicas);
    board.balance();
    board.into_holders()
}

/// A leader for each shard, among those who hold it, as even as it can be.
///
/// `existing` leaders that still hold their shard stay where an even spread allows it. A shard that nobody holds has
/// no leader. The spread is optimal (no other choice has a lower sum of squared loads): Harvey et al., Semi-matchings
/// for bipartite graphs, 2006.
pub fn spread_leaders(
    placement: &Placement,
    existing: &BTreeMap<ShardId, NodeId>,
) -> BTreeMap<ShardId, NodeId> {
    let mut leaders: BTreeMap<ShardId, NodeId> = existing
        .iter()
        .filter(|(shard, node)| placement.get(shard).is_some_and(|holders| holders.contains(node)))
        .map(|(shard, node)| (*shard, *node))
        .collect();
    let mut loads: BTreeMap<NodeId, usize> = placement.values().flatten().map(|node| (*node, 0)).collect();
    for leader in leaders.values() {
        *loads.entry(*leader).or_default() += 1;
    }
    for (shard, holders) in placement {
        if leaders.contains_key(shard) {
            continue;
        }
        if let Some(node) = holders.iter().min_by_key(|node| (loads[*node], **node)) {
            leaders.insert(*shard, *node);
            *loads.entry(*node).or_default() += 1;
        }
    }
    let hand_overs = |leaders: &BTreeMap<ShardId, NodeId>, node| {
        let led = leaders.iter().filter(|(_, leader)| **leader == node);
        led.flat_map(|(shard, _)| placement[shard].iter().map(|next| (*shard, *next))).collect()
    };
    while let Some(path) = relieving_path(&loads, |node| hand_overs(&leaders, node)) {
        for (shard, to) in path {
            if let Some(from) = leaders.insert(shard, to) {
                *loads.entry(from).or_default() -= 1;
            }
            *loads.entry(to).or_default() += 1;
        }
    }
    leaders
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates(zones: &[&str]) -> Vec<Candidate> {
        (1..)
            .zip(zones)
            .map(|(node, zone)| Candidate { node: NodeId(node), zone: (*zone).to_owned() })
            .collect()
    }

    fn shards(count: u32) -> impl Iterator<Item = ShardId> + Clone {
        (1..=count).map(ShardId)
    }

    fn loads(placement: &Placement, candidates: &[Candidate]) -> BTreeMap<NodeId, usize> {
        let load = |node| placement.values().filter(|holders| holders.contains(&node)).count();
        candidates.iter().map(|candidate| (candidate.node, load(candidate.node))).collect()
    }

    fn spread(counts: impl Iterator<Item = usize> + Clone) -> usize {
        counts.clone().max().unwrap_or(0) - counts.min().unwrap_or(0)
    }

    /// Replicas of `after` that `before` does not have.
    fn moved(before: &Placement, after: &Placement) -> Vec<(ShardId, NodeId)> {
        let all = after.iter().flat_map(|(shard, holders)| holders.iter().map(move |node| (*shard, *node)));
        all.filter(|(shard, node)| before.get(shard).is_none_or(|holders| !holders.contains(node))).collect()
    }

    fn text(placement: &Placement, leaders: &BTreeMap<ShardId, NodeId>) -> String {
        let line = |(shard, holders): (&ShardId, &BTreeSet<NodeId>)| {
            let mark = |node: &NodeId| if leaders.get(shard) == Some(node) { "*" } else { "" };
            let nodes: Vec<String> = holders.iter().map(|node| format!("{node}{}", mark(node))).collect();
            format!("{shard}: {}\n", nodes.join(" "))
        };
        placement.iter().map(line).collect()
    }

    fn placed(shard_count: u32, replicas: usize, zones: &[&str]) -> String {
        let placement = place(shards(shard_count), replicas, &candidates(zones), &Placement::new());
        text(&placement, &spread_leaders(&placement, &BTreeMap::new()))
    }

    #[test]
    fn golden_eight_shards_on_three_nodes() {
        let expected = "\
s1: #1* #2 #3
s2: #1 #2* #3
s3: #1 #2 #3*
s4: #1* #2 #3
s5: #1 #2* #3
s6: #1 #2 #3*
s7: #1* #2 #3
s8: #1 #2* #3
";
        assert_eq!(placed(8, 3, &["", "", ""]), expected);
    }

    #[test]
    fn golden_eight_shards_on_five_nodes() {
        assert_eq!(
            placed(8, 3, &["", "", "", "", ""]),
            include_str!("../golden/placement-8-shards-5-nodes.txt")
        );
    }

    #[test]
    fn golden_six_shards_over_three_uneven_zones() {
        let zones = ["a", "a", "a", "b", "b", "c"];
        assert_eq!(placed(6, 3, &zones), include_str!("../golden/placement-6-shards-3-zones.txt"));
    }

    #[test]
    fn fewer_nodes_than_replicas_hold_one_each() {
        assert_eq!(placed(2, 3, &[]), "s1: \ns2: \n");
        assert_eq!(placed(2, 3, &["", ""]), "s1: #1* #2\ns2: #1 #2*\n");
    }

    #[test]
    fn leaders_move_along_a_path_when_no_single_step_helps() {
        let holders = |nodes: [u64; 2]| nodes.into_iter().map(NodeId).collect::<BTreeSet<_>>();
        let placement = Placement::from([
            (ShardId(1), holders([1, 2])),
            (ShardId(2), holders([1, 2])),
            (ShardId(3), holders([2, 3])),
        ]);
        // #1 leads two, #2 one, #3 none, and #1 holds nothing that #3 holds.
        let existing =
            BTreeMap::from([(ShardId(1), NodeId(1)), (ShardId(2), NodeId(1)), (ShardId(3), NodeId(2))]);
        let leaders = spread_leaders(&placement, &existing);
        let counts: Vec<usize> =
            (1..=3).map(|node| leaders.values().filter(|leader| **leader == NodeId(node)).count()).collect();
        assert_eq!(counts, [1, 1, 1], "{leaders:?}");
    }

    prop_compose! {
        fn zoned(nodes: std::ops::Range<usize>)(
            zones in proptest::collection::vec(0_u8..4, nodes)
        ) -> Vec<Candidate> {
            (1..).zip(zones).map(|(node, zone)| Candidate { node: NodeId(node), zone: format!("z{zone}") }).collect()
        }
    }

    prop_compose! {
        fn anywhere()(
            held in proptest::collection::vec(proptest::collection::btree_set(1_u64..14, 0..6), 0..24)
        ) -> Placement {
            (1..).zip(held).map(|(shard, nodes)| (ShardId(shard), nodes.into_iter().map(NodeId).collect())).collect()
        }
    }

    proptest! {
        #[test]
        fn placement_from_anywhere_is_spread(
            nodes in zoned(0..12), replicas in 1_usize..6, count in 0_u32..24, existing in anywhere(),
        ) {
            let placement = place(shards(count), replicas, &nodes, &existing);
            let zone = |node: &NodeId| &nodes.iter().find(|candidate| candidate.node == *node).unwrap().zone;
            let zones: BTreeSet<&String> = nodes.iter().map(|candidate| &candidate.zone).collect();
            for holders in placement.values() {
                prop_assert_eq!(holders.len(), replicas.min(nodes.len()));
                let count_in = |wanted: &String| holders.iter().filter(|node| zone(node) == wanted).count();
                let most = zones.iter().map(|zone| count_in(zone)).max().unwrap_or(0);
                for wanted in &zones {
                    let full = nodes.iter().filter(|candidate| candidate.zone == **wanted).count();
                    prop_assert!(most <= count_in(wanted) + 1 || count_in(wanted) == full, "{:?}", holders);
                }
            }
            let loads = loads(&placement, &nodes);
            for wanted in &zones {
                let within = loads.iter().filter(|(node, _)| zone(node) == *wanted).map(|(_, load)| *load);
                prop_assert!(spread(within) <= 1, "{:?}", loads);
            }
        }

        #[test]
        fn one_zone_is_spread_within_one(nodes in 1_usize..12, replicas in 1_usize..6, existing in anywhere()) {
            let nodes = candidates(&vec![""; nodes]);
            let placement = place(shards(24), replicas, &nodes, &existing);
            prop_assert!(spread(loads(&placement, &nodes).values().copied()) <= 1);
        }

        #[test]
        fn what_is_spread_stays(nodes in zoned(1..12), replicas in 1_usize..6, existing in anywhere()) {
            let once = place(shards(24), replicas, &nodes, &existing);
            prop_assert_eq!(&place(shards(24), replicas, &nodes, &once), &once);
        }

        #[test]
        fn a_new_node_takes_its_share_and_nothing_else_moves(
            nodes in 1_usize..10, replicas in 1_usize..6, count in 1_u32..40,
        ) {
            let replicas = replicas.min(nodes);
            let before = place(shards(count), replicas, &candidates(&vec![""; nodes]), &Placement::new());
            let after = place(shards(count), replicas, &candidates(&vec![""; nodes + 1]), &before);
            let newcomer = NodeId(nodes as u64 + 1);
            let moved = moved(&before, &after);
            prop_assert!(moved.iter().all(|(_, node)| *node == newcomer), "{:?}", moved);
            prop_assert_eq!(moved.len(), count as usize * replicas / (nodes + 1));
        }

        #[test]
        fn a_node_that_leaves_moves_at_most_twice_what_it_held(
            nodes in 2_usize..10, replicas in 1_usize..6, count in 1_u32..40,
        ) {
            let all = candidates(&vec![""; nodes]);
            let before = place(shards(count), replicas.min(nodes - 1), &all, &Placement::new());
            let after = place(shards(count), replicas.min(nodes - 1), &all[1..], &before);
            let lost = loads(&before, &all)[&NodeId(1)];
            prop_assert!(moved(&before, &after).len() <= 2 * lost, "lost {lost}, {:?}", moved(&before, &after));
        }

        #[test]
        fn leaders_of_an_even_placement_are_within_one(
            nodes in 1_usize..10, replicas in 1_usize..6, count in 1_u32..40,
        ) {
            let nodes = candidates(&vec![""; nodes]);
            let placement = place(shards(count), replicas, &nodes, &Placement::new());
            let leaders = spread_leaders(&placement, &BTreeMap::new());
            prop_assert_eq!(leaders.len(), count as usize);
            let led = |node| leaders.values().filter(|leader| **leader == node).count();
            prop_assert!(spread(nodes.iter().map(|candidate| led(candidate.node))) <= 1, "{:?}", leaders);
            prop_assert_eq!(&spread_leaders(&placement, &leaders), &leaders, "nothing moves without need");
        }

        #[test]
        fn no_hand_over_could_spread_leaders_better(existing in anywhere(), wished in proptest::collection::btree_map(
            (1_u32..24).prop_map(ShardId), (1_u64..14).prop_map(NodeId), 0..24,
        )) {
            let leaders = spread_leaders(&existing, &wished);
            for (shard, holders) in &existing {
                prop_assert_eq!(leaders.contains_key(shard), !holders.is_empty());
                prop_assert!(leaders.get(shard).is_none_or(|leader| holders.contains(leader)));
            }
            let led = |node: &NodeId| leaders.values().filter(|leader| *leader == node).count();
            for (shard, leader) in &leaders {
                prop_assert!(existing[shard].iter().all(|other| led(leader) <= led(other) + 1));
            }
        }
    }
}
