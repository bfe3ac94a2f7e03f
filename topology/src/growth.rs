//! The one next step that brings a group nearer to its placement.
//!
//! Life of a new replica: its node is wished for → a placement with a replica id (`AddReplica`) → a learner
//! (`AddLearner`) → a voter, once it has caught up and the number of voters stays odd (`Promote`). A joint
//! configuration left behind is finished first of all. Last, when nothing else is to do, leadership goes to the
//! preferred leader.
//!
//! The number of voters never shrinks here, and the only voters ever dropped are those on nodes that are gone for good,
//! each in exchange for a new one. No step is planned that would need a quorum which is not alive, or leave one that
//! is not.

use std::collections::BTreeSet;

use crate::{Membership, NodeId, ReplicaId, map::ReplicaPlacement, quorum::odd_voters};

/// A group as its leader describes it, and what is wished for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupView<'a> {
    /// Replicas that have an id, members of the group or not yet.
    pub placements: &'a [ReplicaPlacement],
    /// The group's membership in effect.
    pub membership: &'a Membership,
    /// Who leads.
    pub leader: ReplicaId,
    /// Replicas that are close enough behind the leader's log to vote or lead.
    pub caught_up: &'a BTreeSet<ReplicaId>,
    /// Nodes that were heard of recently.
    pub alive: &'a BTreeSet<NodeId>,
    /// Nodes that never come back.
    pub gone: &'a BTreeSet<NodeId>,
    /// Nodes that should hold the group.
    pub wished: &'a BTreeSet<NodeId>,
    /// At most this many voters.
    pub replication_factor: usize,
    /// Who should lead.
    pub preferred_leader: Option<NodeId>,
}

/// What to do next with a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Leave a joint configuration for its second voter set.
    FinishJoint {
        /// That set.
        voters: BTreeSet<ReplicaId>,
    },
    /// Let a placed replica follow.
    AddLearner(ReplicaPlacement),
    /// Give a node a replica of this group.
    AddReplica {
        /// The node.
        node: NodeId,
    },
    /// Make exactly these the voters.
    Promote {
        /// Odd in number.
        voters: BTreeSet<ReplicaId>,
    },
    /// Let another voter lead.
    TransferLeader(ReplicaPlacement),
}

/// The next step, or `None`: the group is as wished, or what is missing must be waited for.
pub fn next_step(group: &GroupView<'_>) -> Option<Step> {
    if !group.membership.has_quorum(|replica| group.is_alive(replica)) {
        return None;
    }
    if group.membership.is_joint() {
        return group.membership.goal().map(|voters| Step::FinishJoint { voters: voters.clone() });
    }
    group
        .learner_to_add()
        .map(Step::AddLearner)
        .or_else(|| group.node_to_add().map(|node| Step::AddReplica { node }))
        .or_else(|| group.voters_to_set().map(|voters| Step::Promote { voters }))
        .or_else(|| group.leader_to_make().map(Step::TransferLeader))
}

