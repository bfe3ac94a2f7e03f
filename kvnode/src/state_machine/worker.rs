//! The apply thread: one for all groups of a node.
//!
//! A group hands in a [`Job`]: entries that are committed and durable in its log. The thread takes the jobs that
//! have queued up, applies each over an overlay of its own, writes all overlays in **one** batch of the store, and
//! only then answers. While it writes, the next jobs queue up: no timer. [`step`] is that round as a plain
//! function; the thread hands the answering over to a task of the node, in simulation a task does both.
//!
//! A job that fails stops its replica and leaves the others alone. A failed write, or a panic, ends the node: what
//! is in memory would be ahead of the store.

use std::{
    collections::BTreeSet,
    process,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use kv_proto::{disk::v1::MetaRecord, peer::v1::Outcome};
use kv_topology::ReplicaId;
use prometheus_client::metrics::histogram::Histogram;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    apply::ApplyError,
    overlay::Overlay,
    progress::Progress,
    replica::{ReadyEntry, Replica},
    sessions::Tally,
};
use crate::{
    metrics::{SessionMetrics, StorageMetrics},
    runtime::Handover,
    state::{Batch, StateEngine, StateError, flush::FlushCoordinator},
};

/// Jobs that may wait for the apply thread. A group has at most one, so this is a bound on groups that need not wait.
pub const JOBS_MAX: usize = 1_024;
/// Bytes of entries that one round takes before it writes: more would only lengthen the wait of the first.
pub const ROUND_BYTES_MAX: usize = 4 << 20;

/// Takes the outcomes of one entry; called after they are in the store. It must not block.
pub type Answer = Box<dyn FnOnce(Vec<Outcome>) + Send>;
/// Learns of the meta group's state after it changed. It must not block.
pub type MetaObserver = Arc<dyn Fn(Arc<MetaRecord>) + Send + Sync>;

/// An entry and who waits for it.
pub struct Job {
    /// Whose entries they are.
    pub replica: Arc<Mutex<Replica>>,
    /// The same as in `replica`.
    pub id: ReplicaId,
    /// In order, the first following what was applied.
    pub entries: Vec<(ReadyEntry, Option<Answer>)>,
    /// In the meta group: who learns of changes.
    pub observer: Option<MetaObserver>,
    /// Told how far the state can be read.
    pub progress: Arc<Progress>,
    /// Told when all is in the store, or why not.
    pub done: oneshot::Sender<Result<(), ApplyError>>,
}

impl Job {
    fn bytes(&self) -> usize {
        self.entries.iter().map(|(entry, _)| entry.bytes()).sum()
    }
}

/// A job whose entries were applied, and what is left to do once they are in the store.
struct Applied {
    replica: Arc<Mutex<Replica>>,
    answers: Vec<(Answer, Vec<Outcome>)>,
    observer: Option<MetaObserver>,
    progress: Arc<Progress>,
    /// Of the entries that somebody here waits for: each is counted at one node.
    sessions: Tally,
    done: oneshot::Sender<Result<(), ApplyError>>,
}

/// One round: applies the jobs, at most one of a replica, writes once, answers. Bytes written.
///
/// # Errors
/// The write failed: the node must stop, and nothing was answered.
pub fn step(engine: &dyn StateEngine, jobs: Vec<Job>) -> Result<u64, StateError> {
    let (applied, bytes) = write(engine, jobs)?;
    applied.into_iter().for_each(finish);
    Ok(bytes)
}

/// The part of a round before anybody is told of it.
fn write(engine: &dyn StateEngine, jobs: Vec<Job>) -> Result<(Vec<Applied>, u64), StateError> {
    let mut batch = Batch::default();
    let mut applied = Vec::with_capacity(jobs.len());
    for job in jobs {
        match apply_job(engine, job, &mut batch) {
            Ok(job) => applied.push(job),
            Err(Some(error)) => return Err(error),
            Err(None) => {}
        }
    }
    let bytes = batch.bytes();
    if !batch.changes.is_empty() {
        engine.write(batch)?;
    }
    Ok((applied, bytes))
}

