//! Bytes of a streamed request that were read and not handed over: the beginning of a message whose rest has not come.
//!
//! The first of them are part of what a stream counts from its beginning, so that most messages count nothing here. When the
//! node is full no more is read for a while, and the client waits as HTTP/2 tells it to: what takes up the room is answered
//! or expires. A stream that gets none for that long is refused, since streams with halves of messages could otherwise wait
//! for each other.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::future::BoxFuture;
use tokio::time::Instant;

use super::{
    error::Refused,
    limits::{DEADLINE_DEFAULT, STREAM_AHEAD_BYTES, STREAM_WINDOW_BYTES},
    quota::InFlight,
};

/// Of a message: what is counted from the beginning of the stream beside its window.
pub const UNFINISHED_FREE_BYTES: usize = STREAM_AHEAD_BYTES - STREAM_WINDOW_BYTES as usize;

/// Until when the bytes of a message count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// It is whole: who takes it counts what it holds.
    Whole,
    /// The next one is asked for.
    Next,
}

/// What of one request waits to become messages.
pub struct Unfinished {
    in_flight: Arc<InFlight>,
    until: Until,
    framing: Framing,
    /// Bytes that are here, as far as it is known.
    held: usize,
    /// Those of them that are counted.
    counted: usize,
    /// Room for the others.
    room: Option<BoxFuture<'static, Result<(), Refused>>>,
}

impl Unfinished {
    /// Of a request that has just begun.
    pub fn new(in_flight: Arc<InFlight>, until: Until) -> Self {
        Self { in_flight, until, framing: Framing::default(), held: 0, counted: 0, room: None }
    }

    /// To be asked before more is read: what is whole has been taken by then.
    ///
    /// # Errors
    /// When there was no room for what is here for [`DEADLINE_DEFAULT`].
    pub fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Refused>> {
        self.held = self.framing.unfinished;
        if !self.count_now() {
            let (in_flight, more) = (&self.in_flight, self.to_count() - self.counted);
            let room = self.room.get_or_insert_with(|| {
                Box::pin(in_flight.clone().room(more, Instant::now() + DEADLINE_DEFAULT))
            });
            ready!(room.as_mut().poll(context))?;
            self.counted += more;
        }
        self.room = None;
        Poll::Ready(Ok(()))
    }

    /// More was read.
    pub fn came(&mut self, data: &[u8]) {
        self.framing.take(data);
        self.held = match self.until {
            Until::Whole => self.framing.unfinished,
            Until::Next => self.held + data.len(),
        };
        // Otherwise nothing more is read before there is room.
        self.count_now();
    }

    fn to_count(&self) -> usize {
        self.held.saturating_sub(UNFINISHED_FREE_BYTES)
    }

    /// Whether what is here is counted; otherwise there is no room now.
    fn count_now(&mut self) -> bool {
        let wanted = self.to_count();
        if wanted < self.counted {
            self.in_flight.give_back(self.counted - wanted);
        } else if wanted > self.counted && !self.in_flight.try_received(wanted - self.counted) {
            return false;
        }
        self.counted = wanted;
        true
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.in_flight.give_back(self.counted);
    }
}

/// Bytes before a message: a flag, and its length in four bytes, big endian.
const PREFIX_BYTES: usize = 5;

/// Where the messages of gRPC end in a stream of bytes. Pure.
#[derive(Debug, Default)]
struct Framing {
    prefix: [u8; PREFIX_BYTES],
    /// Of the prefix.
    seen: usize,
    /// Of the message.
    left: usize,
    /// Bytes of the last message, if its end has not come.
    unfinished: usize,
}

impl Framing {
    fn take(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.seen < PREFIX_BYTES {
                let (some, rest) = data.split_at(data.len().min(PREFIX_BYTES - self.seen));
                self.prefix[self.seen..self.seen + some.len()].copy_from_slice(some);
                self.seen += some.len();
                self.unfinished += some.len();
                data = rest;
                if self.seen < PREFIX_BYTES {
                    return;
                }
                let [_, length @ ..] = self.prefix;
                self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
            }
            let (some, rest) = data.split_at(data.len().min(self.left));
            self.left -= some.len();
            self.unfinished += some.len();
            data = rest;
            if self.left == 0 {
                (self.seen, self.unfinished) = (0, 0);
            }
        }
    }
}

#[cfg(test)]
#[path = "unfinished_tests.rs"]
mod tests;