impl GroupView<'_> {
    fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.placements.iter().find(|placement| placement.replica == replica).map(|placement| placement.node)
    }

    /// The leader itself answered; of others, the node must have been heard of.
    fn is_alive(&self, replica: ReplicaId) -> bool {
        replica == self.leader || self.node_of(replica).is_some_and(|node| self.alive.contains(&node))
    }

    fn is_gone(&self, replica: ReplicaId) -> bool {
        self.node_of(replica).is_none_or(|node| self.gone.contains(&node))
    }

    fn learner_to_add(&self) -> Option<ReplicaPlacement> {
        let missing = |placement: &&ReplicaPlacement| {
            !self.membership.names(placement.replica)
                && self.wished.contains(&placement.node)
                && self.alive.contains(&placement.node)
        };
        self.placements.iter().find(missing).copied()
    }

    fn node_to_add(&self) -> Option<NodeId> {
        let holds = |node: &NodeId| self.placements.iter().any(|placement| placement.node == *node);
        self.wished.iter().find(|node| !holds(node) && self.alive.contains(node)).copied()
    }

    /// Voters that stay, then learners that have caught up, as many as make the greatest odd number.
    fn voters_to_set(&self) -> Option<BTreeSet<ReplicaId>> {
        let now = self.membership.goal()?;
        let staying = now.iter().copied().filter(|replica| !self.is_gone(*replica));
        let ready = self.placements.iter().filter(|placement| {
            self.membership.learners.contains(&placement.replica)
                && self.wished.contains(&placement.node)
                && self.alive.contains(&placement.node)
                && self.caught_up.contains(&placement.replica)
        });
        let usable: Vec<ReplicaId> = staying.chain(ready.map(|placement| placement.replica)).collect();
        let count = odd_voters(usable.len(), self.replication_factor.max(now.len()));
        let voters: BTreeSet<ReplicaId> = usable.into_iter().take(count).collect();
        // A leader outside the new set would step down in the middle of the change.
        let sound = voters.len() >= now.len()
            && voters.contains(&self.leader)
            && Membership::uniform(voters.iter().copied()).has_quorum(|replica| self.is_alive(replica));
        (voters != *now && sound).then_some(voters)
    }

    fn leader_to_make(&self) -> Option<ReplicaPlacement> {
        let preferred = self.preferred_leader?;
        let placement = *self.placements.iter().find(|placement| placement.node == preferred)?;
        let able = placement.replica != self.leader
            && self.membership.is_voter(placement.replica)
            && self.alive.contains(&preferred)
            && self.caught_up.contains(&placement.replica);
        able.then_some(placement)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A group in a cluster of nodes, owned, to be stepped through.
    #[derive(Clone, Debug)]
    struct Model {
        placements: Vec<ReplicaPlacement>,
        membership: Membership,
        leader: ReplicaId,
        caught_up: BTreeSet<ReplicaId>,
        alive: BTreeSet<NodeId>,
        gone: BTreeSet<NodeId>,
        wished: BTreeSet<NodeId>,
        replication_factor: usize,
        preferred_leader: Option<NodeId>,
    }

    fn placement(number: u64) -> ReplicaPlacement {
        ReplicaPlacement { replica: ReplicaId(number), node: NodeId(number) }
    }

    fn nodes(numbers: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
        numbers.into_iter().map(NodeId).collect()
    }

    fn replicas(numbers: impl IntoIterator<Item = u64>) -> BTreeSet<ReplicaId> {
        numbers.into_iter().map(ReplicaId).collect()
    }

    impl Model {
        /// One voter on n1, and as many nodes as wished for, all alive.
        fn new(node_count: u64, replication_factor: usize) -> Self {
            Self {
                placements: vec![placement(1)],
                membership: Membership::uniform([ReplicaId(1)]),
                leader: ReplicaId(1),
                caught_up: replicas([1]),
                alive: nodes(1..=node_count),
                gone: BTreeSet::new(),
                wished: nodes(1..=node_count.min(replication_factor as u64)),
                replication_factor,
                preferred_leader: None,
            }
        }

        fn next(&self) -> Option<Step> {
            let Self { placements, membership, leader, caught_up, alive, gone, wished, .. } = self;
            next_step(&GroupView {
                placements,
                membership,
                leader: *leader,
                caught_up,
                alive,
                gone,
                wished,
                replication_factor: self.replication_factor,
                preferred_leader: self.preferred_leader,
            })
        }

        /// What the step does. A promotion ends in the joint configuration: the worst place to be left in.
        fn apply(&mut self, step: Step) {
            match step {
                Step::FinishJoint { voters } => self.membership.voters = vec![voters],
                Step::AddLearner(placement) => {
                    self.membership.learners.insert(placement.replica);
                    self.caught_up.insert(placement.replica);
                }
                Step::AddReplica { node } => {
                    let replica =
                        self.placements.iter().map(|placement| placement.replica.0).max().unwrap() + 1;
                    self.placements.push(ReplicaPlacement { replica: ReplicaId(replica), node });
                }
                Step::Promote { voters } => {
                    self.membership.learners.retain(|learner| !voters.contains(learner));
                    self.membership.voters.push(voters);
                }
                Step::TransferLeader(placement) => self.leader = placement.replica,
            }
        }

        /// All steps to the end.
        fn settle(&mut self) -> Vec<Step> {
            let mut steps = Vec::new();
            while let Some(step) = self.next() {
                assert!(steps.len() < 60, "does not converge: {steps:?}");
                self.apply(step.clone());
                steps.push(step);
            }
            steps
        }
    }

    #[test]
    fn one_voter_grows_to_three() {
        let mut group = Model::new(3, 3);
        let steps = group.settle();
        assert_eq!(
            steps,
            [
                Step::AddReplica { node: NodeId(2) },
                Step::AddLearner(placement(2)),
                Step::AddReplica { node: NodeId(3) },
                Step::AddLearner(placement(3)),
                Step::Promote { voters: replicas([1, 2, 3]) },
                Step::FinishJoint { voters: replicas([1, 2, 3]) },
            ]
        );
    }

    #[test]
    fn the_even_node_stays_a_learner() {
        let mut group = Model::new(2, 3);
        group.settle();
        assert_eq!(group.membership.to_string(), "{r1 | r2}");
        let mut group = Model::new(4, 5);
        group.settle();
        assert_eq!(group.membership.to_string(), "{r1 r2 r3 | r4}");
    }

    #[test]
    fn a_learner_that_lags_is_not_promoted() {
        let mut group = Model::new(3, 3);
        group.settle();
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
        assert!(group.placements.iter().all(|placement| placement.node != NodeId(2)));
    }

    #[test]
    fn nothing_is_planned_without_a_quorum() {
        let mut group = Model::new(3, 3);
        group.settle();
        group.preferred_leader = Some(NodeId(2));
        group.alive = nodes([1]);
        assert_eq!(group.next(), None);
        group.membership.voters = vec![replicas([1]), replicas([1, 2, 3])];
        assert_eq!(group.next(), None, "a joint configuration cannot be left without both quorums");
    }

    #[test]
    fn a_voter_on_a_node_that_is_gone_is_exchanged() {
        let mut group = Model::new(3, 3);
        group.settle();
        group.gone = nodes([3]);
        group.alive = nodes([1, 2]);
        group.wished = nodes([1, 2]);
        assert_eq!(group.next(), None, "nobody to take its place: the voters do not shrink");
        group.alive = nodes([1, 2, 4]);
        group.wished = nodes([1, 2, 4]);
        group.settle();
        assert_eq!(group.membership.to_string(), "{r1 r2 r4}");
    }

    #[test]
    fn leadership_goes_to_a_preferred_voter_that_is_ready() {
        let mut group = Model::new(3, 3);
        group.settle();
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
                let before = group.membership.clone();
                prop_assert!(before.has_quorum(|replica| replica == group.leader
                    || group.alive.contains(&group.placements.iter().find(|p| p.replica == replica).unwrap().node)));
                if let Step::Promote { voters } = &step {
                    prop_assert!(voters.len() % 2 == 1 && voters.len() <= factor);
                    prop_assert!(voters.is_superset(before.goal().unwrap()), "a live voter is never dropped");
                    let up = voters.iter().filter(|v| **v == group.leader
                        || group.alive.contains(&group.placements.iter().find(|p| p.replica == **v).unwrap().node));
                    prop_assert!(2 * up.count() > voters.len());
                }
                group.apply(step);
                if lag {
                    group.caught_up = group.membership.all_voters();
                }
            }
            group.alive = everyone;
            group.caught_up = group.placements.iter().map(|placement| placement.replica).collect();
            let steps = group.settle();
            let caught_up = group.placements.iter().map(|placement| placement.replica).collect();
            group.caught_up = caught_up;
            group.settle();
            let wished = usize::try_from(node_count).unwrap().min(factor);
            prop_assert_eq!(group.placements.len(), wished, "{:?}", steps);
            prop_assert!(!group.membership.is_joint());
            prop_assert_eq!(group.membership.goal().unwrap().len(), odd_voters(wished, factor));
            prop_assert_eq!(group.membership.all_voters().len() + group.membership.learners.len(), wished);
        }
    }
}
