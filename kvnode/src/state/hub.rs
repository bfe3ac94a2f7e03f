//! The state store of a node, and what its groups take from it.
//!
//! ```text
//! open ─► machine(replica) for each group ─► raft applies, reader(replica) reads ─► close
//!                └► stage_snapshot(replica) while one comes in     └► remove_replicas when they are gone
//! ```
//!
//! One store, one apply thread, one flush coordinator for all groups. In simulation the store is in memory and all
//! of it runs in tasks.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use futures::{
    FutureExt,
    future::{self, BoxFuture},
};
use kv_proto::{
    disk::v1::{LogId, StoredMembership},
    peer::v1::{ReadRequest, ReadResponse, Refusal, read_request, read_response},
};
use kv_topology::{Generation, ReplicaId, ShardId};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{
    Damage, Direction, Span, StateEngine, StateError,
    engine::{with_view, with_view_in_memory},
    flush::{FlushCoordinator, FlushPolicy},
    keys,
    options::MemoryBudget,
    pinned_reads::wanted_pin,
    pins::Pins,
    read_pool::{Full, ReadPool},
    rocks::{OpenError, RocksEngine},
    snapshot::{INCOMING_MAX, OUTGOING_MAX, Sending, SnapshotStage},
    workers::Workers,
    write_behind::WriteBehind,
};
use crate::state_machine::{
    heads::HeadBudget,
    progress::Progress,
    raft::{Durability, StateMachine},
    reads, refusal,
    replica::Replica,
    worker::{ApplyWorker, JOBS_MAX, Job, MetaObserver},
};
use crate::{metrics::StorageMetrics, runtime::Handover};

/// Bytes of answers that are made without a pause, of a node's only thread perhaps.
const READ_BYTES_AT_ONCE: usize = 256 << 10;
/// Keys that are looked for in memory without a pause: half a millisecond.
const KEYS_AT_ONCE_MAX: usize = 256;
/// Memory for revisions over a store in memory: so little that some are forgotten, which tests are to meet too.
const HEAD_BYTES_SIMULATED: usize = 4 << 10;
/// Advice to a refused reader, ms.
const RETRY_AFTER_MS: u32 = 50;

/// What the store tells the node. Neither may block.
#[derive(Clone)]
pub struct Hooks {
    /// The store failed: the node must stop.
    pub fatal: Arc<dyn Fn(StateError) + Send + Sync>,
    /// Damaged bytes were found: that replica must be quarantined.
    pub damaged: Arc<dyn Fn(Damage) + Send + Sync>,
    /// What the store feeds.
    pub metrics: StorageMetrics,
}

impl Hooks {
    /// Tells the node of an error, once, where it is handled.
    pub(crate) fn tell(&self, error: &StateError) {
        match error {
            StateError::Damage(damage) => {
                self.metrics.corruptions.inc();
                (self.damaged)(damage.clone());
            }
            StateError::Engine { .. } => (self.fatal)(error.clone()),
            StateError::Busy { .. } | StateError::BadSnapshot(_) => {}
        }
    }
}

/// The greatest id up to which the log may be purged as far as retention goes. `None`: no bound.
pub type Retention = Arc<dyn Fn() -> Option<LogId> + Send + Sync>;

/// What a replica's state machine needs beside the store.
pub struct MachineOptions<D> {
    /// Knows what is durable in the replica's log.
    pub durability: D,
    /// Keeps the newest part of the log.
    pub retention: Retention,
    /// The meta group's: told its state at start and after each change.
    pub meta_observer: Option<MetaObserver>,
}

/// What is shared by everything of a node that touches the store.
pub(crate) struct Shared {
    pub(crate) engine: Arc<dyn StateEngine>,
    pub(crate) workers: Workers,
    reads: ReadPool,
    pub(super) pins: Arc<Pins>,
    pub(crate) flushes: Arc<FlushCoordinator>,
    pub(crate) hooks: Hooks,
    pub(crate) heads: Arc<HeadBudget>,
    pub(crate) outgoing: Arc<Semaphore>,
    incoming: Arc<Semaphore>,
    /// Held by a round that gives space back.
    pub(super) reclaiming: Arc<tokio::sync::Mutex<()>>,
    pub(super) closing: Arc<AtomicBool>,
}

