//! Append requests of a leader to one replica, several in flight, answered in order.
//!
//! Pull and push in one poll, without a task: while the window is open requests are taken from openraft, cut
//! into frames and put on the link; the oldest one's answer comes out. The stream ends with an error when the link
//! breaks or the oldest request is not answered for too long, and openraft opens another one.
//!
//! A request that only tells of a commit waits for the next one; see [`super::held`].
//!
//! openraft notes when it hands each request over, and takes an answer that names an entry for the answer to all requests
//! that end with it, the newest included: for a sign of life since that was handed over, on which reads rely. So an answer is
//! kept back while a later request with the same end is under way or held, and the answer to that one speaks for both.
//!
//! A link that is down is noticed with the first request, never before: openraft waits out its back-off inside the stream
//! of requests, and a stream that fails before it was read makes it spin.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{FutureExt, Stream, StreamExt};
use kv_proto::peer::v1::{AppendRequest, frame::Body, refusal};
use openraft::{
    errors::RPCError,
    raft::{AppendEntriesRequest, StreamAppendResult},
};
use openraft_rt::AsyncRuntime;
use prost::Message;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    call::{CallError, refusal},
    codec::{LogId, decode_append_result, encode_append_request, last_of, previous_of},
    held::Held,
    limits::Limits,
    link::{Address, Answer, Link, Request},
    network::rpc_error,
    outbox::Class,
    session::StreamNumber,
};
use crate::group::type_config::TypeConfig;

/// The answers of one append stream.
pub(super) struct AppendStream<S> {
    input: Option<S>,
    link: Arc<Link>,
    limits: Arc<Limits>,
    address: Address,
    stream: StreamNumber,
    held: Held,
    /// The last entry of what was sent.
    sent: Option<LogId>,
    /// Frames of the newest request that do not fit the window yet.
    parts: VecDeque<AppendRequest>,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// Answers that wait to be taken.
    answered: VecDeque<Option<LogId>>,
    progress: Instant,
    alarm: Pin<Box<Sleep>>,
    /// Comes out after the answers to what was asked before it.
    failure: Option<CallError>,
    over: bool,
}

struct Waiting {
    previous: Option<LogId>,
    last: Option<LogId>,
    /// The requests before it that it speaks for.
    carried: Vec<Option<LogId>>,
    bytes: usize,
    answer: Answer,
}

impl<S> AppendStream<S> {
    pub(super) fn new(input: S, link: Arc<Link>, limits: Arc<Limits>, address: Address) -> Self {
        let (now, stream) = (Instant::now(), link.new_stream());
        let alarm = Box::pin(sleep_until(now + limits.append_idle));
        let held = Held::new(link.wishes(), now);
        Self {
            input: Some(input),
            held,
            sent: None,
            answered: VecDeque::new(),
            link,
            limits,
            address,
            stream,
            parts: VecDeque::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            progress: now,
            alarm,
            failure: None,
            over: false,
        }
    }

    fn window_is_open(&self) -> bool {
        let frames = self.waiting.len() < self.limits.append_window_frames;
        let bytes = self.waiting_bytes < self.limits.append_window_bytes;
        self.failure.is_none() && frames && bytes
    }

    fn ask(&mut self, part: AppendRequest) {
        let now = Instant::now();
        let (previous, last) = (previous_of(&part), last_of(&part));
        let bytes = part.encoded_len();
        // The alarm fails the stream; the deadline only clears what it left behind.
        let request = Request {
            address: self.address,
            stream: self.stream,
            class: Class::Append,
            deadline: now + self.limits.append_idle * 2,
            body: Body::AppendRequest(part),
        };
        match self.link.ask(request) {
            Err(error) => self.failure = Some(error),
            Ok(answer) => {
                if self.waiting.is_empty() {
                    self.progress = now;
                }
                self.sent = last;
                self.waiting_bytes += bytes;
                let carried = self.held.carried();
                self.waiting.push_back(Waiting { previous, last, carried, bytes, answer });
            }
        }
    }

    /// Ready when the oldest request has waited for too long.
    fn poll_alarm(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let due = self.progress + self.limits.append_idle;
            ready!(self.alarm.poll_unpin(context));
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            self.alarm.as_mut().reset(due);
        }
    }
}

impl<S> Drop for AppendStream<S> {
    fn drop(&mut self) {
        if !self.waiting.is_empty() {
            self.link.tell(Request {
                address: self.address,
                stream: self.stream,
                class: Class::Append,
                deadline: Instant::now(),
                body: refusal(refusal::Kind::NotApplied, "STREAM_ENDED", "the leader gave it up"),
            });
        }
    }
}

/// Answers, as one type for all runtimes.
type Item<RT> = Result<StreamAppendResult<TypeConfig<RT>>, RPCError<TypeConfig<RT>>>;

