//! What each of the three questions is answered with, case by case.

use std::collections::BTreeSet;

use super::model::n;
use crate::{
    NodeId, ReplicaId, ShardId,
    map::NodeState,
    moves::{Held, Host, Limits, Move, Shard, gains, next_moves, surplus},
};

const FREELY: Limits = Limits { at_once: 100, per_node: 100 };

/// Active nodes of one zone, n1 first.
fn hosts(count: u64) -> Vec<Host> {
    (1..=count).map(|number| host(number, "", NodeState::Active)).collect()
}

fn host(number: u64, zone: &str, state: NodeState) -> Host {
    Host { node: n(number), zone: zone.to_owned(), state, there: true, has_room: true }
}

/// A voter, whose number says the shard and the node: r203 is that of s2 on n3.
fn held(shard: u32, node: u64) -> Held {
    Held { replica: ReplicaId(u64::from(shard) * 100 + node), node: n(node), voter: true, fit: true }
}

/// A shard that has settled, with a voter on each of these nodes.
fn shard(id: u32, nodes: &[u64]) -> Shard {
    let held = nodes.iter().map(|node| held(id, *node)).collect();
    Shard { id: ShardId(id), factor: nodes.len(), held, settled: true, moving: None }
}

fn told(moves: &[Move]) -> Vec<String> {
    let told = |planned: &Move| {
        let Move { shard, from, from_node, to, why } = planned;
        format!("{shard} {from} {from_node} {to} {why:?}")
    };
    moves.iter().map(told).collect()
}

fn planned(hosts: &[Host], shards: &[Shard]) -> Vec<String> {
    told(&next_moves(hosts, shards, FREELY))
}

#[test]
fn the_most_urgent_replicas_move_first() {
    let mut nodes = hosts(9);
    for (at, state) in [(0, NodeState::Draining), (1, NodeState::Lost), (2, NodeState::Removed)] {
        nodes[at].state = state;
    }
    nodes[1].there = false;
    nodes[2].there = false;
    let mut shards =
        vec![shard(1, &[1, 5, 6]), shard(2, &[2, 5, 6]), shard(3, &[3, 5, 6]), shard(4, &[4, 5, 6])];
    shards[3].held[0].fit = false;
    let all = planned(&nodes, &shards);
    assert_eq!(
        all,
        ["s3 r303 #3 #4 Removed", "s2 r202 #2 #7 Lost", "s4 r404 #4 #8 Damaged", "s1 r101 #1 #9 Drain"]
    );
    let one = next_moves(&nodes, &shards, Limits { at_once: 1, per_node: 1 });
    assert_eq!(told(&one), all[..1]);
}

#[test]
fn the_shard_with_fewest_copies_does_not_wait_behind_others() {
    let mut nodes = hosts(9);
    nodes[0].state = NodeState::Removed;
    let shards = [shard(1, &[1, 2, 3, 4, 5]), shard(2, &[1, 2, 3])];
    assert_eq!(planned(&nodes, &shards), ["s2 r201 #1 #6 Removed", "s1 r101 #1 #7 Removed"]);
}

#[test]
fn a_shard_with_several_replicas_that_must_leave_moves_one_at_a_time() {
    let mut nodes = hosts(7);
    nodes[0].state = NodeState::Draining;
    nodes[1].state = NodeState::Lost;
    assert_eq!(planned(&nodes, &[shard(1, &[1, 2, 3, 4, 5])]), ["s1 r102 #2 #6 Lost"]);
}

#[test]
fn a_new_replica_goes_to_the_zone_that_lacks_one_and_there_to_the_least_loaded_node() {
    let mut nodes: Vec<Host> = [(1, "a"), (2, "b"), (3, "a"), (4, "b"), (5, "c"), (6, "c")]
        .map(|(number, zone)| host(number, zone, NodeState::Active))
        .to_vec();
    nodes[0].state = NodeState::Draining;
    let shards = [shard(1, &[1, 2, 3]), shard(2, &[2, 3, 5])];
    assert_eq!(planned(&nodes, &shards), ["s1 r101 #1 #6 Drain"]);
}

