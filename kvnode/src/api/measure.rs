//! Counts and times every call of the client port.
//!
//! Labels are bounded: methods that this node does not serve are counted together. A call ends with its status, which
//! comes with the head of a reply without a body and with the trailers of one that has one; a client that goes away
//! before has cancelled it.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use prometheus_client::metrics::{counter::Counter, histogram::Histogram};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{
    limits::Limit,
    quota::{NodeQuota, Refusals},
};
use crate::metrics::{BatchMetrics, LimitMetrics, MethodLabels, RequestLabels, RequestMetrics};

/// Where gRPC puts the status of a call.
const GRPC_STATUS: &str = "grpc-status";
/// Whatever is not in [`METHODS`].
const OTHER: &str = "other";

/// What is counted by name: all that the port serves but reflection.
const METHODS: [&str; 39] = [
    "admin.v1.Admin/Bootstrap",
    "admin.v1.Admin/DrainNode",
    "admin.v1.Admin/GetClusterStatus",
    "admin.v1.Admin/GetJournal",
    "admin.v1.Admin/GetNodeStatus",
    "admin.v1.Admin/GetShardMap",
    "admin.v1.Admin/HandOver",
    "admin.v1.Admin/Join",
    "admin.v1.Admin/ListNodes",
    "admin.v1.Admin/ReleasePermit",
    "admin.v1.Admin/RemoveNode",
    "admin.v1.Admin/RequestPermit",
    "admin.v1.Admin/SetNodeLabels",
    "admin.v1.Admin/SetPolicy",
    "admin.v1.Admin/TransferLeader",
    "admin.v1.Admin/UndrainNode",
    "admin.v1.Admin/WatchCluster",
    "admin.v1.Recovery/Inspect",
    "admin.v1.Recovery/ReplaceGroup",
    "admin.v1.Recovery/Rewrite",
    "kv.v1.Kv/Batch",
    "kv.v1.Kv/BatchGet",
    "kv.v1.Kv/BulkWrite",
    "kv.v1.Kv/CloseSession",
    "kv.v1.Kv/Delete",
    "kv.v1.Kv/DeleteRange",
    "kv.v1.Kv/Download",
    "kv.v1.Kv/Get",
    "kv.v1.Kv/OpenSession",
    "kv.v1.Kv/Put",
    "kv.v1.Kv/Scan",
    "kv.v1.Kv/Txn",
    "kv.v1.Kv/Upload",
    "kv.v1.KvText/Delete",
    "kv.v1.KvText/Get",
    "kv.v1.KvText/Put",
    "kv.v1.KvText/Scan",
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/Watch",
];

/// Names of all codes of gRPC, by number.
pub const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// What the client port feeds.
#[derive(Clone, Debug, Default)]
pub struct ApiMetrics {
    /// Calls.
    pub requests: RequestMetrics,
    /// What clients hold.
    pub limits: LimitMetrics,
    /// Batch streams.
    pub batch: BatchMetrics,
    /// Where that is counted, once the port is served.
    pub quota: Arc<OnceLock<Arc<NodeQuota>>>,
}

impl ApiMetrics {
    /// Counters of what is refused.
    pub fn refusals(&self) -> Refusals {
        Limit::ALL.map(|limit| self.limits.of(limit.label()).refused)
    }

    /// Reads what clients hold.
    pub fn measure(&self) {
        let Some(quota) = self.quota.get() else { return };
        let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.limits.addresses.set(number(quota.addresses()));
        for limit in Limit::ALL {
            let (metric, pool) = (self.limits.of(limit.label()), quota.pool(limit));
            metric.in_use.set(number(pool.taken));
            metric.max.set(number(pool.max));
        }
    }
}

/// The handles of one method.
#[derive(Debug)]
struct Handles {
    method: &'static str,
    seconds: Histogram,
    handled: [OnceLock<Counter>; CODES.len()],
}

/// The handles of all methods.
#[derive(Debug)]
struct Table {
    metrics: RequestMetrics,
    methods: BTreeMap<&'static str, Arc<Handles>>,
    other: Arc<Handles>,
}

