//! The messages of a stream, made when the connection asks for them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::Stream;
use kv_proto::kv::v1::{BatchOperation, BatchRequest};
use tokio::time::Instant;

use super::Shared;

/// Of a message. More of them save nothing, and would let the first ones wait for the last ones.
pub(super) const MESSAGE_OPERATIONS_MAX: u32 = 512;
/// Of a message, but for an operation that is larger alone.
pub(super) const MESSAGE_BYTES_MAX: u64 = 512 * 1024;

/// What the connection polls for the next message.
pub(super) struct Outgoing {
    shared: Arc<Shared>,
    /// Whether others had their turn since there is something to send.
    yielded: bool,
}

impl Outgoing {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, yielded: false }
    }
}

impl Stream for Outgoing {
    type Item = BatchRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<BatchRequest>> {
        let shared = self.shared.clone();
        let mut state = shared.state();
        if state.is_over {
            return Poll::Ready(None);
        }
        if !state.queue.is_ready() {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        if !self.yielded {
            // The first of many callers that can run has woken this task, which runs before the others do. One turn later
            // all of them have queued what they have.
            self.yielded = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.yielded = false;
        let operations = state.next_message(Instant::now());
        state.tell_lines();
        if operations.is_empty() {
            // All of it was parked or is not awaited any more.
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Some(BatchRequest { operations }))
    }
}

impl super::State {
    fn next_message(&mut self, now: Instant) -> Vec<BatchOperation> {
        let most = MESSAGE_OPERATIONS_MAX as usize;
        let mut operations = Vec::with_capacity(self.queue.ready_len().min(most));
        let mut room = MESSAGE_BYTES_MAX;
        while operations.len() < most {
            // The first may be as large as it likes.
            let room_bytes = if operations.is_empty() { u64::MAX } else { room };
            let Some(taken) = self.queue.take(room_bytes, |reply| !reply.is_closed()) else { break };
            room = room.saturating_sub(taken.bytes);
            let left = taken.deadline.saturating_duration_since(now);
            operations.push(BatchOperation {
                id: taken.id,
                // 0 would ask for the default.
                timeout_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1),
                operation: Some(taken.operation),
            });
        }
        operations
    }
}
