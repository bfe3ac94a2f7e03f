//! Changes of a group's membership, as the meta leader's controller asks for them.
//!
//! Raft membership is the truth. Every step is idempotent and carries what it expects to find, so that the controller
//! may die between any two of them and another one goes on. Who may ask for what is not decided here. What leaves the
//! voters leaves the group: no learner is made of it. A leader is never asked to leave: it gives the leadership away first.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kv_proto::{
    disk::v1 as disk,
    peer::v1::{GroupDescription, Progress, Refusal},
};
use kv_topology::{NodeId, ReplicaId, ShardId, permit::CAUGHT_UP_ENTRIES};
use openraft::{
    ChangeMembers, Raft,
    errors::{ClientWriteError, InitializeError, RaftError},
    metrics::RaftMetrics,
    raft::Precondition,
    storage::RaftStateMachine,
};
use openraft_rt::{AsyncRuntime, Instant as _, watch::WatchReceiver};
use tokio::time::timeout;

use super::{
    raft_control::Heard,
    read_gate::leader_of,
    type_config::{Member, TypeConfig},
};
use crate::{
    log::{
        LogView,
        codec::{log_id_from_disk, log_id_to_disk, membership_to_disk},
    },
    refusal,
};

/// A target that has not taken over by then: it needs a sync of its log and one round of votes. An election follows.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(1);
/// A member whose node was heard of within so many heartbeats is there: one is left out when an answer has just come, and the
/// next one goes out up to two ticks late.
const HEARD_HEARTBEATS: u32 = 3;
/// A replica that has answered nothing for so many heartbeats stands still, whatever is heard of its node. More than a node
/// may be silent for, since an answer that comes late counts for nothing.
const UNANSWERED_HEARTBEATS: u32 = 8;

/// The group's membership as one replica sees and changes it.
pub struct Membership<'a, RT, SM>
where
    RT: AsyncRuntime,
    SM: RaftStateMachine<TypeConfig<RT>>,
{
    /// The shard, for messages.
    pub shard: ShardId,
    /// The replica's Raft.
    pub raft: &'a Raft<TypeConfig<RT>, SM>,
    /// When other nodes were heard of.
    pub heard: &'a Heard,
    /// Its log, which knows how long entries are.
    pub log: &'a LogView,
}

