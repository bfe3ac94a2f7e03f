//! Turns the writes of a group into Raft entries, and answers who waits for them.
//!
//! A write is admitted (bounded in bytes, from here to its answer), queued, taken with everything else that queued
//! up meanwhile, and handed to openraft as one entry. There is no timer: while entries are in flight, writes
//! collect. Answers come back in openraft's apply loop, through the callback that went in with the entry.
//!
//! What it does not do: retry. A refusal says whether the write surely did not happen.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use kv_proto::{
    disk::v1::Operation,
    peer::v1::{Outcome, Refusal, ReplyContext, outcome},
};
use kv_topology::{NodeId, ShardId};
use openraft::{Raft, errors::ClientWriteError, raft::ClientWriteResult, storage::RaftStateMachine};
use openraft_rt::AsyncRuntime;
use prometheus_client::metrics::counter::Counter;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::{
    batch::{self, Pending, Queue},
    log_time::LogTime,
    replica::ReadState,
    room::{Limit, Room},
    type_config::{Applied, Callback, Proposal, TypeConfig},
};
use crate::{
    log::LogView,
    metrics::{GroupMetrics, RaftMetrics},
    refusal,
    state_machine::validate,
};

/// Bytes of writes of one group that may wait or be in flight.
pub const ADMITTED_BYTES_MAX: usize = 32 * 1024 * 1024;
/// What an admitted write counts at least, bytes: its bookkeeping. Bounds their number to 65,536 a group.
const ADMITTED_BYTES_MIN: usize = 512;
/// Entries of one group between proposal and answer. One: what comes meanwhile goes into the next, so that entries are as
/// full as the load allows. With more of them, each is smaller, and costs as much on every node.
pub const ENTRIES_IN_FLIGHT_MAX: usize = 1;
/// Advice to a refused caller, ms.
const RETRY_AFTER_MS: u32 = 50;

/// Whether a write goes into an entry or is given up before it could: whoever comes first decides.
#[derive(Clone, Default)]
struct Claim(Arc<AtomicBool>);

