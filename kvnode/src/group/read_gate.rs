//! Linearizable reads: waits until this replica's state is as new as the moment the read was asked.
//!
//! ReadIndex (thesis 6.4), batched per group: everything that waits when a round starts shares its answer, and what
//! arrives meanwhile waits for the next one. At the leader a round confirms the leadership with a quorum; at a
//! follower it asks the leader, and then waits until its own state has applied the index.
//!
//! Each confirmation also says how old the state is at most, measured by this node's own clock from the moment of the
//! question: [`ReadGate::current_at`], which bounds STALE reads. It is renewed now and then, reads or not, so that a node
//! that is cut off goes on answering them for as long as they allow.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, OptionFuture},
};
use kv_proto::peer::v1::{ReadIndexRequest, ReadIndexResponse, ReadRequest, ReadResponse, Refusal};
use kv_topology::{GroupId, NodeId, ShardId};
use openraft::{
    Raft, ReadPolicy,
    errors::{LinearizableReadError, RaftError},
    storage::RaftStateMachine,
};
use openraft_rt::{AsyncRuntime, watch::WatchReceiver};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    replica::ReadState,
    type_config::{Member, TypeConfig},
};
use crate::{metrics::GroupMetrics, refusal};

/// Reads of one group that may wait for a round.
pub const READS_WAITING_MAX: usize = 65_536;
/// A round that takes longer has failed: a leader that is cut off must not keep its readers waiting.
const ROUND_TIMEOUT: Duration = Duration::from_millis(2_000);
/// The same while the replica takes no entries: what it lacks will not come.
const STUCK_TIMEOUT: Duration = Duration::from_millis(20);
/// How often it is confirmed that the state is current, when no reads do. A third of the default bound of a STALE read, so
/// that one lost confirmation does not matter; rare next to heartbeats.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// Reads that are answered before other tasks get their turn: half a millisecond.
const READS_AT_ONCE: usize = 128;
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
        request: ReadIndexRequest,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<ReadIndexResponse, Refusal>>;
}

/// A read that may go on.
#[derive(Debug)]
pub struct Passed {
    /// What it relies on.
    pub point: ReadPoint,
    /// Its answer, if the state had it in memory.
    pub answer: Option<Result<ReadResponse, Refusal>>,
}

enum Waiter {
    /// A local read: wait until the state has reached the index.
    Ready(oneshot::Sender<Result<ReadPoint, Refusal>>),
    /// The same, answered with all others that can be.
    Read(ReadRequest, oneshot::Sender<Result<Passed, Refusal>>),
    /// Another node's question: the index is enough, and only the leader may answer.
    Index(oneshot::Sender<Result<ReadPoint, Refusal>>),
    /// Nobody: only that the state is current is to be known.
    Renewal,
}

/// The last moment of which it is known that the state reflects everything acknowledged before it.
#[derive(Clone, Default)]
struct Current(Arc<Mutex<Option<Instant>>>);