impl<RT, SM> Membership<'_, RT, SM>
where
    RT: AsyncRuntime,
    SM: RaftStateMachine<TypeConfig<RT>>,
{
    /// Forms the group of these voters. Done already is done.
    ///
    /// # Errors
    /// The replica has stopped, or the members are malformed.
    pub async fn initialize(&self, members: &[disk::Member]) -> Result<(), Refusal> {
        let voters: BTreeMap<u64, Member> =
            members.iter().map(|member| (member.replica_id, Member { node: member.node_id })).collect();
        match self.raft.initialize(voters).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(error @ InitializeError::NotInMembers(_))) => {
                Err(refusal::internal(format!("shard {} cannot be initialized: {error}", self.shard)))
            }
            Err(RaftError::Fatal(_)) => Err(stopped()),
        }
    }

    /// Adds a learner, unless the membership names it already. Returns without waiting for it to catch up.
    ///
    /// # Errors
    /// Not the leader, or another change is under way.
    pub async fn add_learner(&self, member: disk::Member) -> Result<(), Refusal> {
        let known = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.membership().get_node(&member.replica_id).is_some()
        };
        if known && self.raft.is_leader() {
            return Ok(());
        }
        let node = Member { node: member.node_id };
        self.written(self.raft.add_learner(member.replica_id, node, false).await.map(drop))
    }

    /// Removes a learner, unless the membership does not name it any more.
    ///
    /// # Errors
    /// Not the leader, another change is under way, it votes, or the membership is no longer the expected one.
    pub async fn remove_learner(
        &self,
        replica: ReplicaId,
        expected: Option<&disk::LogId>,
    ) -> Result<(), Refusal> {
        if self.has_left(replica)? {
            return Ok(());
        }
        let change = ChangeMembers::RemoveNodes(BTreeSet::from([replica.get()]));
        let change = self.raft.change_membership_if(change, false, [precondition(expected)]);
        self.written(change.await.map(drop))
    }

    /// Makes exactly these replicas the voters; also finishes a joint configuration that was left behind. Who does not vote
    /// any more has left the group.
    ///
    /// # Errors
    /// Not the leader, another change is under way, the membership is no longer the expected one, or the leader itself
    /// would leave.
    pub async fn change_voters(
        &self,
        voters: BTreeSet<u64>,
        expected: Option<&disk::LogId>,
    ) -> Result<(), Refusal> {
        if !self.raft.is_leader() {
            return Err(refusal::not_leader(self.shard, leader_of(self.raft)));
        }
        let me = *self.raft.node_id();
        if !voters.contains(&me) {
            let message = format!("replica {me} leads shard {} and would leave it", self.shard);
            return Err(refusal::not_applied(refusal::LEADER_WOULD_LEAVE, message));
        }
        let change = ChangeMembers::ReplaceAllVoters(voters);
        let change = self.raft.change_membership_if(change, false, [precondition(expected)]);
        self.written(change.await.map(drop))
    }

    /// Hands the leadership to `target`, and returns when it leads. Done already is done.
    ///
    /// # Errors
    /// As [`Self::begin_transfer`]; also when somebody else leads afterwards, or nobody for a second.
    pub async fn transfer_leader(&self, target: ReplicaId) -> Result<(), Refusal> {
        if self.raft.is_leader() && *self.raft.node_id() == target.get() {
            return Ok(());
        }
        self.begin_transfer(target).await?;
        match timeout(TRANSFER_TIMEOUT, self.successor()).await {
            Ok(Ok(leader)) if leader == target.get() => Ok(()),
            // It may still become the leader: whoever leads now decides.
            Ok(Ok(leader)) => {
                let message = format!("r{leader} leads now, and not {target}");
                Err(refusal::not_applied(refusal::NOT_LEADER, message))
            }
            Ok(Err(stopped)) => Err(stopped),
            Err(_) => Err(refusal::outcome_unknown(format!(
                "replica {target} has not taken over within {} ms",
                TRANSFER_TIMEOUT.as_millis()
            ))),
        }
    }

    /// Begins to hand the leadership to `target`, after checking that it is a voter that has caught up and was heard of
    /// lately. Whether it takes over shows later.
    ///
    /// # Errors
    /// Not the leader, or the target cannot take over now.
    pub async fn begin_transfer(&self, target: ReplicaId) -> Result<(), Refusal> {
        self.check_target(target)?;
        self.raft.trigger().transfer_leader(target.get()).await.map_err(|_| stopped())
    }

    /// Who leads once this replica does not any more.
    async fn successor(&self) -> Result<u64, Refusal> {
        let mut metrics = self.raft.server_metrics();
        loop {
            let (me, leader) = {
                let now = metrics.borrow_watched();
                (now.id, now.current_leader)
            };
            if let Some(leader) = leader.filter(|leader| *leader != me) {
                return Ok(leader);
            }
            metrics.changed().await.map_err(|_| stopped())?;
        }
    }

    /// Whether the committed membership does not name a replica. An error when it is no learner, or nobody can say.
    fn has_left(&self, replica: ReplicaId) -> Result<bool, Refusal> {
        if !self.raft.is_leader() {
            return Err(refusal::not_leader(self.shard, leader_of(self.raft)));
        }
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let (stored, committed) = (&metrics.membership_config, &metrics.committed_membership_config);
        let changed = |message: String| Err(refusal::not_applied(refusal::MEMBERSHIP_CHANGED, message));
        if stored.log_id() != committed.log_id() {
            return changed(format!("a change of shard {} is under way", self.shard));
        }
        // Without this the change would also end it.
        if stored.membership().get_joint_config().len() > 1 {
            return changed(format!("shard {} has two sets of voters", self.shard));
        }
        if stored.voter_ids().any(|voter| voter == replica.get()) {
            return changed(format!("replica {replica} votes in shard {}", self.shard));
        }
        Ok(stored.membership().get_node(&replica.get()).is_none())
    }

    /// What the leader knows of the group.
    ///
    /// # Errors
    /// Not the leader.
    pub fn describe(&self) -> Result<GroupDescription, Refusal> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let Some(replication) = metrics.replication.as_ref().filter(|_| self.raft.is_leader()) else {
            return Err(refusal::not_leader(self.shard, leader_of(self.raft)));
        };
        let stored = &metrics.membership_config;
        let committed_index = metrics.local_committed.as_ref().map_or(0, |id| id.index);
        let progress = replication.iter().map(|(replica, matching)| {
            let matching = matching.as_ref().map(|id| id.index);
            let here = *replica == metrics.id;
            let silence = self.silence(&metrics, *replica);
            let lacks = |matching| self.log.bytes_between(matching, committed_index);
            Progress {
                replica_id: *replica,
                matching_index: matching.unwrap_or(0),
                heard_ms_ago: if here { Some(0) } else { silence.map(whole_ms) },
                lag_bytes: if here { Some(0) } else { matching.and_then(lacks) },
            }
        });
        Ok(GroupDescription {
            membership: Some(disk::StoredMembership {
                log_id: stored.log_id().as_ref().map(log_id_to_disk),
                membership: Some(membership_to_disk(stored.membership())),
            }),
            term: metrics.current_term,
            last_log_index: metrics.last_log_index.unwrap_or(0),
            progress: progress.collect(),
            leader_replica_id: metrics.id,
            committed_index,
        })
    }

    /// Whether a replica on this node is in the group, as this replica knows it.
    pub fn has_member_on(&self, node: NodeId) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.nodes().any(|(_, member)| member.node == node.get())
    }

    /// Whether another member is there, as a leader knows it.
    pub(super) fn is_heard(&self, metrics: &RaftMetrics<TypeConfig<RT>>, replica: u64) -> bool {
        self.silence(metrics, replica).is_some_and(|silence| silence <= self.heartbeats(HEARD_HEARTBEATS))
    }

    /// See [`silence`].
    fn silence(&self, metrics: &RaftMetrics<TypeConfig<RT>>, replica: u64) -> Option<Duration> {
        let member = metrics.membership_config.membership().get_node(&replica)?;
        let of_node = (self.heard)(NodeId(member.node))?.elapsed();
        let answered = metrics.heartbeat.as_ref().and_then(|all| all.get(&replica).copied().flatten());
        silence(of_node, answered.map(|sent| sent.elapsed()), self.heartbeats(UNANSWERED_HEARTBEATS))
    }

    fn heartbeats(&self, count: u32) -> Duration {
        Duration::from_millis(self.raft.config().heartbeat_interval) * count
    }

    fn check_target(&self, target: ReplicaId) -> Result<(), Refusal> {
        let group = self.describe()?;
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let voter = metrics.membership_config.voter_ids().any(|id| id == target.get());
        let lag = group
            .progress
            .iter()
            .find(|progress| progress.replica_id == target.get())
            .map(|progress| group.last_log_index.saturating_sub(progress.matching_index));
        match lag {
            Some(lag) if voter && lag <= CAUGHT_UP_ENTRIES => {
                if self.is_heard(&metrics, target.get()) {
                    Ok(())
                } else {
                    Err(unfit(format!("replica {target} has not been heard of lately")))
                }
            }
            Some(lag) if voter => Err(unfit(format!("replica {target} lags {lag} entries behind"))),
            Some(_) | None => Err(unfit(format!("replica {target} is no voter of shard {}", self.shard))),
        }
    }

    fn written(
        &self,
        result: Result<(), RaftError<TypeConfig<RT>, ClientWriteError<TypeConfig<RT>>>>,
    ) -> Result<(), Refusal> {
        match result {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                Err(refusal::not_leader(self.shard, leader_of(self.raft)))
            }
            Err(RaftError::APIError(error @ ClientWriteError::LogEntryDiscarded(_))) => {
                Err(refusal::outcome_unknown(error.to_string()))
            }
            Err(RaftError::APIError(
                error
                @ (ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_)),
            )) => Err(refusal::not_applied(refusal::MEMBERSHIP_CHANGED, error.to_string())),
            Err(RaftError::Fatal(_)) => Err(stopped()),
        }
    }
}

