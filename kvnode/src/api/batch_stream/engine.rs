//! One stream at work: reads messages, runs what they ask of the store, sends what is ready. The thin shell of [`Desk`].
//!
//! Nothing waits in here without a bound in time: a call has its deadline, a client that takes no answers and a stream that
//! is asked to end have theirs.

use std::sync::Arc;

use futures::{FutureExt, Stream, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use kv_proto::{
    kv::v1::{BatchOperation, BatchRequest, BatchResponse},
    peer::v1::{GotKeys, Outcome, Refusal, ReplyContext},
};
use kv_topology::ShardId;
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        watch,
    },
    time::{Instant, Sleep, sleep_until},
};
use tonic::{Code, Status};

use super::{
    BatchTerms, End, Parcel, Streams,
    desk::{Desk, Errand},
    intake::Ask,
    ledger::Reading,
    tally::Counters,
};
use crate::{
    api::{
        context::Context,
        error::Refused,
        limits::{BATCH_MESSAGES_AT_ONCE, Limit},
        quota::{ConnectionQuota, Share},
    },
    refusal,
    router::store::Store,
};

/// Advice to who found no place, ms.
const RETRY_AFTER_MS: u32 = 50;

/// What a call of the store brought.
enum Done {
    /// With the share of its reply, if it returns values.
    Written(usize, Result<Vec<Outcome>, Refusal>, Option<Share>),
    Read(usize, Result<Got, Refused>),
    /// A read that was put off, with the share of its reply.
    Again(usize, Result<(Option<Share>, Got), Refused>),
}

type Got = (Option<ReplyContext>, GotKeys);

/// What woke the stream.
enum Event {
    Done(Done),
    Request(Option<Result<BatchRequest, Status>>),
    /// There is room for a message, the timer fired, or the node stops: all is looked at again.
    Look,
    /// Nobody reads the answers any more.
    Gone,
}

/// How far a stream is.
enum Phase {
    /// Takes messages.
    Open,
    /// Ends as soon as what was taken is answered; says how. What comes meanwhile is refused with the refusal, or not read.
    Ending(Result<(), End>, Option<Refusal>),
}

/// A stream at work.
pub struct Engine<S, R> {
    context: Arc<Context<S>>,
    terms: BatchTerms,
    counters: Arc<Counters>,
    desk: Desk,
    requests: R,
    output: mpsc::Sender<Parcel>,
    connection: Option<Arc<ConnectionQuota>>,
    draining: watch::Receiver<bool>,
    running: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Of large replies that wait to be sent.
    large: Vec<Share>,
    phase: Phase,
    /// When the connection is too old.
    ends_at: Option<Instant>,
    /// When what was taken is answered at the latest.
    drained_at: Option<Instant>,
    /// Since when answers wait for the client.
    unread_since: Option<Instant>,
    timer: std::pin::Pin<Box<Sleep>>,
    /// When the timer fires; `None`: it is not needed.
    armed: Option<Instant>,
}

