mod model;

use std::collections::BTreeSet;

use proptest::prelude::*;

use self::model::{Model, check, finish, nodes, placement, replicas, set_voters};
use super::{Moving, Step};
use crate::{Membership, NodeId, ReplicaId, map::ReplicaPlacement, quorum::odd_voters};

#[test]
fn one_voter_grows_to_three() {
    let mut group = Model::new(3, 3);
    assert_eq!(
        group.settle(),
        [
            Step::AddReplica { node: NodeId(2) },
            Step::AddLearner(placement(2)),
            Step::AddReplica { node: NodeId(3) },
            Step::AddLearner(placement(3)),
            set_voters([1, 2, 3]),
            finish([1, 2, 3]),
        ]
    );
}

#[test]
fn the_even_node_stays_a_learner() {
    assert_eq!(Model::grown(2, 3).membership.to_string(), "{r1 | r2}");
    assert_eq!(Model::grown(4, 5).membership.to_string(), "{r1 r2 r3 | r4}");
}

#[test]
fn a_learner_that_lags_does_not_vote() {
    let mut group = Model::grown(3, 3);
    group.membership = Membership { voters: vec![replicas([1])], learners: replicas([2, 3]) };
    group.caught_up = replicas([1, 2]);
    assert_eq!(group.next(), None);
}

#[test]
fn a_silent_node_is_passed_over() {
    let mut group = Model::new(4, 5);
    group.alive = nodes([1, 3, 4]);
    group.settle();
    assert_eq!(group.membership.goal().map(BTreeSet::len), Some(3));
    assert!(!group.holds(NodeId(2)));
}

#[test]
fn nothing_is_planned_without_a_quorum() {
    let mut group = Model::grown(3, 3);
    group.preferred_leader = Some(NodeId(2));
    group.alive = nodes([1]);
    assert_eq!(group.next(), None);
    group.membership.voters = vec![replicas([1]), replicas([1, 2, 3])];
    assert_eq!(group.next(), None, "a joint configuration cannot be left without both quorums");
}

#[test]
fn a_voter_on_a_node_that_is_gone_stays_until_somebody_takes_its_place() {
    let mut group = Model::grown(3, 3);
    group.gone = nodes([3]);
    group.alive = nodes([1, 2]);
    assert_eq!(group.next(), None, "nobody to take its place: the voters do not shrink");
    group.alive = nodes([1, 2, 4]);
    group.begin_move(3, 4);
    group.settle();
    assert_eq!((group.membership.to_string().as_str(), group.moving), ("{r1 r2 r4}", None));
}

#[test]
fn the_even_learner_takes_the_place_of_a_voter_that_is_gone() {
    let mut group = Model::grown(4, 5);
    group.gone = nodes([3]);
    group.alive = nodes([1, 2, 4]);
    assert_eq!(group.settle(), [set_voters([1, 2, 4]), finish([1, 2, 4])]);
}

#[test]
fn leadership_goes_to_a_preferred_voter_that_is_ready() {
    let mut group = Model::grown(3, 3);
    group.preferred_leader = Some(NodeId(3));
    group.caught_up = replicas([1, 2]);
    assert_eq!(group.next(), None, "it lags");
    group.caught_up = replicas([1, 2, 3]);
    group.alive = nodes([1, 2]);
    assert_eq!(group.next(), None, "it is silent");
    group.alive = nodes([1, 2, 3]);
    assert_eq!(group.next(), Some(Step::TransferLeader(placement(3))));
    group.settle();
    assert_eq!(group.leader, ReplicaId(3));
    group.preferred_leader = Some(NodeId(9));
    assert_eq!(group.next(), None, "it holds nothing");
}

#[test]
fn a_move_exchanges_one_voter_for_another() {
    let mut group = Model::grown(4, 3);
    group.begin_move(3, 4);
    let steps = [Step::AddLearner(placement(4)), set_voters([1, 2, 4]), finish([1, 2, 4]), Step::EndMove];
    assert_eq!(group.settle(), steps);
}

