//! The sessions of a client: one for each shard that it writes to, opened when the first write needs it.
//!
//! Concurrent first writes wait for one opening. A write that the window has no room for waits until its deadline. A session
//! that has expired gives way to a new one with the next write; nothing renews it but its use. The [`crate::keeper`] closes
//! those that are not used.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use kv_proto::kv::v1::{self as proto, open_session_request};
use kv_topology::Slot;
use tokio::{
    sync::Notify,
    time::{timeout, timeout_at},
};

use crate::{
    call::Call,
    client::Client,
    error::{Error, Result},
    failure::Failure,
    keeper::keep,
    retry::{Cause, Kind},
    routing::Route,
    session::{Session, Stamp},
};

/// All sessions are closed within this time, or left to expire.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The sessions that the clones of a client share.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    /// By shard. That of shard 0 has no session ever: it is for those who open one by a key whose shard is not known.
    shards: Mutex<HashMap<u32, Arc<Lane>>>,
    /// Whether there is a keeper. Locked before a lane, never while one is.
    has_keeper: Mutex<bool>,
    /// The keeper has something to look at: the clones of the client are gone, or the sessions.
    roused: Notify,
}

/// The session of one shard, when there is one.
#[derive(Debug, Default)]
struct Lane {
    session: Mutex<Option<Session>>,
    /// Somebody opens one.
    is_opening: AtomicBool,
    /// The window moved, the session is another one, or whoever opened one is done. Wakes all who wait: to wake one after the
    /// other would have them send one message after the other.
    moved: Notify,
}

/// The turn to open a session, for one at a time.
struct Turn<'l>(&'l Lane);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.is_opening.store(false, Ordering::Release);
        self.0.moved.notify_waiters();
    }
}

/// A place in a session, held while somebody waits for the write's outcome.
#[derive(Debug)]
pub(crate) struct Ticket {
    lane: Arc<Lane>,
    shard: u32,
    first: Stamp,
}

/// What a lane said to a write.
enum Next {
    Stamped(Ticket),
    WindowFull,
    NoSession,
}

impl Ticket {
    /// The shard that the session is one of.
    pub(crate) fn shard(&self) -> u32 {
        self.shard
    }

    /// The stamp for the next attempt.
    pub(crate) fn stamp(&self) -> Stamp {
        match &*self.lane.session() {
            Some(session) if session.id() == self.first.session_id => session.stamp(self.first.sequence),
            // The session is gone: its shard will say so.
            Some(_) | None => self.first,
        }
    }

    /// The shard does not know the session any more; the next write opens another one.
    pub(crate) fn expired(&self) {
        self.lane.session().take_if(|session| session.id() == self.first.session_id);
        self.lane.moved.notify_waiters();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let moved = match &mut *self.lane.session() {
            Some(session) if session.id() == self.first.session_id => session.finish(self.first.sequence),
            Some(_) | None => false,
        };
        if moved {
            self.lane.moved.notify_waiters();
        }
    }
}

impl Lane {
    fn session(&self) -> MutexGuard<'_, Option<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: somebody else has it.
    fn turn(&self) -> Option<Turn<'_>> {
        (!self.is_opening.swap(true, Ordering::Acquire)).then(|| Turn(self))
    }

    fn next(self: &Arc<Self>, shard: u32) -> Next {
        let mut session = self.session();
        let Some(session) = &mut *session else { return Next::NoSession };
        match session.next() {
            Some(first) => Next::Stamped(Ticket { lane: self.clone(), shard, first }),
            None => Next::WindowFull,
        }
    }
}

