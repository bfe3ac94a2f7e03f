//! Linearizable reads: waits until this replica's state is as new as the moment the read was asked.
//!
//! ReadIndex (thesis 6.4), batched per group: everything that waits when a round starts shares its answer, and what
//! arrives meanwhile waits for the next one. At the leader a round confirms the leadership with a quorum; at a
//! follower it asks the leader, and then waits until its own state has applied the index.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use kv_proto::peer::v1::{ReadIndexResponse, Refusal};
use kv_topology::{NodeId, ShardId};
use openraft::{
    Raft, ReadPolicy,
    errors::{LinearizableReadError, RaftError},
    storage::RaftStateMachine,
};
use openraft_rt::{AsyncRuntime, watch::WatchReceiver};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::{
    replica::ReadState,
    type_config::{Member, TypeConfig},
};
use crate::refusal;

/// Reads of one group that may wait for a round.
pub const READS_WAITING_MAX: usize = 65_536;
/// A round that takes longer has failed: a leader that is cut off must not keep its readers waiting.
const ROUND_TIMEOUT: Duration = Duration::from_millis(2_000);
/// Advice to a refused caller, ms.
const RETRY_AFTER_MS: u32 = 50;

/// What a read may rely on once it may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadPoint {
    /// Everything up to this index is in the state that will be read.
    pub index: u64,
    /// Of the leader that confirmed it.
    pub term: u64,
    /// Whether this node was that leader.
    pub leader_here: bool,
}

/// Asks another node, which leads the group, for a read index.
pub trait AskLeader: Send + Sync + 'static {
    /// One question, answered or refused before `deadline`.
    fn read_index(
        &self,
        leader: NodeId,
        shard: ShardId,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<ReadIndexResponse, Refusal>>;
}

enum Waiter {
    /// A local read: wait until the state has reached the index.
    Ready(oneshot::Sender<Result<ReadPoint, Refusal>>),
    /// Another node's question: the index is enough, and only the leader may answer.
    Index(oneshot::Sender<Result<ReadPoint, Refusal>>),
}

/// The handle: clone it freely.
#[derive(Clone)]
pub struct ReadGate {
    shard: ShardId,
    state: Arc<dyn ReadState>,
    queue: mpsc::Sender<Waiter>,
}

impl ReadGate {
    /// The handle and the task that drives it; the task ends when all handles are gone.
    pub fn new<RT, SM>(
        shard: ShardId,
        raft: Raft<TypeConfig<RT>, SM>,
        state: Arc<dyn ReadState>,
        leader: Arc<dyn AskLeader>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static)
    where
        RT: AsyncRuntime,
        SM: RaftStateMachine<TypeConfig<RT>>,
    {
        let (queue, waiting) = mpsc::channel(READS_WAITING_MAX);
        (Self { shard, state, queue }, Task { shard, raft, leader, waiting }.run())
    }

    /// Waits until a linearizable read of this replica's state may go on.
    ///
    /// # Errors
    /// No leader, no quorum, or the deadline passed. Reads have no effect: all may be repeated.
    pub async fn ready(&self, deadline: Instant) -> Result<ReadPoint, Refusal> {
        let point = self.wait(Waiter::Ready, deadline).await?;
        // Here and not in the round: a slow apply must not keep later rounds waiting.
        match timeout_at(deadline.min(Instant::now() + ROUND_TIMEOUT), self.state.wait_applied(point.index))
            .await
        {
            Ok(()) => Ok(point),
            Err(_) => Err(refusal::not_applied(
                refusal::TOO_STALE,
                format!("this replica of shard {} lags behind index {}", self.shard, point.index),
            )),
        }
    }

    /// A read index for another node's read; refused unless this node leads.
    ///
    /// # Errors
    /// As [`Self::ready`].
    pub async fn index(&self, deadline: Instant) -> Result<ReadPoint, Refusal> {
        self.wait(Waiter::Index, deadline).await
    }

    async fn wait(
        &self,
        waiter: fn(oneshot::Sender<Result<ReadPoint, Refusal>>) -> Waiter,
        deadline: Instant,
    ) -> Result<ReadPoint, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(waiter(answer)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                let message = format!("shard {} has {READS_WAITING_MAX} reads waiting", self.shard);
                refusal::exhausted(refusal::READ_QUEUE_FULL, message, RETRY_AFTER_MS)
            }
            mpsc::error::TrySendError::Closed(_) => stopped(),
        })?;
        match timeout_at(deadline, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(stopped()),
            Err(_) => Err(refusal::deadline_exceeded(format!(
                "shard {} could not confirm a read index before the deadline",
                self.shard
            ))),
        }
    }
}

