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
    peer::v1::{GroupDescription, Outcome, ReadRequest, ReadResponse, Refusal, ReplyContext},
};
use kv_topology::{GroupId, NodeId, ReplicaId, ShardId};
use tokio::time::{Instant, sleep_until};

use super::{proposer::Proposer, read_gate::ReadGate};
use crate::refusal;

/// STALE reads without a stated bound are refused after this long without contact with a leader.
pub const STALENESS_DEFAULT: Duration = Duration::from_secs(10);
/// How often a read that waits for a revision looks again.
const REVISION_POLL: Duration = Duration::from_millis(5);

/// The state of one replica, for reads. Pins nothing between two calls.
pub trait ReadState: Send + Sync + 'static {
    /// Answers the read from the state as it is now; the context of the answer has its revision.
    ///
    /// # Errors
    /// Damaged bytes, a slot that is not owned, a replaced value.
    fn read(&self, request: &ReadRequest) -> Result<ReadResponse, Refusal>;

    /// Revision of the shard's data.
    fn revision(&self) -> u64;

    /// The log time that the state has reached, ms.
    fn log_time_ms(&self) -> u64;

    /// Whether the group knows its slots: the first thing that a new data group is told.
    fn owns_slots(&self) -> bool;

    /// Waits until the entry at `index` is visible; for ever, if it never is.
    fn wait_applied(&self, index: u64) -> BoxFuture<'static, ()>;
}

/// What the rest of the node asks of a replica's Raft.
pub trait GroupControl: Send + Sync + 'static {
    /// The node that leads, as far as this replica knows.
    fn leader(&self) -> Option<NodeId>;
    /// The term that this replica is in.
    fn term(&self) -> u64;
    /// When this replica last heard of a leader that is backed by a quorum; now, if it is that leader.
    fn last_contact(&self) -> Option<Instant>;
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
    /// See [`super::membership::Membership::transfer_leader`].
    fn transfer_leader(&self, target: ReplicaId) -> BoxFuture<'static, Result<(), Refusal>>;
    /// Gives the leadership away to whoever has caught up best; nothing when this replica does not lead.
    fn hand_over(&self) -> BoxFuture<'static, ()>;
    /// Starts compaction up to what is on disk.
    fn compact(&self) -> BoxFuture<'static, ()>;
    /// Stops the replica; its durable state stays.
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

    /// Reads with the consistency that the request names.
    ///
    /// # Errors
    /// No leader in time, a state that is too old, damaged bytes.
    pub async fn read(&self, request: &ReadRequest, deadline: Instant) -> Result<ReadResponse, Refusal> {
        let options = request.options.unwrap_or_default();
        let (term, leader_here) = match options.consistency() {
            Consistency::Unspecified | Consistency::Linearizable => {
                let point = self.gate.ready(deadline).await?;
                (point.term, point.leader_here)
            }
            Consistency::Stale => {
                self.check_staleness(&options)?;
                self.reach_revision(request, options.min_revision, deadline).await?;
                (self.control.term(), self.control.leader() == Some(self.node))
            }
        };
        let mut response = self.state.read(request)?;
        let context = response.context.get_or_insert_default();
        context.node_id = self.node.get();
        context.shard_id = self.shard.get();
        context.term = term;
        context.served_by = if leader_here { ServedBy::Leader } else { ServedBy::Follower }.into();
        Ok(response)
    }

    fn check_staleness(&self, options: &ReadOptions) -> Result<(), Refusal> {
        let limit = match options.max_staleness_ms {
            0 => STALENESS_DEFAULT,
            stated => Duration::from_millis(u64::from(stated)),
        };
        match self.control.last_contact() {
            Some(contact) if contact.elapsed() <= limit => Ok(()),
            Some(contact) => Err(too_stale(format!(
                "this replica of shard {} last heard of a leader {} ms ago",
                self.shard,
                contact.elapsed().as_millis()
            ))),
            None => Err(too_stale(format!("this replica of shard {} has not heard of a leader", self.shard))),
        }
    }

    /// Asks the state again until its answer reflects the revision: what is applied is visible a moment later.
    async fn reach_revision(
        &self,
        request: &ReadRequest,
        revision: u64,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        if revision == 0 {
            return Ok(());
        }
        loop {
            let reached = self.state.read(request)?.context.map_or(0, |context| context.revision);
            if reached >= revision {
                return Ok(());
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(too_stale(format!("shard {} is at revision {reached} here", self.shard)));
            }
            sleep_until(deadline.min(now + REVISION_POLL)).await;
        }
    }
}

fn too_stale(message: String) -> Refusal {
    refusal::not_applied(refusal::TOO_STALE, message)
}
