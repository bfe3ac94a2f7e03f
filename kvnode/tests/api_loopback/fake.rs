//! A store that is a plain map: several shards, revisions, preconditions, uploads, and refusals by script.
//!
//! It answers as the cluster would, in one step and without losing anything. Pages are kept small, so that paging is
//! always exercised.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use kv_proto::{
    disk::v1::{self as disk, ChunkRecord, GroupRecord, MetaRecord, Operation, operation},
    kv::v1::{Blob, Compare, KeyValue, Precondition, compare, key_value, precondition},
    peer::v1::{
        BlobChunks, DeleteOutcome, DeleteRangeOutcome, Done, GetOutcome, GotKeys, Outcome, PutOutcome,
        ReadRequest, ReadResponse, Refusal, ReplyContext, ScanPage, ScannedPage, SessionOutcome, TxnOutcome,
        TxnResult, UploadOutcome, outcome, read_request, read_response, refusal::Kind, txn_result,
    },
};
use kv_topology::{
    ClusterMap, GroupId, NodeId, SLOT_COUNT, ShardId, SlotRange,
    map::{NodeEntry, NodeState, ShardEntry},
};
use kvnode::{
    router::store::Store,
    state_machine::sessions::{Sessions, Stamp, Verdict},
};
use prost::Message as _;
use tokio::{sync::watch, time::Instant};

/// The node that answers everything.
pub const NODE: u64 = 1;

/// A key's value and history.
#[derive(Clone)]
struct Record {
    create_revision: u64,
    mod_revision: u64,
    version: u64,
    value: Value,
}

#[derive(Clone)]
enum Value {
    Inline(Bytes),
    Blob { upload_id: Bytes, size_bytes: u64, sha256: Bytes },
}

impl Record {
    fn told(&self, key: &[u8], with_value: bool) -> KeyValue {
        let value = match &self.value {
            Value::Blob { size_bytes, sha256, .. } => {
                Some(key_value::Value::Blob(Blob { size_bytes: *size_bytes, sha256: sha256.clone() }))
            }
            Value::Inline(value) => with_value.then(|| key_value::Value::Inline(value.clone())),
        };
        KeyValue {
            key: Bytes::copy_from_slice(key),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            value,
        }
    }

    fn upload_id(&self) -> Bytes {
        match &self.value {
            Value::Blob { upload_id, .. } => upload_id.clone(),
            Value::Inline(_) => Bytes::new(),
        }
    }
}

struct Upload {
    precondition: Option<Precondition>,
    chunks: Vec<ChunkRecord>,
}

/// One shard.
#[derive(Default)]
struct Shard {
    revision: u64,
    keys: BTreeMap<Vec<u8>, Record>,
    uploads: BTreeMap<Bytes, Upload>,
    blobs: BTreeMap<Bytes, Vec<ChunkRecord>>,
    /// The real ones, and the record that numbers them.
    sessions: Option<Sessions>,
    group: GroupRecord,
}