impl<S> AppendStream<S> {
    /// Takes requests while the window is open.
    fn fill<RT: AsyncRuntime>(&mut self, context: &mut Context<'_>)
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig<RT>>> + Unpin,
    {
        while self.window_is_open() {
            if let Some(part) = self.parts.pop_front() {
                self.ask(part);
                continue;
            }
            let Some(input) = &mut self.input else {
                // Nothing comes any more that could carry it.
                if let Some(request) = self.held.take() {
                    self.ask(request);
                }
                return;
            };
            match input.poll_next_unpin(context) {
                Poll::Pending => match self.held.poll_due(context) {
                    Poll::Ready(request) => self.ask(request),
                    Poll::Pending => return,
                },
                Poll::Ready(None) => self.input = None,
                Poll::Ready(Some(request)) => {
                    let only_commits = request.entries.is_empty() && request.prev_log_id == self.sent;
                    let mut parts = encode_append_request(request, self.limits.frame_bytes);
                    match (self.sent, parts.pop()) {
                        (Some(_), Some(part)) if only_commits => self.held.hold(self.sent, part),
                        (_, last) => self.parts.extend(parts.into_iter().chain(last)),
                    }
                }
            }
        }
    }

    /// The answer to the oldest request, if it is here.
    fn poll_oldest(&mut self, context: &mut Context<'_>) -> Poll<Result<Body, CallError>> {
        match self.waiting.front_mut() {
            Some(oldest) => {
                let answer = oldest.answer.poll_unpin(context);
                answer.map(|answer| answer.unwrap_or(Err(CallError::OutcomeUnknown)))
            }
            None => Poll::Pending,
        }
    }

    /// When nothing waits for an answer.
    fn poll_end<RT: AsyncRuntime>(&mut self) -> Poll<Option<Item<RT>>> {
        if let Some(error) = self.failure.take() {
            self.over = true;
            return Poll::Ready(Some(Err(rpc_error(&error))));
        }
        if self.input.is_none() && self.parts.is_empty() { Poll::Ready(None) } else { Poll::Pending }
    }

    /// The next answer; after an error or a rejection the stream is over.
    pub(super) fn poll_answer<RT: AsyncRuntime>(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Item<RT>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig<RT>>> + Unpin,
    {
        loop {
            if let Some(last) = self.answered.pop_front() {
                return Poll::Ready(Some(Ok(Ok(last))));
            }
            if self.over {
                return Poll::Ready(None);
            }
            // What is here comes first: what is handed over after it is no reason to keep it back.
            let mut answer = self.poll_oldest(context);
            if answer.is_pending() {
                self.fill(context);
                if self.waiting.is_empty() {
                    return self.poll_end();
                }
                answer = self.poll_oldest(context);
            }
            let answer = match answer {
                Poll::Ready(answer) => answer,
                Poll::Pending => {
                    ready!(self.poll_alarm(context));
                    Err(CallError::Deadline)
                }
            };
            let Some(asked) = self.waiting.pop_front() else { return Poll::Ready(None) };
            self.waiting_bytes -= asked.bytes;
            self.progress = Instant::now();
            match answer.and_then(|body| result(&body, &asked)).map_err(|error| rpc_error(&error)) {
                Ok(Ok(matching)) => self.accept(asked.carried, matching),
                end => {
                    self.over = true;
                    return Poll::Ready(Some(end));
                }
            }
        }
    }

    /// Gives on what an answer says, as far as no later request ends with the same entry.
    fn accept(&mut self, carried: Vec<Option<LogId>>, matching: Option<LogId>) {
        let next = self.waiting.front().map(|next| next.carried.first().copied().unwrap_or(next.last));
        let next = next.or_else(|| self.held.is_any().then_some(self.sent));
        let speaks_for_itself = |last: &Option<LogId>| next.is_none_or(|next| *last < next);
        self.answered.extend(carried.into_iter().chain([matching]).filter(speaks_for_itself));
        // The leader may need this answer to commit the entry: then the held request goes out, for its own answer to come.
        let is_kept_back = self.waiting.is_empty() && !speaks_for_itself(&matching);
        if is_kept_back
            && !self.held.tells_commit_of(matching)
            && let Some(request) = self.held.take()
        {
            self.ask(request);
        }
    }
}

fn result<RT: AsyncRuntime>(
    body: &Body,
    asked: &Waiting,
) -> Result<StreamAppendResult<TypeConfig<RT>>, CallError> {
    match body {
        Body::AppendResponse(response) => {
            decode_append_result::<RT>(response, asked.previous, asked.last).ok()
        }
        _ => None,
    }
    .ok_or(CallError::OutcomeUnknown)
}

/// The stream as openraft reads it.
pub(super) struct Answers<S, RT>(pub(super) AppendStream<S>, pub(super) std::marker::PhantomData<fn() -> RT>);

impl<S, RT> Stream for Answers<S, RT>
where
    RT: AsyncRuntime,
    S: Stream<Item = AppendEntriesRequest<TypeConfig<RT>>> + Unpin,
{
    type Item = Item<RT>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().0.poll_answer(context)
    }
}
