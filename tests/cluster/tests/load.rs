//! The checked load finds planted bugs: it runs against a store in memory that lies on request.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
};

use futures::Stream;
use kv_cluster_tests::{Load, LoadPlan, api, seed};
use kv_proto::kv::v1::{
    BatchGetRequest, BatchGetResponse, BulkWriteRequest, BulkWriteResponse, DeleteRangeRequest,
    DeleteRangeResponse, DeleteRequest, DeleteResponse, DownloadRequest, DownloadResponse, GetRequest,
    GetResponse, KeyValue, PutRequest, PutResponse, ScanRequest, ScanResponse, TxnRequest, TxnResponse,
    UploadRequest, UploadResponse,
    key_value::Value,
    kv_server::{Kv, KvServer},
    precondition::Condition,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, Streaming, transport::Server};
use tonic_types::{ErrorDetails, StatusExt};

/// What the store does wrong, to one request in so many.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
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
}

const ONE_IN: u64 = 200;

#[derive(Debug, Default)]
struct State {
    revision: u64,
    requests: u64,
    keys: BTreeMap<Vec<u8>, KeyValue>,
    before: BTreeMap<Vec<u8>, KeyValue>,
}

impl State {
    fn write(&mut self, key: &[u8], value: bytes::Bytes) -> u64 {
        self.revision += 1;
        let kv = KeyValue {
            key: key.to_vec().into(),
            mod_revision: self.revision,
            value: Some(Value::Inline(value)),
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

struct Store {
    bug: Bug,
    state: Mutex<State>,
}

impl Store {
    /// Every so often, the bug shows.
    fn strikes(&self, state: &mut State, bug: Bug) -> bool {
        state.requests += 1;
        self.bug == bug && state.requests.is_multiple_of(ONE_IN)
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
        let blind = self.strikes(&mut state, Bug::BlindSwap);
        if let Some(condition) = condition
            && !blind
            && !state.holds(&key, condition)
        {
            let previous = state.keys.get(&key[..]).cloned();
            return Ok(Response::new(PutResponse { previous, ..Default::default() }));
        }
        if self.strikes(&mut state, Bug::LostWrite) {
            let mod_revision = state.revision + 1;
            state.revision += 1;
            return Ok(Response::new(PutResponse { applied: true, mod_revision, ..Default::default() }));
        }
        if self.strikes(&mut state, Bug::RevisionBack) {
            state.revision /= 2;
        }
        let twice =
            self.strikes(&mut state, Bug::AppliedTwice).then(|| state.keys.get(&key[..]).cloned()).flatten();
        let mod_revision = state.write(&key, value);
        if let Some(Value::Inline(old)) = twice.and_then(|kv| kv.value) {
            state.write(&key, old);
        }
        if self.strikes(&mut state, Bug::RefusedButDone) {
            return Err(refused());
        }
        Ok(Response::new(PutResponse { applied: true, mod_revision, ..Default::default() }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let key = request.into_inner().key;
        let mut state = self.state.lock().expect("nobody panics");
        let mut kv = state.keys.get(&key[..]).cloned();
        if self.strikes(&mut state, Bug::StaleRead) {
            kv = state.before.get(&key[..]).cloned().or(kv);
        }
        if self.strikes(&mut state, Bug::FlippedByte)
            && let Some(Value::Inline(value)) = kv.as_mut().and_then(|kv| kv.value.as_mut())
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
        _: Request<DeleteRangeRequest>,
    ) -> Result<Response<Self::DeleteRangeStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    type ScanStream = Stream_<ScanResponse>;
    async fn scan(&self, _: Request<ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn batch_get(&self, _: Request<BatchGetRequest>) -> Result<Response<BatchGetResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn bulk_write(&self, _: Request<BulkWriteRequest>) -> Result<Response<BulkWriteResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn txn(&self, _: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn upload(&self, _: Request<Streaming<UploadRequest>>) -> Result<Response<UploadResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    type DownloadStream = Stream_<DownloadResponse>;
    async fn download(&self, _: Request<DownloadRequest>) -> Result<Response<Self::DownloadStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

/// Two addresses of one store.
async fn serve(bug: Bug) -> (Vec<SocketAddr>, Vec<JoinHandle<()>>) {
    let store = Arc::new(Store { bug, state: Mutex::default() });
    let (mut addresses, mut servers) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        addresses.push(listener.local_addr().expect("bound"));
        let service = KvServer::from_arc(Arc::clone(&store));
        let incoming = TcpListenerStream::new(listener);
        servers.push(tokio::spawn(async move {
            Server::builder().add_service(service).serve_with_incoming(incoming).await.expect("it serves");
        }));
    }
    (addresses, servers)
}

/// Runs a load until so many writes are acknowledged and gives the verdict, or what the load said against it.
async fn run(bug: Bug) -> Result<kv_cluster_tests::verdict::Verdict, String> {
    let mut random = seed::generator("load");
    let (addresses, servers) = serve(bug).await;
    let load = Load::start(LoadPlan { keys: 6, ..LoadPlan::default() }, addresses, &mut random);
    load.must_progress(2_000).await;
    let verdict = tokio::spawn(load.finish()).await;
    servers.iter().for_each(JoinHandle::abort);
    verdict.map_err(|error| *error.into_panic().downcast::<String>().expect("a formatted message"))
}

#[tokio::test(flavor = "multi_thread")]
async fn honest_store_passes() {
    let verdict = run(Bug::None).await.unwrap_or_else(|violation| panic!("{violation}"));
    assert!(verdict.acknowledged_writes >= 2_000 && verdict.report.failed == 0 && verdict.errors.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_stale_read_is_found() {
    run(Bug::StaleRead).await.expect_err("reads were stale");
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_lost_write_is_found() {
    run(Bug::LostWrite).await.expect_err("writes were lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_second_application_is_found() {
    let violation = run(Bug::AppliedTwice).await.expect_err("writes were applied twice");
    assert!(violation.contains("twice") || violation.contains("no order"), "{violation}");
}

#[tokio::test(flavor = "multi_thread")]
async fn write_that_was_said_to_be_refused_is_found() {
    let violation = run(Bug::RefusedButDone).await.expect_err("refused writes happened");
    assert!(violation.contains("refused"), "{violation}");
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_flipped_byte_is_found() {
    let violation = run(Bug::FlippedByte).await.expect_err("bytes were flipped");
    assert!(violation.contains("byte 50"), "{violation}");
}

#[tokio::test(flavor = "multi_thread")]
async fn revision_that_goes_back_is_found() {
    let violation = run(Bug::RevisionBack).await.expect_err("revisions went back");
    assert!(violation.contains("revision"), "{violation}");
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_blind_swap_is_found() {
    run(Bug::BlindSwap).await.expect_err("conditions were ignored");
}
