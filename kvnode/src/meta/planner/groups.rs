//! The next step of one shard: what its group lacks, step by step.
//!
//! The order of looking: what is begun and needed no more is given up; the change of voters under way is seen through;
//! placed replicas are created; the group is called to life; its membership is observed; then [`kv_topology::growth`] says
//! what comes next.

use std::collections::BTreeSet;

use kv_proto::{
    disk::v1::{
        Member, NodeState, ShardRecord, StoredMembership,
        meta_command::{AddReplica, Command, DropReplica, EndMove, ObserveMembership},
    },
    peer::v1::{
        AddLearner, CreateReplica, GroupDescription, Progress, RemoveLearner, TransferLeader,
        control_request::Request,
    },
};
use kv_topology::{
    GroupId, Membership, NodeId, ReplicaId, ShardId,
    growth::{self, GroupView, Moving, Step},
    map::ReplicaPlacement,
    permit::CAUGHT_UP_ENTRIES,
};

use super::{Planner, Subject, factor_of};
use crate::meta::view::{log_position, membership, placements, some_node};

/// A replica that lacks more bytes than this neither begins to vote nor to lead. It is what a follower takes within a
/// fraction of a second; less would never be seen of a learner under load with large values.
const NEAR_BYTES: u64 = 8 << 20;

/// Nor does one whose node its leader has not heard of for so long: longer than any pause between heartbeats, and than it
/// takes this node to miss one that is gone. Where two nodes do not reach each other, and both reach this one, nothing else
/// tells.
const NEAR_MS: u64 = 5_000;

/// A group as its leader tells it, for the steps that its leader takes.
pub(super) struct Told<'a> {
    pub(super) shard: &'a ShardRecord,
    pub(super) description: &'a GroupDescription,
    pub(super) stored: &'a StoredMembership,
    pub(super) membership: &'a Membership,
    /// Where the leader is.
    pub(super) leader: NodeId,
}

impl Told<'_> {
    pub(super) fn shard_id(&self) -> ShardId {
        ShardId(self.shard.shard_id)
    }

    fn leading_replica(&self) -> ReplicaId {
        ReplicaId(self.description.leader_replica_id)
    }
}

