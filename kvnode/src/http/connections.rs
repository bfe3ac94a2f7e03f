//! The open connections: a bounded set of futures in which the newest always finds room.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{
    FutureExt, Stream,
    future::{AbortHandle, Abortable, BoxFuture},
    stream::FuturesUnordered,
};

/// Connections and, from the oldest to the newest, how to end each. As a stream it gives one item for each
/// connection that ended.
pub struct Connections {
    running: FuturesUnordered<BoxFuture<'static, u64>>,
    by_age: VecDeque<(u64, AbortHandle)>,
    next: u64,
    max: usize,
}

impl Connections {
    /// No connections, room for `max`.
    pub fn new(max: usize) -> Self {
        Self { running: FuturesUnordered::new(), by_age: VecDeque::with_capacity(max), next: 0, max }
    }

    /// Adds a connection; ends the oldest when there is no room.
    pub fn open(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        if self.by_age.len() >= self.max
            && let Some((_, oldest)) = self.by_age.pop_front()
        {
            oldest.abort();
        }
        let (handle, registration) = AbortHandle::new_pair();
        let number = self.next;
        self.next += 1;
        self.by_age.push_back((number, handle));
        self.running.push(Abortable::new(connection, registration).map(move |_| number).boxed());
    }
}

impl Stream for Connections {
    type Item = ();

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<()>> {
        let ended = Pin::new(&mut self.running).poll_next(context);
        if let Poll::Ready(Some(number)) = ended {
            self.by_age.retain(|(other, _)| *other != number);
        }
        ended.map(|number| number.map(drop))
    }
}