#[test]
fn replicas_that_must_leave_do_not_count_for_their_zone() {
    let zones = [(1, "a"), (2, "a"), (3, "b"), (4, "a"), (5, "b")];
    let mut nodes: Vec<Host> = zones.map(|(number, zone)| host(number, zone, NodeState::Active)).to_vec();
    nodes[0].state = NodeState::Lost;
    nodes[1].state = NodeState::Draining;
    assert_eq!(planned(&nodes, &[shard(1, &[1, 2, 3])]), ["s1 r101 #1 #4 Lost"]);
}

#[test]
fn nodes_that_are_silent_full_or_not_active_are_no_goals() {
    let mut nodes = hosts(4);
    nodes[0].state = NodeState::Draining;
    let shards = [shard(1, &[1, 2, 3])];
    assert_eq!(planned(&nodes, &shards), ["s1 r101 #1 #4 Drain"]);
    let unfit: [fn(&mut Host); 6] = [
        |host| host.there = false,
        |host| host.has_room = false,
        |host| host.state = NodeState::Joining,
        |host| host.state = NodeState::Draining,
        |host| host.state = NodeState::Lost,
        |host| host.state = NodeState::Removed,
    ];
    for spoil in unfit {
        let mut nodes = nodes.clone();
        spoil(&mut nodes[3]);
        assert!(planned(&nodes, &shards).is_empty(), "{:?}", nodes[3]);
    }
}

#[test]
fn a_damaged_replica_is_replaced_on_its_node_only_when_no_other_takes_it() {
    let mut damaged = shard(1, &[1, 2, 3]);
    damaged.held[0].fit = false;
    assert_eq!(planned(&hosts(4), &[damaged.clone()]), ["s1 r101 #1 #4 Damaged"]);
    assert_eq!(planned(&hosts(3), &[damaged.clone()]), ["s1 r101 #1 #1 Damaged"]);
    let mut nodes = hosts(3);
    nodes[0].state = NodeState::Draining;
    assert!(planned(&nodes, &[damaged]).is_empty(), "its node does not take it");
    let mut damaged = shard(1, &[1, 2, 3, 4, 5]);
    damaged.held[0].fit = false;
    let mut nodes = hosts(5);
    nodes[1].state = NodeState::Removed;
    assert_eq!(planned(&nodes, &[damaged]), ["s1 r101 #1 #1 Damaged"], "what is more urgent cannot be done");
}

#[test]
fn nothing_moves_in_a_shard_whose_voters_do_not_decide() {
    let mut nodes = hosts(5);
    nodes[0].state = NodeState::Lost;
    let mut shards = [shard(1, &[1, 2, 3])];
    shards[0].held[1].fit = false;
    assert!(planned(&nodes, &shards).is_empty(), "one is lost and one damaged");
    shards[0].held[1].fit = true;
    nodes[1].there = false;
    assert!(planned(&nodes, &shards).is_empty(), "one is lost and one silent");
    nodes[1].there = true;
    assert_eq!(planned(&nodes, &shards), ["s1 r101 #1 #4 Lost"]);
    shards[0].held.iter_mut().for_each(|held| held.voter = false);
    assert!(planned(&nodes, &shards).is_empty(), "it was never formed");
}

#[test]
fn a_shard_first_gets_what_it_lacks_and_loses_what_is_too_much() {
    let mut nodes = hosts(6);
    nodes[0].state = NodeState::Lost;
    let mut shards = [shard(1, &[1, 2, 3])];
    shards[0].factor = 5;
    assert!(planned(&nodes, &shards).is_empty(), "it grows");
    assert_eq!(gains(&nodes, &shards)[&ShardId(1)], n(4));
    shards[0].factor = 1;
    assert!(planned(&nodes, &shards).is_empty(), "it shrinks");
    assert_eq!(surplus(&nodes, &shards[0]).len(), 2);
    shards[0].factor = 5;
    nodes.truncate(3);
    nodes[0].state = NodeState::Draining;
    assert!(planned(&nodes, &shards).is_empty(), "there is no other node");
    assert!(gains(&nodes, &shards).is_empty());
}