fn stopped() -> Refusal {
    refusal::not_applied(refusal::STOPPING, "the replica has stopped")
}

struct Task<RT, SM>
where
    RT: AsyncRuntime,
    SM: RaftStateMachine<TypeConfig<RT>>,
{
    shard: ShardId,
    raft: Raft<TypeConfig<RT>, SM>,
    leader: Arc<dyn AskLeader>,
    waiting: mpsc::Receiver<Waiter>,
}

impl<RT, SM> Task<RT, SM>
where
    RT: AsyncRuntime,
    SM: RaftStateMachine<TypeConfig<RT>>,
{
    async fn run(mut self) {
        let mut round = Vec::new();
        // The round starts after its waiters were taken: a later read never shares an earlier confirmation.
        while self.waiting.recv_many(&mut round, READS_WAITING_MAX).await > 0 {
            let deadline = Instant::now() + ROUND_TIMEOUT;
            let here = match timeout_at(deadline, self.confirm()).await {
                Ok(confirmed) => confirmed,
                Err(_) => Err(NotHere::Refused(no_quorum(self.shard))),
            };
            let (ready, index): (Vec<_>, Vec<_>) =
                round.drain(..).partition(|waiter| matches!(waiter, Waiter::Ready(_)));
            // At once: two nodes that each take the other for the leader must not wait for one another.
            answer(index, &here.clone().map_err(|why| why.into_refusal(self.shard)));
            if !ready.is_empty() {
                let point = match here {
                    Ok(point) => Ok(point),
                    Err(NotHere::Refused(refused)) => Err(refused),
                    Err(NotHere::LedBy(leader)) => self.ask(leader, deadline).await,
                };
                answer(ready, &point);
            }
        }
    }

    /// The index up to which a read that was asked before now must see, if this node leads.
    async fn confirm(&self) -> Result<ReadPoint, NotHere> {
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => {
                let read = linearizer.read_log_id();
                let term = read.committed_leader_id().term;
                Ok(ReadPoint { index: read.index(), term, leader_here: true })
            }
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(NotHere::LedBy(forward.leader_node.map(|member| NodeId(member.node))))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(NotHere::Refused(no_quorum(self.shard)))
            }
            Err(RaftError::Fatal(_)) => Err(NotHere::Refused(stopped())),
        }
    }

    /// The same from the leader on another node.
    async fn ask(&self, leader: Option<NodeId>, deadline: Instant) -> Result<ReadPoint, Refusal> {
        let Some(leader) = leader else { return Err(refusal::not_leader(self.shard, None)) };
        let asked = self.leader.read_index(leader, self.shard, deadline);
        let response = timeout_at(deadline, asked).await.unwrap_or_else(|_| Err(no_quorum(self.shard)))?;
        Ok(ReadPoint { index: response.index, term: response.term, leader_here: false })
    }
}

/// Why this node confirmed no index.
#[derive(Clone)]
enum NotHere {
    /// Another node leads, as far as this one knows.
    LedBy(Option<NodeId>),
    Refused(Refusal),
}

impl NotHere {
    fn into_refusal(self, shard: ShardId) -> Refusal {
        match self {
            Self::LedBy(leader) => refusal::not_leader(shard, leader),
            Self::Refused(refused) => refused,
        }
    }
}

fn no_quorum(shard: ShardId) -> Refusal {
    refusal::not_applied(refusal::NO_LEADER, format!("the leader of shard {shard} reaches no quorum"))
}

/// The node that leads, as far as this replica knows.
pub(super) fn leader_of<RT, SM>(raft: &Raft<TypeConfig<RT>, SM>) -> Option<NodeId>
where
    RT: AsyncRuntime,
    SM: RaftStateMachine<TypeConfig<RT>>,
{
    let metrics = raft.server_metrics();
    let metrics = metrics.borrow_watched();
    let leader = metrics.current_leader?;
    let member: Option<Member> = metrics.membership_config.membership().get_node(&leader).copied();
    member.map(|member| NodeId(member.node))
}

fn answer(waiters: Vec<Waiter>, point: &Result<ReadPoint, Refusal>) {
    for waiter in waiters {
        let (Waiter::Ready(reply) | Waiter::Index(reply)) = waiter;
        // The reader may have gone away.
        reply.send(point.clone()).ok();
    }
}
