//! What the tests share: entries, hubs on both devices, a device with a gate.

use std::{
    ops::Range,
    path::Path,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use bytes::Bytes;
use kv_topology::ReplicaId;
use kvnode::{
    group::type_config::{Proposal, TokioConfig},
    log::{
        DeviceError, Driver, LogDevice, LogHub, LogStore, PlantedBug, SimulatedDisk,
        codec::{Entry, LeaderId, LogId, Payload, Vote},
        device::{Visitor, Write},
        recovery::{self, Opened},
    },
    runtime::Handover,
};
use openraft::{
    RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
    type_config::TypeConfigExt,
};
use openraft_rt_tokio::TokioRuntime;

pub type Store = LogStore<TokioRuntime>;

pub const REPLICA: ReplicaId = ReplicaId(7);

pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId { term, node_id: 1 }, index)
}

pub fn vote(term: u64) -> Vote {
    Vote { leader_id: LeaderId { term, node_id: 1 }, committed: false }
}

/// An entry whose payload tells its index and term, so that one cannot pass for another.
pub fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let mut payload = format!("{term}/{index}/").into_bytes();
    payload.resize(bytes.max(payload.len()), b'.');
    Entry { log_id: log_id(term, index), payload: Payload::Normal(Proposal(Bytes::from(payload))) }
}

pub fn entries(term: u64, indexes: Range<u64>, bytes: usize) -> Vec<Entry> {
    indexes.map(|index| entry(term, index, bytes)).collect()
}

/// Ends the test when the device fails.
pub fn no_fatal() -> kvnode::log::committer::Fatal {
    Box::new(|error| panic!("the device failed: {error}"))
}

pub fn thread_hub(device: Arc<dyn LogDevice>) -> LogHub {
    LogHub::open(device, Driver::Thread(Handover::in_place()), no_fatal()).expect("hub")
}

/// A committer task on the tokio runtime of the test; each sync takes a random 1-10 ms of simulated time.
pub fn task_hub(disk: &SimulatedDisk, bug: PlantedBug) -> LogHub {
    let mut step = 0u64;
    let delay = move || {
        step = step.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let time = Duration::from_millis(1 + (step >> 33) % 10);
        Box::pin(tokio::time::sleep(time)) as futures::future::BoxFuture<'static, ()>
    };
    let driver =
        Driver::Task { spawn: Box::new(|task| drop(tokio::spawn(task))), delay: Box::new(delay), bug };
    LogHub::open(disk.open(), driver, no_fatal()).expect("hub")
}

pub fn open_folder(folder: &Path) -> Opened {
    recovery::open(folder).expect("open")
}

/// A hub on a sound folder.
pub fn folder_hub(folder: &Path) -> LogHub {
    let opened = open_folder(folder);
    assert!(opened.damages.is_empty(), "{:?}", opened.damages);
    thread_hub(Arc::new(opened.device))
}

/// Resolves when the append is reported durable.
pub type Flushed = tokio::sync::oneshot::Receiver<Result<(), std::io::Error>>;

pub async fn append(store: &mut Store, entries: Vec<Entry>) -> Flushed {
    let (callback, flushed) = callback();
    store.append(entries, callback).await.expect("append");
    flushed
}

pub fn callback() -> (IOFlushed<TokioConfig>, Flushed) {
    let (sender, receiver) = TokioConfig::oneshot();
    (IOFlushed::signal(sender), receiver)
}

pub async fn append_durably(store: &mut Store, entries: Vec<Entry>) {
    append(store, entries).await.await.expect("told").expect("durable");
}

pub async fn read_all(store: &mut Store) -> Vec<Entry> {
    store.try_get_log_entries(..).await.expect("read")
}

/// A device whose writes wait at a gate.
pub struct Gated {
    device: Arc<dyn LogDevice>,
    gate: Arc<Gate>,
}

#[derive(Default)]
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    open: bool,
    waiting: bool,
}

impl Gate {
    pub fn set(&self, open: bool) {
        self.state.lock().unwrap().open = open;
        self.changed.notify_all();
    }

    /// Returns when the committer stands before the gate: what it reports too early, it has reported now.
    pub fn wait_for_committer(&self) {
        let state = self.state.lock().unwrap();
        let deadline = Duration::from_secs(20);
        let (state, _) = self.changed.wait_timeout_while(state, deadline, |state| !state.waiting).unwrap();
        assert!(state.waiting, "no write within {deadline:?}");
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.waiting = true;
        self.changed.notify_all();
        let mut state = self.changed.wait_while(state, |state| !state.open).unwrap();
        state.waiting = false;
    }
}

impl Gated {
    pub fn new(device: Arc<dyn LogDevice>) -> (Arc<Self>, Arc<Gate>) {
        let gate = Arc::new(Gate::default());
        (Arc::new(Self { device, gate: gate.clone() }), gate)
    }
}

impl LogDevice for Gated {
    fn write(&self, batch: &[Write], sync: bool) -> Result<(), DeviceError> {
        self.gate.pass();
        self.device.write(batch, sync)
    }

    fn sync(&self) -> Result<(), DeviceError> {
        self.device.sync()
    }

    fn visit(&self, from: &[u8], to: &[u8], visitor: &mut Visitor<'_>) -> Result<(), DeviceError> {
        self.device.visit(from, to, visitor)
    }

    fn reads_block(&self) -> bool {
        true
    }
}
