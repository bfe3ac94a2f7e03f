//! Drives the queue over the device: take a batch, write it, sync it, tell everybody; then the next.
//!
//! One committer serves all replicas of a node. There is no timer: what queues up during one sync is the next batch.
//! In production it is a thread of its own, whose panic ends the process, and which hands the telling over to a task of
//! the node: one wake for all that a sync has made durable. In simulation it is a task, and the time
//! that a sync takes is handed in. Both are thin: what goes into a batch is decided in [`crate::log::queue`].
//!
//! An error of the device is final. It is reported once, to the callback that the node gave, and everything that
//! waits is failed. Nothing is tried again.

use std::{
    io, mem,
    sync::{Arc, Condvar, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{sync::Notify as Wake, time::Instant};

use crate::log::{
    batches::Batches,
    device::{DeviceError, LogDevice, Write},
    lock,
    queue::{Commit, Operation, Purpose, Queue},
    simulated::PlantedBug,
};
use crate::{metrics::StorageMetrics, runtime::Handover};

/// Hears of the device's failure, once, on the committer's thread or task. In production it ends the process.
pub type Fatal = Box<dyn FnOnce(DeviceError) + Send>;

/// Makes the delay of each sync in simulation.
pub type SyncDelay = Box<dyn FnMut() -> BoxFuture<'static, ()> + Send>;

/// The queue as its users and the committer share it.
#[derive(Default)]
pub struct Commits {
    state: Mutex<State>,
    for_thread: Condvar,
    for_task: Wake,
    bug: PlantedBug,
    metrics: StorageMetrics,
    batches: Batches,
}

#[derive(Default)]
struct State {
    queue: Queue,
    closing: bool,
    failed: Option<DeviceError>,
}

/// What the thread does next.
enum Next {
    Commit(Commit),
    Rest,
    End,
}

impl Commits {
    /// An empty queue.
    pub fn new(bug: PlantedBug) -> Self {
        Self::measured(bug, StorageMetrics::default())
    }

    /// The same; the thread's writes are measured.
    pub fn measured(bug: PlantedBug, metrics: StorageMetrics) -> Self {
        Self { bug, metrics, ..Self::default() }
    }

    /// Queues an operation. It is told when it is on disk.
    ///
    /// # Errors
    /// When the device has failed or the log is closed. Nobody is told then.
    pub fn submit(&self, mut operation: Operation) -> Result<(), DeviceError> {
        let early = (self.bug == PlantedBug::VoteNotSynced && operation.purpose == Purpose::Vote)
            .then(|| operation.completion.notify.take())
            .flatten();
        {
            let mut state = lock(&self.state);
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            if state.closing {
                return Err(DeviceError::Detached);
            }
            state.queue.push(operation);
        }
        self.for_thread.notify_one();
        self.for_task.notify_one();
        if let Some(notify) = early {
            notify(Ok(()));
        }
        Ok(())
    }

    /// Where the committer is.
    pub fn batches(&self) -> &Batches {
        &self.batches
    }

    /// Takes no more operations; the committer ends when those that wait are on disk.
    pub fn close(&self) {
        lock(&self.state).closing = true;
        self.for_thread.notify_one();
        self.for_task.notify_one();
    }

    fn fail(&self, error: &DeviceError) {
        let waiting = {
            let mut state = lock(&self.state);
            state.failed = Some(error.clone());
            state.queue.drain()
        };
        for completion in waiting {
            completion.complete(&Err(error.clone()));
        }
    }

    /// The next batch, or nothing when `rest` is over.
    fn wait(&self, rest: Option<Duration>) -> Next {
        let state = lock(&self.state);
        let idle = |state: &mut State| state.queue.is_empty() && !state.closing;
        let mut state = match rest {
            None => self.for_thread.wait_while(state, idle),
            Some(rest) => match self.for_thread.wait_timeout_while(state, rest, idle) {
                Ok((state, _)) => Ok(state),
                Err(poisoned) => Err(std::sync::PoisonError::new(poisoned.into_inner().0)),
            },
        }
        .expect("nobody panicked with the queue in hand");
        match state.queue.take() {
            Some(commit) => Next::Commit(commit),
            None if state.closing => Next::End,
            None => Next::Rest,
        }
    }

    /// The next batch; `None` when closed.
    async fn next(&self) -> Option<Commit> {
        loop {
            {
                let mut state = lock(&self.state);
                if let Some(commit) = state.queue.take() {
                    return Some(commit);
                }
                if state.closing {
                    return None;
                }
            }
            self.for_task.notified().await;
        }
    }
}

/// Starts the committer as a thread.
///
/// # Errors
/// When the system gives no thread.
pub fn spawn_thread(
    commits: Arc<Commits>,
    device: Arc<dyn LogDevice>,
    handover: Handover,
    fatal: Fatal,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("log-committer".into()).spawn(move || {
        let guard = AbortOnPanic;
        if let Err(error) = commit_all(&commits, &*device, &handover) {
            fatal(error.clone());
            // After those that were told before.
            handover.run(move || commits.fail(&error));
        }
        mem::forget(guard);
    })
}

fn commit_all(
    commits: &Arc<Commits>,
    device: &dyn LogDevice,
    handover: &Handover,
) -> Result<(), DeviceError> {
    loop {
        let rest = device.rest(false)?;
        match commits.wait(rest) {
            Next::Commit(commit) => {
                let batch = commits.batches.begin();
                let result = write_synced(device, &commit, &commits.metrics);
                let (told, commits) = (result.clone(), commits.clone());
                handover.run(move || {
                    commit.complete(&told);
                    commits.batches.end(batch);
                });
                result?;
            }
            Next::Rest => {}
            Next::End => return device.rest(true).map(drop),
        }
    }
}

/// An operation without writes waits for its predecessors only, and those were synced with an earlier batch.
fn write_synced(
    device: &dyn LogDevice,
    commit: &Commit,
    metrics: &StorageMetrics,
) -> Result<(), DeviceError> {
    if commit.writes.is_empty() {
        return Ok(());
    }
    let began = Instant::now();
    device.write(&commit.writes, true)?;
    metrics.log_sync_seconds.observe(began.elapsed().as_secs_f64());
    let records = u32::try_from(commit.writes.len()).unwrap_or(u32::MAX);
    metrics.log_batch_entries.observe(f64::from(records));
    metrics.log_written_bytes.inc_by(commit.writes.iter().map(Write::bytes).sum::<usize>() as u64);
    Ok(())
}

/// The committer as a future, for simulation: each batch is written, then `delay` passes, then it is synced.
pub async fn run_task(commits: Arc<Commits>, device: Arc<dyn LogDevice>, mut delay: SyncDelay, fatal: Fatal) {
    while let Some(commit) = commits.next().await {
        let batch = commits.batches.begin();
        let written = device.write(&commit.writes, false);
        let (early, commit) = match commits.bug {
            PlantedBug::AcknowledgeBeforeSync => (Some(commit), None),
            PlantedBug::None | PlantedBug::ForgetVote | PlantedBug::VoteNotSynced => (None, Some(commit)),
        };
        if let Some(commit) = early {
            commit.complete(&written);
        }
        delay().await;
        let result = written.and_then(|()| device.sync());
        if let Some(commit) = commit {
            commit.complete(&result);
        }
        commits.batches.end(batch);
        if let Err(error) = result {
            // A life that a crash has ended is not a failure; its tasks are only not gone yet.
            if !matches!(error, DeviceError::Detached) {
                fatal(error.clone());
            }
            commits.fail(&error);
            return;
        }
    }
}

/// Ends the process when the committer panics: whoever waits for it would wait for ever.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}