impl Sessions {
    fn shards(&self) -> MutexGuard<'_, HashMap<u32, Arc<Lane>>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lane(&self, shard: u32) -> Arc<Lane> {
        self.shards().entry(shard).or_default().clone()
    }

    fn is_empty(&self) -> bool {
        self.shards().keys().all(|shard| *shard == 0)
    }

    fn lanes(&self) -> Vec<Arc<Lane>> {
        self.shards().values().cloned().collect()
    }

    /// Takes every session out; later writes open new ones.
    pub(crate) fn take(&self) -> Vec<u64> {
        self.take_if(|_| true)
    }

    /// Takes out those that were not used since this was called last, and that nobody has a ticket of.
    pub(crate) fn take_idle(&self) -> Vec<u64> {
        self.take_if(Session::is_idle_since_last_look)
    }

    fn take_if(&self, mut is_taken: impl FnMut(&mut Session) -> bool) -> Vec<u64> {
        let lanes = self.lanes();
        let taken = lanes.iter().filter_map(|lane| {
            let session = lane.session().take_if(&mut is_taken)?;
            // Who waits for its window goes on in another one.
            lane.moved.notify_waiters();
            Some(session.id())
        });
        taken.collect()
    }

    /// Whether a keeper is to be started, by whoever asks.
    pub(crate) fn needs_keeper(&self) -> bool {
        !std::mem::replace(&mut *self.has_keeper(), true)
    }

    /// Whether the keeper may go: there is no session. Who opens one later needs another keeper, and is told so.
    pub(crate) fn dismisses_keeper(&self) -> bool {
        let mut has_keeper = self.has_keeper();
        *has_keeper = self.lanes().iter().any(|lane| lane.session().is_some());
        !*has_keeper
    }

    pub(crate) fn lost_keeper(&self) {
        *self.has_keeper() = false;
    }

    pub(crate) fn rouse_keeper(&self) {
        self.roused.notify_one();
    }

    pub(crate) async fn keeper_roused(&self) {
        self.roused.notified().await;
    }

    fn has_keeper(&self) -> MutexGuard<'_, bool> {
        self.has_keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call {
    /// A place in the session of the shard that owns `key`. Opens the session when there is none, and waits for the window.
    ///
    /// # Errors
    /// When that did not succeed until the deadline. Nothing was sent.
    pub(crate) async fn ticket(&self, slot: Slot, key: &Bytes) -> Result<Ticket> {
        loop {
            if let Some(ticket) = self.ticket_unless_full(slot, key).await? {
                return Ok(ticket);
            }
            let lane = self.client.core().sessions.lane(self.client.core().knowledge.shard_of(slot));
            let moved = lane.moved.notified();
            // Whatever moved before this was seen by the next look.
            tokio::pin!(moved);
            moved.as_mut().enable();
            if let Some(ticket) = self.ticket_unless_full(slot, key).await? {
                return Ok(ticket);
            }
            if timeout_at(self.deadline(), moved).await.is_err() {
                let cause = Cause::Exhausted { advised: true };
                let message = "the window of the session stayed full until the deadline";
                return Err(self.end(Failure::local(self.plan.operation, None, cause, message)));
            }
        }
    }

    /// The same; `None`: the window is full.
    pub(crate) async fn ticket_unless_full(&self, slot: Slot, key: &Bytes) -> Result<Option<Ticket>> {
        let core = self.client.core();
        loop {
            let shard = core.knowledge.shard_of(slot);
            let lane = core.sessions.lane(shard);
            match lane.next(shard) {
                Next::Stamped(ticket) => return Ok(Some(ticket)),
                Next::WindowFull => return Ok(None),
                Next::NoSession => {}
            }
            if let Some(_turn) = lane.turn() {
                // Somebody may have been quicker.
                if core.knowledge.shard_of(slot) == shard && lane.session().is_none() {
                    self.open(shard, slot, key).await.map_err(|error| error.unsent(self.plan.operation))?;
                }
                continue;
            }
            let opened = lane.moved.notified();
            tokio::pin!(opened);
            opened.as_mut().enable();
            if lane.is_opening.load(Ordering::Acquire) && timeout_at(self.deadline(), opened).await.is_err() {
                return Err(self.not_opened());
            }
        }
    }

    /// Opens a session by a key. A client that writes one key needs no map for it; for further ones the map tells which of
    /// them share a session.
    async fn open(&self, shard: u32, slot: Slot, key: &Bytes) -> Result<()> {
        let core = self.client.core();
        if shard == 0 && core.knowledge.epoch() == 0 && !core.sessions.is_empty() {
            self.ask_for_map(0).await;
            if core.knowledge.shard_of(slot) != 0 {
                return Ok(());
            }
        }
        self.open_by_key(slot, key).await
    }

    /// Opens a session in the shard that owns `key`, whichever that turns out to be.
    async fn open_by_key(&self, slot: Slot, key: &Bytes) -> Result<()> {
        let core = self.client.core();
        let request = proto::OpenSessionRequest {
            shard: Some(open_session_request::Shard::Key(key.clone())),
            ttl_ms: core.session_ttl_ms,
        };
        // Opening twice harms nobody: a session that nobody uses expires.
        let call = self.another("OpenSession", Kind::Read, Route::Leader(slot));
        let (reply, _) =
            call.unary(request, |node, request| async move { node.kv().open_session(request).await }).await?;
        let shard = reply.header.map_or(0, |header| header.shard_id);
        if shard == 0 || reply.session_id == 0 {
            return Err(Error::protocol("OpenSession", "the answer names no shard or no session"));
        }
        core.knowledge.owns(slot, shard);
        let lane = core.sessions.lane(shard);
        let window = usize::try_from(reply.window).unwrap_or(usize::MAX);
        lane.session().get_or_insert_with(|| Session::new(reply.session_id, window));
        lane.moved.notify_waiters();
        keep(self.client.clones());
        Ok(())
    }

    fn not_opened(&self) -> Error {
        let message = "no session was opened until the deadline";
        self.end(Failure::local(self.plan.operation, None, Cause::NotApplied, message))
    }
}

