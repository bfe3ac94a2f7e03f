//! Commits that a follower is not told yet.
//!
//! openraft sends a request without entries whenever the commit index grows and nothing else goes out that tells it. Under
//! load the next entry follows at once and tells it as well, so these are half of all frames, and cost both sides as much as
//! the others. They are held until a request with entries carries what they say, until the follower wants to read, which
//! it cannot before it has applied that far, or for [`HELD_MAX`]. A held request is answered with the one that carries
//! it, never before.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, task::AtomicWaker};
use kv_proto::peer::v1::AppendRequest;
use tokio::time::{Instant, Sleep, sleep_until};

use super::codec::LogId;

/// A follower to which nothing else is said learns of a commit so much later. STALE reads see it, and waits for a revision.
pub(super) const HELD_MAX: Duration = Duration::from_millis(20);

/// Whether a peer wants to know of all commits at once. One for each append stream to it.
#[derive(Debug, Default)]
pub(super) struct Wish {
    is_due: AtomicBool,
    waker: AtomicWaker,
}

/// The wishes of one peer, for all streams to it.
#[derive(Debug, Default)]
pub(super) struct Wishes(Mutex<Vec<Weak<Wish>>>);

impl Wishes {
    fn enter(&self) -> Arc<Wish> {
        let wish = Arc::default();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|wish| wish.strong_count() > 0);
        all.push(Arc::downgrade(&wish));
        wish
    }

    /// The peer is about to wait for what was committed.
    pub(super) fn make(&self) {
        for wish in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade) {
            wish.is_due.store(true, Relaxed);
            wish.waker.wake();
        }
    }
}

/// What one append stream holds back.
pub(super) struct Held {
    /// The entry that the follower has, for each held request.
    requests: Vec<Option<LogId>>,
    /// Says what they say.
    newest: Option<AppendRequest>,
    wish: Arc<Wish>,
    alarm: Pin<Box<Sleep>>,
}

impl Held {
    pub(super) fn new(wishes: &Wishes, now: Instant) -> Self {
        let alarm = Box::pin(sleep_until(now));
        Self { requests: Vec::new(), newest: None, wish: wishes.enter(), alarm }
    }

    /// Holds a request that follows `last` and brings no entries.
    pub(super) fn hold(&mut self, last: Option<LogId>, request: AppendRequest) {
        if self.requests.is_empty() {
            self.alarm.as_mut().reset(Instant::now() + HELD_MAX);
        }
        self.requests.push(last);
        self.newest = Some(request);
    }

    /// Whether a request is held.
    pub(super) fn is_any(&self) -> bool {
        self.newest.is_some()
    }

    /// Whether what is held says that the entry `last` is committed.
    pub(super) fn tells_commit_of(&self, last: Option<LogId>) -> bool {
        let told = self.newest.as_ref().and_then(|newest| newest.leader_commit.as_ref());
        last.is_none_or(|last| told.is_some_and(|told| told.index >= last.index))
    }

    /// The held requests, which the next one carries.
    pub(super) fn carried(&mut self) -> Vec<Option<LogId>> {
        self.newest = None;
        self.wish.is_due.store(false, Relaxed);
        std::mem::take(&mut self.requests)
    }

    /// The newest one, to be sent by itself. It stands for itself: it is not among those that it carries.
    pub(super) fn take(&mut self) -> Option<AppendRequest> {
        let newest = self.newest.take()?;
        self.requests.pop();
        Some(newest)
    }

    /// The same, once it is due.
    pub(super) fn poll_due(&mut self, context: &mut Context<'_>) -> Poll<AppendRequest> {
        if self.newest.is_none() {
            return Poll::Pending;
        }
        self.wish.waker.register(context.waker());
        let is_due = self.wish.is_due.load(Relaxed) || self.alarm.poll_unpin(context).is_ready();
        if is_due { self.take().map_or(Poll::Pending, Poll::Ready) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use futures::task::noop_waker;

    use super::*;
    use crate::log::codec::LeaderId;

    fn log_id(index: u64) -> Option<LogId> {
        Some(LogId::new(LeaderId { term: 1, node_id: 1 }, index))
    }

    fn poll(held: &mut Held) -> bool {
        held.poll_due(&mut Context::from_waker(&noop_waker())).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_is_held_for_its_time_and_no_longer() {
        let mut held = Held::new(&Wishes::default(), Instant::now());
        assert!(!poll(&mut held), "nothing is held");
        held.hold(log_id(1), AppendRequest::default());
        assert!(!poll(&mut held));
        tokio::time::advance(HELD_MAX / 2).await;
        held.hold(log_id(2), AppendRequest::default());
        assert!(!poll(&mut held));
        tokio::time::advance(HELD_MAX / 2).await;
        assert!(poll(&mut held), "from the first one on");
        assert_eq!(held.carried(), [log_id(1)], "the newest one went by itself");
        assert!(!poll(&mut held));
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_that_wants_to_read_is_told_at_once() {
        let wishes = Wishes::default();
        let mut held = Held::new(&wishes, Instant::now());
        held.hold(log_id(1), AppendRequest::default());
        assert!(!poll(&mut held));
        wishes.make();
        assert!(poll(&mut held));
        assert!(held.carried().is_empty());
        held.hold(log_id(2), AppendRequest::default());
        assert!(!poll(&mut held), "the wish was granted");
        wishes.make();
        assert_eq!(held.carried(), [log_id(2)]);
        held.hold(log_id(3), AppendRequest::default());
        assert!(!poll(&mut held), "what was carried has granted it as well");
    }
}