#[test]
fn moves_under_way_count_against_the_limits() {
    let mut nodes = hosts(6);
    nodes[0].state = NodeState::Draining;
    let mut shards: Vec<Shard> = (1..=4).map(|id| shard(id, &[1, 2, 3])).collect();
    shards[0] = shard(1, &[4, 2, 3]);
    shards[0].moving = Some((n(1), n(4)));
    let count = |at_once, per_node| next_moves(&nodes, &shards, Limits { at_once, per_node }).len();
    assert_eq!(count(1, 9), 0);
    assert_eq!(count(3, 9), 2);
    assert_eq!(count(9, 1), 0, "one leaves #1 already");
    assert_eq!(count(9, 3), 2);
    assert_eq!(count(9, 9), 3);
}

#[test]
fn a_node_that_is_gone_limits_nothing_as_nothing_leaves_it() {
    for state in [NodeState::Lost, NodeState::Removed] {
        let mut nodes = hosts(6);
        nodes[0].state = state;
        let shards: Vec<Shard> = (1..=3).map(|id| shard(id, &[1, 2, 3])).collect();
        let moves = next_moves(&nodes, &shards, Limits { at_once: 9, per_node: 1 });
        let goals: BTreeSet<NodeId> = moves.iter().map(|planned| planned.to).collect();
        assert_eq!(goals, [n(4), n(5), n(6)].into());
    }
}

#[test]
fn nothing_is_improved_before_everything_is_at_rest() {
    let shards = [shard(1, &[1, 2, 3]), shard(2, &[1, 2, 3])];
    let nodes = hosts(5);
    assert!(!planned(&nodes, &shards).is_empty());
    let mut silent = nodes.clone();
    silent[3].there = false;
    assert!(planned(&silent, &shards).is_empty(), "an active node is silent");
    let mut lost = nodes.clone();
    lost[3].state = NodeState::Lost;
    lost[3].there = false;
    assert_eq!(
        planned(&lost, &shards),
        ["s1 r101 #1 #5 Balance"],
        "a lost one that holds nothing is not waited for"
    );
    let mut unsettled = shards.clone();
    unsettled[1].settled = false;
    assert!(planned(&nodes, &unsettled).is_empty(), "a shard has not settled");
    let mut moving = shards.clone();
    moving[1] = shard(2, &[1, 2, 4]);
    moving[1].moving = Some((n(3), n(4)));
    assert!(planned(&nodes, &moving).is_empty(), "a replica moves");
    let mut damaged = shards;
    damaged[1].held[0].fit = false;
    assert_eq!(planned(&nodes, &damaged), ["s2 r201 #1 #4 Damaged"], "a replica must move");
}

#[test]
fn a_difference_of_one_is_even() {
    assert!(planned(&hosts(4), &[shard(1, &[1, 2, 3])]).is_empty());
    assert_eq!(planned(&hosts(4), &[shard(1, &[1, 2, 3]), shard(2, &[1, 2, 3])]).len(), 1);
}

#[test]
fn loads_of_meta_and_of_data_shards_are_even_apart_from_each_other() {
    let shards = [shard(0, &[1, 2, 3]), shard(1, &[1, 2, 3])];
    assert!(planned(&hosts(4), &shards).is_empty());
}

#[test]
fn a_full_node_keeps_what_it_has_and_takes_nothing() {
    let shards = [shard(1, &[1, 2, 3]), shard(2, &[1, 2, 3])];
    let mut nodes = hosts(4);
    nodes[3].has_room = false;
    assert!(planned(&nodes, &shards).is_empty());
}

#[test]
fn learners_count_like_voters() {
    let mut shards = [shard(1, &[1, 2, 3]), shard(2, &[1, 2, 3])];
    shards[1].held[0].voter = false;
    assert_eq!(planned(&hosts(4), &shards), ["s1 r101 #1 #4 Balance"]);
}

#[test]
fn zones_come_before_loads() {
    let zones = [(1, "a"), (2, "a"), (3, "b"), (4, "c")];
    let nodes: Vec<Host> = zones.map(|(number, zone)| host(number, zone, NodeState::Active)).to_vec();
    assert_eq!(planned(&nodes, &[shard(1, &[1, 2, 3])]), ["s1 r101 #1 #4 Zones"]);
}

#[test]
fn a_missing_replica_goes_where_the_others_of_the_cluster_leave_room() {
    let mut shards = [shard(1, &[1]), shard(2, &[1]), shard(3, &[2])];
    for shard in &mut shards {
        shard.factor = 2;
    }
    let gained = gains(&hosts(4), &shards);
    let goals: Vec<NodeId> = gained.into_values().collect();
    assert_eq!(goals, [n(3), n(4), n(3)], "#2 holds one already");
}