impl Planner<'_> {
    pub(super) fn step_for(&mut self, shard: &ShardRecord) {
        let id = ShardId(shard.shard_id);
        let group = GroupId(shard.group_id);
        let description = self.seen.groups.get(&group);
        if let Some((end, reason)) = self.move_to_abandon(shard) {
            self.propose(Subject::Shard(id), Command::EndMove(end), reason);
            return;
        }
        // Before replicas are created, which a node may refuse for ever: permits wait for the end of a change.
        let changing = description.filter(|told| is_changing(shard, told));
        if let Some(description) = changing {
            self.go_on(shard, description);
            if !self.is_free(id) {
                return;
            }
        }
        if let (None, Some(change)) = (description, &shard.change)
            && self.unasked(id) >= self.patience.change
        {
            self.forget_unseen_change(shard, change);
            return;
        }
        if let Some(placement) = self.replica_to_create(shard, description) {
            let (shard_id, group_id, replica_id) = (shard.shard_id, shard.group_id, placement.replica.0);
            let request = Request::CreateReplica(CreateReplica { shard_id, group_id, replica_id });
            self.control(id, placement.node, request, format!("{} is placed there", placement.replica));
            return;
        }
        if shard.observed.is_none() && !id.is_meta() && !self.seen.formed.contains(&group) {
            self.form(shard, description);
            return;
        }
        match (description, &shard.change) {
            (Some(description), _) if changing.is_none() => self.go_on(shard, description),
            (Some(_), _) => {}
            (None, Some(change)) => self.forget_unseen_change(shard, change),
            (None, None) => self.wait(Subject::Shard(id), format!("no leader of {group} answers")),
        }
    }

    /// Keeps what is seen of a formed group, or does what its leader can do for it.
    fn go_on(&mut self, shard: &ShardRecord, description: &GroupDescription) {
        let Some(seen) = newer_membership(shard, description) else {
            self.advance(shard, description);
            return;
        };
        let reason = format!("its leader tells {}", membership(seen));
        let (shard_id, group_id, membership) = (shard.shard_id, shard.group_id, Some(seen.clone()));
        let command = ObserveMembership { shard_id, group_id, membership };
        self.propose(Subject::Shard(ShardId(shard_id)), Command::ObserveMembership(command), reason);
    }

    /// A placed replica that its node has neither confirmed nor shown by following its leader, and that is to stay.
    fn replica_to_create(
        &self,
        shard: &ShardRecord,
        description: Option<&GroupDescription>,
    ) -> Option<ReplicaPlacement> {
        let follows = |replica: ReplicaId| {
            description.is_some_and(|description| {
                description.leader_replica_id == replica.0
                    || progress_of(description, replica).is_some_and(|progress| progress.matching_index > 0)
            })
        };
        let surplus = self.layout.surplus_of(ShardId(shard.shard_id));
        let leaves = |replica: ReplicaId| {
            surplus.contains(&replica)
                || shard.r#move.is_some_and(|under_way| under_way.from_replica_id == replica.0)
        };
        placements(shard).into_iter().find(|placement| {
            let founder = shard.shard_id == 0 && shard.observed.is_none();
            !founder
                && self.is_there(placement.node)
                && self.state(placement.node) != NodeState::Removed
                && !self.seen.created.contains(&placement.replica)
                && !self.seen.unfit.contains(&placement.replica)
                && !leaves(placement.replica)
                && !follows(placement.replica)
        })
    }

    /// What its leader can do for a formed group.
    fn advance(&mut self, shard: &ShardRecord, description: &GroupDescription) {
        let id = ShardId(shard.shard_id);
        let Some(stored) = &description.membership else { return };
        let told = membership(stored);
        let observed = shard.observed.as_ref().and_then(log_position);
        if !told.is_joint() && log_position(stored) != observed {
            // Older than what was seen: whoever answers leads no more and does not know it. Newer: not committed yet.
            self.wait(Subject::Shard(id), format!("{told} is not what its group has agreed on"));
            return;
        }
        let placed = placements(shard);
        let caught_up = self.caught_up(description);
        let gone = self.gone_nodes();
        let surplus = self.layout.surplus_of(id);
        let group = GroupView {
            placements: &placed,
            membership: &told,
            leader: ReplicaId(description.leader_replica_id),
            caught_up: &caught_up,
            alive: &self.seen.heard,
            gone: &gone,
            moving: shard.r#move.map(|under_way| Moving {
                from: ReplicaId(under_way.from_replica_id),
                to: ReplicaId(under_way.to_replica_id),
            }),
            surplus: &surplus,
            gain: self.layout.gains.get(&id).copied(),
            replication_factor: factor_of(self.record, shard),
            preferred_leader: self.leader_to_wish_for(shard),
        };
        let step = growth::next_step(&group);
        let leader = placed.iter().find(|placement| placement.replica.0 == description.leader_replica_id);
        let Some(leader) = leader else {
            if step.is_some() {
                let reason = format!("r{} leads and is placed nowhere", description.leader_replica_id);
                self.wait(Subject::Shard(id), reason);
            }
            return;
        };
        let told = Told { shard, description, stored, membership: &told, leader: leader.node };
        match (&shard.change, step) {
            (Some(change), step) => self.see_change_through(&told, change, step),
            (None, Some(step)) => self.take(&told, step),
            (None, None) => self.explain_rest(&told, &caught_up),
        }
    }

    /// The step that growth asks for as a request or a command.
    pub(super) fn take(&mut self, told: &Told<'_>, step: Step) {
        let (id, shard) = (told.shard_id(), told.shard);
        let (shard_id, group_id) = (shard.shard_id, shard.group_id);
        match step {
            Step::AddReplica { node } => {
                let command = AddReplica { shard_id, node_id: node.0, expected_epoch: self.epoch() };
                let held: Vec<String> =
                    shard.replicas.iter().map(|known| format!("#{}", known.node_id)).collect();
                let factor = factor_of(self.record, shard);
                let reason = format!("held by {}, and {factor} replicas are wished for", held.join(" "));
                self.propose(Subject::Shard(id), Command::AddReplica(command), reason);
            }
            Step::AddLearner(placement) => {
                let member = Member { replica_id: placement.replica.0, node_id: placement.node.0 };
                let request = Request::AddLearner(AddLearner { group_id, member: Some(member) });
                let reason = format!("{} is not in {}", placement.replica, told.membership);
                self.control(id, told.leader, request, reason);
            }
            Step::SetVoters { voters } => {
                let reason = self.why_change(told, &voters);
                self.begin_change(told, &voters, reason);
            }
            Step::FinishJoint { voters } => {
                self.begin_change(told, &voters, format!("{} was left joint", told.membership));
            }
            Step::EndMove => {
                let Some(under_way) = shard.r#move else { return };
                let (to, from) = (under_way.to_replica_id, under_way.from_replica_id);
                let reason = format!("r{to} has taken the place of r{from}: {}", told.membership);
                let command = EndMove { shard_id, move_id: under_way.move_id, abandoned: false };
                self.propose(Subject::Shard(id), Command::EndMove(command), reason);
            }
            Step::RemoveLearner(replica) => {
                let (replica_id, expected_membership) = (replica.0, told.stored.log_id);
                let request = RemoveLearner { group_id, replica_id, expected_membership };
                let reason = self.why_leaves(told, replica);
                self.control(id, told.leader, Request::RemoveLearner(request), reason);
            }
            Step::DropPlacement(replica) => {
                let reason = format!("{}; it is not in {}", self.why_leaves(told, replica), told.membership);
                let command = DropReplica { shard_id, replica_id: replica.0 };
                self.propose(Subject::Shard(id), Command::DropReplica(command), reason);
            }
            Step::TransferLeader(placement) => {
                let to_replica = placement.replica.0;
                let request = Request::TransferLeader(TransferLeader { group_id, to_replica });
                let reason = self.why_transfer(told, placement.node);
                self.control(id, told.leader, request, reason);
            }
        }
    }

    fn why_transfer(&self, told: &Told<'_>, to: NodeId) -> String {
        let leading = told.leading_replica();
        let leaves = told.shard.r#move.is_some_and(|under_way| under_way.from_replica_id == leading.0)
            || self.layout.surplus_of(told.shard_id()).contains(&leading);
        if leaves {
            format!("{to} should lead: {}", self.why_leaves(told, leading))
        } else {
            format!("{to} should lead, {} does", told.leader)
        }
    }

    /// Replicas that may vote and lead: near behind their leader's log, and fit.
    fn caught_up(&self, description: &GroupDescription) -> BTreeSet<ReplicaId> {
        let last = description.last_log_index;
        let near = description.progress.iter().filter(|progress| is_near(progress, last));
        let near = near.map(|progress| ReplicaId(progress.replica_id));
        let fit = near.filter(|replica| !self.seen.unfit.contains(replica));
        fit.chain([ReplicaId(description.leader_replica_id)]).collect()
    }

    fn gone_nodes(&self) -> BTreeSet<NodeId> {
        let removed = self.record.nodes.iter().filter(|node| node.state() == NodeState::Removed);
        removed.map(|node| NodeId(node.node_id)).collect()
    }

    /// Who should lead, unless that node goes, or has no room for what a leader takes in.
    fn leader_to_wish_for(&self, shard: &ShardRecord) -> Option<NodeId> {
        let suits = |node: &NodeId| self.state(*node) == NodeState::Active && !self.seen.full.contains(node);
        some_node(shard.preferred_leader_node_id).filter(suits)
    }

    /// Says what keeps a group from being as wished.
    fn explain_rest(&mut self, told: &Told<'_>, caught_up: &BTreeSet<ReplicaId>) {
        let lagging = told.membership.learners.iter().filter(|learner| !caught_up.contains(learner));
        let lagging: Vec<String> = lagging.map(|replica| lag(told.description, *replica)).collect();
        if !lagging.is_empty() {
            let reason = format!("{} must catch up", lagging.join(", "));
            self.wait(Subject::Shard(told.shard_id()), reason);
        }
    }
}

