//! How far a replica has applied, and who waits for it.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// The index of the last entry whose effects can be read.
#[derive(Debug)]
pub struct Progress {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    applied: Option<u64>,
    /// By the index waited for. Bounded by the requests of the node, each of which waits once.
    waiting: BTreeMap<u64, Vec<oneshot::Sender<()>>>,
}

impl Progress {
    /// Starts at `applied`; `None`: nothing was applied.
    pub fn new(applied: Option<u64>) -> Self {
        Self { state: Mutex::new(State { applied, waiting: BTreeMap::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index now.
    pub fn applied(&self) -> Option<u64> {
        self.state().applied
    }

    /// Entries up to `index` can be read: wakes those who waited for them, in the order of their indexes.
    pub fn advance(&self, index: u64) {
        let ready = {
            let mut state = self.state();
            state.applied = state.applied.max(Some(index));
            let later = state.waiting.split_off(&(index + 1));
            std::mem::replace(&mut state.waiting, later)
        };
        for waiter in ready.into_values().flatten() {
            // It may have given up.
            waiter.send(()).ok();
        }
    }

    /// Waits until the entry at `index` can be read.
    pub fn wait(self: &Arc<Self>, index: u64) -> impl Future<Output = ()> + Send + 'static {
        let (ready, waiting) = oneshot::channel();
        {
            let mut state = self.state();
            if state.applied.is_some_and(|applied| applied >= index) {
                ready.send(()).ok();
            } else {
                // Those who gave up since are forgotten here, or one dead index would collect them.
                let waiters = state.waiting.entry(index).or_default();
                waiters.retain(|waiter| !waiter.is_closed());
                waiters.push(ready);
            }
        }
        // The sender lives as long as this.
        let progress = self.clone();
        async move {
            waiting.await.ok();
            drop(progress);
        }
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
}
