//! The log of a node: one device, one committer, the logs of all replicas that the node hosts.
//!
//! It also keeps which replicas those are: a descriptor each, written with a sync before the replica starts.

pub mod rewrite;

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::{Arc, Mutex, OnceLock},
    thread::JoinHandle,
};

use futures::future::BoxFuture;
use kv_proto::disk::v1::ReplicaDescriptor;
use kv_topology::ReplicaId;
use tokio::sync::{Semaphore, oneshot};

use crate::log::{
    budget::{LogBudget, TailBudget},
    codec::{self, CodecError},
    committer::{self, Commits, Fatal, SyncDelay},
    device::{LogDevice, Write},
    error::LogError,
    keys::{self, Place},
    lock,
    queue::{Completion, Operation, Purpose},
    replica::{OnDamage, Replica, Shared},
    simulated::PlantedBug,
    store::LogStore,
    view::LogView,
};
use crate::{metrics::LogMetrics, runtime::Handover};

/// Runs the committer's task, in simulation.
pub type Spawn = Box<dyn FnOnce(BoxFuture<'static, ()>) + Send>;

/// What drives the committer.
pub enum Driver {
    /// A thread of its own: production. It hands the telling over.
    Thread(Handover),
    /// A task: simulation.
    Task {
        /// Runs the task in the node's life.
        spawn: Spawn,
        /// How long each sync takes.
        delay: SyncDelay,
        /// What is broken on purpose.
        bug: PlantedBug,
    },
}

/// The log of a node. Clones are the same log; the last one that goes ends the committer.
#[derive(Clone)]
pub struct LogHub {
    node: Arc<Node>,
}

struct Node {
    shared: Arc<Shared>,
    replicas: Mutex<BTreeMap<ReplicaId, Arc<Replica>>>,
    records: Mutex<Records>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the device has beside the logs.
#[derive(Default)]
struct Records {
    descriptors: BTreeMap<ReplicaId, ReplicaDescriptor>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shared.commits.close();
    }
}

impl LogHub {
    /// Reads the node's records and starts the committer. `fatal` hears when the device fails; it must end the
    /// process.
    ///
    /// # Errors
    /// When the records cannot be read, or there is no thread.
    pub fn open(device: Arc<dyn LogDevice>, driver: Driver, fatal: Fatal) -> Result<Self, LogError> {
        Self::with(device, driver, fatal, LogBudget::default(), LogMetrics::default())
    }

    /// The same with another budget for the decoded tails, in bytes.
    ///
    /// # Errors
    /// As [`LogHub::open`].
    pub fn with_tail_budget(
        device: Arc<dyn LogDevice>,
        driver: Driver,
        fatal: Fatal,
        tail_bytes: usize,
    ) -> Result<Self, LogError> {
        let budget = LogBudget { tail_bytes, ..LogBudget::default() };
        Self::with(device, driver, fatal, budget, LogMetrics::default())
    }

    /// The same within a budget, measured.
    ///
    /// # Errors
    /// As [`LogHub::open`].
    pub fn with(
        device: Arc<dyn LogDevice>,
        driver: Driver,
        fatal: Fatal,
        budget: LogBudget,
        metrics: LogMetrics,
    ) -> Result<Self, LogError> {
        let records = Records::load(&*device)?;
        let bug = match &driver {
            Driver::Thread(_) => PlantedBug::None,
            Driver::Task { bug, .. } => *bug,
        };
        let commits = Arc::new(Commits::measured(bug, metrics.storage));
        let shared = Arc::new(Shared {
            device: device.clone(),
            commits: commits.clone(),
            budget: TailBudget::new(budget.tail_bytes),
            queue_bytes: budget.queue_bytes,
            room: Arc::new(Semaphore::new(budget.queue_bytes)),
            damaged: OnceLock::new(),
            elections: metrics.elections,
        });
        let thread = match driver {
            Driver::Thread(handover) => {
                let thread = committer::spawn_thread(commits, device, handover, fatal);
                Some(thread.map_err(|error| LogError::Thread(error.to_string()))?)
            }
            Driver::Task { spawn, delay, .. } => {
                spawn(Box::pin(committer::run_task(commits, device, delay, fatal)));
                None
            }
        };
        let node = Node {
            shared,
            replicas: Mutex::default(),
            records: Mutex::new(records),
            thread: Mutex::new(thread),
        };
        Ok(Self { node: Arc::new(node) })
    }

    /// Who is told of damage that is met while replicas run; the first one stays. What opening a replica meets is
    /// its result.
    pub fn on_damage(&self, damaged: OnDamage) {
        self.node.shared.damaged.set(damaged).ok();
    }

    /// The log of a replica, opened if it is not. Opening reads the whole log, and blocks.
    ///
    /// # Errors
    /// When the replica's records cannot be read or contradict each other.
    pub fn replica<RT>(&self, id: ReplicaId) -> Result<LogStore<RT>, LogError> {
        Ok(LogStore::new(self.opened(id)?))
    }

    fn opened(&self, id: ReplicaId) -> Result<Arc<Replica>, LogError> {
        if let Some(replica) = lock(&self.node.replicas).get(&id) {
            return Ok(replica.clone());
        }
        // Not under the lock, since it reads the log.
        let opened = Replica::open(id, self.node.shared.clone())?;
        Ok(lock(&self.node.replicas).entry(id).or_insert(opened).clone())
    }

    /// What may be asked of an open replica's log; `None` when it was not opened.
    pub fn view(&self, id: ReplicaId) -> Option<LogView> {
        lock(&self.node.replicas).get(&id).cloned().map(LogView::new)
    }

    /// The replicas that this node was told to host, by id.
    pub fn descriptors(&self) -> Vec<ReplicaDescriptor> {
        lock(&self.node.records).descriptors.values().cloned().collect()
    }

    /// What is noted of one of them.
    pub fn descriptor(&self, replica: ReplicaId) -> Option<ReplicaDescriptor> {
        lock(&self.node.records).descriptors.get(&replica).cloned()
    }

    /// Keeps a replica's descriptor; returns when it is on disk.
    ///
    /// # Errors
    /// When the log is closed or the device has failed.
    pub async fn put_descriptor(&self, descriptor: ReplicaDescriptor) -> Result<(), LogError> {
        let id = ReplicaId(descriptor.replica_id);
        let key = keys::encode(id, Place::Descriptor);
        self.write_synced(id, Write::Put(key, codec::to_bytes(&descriptor))).await?;
        lock(&self.node.records).descriptors.insert(id, descriptor);
        Ok(())
    }

    /// Removes a replica's log, vote and descriptor; returns when that is on disk. Its Raft instance must be gone.
    ///
    /// # Errors
    /// When the log is closed or the device has failed.
    pub async fn remove_replica(&self, id: ReplicaId) -> Result<(), LogError> {
        let open = lock(&self.node.replicas).get(&id).cloned();
        match open {
            Some(replica) => replica.remove().await?,
            None => self.write_synced(id, Write::DeleteRange(keys::all_of(id))).await?,
        }
        lock(&self.node.replicas).remove(&id);
        lock(&self.node.records).descriptors.remove(&id);
        Ok(())
    }

    /// Memory of all decoded tails, in bytes.
    pub fn tail_bytes(&self) -> usize {
        self.node.shared.budget.used()
    }

    /// Bytes that wait for the device; there is room for [`LogBudget::queue_bytes`].
    pub fn queued_bytes(&self) -> usize {
        self.node.shared.queue_bytes.saturating_sub(self.node.shared.room.available_permits())
    }

    /// Writes what is queued, with the committed log ids, and ends the committer. Blocks until that is on disk when
    /// the driver is a thread; a task ends by itself.
    pub fn close(&self) {
        for replica in lock(&self.node.replicas).values() {
            // A log that has stopped has nothing to write.
            let _ = replica.flush_committed();
        }
        self.node.shared.commits.close();
        if let Some(thread) = lock(&self.node.thread).take() {
            // It aborts the process rather than panic.
            let _ = thread.join();
        }
    }

    async fn write_synced(&self, replica: ReplicaId, write: Write) -> Result<(), LogError> {
        self.write_all_synced(replica, vec![write]).await
    }

    /// In one batch, in the order of what was queued for this replica.
    async fn write_all_synced(&self, replica: ReplicaId, writes: Vec<Write>) -> Result<(), LogError> {
        let (sender, done) = oneshot::channel();
        let notify: crate::log::queue::Notify = Box::new(move |result| drop(sender.send(result)));
        let completion = Completion { notify: Some(notify), ..Completion::default() };
        let operation = Operation { replica, purpose: Purpose::Other, writes, completion };
        self.node.shared.commits.submit(operation)?;
        Ok(done.await.map_err(|_| LogError::Stopped)??)
    }
}

impl Records {
    /// Reads one record of each replica and skips the rest of it.
    fn load(device: &dyn LogDevice) -> Result<Self, LogError> {
        let mut records = Self::default();
        let mut from = keys::all_of(ReplicaId(0)).start;
        loop {
            let mut found = None;
            device.visit(&from, &[0xff; 9], &mut |key, value| {
                found = Some((keys::decode(key), bytes::Bytes::copy_from_slice(value)));
                ControlFlow::Break(())
            })?;
            let Some((key, value)) = found else { return Ok(records) };
            let (replica, place) = key.map_err(crate::log::device::DeviceError::from)?;
            records.take(replica, place, value).map_err(|source| LogError::Record {
                replica,
                record: format!("{place:?}"),
                source,
            })?;
            from = keys::end(replica);
        }
    }

    fn take(&mut self, replica: ReplicaId, place: Place, value: bytes::Bytes) -> Result<(), CodecError> {
        match place {
            Place::Descriptor => {
                self.descriptors.insert(replica, codec::from_bytes("ReplicaDescriptor", value)?);
            }
            // A replica without a descriptor: nobody asked for it, and nobody will.
            Place::Vote | Place::Purged | Place::Committed | Place::Entry(_) => {}
        }
        Ok(())
    }
}