#[test]
fn a_move_that_is_over_ends_before_the_voters_change_again() {
    let mut group = Model::grown(4, 3);
    group.begin_move(3, 4);
    group.membership.voters = vec![replicas([1, 2, 4])];
    group.placements.retain(|placement| placement.replica != ReplicaId(3));
    group.replication_factor = 1;
    group.surplus = replicas([2, 4]);
    assert_eq!(group.settle(), [Step::EndMove, set_voters([1]), finish([1])]);
}

#[test]
fn nobody_leaves_before_the_new_replica_has_caught_up() {
    let mut group = Model::grown(4, 3);
    group.begin_move(3, 4);
    group.apply(Step::AddLearner(placement(4)));
    group.caught_up = replicas([1, 2, 3]);
    assert_eq!(group.next(), None);
    group.caught_up = replicas([1, 2, 3, 4]);
    group.alive = nodes([1, 2, 3]);
    assert_eq!(group.next(), None, "it is silent");
}

#[test]
fn leadership_leaves_before_the_replica_does() {
    let mut group = Model::grown(4, 3);
    group.preferred_leader = Some(NodeId(3));
    group.begin_move(1, 4);
    group.apply(Step::AddLearner(placement(4)));
    assert_eq!(group.next(), Some(Step::TransferLeader(placement(3))), "the preferred leader, if it stays");
    group.preferred_leader = Some(NodeId(1));
    let steps = [Step::TransferLeader(placement(2)), set_voters([2, 3, 4]), finish([2, 3, 4]), Step::EndMove];
    assert_eq!(group.settle(), steps);
}

#[test]
fn leadership_waits_for_a_voter_that_stays_and_has_caught_up() {
    let mut group = Model::grown(6, 5);
    group.begin_move(1, 6);
    group.apply(Step::AddLearner(placement(6)));
    group.alive = nodes([1, 3, 4, 6]);
    group.caught_up = replicas([1, 3, 4, 6]);
    assert_eq!(group.next(), Some(Step::TransferLeader(placement(3))), "#2 is silent");
    group.caught_up = replicas([1, 3, 6]);
    assert_eq!(group.next(), None, "two of five voters are not enough");
}

#[test]
fn leadership_does_not_go_to_a_replica_that_leaves() {
    let mut group = Model::grown(4, 3);
    group.preferred_leader = Some(NodeId(3));
    group.begin_move(3, 4);
    group.apply(Step::AddLearner(placement(4)));
    group.caught_up = replicas([1, 2, 3]);
    assert_eq!(group.next(), None);
}

#[test]
fn a_lone_voter_moves_through_a_pair() {
    let mut group = Model::grown(2, 1);
    group.begin_move(1, 2);
    let steps = [
        Step::AddLearner(placement(2)),
        set_voters([1, 2]),
        finish([1, 2]),
        Step::TransferLeader(placement(2)),
        set_voters([2]),
        finish([2]),
        Step::EndMove,
    ];
    assert_eq!(group.settle(), steps);
}

#[test]
fn a_lone_voter_that_moves_while_its_group_grows_leaves_last() {
    let mut group = Model::new(4, 3);
    group.wished.clear();
    group.placements = vec![placement(1), placement(2), placement(3)];
    group.membership.learners = replicas([2, 3]);
    group.caught_up = replicas([1, 2, 3, 4]);
    group.begin_move(1, 4);
    let steps = group.settle();
    assert_eq!(steps[1..4], [set_voters([1, 2, 3]), finish([1, 2, 3]), Step::TransferLeader(placement(2))]);
    assert_eq!(group.membership.to_string(), "{r2 r3 r4}");
}

#[test]
fn the_place_of_a_learner_is_taken_by_a_learner() {
    let mut group = Model::grown(4, 5);
    group.alive = nodes(1..=5);
    group.begin_move(4, 5);
    let steps = [Step::AddLearner(placement(5)), Step::RemoveLearner(ReplicaId(4)), Step::EndMove];
    assert_eq!(group.settle(), steps);
    assert_eq!(group.membership.to_string(), "{r1 r2 r3 | r5}");
}

#[test]
fn who_takes_the_place_of_a_learner_votes_only_when_the_move_is_over() {
    let mut group = Model::new(4, 3);
    group.wished.clear();
    group.placements = vec![placement(1), placement(2), placement(3)];
    group.membership.learners = replicas([2, 3]);
    group.caught_up = replicas([1, 3, 4]);
    group.begin_move(2, 4);
    let steps = [
        Step::AddLearner(placement(4)),
        Step::RemoveLearner(ReplicaId(2)),
        Step::EndMove,
        set_voters([1, 3, 4]),
        finish([1, 3, 4]),
    ];
    assert_eq!(group.settle(), steps);
}

