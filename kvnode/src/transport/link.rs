//! One lane from this node to another: the requests that wait, the stream that carries them, their answers.
//!
//! The life of a link: it connects (asking for the address anew each time), says hello, is up when the other side
//! has answered that, carries batches both ways, and when the stream breaks or nothing was heard for too long it
//! tells every waiting request what became of it, waits a little and connects again. While the last attempt has
//! failed, requests are refused at once: a dead peer costs nobody a time-out.
//!
//! Requests of all groups share it. Nothing here blocks: a full queue refuses that one request.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures::StreamExt;
use kv_proto::peer::v1::{Frame, FrameBatch, frame::Body};
use kv_topology::NodeId;
use prost::Message;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::{
    backoff,
    call::{CallError, NotSent, result_of},
    conduit::{Broken, Conduit, Connection, Lane},
    held::Wishes,
    identity::{Identity, Refused},
    limits::Limits,
    outbox::{Class, Outbox},
    peers::Peer,
    pending::{Fate, Pending},
    pulse::Pulse,
    randomness::Randomness,
    session::{Sequence, Session, StreamNumber},
};

/// Comes when the request is answered or has failed.
pub(super) type Answer = oneshot::Receiver<Result<Body, CallError>>;
type Token = oneshot::Sender<Result<Body, CallError>>;
type Outbound = mpsc::Sender<Result<FrameBatch, Refused>>;

/// Whom a frame concerns. All 0 for node-level ones.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Address {
    pub(super) group: u64,
    pub(super) from_replica: u64,
    pub(super) to_replica: u64,
}

/// A request to put on a link.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) address: Address,
    pub(super) stream: StreamNumber,
    pub(super) class: Class,
    pub(super) deadline: Instant,
    pub(super) body: Body,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The first attempt, or the first one after a break: requests wait for it.
    Connecting,
    Up,
    /// The last attempt failed: requests are refused.
    Down,
    Stopped,
}

pub(super) struct Link {
    to: NodeId,
    lane: Lane,
    identity: Identity,
    limits: Arc<Limits>,
    peer: Arc<Peer>,
    state: Mutex<State>,
    wake: Notify,
}

struct State {
    phase: Phase,
    session: Session,
    outbox: Outbox,
    pending: Pending<Token>,
}

/// Asking.
impl Link {
    pub(super) fn new(
        (to, lane): (NodeId, Lane),
        identity: Identity,
        limits: Arc<Limits>,
        peer: Arc<Peer>,
        first_session: u64,
    ) -> Self {
        let state = State {
            phase: Phase::Connecting,
            session: Session::new(first_session),
            outbox: Outbox::new(limits.queued_frames, limits.queued_bytes),
            pending: Pending::default(),
        };
        Self { to, lane, identity, limits, peer, state: Mutex::new(state), wake: Notify::new() }
    }

    /// A number for a new stream of requests.
    pub(super) fn new_stream(&self) -> StreamNumber {
        self.state().session.stream()
    }

    /// Whether the other side wants to know of all commits at once.
    pub(super) fn wishes(&self) -> &Wishes {
        &self.peer.wishes
    }

    /// Queues a request. The answer comes at the latest shortly after its deadline.
    pub(super) fn ask(&self, request: Request) -> Result<Answer, CallError> {
        let (class, deadline) = (request.class, request.deadline);
        let mut frame = request.into_frame();
        let bytes = frame.encoded_len();
        if bytes > self.limits.largest_frame() {
            let limit = self.limits.largest_frame();
            return Err(CallError::NotSent(NotSent::TooLarge { bytes, limit }));
        }
        let (token, answer) = oneshot::channel();
        {
            let mut state = self.state();
            state.admits()?;
            let sequence = state.session.sequence();
            frame.sequence = sequence.0;
            if state.outbox.push(class, frame, bytes).is_err() {
                drop(state);
                self.peer.refused();
                return Err(CallError::NotSent(NotSent::QueueFull));
            }
            state.pending.enter(sequence, deadline, token);
        }
        self.wake.notify_one();
        Ok(answer)
    }

