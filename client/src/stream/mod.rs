//! One `Batch` stream: many operations in a message, answered in any order.
//!
//! ```text
//! caller ─► Queue ─► Outgoing ─► messages ─► node
//!   ▲                                          │
//!   └── oneshot ◄── drive ◄── messages ◄───────┘
//! ```
//!
//! No timer makes messages larger: whatever is in the queue when the connection asks for the next message travels
//! together. One task for each stream takes the answers and notices those whose time is over; an operation costs neither a
//! task nor a timer. Who finds too much of its shard waiting already stands in line ([`line`]).
//!
//! When a stream ends, whoever waits is told whether the operation was sent. What becomes of it is decided by whoever
//! waits ([`crate::retry`]); the next operation makes a new stream.

mod drive;
mod line;
mod outgoing;
mod queue;

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    task::Waker,
};

use kv_http2::client::Connection;
use kv_proto::kv::v1::{self as proto, batch_operation::Operation, batch_result, kv_client::KvClient};
use prost::Message as _;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use tonic::Status;

use line::{Lines, Place};
use queue::{Left, Queue, Waiting, Window};

/// What may be under way before the node told its window: one message.
const FIRST_WINDOW: Window =
    Window { operations: outgoing::MESSAGE_OPERATIONS_MAX, bytes: outgoing::MESSAGE_BYTES_MAX };
/// Id, time-out and the frame of an operation, at most.
const FRAME_BYTES: usize = 32;

/// How an operation on a stream ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The node answered.
    Answered(batch_result::Result),
    /// Its time is over. `sent`: it may have happened.
    Late {
        /// Whether it has left the queue.
        sent: bool,
    },
    /// The stream is over.
    Broken {
        /// Whether it has left the queue.
        sent: bool,
        /// Why.
        why: Why,
    },
}

impl Ended {
    /// The stream went without a word.
    pub(crate) const GONE: Self = Self::Broken { sent: true, why: Why::Over };
}

/// Why a stream is over.
#[derive(Clone, Debug)]
pub(crate) enum Why {
    /// The node refused to open it, before anything happened or in a way that the status tells.
    NotOpened(Arc<Status>),
    /// It broke; what was sent may have happened.
    Broke(Arc<Status>),
    /// The node ended it in order.
    Over,
}

/// An operation was not taken.
#[derive(Debug)]
pub(crate) enum NotTaken {
    /// The stream is over; another one will take it.
    Over,
    /// Too much waits already. A place in the line of those that wait for room.
    Full(Place),
}

/// The queue did not take an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NotPushed {
    Over,
    Full,
}

type Reply = oneshot::Sender<Ended>;

/// A stream that takes operations. Dropping it ends the stream in order.
#[derive(Debug)]
pub(crate) struct BatchStream(Arc<Shared>);

/// What callers, the connection and the task of answers share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is an earlier deadline than before, or the stream is over.
    changed: Notify,
    /// Told in messages instead of in each answer.
    cluster_id: Arc<OnceLock<String>>,
}

#[derive(Debug)]
struct State {
    queue: Queue<Operation, Reply>,
    lines: Lines,
    /// Of the connection, when it waits for something to send.
    waker: Option<Waker>,
    is_over: bool,
}

impl BatchStream {
    /// Opens a stream and spawns the task of its answers.
    pub(crate) fn start(kv: KvClient<Connection>, cluster_id: Arc<OnceLock<String>>) -> Self {
        let queue = Queue::new(FIRST_WINDOW);
        let state = State { queue, lines: Lines::default(), waker: None, is_over: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Notify::new(), cluster_id });
        tokio::spawn(drive::drive(kv, shared.clone()));
        Self(shared)
    }

    /// Whether it takes no more operations.
    pub(crate) fn is_over(&self) -> bool {
        self.0.state().is_over
    }

    /// Queues an operation on `shard` (0: not known), to be answered until `deadline`.
    pub(crate) fn send(
        &self,
        operation: &Operation,
        shard: u32,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<Ended>, NotTaken> {
        self.0.push(operation, shard, deadline, false).map_err(|why| match why {
            NotPushed::Over => NotTaken::Over,
            NotPushed::Full => NotTaken::Full(Place::at_the_end(&self.0, shard)),
        })
    }
}

impl Drop for BatchStream {
    fn drop(&mut self) {
        self.0.end(&Why::Over);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an operation into the queue. `in_turn`: it is the first of its line; others pass no line.
    fn push(
        &self,
        operation: &Operation,
        shard: u32,
        deadline: Instant,
        in_turn: bool,
    ) -> Result<oneshot::Receiver<Ended>, NotPushed> {
        let bytes = (encoded_len(operation) + FRAME_BYTES) as u64;
        let (reply, answer) = oneshot::channel();
        let (waker, is_sooner) = {
            let mut state = self.state();
            if state.is_over {
                return Err(NotPushed::Over);
            }
            if state.queue.is_full(shard) || (!in_turn && state.lines.has(shard)) {
                return Err(NotPushed::Full);
            }
            let before = state.queue.next_deadline();
            state.queue.push(Waiting { shard, bytes, deadline, operation: operation.clone(), reply });
            let is_sooner = state.queue.next_deadline() != before;
            let waker = if state.queue.is_ready() { state.waker.take() } else { None };
            (waker, is_sooner)
        };
        if is_sooner {
            self.changed.notify_one();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(answer)
    }

    /// Nothing more is taken, and everybody who waits is told.
    fn end(&self, why: &Why) {
        let (left, waker) = {
            let mut state = self.state();
            state.is_over = true;
            let left = state.queue.fail();
            state.tell_lines();
            (left, state.waker.take())
        };
        self.changed.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
        for Left { reply, sent } in left {
            // Who does not wait any more needs no answer; likewise below.
            let _ = reply.send(Ended::Broken { sent, why: why.clone() });
        }
    }

    /// Answers those whose time is over.
    fn expire(&self, now: Instant) {
        let (left, waker) = {
            let mut state = self.state();
            let left = state.queue.expire(now);
            state.tell_lines();
            // One that did not fit may have kept others waiting.
            (left, if state.queue.is_ready() { state.waker.take() } else { None })
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        for Left { reply, sent } in left {
            let _ = reply.send(Ended::Late { sent });
        }
    }

    /// Takes in a message of answers, under one lock, and then tells everybody.
    fn answered(&self, message: proto::BatchResponse) {
        if !message.cluster_id.is_empty() {
            self.cluster_id.get_or_init(|| message.cluster_id);
        }
        let mut answers = Vec::with_capacity(message.results.len());
        let waker = {
            let mut state = self.state();
            if let Some(window) = message.window {
                state.queue.resize(Window { operations: window.operations, bytes: window.bytes });
            }
            for result in message.results {
                let Some(reply) = state.queue.answered(result.id) else { continue };
                answers.extend(result.result.map(|result| (reply, result)));
            }
            if state.queue.is_ready() { state.waker.take() } else { None }
        };
        for (reply, result) in answers {
            let _ = reply.send(Ended::Answered(result));
        }
        // After the answers: whoever got one may have something for the next message.
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Encoded size of an operation.
pub(crate) fn encoded_len(operation: &Operation) -> usize {
    match operation {
        Operation::Put(put) => put.encoded_len(),
        Operation::Get(get) => get.encoded_len(),
        Operation::Delete(delete) => delete.encoded_len(),
        Operation::Txn(txn) => txn.encoded_len(),
    }
}