#[test]
fn a_damaged_replica_is_replaced_on_its_own_node() {
    let mut group = Model::grown(3, 3);
    // The old one is placed nowhere any more.
    group.caught_up = replicas([1, 2]);
    group.placements = vec![placement(1), placement(2)];
    group.placements.push(ReplicaPlacement { replica: ReplicaId(9), node: NodeId(3) });
    group.moving = Some(Moving { from: ReplicaId(3), to: ReplicaId(9) });
    let new = ReplicaPlacement { replica: ReplicaId(9), node: NodeId(3) };
    let steps = [Step::AddLearner(new), set_voters([1, 2, 9]), finish([1, 2, 9]), Step::EndMove];
    assert_eq!(group.settle(), steps);
}

#[test]
fn five_voters_shrink_to_three_at_once() {
    let mut group = Model::grown(5, 5);
    group.replication_factor = 3;
    group.surplus = replicas([1, 4]);
    assert_eq!(
        group.settle(),
        [Step::TransferLeader(placement(2)), set_voters([2, 3, 5]), finish([2, 3, 5])]
    );
    assert_eq!(group.placements.len(), 3);
}

#[test]
fn three_voters_do_not_shrink_to_one_that_lags() {
    let mut group = Model::grown(3, 3);
    group.replication_factor = 1;
    group.surplus = replicas([1, 2]);
    group.caught_up = replicas([1, 2]);
    assert_eq!(group.next(), None);
    group.caught_up = replicas([1, 2, 3]);
    group.settle();
    assert_eq!((group.membership.to_string().as_str(), group.leader), ("{r3}", ReplicaId(3)));
}

#[test]
fn a_surplus_voter_leaves_when_another_takes_its_place() {
    let mut group = Model::grown(4, 3);
    group.placements.push(placement(4));
    group.surplus = replicas([3]);
    group.apply(Step::AddLearner(placement(4)));
    group.caught_up = replicas([1, 2]);
    assert_eq!(group.next(), None, "two voters tolerate no more than one");
    group.caught_up = replicas([1, 2, 4]);
    group.settle();
    assert_eq!(group.membership.to_string(), "{r1 r2 r4}");
}

#[test]
fn where_an_even_number_would_stay_one_votes_and_the_other_comes_again() {
    // Meta on three nodes, one of which drains: there are two for it.
    let mut group = Model::grown(3, 3);
    group.replication_factor = 2;
    group.wished = nodes([1, 2]);
    group.surplus = replicas([3]);
    let steps = group.settle();
    assert_eq!(steps[..2], [set_voters([1]), finish([1])]);
    assert_eq!(group.membership.voters, [replicas([1])]);
    assert!(group.placements.iter().all(|placement| placement.node != NodeId(3)), "{group:?}");
    assert_eq!(group.membership.learners.len(), 1, "{group:?}");
}

#[test]
fn a_surplus_learner_is_removed_and_a_surplus_placement_dropped() {
    let mut group = Model::grown(4, 3);
    group.placements.push(placement(4));
    group.surplus = replicas([4]);
    assert_eq!(group.clone().settle(), [Step::DropPlacement(ReplicaId(4))], "it never was a member");
    group.membership.learners = replicas([4]);
    assert_eq!(group.settle(), [Step::RemoveLearner(ReplicaId(4))]);
}

#[test]
fn a_learner_that_a_move_goes_to_stays_until_the_move_is_given_up() {
    let mut group = Model::grown(4, 3);
    group.begin_move(3, 4);
    group.membership.learners = replicas([4]);
    group.surplus = replicas([4]);
    assert_eq!(group.next(), None);
    group.moving = None;
    assert_eq!(group.next(), Some(Step::RemoveLearner(ReplicaId(4))));
}

#[test]
fn a_learner_that_is_placed_nowhere_is_removed() {
    let mut group = Model::grown(3, 3);
    group.membership.learners = replicas([7]);
    assert_eq!(group.settle(), [Step::RemoveLearner(ReplicaId(7))]);
}

