//! The one next step that brings a group nearer to its placement.
//!
//! Life of a new replica: a placement with a replica id (`AddReplica`, or the goal of a move) → a learner (`AddLearner`)
//! → a voter, once it has caught up and the number of voters stays odd (`SetVoters`). In a move the old one leaves with
//! the same change of voters, and the move is over (`EndMove`). What is surplus leaves in the opposite order: voters by
//! `SetVoters`, learners by `RemoveLearner`, placements that the group does not know by `DropPlacement`.
//!
//! A joint configuration left behind is finished first of all. Leadership leaves a replica before the replica leaves the
//! voters. Last, when nothing else is to do, leadership goes to the preferred leader.
//!
//! No step is planned that would need a quorum which is not alive, or leave one that is not. Voters that should leave
//! but that nobody can take the place of stay: the number of voters shrinks only as far as the factor or the replicas
//! that stay ask for.

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
    /// Replicas that are close enough behind the leader's log to vote or lead. Damaged ones never are.
    pub caught_up: &'a BTreeSet<ReplicaId>,
    /// Nodes that were heard of recently.
    pub alive: &'a BTreeSet<NodeId>,
    /// Nodes that never come back.
    pub gone: &'a BTreeSet<NodeId>,
    /// The move under way.
    pub moving: Option<Moving>,
    /// Replicas to take away: see [`crate::moves::surplus`].
    pub surplus: &'a BTreeSet<ReplicaId>,
    /// The node that gets the next missing replica: see [`crate::moves::gains`].
    pub gain: Option<NodeId>,
    /// At most this many voters.
    pub replication_factor: usize,
    /// Who should lead.
    pub preferred_leader: Option<NodeId>,
}

/// A replica takes another one's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moving {
    /// It leaves. Placed nowhere when the new one is on its node.
    pub from: ReplicaId,
    /// It comes.
    pub to: ReplicaId,
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
    /// Make exactly these the voters: to grow, to exchange, to shrink. Who is not among them leaves the group.
    SetVoters {
        /// The new set.
        voters: BTreeSet<ReplicaId>,
    },
    /// The new replica of the move has taken the old one's place.
    EndMove,
    /// Let a learner follow no longer.
    RemoveLearner(ReplicaId),
    /// Forget a placement that the group does not know.
    DropPlacement(ReplicaId),
    /// Give a node a replica of this group.
    AddReplica {
        /// The node.
        node: NodeId,
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
        return group.finish();
    }
    group
        .learner_to_add()
        .map(Step::AddLearner)
        // Before the voters change again: the new replica is one like any other from then on, and may leave.
        .or_else(|| group.has_moved().then_some(Step::EndMove))
        .or_else(|| group.change_of_voters())
        .or_else(|| group.learner_to_remove().map(Step::RemoveLearner))
        .or_else(|| group.placement_to_drop().map(Step::DropPlacement))
        .or_else(|| group.node_to_add().map(|node| Step::AddReplica { node }))
        .or_else(|| group.leader_to_make().map(Step::TransferLeader))
}