impl Claim {
    /// True for the first one.
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// How a caller is answered; its share of the admitted bytes is free again afterwards.
struct Reply {
    answer: oneshot::Sender<Result<Vec<Outcome>, Refusal>>,
    claim: Claim,
    _admitted: OwnedSemaphorePermit,
}

/// What a caller waits for.
struct Answer {
    answer: oneshot::Receiver<Result<Vec<Outcome>, Refusal>>,
    claim: Claim,
}

impl Reply {
    fn send(self, result: Result<Vec<Outcome>, Refusal>) {
        // The caller may have gone away: nobody is left to tell.
        self.answer.send(result).ok();
    }
}

/// The handle: clone it freely.
#[derive(Clone)]
pub struct Proposer {
    shard: ShardId,
    queue: mpsc::UnboundedSender<Pending<Reply>>,
    admission: Arc<Semaphore>,
    room: Arc<Limit>,
    refused: Counter,
}

impl Proposer {
    /// The handle and the task that drives it; the task ends when all handles are gone.
    pub fn new<RT, SM>(
        shard: ShardId,
        raft: Raft<TypeConfig<RT>, SM>,
        state: Arc<dyn ReadState>,
        log: LogView,
        metrics: &GroupMetrics,
    ) -> (Self, impl Future<Output = ()> + Send + 'static)
    where
        RT: AsyncRuntime,
        SM: RaftStateMachine<TypeConfig<RT>>,
    {
        // Unbounded: the admission bounds what can be in it.
        let (queue, incoming) = mpsc::unbounded_channel();
        let admission = Arc::new(Semaphore::new(ADMITTED_BYTES_MAX));
        let task = Task {
            shard,
            raft,
            incoming,
            state,
            log,
            metrics: metrics.raft.clone(),
            clock: None,
            in_flight: Arc::new(Semaphore::new(ENTRIES_IN_FLIGHT_MAX)),
        };
        let refused = metrics.proposals.refused.clone();
        (Self { shard, queue, admission, room: Arc::default(), refused }, task.run())
    }

    /// Proposes operations; one outcome for each, in order. They are atomic only within each entry.
    ///
    /// A request that is cut into several entries may be refused in part: then the outcomes say so, one by one.
    ///
    /// # Errors
    /// `NOT_APPLIED_…` and `RESOURCE_EXHAUSTED`: nothing at all happened. `OUTCOME_UNKNOWN`: some may have.
    pub async fn propose(
        &self,
        operations: Vec<Operation>,
        deadline: Instant,
    ) -> Result<Vec<Outcome>, Refusal> {
        // Once it is in the log a malformed operation would stop every replica of the group.
        operations.iter().try_for_each(validate)?;
        self.room.admit(&operations)?;
        let queued = batch::cut(operations).into_iter().map(|run| (run.len(), self.enqueue(run, deadline)));
        let queued: Vec<_> = queued.collect();
        let mut results = Vec::with_capacity(queued.len());
        for (count, answer) in queued {
            let result = match answer {
                Ok(answer) => self.answer(answer, deadline).await,
                Err(refused) => Err(refused),
            };
            results.push((count, result));
        }
        batch::join(results)
    }

    /// Admits from now on what there is room for on the disks of the group; `reason` names the full one.
    pub fn set_room(&self, room: Room, reason: impl Into<String>) {
        self.room.set(room, reason);
    }

    /// Bytes of writes that wait or are in flight.
    pub fn admitted_bytes(&self) -> usize {
        ADMITTED_BYTES_MAX - self.admission.available_permits()
    }

    fn enqueue(&self, operations: Vec<Operation>, deadline: Instant) -> Result<Answer, Refusal> {
        let ((answer, answered), claim) = (oneshot::channel(), Claim::default());
        let size: usize = operations.iter().map(prost::Message::encoded_len).sum();
        let permits = u32::try_from(size.max(ADMITTED_BYTES_MIN)).unwrap_or(u32::MAX);
        let admitted = Arc::clone(&self.admission).try_acquire_many_owned(permits).map_err(|_| {
            self.refused.inc();
            let message = format!("shard {} has {ADMITTED_BYTES_MAX} B of writes waiting", self.shard);
            refusal::exhausted(refusal::PROPOSAL_QUEUE_FULL, message, RETRY_AFTER_MS)
        })?;
        let reply = Reply { answer, claim: claim.clone(), _admitted: admitted };
        let pending = Pending::new(operations, deadline, reply);
        match self.queue.send(pending) {
            Ok(()) => Ok(Answer { answer: answered, claim }),
            Err(_) => Err(refusal::not_applied(refusal::STOPPING, "the replica has stopped")),
        }
    }

    async fn answer(&self, answer: Answer, deadline: Instant) -> Result<Vec<Outcome>, Refusal> {
        match timeout_at(deadline, answer.answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(refusal::outcome_unknown("the replica stopped while the write was in flight")),
            // It waits behind an entry that is not committed, and will not be proposed any more.
            Err(_) if answer.claim.take() => Err(expired()),
            Err(_) => Err(refusal::outcome_unknown(format!(
                "shard {} did not commit the write before the deadline",
                self.shard
            ))),
        }
    }
}

fn expired() -> Refusal {
    refusal::not_applied(refusal::EXPIRED, "the deadline passed while the write waited to be proposed")
}

/// Who waits for an entry, until the first one answers them.
struct Callers(Mutex<Vec<(usize, Reply)>>);

impl Callers {
    fn take(&self) -> Vec<(usize, Reply)> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Task<RT, SM>
where
    RT: AsyncRuntime,
    SM: RaftStateMachine<TypeConfig<RT>>,
{
    shard: ShardId,
    raft: Raft<TypeConfig<RT>, SM>,
    incoming: mpsc::UnboundedReceiver<Pending<Reply>>,
    state: Arc<dyn ReadState>,
    log: LogView,
    metrics: RaftMetrics,
    clock: Option<LogTime>,
    in_flight: Arc<Semaphore>,
}

impl<RT, SM> Task<RT, SM>
where
    RT: AsyncRuntime,
    SM: RaftStateMachine<TypeConfig<RT>>,
{
    async fn run(mut self) {
        let mut queue = Queue::default();
        while let Some(first) = self.incoming.recv().await {
            queue.push(first);
            while !queue.is_empty() {
                let Ok(slot) = Arc::clone(&self.in_flight).acquire_owned().await else { return };
                // An entry that is appended now waits for the end of this batch. Until then more writes come, and those of
                // other groups go on at the same moment: one sync and one message for all.
                self.log.batch_ended().await;
                while let Ok(next) = self.incoming.try_recv() {
                    queue.push(next);
                }
                self.propose(&mut queue, slot).await;
            }
        }
    }

    /// Proposes one entry of what waits.
    async fn propose(&mut self, queue: &mut Queue<Reply>, slot: OwnedSemaphorePermit) {
        let now = Instant::now();
        let begins = |reply: &Reply| reply.claim.take();
        let Some(batch) = queue.take(now, begins, |reply| reply.send(Err(expired()))) else { return };
        let stamp = self.stamp(now);
        self.metrics.proposal_operations.observe(count(batch.operations.len()));
        let commit_seconds = self.metrics.commit_seconds.clone();
        let (encoded, callers) = batch.into_proposal(stamp);
        let shard = self.shard;
        let callers = Arc::new(Callers(Mutex::new(callers)));
        let answered = callers.clone();
        let answer = Callback::new(move |result: ClientWriteResult<TypeConfig<RT>>| {
            drop(slot);
            if result.is_ok() {
                commit_seconds.observe(now.elapsed().as_secs_f64());
            }
            answer_callers::<TypeConfig<RT>>(shard, result, answered.take());
        });
        if let Err(fatal) = self.raft.client_write_ff(Proposal(encoded), Some(answer)).await {
            tracing::warn!(shard = self.shard.get(), %fatal, "a proposal met a stopped replica");
            // It never reached the replica's Raft, which has ended: nothing was appended.
            let message = "the replica has stopped";
            for (_, reply) in callers.take() {
                reply.send(Err(refusal::not_applied(refusal::STOPPING, message)));
            }
        }
    }

    fn stamp(&mut self, now: Instant) -> u64 {
        use openraft_rt::watch::WatchReceiver;
        let term = self.raft.server_metrics().borrow_watched().vote.leader_id.term;
        let state = &self.state;
        let clock = self.clock.take().filter(|clock| clock.term() == term);
        self.clock.insert(clock.unwrap_or_else(|| LogTime::start(term, state.log_time_ms(), now))).at(now)
    }
}

/// A number of operations, at most 512 or those of one request.
fn count(operations: usize) -> f64 {
    f64::from(u32::try_from(operations).unwrap_or(u32::MAX))
}

/// Gives each caller its share of the outcomes.
fn answer_callers<C>(shard: ShardId, result: ClientWriteResult<C>, callers: Vec<(usize, Reply)>)
where
    C: openraft::RaftTypeConfig<
            R = Applied,
            Node = super::type_config::Member,
            LeaderId = LeaderId,
            NodeId = u64,
        >,
{
    match result {
        Ok(response) => {
            let term = response.log_id.leader_id.term;
            let mut outcomes = response.data.0.into_iter().map(|outcome| in_term(outcome, term));
            for (count, reply) in callers {
                let own: Vec<Outcome> = outcomes.by_ref().take(count).collect();
                if own.len() == count {
                    reply.send(Ok(own));
                } else {
                    reply.send(Err(refusal::internal("the state machine returned too few outcomes")));
                }
            }
        }
        Err(error) => {
            let refused = refusal_of(shard, &error);
            for (_, reply) in callers {
                reply.send(Err(refused.clone()));
            }
        }
    }
}

type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;

fn in_term(mut outcome: Outcome, term: u64) -> Outcome {
    outcome.context.get_or_insert_with(ReplyContext::default).term = term;
    if outcome.result.is_none() {
        outcome.result = Some(outcome::Result::Refusal(refusal::internal("an operation without an outcome")));
    }
    outcome
}

/// What an error of openraft means for the writes in the entry.
fn refusal_of<C>(shard: ShardId, error: &ClientWriteError<C>) -> Refusal
where
    C: openraft::RaftTypeConfig<Node = super::type_config::Member>,
{
    match error {
        ClientWriteError::ForwardToLeader(forward) => {
            refusal::not_leader(shard, forward.leader_node.map(|member| NodeId(member.node)))
        }
        ClientWriteError::LogEntryDiscarded(_) => {
            refusal::outcome_unknown("the leader changed while the write was in flight")
        }
        ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_) => {
            refusal::internal(format!("unexpected answer to a write: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kv_proto::{
        disk::v1::{Delete, operation},
        peer::v1::refusal::Kind,
    };

    use super::*;

    /// A proposer whose queue nobody empties but the test.
    fn alone() -> (Proposer, mpsc::UnboundedReceiver<Pending<Reply>>) {
        let (queue, incoming) = mpsc::unbounded_channel();
        let admission = Arc::new(Semaphore::new(ADMITTED_BYTES_MAX));
        let proposer = Proposer {
            shard: ShardId(1),
            queue,
            admission,
            room: Arc::default(),
            refused: Counter::default(),
        };
        (proposer, incoming)
    }

    async fn refused(proposer: &Proposer) -> Refusal {
        let delete = Delete { key: "k".into(), ..Delete::default() };
        let operation = Operation { kind: Some(operation::Kind::Delete(delete)), ..Operation::default() };
        let deadline = Instant::now() + Duration::from_secs(1);
        proposer.propose(vec![operation], deadline).await.expect_err("nobody commits it")
    }

    /// What the task would propose of what is queued.
    fn taken(incoming: &mut mpsc::UnboundedReceiver<Pending<Reply>>) -> Option<batch::Batch<Reply>> {
        let mut queue = Queue::default();
        queue.push(incoming.try_recv().expect("it was queued"));
        let before_its_deadline = Instant::now() - Duration::from_secs(10);
        queue.take(before_its_deadline, |reply| reply.claim.take(), drop)
    }

    #[tokio::test(start_paused = true)]
    async fn what_its_caller_gave_up_while_it_waited_is_never_proposed() {
        let (proposer, mut incoming) = alone();
        let refused = refused(&proposer).await;
        assert_eq!((refused.kind(), refused.reason.as_str()), (Kind::NotApplied, refusal::EXPIRED));
        assert!(taken(&mut incoming).is_none());
        assert_eq!(proposer.admitted_bytes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_proposed_before_its_deadline_is_unknown_after_it() {
        let (proposer, mut incoming) = alone();
        let proposing = async {
            tokio::task::yield_now().await;
            let under_way = taken(&mut incoming).expect("it is proposed");
            tokio::time::sleep(Duration::from_secs(2)).await;
            drop(under_way);
        };
        let (refused, ()) = tokio::join!(refused(&proposer), proposing);
        assert_eq!(refused.kind(), Kind::OutcomeUnknown);
        assert!(refused.message.contains("deadline"), "{refused:?}");
    }
}