#[test]
fn no_gain_goes_where_the_move_under_way_comes_from_or_goes_to() {
    let mut grows = shard(1, &[1, 2]);
    grows.moving = Some((n(3), n(2)));
    grows.factor = 3;
    assert!(gains(&hosts(3), &[grows.clone()]).is_empty());
    assert_eq!(gains(&hosts(4), &[grows])[&ShardId(1)], n(4));
}

#[test]
fn what_is_least_needed_is_surplus_first() {
    let mut nodes = hosts(7);
    nodes[1].state = NodeState::Lost;
    nodes[3].state = NodeState::Draining;
    nodes[4].there = false;
    let mut excess = shard(1, &[1, 2, 3, 4, 5, 6, 7]);
    excess.held[0].fit = false;
    excess.held[2].voter = false;
    let taken = |factor: usize| {
        let replicas = surplus(&nodes, &Shard { factor, ..excess.clone() });
        replicas.into_iter().map(|replica| replica.0 - 100).collect::<Vec<_>>()
    };
    assert_eq!(taken(7), [] as [u64; 0]);
    assert_eq!(taken(6), [1], "damaged");
    assert_eq!(taken(5), [1, 2], "on a node that is lost");
    assert_eq!(taken(4), [1, 2, 4], "on a draining node");
    assert_eq!(taken(3), [1, 2, 3, 4], "a learner");
    assert_eq!(taken(2), [1, 2, 3, 4, 5], "on a silent node");
    assert_eq!(taken(1).len(), 6);
}

#[test]
fn a_learner_that_could_not_vote_is_surplus_before_anything_else() {
    let mut nodes = hosts(4);
    nodes[3].there = false;
    let mut excess = shard(1, &[1, 2, 3, 4]);
    excess.factor = 3;
    excess.held[0].fit = false;
    excess.held[3].voter = false;
    assert_eq!(surplus(&nodes, &excess), [ReplicaId(104)].into(), "nobody could take the place of r101");
    nodes[3].there = true;
    assert_eq!(surplus(&nodes, &excess), [ReplicaId(101)].into(), "r104 can");
}

#[test]
fn the_new_replica_of_a_move_is_surplus_last() {
    let mut excess = shard(1, &[1, 2, 3]);
    excess.factor = 1;
    excess.held[2].voter = false;
    excess.moving = Some((n(4), n(3)));
    assert_eq!(surplus(&hosts(4), &excess), [ReplicaId(101), ReplicaId(102)].into());
}

#[test]
fn the_last_fit_replica_is_never_surplus() {
    let mut excess = shard(1, &[1, 2, 3]);
    excess.factor = 1;
    excess.held[0].fit = false;
    excess.held[1].fit = false;
    let mut nodes = hosts(3);
    nodes[2].state = NodeState::Removed;
    assert_eq!(surplus(&nodes, &excess), [ReplicaId(101), ReplicaId(102)].into());
    excess.held[2].voter = false;
    assert_eq!(surplus(&nodes, &excess), [ReplicaId(101), ReplicaId(102)].into(), "it could not vote");
}

#[test]
fn surplus_leaves_the_zone_with_most() {
    let zones = [(1, "a"), (2, "b"), (3, "b"), (4, "c")];
    let nodes: Vec<Host> = zones.map(|(number, zone)| host(number, zone, NodeState::Active)).to_vec();
    for id in 1..9 {
        let mut excess = shard(id, &[1, 2, 3, 4]);
        excess.factor = 3;
        let taken = surplus(&nodes, &excess).into_iter().map(|replica| replica.0 % 100).next();
        assert!(matches!(taken, Some(2 | 3)), "{taken:?}");
    }
}

#[test]
fn surplus_of_many_shards_leaves_loads_even() {
    let mut loads = [0; 5];
    for id in 1..=10 {
        let mut excess = shard(id, &[1, 2, 3, 4, 5]);
        excess.factor = 3;
        let taken = surplus(&hosts(5), &excess);
        for held in excess.held.iter().filter(|held| !taken.contains(&held.replica)) {
            loads[usize::try_from(held.node.0).unwrap() - 1] += 1;
        }
    }
    assert_eq!(loads, [6; 5]);
}