impl Current {
    fn get(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at(&self, moment: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *known = (*known).max(Some(moment));
    }
}

/// The handle: clone it freely.
#[derive(Clone)]
pub struct ReadGate {
    shard: ShardId,
    state: Arc<dyn ReadState>,
    queue: mpsc::Sender<Waiter>,
    stuck: Arc<AtomicBool>,
    current: Current,
    metrics: GroupMetrics,
}

impl ReadGate {
    /// The handle and the task that drives it; the task ends when all handles are gone.
    pub fn new<RT, SM>(
        shard: ShardId,
        group: GroupId,
        raft: Raft<TypeConfig<RT>, SM>,
        state: Arc<dyn ReadState>,
        leader: Arc<dyn AskLeader>,
        metrics: &GroupMetrics,
    ) -> (Self, impl Future<Output = ()> + Send + 'static)
    where
        RT: AsyncRuntime,
        SM: RaftStateMachine<TypeConfig<RT>>,
    {
        let (queue, waiting) = mpsc::channel(READS_WAITING_MAX);
        let current = Current::default();
        let task =
            Task { shard, group, raft, state: state.clone(), leader, waiting, current: current.clone() };
        let stuck = Arc::default();
        (Self { shard, state, queue, stuck, current, metrics: metrics.clone() }, task.run())
    }

    /// Waits until a linearizable read of this replica's state may go on.
    ///
    /// # Errors
    /// No leader, no quorum, or the deadline passed. Reads have no effect: all may be repeated.
    pub async fn ready(&self, deadline: Instant) -> Result<ReadPoint, Refusal> {
        let asked = Instant::now();
        let point = self.wait(Waiter::Ready, deadline).await?;
        self.reach(point, asked, deadline).await
    }

    /// Waits until this linearizable read may go on, and answers it if that takes no more than memory: all reads of a round
    /// are answered from one moment.
    ///
    /// # Errors
    /// As [`Self::ready`].
    pub async fn read(&self, request: &ReadRequest, deadline: Instant) -> Result<Passed, Refusal> {
        let asked = Instant::now();
        let passed = self.wait(|answer| Waiter::Read(request.clone(), answer), deadline).await?;
        if passed.answer.is_some() {
            self.current.at(asked);
            return Ok(passed);
        }
        let point = self.reach(passed.point, asked, deadline).await?;
        Ok(Passed { point, answer: None })
    }

    /// Waits until the state has reached the index.
    async fn reach(&self, point: ReadPoint, asked: Instant, deadline: Instant) -> Result<ReadPoint, Refusal> {
        // Here and not in the round: a slow apply must not keep later rounds waiting.
        let patience = if self.stuck.load(Relaxed) { STUCK_TIMEOUT } else { ROUND_TIMEOUT };
        match timeout_at(deadline.min(Instant::now() + patience), self.state.wait_applied(point.index)).await
        {
            Ok(()) => {
                self.current.at(asked);
                Ok(point)
            }
            Err(_) => Err(refusal::not_applied(
                refusal::TOO_STALE,
                format!("this replica of shard {} lags behind index {}", self.shard, point.index),
            )),
        }
    }

    /// Reads that wait for a round.
    pub fn waiting(&self) -> usize {
        READS_WAITING_MAX.saturating_sub(self.queue.capacity())
    }

    /// Whether this replica takes no entries for now: reads that would have to wait for some are refused at once, and
    /// go elsewhere.
    pub fn set_stuck(&self, stuck: bool) {
        self.stuck.store(stuck, Relaxed);
    }

    /// The last moment of which a leader that was backed by a quorum has confirmed that this replica's state reflects
    /// everything acknowledged before it. `None`: of no moment yet.
    pub fn current_at(&self) -> Option<Instant> {
        self.current.get()
    }

    /// A read index for another node's read; refused unless this node leads.
    ///
    /// # Errors
    /// As [`Self::ready`].
    pub async fn index(&self, deadline: Instant) -> Result<ReadPoint, Refusal> {
        self.wait(Waiter::Index, deadline).await
    }

    async fn wait<T>(
        &self,
        waiter: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Waiter,
        deadline: Instant,
    ) -> Result<T, Refusal> {
        let (answer, answered) = oneshot::channel();
        let asked = Instant::now();
        self.queue.try_send(waiter(answer)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                self.metrics.reads.refused.inc();
                let message = format!("shard {} has {READS_WAITING_MAX} reads waiting", self.shard);
                refusal::exhausted(refusal::READ_QUEUE_FULL, message, RETRY_AFTER_MS)
            }
            mpsc::error::TrySendError::Closed(_) => stopped(),
        })?;
        match timeout_at(deadline, answered).await {
            Ok(Ok(result)) => {
                if result.is_ok() {
                    self.metrics.raft.read_index_seconds.observe(asked.elapsed().as_secs_f64());
                }
                result
            }
            Ok(Err(_)) => Err(stopped()),
            Err(_) => Err(refusal::deadline_exceeded(format!(
                "{} could not confirm a read index before the deadline",
                refusal::called(self.shard)
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
    group: GroupId,
    raft: Raft<TypeConfig<RT>, SM>,
    state: Arc<dyn ReadState>,
    leader: Arc<dyn AskLeader>,
    waiting: mpsc::Receiver<Waiter>,
    current: Current,
}

impl<RT, SM> Task<RT, SM>
where
    RT: AsyncRuntime,
    SM: RaftStateMachine<TypeConfig<RT>>,
{
    async fn run(mut self) {
        let mut round = Vec::new();
        // The moment of a confirmation, once its index is visible here.
        let mut renewing: Option<BoxFuture<'static, Instant>> = None;
        let mut renew_at = Instant::now() + RENEW_EVERY;
        loop {
            tokio::select! {
                biased;
                // The round starts after its waiters were taken: a later read never shares an earlier confirmation.
                count = self.waiting.recv_many(&mut round, READS_WAITING_MAX) => if count == 0 { return },
                moment = OptionFuture::from(renewing.as_mut()), if renewing.is_some() => {
                    renewing = None;
                    moment.into_iter().for_each(|moment| self.current.at(moment));
                    continue;
                }
                () = sleep_until(renew_at) => {
                    renew_at = Instant::now() + RENEW_EVERY;
                    if self.current.get().is_none_or(|known| known.elapsed() > RENEW_EVERY / 2) {
                        round.push(Waiter::Renewal);
                    }
                }
            }
            if let Some(renewal) = self.round(&mut round).await {
                renewing = Some(renewal);
            }
        }
    }

    /// Answers all that wait; what is left to wait for, if one of them was a renewal.
    async fn round(&self, round: &mut Vec<Waiter>) -> Option<BoxFuture<'static, Instant>> {
        if round.is_empty() {
            return None;
        }
        let asked = Instant::now();
        let deadline = asked + ROUND_TIMEOUT;
        let here = match timeout_at(deadline, self.confirm()).await {
            Ok(confirmed) => confirmed,
            Err(_) => Err(NotHere::Refused(no_quorum(self.shard))),
        };
        let (index, mut ready): (Vec<_>, Vec<_>) =
            round.drain(..).partition(|waiter| matches!(waiter, Waiter::Index(_)));
        // At once: two nodes that each take the other for the leader must not wait for one another.
        answer(index, &here.clone().map_err(|why| why.into_refusal(self.shard)));
        if ready.is_empty() {
            return None;
        }
        let point = match here {
            Ok(point) => Ok(point),
            Err(NotHere::Refused(refused)) => Err(refused),
            Err(NotHere::LedBy(leader)) => self.ask(leader, deadline).await,
        };
        let renewal = ready.iter().any(|waiter| matches!(waiter, Waiter::Renewal));
        self.answer_reads(&mut ready, &point).await;
        answer(ready, &point);
        let visible = self.state.wait_applied(point.ok().filter(|_| renewal)?.index);
        Some(visible.map(move |()| asked).boxed())
    }

    /// Answers the reads among those that wait, each whole or with its point alone. One that has to wait for apply does so
    /// in its own task.
    async fn answer_reads(&self, ready: &mut Vec<Waiter>, point: &Result<ReadPoint, Refusal>) {
        let Ok(point) = *point else { return };
        let is_read = |waiter: &mut Waiter| matches!(waiter, Waiter::Read(..));
        let (requests, replies): (Vec<_>, Vec<_>) = ready
            .extract_if(.., is_read)
            .filter_map(|waiter| match waiter {
                Waiter::Read(request, reply) if !reply.is_closed() => Some((request, reply)),
                Waiter::Read(..) | Waiter::Ready(_) | Waiter::Index(_) | Waiter::Renewal => None,
            })
            .unzip();
        let visible = self.state.wait_applied(point.index).now_or_never().is_some();
        let mut replies = replies.into_iter();
        for slice in requests.chunks(READS_AT_ONCE) {
            let answers = if visible { self.state.answer_from_memory(slice) } else { Vec::new() };
            let answers = answers.into_iter().chain(std::iter::repeat_with(|| None));
            for (reply, answer) in replies.by_ref().take(slice.len()).zip(answers) {
                // The reader may have gone away.
                drop(reply.send(Ok(Passed { point, answer })));
            }
            if requests.len() > READS_AT_ONCE {
                tokio::task::yield_now().await;
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
        let request = ReadIndexRequest { shard_id: self.shard.get(), group_id: self.group.get() };
        let asked = self.leader.read_index(leader, request, deadline);
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
    refusal::not_applied(
        refusal::NO_LEADER,
        format!("the leader of {} reaches no quorum", refusal::called(shard)),
    )
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
        match waiter {
            // The reader may have gone away.
            Waiter::Ready(reply) | Waiter::Index(reply) => drop(reply.send(point.clone())),
            Waiter::Read(_, reply) => {
                drop(reply.send(point.clone().map(|point| Passed { point, answer: None })));
            }
            Waiter::Renewal => {}
        }
    }
}