impl<S, R> Engine<S, R>
where
    S: Store,
    R: Stream<Item = Result<BatchRequest, Status>> + Send + Unpin,
{
    /// A stream that ends at `ends_at`.
    pub fn new(
        context: Arc<Context<S>>,
        streams: &Streams,
        desk: Desk,
        requests: R,
        output: mpsc::Sender<Parcel>,
        connection: Option<Arc<ConnectionQuota>>,
        ends_at: Option<Instant>,
    ) -> Self {
        Self {
            context,
            terms: streams.terms,
            counters: streams.counters.clone(),
            desk,
            requests,
            output,
            connection,
            draining: streams.draining.clone(),
            running: FuturesUnordered::new(),
            large: Vec::new(),
            phase: Phase::Open,
            ends_at,
            drained_at: None,
            unread_since: None,
            timer: Box::pin(sleep_until(Instant::now())),
            armed: None,
        }
    }

    /// Works until the end.
    ///
    /// # Errors
    /// Why the stream did not end in order.
    pub async fn run(mut self) -> Result<(), End> {
        loop {
            self.gather();
            let now = Instant::now();
            self.keep_time(now);
            self.send(now)?;
            self.read_again();
            self.counters.add(&mut self.desk.tally);
            if let Phase::Ending(ended, _) = &mut self.phase
                && self.desk.is_idle()
                && !self.desk.has_answers()
            {
                return std::mem::replace(ended, Ok(()));
            }
            self.arm();
            match self.next().await {
                Event::Done(done) => self.done(done),
                Event::Request(request) => self.request(request),
                Event::Look => {}
                Event::Gone => return Ok(()),
            }
        }
    }

    /// Takes all that is ready: first what is answered, then what is asked.
    fn gather(&mut self) {
        while !self.running.is_empty()
            && let Some(Some(done)) = self.running.next().now_or_never()
        {
            self.done(done);
        }
        for _ in 0..BATCH_MESSAGES_AT_ONCE {
            if !self.reads_requests() {
                break;
            }
            let Some(request) = self.requests.next().now_or_never() else { break };
            self.request(request);
        }
    }

    fn reads_requests(&self) -> bool {
        let wanted = match &self.phase {
            Phase::Open => true,
            Phase::Ending(_, refusal) => refusal.is_some(),
        };
        wanted && self.desk.takes()
    }

    async fn next(&mut self) -> Event {
        let reads = self.reads_requests();
        tokio::select! {
            biased;
            () = self.output.closed() => Event::Gone,
            Some(done) = self.running.next(), if !self.running.is_empty() => Event::Done(done),
            request = self.requests.next(), if reads => Event::Request(request),
            // The permit is given back, and taken again when the message is packed.
            _ = self.output.reserve(), if self.desk.has_answers() => Event::Look,
            () = &mut self.timer, if self.armed.is_some() => {
                self.armed = None;
                Event::Look
            }
            Ok(()) = self.draining.changed(), if matches!(self.phase, Phase::Open) => Event::Look,
        }
    }

    fn done(&mut self, done: Done) {
        let now = Instant::now();
        let Self { desk, connection, large, .. } = self;
        let mut grant = || match connection {
            None => true,
            Some(connection) => {
                let share = connection.large_reply_now();
                let granted = share.is_some();
                large.extend(share);
                granted
            }
        };
        match done {
            Done::Written(number, result, share) => {
                desk.written(number, result, now);
                // Given back at once when the values turned out to be small.
                if let Some(share) = share.filter(|_| desk.exceeds_small()) {
                    large.push(share);
                    desk.granted();
                }
            }
            Done::Read(number, result) => desk.read(number, result, now, &mut grant),
            Done::Again(number, result) => {
                let result = result.map(|(share, got)| {
                    large.extend(share);
                    desk.granted();
                    got
                });
                desk.read(number, result, now, &mut || true);
            }
        }
    }

    fn request(&mut self, request: Option<Result<BatchRequest, Status>>) {
        match request {
            Some(Ok(BatchRequest { operations })) => self.take(operations),
            None => self.end(Ok(()), None),
            Some(Err(status)) if status.code() == Code::DeadlineExceeded => {
                self.end(Err(End::Refused(Refused::Store(idle()))), None);
            }
            Some(Err(status)) => self.end(Err(End::Request(status)), None),
        }
    }

    fn take(&mut self, operations: Vec<BatchOperation>) {
        if let Phase::Ending(_, Some(refusal)) = &self.phase {
            let refused = Refused::Store(refusal.clone());
            if let Err(violation) = self.desk.refuse(&operations, &refused) {
                self.end(Err(End::Refused(violation.into())), None);
            }
            return;
        }
        self.desk.turn_to(self.context.store.map());
        let connection = self.connection.as_ref();
        let hold = |bytes| connection.map(|connection| connection.hold(bytes)).transpose();
        match self.desk.take(operations, Instant::now(), hold) {
            Ok(errands) => errands.into_iter().for_each(|errand| self.start(errand)),
            Err(violation) => self.end(Err(End::Refused(violation.into())), None),
        }
    }

    fn start(&mut self, errand: Errand) {
        let Errand { number, shard, ask, returns_values, deadline } = errand;
        let context = self.context.clone();
        let connection = self.connection.clone().filter(|_| returns_values);
        let call: BoxFuture<'static, Done> = match ask {
            Ask::Write(operations) => {
                let write = async move {
                    let share = match &connection {
                        Some(connection) => connection.large_reply(deadline).await.map(Some),
                        None => Ok(None),
                    };
                    match share {
                        Ok(share) => {
                            let written = context.store.write(shard, operations, deadline).await;
                            Done::Written(number, written, share)
                        }
                        Err(_) => Done::Written(number, Err(no_place()), None),
                    }
                };
                write.boxed()
            }
            Ask::Read(reading) => {
                let read = async move { Done::Read(number, read(&context, shard, reading, deadline).await) };
                read.boxed()
            }
        };
        self.running.push(call);
    }

    /// Reads again what was let go, of each shard one after the other, when nothing else waits to be sent.
    fn read_again(&mut self) {
        while !self.desk.has_answers()
            && let Some((number, shard, reading, deadline)) = self.desk.again()
        {
            self.start_again(number, shard, reading, deadline);
        }
    }

    /// With the share of a large reply, for which it waits without holding anything.
    fn start_again(&mut self, number: usize, shard: ShardId, reading: Reading, deadline: Instant) {
        let (context, connection) = (self.context.clone(), self.connection.clone());
        let again = async move {
            let share = match &connection {
                Some(connection) => connection.large_reply(deadline).await.map(Some),
                None => Ok(None),
            };
            let got = match share {
                Ok(share) => read(&context, shard, reading, deadline).await.map(|got| (share, got)),
                Err(refused) => Err(refused),
            };
            Done::Again(number, got)
        };
        self.running.push(again.boxed());
    }

    /// Sends one message, if there is something to tell and the transport takes it.
    fn send(&mut self, now: Instant) -> Result<(), End> {
        if !self.desk.has_answers() {
            return Ok(());
        }
        match self.output.try_reserve() {
            Ok(permit) => {
                self.unread_since = None;
                let results = self.desk.message();
                let is_last = !self.desk.has_answers();
                let shares = if is_last { std::mem::take(&mut self.large) } else { Vec::new() };
                let message = BatchResponse { results, ..BatchResponse::default() };
                permit.send(Parcel { message, shares });
            }
            Err(TrySendError::Full(())) => {
                let since = *self.unread_since.get_or_insert(now);
                if now >= since + self.terms.unread {
                    return Err(End::Refused(Refused::Store(unread(self.terms))));
                }
            }
            // The next look at it ends the stream.
            Err(TrySendError::Closed(())) => {}
        }
        Ok(())
    }

    /// Answers what is overdue, and begins the end when it is time.
    fn keep_time(&mut self, now: Instant) {
        self.desk.expire(now);
        if matches!(self.phase, Phase::Open) {
            if *self.draining.borrow_and_update() {
                self.end_with(now, refusal::not_applied(refusal::STOPPING, "the node is stopping"));
            } else if self.ends_at.is_some_and(|at| at <= now) {
                let text = "the connection is old: open a stream on another one";
                self.end_with(now, refusal::not_applied(refusal::STREAM_ENDED, text));
            } else if self.desk.until().is_some_and(|until| until <= now) {
                self.end(Err(End::Refused(Refused::Expired)), None);
            }
        }
        if self.drained_at.is_some_and(|at| at <= now) {
            self.desk.expire_all();
        }
    }

    fn end_with(&mut self, now: Instant, refusal: Refusal) {
        self.drained_at = Some(now + self.terms.drain);
        self.end(Err(End::Refused(Refused::Store(refusal.clone()))), Some(refusal));
    }

    fn end(&mut self, ended: Result<(), End>, refusal: Option<Refusal>) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Open) {
            Phase::Open => Phase::Ending(ended, refusal),
            // What began the end is told; nothing more is read.
            Phase::Ending(first, _) => Phase::Ending(first, None),
        };
    }

    /// Sets the timer to the next moment at which something is due. One that fires too early is set again: so most
    /// deadlines, which are never reached, cost nothing.
    fn arm(&mut self) {
        let open = matches!(self.phase, Phase::Open);
        let due = [
            self.desk.earliest(),
            self.drained_at.filter(|_| !self.desk.is_idle()),
            self.unread_since.map(|since| since + self.terms.unread),
            self.ends_at.filter(|_| open),
            self.desk.until().filter(|_| open),
        ];
        if let Some(due) = due.into_iter().flatten().min()
            && self.armed.is_none_or(|armed| due < armed)
        {
            self.timer.as_mut().reset(due);
            self.armed = Some(due);
        }
    }
}

async fn read<S: Store>(
    context: &Context<S>,
    shard: ShardId,
    reading: Reading,
    deadline: Instant,
) -> Result<Got, Refused> {
    let Reading { options, metadata_only, keys } = reading;
    context.read_keys(shard, Some(options), keys, metadata_only, deadline).await
}

fn no_place() -> Refusal {
    let message = "too many large replies are under way";
    refusal::exhausted(Limit::LargeReplies.reason(), message, RETRY_AFTER_MS)
}

fn idle() -> Refusal {
    refusal::not_applied(refusal::STREAM_ENDED, "nothing came on the stream for long")
}

fn unread(terms: BatchTerms) -> Refusal {
    refusal::outcome_unknown(format!("the client took no answers for {:?}", terms.unread))
}
