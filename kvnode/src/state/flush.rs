//! When the state store is flushed: one flush serves all groups of the node.
//!
//! A flush makes what was applied durable, so that the log before it may go. Each costs a table per memtable and
//! compaction later, so groups do not flush for themselves: they wait here for the next one. [`FlushPolicy`]
//! decides, [`FlushCoordinator::run`] acts; it also asks the engine whether work in the background has failed.

use std::{
    io, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::metrics::histogram::Histogram;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::{engine::StateEngine, error::StateError, workers::Workers};

/// How often the engine's health is looked at. RocksDB stops writes by itself; this only says so sooner.
pub const HEALTH_INTERVAL: Duration = Duration::from_secs(5);

/// When to flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushPolicy {
    /// Flush when so much was applied since the last one. Bounds what a restart replays.
    pub applied_bytes_max: u64,
    /// Flush when the last one is so long ago. Bounds how long a log is kept for a little.
    pub interval: Duration,
}

impl Default for FlushPolicy {
    fn default() -> Self {
        Self { applied_bytes_max: 256 << 20, interval: Duration::from_secs(300) }
    }
}

/// What the decision rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unflushed {
    /// Applied since the last flush began.
    pub applied_bytes: u64,
    /// Since the last flush began.
    pub age: Duration,
    /// Some group waits for a flush.
    pub awaited: bool,
    /// Somebody wants it now: the node stops, or a test.
    pub urgent: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushDecision {
    /// Nothing yet.
    Wait,
    /// Flush, then tell those who wait.
    Flush,
    /// Everything is on disk already: tell those who wait.
    Nothing,
}

impl FlushPolicy {
    /// Decides.
    pub fn decide(&self, state: Unflushed) -> FlushDecision {
        if state.applied_bytes == 0 {
            return if state.awaited || state.urgent { FlushDecision::Nothing } else { FlushDecision::Wait };
        }
        if state.urgent || state.applied_bytes >= self.applied_bytes_max || state.age >= self.interval {
            FlushDecision::Flush
        } else {
            FlushDecision::Wait
        }
    }
}

#[derive(Default)]
struct Pending {
    applied_bytes: u64,
    waiting: Vec<oneshot::Sender<()>>,
    urgent: bool,
    stopping: bool,
}

/// Flushes for all groups of a node.
pub struct FlushCoordinator {
    policy: FlushPolicy,
    pending: Mutex<Pending>,
    wake: Notify,
    seconds: Option<Histogram>,
}

impl FlushCoordinator {
    /// A coordinator that does nothing until [`Self::run`] runs.
    pub fn new(policy: FlushPolicy) -> Self {
        Self { policy, pending: Mutex::default(), wake: Notify::new(), seconds: None }
    }

    /// The same; each flush is timed.
    pub fn measured(policy: FlushPolicy, seconds: Histogram) -> Self {
        Self { seconds: Some(seconds), ..Self::new(policy) }
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what was written. Called by the apply thread.
    pub fn count_applied(&self, bytes: u64) {
        let mut pending = self.pending();
        let before = pending.applied_bytes;
        pending.applied_bytes += bytes;
        let crossed =
            before < self.policy.applied_bytes_max && pending.applied_bytes >= self.policy.applied_bytes_max;
        drop(pending);
        if crossed {
            self.wake.notify_one();
        }
    }

    /// Waits for the next flush that begins after this call.
    ///
    /// # Errors
    /// When the node stops before.
    pub async fn wait_flushed(&self) -> io::Result<()> {
        self.wait(false).await
    }

    /// Flushes now, and waits for it.
    ///
    /// # Errors
    /// When the node stops before.
    pub async fn flush_now(&self) -> io::Result<()> {
        self.wait(true).await
    }

    async fn wait(&self, urgent: bool) -> io::Result<()> {
        let (done, flushed) = oneshot::channel();
        {
            let mut pending = self.pending();
            if pending.stopping {
                return Err(stopped());
            }
            pending.waiting.push(done);
            pending.urgent |= urgent;
        }
        self.wake.notify_one();
        flushed.await.map_err(|_| stopped())
    }

    /// Ends [`Self::run`] and those who wait.
    pub fn stop(&self) {
        let mut pending = self.pending();
        pending.stopping = true;
        pending.waiting.clear();
        drop(pending);
        self.wake.notify_one();
    }

    /// Flushes whenever it is due, until stopped or until the engine fails, which it returns.
    ///
    /// # Errors
    /// The engine failed: the node must stop.
    pub async fn run(&self, engine: Arc<dyn StateEngine>, workers: Workers) -> Result<(), StateError> {
        let mut last = Instant::now();
        loop {
            {
                let pending = self.pending();
                if pending.stopping {
                    return Ok(());
                }
            }
            engine.check_health()?;
            let now = Instant::now();
            let (decision, waiting) = self.take(now.duration_since(last));
            match decision {
                FlushDecision::Wait => {
                    tokio::select! {
                        biased;
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep(HEALTH_INTERVAL.min(self.policy.interval)) => {}
                    }
                }
                FlushDecision::Nothing => answer(waiting),
                FlushDecision::Flush => {
                    last = now;
                    let flushing = engine.clone();
                    workers
                        .blocking("flush", move || flushing.flush())
                        .await
                        .map_err(|error| StateError::engine("flush", error))??;
                    if let Some(seconds) = &self.seconds {
                        seconds.observe(now.elapsed().as_secs_f64());
                    }
                    answer(waiting);
                }
            }
        }
    }

    /// The decision; when it is not to wait, those who are to be told and the count are taken with it.
    fn take(&self, age: Duration) -> (FlushDecision, Vec<oneshot::Sender<()>>) {
        let mut pending = self.pending();
        let decision = self.policy.decide(Unflushed {
            applied_bytes: pending.applied_bytes,
            age,
            awaited: !pending.waiting.is_empty(),
            urgent: pending.urgent,
        });
        if decision == FlushDecision::Wait {
            return (decision, Vec::new());
        }
        pending.applied_bytes = 0;
        pending.urgent = false;
        (decision, mem::take(&mut pending.waiting))
    }
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, "the state store stops")
}

fn answer(waiting: Vec<oneshot::Sender<()>>) {
    for done in waiting {
        // The one who waited may have given up.
        done.send(()).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Unflushed =
        Unflushed { applied_bytes: 0, age: Duration::ZERO, awaited: false, urgent: false };

    #[test]
    fn flushes_by_bytes_by_age_and_on_demand() {
        let policy = FlushPolicy::default();
        let little = Unflushed { applied_bytes: 1, ..IDLE };
        assert_eq!(policy.decide(little), FlushDecision::Wait);
        assert_eq!(policy.decide(Unflushed { awaited: true, ..little }), FlushDecision::Wait);
        assert_eq!(policy.decide(Unflushed { age: policy.interval, ..little }), FlushDecision::Flush);
        assert_eq!(policy.decide(Unflushed { urgent: true, ..little }), FlushDecision::Flush);
        let much = Unflushed { applied_bytes: policy.applied_bytes_max, ..IDLE };
        assert_eq!(policy.decide(much), FlushDecision::Flush);
    }

    #[test]
    fn nothing_applied_means_nothing_to_flush() {
        let policy = FlushPolicy::default();
        assert_eq!(policy.decide(Unflushed { age: policy.interval * 2, ..IDLE }), FlushDecision::Wait);
        assert_eq!(policy.decide(Unflushed { awaited: true, ..IDLE }), FlushDecision::Nothing);
    }
}
