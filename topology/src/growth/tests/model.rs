//! A group that takes each step that it is told to, and what no step may do to it.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::{
    Membership, NodeId, ReplicaId,
    growth::{GroupView, Moving, Step, next_step},
    map::ReplicaPlacement,
    quorum::majority,
};

/// A group in a cluster of nodes, owned, to be stepped through.
#[derive(Clone, Debug)]
pub struct Model {
    pub placements: Vec<ReplicaPlacement>,
    pub membership: Membership,
    pub leader: ReplicaId,
    pub caught_up: BTreeSet<ReplicaId>,
    pub alive: BTreeSet<NodeId>,
    pub gone: BTreeSet<NodeId>,
    pub moving: Option<Moving>,
    pub surplus: BTreeSet<ReplicaId>,
    /// The first of these that holds nothing is the gain.
    pub wished: BTreeSet<NodeId>,
    pub replication_factor: usize,
    pub preferred_leader: Option<NodeId>,
}

pub fn placement(number: u64) -> ReplicaPlacement {
    ReplicaPlacement { replica: ReplicaId(number), node: NodeId(number) }
}

pub fn nodes(numbers: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
    numbers.into_iter().map(NodeId).collect()
}

pub fn replicas(numbers: impl IntoIterator<Item = u64>) -> BTreeSet<ReplicaId> {
    numbers.into_iter().map(ReplicaId).collect()
}

pub fn set_voters(numbers: impl IntoIterator<Item = u64>) -> Step {
    Step::SetVoters { voters: replicas(numbers) }
}

pub fn finish(numbers: impl IntoIterator<Item = u64>) -> Step {
    Step::FinishJoint { voters: replicas(numbers) }
}

impl Model {
    /// One voter on n1, and as many nodes as wished for, all alive.
    pub fn new(node_count: u64, replication_factor: usize) -> Self {
        Self {
            placements: vec![placement(1)],
            membership: Membership::uniform([ReplicaId(1)]),
            leader: ReplicaId(1),
            caught_up: replicas([1]),
            alive: nodes(1..=node_count),
            gone: BTreeSet::new(),
            moving: None,
            surplus: BTreeSet::new(),
            wished: nodes(1..=node_count.min(replication_factor as u64)),
            replication_factor,
            preferred_leader: None,
        }
    }

    /// A group that has grown to its factor, or to the number of nodes, and gets no more replicas.
    pub fn grown(node_count: u64, replication_factor: usize) -> Self {
        let mut group = Self::new(node_count, replication_factor);
        group.settle();
        group.wished.clear();
        group
    }

    /// The replica begins to move to the node of the same number as the new replica.
    pub fn begin_move(&mut self, from: u64, to: u64) {
        self.placements.push(placement(to));
        self.moving = Some(Moving { from: ReplicaId(from), to: ReplicaId(to) });
    }

    pub fn holds(&self, node: NodeId) -> bool {
        self.placements.iter().any(|placement| placement.node == node)
    }