#[test]
fn a_joint_configuration_is_finished_before_anything_else() {
    let mut group = Model::grown(4, 3);
    group.begin_move(3, 4);
    group.membership.voters.push(replicas([1, 2]));
    assert_eq!(group.next(), Some(finish([1, 2])));
    group.leader = ReplicaId(3);
    assert_eq!(group.next(), Some(Step::TransferLeader(placement(1))), "who leaves hands over first");
    group.leader = ReplicaId(2);
    assert_eq!(group.next(), Some(finish([1, 2])));
}

proptest! {
    /// Nodes fall silent and come back between any two steps; when all are back, the group is as wished.
    #[test]
    fn growth_converges_and_never_plans_below_a_quorum(
        node_count in 1_u64..9,
        factor in prop::sample::select(vec![1_usize, 3, 5, 7]),
        silences in proptest::collection::vec(proptest::collection::btree_set(1_u64..9, 0..4), 0..30),
        lags in proptest::collection::vec(any::<bool>(), 30),
        preferred in proptest::option::of(1_u64..9),
    ) {
        let mut group = Model::new(node_count, factor);
        group.preferred_leader = preferred.map(NodeId);
        let everyone = group.alive.clone();
        for (silent, lag) in silences.into_iter().zip(lags) {
            group.alive = everyone.difference(&nodes(silent)).copied().collect();
            let Some(step) = group.next() else { continue };
            check(&group, &step)?;
            group.apply(step);
            if lag {
                group.caught_up = group.membership.all_voters();
            }
        }
        group.alive = everyone;
        group.caught_up = group.placements.iter().map(|placement| placement.replica).collect();
        let steps = group.settle();
        let wished = usize::try_from(node_count).unwrap().min(factor);
        prop_assert_eq!(group.placements.len(), wished, "{:?}", steps);
        prop_assert!(!group.membership.is_joint());
        prop_assert_eq!(group.membership.goal().unwrap().len(), odd_voters(wished, factor));
        prop_assert_eq!(group.membership.all_voters().len() + group.membership.learners.len(), wished);
    }

    /// A replica moves, others are surplus, nodes fall silent and replicas lag: in the end the one has moved and the others
    /// have left, and no step on the way could have cost a quorum.
    #[test]
    fn moves_and_shrinking_come_to_their_ends(
        factor in prop::sample::select(vec![1_usize, 3, 5]),
        from in 1_u64..6,
        order in Just(vec![1_u64, 2, 3, 4, 5]).prop_shuffle(),
        silences in proptest::collection::vec(proptest::collection::btree_set(1_u64..8, 0..3), 0..30),
        lags in proptest::collection::vec(proptest::collection::btree_set(1_u64..8, 0..3), 30),
        preferred in 1_u64..8,
    ) {
        let mut group = Model::grown(6, 5);
        let from = ReplicaId(from);
        group.begin_move(from.0, 7);
        group.alive = nodes(1..=7);
        group.replication_factor = factor;
            group.preferred_leader = Some(NodeId(preferred));
        let others = order.into_iter().map(ReplicaId).filter(|replica| *replica != from);
        group.surplus = others.take(5 - factor).collect();
        let leaves = group.surplus.clone();
        for (silent, lagging) in silences.into_iter().zip(lags) {
            group.alive = nodes(1..=7).difference(&nodes(silent)).copied().collect();
            group.caught_up = replicas(1..=7).difference(&replicas(lagging)).copied().collect();
            let Some(step) = group.next() else { continue };
            check(&group, &step)?;
            group.apply(step);
        }
        group.alive = nodes(1..=7);
        group.caught_up = replicas(1..=7);
        while let Some(step) = group.next() {
            check(&group, &step)?;
            group.apply(step);
        }
        prop_assert_eq!(group.moving, None, "{:?}", &group);
        prop_assert!(group.membership.names(ReplicaId(7)) && !group.membership.names(from), "{:?}", group);
        let left = group.membership.voters.iter().flatten().filter(|voter| leaves.contains(voter)).count();
        prop_assert_eq!(left, 0, "{:?}", group);
        prop_assert!(!group.membership.is_joint());
        prop_assert_eq!(group.membership.goal().unwrap().len() % 2, 1);
    }
}