impl GroupView<'_> {
    fn placement_of(&self, replica: ReplicaId) -> Option<ReplicaPlacement> {
        self.placements.iter().find(|placement| placement.replica == replica).copied()
    }

    /// The leader itself answered; of others, the node must have been heard of.
    fn is_alive(&self, replica: ReplicaId) -> bool {
        replica == self.leader
            || self.placement_of(replica).is_some_and(|placement| self.alive.contains(&placement.node))
    }

    /// Alive and caught up: it may vote and lead.
    fn is_sound(&self, replica: ReplicaId) -> bool {
        replica == self.leader || (self.caught_up.contains(&replica) && self.is_alive(replica))
    }

    fn is_gone(&self, replica: ReplicaId) -> bool {
        self.placement_of(replica).is_none_or(|placement| self.gone.contains(&placement.node))
    }

    /// Whether `replica` is the old one of the move under way.
    fn is_source(&self, replica: ReplicaId) -> bool {
        self.moving.is_some_and(|moving| moving.from == replica)
    }

    /// Whether `replica` is the new one of the move under way.
    fn is_goal(&self, replica: ReplicaId) -> bool {
        self.moving.is_some_and(|moving| moving.to == replica)
    }

    fn learner_to_add(&self) -> Option<ReplicaPlacement> {
        let missing = |placement: &&ReplicaPlacement| {
            let replica = placement.replica;
            !self.membership.names(replica)
                && !self.surplus.contains(&replica)
                && !self.is_source(replica)
                && !self.is_gone(replica)
                && self.alive.contains(&placement.node)
        };
        let missing = self.placements.iter().filter(missing);
        missing.min_by_key(|placement| (!self.is_goal(placement.replica), placement.replica)).copied()
    }

    /// Learners that may vote now, the new one of a move first. When the old one only learns, so does the new one until the
    /// move is over.
    fn ready(&self) -> Vec<ReplicaId> {
        let source_votes = self.moving.is_some_and(|moving| self.membership.is_voter(moving.from));
        let able = |replica: &ReplicaId| {
            self.membership.learners.contains(replica)
                && !self.surplus.contains(replica)
                && !self.is_source(*replica)
                && !self.is_gone(*replica)
                && self.is_sound(*replica)
                && (source_votes || !self.is_goal(*replica))
        };
        let placed = self.placements.iter().map(|placement| placement.replica);
        let mut ready: Vec<ReplicaId> = placed.filter(able).collect();
        ready.sort_by_key(|replica| (!self.is_goal(*replica), *replica));
        ready
    }

    /// Leaves a joint configuration. Who led the change may be gone, and a voter that leaves with it was elected: that one would
    /// step down in the middle of it.
    fn finish(&self) -> Option<Step> {
        let voters = self.membership.goal()?;
        if voters.contains(&self.leader) {
            return Some(Step::FinishJoint { voters: voters.clone() });
        }
        self.heir(voters.iter()).map(Step::TransferLeader)
    }

    /// The old replica of the move, once the new one is ready or votes already.
    fn replaced(&self, now: &BTreeSet<ReplicaId>, ready: &[ReplicaId]) -> Option<ReplicaId> {
        let comes = |to: ReplicaId| now.contains(&to) || ready.contains(&to);
        let moving = self.moving.filter(|moving| comes(moving.to) && !self.surplus.contains(&moving.to));
        moving.map(|moving| moving.from)
    }

    /// How many replicas the group will have when the move is over and the surplus is gone, its factor at most.
    fn kept(&self) -> usize {
        let placed = self.placements.iter().map(|placement| placement.replica);
        let kept = placed.filter(|replica| !self.surplus.contains(replica) && !self.is_source(*replica));
        kept.count().min(self.replication_factor)
    }

    /// The voters as they should be next: those that stay, then learners that are ready, then those that should leave, as
    /// many as make the number odd. It shrinks only when voters are surplus, and then no further than it must.
    ///
    /// Surplus voters should leave, those on nodes that are gone, and the one that is `replaced`.
    fn voters_wished(
        &self,
        now: &BTreeSet<ReplicaId>,
        ready: &[ReplicaId],
        replaced: Option<ReplicaId>,
    ) -> BTreeSet<ReplicaId> {
        let leaves = |voter: &ReplicaId| {
            self.surplus.contains(voter) || self.is_gone(*voter) || replaced == Some(*voter)
        };
        let (mut leaving, mut staying): (Vec<ReplicaId>, Vec<ReplicaId>) =
            now.iter().partition(|v| leaves(v));
        let shrinks = !self.surplus.is_disjoint(now);
        let floor = odd_voters(now.len(), if shrinks { self.kept() } else { now.len() });
        let usable = staying.len() + ready.len();
        let count = odd_voters(usable, self.replication_factor.max(staying.len())).max(floor);
        // A surplus voter takes another one with it when an even number would stay; nothing else does.
        if count < staying.len() && !shrinks {
            return now.clone();
        }
        staying.sort_by_key(|replica| (*replica != self.leader, !self.is_sound(*replica), *replica));
        // Who is replaced goes first: the new one came in its place.
        leaving.sort_by_key(|replica| (replaced == Some(*replica), !self.is_sound(*replica), *replica));
        staying.into_iter().chain(ready.iter().copied()).chain(leaving).take(count).collect()
    }

    /// A change of voters, or the transfer of leadership that must precede it.
    fn change_of_voters(&self) -> Option<Step> {
        let now = self.membership.goal()?;
        let ready = self.ready();
        let wished = self.voters_wished(now, &ready, self.replaced(now, &ready));
        self.step_to(now, &wished)
            .or_else(|| {
                // The rest can be done before the move.
                let others: Vec<ReplicaId> =
                    ready.iter().copied().filter(|replica| !self.is_goal(*replica)).collect();
                self.step_to(now, &self.voters_wished(now, &others, None))
            })
            .or_else(|| self.step_to(now, &self.with_leader(now, wished)?))
    }

    fn step_to(&self, now: &BTreeSet<ReplicaId>, next: &BTreeSet<ReplicaId>) -> Option<Step> {
        if !self.may_follow(now, next) {
            return None;
        }
        if next.contains(&self.leader) {
            return Some(Step::SetVoters { voters: next.clone() });
        }
        // A leader outside the new set would step down in the middle of the change.
        self.heir(now.intersection(next)).map(Step::TransferLeader)
    }

    /// Whether both sets have a majority of voters that are alive and have caught up, and differ.
    fn may_follow(&self, now: &BTreeSet<ReplicaId>, next: &BTreeSet<ReplicaId>) -> bool {
        let sets = Membership { voters: vec![now.clone(), next.clone()], learners: BTreeSet::new() };
        now != next && sets.has_quorum(|replica| self.is_sound(replica))
    }

    /// Who leads when the leader leaves: the preferred leader if it is able, else the first that is. Who moves is the last choice.
    fn heir<'a>(&self, voters: impl Iterator<Item = &'a ReplicaId>) -> Option<ReplicaPlacement> {
        let able =
            voters.filter(|voter| self.is_sound(**voter)).filter_map(|voter| self.placement_of(*voter));
        able.min_by_key(|placement| {
            let ReplicaPlacement { replica, node } = *placement;
            (self.is_source(replica), Some(node) != self.preferred_leader, replica)
        })
    }

    /// When no voter stays, the leader does for one more change, so that leadership can go over before it leaves.
    ///
    /// A lone voter takes another one's place through a pair, the only even set: a joint configuration of the two would
    /// tolerate no more, and would end without a leader.
    fn with_leader(
        &self,
        now: &BTreeSet<ReplicaId>,
        mut wished: BTreeSet<ReplicaId>,
    ) -> Option<BTreeSet<ReplicaId>> {
        if !now.is_disjoint(&wished) {
            return None;
        }
        if now.len() > 1 || wished.len() > 1 {
            wished.pop_last();
        }
        wished.insert(self.leader);
        Some(wished)
    }

    /// Whether the group names the new replica of the move, and the old one no longer.
    fn has_moved(&self) -> bool {
        let names = |replica| self.membership.names(replica);
        self.moving.is_some_and(|moving| names(moving.to) && !names(moving.from))
    }

    /// A learner that is surplus, is placed nowhere, or whose place another learner has taken. A move to it is given up first.
    fn learner_to_remove(&self) -> Option<ReplicaId> {
        let follows = |moving: Moving| {
            self.membership.names(moving.to) && !self.surplus.contains(&moving.to) && self.is_sound(moving.to)
        };
        let replaced = self.moving.filter(|moving| follows(*moving)).map(|moving| moving.from);
        let needless = |learner: &&ReplicaId| {
            self.surplus.contains(learner)
                || self.placement_of(**learner).is_none()
                || replaced == Some(**learner)
        };
        self.membership.learners.iter().filter(|learner| !self.is_goal(**learner)).find(needless).copied()
    }

    fn placement_to_drop(&self) -> Option<ReplicaId> {
        let needless = |replica: &ReplicaId| {
            self.surplus.contains(replica)
                && !self.membership.names(*replica)
                && !self.is_goal(*replica)
                && !self.is_source(*replica)
        };
        self.placements.iter().map(|placement| placement.replica).find(needless)
    }

    fn node_to_add(&self) -> Option<NodeId> {
        let holds = |node: NodeId| self.placements.iter().any(|placement| placement.node == node);
        self.gain.filter(|node| !holds(*node) && self.alive.contains(node))
    }

    /// The preferred leader when it is able to lead and stays.
    fn leader_to_make(&self) -> Option<ReplicaPlacement> {
        let preferred = self.preferred_leader?;
        let placement = *self.placements.iter().find(|placement| placement.node == preferred)?;
        let replica = placement.replica;
        let able = replica != self.leader
            && self.membership.is_voter(replica)
            && !self.surplus.contains(&replica)
            && !self.is_source(replica)
            && self.is_sound(replica);
        able.then_some(placement)
    }
}

#[cfg(test)]
mod tests;