impl Table {
    fn new(metrics: RequestMetrics) -> Self {
        let handles = |method| {
            let seconds = metrics.seconds.get_or_create_owned(&MethodLabels { method });
            Arc::new(Handles { method, seconds, handled: Default::default() })
        };
        let methods = METHODS.into_iter().map(|method| (method, handles(method))).collect();
        let other = handles(OTHER);
        Self { methods, other, metrics }
    }

    fn of(&self, path: &str) -> Arc<Handles> {
        self.methods.get(path.trim_start_matches('/')).unwrap_or(&self.other).clone()
    }
}

/// Measures calls. Clones share what was measured.
#[derive(Clone, Debug)]
pub struct Calls(Arc<Table>);

impl Calls {
    /// Feeds `metrics`.
    pub fn new(metrics: RequestMetrics) -> Self {
        Self(Arc::new(Table::new(metrics)))
    }

    /// A call of the method at `path` has come.
    pub fn begin(&self, path: &str) -> Call {
        Call::begin(self.0.of(path), self.0.metrics.clone())
    }
}

/// A call until its end; one that is dropped before was cancelled.
#[derive(Debug)]
pub struct Call {
    handles: Arc<Handles>,
    metrics: RequestMetrics,
    began: Instant,
    ended: bool,
}

impl Call {
    fn begin(handles: Arc<Handles>, metrics: RequestMetrics) -> Self {
        metrics.in_progress.inc();
        Self { handles, metrics, began: Instant::now(), ended: false }
    }

    /// Ends it, if these headers or trailers tell its status.
    pub fn end_with(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get(GRPC_STATUS) {
            self.end(Code::from_bytes(status.as_bytes()));
        }
    }

    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.metrics.in_progress.dec();
        let Handles { method, seconds, handled } = &*self.handles;
        seconds.observe(self.began.elapsed().as_secs_f64());
        let number = usize::try_from(i32::from(code)).unwrap_or_default();
        let (Some(counter), Some(status)) = (handled.get(number), CODES.get(number)) else { return };
        let labels = RequestLabels { method, status };
        counter.get_or_init(|| self.metrics.handled.get_or_create_owned(&labels)).inc();
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// A reply whose trailers end the call.
#[derive(Debug)]
pub struct MeasuredBody<B> {
    inner: B,
    call: Call,
}

impl<B> MeasuredBody<B> {
    /// The body of the reply to `call`.
    pub fn new(inner: B, call: Call) -> Self {
        Self { inner, call }
    }
}

impl<B: Body<Data = Bytes, Error = Status> + Unpin> Body for MeasuredBody<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.call.end_with(trailers);
                }
            }
            Poll::Ready(Some(Err(status))) => self.call.end(status.code()),
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_its_name() {
        for (number, name) in CODES.into_iter().enumerate() {
            let code = Code::from_i32(i32::try_from(number).expect("few codes"));
            let spelled = format!("{code:?}").to_uppercase();
            assert_eq!(name.replace('_', ""), spelled, "{number}");
        }
    }

    #[test]
    fn an_unknown_method_makes_no_label_of_its_own() {
        let table = Table::new(RequestMetrics::default());
        assert_eq!(table.of("/kv.v1.Kv/Put").method, "kv.v1.Kv/Put");
        assert_eq!(table.of("/kv.v1.Kv/Steal").method, OTHER);
        assert_eq!(table.of("").method, OTHER);
    }

    #[test]
    fn a_call_that_is_given_up_was_cancelled_and_is_counted_once() {
        let metrics = RequestMetrics::default();
        let table = Table::new(metrics.clone());
        let count = |status| {
            let labels = RequestLabels { method: "kv.v1.Kv/Get", status };
            metrics.handled.get_or_create(&labels).get()
        };
        let begin = || Call::begin(table.of("/kv.v1.Kv/Get"), metrics.clone());
        let call = begin();
        assert_eq!(metrics.in_progress.get(), 1);
        drop(call);
        let mut call = begin();
        let mut trailers = HeaderMap::new();
        trailers.insert(GRPC_STATUS, http::HeaderValue::from_static("8"));
        call.end_with(&trailers);
        drop(call);
        assert_eq!((count("CANCELLED"), count("RESOURCE_EXHAUSTED"), count("OK")), (1, 1, 0));
        assert_eq!(metrics.in_progress.get(), 0);
    }
}