/// What is shared by everything that touches one replica.
pub(crate) struct ReplicaShared {
    pub(crate) id: ReplicaId,
    pub(crate) shard: ShardId,
    pub(crate) replica: Arc<Mutex<Replica>>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) sending: Arc<Sending>,
    /// The newest memberships that were applied, oldest first.
    pub(crate) memberships: Mutex<Vec<StoredMembership>>,
    /// The greatest generation that was given to a snapshot, or is in use.
    generation: AtomicU64,
    /// Ready once its machine has ended.
    pub(super) ended: future::Shared<BoxFuture<'static, ()>>,
    /// Its state is being removed: what is read of it from now on is nobody's answer.
    pub(super) removed: AtomicBool,
}

impl ReplicaShared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Replica> {
        self.replica.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state store of a node.
pub struct StateHub {
    pub(super) shared: Arc<Shared>,
    /// Taken away by `close`.
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    replicas: Mutex<BTreeMap<ReplicaId, Arc<ReplicaShared>>>,
}

impl StateHub {
    /// Opens the store in folder `path`, within `memory_bytes`. Blocks while RocksDB opens.
    ///
    /// # Errors
    /// When the folder cannot be used, is used by another process, or is damaged as a whole.
    pub fn open(
        path: &Path,
        memory_bytes: usize,
        policy: FlushPolicy,
        hooks: Hooks,
        workers: Workers,
    ) -> Result<Self, OpenError> {
        let budget = MemoryBudget::of(memory_bytes);
        let engine = WriteBehind::new(Arc::new(RocksEngine::open(path, budget)?), budget.gathered_bytes);
        Ok(Self::with_heads(Arc::new(engine), policy, hooks, workers, budget.head_bytes)?)
    }

    /// Over a store that is open: in simulation, one in memory.
    ///
    /// # Errors
    /// When the apply thread cannot be started.
    pub fn with_engine(
        engine: Arc<dyn StateEngine>,
        policy: FlushPolicy,
        hooks: Hooks,
        workers: Workers,
    ) -> Result<Self, StateError> {
        Self::with_heads(engine, policy, hooks, workers, HEAD_BYTES_SIMULATED)
    }

    fn with_heads(
        engine: Arc<dyn StateEngine>,
        policy: FlushPolicy,
        hooks: Hooks,
        workers: Workers,
        head_bytes: usize,
    ) -> Result<Self, StateError> {
        let flushes = Arc::new(FlushCoordinator::measured(policy, hooks.metrics.flush_seconds.clone()));
        let (worker, jobs) = ApplyWorker::new(engine.clone(), flushes.clone(), &hooks.metrics);
        let reads = ReadPool::start(&workers)?;
        let shared = Arc::new(Shared {
            engine,
            workers,
            reads,
            pins: Arc::default(),
            flushes,
            hooks,
            heads: HeadBudget::new(head_bytes),
            outgoing: Arc::new(Semaphore::new(OUTGOING_MAX)),
            incoming: Arc::new(Semaphore::new(INCOMING_MAX)),
            reclaiming: Arc::default(),
            closing: Arc::default(),
        });
        start_apply(&shared, worker)?;
        shared.workers.task("pins", shared.pins.clone().run());
        let flushing = shared.clone();
        shared.workers.task("flush coordinator", async move {
            let ended = flushing.flushes.run(flushing.engine.clone(), flushing.workers.clone()).await;
            // Nobody may wait for a flush that does not come.
            flushing.flushes.stop();
            if let Err(error) = ended {
                flushing.hooks.tell(&error);
            }
        });
        Ok(Self { shared, jobs: Mutex::new(Some(jobs)), replicas: Mutex::default() })
    }

    /// Batches of entries that wait for the apply thread; there is room for [`JOBS_MAX`].
    pub fn queued_applies(&self) -> usize {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.as_ref().map_or(0, |jobs| JOBS_MAX.saturating_sub(jobs.capacity()))
    }

    pub(super) fn replicas(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, Arc<ReplicaShared>>> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, replica: ReplicaId) -> Option<Arc<ReplicaShared>> {
        self.replicas().get(&replica).cloned()
    }