    /// Queues a frame that wants no answer, if there is room for it.
    pub(super) fn tell(&self, request: Request) {
        let class = request.class;
        let frame = request.into_frame();
        let bytes = frame.encoded_len();
        let mut state = self.state();
        if state.admits().is_ok() && state.outbox.push(class, frame, bytes).is_ok() {
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Frames that wait to be written.
    pub(super) fn queued(&self) -> usize {
        self.state().outbox.len()
    }

    pub(super) fn is_up(&self) -> bool {
        self.state().phase == Phase::Up
    }

    /// Refuses requests from now on, and tells those that wait.
    pub(super) fn stop(&self) {
        self.fail(Phase::Stopped);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Request {
    fn into_frame(self) -> Frame {
        Frame {
            group_id: self.address.group,
            from_replica: self.address.from_replica,
            to_replica: self.address.to_replica,
            stream: self.stream.0,
            body: Some(self.body),
            ..Frame::default()
        }
    }
}

impl State {
    fn admits(&self) -> Result<(), CallError> {
        match self.phase {
            Phase::Connecting | Phase::Up => Ok(()),
            Phase::Down => Err(CallError::NotSent(NotSent::Unreachable)),
            Phase::Stopped => Err(CallError::NotSent(NotSent::Stopped)),
        }
    }
}

/// Carrying.
impl Link {
    /// Keeps the link connected, for ever.
    pub(super) async fn run(self: Arc<Self>, conduit: Arc<dyn Conduit>, randomness: Randomness) {
        let mut attempt = 0;
        loop {
            match self.connect(&*conduit).await {
                Ok(connection) => {
                    attempt = 0;
                    let broken = self.carry(connection).await;
                    tracing::info!(node = self.to.0, lane = self.lane.name(), error = %broken, "peer stream broke");
                    self.peer.broke(self.lane);
                    self.fail(Phase::Connecting);
                }
                Err(broken) => {
                    // Once for each time that it is gone, and once for both lanes.
                    if attempt == 1 && self.lane == Lane::Raft {
                        tracing::warn!(node = self.to.0, error = %broken, "peer unreachable");
                    }
                    self.fail(Phase::Down);
                }
            }
            let (first, longest) = (self.limits.backoff_first, self.limits.backoff_longest);
            let pause = backoff::pause(first, longest, attempt, randomness.next());
            self.expiring(sleep(pause)).await;
            attempt = attempt.saturating_add(1);
        }
    }

    /// Dials and says hello, both within the time allowed; then the link is up.
    async fn connect(&self, conduit: &dyn Conduit) -> Result<Connection, Broken> {
        let deadline = Instant::now() + self.limits.connect;
        let attempt = async {
            let mut connection = conduit.connect(self.to, self.lane).await?;
            let hello = self.peer.stamp(self.identity.seal(self.to, vec![]));
            connection.outbound.send(Ok(hello)).await.map_err(|_| Broken::Ended)?;
            let welcome = connection.inbound.next().await.ok_or(Broken::Ended)??;
            self.identity.check(&welcome, Some(self.to))?;
            self.peer.told(&welcome);
            Ok(connection)
        };
        let attempt = timeout_at(deadline, attempt);
        let connection = self.expiring(attempt).await.unwrap_or(Err(Broken::ConnectTimeout))?;
        let mut state = self.state();
        if state.phase != Phase::Stopped {
            state.phase = Phase::Up;
        }
        drop(state);
        self.peer.connects.fetch_add(1, Relaxed);
        self.peer.hear(Instant::now(), 0);
        tracing::info!(node = self.to.0, lane = self.lane.name(), "peer stream is up");
        Ok(connection)
    }

    /// Moves batches both ways until the stream breaks.
    async fn carry(&self, mut connection: Connection) -> Broken {
        let mut pulse = Pulse::new(Instant::now(), self.limits.keep_alive, self.idle());
        loop {
            let waiting = match self.flush(&connection.outbound) {
                Ok(waiting) => waiting,
                Err(broken) => return broken,
            };
            let deadline = self.state().pending.next_deadline();
            let timer = deadline.map_or(pulse.next(), |deadline| deadline.min(pulse.next()));
            tokio::select! {
                biased;
                batch = connection.inbound.next() => match batch {
                    Some(Ok(batch)) => match self.receive(batch, &mut pulse) {
                        Ok(()) => {}
                        Err(refused) => return refused.into(),
                    },
                    Some(Err(broken)) => return broken,
                    None => return Broken::Ended,
                },
                permit = connection.outbound.reserve(), if waiting => match permit {
                    Ok(permit) => drop(self.take_batch().map(|batch| permit.send(Ok(batch)))),
                    Err(_) => return Broken::Ended,
                },
                () = sleep_until(timer) => {
                    let now = Instant::now();
                    self.expire(now);
                    if pulse.is_idle(now) {
                        return Broken::Idle;
                    }
                    let question = || self.peer.stamp(self.identity.seal(self.to, vec![]));
                    if pulse.is_due(now) && connection.outbound.try_send(Ok(question())).is_ok() {
                        pulse.asked(now);
                    }
                }
                () = self.wake.notified() => {}
            }
        }
    }

    /// Writes what the stream can take now. True: more waits.
    fn flush(&self, outbound: &Outbound) -> Result<bool, Broken> {
        while !self.state().outbox.is_empty() {
            match outbound.try_reserve() {
                Ok(permit) => drop(self.take_batch().map(|batch| permit.send(Ok(batch)))),
                Err(mpsc::error::TrySendError::Full(())) => return Ok(true),
                Err(mpsc::error::TrySendError::Closed(())) => return Err(Broken::Ended),
            }
        }
        Ok(false)
    }

    /// All that is ready, marked as written.
    fn take_batch(&self) -> Option<FrameBatch> {
        let frames = {
            let State { session, outbox, pending, phase: _ } = &mut *self.state();
            outbox.take(self.limits.batch_bytes, |frame| {
                session.stamp(frame);
                let sequence = Sequence(frame.sequence);
                sequence == Sequence::NONE || pending.write(sequence)
            })
        };
        if frames.is_empty() {
            return None;
        }
        Some(self.peer.sends(self.lane, self.identity.seal(self.to, frames)))
    }

    fn receive(&self, batch: FrameBatch, pulse: &mut Pulse) -> Result<(), Refused> {
        self.identity.check(&batch, Some(self.to))?;
        let now = Instant::now();
        self.peer.hear(now, batch.frames.len());
        self.peer.told(&batch);
        if let Some(sample) = pulse.heard(now, batch.frames.is_empty())
            && self.lane == Lane::Raft
        {
            self.peer.measured(sample);
        }
        let answered: Vec<(Token, Frame)> = {
            let State { session, pending, .. } = &mut *self.state();
            let ours = batch.frames.into_iter().filter(|frame| session.owns(frame));
            ours.filter_map(|frame| Some((pending.answer(Sequence(frame.sequence))?, frame))).collect()
        };
        for (token, frame) in answered {
            let result = result_of(frame.body);
            if matches!(result, Err(CallError::Removed)) {
                self.peer.removed_answers.fetch_add(1, Relaxed);
            }
            // The asker may have given up.
            let _ = token.send(result);
        }
        Ok(())
    }

    /// Awaits something while requests go on expiring.
    async fn expiring<F: Future>(&self, future: F) -> F::Output {
        tokio::pin!(future);
        loop {
            let deadline = self.state().pending.next_deadline();
            let expiry = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                output = &mut future => return output,
                () = expiry => self.expire(Instant::now()),
                () = self.wake.notified() => {}
            }
        }
    }

    fn expire(&self, now: Instant) {
        let expired = self.state().pending.expire(now);
        self.peer.expired.fetch_add(expired.len() as u64, Relaxed);
        resolve(expired, CallError::expired);
    }

    /// Tells every request that waits what became of it, and goes on in `phase` unless stopped.
    fn fail(&self, phase: Phase) {
        let failed = {
            let mut state = self.state();
            if state.phase != Phase::Stopped {
                state.phase = phase;
            }
            state.session.renew();
            state.outbox.clear();
            state.pending.fail()
        };
        resolve(failed, CallError::broken);
    }

    fn idle(&self) -> Duration {
        match self.lane {
            Lane::Raft => self.limits.raft_idle,
            Lane::Bulk => self.limits.bulk_idle,
        }
    }
}

fn resolve(requests: Vec<(Token, Fate)>, error: impl Fn(Fate) -> CallError) {
    for (token, fate) in requests {
        let _ = token.send(Err(error(fate)));
    }
}
