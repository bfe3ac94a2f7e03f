//! How far a replica has applied, and who waits for it.
//!
//! What a status needs is here too, as numbers that apply leaves behind: nobody waits for a round of the apply thread
//! to learn them.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Acquire, Release},
        },
    },
};

use kv_proto::disk::v1::GroupRecord;
use tokio::sync::oneshot;

use super::replica::Replica;

/// How far a replica's state can be read.
#[derive(Debug)]
pub struct Progress {
    applied: Watermark,
    revision: Watermark,
    log_time_ms: AtomicU64,
    owns_slots: AtomicBool,
    sessions: AtomicUsize,
    session_outcomes: AtomicUsize,
    applied_bytes: AtomicU64,
}

impl Progress {
    /// Starts at `applied`; `None`: nothing was applied.
    pub fn new(applied: Option<u64>) -> Self {
        Self {
            applied: Watermark::new(applied),
            revision: Watermark::new(None),
            log_time_ms: AtomicU64::new(0),
            owns_slots: AtomicBool::new(false),
            sessions: AtomicUsize::new(0),
            session_outcomes: AtomicUsize::new(0),
            applied_bytes: AtomicU64::new(0),
        }
    }

    /// Starts where `replica` is.
    pub fn of(replica: &Replica) -> Self {
        let progress = Self::new(replica.record().applied.as_ref().map(|id| id.index));
        progress.tell_all(replica);
        progress
    }

    /// The index of the last entry whose effects can be read.
    pub fn applied(&self) -> Option<u64> {
        self.applied.get()
    }

    /// Revision of the shard's data.
    pub fn revision(&self) -> u64 {
        self.revision.get().unwrap_or(0)
    }

    /// The log time that the state has reached, ms.
    pub fn log_time_ms(&self) -> u64 {
        self.log_time_ms.load(Acquire)
    }

    /// Whether the group was told its slots.
    pub fn owns_slots(&self) -> bool {
        self.owns_slots.load(Acquire)
    }

    /// Sessions of the shard, and outcomes that they keep.
    pub fn sessions(&self) -> (usize, usize) {
        (self.sessions.load(Acquire), self.session_outcomes.load(Acquire))
    }

    /// Bytes of the entries that were applied since the start.
    pub fn applied_bytes(&self) -> u64 {
        self.applied_bytes.load(Acquire)
    }

    /// Entries of so many bytes were applied.
    pub fn count_bytes(&self, bytes: usize) {
        self.applied_bytes.fetch_add(bytes as u64, Release);
    }

    /// What `replica` has can be read; as [`Self::tell`].
    pub fn tell_all(&self, replica: &Replica) {
        self.sessions.store(replica.sessions().open_now(), Release);
        self.session_outcomes.store(replica.sessions().kept(), Release);
        self.tell(replica.group());
    }

    /// This record can be read. Before [`Self::advance`]: who waits for an index finds what belongs to it.
    pub fn tell(&self, group: &GroupRecord) {
        self.log_time_ms.store(group.log_time_ms, Release);
        self.owns_slots.store(!group.slots.is_empty(), Release);
        self.revision.advance(group.revision);
    }

    /// Entries up to `index` can be read: wakes those who waited for them, in the order of their indexes.
    pub fn advance(&self, index: u64) {
        self.applied.advance(index);
    }

    /// Waits until the entry at `index` can be read.
    pub fn wait(self: &Arc<Self>, index: u64) -> impl Future<Output = ()> + Send + 'static {
        let (waiting, progress) = (self.applied.wait(index), self.clone());
        async move {
            waiting.await.ok();
            // The sender lives as long as this.
            drop(progress);
        }
    }

    /// Waits until the shard's data have reached `revision`.
    pub fn wait_revision(self: &Arc<Self>, revision: u64) -> impl Future<Output = ()> + Send + 'static {
        let (waiting, progress) = (self.revision.wait(revision), self.clone());
        async move {
            waiting.await.ok();
            drop(progress);
        }
    }
}

/// A number that only grows, and who waits for it.
#[derive(Debug)]
struct Watermark(Mutex<State>);

#[derive(Debug)]
struct State {
    reached: Option<u64>,
    /// By the number waited for. Bounded by twice the requests of the node, each of which waits once.
    waiting: BTreeMap<u64, Vec<oneshot::Sender<()>>>,
    /// So many numbers are waited for when those who gave up are forgotten next.
    sweep_at: usize,
}

/// Fewer than so many numbers that nobody waits for any more are not worth a sweep.
const SWEEP_MIN: usize = 64;

impl State {
    fn sweep(&mut self) {
        if self.waiting.len() < self.sweep_at {
            return;
        }
        self.waiting.retain(|_, waiters| {
            waiters.retain(|waiter| !waiter.is_closed());
            !waiters.is_empty()
        });
        self.sweep_at = SWEEP_MIN.max(self.waiting.len() * 2);
    }
}

impl Watermark {
    fn new(reached: Option<u64>) -> Self {
        Self(Mutex::new(State { reached, waiting: BTreeMap::new(), sweep_at: SWEEP_MIN }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self) -> Option<u64> {
        self.state().reached
    }

    fn advance(&self, to: u64) {
        let ready = {
            let mut state = self.state();
            state.reached = state.reached.max(Some(to));
            let Some(later) = to.checked_add(1) else { return };
            let later = state.waiting.split_off(&later);
            std::mem::replace(&mut state.waiting, later)
        };
        for waiter in ready.into_values().flatten() {
            // It may have given up.
            waiter.send(()).ok();
        }
    }

    fn wait(&self, number: u64) -> oneshot::Receiver<()> {
        let (ready, waiting) = oneshot::channel();
        let mut state = self.state();
        if state.reached.is_some_and(|reached| reached >= number) {
            ready.send(()).ok();
        } else {
            state.sweep();
            // Those who gave up since are forgotten here, or one dead number would collect them.
            let waiters = state.waiting.entry(number).or_default();
            waiters.retain(|waiter| !waiter.is_closed());
            waiters.push(ready);
        }
        waiting
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn wakes_those_whose_entry_was_applied_and_no_others() {
        let progress = Arc::new(Progress::new(None));
        let mut first = Box::pin(progress.wait(0));
        let mut third = Box::pin(progress.wait(2));
        assert!(first.as_mut().now_or_never().is_none());
        progress.advance(1);
        assert!(first.as_mut().now_or_never().is_some());
        assert!(third.as_mut().now_or_never().is_none());
        assert!(progress.wait(1).now_or_never().is_some());
        progress.advance(2);
        assert!(third.as_mut().now_or_never().is_some());
    }

    #[test]
    fn who_gave_up_costs_nothing_for_long() {
        let progress = Arc::new(Progress::new(None));
        for revision in 0..100_000 {
            drop(progress.wait_revision(u64::MAX - revision));
        }
        assert!(progress.revision.state().waiting.len() <= SWEEP_MIN);
    }

    #[test]
    fn who_waits_for_a_revision_is_woken_by_it_and_by_no_other() {
        let progress = Arc::new(Progress::new(None));
        let mut second = Box::pin(progress.wait_revision(2));
        assert!(second.as_mut().now_or_never().is_none());
        progress.advance(7);
        progress.tell(&GroupRecord { revision: 1, ..GroupRecord::default() });
        assert!(second.as_mut().now_or_never().is_none());
        progress.tell(&GroupRecord { revision: 3, log_time_ms: 9, ..GroupRecord::default() });
        assert!(second.as_mut().now_or_never().is_some());
        assert_eq!((progress.revision(), progress.log_time_ms(), progress.owns_slots()), (3, 9, false));
    }
}