    /// The state machine of a replica, for openraft: it goes on where the store is. One at a time of each replica.
    ///
    /// # Errors
    /// Damage, and failures of the store; the hooks were not told. Also when the hub is closed.
    pub fn machine<D: Durability>(
        &self,
        replica: ReplicaId,
        shard: ShardId,
        options: MachineOptions<D>,
    ) -> Result<StateMachine<D>, StateError> {
        let engine = self.shared.engine.as_ref();
        let loaded = with_view(engine, |view| Replica::load(view, replica, shard))?;
        let loaded = loaded.with_heads(self.shared.heads.clone());
        let current = loaded.scope().generation;
        remove_strays(engine, replica, current)?;
        if let (Some(observer), Some(meta)) = (&options.meta_observer, loaded.meta()) {
            observer(meta.clone());
        }
        let (here, ended) = oneshot::channel();
        let shared = Arc::new(ReplicaShared {
            id: replica,
            shard,
            progress: Arc::new(Progress::of(&loaded)),
            sending: Arc::default(),
            memberships: Mutex::new(loaded.record().membership.iter().cloned().collect()),
            generation: AtomicU64::new(current.0),
            ended: ended.map(drop).boxed().shared(),
            removed: AtomicBool::new(false),
            replica: Arc::new(Mutex::new(loaded)),
        });
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let jobs = jobs.ok_or_else(|| StateError::engine("open a replica", "the store is closed"))?;
        self.replicas().insert(replica, shared.clone());
        Ok(StateMachine::new(self.shared.clone(), shared, jobs, options, here))
    }

    /// Runs `work` where it may block, and waits for it.
    ///
    /// # Errors
    /// When no thread could be started, or it ended without a result.
    pub async fn blocking<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        self.shared.workers.blocking(name, work).await
    }

    /// Reads that wait for a thread, of at most [`super::read_pool::READS_QUEUED_MAX`].
    pub fn reads_waiting(&self) -> usize {
        self.shared.reads.waiting()
    }

    /// What the revisions of the newest writes take in memory.
    pub fn heads_bytes(&self) -> usize {
        self.shared.heads.used()
    }

    /// The moments that are kept for downloads.
    pub fn pins(&self) -> &Arc<Pins> {
        &self.shared.pins
    }

    /// Reads of a replica. `None`: it has no machine here.
    pub fn reader(&self, replica: ReplicaId) -> Option<ReplicaReader> {
        let replica = self.find(replica)?;
        Some(ReplicaReader { shared: self.shared.clone(), replica })
    }

    /// Makes room for a snapshot that comes in, under a generation that was never used.
    ///
    /// # Errors
    /// [`StateError::Busy`]: too many come in. [`StateError::BadSnapshot`]: the replica is not here.
    pub fn stage_snapshot(&self, replica: ReplicaId) -> Result<SnapshotStage, StateError> {
        let known = self.find(replica);
        let known = known.ok_or_else(|| StateError::BadSnapshot(format!("{replica} is not here")))?;
        let permit = self
            .shared
            .incoming
            .clone()
            .try_acquire_owned()
            .map_err(|_| StateError::Busy { what: "snapshots coming in", limit: INCOMING_MAX })?;
        let generation = Generation(known.generation.fetch_add(1, Ordering::SeqCst) + 1);
        let (engine, workers) = (self.shared.engine.clone(), self.shared.workers.clone());
        Ok(SnapshotStage::new(engine, workers, permit, replica, generation))
    }

    /// Makes everything applied durable, now.
    ///
    /// # Errors
    /// The store failed or stops.
    pub async fn flush(&self) -> io::Result<()> {
        self.shared.flushes.flush_now().await
    }

    /// Flushes and ends the work of the store. Machines must have ended; the store itself closes when the last
    /// reader is dropped.
    ///
    /// # Errors
    /// The last flush failed. Nothing is lost: the log brings it again.
    pub async fn close(&self) -> io::Result<()> {
        let flushed = self.flush().await;
        self.shared.flushes.stop();
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.replicas().clear();
        self.shared.pins.shut().await;
        self.shared.closing.store(true, Ordering::Relaxed);
        if self.shared.reclaiming.try_lock().is_err() {
            self.shared.engine.end_compactions();
            drop(self.shared.reclaiming.lock().await);
        }
        flushed
    }
}

impl StateHub {
    /// Whether a replica with this id ever had a state on this disk.
    ///
    /// # Errors
    /// The store failed.
    pub fn has_records(&self, replica: ReplicaId) -> Result<bool, StateError> {
        Ok(self.shared.engine.get(&keys::replica_record(replica))?.is_some())
    }

