//! What the tests of the state store and state machine share: entries, operations, one replica driven by hand.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, mpsc},
};

use bytes::Bytes;
use kv_proto::{
    disk::v1::{
        self, Delete, DeleteRange, LogId, Operation, OwnSlots, Proposal, Put, SlotRange, Tick, UploadAbort,
        UploadBegin, UploadChunk, UploadCommit, operation::Kind,
    },
    kv::v1::{Precondition, precondition::Condition},
    peer::v1::{GetKeys, Outcome, ReadRequest, ReadResponse, ScanPage, outcome, read_request, read_response},
};
use kv_topology::{ReplicaId, ShardId};
use kvnode::{
    state::{StateEngine, StateError, engine::with_view, workers::Workers},
    state_machine::{
        ApplyError, Payload, ReadyEntry, Replica,
        heads::HeadBudget,
        progress::Progress,
        reads::Reader,
        worker::{Job, step},
    },
};
use prost::Message;
use tokio::sync::oneshot;

pub const SHARD: ShardId = ShardId(1);
pub const REPLICA: ReplicaId = ReplicaId(7);
/// For the revisions of about four keys: some are remembered and some are read.
const HEAD_BYTES: usize = 400;

/// Blocking work on threads of its own.
pub fn threads() -> Workers {
    Workers::Threads {
        threads: Arc::new(|name, work| {
            std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
        }),
        tasks: Arc::new(|_, task| drop(tokio::spawn(task))),
    }
}

/// Blocking work at once, where it is asked for.
pub fn simulated() -> Workers {
    Workers::Simulated { tasks: Arc::new(|_, task| drop(tokio::spawn(task))) }
}

pub fn operation(kind: Kind) -> Operation {
    Operation { kind: Some(kind), ..Operation::default() }
}

pub fn condition(condition: Condition) -> Option<Precondition> {
    Some(Precondition { condition: Some(condition) })
}

pub fn put(key: &str, value: &[u8]) -> Put {
    Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value),
        value_crc32c: crc32c::crc32c(value),
        precondition: None,
        return_previous: false,
    }
}

pub fn delete(key: &str) -> Delete {
    Delete { key: Bytes::copy_from_slice(key.as_bytes()), precondition: None, return_previous: false }
}

pub fn delete_range(start: &str, end: &str, limit: u32) -> DeleteRange {
    DeleteRange {
        start: Bytes::copy_from_slice(start.as_bytes()),
        end: Bytes::copy_from_slice(end.as_bytes()),
        limit,
    }
}

pub fn upload_id(number: u8) -> Bytes {
    Bytes::from(vec![number; 16])
}

pub fn begin(key: &str, id: u8) -> UploadBegin {
    UploadBegin { key: Bytes::copy_from_slice(key.as_bytes()), upload_id: upload_id(id), precondition: None }
}

pub fn chunk(key: &str, id: u8, number: u32, data: &[u8]) -> UploadChunk {
    UploadChunk {
        upload_id: upload_id(id),
        number,
        data: Bytes::copy_from_slice(data),
        crc32c: crc32c::crc32c(data),
        key: Bytes::copy_from_slice(key.as_bytes()),
    }
}

pub fn commit(key: &str, id: u8, chunks: u32, size_bytes: u64) -> UploadCommit {
    UploadCommit {
        key: Bytes::copy_from_slice(key.as_bytes()),
        upload_id: upload_id(id),
        size_bytes,
        chunks,
        sha256: Bytes::from(vec![id; 32]),
    }
}

pub fn abort(key: &str, id: u8) -> UploadAbort {
    UploadAbort { key: Bytes::copy_from_slice(key.as_bytes()), upload_id: upload_id(id) }
}

pub fn own(first: u32, last: u32) -> Operation {
    operation(Kind::OwnSlots(OwnSlots { shard_id: SHARD.0, slots: vec![SlotRange { first, last }] }))
}

pub fn own_all() -> Operation {
    own(0, 4095)
}

pub fn tick() -> Operation {
    operation(Kind::Tick(Tick {}))
}

pub fn log_id(index: u64) -> LogId {
    LogId { term: 1 + index / 10, replica_id: 7, index }
}

pub fn proposal(index: u64, log_time_ms: u64, operations: Vec<Operation>) -> ReadyEntry {
    let proposal = Proposal { log_time_ms, operations };
    ReadyEntry { id: log_id(index), payload: Payload::Proposal(proposal.encode_to_vec().into()) }
}

