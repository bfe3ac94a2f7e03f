//! A running replica, as the rest of the node sees it.
//!
//! Knows nothing of the runtime or of openraft's types: writes go through the proposer, reads through the gate and then
//! the state, and everything about the group itself through [`GroupControl`].

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use kv_proto::{
    admin::v1::ReplicaStatus,
    disk::v1 as disk,
    kv::v1::{Consistency, ReadOptions, ServedBy},
    peer::v1::{GroupDescription, Outcome, ReadRequest, ReadResponse, Refusal, ReplyContext, refusal::Kind},
};
use kv_topology::{GroupId, NodeId, ReplicaId, ShardId};
use tokio::time::{Instant, timeout_at};

use super::{
    proposer::Proposer,
    read_gate::{Passed, ReadGate},
};
use crate::refusal;

/// How old the state may be that answers a STALE read without a stated bound.
pub const STALENESS_DEFAULT: Duration = Duration::from_secs(10);

/// The state of one replica, for reads. Pins nothing between two calls but what a read asks it to.
pub trait ReadState: Send + Sync + 'static {
    /// Answers the read from the state as it is now; the context of the answer has its revision. Never blocks: what may
    /// touch the disk runs on threads of its own.
    ///
    /// # Errors
    /// Damaged bytes, a slot that is not owned, a replaced value, too many reads at once.
    fn answer(&self, request: ReadRequest) -> BoxFuture<'static, Result<ReadResponse, Refusal>>;

    /// Answers reads from one moment of the state, at once. `None` for each that [`Self::answer`] must take.
    fn answer_from_memory(&self, requests: &[ReadRequest]) -> Vec<Option<Result<ReadResponse, Refusal>>>;

    /// Answers a read that names a pinned moment: from that moment, or that it is given up now. `None`: the read names
    /// none that is kept here.
    fn pinned(&self, request: &ReadRequest) -> Option<BoxFuture<'static, Result<ReadResponse, Refusal>>>;

    /// The same as [`Self::answer`] on this thread, which it may block; nothing is pinned.
    ///
    /// # Errors
    /// As [`Self::answer`].
    fn read(&self, request: &ReadRequest) -> Result<ReadResponse, Refusal>;

    /// Revision of the shard's data.
    fn revision(&self) -> u64;

    /// The log time that the state has reached, ms.
    fn log_time_ms(&self) -> u64;

    /// Whether the group knows its slots: the first thing that a new data group is told.
    fn owns_slots(&self) -> bool;

    /// Sessions of the shard, and outcomes that they keep.
    fn sessions(&self) -> (usize, usize);

    /// Whether uploads to the shard are under way.
    fn has_uploads(&self) -> BoxFuture<'static, bool>;

    /// Waits until the entry at `index` is visible; for ever, if it never is.
    fn wait_applied(&self, index: u64) -> BoxFuture<'static, ()>;

    /// Waits until the shard's data have reached this revision here; for ever, if they never do.
    fn wait_revision(&self, revision: u64) -> BoxFuture<'static, ()>;
}

/// What the rest of the node asks of a replica's Raft.
pub trait GroupControl: Send + Sync + 'static {
    /// The node that leads, as far as this replica knows.
    fn leader(&self) -> Option<NodeId>;
    /// The term that this replica is in.
    fn term(&self) -> u64;
    /// Why the replica has stopped by itself, if it has: it neither votes nor serves any more.
    fn failure(&self) -> Option<String>;
    /// For status and metrics.
    fn status(&self) -> ReplicaStatus;
    /// See [`super::membership::Membership::describe`].
    ///
    /// # Errors
    /// Not the leader.
    fn describe(&self) -> Result<GroupDescription, Refusal>;
    /// See [`super::membership::Membership::initialize`].
    fn initialize(&self, members: Vec<disk::Member>) -> BoxFuture<'static, Result<(), Refusal>>;
    /// See [`super::membership::Membership::add_learner`].
    fn add_learner(&self, member: disk::Member) -> BoxFuture<'static, Result<(), Refusal>>;
    /// See [`super::membership::Membership::change_voters`].
    fn change_voters(
        &self,
        voters: BTreeSet<u64>,
        expected: Option<disk::LogId>,
    ) -> BoxFuture<'static, Result<(), Refusal>>;
    /// See [`super::membership::Membership::remove_learner`].
    fn remove_learner(
        &self,
        replica: ReplicaId,
        expected: Option<disk::LogId>,
    ) -> BoxFuture<'static, Result<(), Refusal>>;
    /// See [`super::membership::Membership::transfer_leader`].
    fn transfer_leader(&self, target: ReplicaId) -> BoxFuture<'static, Result<(), Refusal>>;
    /// See [`super::membership::Membership::begin_transfer`].
    fn begin_transfer(&self, target: ReplicaId) -> BoxFuture<'static, Result<(), Refusal>>;
    /// See [`super::membership::Membership::has_member_on`].
    fn has_member_on(&self, node: NodeId) -> bool;
    /// Whether the replica may campaign, from now on. It does until it is told.
    fn set_campaigning(&self, may: bool);
    /// Gives the leadership away to whoever has caught up best of those that are there, if this replica leads. Returns when
    /// it does not any more, or nobody takes it.
    fn give_away(&self) -> BoxFuture<'static, ()>;
    /// Gives the leadership away, and never campaigns again.
    fn hand_over(&self) -> BoxFuture<'static, ()> {
        // It would give away at once what it won now.
        self.set_campaigning(false);
        self.give_away()
    }
    /// Starts compaction up to what is on disk.
    fn compact(&self) -> BoxFuture<'static, ()>;
    /// Stops the replica, and waits for that for a few seconds at most; its durable state stays.
    fn stop(&self) -> BoxFuture<'static, ()>;
}