/// Adds a job's changes to the batch. `Err(None)`: the job failed and was told so; `Err(Some)`: the node must stop.
fn apply_job(engine: &dyn StateEngine, job: Job, batch: &mut Batch) -> Result<Applied, Option<StateError>> {
    let bytes = job.bytes();
    let Job { replica, entries, observer, progress, done, id: _ } = job;
    let mut overlay = Overlay::new(engine);
    let (mut answers, mut sessions) = (Vec::new(), Tally::default());
    let result = {
        let mut replica = replica.lock().unwrap_or_else(PoisonError::into_inner);
        let applied: Result<(), ApplyError> = entries.into_iter().try_for_each(|(entry, answer)| {
            let outcomes = replica.apply_entry(&mut overlay, &entry)?;
            let tally = replica.take_session_tally();
            if let Some(answer) = answer {
                sessions.add(tally);
                answers.push((answer, outcomes));
            }
            Ok(())
        });
        if applied.is_ok() {
            replica.seal(&mut overlay);
        }
        applied
    };
    match result {
        Ok(()) => {
            batch.changes.append(&mut overlay.into_batch().changes);
            progress.count_bytes(bytes);
            Ok(Applied { replica, answers, observer, progress, sessions, done })
        }
        Err(ApplyError::State(error)) if error.ends_node() => Err(Some(error)),
        Err(error) => {
            // The group may have been dropped.
            done.send(Err(error)).ok();
            Err(None)
        }
    }
}

fn finish(job: Applied) {
    let (changed, applied) = {
        let mut replica = job.replica.lock().unwrap_or_else(PoisonError::into_inner);
        job.progress.tell_all(&replica);
        (replica.commit(), replica.applied_index())
    };
    // First: who waits for the index finds the record told.
    if let (Some(observer), Some(meta)) = (job.observer, changed) {
        observer(meta);
    }
    job.progress.advance(applied);
    for (answer, outcomes) in job.answers {
        answer(outcomes);
    }
    // The group may have been dropped.
    job.done.send(Ok(())).ok();
}

/// Collects jobs into rounds.
pub struct ApplyWorker {
    engine: Arc<dyn StateEngine>,
    flushes: Arc<FlushCoordinator>,
    jobs: mpsc::Receiver<Job>,
    /// Taken from the queue, and for the next round.
    kept: Option<Job>,
    seconds: Histogram,
    sessions: SessionMetrics,
}

impl ApplyWorker {
    /// A worker, and where jobs are handed in. It ends when the last sender is dropped.
    pub fn new(
        engine: Arc<dyn StateEngine>,
        flushes: Arc<FlushCoordinator>,
        metrics: &StorageMetrics,
    ) -> (Self, mpsc::Sender<Job>) {
        let (sender, jobs) = mpsc::channel(JOBS_MAX);
        let (seconds, sessions) = (metrics.apply_seconds.clone(), metrics.sessions.clone());
        (Self { engine, flushes, jobs, kept: None, seconds, sessions }, sender)
    }

    /// The life of the apply thread, which hands the answering over. A panic ends the process.
    ///
    /// # Errors
    /// The store failed: the node must stop.
    pub fn run_thread(mut self, handover: &Handover) -> Result<(), StateError> {
        let _guard = AbortOnPanic;
        while let Some(first) = self.kept.take().or_else(|| self.jobs.blocking_recv()) {
            self.round(first, handover)?;
        }
        Ok(())
    }

    /// The same as a task, for simulation.
    ///
    /// # Errors
    /// The store failed: the node must stop.
    pub async fn run_task(mut self) -> Result<(), StateError> {
        loop {
            let first = match self.kept.take() {
                Some(job) => Some(job),
                None => self.jobs.recv().await,
            };
            let Some(first) = first else { return Ok(()) };
            self.round(first, &Handover::in_place())?;
        }
    }

    fn round(&mut self, first: Job, handover: &Handover) -> Result<(), StateError> {
        let mut bytes = first.bytes();
        let mut replicas = BTreeSet::from([first.id]);
        let mut round = vec![first];
        while bytes < ROUND_BYTES_MAX {
            let Ok(job) = self.jobs.try_recv() else { break };
            if !replicas.insert(job.id) {
                self.kept = Some(job);
                break;
            }
            bytes += job.bytes();
            round.push(job);
        }
        let began = Instant::now();
        let (applied, written) = write(self.engine.as_ref(), round)?;
        // Before anybody is told: who asks for a flush then must not hear that there is nothing to flush.
        self.flushes.count_applied(written);
        applied.iter().for_each(|job| self.sessions.count(&job.sessions));
        handover.run(move || applied.into_iter().for_each(finish));
        self.seconds.observe(began.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Ends the process when a thread unwinds through it: a replica half applied must not go on.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            process::abort();
        }
    }
}
