//! Changes of voters, and the lock that they are together with permits.
//!
//! ```text
//! BeginChange ─► ChangeVoters ─► (joint) ─► uniform ─► ObserveMembership     which ends it
//!                     └── did not happen, and is wished for no more ─► EndChange, when no request can be on its way
//!                     └── nobody leads the group                    ─► EndChange, the same
//! ```
//!
//! While a permit is open nothing is begun. What was begun before a permit was asked for keeps that one from being
//! granted.

use std::{collections::BTreeSet, time::Duration};

use kv_proto::{
    disk::v1::{
        MoveReason, NodeState, ShardRecord, VoterChange,
        meta_command::{BeginChange, Command, EndChange},
    },
    peer::v1::{ChangeVoters, control_request::Request},
};
use kv_topology::{GroupId, NodeId, ReplicaId, ShardId, growth::Step};

use super::{
    Planner, Subject,
    groups::{Told, lag},
    layout::node_of,
    spell,
};

impl Planner<'_> {
    /// Takes the lock; the group is asked when that is known to have happened.
    pub(super) fn begin_change(&mut self, told: &Told<'_>, voters: &BTreeSet<ReplicaId>, reason: String) {
        let subject = Subject::Shard(told.shard_id());
        if let Some(holder) = self.permit_holder() {
            self.wait(subject, format!("held by the permit of {holder}: {reason}"));
            return;
        }
        let command = BeginChange {
            shard_id: told.shard.shard_id,
            group_id: told.shard.group_id,
            voter_replica_ids: voters.iter().map(|voter| voter.0).collect(),
            expected_membership: told.stored.log_id,
        };
        self.propose(subject, Command::BeginChange(command), reason);
    }

    /// Asks for the change that was begun for as long as it is what the group needs. `step` is what it needs now.
    pub(super) fn see_change_through(&mut self, told: &Told<'_>, change: &VoterChange, step: Option<Step>) {
        let begun: BTreeSet<ReplicaId> = change.voter_replica_ids.iter().copied().map(ReplicaId).collect();
        // A joint configuration is as old as it is: whoever finishes it goes out from it.
        let stands = told.membership.is_joint() || told.stored.log_id == change.expected_membership;
        let in_time = self.unasked(told.shard_id()) < self.patience.change;
        match step {
            Some(Step::FinishJoint { voters }) => {
                self.ask_to_change(told, &voters, format!("{} was left joint", told.membership));
            }
            Some(Step::SetVoters { voters }) if stands && voters == begun => {
                let reason = self.why_change(told, &voters);
                self.ask_to_change(told, &voters, reason);
            }
            // It leads the group that it leaves. When it cannot hand over, others need not wait for it, unless the change has begun.
            Some(step @ Step::TransferLeader(_)) if stands && (in_time || told.membership.is_joint()) => {
                self.take(told, step);
            }
            Some(_) | None => self.forget_change(told, change),
        }
    }

    fn ask_to_change(&mut self, told: &Told<'_>, voters: &BTreeSet<ReplicaId>, reason: String) {
        let request = ChangeVoters {
            group_id: told.shard.group_id,
            voter_replica_ids: voters.iter().map(|voter| voter.0).collect(),
            expected_membership: told.stored.log_id,
        };
        self.control(told.shard_id(), told.leader, Request::ChangeVoters(request), reason);
    }

    /// For how long nobody has asked the group for the change that was begun, as far as this controller can tell.
    pub(super) fn unasked(&self, shard: ShardId) -> Duration {
        self.seen.unasked.get(&shard).copied().unwrap_or_default()
    }

    /// Ends a change that is needed no more and did not happen. A joint configuration is not one that did not happen.
    fn forget_change(&mut self, told: &Told<'_>, change: &VoterChange) {
        let (id, unasked) = (told.shard_id(), self.unasked(told.shard_id()));
        if told.membership.is_joint() || unasked < self.patience.change {
            self.wait(Subject::Shard(id), format!("{} may still change its voters", told.membership));
            return;
        }
        let reason = format!(
            "its group is still {}, was not asked for {}, and cannot change now",
            told.membership,
            spell(unasked)
        );
        self.end_change(id, change, reason);
    }

    /// Ends a change of a group that nobody leads.
    ///
    /// It may have begun in Raft all the same, in the log of somebody who is away. It ends here nevertheless, since a group
    /// that has lost its quorum would refuse a permit to every node of the cluster for as long as that takes. What a permit
    /// promises (design 5.8) does not rest on it: nodes that host the shard get none while nobody leads it (unless one copy is
    /// wished for, whose outage is said), nor while its leader tells a joint configuration ([`kv_topology::permit`]); all voters
    /// of a change are on nodes that host it, and the restart of any other node costs its group nothing. Nor is a new replica
    /// lost that votes by now, unseen: its placement goes only when a leader does not name it. When one is back and tells a
    /// joint configuration, that one takes the lock again, and is finished first of all.
    pub(super) fn forget_unseen_change(&mut self, shard: &ShardRecord, change: &VoterChange) {
        let (id, group) = (ShardId(shard.shard_id), GroupId(shard.group_id));
        let unasked = self.unasked(id);
        if unasked < self.patience.change {
            let reason = format!("no leader of {group} answers, which may still change its voters");
            self.wait(Subject::Shard(id), reason);
            return;
        }
        let reason = format!("no leader of {group} answers, and it was not asked for {}", spell(unasked));
        self.end_change(id, change, reason);
    }

    fn end_change(&mut self, shard: ShardId, change: &VoterChange, reason: String) {
        let command = EndChange { shard_id: shard.0, expected_membership: change.expected_membership };
        self.propose(Subject::Shard(shard), Command::EndChange(command), reason);
    }

    /// Who comes and who leaves, and why.
    pub(super) fn why_change(&self, told: &Told<'_>, voters: &BTreeSet<ReplicaId>) -> String {
        let now = told.membership.goal().cloned().unwrap_or_default();
        let come: Vec<String> =
            voters.difference(&now).map(|replica| lag(told.description, *replica)).collect();
        let leave: Vec<String> =
            now.difference(voters).map(|replica| self.why_leaves(told, *replica)).collect();
        let come = (!come.is_empty()).then(|| {
            let verb = if come.len() == 1 { "has" } else { "have" };
            format!("{} {verb} caught up", come.join(", "))
        });
        let parts: Vec<String> = come.into_iter().chain(leave).collect();
        format!("{}: {}", told.membership, parts.join("; "))
    }

    /// Why a replica is taken away.
    pub(super) fn why_leaves(&self, told: &Told<'_>, replica: ReplicaId) -> String {
        let shard = told.shard;
        if let Some(under_way) = shard.r#move.filter(|under_way| under_way.from_replica_id == replica.0) {
            let cause = self.cause(under_way.reason(), NodeId(under_way.from_node_id), replica);
            return format!("{replica} leaves, as {cause}");
        }
        if self.layout.surplus_of(told.shard_id()).contains(&replica) {
            return format!("{replica} is one too many");
        }
        match node_of(shard, replica) {
            Some(node) if self.state(node) == NodeState::Removed => {
                format!("{replica} leaves, as {node} is no longer part of the cluster")
            }
            Some(_) if is_placed(shard, replica) => format!("{replica} leaves"),
            Some(_) | None => format!("{replica} is placed nowhere"),
        }
    }

    /// Why replicas move away, in words that follow "as".
    pub(super) fn cause(&self, reason: MoveReason, from: NodeId, replica: ReplicaId) -> String {
        match reason {
            MoveReason::Drain => format!("{from} is draining"),
            MoveReason::Lost => format!("{from} is lost"),
            MoveReason::Removed => format!("{from} is no longer part of the cluster"),
            MoveReason::Damaged => format!("{replica} is damaged"),
            MoveReason::Zones => "replicas spread better over zones".to_owned(),
            MoveReason::Balance => "replicas spread better over nodes".to_owned(),
            MoveReason::Unspecified => "its move was begun".to_owned(),
        }
    }
}

fn is_placed(shard: &ShardRecord, replica: ReplicaId) -> bool {
    shard.replicas.iter().any(|placement| placement.replica_id == replica.0)
}