fn precondition<RT: AsyncRuntime>(expected: Option<&disk::LogId>) -> Precondition<TypeConfig<RT>> {
    Precondition::LastMembershipLogId { last_membership_log_id: expected.map(log_id_from_disk) }
}

fn unfit(message: String) -> Refusal {
    refusal::not_applied(refusal::TARGET_NOT_READY, message)
}

fn stopped() -> Refusal {
    refusal::not_applied(refusal::STOPPING, "the replica has stopped")
}

/// For how long nothing was heard of a member: of its node, or of the replica itself when it stands still on a node that lives,
/// as one does that is quarantined. `answered`: since it was sent what it has answered last in this term. `None`: it never did.
fn silence(of_node: Duration, answered: Option<Duration>, limit: Duration) -> Option<Duration> {
    match answered {
        Some(answered) if answered <= limit => Some(of_node),
        Some(answered) => Some(answered.max(of_node)),
        None => (of_node > limit).then_some(of_node),
    }
}

fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_answers_nothing_is_silent_however_loud_its_node_is() {
        let ms = Duration::from_millis;
        let silence = |of_node, answered: Option<u64>| silence(ms(of_node), answered.map(ms), ms(1_200));
        assert_eq!(silence(100, Some(160)), Some(ms(100)));
        assert_eq!(silence(100, Some(1_200)), Some(ms(100)), "an answer may be late");
        assert_eq!(silence(100, Some(1_201)), Some(ms(1_201)));
        assert_eq!(silence(9_000, Some(2_000)), Some(ms(9_000)));
        assert_eq!(silence(100, None), None, "it has answered this leader nothing yet");
        assert_eq!(silence(9_000, None), Some(ms(9_000)));
    }
}