    /// Replicas that have a state on this disk, by id. Where it is damaged, the rest is not seen: other records say
    /// which replicas live here.
    ///
    /// # Errors
    /// The store failed.
    pub fn replicas_on_disk(&self) -> Result<Vec<ReplicaId>, StateError> {
        let mut found: Vec<ReplicaId> = Vec::new();
        loop {
            let next = found.last().map_or(0, |last| last.get().saturating_add(1));
            let rest = Span { start: next.to_be_bytes().to_vec(), end: vec![0xff; keys::SCOPE_BYTES] };
            let mut owner = None;
            let read = self.shared.engine.scan(&rest, Direction::Forward, &mut |name, _| {
                owner = keys::owner(name);
                std::ops::ControlFlow::Break(())
            });
            match (read, owner) {
                (Ok(()), Some(owner)) => found.push(owner),
                (Ok(()) | Err(StateError::Damage(_)), _) => return Ok(found),
                (Err(error), _) => return Err(error),
            }
        }
    }
}

fn start_apply(shared: &Arc<Shared>, worker: ApplyWorker) -> Result<(), StateError> {
    let hooks = shared.hooks.clone();
    match &shared.workers {
        Workers::Threads { threads, tasks } => {
            let (handover, answering) = Handover::to_task();
            tasks("apply answers", Box::pin(answering));
            let work = move || {
                if let Err(error) = worker.run_thread(&handover) {
                    hooks.tell(&error);
                }
            };
            threads("apply", Box::new(work))
                .map_err(|error| StateError::engine("start the apply thread", error))
        }
        Workers::Simulated { tasks } => {
            let task = async move {
                if let Err(error) = worker.run_task().await {
                    hooks.tell(&error);
                }
            };
            tasks("apply", Box::pin(task));
            Ok(())
        }
    }
}

/// Removes generations that a crash left behind: older than the current one, or of a snapshot never installed.
fn remove_strays(
    engine: &dyn StateEngine,
    replica: ReplicaId,
    current: Generation,
) -> Result<(), StateError> {
    let older = keys::generations(replica, Generation(1), current);
    let newer = keys::generations(replica, Generation(current.0.saturating_add(1)), Generation(u64::MAX));
    for span in [older, newer] {
        let mut found = false;
        engine.scan(&span, Direction::Forward, &mut |_, _| {
            found = true;
            std::ops::ControlFlow::Break(())
        })?;
        if found {
            engine.delete_range(span)?;
        }
    }
    Ok(())
}

/// Too many reads wait.
pub(super) fn busy(message: String) -> Refusal {
    crate::refusal::exhausted(crate::refusal::READ_QUEUE_FULL, message, RETRY_AFTER_MS)
}

/// A read of few keys: what it takes from memory needs no thread.
fn is_small_read(request: &ReadRequest) -> bool {
    matches!(&request.read, Some(read_request::Read::Get(_))) && keys_of(request) < KEYS_AT_ONCE_MAX
}

fn keys_of(request: &ReadRequest) -> usize {
    match &request.read {
        Some(read_request::Read::Get(get)) => get.keys.len(),
        _ => 1,
    }
}

/// Reads of one replica, each of one moment.
#[derive(Clone)]
pub struct ReplicaReader {
    pub(super) shared: Arc<Shared>,
    pub(super) replica: Arc<ReplicaShared>,
}

impl ReplicaReader {
    /// Index of the last entry applied and visible. `None`: none yet.
    pub fn applied_index(&self) -> Option<u64> {
        self.replica.progress.applied()
    }