/// `r7 (1204 entries behind)`.
pub(super) fn lag(description: &GroupDescription, replica: ReplicaId) -> String {
    match progress_of(description, replica) {
        Some(progress) if progress.matching_index > 0 => {
            let behind = description.last_log_index.saturating_sub(progress.matching_index);
            format!("{replica} ({behind} entries behind)")
        }
        Some(_) | None => format!("{replica} (not reached yet)"),
    }
}

pub(super) fn progress_of(description: &GroupDescription, replica: ReplicaId) -> Option<&Progress> {
    description.progress.iter().find(|progress| progress.replica_id == replica.0)
}

/// Whether the voters of a group that was formed are changing, as the record or its leader says.
fn is_changing(shard: &ShardRecord, description: &GroupDescription) -> bool {
    let is_joint = || description.membership.as_ref().is_some_and(|told| membership(told).is_joint());
    shard.observed.is_some() && (shard.change.is_some() || is_joint())
}

/// Whether a replica is close enough behind the end of its leader's log, and its leader in touch with it.
pub(in crate::meta) fn is_near(progress: &Progress, last_log_index: u64) -> bool {
    // A replica that its leader never reached matches nothing, however short the log is.
    progress.matching_index > 0
        && progress.matching_index.saturating_add(CAUGHT_UP_ENTRIES) >= last_log_index
        && progress.lag_bytes.is_none_or(|bytes| bytes <= NEAR_BYTES)
        && progress.heard_ms_ago.is_none_or(|ago| ago <= NEAR_MS)
}

/// The described membership, when it is worth keeping: committed, uniform, and newer than the one kept.
pub(super) fn newer_membership<'a>(
    shard: &ShardRecord,
    description: &'a GroupDescription,
) -> Option<&'a StoredMembership> {
    let told = description.membership.as_ref()?;
    let index = told.log_id.as_ref()?.index;
    let kept = shard.observed.as_ref().and_then(log_position);
    let worth = index <= description.committed_index
        && membership(told).voters.len() == 1
        && log_position(told) > kept;
    worth.then_some(told)
}
