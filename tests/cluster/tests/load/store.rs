//! A store in memory that answers as a node does, and does one thing wrong.

use std::{collections::BTreeMap, ops::Bound, pin::Pin, sync::Mutex};

use futures::Stream;
use kv_cluster_tests::api;
use kv_proto::kv::v1::{
    BatchGetRequest, BatchGetResponse, BatchRequest, BatchResponse, Blob, BulkWriteRequest,
    BulkWriteResponse, CloseSessionRequest, CloseSessionResponse, DeleteRangeRequest, DeleteRangeResponse,
    DeleteRequest, DeleteResponse, DownloadRequest, DownloadResponse, GetRequest, GetResponse, KeyValue,
    OpenSessionRequest, OpenSessionResponse, PutRequest, PutResponse, ScanRequest, ScanResponse,
    TxnOperation, TxnOperationResult, TxnRequest, TxnResponse, UploadRequest, UploadResponse, WriteOperation,
    WriteOutcome, compare::Target, download_response, key_value::Value, kv_server::Kv,
    precondition::Condition, txn_operation, txn_operation_result, upload_request, write_operation,
    write_outcome,
};
use sha2::{Digest, Sha256};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

/// What the store does wrong, to one in [`ONE_IN`] of the requests to which it makes a difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bug {
    None,
    /// A read shows what the key had before its last write.
    StaleRead,
    /// A write is acknowledged and forgotten.
    LostWrite,
    /// A write is said to be refused, and happens.
    RefusedButDone,
    /// A write happens twice, the second time after a later one.
    AppliedTwice,
    /// A byte of a value is flipped.
    FlippedByte,
    /// The revision counter starts anew.
    RevisionBack,
    /// The condition of a compare-and-swap is ignored.
    BlindSwap,
    /// Only the first write of a transaction happens.
    TornTransaction,
    /// A scan shows a key as it was before its last write.
    MixedScan,
    /// A scan leaves a key out.
    ScanWithAHole,
    /// The delete of a range leaves a key.
    SurvivorOfARange,
    /// A byte of a download is flipped.
    DamagedDownload,
    /// One operation of a bulk write is acknowledged and forgotten.
    LostBulk,
}

const ONE_IN: u64 = 4;

#[derive(Debug, Default)]
struct State {
    revision: u64,
    /// To which the bug could have happened.
    requests: u64,
    /// To which it happened.
    strikes: u64,
    keys: BTreeMap<Vec<u8>, KeyValue>,
    before: BTreeMap<Vec<u8>, KeyValue>,
    /// Uploaded bytes, by hash.
    blobs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl State {
    fn write(&mut self, key: &[u8], value: bytes::Bytes) -> u64 {
        self.write_value(key, Value::Inline(value))
    }

    fn put(&mut self, put: PutRequest) -> PutResponse {
        let mod_revision = self.write(&put.key, put.value);
        PutResponse { applied: true, mod_revision, ..Default::default() }
    }

    fn delete(&mut self, delete: &DeleteRequest) -> DeleteResponse {
        let applied = self.keys.remove(&delete.key[..]).is_some();
        DeleteResponse { applied, ..Default::default() }
    }

    fn write_value(&mut self, key: &[u8], value: Value) -> u64 {
        self.revision += 1;
        let kv = KeyValue {
            key: key.to_vec().into(),
            mod_revision: self.revision,
            value: Some(value),
            ..Default::default()
        };
        if let Some(old) = self.keys.insert(key.to_vec(), kv) {
            self.before.insert(key.to_vec(), old);
        }
        self.revision
    }

    fn holds(&self, key: &[u8], condition: Condition) -> bool {
        let found = self.keys.get(key);
        match condition {
            Condition::Absent(_) => found.is_none(),
            Condition::Present(_) => found.is_some(),
            Condition::ModRevision(revision) => found.is_some_and(|kv| kv.mod_revision == revision),
            Condition::Version(version) => found.is_some_and(|kv| kv.version == version),
        }
    }
}

/// A store in memory: everything happens at once, under one lock.
pub struct Store {
    bug: Bug,
    state: Mutex<State>,
}

impl Store {
    /// An empty one with this bug.
    pub fn new(bug: Bug) -> Self {
        Self { bug, state: Mutex::default() }
    }

    /// How often the bug happened.
    pub fn strikes(&self) -> u64 {
        self.state.lock().expect("nobody panics").strikes
    }