impl Client {
    /// Closes the sessions that this client and its clones have opened, so that their shards need not keep them until they
    /// expire. Takes 2 s at most; what could not be closed expires by itself.
    ///
    /// Sessions that are not used for 10 to 20 s are closed without this, and all of them when the last clone is dropped, as
    /// long as the runtime goes on. A program that ends calls this before. Writes that are under way lose their session, and end
    /// with an unknown outcome when they must be sent again. Later writes open new sessions.
    pub async fn close(&self) {
        let sessions = self.core().sessions.take();
        // There is nothing left to keep.
        self.core().sessions.rouse_keeper();
        self.close_sessions(sessions).await;
    }

    /// Closes these, which nobody uses any more.
    pub(crate) async fn close_sessions(&self, sessions: Vec<u64>) {
        let closing = sessions.into_iter().map(|session_id| {
            let call = self.with_timeout(CLOSE_TIMEOUT).call("CloseSession", Kind::Read, Route::Any);
            call.unary(proto::CloseSessionRequest { session_id }, |node, request| async move {
                node.kv().close_session(request).await
            })
        });
        if let Ok(closed) = timeout(CLOSE_TIMEOUT, futures::future::join_all(closing)).await {
            for error in closed.into_iter().filter_map(Result::err) {
                tracing::debug!(%error, "a session was not closed and will expire");
            }
        }
    }
}

/// Time to live as the wire has it; 0: the node's default.
pub(crate) fn ttl_ms(ttl: Option<Duration>) -> u32 {
    ttl.map_or(0, |ttl| u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(window: usize) -> Arc<Lane> {
        let lane = Arc::new(Lane::default());
        *lane.session() = Some(Session::new(5, window));
        lane
    }

    fn ticket(lane: &Arc<Lane>) -> Option<Ticket> {
        match lane.next(1) {
            Next::Stamped(ticket) => Some(ticket),
            Next::WindowFull | Next::NoSession => None,
        }
    }

    #[test]
    fn a_dropped_ticket_is_acknowledged_with_the_next_write() {
        let lane = lane(2);
        let (first, second) = (ticket(&lane).unwrap(), ticket(&lane).unwrap());
        assert!(ticket(&lane).is_none(), "the window is full");
        drop(first);
        assert_eq!(second.stamp().lowest_outstanding, 2);
        assert_eq!(
            ticket(&lane).unwrap().stamp(),
            Stamp { session_id: 5, sequence: 3, lowest_outstanding: 2 }
        );
    }

    #[test]
    fn a_session_is_not_taken_while_somebody_has_a_ticket_of_it() {
        let sessions = Sessions::default();
        let lane = sessions.lane(1);
        *lane.session() = Some(Session::new(5, 2));
        let held = ticket(&lane).unwrap();
        for _ in 0..3 {
            assert!(sessions.take_idle().is_empty());
        }
        drop(held);
        // Whoever comes last is seen by the next look.
        drop(ticket(&lane));
        assert!(sessions.take_idle().is_empty());
        assert!(sessions.needs_keeper() && !sessions.needs_keeper() && !sessions.dismisses_keeper());
        assert_eq!(sessions.take_idle(), [5]);
        assert!(ticket(&lane).is_none(), "the next write opens another one");
        assert!(sessions.dismisses_keeper() && sessions.needs_keeper());
    }

    #[test]
    fn tickets_of_a_session_that_has_expired_leave_its_successor_alone() {
        let lane = lane(2);
        let (old, older) = (ticket(&lane).unwrap(), ticket(&lane).unwrap());
        old.expired();
        *lane.session() = Some(Session::new(6, 2));
        older.expired();
        let new = ticket(&lane).unwrap();
        drop((old, older));
        assert_eq!(new.stamp(), Stamp { session_id: 6, sequence: 1, lowest_outstanding: 1 });
        assert!(ticket(&lane).is_some() && lane.session().is_some());
    }
}