type Matches = Box<dyn Fn(&Asked<'_>) -> bool + Send>;

/// What the script may look at.
pub enum Asked<'a> {
    /// Operations of one shard.
    Write(ShardId, &'a [Operation]),
    /// A read.
    Read(&'a ReadRequest),
}

/// The store.
pub struct FakeStore {
    shards: Mutex<BTreeMap<u32, Shard>>,
    map: Mutex<Arc<ClusterMap>>,
    script: Mutex<VecDeque<(Matches, Refusal)>>,
    /// Keys of a page, whatever was asked for.
    pub page_keys: AtomicUsize,
    /// Even chunks are slower than odd ones: they are overtaken.
    pub overtakes: AtomicBool,
    /// What is pinned for downloads, by the id of the pin.
    pins: Mutex<BTreeMap<Bytes, Vec<ChunkRecord>>>,
    /// There is no place for another pin.
    pub refuses_pins: AtomicBool,
    /// Shards that answer nothing for now.
    slow: watch::Sender<Vec<ShardId>>,
    /// Chunks that the store has taken.
    pub chunks_taken: AtomicUsize,
    /// What sessions expire in.
    pub log_time_ms: AtomicU64,
    /// Reads that were asked for.
    pub reads: AtomicUsize,
    /// The deadlines of all requests.
    pub deadlines: Mutex<Vec<Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A refusal of this kind.
pub fn refusal(kind: Kind, reason: &str) -> Refusal {
    Refusal {
        kind: kind.into(),
        reason: reason.to_owned(),
        message: "scripted".to_owned(),
        ..Refusal::default()
    }
}

/// `shards` of equal size, all on one node.
pub fn map_of(shards: u16) -> ClusterMap {
    let node = NodeEntry {
        name: "n1".to_owned(),
        client_address: "127.0.0.1:50051".to_owned(),
        peer_address: "127.0.0.1:50061".to_owned(),
        zone: String::new(),
        version: String::new(),
        state: NodeState::Active,
    };
    let entry = |number: u16| {
        let first = SLOT_COUNT / shards * number;
        let last = if number + 1 == shards { SLOT_COUNT - 1 } else { SLOT_COUNT / shards * (number + 1) - 1 };
        let slots = SlotRange::new(first, last).into_iter().collect();
        let group = GroupId(u64::from(number) + 1);
        (
            ShardId(u32::from(number) + 1),
            ShardEntry { group, slots, replicas: Vec::new(), preferred_leader: None },
        )
    };
    ClusterMap {
        cluster_id: "fake".to_owned(),
        epoch: 4,
        replication_factor: 1,
        nodes: [(NodeId(NODE), node)].into(),
        shards: (0..shards).map(entry).collect(),
    }
}

impl FakeStore {
    /// With this many shards.
    pub fn new(shards: u16) -> Arc<Self> {
        let shard = |number| (u32::from(number), Shard { revision: 1, ..Shard::default() });
        Arc::new(Self {
            shards: Mutex::new((1..=shards).map(shard).collect()),
            map: Mutex::new(Arc::new(map_of(shards))),
            script: Mutex::default(),
            page_keys: AtomicUsize::new(3),
            overtakes: AtomicBool::new(false),
            pins: Mutex::default(),
            refuses_pins: AtomicBool::new(false),
            slow: watch::Sender::new(Vec::new()),
            chunks_taken: AtomicUsize::new(0),
            log_time_ms: AtomicU64::new(0),
            reads: AtomicUsize::new(0),
            deadlines: Mutex::default(),
        })
    }

    /// The next request that `matches` is refused.
    pub fn refuse(&self, matches: impl Fn(&Asked<'_>) -> bool + Send + 'static, refusal: Refusal) {
        lock(&self.script).push_back((Box::new(matches), refusal));
    }

    /// These shards answer nothing from now on, and the others again.
    pub fn slow(&self, shards: impl IntoIterator<Item = ShardId>) {
        self.slow.send_replace(shards.into_iter().collect());
    }

    async fn be_ready(&self, shard: ShardId) {
        self.slow.subscribe().wait_for(|slow| !slow.contains(&shard)).await.map(drop).ok();
    }

    /// Another map from now on.
    pub fn set_map(&self, map: ClusterMap) {
        *lock(&self.map) = Arc::new(map);
    }

    /// All keys, of all shards.
    pub fn keys(&self) -> Vec<Vec<u8>> {
        let mut keys: Vec<_> =
            lock(&self.shards).values().flat_map(|shard| shard.keys.keys().cloned()).collect();
        keys.sort();
        keys
    }

    /// Uploads that were begun and neither committed nor aborted.
    pub fn open_uploads(&self) -> usize {
        lock(&self.shards).values().map(|shard| shard.uploads.len()).sum()
    }

    /// Values that are pinned.
    pub fn pins(&self) -> usize {
        lock(&self.pins).len()
    }

    /// Lets go of everything that is pinned, as a replica does that stops.
    pub fn forget_pins(&self) {
        lock(&self.pins).clear();
    }

    /// Flips a bit of every stored chunk.
    pub fn damage_chunks(&self) {
        for shard in lock(&self.shards).values_mut() {
            for chunk in shard.blobs.values_mut().flatten() {
                let mut data = chunk.data.to_vec();
                data[0] ^= 1;
                chunk.data = data.into();
            }
        }
    }

    fn scripted(&self, asked: &Asked<'_>) -> Result<(), Refusal> {
        let mut script = lock(&self.script);
        let hit = script.iter().position(|(matches, _)| matches(asked));
        hit.and_then(|number| script.remove(number)).map_or(Ok(()), |(_, refusal)| Err(refusal))
    }

    fn context(&self, shard: ShardId, revision: u64) -> Option<ReplyContext> {
        let map_epoch = lock(&self.map).epoch;
        Some(ReplyContext {
            node_id: NODE,
            shard_id: shard.get(),
            revision,
            term: 1,
            map_epoch,
            served_by: 1,
        })
    }
}

impl Store for FakeStore {
    async fn write(
        &self,
        shard: ShardId,
        operations: Vec<Operation>,
        deadline: Instant,
    ) -> Result<Vec<Outcome>, Refusal> {
        lock(&self.deadlines).push(deadline);
        self.be_ready(shard).await;
        if self.overtakes.load(Ordering::Relaxed)
            && let [Operation { kind: Some(operation::Kind::UploadChunk(chunk)), .. }] = &operations[..]
            && chunk.number % 2 == 0
        {
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        }
        self.scripted(&Asked::Write(shard, &operations))?;
        let mut shards = lock(&self.shards);
        let state = shards.get_mut(&shard.get()).ok_or_else(|| refusal(Kind::WrongShard, "WRONG_SHARD"))?;
        let mut outcomes = Vec::new();
        state.group.log_time_ms = self.log_time_ms.load(Ordering::Relaxed);
        for operation in operations {
            if matches!(operation.kind, Some(operation::Kind::UploadChunk(_))) {
                self.chunks_taken.fetch_add(1, Ordering::Relaxed);
            }
            let (result, replay) = state.once(shard, operation);
            outcomes.push(Outcome {
                context: self.context(shard, replay.unwrap_or(state.revision)),
                result: Some(result),
                replayed: replay.is_some(),
            });
        }
        Ok(outcomes)
    }

    async fn read(&self, request: ReadRequest, deadline: Instant) -> Result<ReadResponse, Refusal> {
        lock(&self.deadlines).push(deadline);
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.be_ready(ShardId(request.shard_id)).await;
        self.scripted(&Asked::Read(&request))?;
        let shards = lock(&self.shards);
        let shard = shards.get(&request.shard_id).ok_or_else(|| refusal(Kind::WrongShard, "WRONG_SHARD"))?;
        let page_keys = self.page_keys.load(Ordering::Relaxed);
        let read = match request.read.ok_or_else(|| refusal(Kind::Internal, ""))? {
            read_request::Read::Get(get) => {
                let results: Vec<_> = get.keys.iter().map(|key| shard.get(key, !get.metadata_only)).collect();
                let upload = results.first().and_then(|found| shard.blobs.get(&found.upload_id));
                if let Some(chunks) = upload.filter(|_| !get.pin_id.is_empty())
                    && !self.refuses_pins.load(Ordering::Relaxed)
                {
                    lock(&self.pins).insert(get.pin_id, chunks.clone());
                }
                read_response::Read::Get(GotKeys { results })
            }
            read_request::Read::Scan(page) => read_response::Read::Scan(shard.scan(&page, page_keys)),
            read_request::Read::Blob(blob) => {
                let pending = shard.uploads.get(&blob.upload_id).map(|upload| &upload.chunks);
                let names =
                    shard.keys.get(&blob.key[..]).is_some_and(|record| record.upload_id() == blob.upload_id);
                let stored = shard.blobs.get(&blob.upload_id).filter(|_| names);
                let pins = lock(&self.pins);
                let pinned = blob.pin.as_ref().and_then(|pin| pins.get(&pin.id));
                let chunks = pinned.or(pending).or(stored);
                let chunks = chunks.ok_or_else(|| refusal(Kind::NotFound, "VALUE_REPLACED"))?;
                let chunks = chunks.iter().skip(blob.first_chunk as usize).take(blob.chunks as usize);
                read_response::Read::Blob(BlobChunks { chunks: chunks.cloned().collect() })
            }
            read_request::Read::Unpin(unpin) => {
                lock(&self.pins).remove(&unpin.pin.unwrap_or_default().id);
                read_response::Read::Done(Done {})
            }
            read_request::Read::Meta(_) | read_request::Read::Journal(_) => {
                return Err(refusal(Kind::Internal, "not faked"));
            }
        };
        let context = self.context(ShardId(request.shard_id), shard.revision);
        Ok(ReadResponse { context, read: Some(read) })
    }

    fn map(&self) -> Arc<ClusterMap> {
        lock(&self.map).clone()
    }

    fn meta(&self) -> Arc<MetaRecord> {
        Arc::default()
    }
}

impl Shard {
    /// Applies an operation, unless its session knows what it came to; with the revision of then.
    fn once(&mut self, shard: ShardId, operation: Operation) -> (outcome::Result, Option<u64>) {
        let now_ms = self.group.log_time_ms;
        let sessions = self.sessions.get_or_insert_with(|| Sessions::new(shard));
        let Some(stamp) = Stamp::of(&operation) else {
            return (self.apply(operation).unwrap_or_else(outcome::Result::Refusal), None);
        };
        match sessions.judge(&stamp, now_ms) {
            Err(refused) => (outcome::Result::Refusal(refused), None),
            Ok(Verdict::Replay(stored)) => {
                let result = match operation.kind {
                    Some(operation::Kind::Put(_)) => outcome::Result::Put(PutOutcome {
                        applied: stored.branch,
                        previous: None,
                        mod_revision: stored.revision,
                        version: stored.version,
                    }),
                    Some(operation::Kind::Delete(_)) => {
                        outcome::Result::Delete(DeleteOutcome { applied: stored.branch, previous: None })
                    }
                    Some(operation::Kind::Txn(_)) => {
                        outcome::Result::Txn(TxnOutcome { succeeded: stored.branch, results: Vec::new() })
                    }
                    other => panic!("in a session: {other:?}"),
                };
                (result, Some(stored.revision))
            }
            Ok(Verdict::Apply) => {
                let result = self.apply(operation).unwrap_or_else(outcome::Result::Refusal);
                let (branch, version) = match &result {
                    outcome::Result::Put(put) => (put.applied, put.version),
                    outcome::Result::Delete(delete) => (delete.applied, 0),
                    outcome::Result::Txn(txn) => (txn.succeeded, 0),
                    _ => return (result, None),
                };
                let revision = self.revision;
                if let Some(sessions) = &mut self.sessions {
                    sessions.keep(&stamp, now_ms, revision, branch, version);
                }
                (result, None)
            }
        }
    }

    fn open_session(&mut self, ttl_ms: u32) -> Result<outcome::Result, Refusal> {
        let sessions = self.sessions.as_mut().expect("there before an operation");
        let session_id = sessions.open(&mut self.group, ttl_ms)?;
        Ok(outcome::Result::Session(SessionOutcome { session_id, ttl_ms }))
    }

    fn apply(&mut self, operation: Operation) -> Result<outcome::Result, Refusal> {
        match operation.kind.ok_or_else(|| refusal(Kind::Internal, ""))? {
            operation::Kind::OpenSession(open) => self.open_session(open.ttl_ms),
            operation::Kind::CloseSession(close) => {
                self.sessions.as_mut().expect("there before an operation").close(close.session_id)?;
                Ok(outcome::Result::Done(Done {}))
            }
            operation::Kind::Put(put) => {
                assert_eq!(put.value_crc32c, crc32c::crc32c(&put.value), "checksum at the ingress");
                let at = self.next_revision(self.holds(&put.key, put.precondition.as_ref()));
                Ok(outcome::Result::Put(self.put(put, at)))
            }
            operation::Kind::Delete(delete) => {
                let holds = self.holds(&delete.key, delete.precondition.as_ref());
                let happens = holds && self.keys.contains_key(&delete.key[..]);
                let at = self.next_revision(happens);
                Ok(outcome::Result::Delete(self.delete(&delete, at)))
            }
            operation::Kind::DeleteRange(range) => {
                Ok(outcome::Result::DeleteRange(self.delete_range(&range)))
            }
            operation::Kind::Txn(txn) => Ok(outcome::Result::Txn(self.txn(txn))),
            operation::Kind::UploadBegin(begin) => Ok(outcome::Result::Upload(self.upload_begin(begin))),
            operation::Kind::UploadChunk(chunk) => self.upload_chunk(chunk).map(outcome::Result::Upload),
            operation::Kind::UploadCommit(commit) => self.upload_commit(&commit).map(outcome::Result::Upload),
            operation::Kind::UploadAbort(abort) => {
                self.uploads.remove(&abort.upload_id);
                Ok(outcome::Result::Done(Done {}))
            }
            _ => Err(refusal(Kind::Internal, "not faked")),
        }
    }

    fn next_revision(&mut self, happens: bool) -> Option<u64> {
        happens.then(|| {
            self.revision += 1;
            self.revision
        })
    }

    fn holds(&self, key: &[u8], precondition: Option<&Precondition>) -> bool {
        let record = self.keys.get(key);
        match precondition.and_then(|precondition| precondition.condition) {
            None => true,
            Some(precondition::Condition::Absent(_)) => record.is_none(),
            Some(precondition::Condition::Present(_)) => record.is_some(),
            Some(precondition::Condition::ModRevision(at)) => {
                record.is_some_and(|record| record.mod_revision == at)
            }
            Some(precondition::Condition::Version(version)) => {
                record.is_some_and(|record| record.version == version)
            }
        }
    }

    fn store(&mut self, key: &[u8], value: Value, revision: u64) -> Record {
        let old = self.keys.get(key);
        let record = Record {
            create_revision: old.map_or(revision, |old| old.create_revision),
            mod_revision: revision,
            version: old.map_or(0, |old| old.version) + 1,
            value,
        };
        self.keys.insert(key.to_vec(), record.clone());
        record
    }

    /// Writes at the revision, or tells the current key when there is none.
    fn put(&mut self, put: disk::Put, at: Option<u64>) -> PutOutcome {
        let old = self.keys.get(&put.key[..]).cloned();
        let Some(revision) = at else {
            let previous = old.map(|old| old.told(&put.key, false));
            return PutOutcome { applied: false, previous, ..PutOutcome::default() };
        };
        let previous = old.filter(|_| put.return_previous).map(|old| old.told(&put.key, true));
        let Record { mod_revision, version, .. } = self.store(&put.key, Value::Inline(put.value), revision);
        PutOutcome { applied: true, previous, mod_revision, version }
    }

    fn delete(&mut self, delete: &disk::Delete, at: Option<u64>) -> DeleteOutcome {
        if at.is_none() {
            let previous = self.keys.get(&delete.key[..]).map(|old| old.told(&delete.key, false));
            return DeleteOutcome { applied: false, previous };
        }
        let old = self.keys.remove(&delete.key[..]).filter(|_| delete.return_previous);
        DeleteOutcome { applied: true, previous: old.map(|old| old.told(&delete.key, true)) }
    }

    fn delete_range(&mut self, range: &disk::DeleteRange) -> DeleteRangeOutcome {
        let inside =
            |key: &&Vec<u8>| key[..] >= range.start[..] && (range.end.is_empty() || key[..] < range.end[..]);
        let keys: Vec<_> = self.keys.keys().filter(inside).take(range.limit as usize + 1).cloned().collect();
        let next_key = keys.get(range.limit as usize).cloned().unwrap_or_default().into();
        let gone = &keys[..keys.len().min(range.limit as usize)];
        for key in gone {
            self.keys.remove(key);
        }
        self.next_revision(!gone.is_empty());
        DeleteRangeOutcome { deleted: gone.len() as u64, next_key }
    }

    fn txn(&mut self, txn: disk::Txn) -> TxnOutcome {
        let succeeded = txn.compare.iter().all(|compare| self.compares(compare));
        let operations = if succeeded { txn.then } else { txn.r#else };
        let writes = operations.iter().any(|operation| {
            !matches!(operation.operation, Some(disk::txn_operation::Operation::Get(_)) | None)
        });
        let at = self.next_revision(writes);
        let results = operations.into_iter().map(|operation| {
            let result = operation.operation.map(|operation| match operation {
                disk::txn_operation::Operation::Get(get) => {
                    txn_result::Result::Get(self.get(&get.key, !get.metadata_only))
                }
                disk::txn_operation::Operation::Put(put) => txn_result::Result::Put(self.put(put, at)),
                disk::txn_operation::Operation::Delete(delete) => {
                    txn_result::Result::Delete(self.delete(&delete, at))
                }
            });
            TxnResult { result }
        });
        let results = results.collect();
        TxnOutcome { succeeded, results }
    }

    fn compares(&self, compare: &Compare) -> bool {
        let record = self.keys.get(&compare.key[..]);
        let order = match &compare.target {
            None => return false,
            Some(compare::Target::Present(present)) => record.is_some().cmp(present),
            Some(compare::Target::ModRevision(at)) => record.map_or(0, |record| record.mod_revision).cmp(at),
            Some(compare::Target::CreateRevision(at)) => {
                record.map_or(0, |record| record.create_revision).cmp(at)
            }
            Some(compare::Target::Version(version)) => record.map_or(0, |record| record.version).cmp(version),
            Some(compare::Target::Value(value)) => match record.map(|record| &record.value) {
                Some(Value::Inline(stored)) => stored.cmp(value),
                _ => return compare.operator() == compare::Operator::NotEqual,
            },
        };
        match compare.operator() {
            compare::Operator::Unspecified | compare::Operator::Equal => order.is_eq(),
            compare::Operator::NotEqual => order.is_ne(),
            compare::Operator::Less => order.is_lt(),
            compare::Operator::Greater => order.is_gt(),
        }
    }

    fn get(&self, key: &[u8], with_value: bool) -> GetOutcome {
        let record = self.keys.get(key);
        GetOutcome {
            kv: record.map(|record| record.told(key, with_value)),
            upload_id: record.map(Record::upload_id).unwrap_or_default(),
        }
    }

    fn scan(&self, page: &ScanPage, page_keys: usize) -> ScannedPage {
        let inside = |(key, _): &(&Vec<u8>, &Record)| {
            key[..] >= page.start[..] && (page.end.is_empty() || key[..] < page.end[..])
        };
        let mut keys: Vec<_> = self.keys.iter().filter(inside).collect();
        if page.reverse {
            keys.reverse();
        }
        let limit =
            if page.limit == 0 { usize::MAX } else { usize::try_from(page.limit).unwrap_or(usize::MAX) };
        let taken = keys.len().min(limit).min(page_keys);
        let bytes_max = usize::try_from(page.max_bytes).unwrap_or(usize::MAX);
        let is_large = |(_, record): &(&Vec<u8>, &Record)| record.told(&[], true).encoded_len() > bytes_max;
        let first = usize::from(page.first_whole);
        let large = keys.iter().take(taken + 1).skip(first).position(is_large).map(|large| large + first);
        let large = large.filter(|_| page.large_apart);
        let taken = large.unwrap_or(taken);
        let next_key = match keys.get(taken) {
            None => Bytes::new(),
            Some((next, _)) if page.reverse => [&next[..], &[0]].concat().into(),
            Some((next, _)) => Bytes::copy_from_slice(next),
        };
        let told = keys[..taken].iter().filter(|_| !page.count_only);
        let kvs = told.map(|(key, record)| record.told(key, !page.keys_only)).collect();
        ScannedPage { kvs, count: taken as u64, next_key, next_is_large: large.is_some() }
    }

    fn upload_begin(&mut self, begin: disk::UploadBegin) -> UploadOutcome {
        if !self.holds(&begin.key, begin.precondition.as_ref()) {
            let kv = self.keys.get(&begin.key[..]).map(|record| record.told(&begin.key, false));
            return UploadOutcome { applied: false, kv, ..UploadOutcome::default() };
        }
        let precondition = begin.precondition;
        let upload =
            self.uploads.entry(begin.upload_id).or_insert(Upload { precondition, chunks: Vec::new() });
        taken(upload)
    }

    fn upload_chunk(&mut self, chunk: disk::UploadChunk) -> Result<UploadOutcome, Refusal> {
        assert_eq!(chunk.crc32c, crc32c::crc32c(&chunk.data), "checksum at the ingress");
        let none = || refusal(Kind::FailedPrecondition, "UPLOAD_NOT_FOUND");
        let upload = self.uploads.get_mut(&chunk.upload_id).ok_or_else(none)?;
        match (chunk.number as usize).cmp(&upload.chunks.len()) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => {
                upload.chunks.push(ChunkRecord { data: chunk.data, crc32c: chunk.crc32c });
            }
            // As the state machine does: not an error, and the answer says which comes next.
            std::cmp::Ordering::Greater => return Ok(UploadOutcome { applied: false, ..taken(upload) }),
        }
        Ok(taken(upload))
    }

    fn upload_commit(&mut self, commit: &disk::UploadCommit) -> Result<UploadOutcome, Refusal> {
        let none = || refusal(Kind::FailedPrecondition, "UPLOAD_NOT_FOUND");
        let upload = self.uploads.remove(&commit.upload_id).ok_or_else(none)?;
        let size_bytes: u64 = upload.chunks.iter().map(|chunk| chunk.data.len() as u64).sum();
        if (size_bytes, upload.chunks.len()) != (commit.size_bytes, commit.chunks as usize) {
            return Err(refusal(Kind::FailedPrecondition, "UPLOAD_INCOMPLETE"));
        }
        if !self.holds(&commit.key, upload.precondition.as_ref()) {
            let kv = self.keys.get(&commit.key[..]).map(|record| record.told(&commit.key, false));
            return Ok(UploadOutcome { applied: false, kv, ..UploadOutcome::default() });
        }
        self.revision += 1;
        self.blobs.insert(commit.upload_id.clone(), upload.chunks);
        let value =
            Value::Blob { upload_id: commit.upload_id.clone(), size_bytes, sha256: commit.sha256.clone() };
        let record = self.store(&commit.key, value, self.revision);
        Ok(UploadOutcome {
            applied: true,
            kv: Some(record.told(&commit.key, false)),
            ..UploadOutcome::default()
        })
    }
}

fn taken(upload: &Upload) -> UploadOutcome {
    UploadOutcome {
        applied: true,
        kv: None,
        next_chunk: u32::try_from(upload.chunks.len()).expect("few chunks"),
        stored_bytes: upload.chunks.iter().map(|chunk| chunk.data.len() as u64).sum(),
    }
}