    /// Whether the bug happens now: every so often, where it makes a difference.
    fn strikes_now(&self, state: &mut State, bug: Bug, makes_a_difference: bool) -> bool {
        if self.bug != bug || !makes_a_difference {
            return false;
        }
        state.requests += 1;
        let strikes = state.requests.is_multiple_of(ONE_IN);
        state.strikes += u64::from(strikes);
        strikes
    }
}

fn refused() -> Status {
    let details = ErrorDetails::with_error_info("NOT_APPLIED_NO_LEADER", api::ERROR_DOMAIN, []);
    Status::with_error_details(Code::Unavailable, "no leader", details)
}

type Stream_<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Kv for Store {
    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let PutRequest { key, value, precondition, .. } = request.into_inner();
        let mut state = self.state.lock().expect("nobody panics");
        let condition = precondition.and_then(|precondition| precondition.condition);
        let holds = condition.is_none_or(|condition| state.holds(&key, condition));
        if !holds && !self.strikes_now(&mut state, Bug::BlindSwap, true) {
            let previous = state.keys.get(&key[..]).cloned();
            return Ok(Response::new(PutResponse { previous, ..Default::default() }));
        }
        if self.strikes_now(&mut state, Bug::LostWrite, true) {
            let mod_revision = state.revision + 1;
            state.revision += 1;
            return Ok(Response::new(PutResponse { applied: true, mod_revision, ..Default::default() }));
        }
        if self.strikes_now(&mut state, Bug::RevisionBack, true) {
            state.revision /= 2;
        }
        let old = state.keys.get(&key[..]).cloned();
        let twice = old.filter(|_| self.strikes_now(&mut state, Bug::AppliedTwice, true));
        let mod_revision = state.write(&key, value);
        if let Some(Value::Inline(old)) = twice.and_then(|kv| kv.value) {
            state.write(&key, old);
        }
        if self.strikes_now(&mut state, Bug::RefusedButDone, true) {
            return Err(refused());
        }
        Ok(Response::new(PutResponse { applied: true, mod_revision, ..Default::default() }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let key = request.into_inner().key;
        let mut state = self.state.lock().expect("nobody panics");
        let mut kv = state.keys.get(&key[..]).cloned();
        let before = state.before.get(&key[..]).cloned();
        if self.strikes_now(&mut state, Bug::StaleRead, before.is_some()) {
            kv = before;
        }
        if let Some(Value::Inline(value)) = kv.as_mut().and_then(|kv| kv.value.as_mut())
            && self.strikes_now(&mut state, Bug::FlippedByte, true)
        {
            let mut bytes = value.to_vec();
            bytes[50] ^= 4;
            *value = bytes.into();
        }
        Ok(Response::new(GetResponse { kv, ..Default::default() }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let mut state = self.state.lock().expect("nobody panics");
        let removed = state.keys.remove(&request.into_inner().key[..]);
        Ok(Response::new(DeleteResponse { applied: removed.is_some(), ..Default::default() }))
    }

    type DeleteRangeStream = Stream_<DeleteRangeResponse>;
    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<Self::DeleteRangeStream>, Status> {
        let range = request.into_inner().range.expect("the load gives one");
        let mut state = self.state.lock().expect("nobody panics");
        let bounds = (Bound::Included(range.start.to_vec()), Bound::Excluded(range.end.to_vec()));
        let mut gone: Vec<Vec<u8>> = state.keys.range(bounds).map(|(key, _)| key.clone()).collect();
        let deleted = gone.len() as u64;
        if self.strikes_now(&mut state, Bug::SurvivorOfARange, deleted > 0) {
            gone.pop();
        }
        for key in gone {
            state.keys.remove(&key);
        }
        Ok(once(DeleteRangeResponse { deleted, ..Default::default() }))
    }

    type ScanStream = Stream_<ScanResponse>;
    async fn scan(&self, request: Request<ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let prefix = request.into_inner().range.expect("the load gives one").prefix;
        let mut state = self.state.lock().expect("nobody panics");
        let mut kvs: Vec<KeyValue> =
            state.keys.values().filter(|kv| kv.key.starts_with(&prefix)).cloned().collect();
        let old = kvs.iter().rposition(|kv| state.before.contains_key(&kv.key[..]));
        if let Some(old) = old
            && self.strikes_now(&mut state, Bug::MixedScan, true)
        {
            kvs[old] = state.before[&kvs[old].key[..]].clone();
        }
        if self.strikes_now(&mut state, Bug::ScanWithAHole, !kvs.is_empty()) {
            kvs.pop();
        }
        Ok(once(ScanResponse { kvs, ..Default::default() }))
    }

    type BatchStream = Stream_<BatchResponse>;
    async fn batch(
        &self,
        _: Request<Streaming<BatchRequest>>,
    ) -> Result<Response<Self::BatchStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn open_session(
        &self,
        _: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn close_session(
        &self,
        _: Request<CloseSessionRequest>,
    ) -> Result<Response<CloseSessionResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn batch_get(&self, _: Request<BatchGetRequest>) -> Result<Response<BatchGetResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn bulk_write(
        &self,
        request: Request<BulkWriteRequest>,
    ) -> Result<Response<BulkWriteResponse>, Status> {
        let mut state = self.state.lock().expect("nobody panics");
        let operations = request.into_inner().operations;
        let is_put = |operation: &WriteOperation| {
            matches!(operation.operation, Some(write_operation::Operation::Put(_)))
        };
        let mut lost = self.strikes_now(&mut state, Bug::LostBulk, operations.iter().any(is_put));
        let outcomes = operations.into_iter().map(|operation| {
            let outcome = match operation.operation.expect("the load gives one") {
                write_operation::Operation::Put(_) if std::mem::take(&mut lost) => {
                    state.revision += 1;
                    let mod_revision = state.revision;
                    write_outcome::Outcome::Put(PutResponse {
                        applied: true,
                        mod_revision,
                        ..Default::default()
                    })
                }
                write_operation::Operation::Put(put) => write_outcome::Outcome::Put(state.put(put)),
                write_operation::Operation::Delete(delete) => {
                    write_outcome::Outcome::Delete(state.delete(&delete))
                }
            };
            WriteOutcome { outcome: Some(outcome) }
        });
        Ok(Response::new(BulkWriteResponse { outcomes: outcomes.collect() }))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state.lock().expect("nobody panics");
        let succeeded = request.compare.iter().all(|compare| match compare.target {
            Some(Target::Present(present)) => state.keys.contains_key(&compare.key[..]) == present,
            Some(Target::ModRevision(revision)) => {
                state.keys.get(&compare.key[..]).is_some_and(|kv| kv.mod_revision == revision)
            }
            _ => unreachable!("the load does not compare so"),
        });
        let operations = if succeeded { request.then } else { request.r#else };
        let is_put =
            |operation: &TxnOperation| matches!(operation.operation, Some(txn_operation::Operation::Put(_)));
        let mut torn =
            self.strikes_now(&mut state, Bug::TornTransaction, operations.iter().skip(1).any(is_put));
        // All writes of a transaction make one revision.
        let revision = state.revision;
        let results = operations.into_iter().enumerate().map(|(index, operation)| {
            use txn_operation_result::Result::{Delete, Get, Put};
            state.revision = revision;
            let result = match operation.operation.expect("the load gives one") {
                txn_operation::Operation::Get(get) => {
                    Get(GetResponse { kv: state.keys.get(&get.key[..]).cloned(), ..Default::default() })
                }
                txn_operation::Operation::Put(_) if index > 0 && std::mem::take(&mut torn) => {
                    Put(PutResponse { applied: true, mod_revision: revision + 1, ..Default::default() })
                }
                txn_operation::Operation::Put(put) => Put(state.put(put)),
                txn_operation::Operation::Delete(delete) => Delete(state.delete(&delete)),
            };
            TxnOperationResult { result: Some(result) }
        });
        let results = results.collect();
        state.revision = revision + 1;
        Ok(Response::new(TxnResponse { succeeded, results, ..Default::default() }))
    }

    async fn upload(
        &self,
        request: Request<Streaming<UploadRequest>>,
    ) -> Result<Response<UploadResponse>, Status> {
        let mut messages = request.into_inner();
        let (mut key, mut bytes) = (Vec::new(), Vec::new());
        while let Some(message) = messages.message().await? {
            match message.part.expect("the load gives one") {
                upload_request::Part::Header(header) => key = header.key.to_vec(),
                upload_request::Part::Data(data) => bytes.extend_from_slice(&data),
            }
        }
        let blob = Blob { size_bytes: bytes.len() as u64, sha256: Sha256::digest(&bytes).to_vec().into() };
        let mut state = self.state.lock().expect("nobody panics");
        state.blobs.insert(blob.sha256.to_vec(), bytes);
        state.write_value(&key, Value::Blob(blob));
        let kv = state.keys.get(&key).cloned();
        Ok(Response::new(UploadResponse { applied: true, kv, ..Default::default() }))
    }

    type DownloadStream = Stream_<DownloadResponse>;
    async fn download(
        &self,
        request: Request<DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let key = request.into_inner().key;
        let mut state = self.state.lock().expect("nobody panics");
        let Some(kv) = state.keys.get(&key[..]).cloned() else {
            let details = ErrorDetails::with_error_info("KEY_NOT_FOUND", api::ERROR_DOMAIN, []);
            return Err(Status::with_error_details(Code::NotFound, "absent", details));
        };
        let mut bytes = match kv.value.as_ref().expect("every key has one") {
            Value::Inline(bytes) => bytes.to_vec(),
            Value::Blob(blob) => state.blobs[&blob.sha256[..]].clone(),
        };
        if self.strikes_now(&mut state, Bug::DamagedDownload, true) {
            bytes[30] ^= 1;
        }
        let header = download_response::Header { kv: Some(kv), ..Default::default() };
        let parts = [download_response::Part::Header(header), download_response::Part::Data(bytes.into())];
        let messages = parts.map(|part| Ok(DownloadResponse { part: Some(part) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }
}

/// A stream of one message.
fn once<T: Send + 'static>(message: T) -> Response<Stream_<T>> {
    Response::new(Box::pin(tokio_stream::once(Ok(message))))
}