    pub fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.placements.iter().find(|placement| placement.replica == replica).map(|found| found.node)
    }

    pub fn is_sound(&self, replica: ReplicaId) -> bool {
        let alive = self.node_of(replica).is_some_and(|node| self.alive.contains(&node));
        replica == self.leader || (alive && self.caught_up.contains(&replica))
    }

    pub fn next(&self) -> Option<Step> {
        next_step(&GroupView {
            placements: &self.placements,
            membership: &self.membership,
            leader: self.leader,
            caught_up: &self.caught_up,
            alive: &self.alive,
            gone: &self.gone,
            moving: self.moving,
            surplus: &self.surplus,
            gain: self.wished.iter().find(|node| !self.holds(**node) && self.alive.contains(node)).copied(),
            replication_factor: self.replication_factor,
            preferred_leader: self.preferred_leader,
        })
    }

    /// What the step does. A change of voters ends in the joint configuration: the worst place to be left in.
    pub fn apply(&mut self, step: Step) {
        match step {
            Step::FinishJoint { voters } => {
                let before = std::mem::take(&mut self.membership.voters);
                self.membership.voters = vec![voters.clone()];
                self.forget(&before.into_iter().flatten().filter(|voter| !voters.contains(voter)).collect());
            }
            Step::AddLearner(placement) => {
                self.membership.learners.insert(placement.replica);
                self.caught_up.insert(placement.replica);
            }
            Step::AddReplica { node } => {
                let replica = self.placements.iter().map(|placement| placement.replica.0).max().unwrap() + 1;
                self.placements.push(ReplicaPlacement { replica: ReplicaId(replica), node });
            }
            Step::SetVoters { voters } => {
                self.membership.learners.retain(|learner| !voters.contains(learner));
                self.membership.voters.push(voters);
            }
            Step::TransferLeader(placement) => self.leader = placement.replica,
            Step::EndMove => self.moving = None,
            Step::RemoveLearner(replica) => {
                assert!(self.membership.learners.remove(&replica), "{replica} does not learn");
                self.forget(&[replica].into());
            }
            Step::DropPlacement(replica) => self.forget(&[replica].into()),
        }
    }

    /// What left the group is seen to have left, and is placed nowhere from then on.
    pub fn forget(&mut self, replicas: &BTreeSet<ReplicaId>) {
        self.placements.retain(|placement| !replicas.contains(&placement.replica));
        self.surplus.retain(|replica| !replicas.contains(replica));
    }

    /// All steps to the end.
    pub fn settle(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        while let Some(step) = self.next() {
            assert!(steps.len() < 60, "does not converge: {steps:?}");
            self.apply(step.clone());
            steps.push(step);
        }
        steps
    }
}

/// Nothing that a step must never do.
pub fn check(before: &Model, step: &Step) -> Result<(), TestCaseError> {
    let alive = |replica: ReplicaId| {
        let node = before.node_of(replica);
        replica == before.leader || node.is_some_and(|node| before.alive.contains(&node))
    };
    prop_assert!(before.membership.has_quorum(alive), "{step:?}");
    match step {
        Step::SetVoters { voters } => {
            let now = before.membership.goal().unwrap();
            let pair = now.len() == 1 && voters.len() == 2 && voters.is_superset(now);
            prop_assert!(voters.len() % 2 == 1 || pair, "{voters:?}");
            prop_assert!(voters.len() <= before.replication_factor.max(now.len()) || pair);
            for set in [now, voters] {
                let sound = set.iter().filter(|voter| before.is_sound(**voter)).count();
                prop_assert!(sound >= majority(set.len()), "{step:?}");
            }
            prop_assert!(voters.contains(&before.leader), "{step:?}");
            for left in now.difference(voters) {
                let replaced = before.moving.filter(|moving| moving.from == *left);
                let replaced = replaced.is_some_and(|moving| before.is_sound(moving.to));
                let gone = before.node_of(*left).is_none_or(|node| before.gone.contains(&node));
                prop_assert!(replaced || gone || before.surplus.contains(left), "{left} left: {step:?}");
            }
        }
        Step::TransferLeader(placement) => {
            prop_assert!(before.membership.is_voter(placement.replica));
            prop_assert!(before.is_sound(placement.replica));
            prop_assert!(!before.surplus.contains(&placement.replica));
            // To the one that moves only when nobody else is able.
            let others = before.membership.all_voters();
            let mut others = others.iter().filter(|voter| **voter != placement.replica);
            let able = |voter: &ReplicaId| {
                *voter != before.leader && before.is_sound(*voter) && !before.surplus.contains(voter)
            };
            let moves = before.moving.is_some_and(|moving| moving.from == placement.replica);
            prop_assert!(!moves || !others.any(able), "{step:?}");
        }
        Step::AddReplica { node } => prop_assert!(!before.holds(*node)),
        Step::DropPlacement(replica) => {
            prop_assert!(!before.membership.names(*replica));
            prop_assert!(before.moving.is_none_or(|moving| ![moving.from, moving.to].contains(replica)));
        }
        Step::FinishJoint { .. } | Step::AddLearner(_) | Step::EndMove | Step::RemoveLearner(_) => {}
    }
    Ok(())
}