/// A running replica.
#[derive(Clone)]
pub struct Replica {
    /// The shard that it is a copy of.
    pub shard: ShardId,
    /// Its Raft group.
    pub group: GroupId,
    /// Its own id.
    pub id: ReplicaId,
    /// The node that it lives on: this one.
    pub node: NodeId,
    /// Takes writes.
    pub proposer: Proposer,
    /// Makes reads wait.
    pub gate: ReadGate,
    /// Answers reads.
    pub state: Arc<dyn ReadState>,
    /// Everything else.
    pub control: Arc<dyn GroupControl>,
}

impl Replica {
    /// Proposes operations; one outcome for each.
    ///
    /// # Errors
    /// See [`Proposer::propose`].
    pub async fn write(
        &self,
        operations: Vec<disk::Operation>,
        deadline: Instant,
    ) -> Result<Vec<Outcome>, Refusal> {
        let mut outcomes = self.proposer.propose(operations, deadline).await?;
        for outcome in &mut outcomes {
            let context = outcome.context.get_or_insert_with(ReplyContext::default);
            context.node_id = self.node.get();
            context.shard_id = self.shard.get();
            context.served_by = ServedBy::Leader.into();
        }
        Ok(outcomes)
    }

    /// Reads with the consistency that the request names. What was pinned had it when it was pinned.
    ///
    /// # Errors
    /// No leader in time, a state that is too old, damaged bytes.
    pub async fn read(&self, request: &ReadRequest, deadline: Instant) -> Result<ReadResponse, Refusal> {
        if let Some(pinned) = self.state.pinned(request) {
            let leader_here = self.control.leader() == Some(self.node);
            return self.answered(pinned, (self.control.term(), leader_here), deadline).await;
        }
        let options = request.options.unwrap_or_default();
        let (term, leader_here) = match options.consistency() {
            Consistency::Unspecified | Consistency::Linearizable => {
                let Passed { point, answer } = self.gate.read(request, deadline).await?;
                let origin = (point.term, point.leader_here);
                if let Some(answer) = answer {
                    return Ok(self.signed(answer?, origin));
                }
                origin
            }
            Consistency::Stale => {
                self.be_young_enough(&options, deadline).await?;
                self.reach_revision(options.min_revision, deadline).await?;
                (self.control.term(), self.control.leader() == Some(self.node))
            }
        };
        self.answered(self.state.answer(request.clone()), (term, leader_here), deadline).await
    }

    /// Waits for the state's answer.
    async fn answered(
        &self,
        answer: BoxFuture<'static, Result<ReadResponse, Refusal>>,
        origin: (u64, bool),
        deadline: Instant,
    ) -> Result<ReadResponse, Refusal> {
        let response = timeout_at(deadline, answer).await.unwrap_or_else(|_| Err(slow(self.shard)))?;
        Ok(self.signed(response, origin))
    }

    /// Says where an answer was made: in which term, and whether by the leader.
    fn signed(&self, mut response: ReadResponse, (term, leader_here): (u64, bool)) -> ReadResponse {
        let context = response.context.get_or_insert_default();
        context.node_id = self.node.get();
        context.shard_id = self.shard.get();
        context.term = term;
        context.served_by = if leader_here { ServedBy::Leader } else { ServedBy::Follower }.into();
        response
    }

    /// A state that is known to be young enough answers at once; otherwise the leader is asked as for a linearizable
    /// read, and without its answer the read is refused.
    async fn be_young_enough(&self, options: &ReadOptions, deadline: Instant) -> Result<(), Refusal> {
        let limit = match options.max_staleness_ms {
            0 => STALENESS_DEFAULT,
            stated => Duration::from_millis(u64::from(stated)),
        };
        let age = || self.gate.current_at().map(|known| known.elapsed());
        if age().is_some_and(|age| age <= limit) {
            return Ok(());
        }
        match self.gate.ready(deadline).await {
            Ok(_) => Ok(()),
            Err(refused) if refused.kind() == Kind::ResourceExhausted => Err(refused),
            Err(refused) => {
                let known =
                    age().map_or("not at all".to_owned(), |age| format!("{} ms ago", age.as_millis()));
                let (shard, why) = (self.shard, refused.message);
                Err(too_stale(format!(
                    "the replica of shard {shard} was last known to be current {known}: {why}"
                )))
            }
        }
    }

    async fn reach_revision(&self, revision: u64, deadline: Instant) -> Result<(), Refusal> {
        let reached = timeout_at(deadline, self.state.wait_revision(revision)).await;
        reached.map_err(|_| {
            too_stale(format!("shard {} is at revision {} here", self.shard, self.state.revision()))
        })
    }
}

fn slow(shard: ShardId) -> Refusal {
    refusal::deadline_exceeded(format!("the state of shard {shard} was not read before the deadline"))
}

fn too_stale(message: String) -> Refusal {
    refusal::not_applied(refusal::TOO_STALE, message)
}