/// A replica over an engine, driven by rounds of the apply worker.
pub struct Driven {
    pub engine: Arc<dyn StateEngine>,
    pub replica: Arc<Mutex<Replica>>,
    id: ReplicaId,
    shard: ShardId,
}

impl Driven {
    pub fn open(engine: Arc<dyn StateEngine>, id: ReplicaId) -> Result<Self, StateError> {
        Self::of_shard(engine, id, SHARD)
    }

    pub fn of_shard(engine: Arc<dyn StateEngine>, id: ReplicaId, shard: ShardId) -> Result<Self, StateError> {
        let replica = with_view(engine.as_ref(), |view| Replica::load(view, id, shard))?;
        let replica = replica.with_heads(HeadBudget::new(HEAD_BYTES));
        Ok(Self { engine, replica: Arc::new(Mutex::new(replica)), id, shard })
    }

    pub fn applied(&self) -> Option<u64> {
        self.replica.lock().unwrap().record().applied.map(|id| id.index)
    }

    /// Applies entries in one round; the outcomes of each.
    pub fn round(&self, entries: &[ReadyEntry]) -> Result<Vec<Vec<Outcome>>, String> {
        let (sender, outcomes) = mpsc::channel();
        let entries: Vec<_> = entries
            .iter()
            .map(|entry| {
                let sender = sender.clone();
                let answer: kvnode::state_machine::worker::Answer =
                    Box::new(move |outcomes| sender.send(outcomes).unwrap());
                (entry.clone(), Some(answer))
            })
            .collect();
        let (done, mut result) = oneshot::channel();
        let progress = Arc::new(Progress::new(None));
        let job = Job { replica: self.replica.clone(), id: self.id, entries, observer: None, progress, done };
        step(self.engine.as_ref(), vec![job]).map_err(|error| error.to_string())?;
        drop(sender);
        result.try_recv().unwrap().map_err(|error| error.to_string())?;
        Ok(outcomes.iter().collect())
    }

    /// A job of one entry that nobody waits for.
    pub fn job(&self, id: ReplicaId, entry: ReadyEntry) -> (Job, oneshot::Receiver<Result<(), ApplyError>>) {
        let (done, result) = oneshot::channel();
        let progress = Arc::new(Progress::new(None));
        let entries = vec![(entry, None)];
        (Job { replica: self.replica.clone(), id, entries, observer: None, progress, done }, result)
    }

    /// Applies one operation as the next entry, at log time `log_time_ms`.
    pub fn apply(&self, log_time_ms: u64, operation: Operation) -> outcome::Result {
        let index = self.applied().map_or(0, |applied| applied + 1);
        let outcomes = self.round(&[proposal(index, log_time_ms, vec![operation])]).unwrap();
        outcomes[0][0].result.clone().unwrap()
    }

    pub fn try_read(&self, read: read_request::Read) -> Result<ReadResponse, StateError> {
        let request = ReadRequest { shard_id: self.shard.0, read: Some(read), ..ReadRequest::default() };
        with_view(self.engine.as_ref(), |view| Reader::new(view, self.id, self.shard)?.read(&request))
    }

    pub fn read(&self, read: read_request::Read) -> read_response::Read {
        self.try_read(read).unwrap().read.unwrap()
    }

    pub fn get(&self, key: &str) -> Option<kv_proto::kv::v1::KeyValue> {
        let keys = vec![Bytes::copy_from_slice(key.as_bytes())];
        match self.read(read_request::Read::Get(GetKeys { keys, ..GetKeys::default() })) {
            read_response::Read::Get(got) => got.results[0].kv.clone(),
            other => panic!("{other:?}"),
        }
    }

    pub fn scan(&self, page: ScanPage) -> kv_proto::peer::v1::ScannedPage {
        match self.read(read_request::Read::Scan(page)) {
            read_response::Read::Scan(page) => page,
            other => panic!("{other:?}"),
        }
    }

    /// Everything in the store, by name.
    pub fn dump(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        dump(self.engine.as_ref())
    }
}

/// Everything in a store, by name.
pub fn dump(engine: &dyn StateEngine) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let everything = kvnode::state::Span { start: vec![], end: vec![0xff; 9] };
    let mut records = BTreeMap::new();
    engine
        .scan(&everything, kvnode::state::Direction::Forward, &mut |name, value| {
            records.insert(name.to_vec(), value.to_vec());
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    records
}

pub fn key_record(bytes: &[u8]) -> v1::KeyRecord {
    v1::KeyRecord::decode(bytes).unwrap()
}