    /// Waits until the entry at `index` is visible. For ever, if it never is: give it a deadline.
    pub fn wait_applied(&self, index: u64) -> impl Future<Output = ()> + Send + 'static {
        self.replica.progress.wait(index)
    }

    /// Revision of the shard's data.
    pub fn revision(&self) -> u64 {
        self.replica.progress.revision()
    }

    /// The log time that the state has reached, ms.
    pub fn log_time_ms(&self) -> u64 {
        self.replica.progress.log_time_ms()
    }

    /// Whether the group was told its slots.
    pub fn owns_slots(&self) -> bool {
        self.replica.progress.owns_slots()
    }

    /// Sessions of the shard, and outcomes that they keep.
    pub fn sessions(&self) -> (usize, usize) {
        self.replica.progress.sessions()
    }

    /// Waits until the shard's data have reached `revision` here. For ever, if they never do: give it a deadline.
    pub fn wait_revision(&self, revision: u64) -> impl Future<Output = ()> + Send + 'static {
        self.replica.progress.wait_revision(revision)
    }

    /// Answers a request from the newest state, without blocking: at once when it is a read of few keys and all it needs
    /// is in memory, otherwise on a thread for reads. Damage is told as by [`Self::read`]. What the request wants pinned
    /// is pinned, see [`super::pinned_reads`].
    pub async fn answer(&self, request: ReadRequest) -> ReadResponse {
        match wanted_pin(&request) {
            Some(id) => self.answer_pinning(id, request).await,
            None => self.answer_now(request).await,
        }
    }

    pub(super) async fn answer_now(&self, request: ReadRequest) -> ReadResponse {
        if is_small_read(&request)
            && let Some(answer) = with_view_in_memory(self.shared.engine.as_ref(), |view| {
                reads::Reader::new(view, self.replica.id, self.replica.shard)?.read(&request)
            })
        {
            return self.judge(answer);
        }
        let reader = self.clone();
        let refused = match self.shared.reads.run(move || reader.read(&request)) {
            Ok(answer) => match answer.await {
                Some(answer) => return answer,
                None => refusal::internal(),
            },
            Err(full) => {
                self.shared.hooks.metrics.reads.refused.inc();
                busy(full.to_string())
            }
        };
        ReadResponse { context: None, read: Some(read_response::Read::Refusal(refused)) }
    }

    /// Answers reads from one moment of the newest state, without blocking. `None` for each that is not small, wants a pin,
    /// needs the disk, or comes after enough bytes: [`Self::answer`] takes those.
    pub fn answer_from_memory(&self, requests: &[ReadRequest]) -> Vec<Option<ReadResponse>> {
        let mut answers = Vec::new();
        self.shared.engine.view_in_memory(&mut |view| {
            // Whoever reads by itself meets the error too.
            let Ok(reader) = reads::Reader::new(view, self.replica.id, self.replica.shard) else { return };
            let (mut left, mut keys) = (READ_BYTES_AT_ONCE, KEYS_AT_ONCE_MAX);
            for request in requests {
                keys = keys.saturating_sub(keys_of(request));
                if keys == 0 {
                    break;
                }
                let answer = self.small_in_memory(&reader, request);
                left = left.saturating_sub(answer.as_ref().map_or(0, prost::Message::encoded_len));
                answers.push(answer);
                if left == 0 {
                    break;
                }
            }
        });
        answers.resize(requests.len(), None);
        answers
    }

    fn small_in_memory(&self, reader: &reads::Reader<'_>, request: &ReadRequest) -> Option<ReadResponse> {
        if !is_small_read(request) || wanted_pin(request).is_some() {
            return None;
        }
        match reader.read(request) {
            Err(StateError::Busy { .. }) => None,
            answer => Some(self.judge(answer)),
        }
    }

    /// Answers a request from the newest state; refusals are answers. May block on the disk.
    ///
    /// Damaged bytes are told to the node, and the answer is `DATA_LOSS`.
    pub fn read(&self, request: &ReadRequest) -> ReadResponse {
        let (id, shard) = (self.replica.id, self.replica.shard);
        let answer =
            with_view(self.shared.engine.as_ref(), |view| reads::Reader::new(view, id, shard)?.read(request));
        self.judge(answer)
    }

    /// Whether uploads to the shard are under way. Failures of the store are told to the node; then `false`.
    pub async fn has_uploads(&self) -> bool {
        let reader = self.clone();
        let look = move || {
            let (id, shard) = (reader.replica.id, reader.replica.shard);
            let found = with_view(reader.shared.engine.as_ref(), |view| {
                reads::Reader::new(view, id, shard)?.has_uploads()
            });
            found.inspect_err(|error| reader.shared.hooks.tell(error)).unwrap_or(false)
        };
        match self.shared.reads.run(look) {
            Ok(found) => found.await.unwrap_or(false),
            Err(Full) => false,
        }
    }

    pub(super) fn judge(&self, answer: Result<ReadResponse, StateError>) -> ReadResponse {
        // Looked at after the read: its moment was before the removal when nothing is being removed yet.
        if self.replica.removed.load(Ordering::Acquire) {
            let shard = self.replica.shard;
            let message = format!("the replica of shard {shard} has left this node");
            let refused = crate::refusal::not_applied(crate::refusal::NO_REPLICA, message);
            return ReadResponse { context: None, read: Some(read_response::Read::Refusal(refused)) };
        }
        answer.unwrap_or_else(|error| {
            self.shared.hooks.tell(&error);
            let refusal = match error {
                StateError::Damage(_) => refusal::data_loss(),
                StateError::Engine { .. } | StateError::Busy { .. } | StateError::BadSnapshot(_) => {
                    refusal::internal()
                }
            };
            ReadResponse { context: None, read: Some(read_response::Read::Refusal(refusal)) }
        })
    }
}
