//! What tests of too much load share: how calls may end under it, the connections that it comes on, and the small load that
//! must be served before, beside and after it.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::stream;
use kv_cluster_tests::{
    Cluster,
    api::{Api, Read, reason},
};
use kv_proto::{
    admin::v1::admin_client::AdminClient,
    kv::v1::{
        BatchOperation, BatchRequest, BatchResponse, Failure, GetRequest, PutRequest, batch_operation,
        batch_result, kv_client::KvClient,
    },
};
use tokio::{
    sync::{Mutex, MutexGuard},
    task::JoinSet,
};
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

/// One at a time: each of them takes all of the machine, and says how much.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Held by a test while it loads its cluster.
pub async fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().await
}

/// Of every call under pressure: long enough for all that is admitted.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// What a node counts in whole milliseconds it may tell this much too early.
const CLOCKS: Duration = Duration::from_millis(50);
/// Limits that too much load may meet first, whichever it is.
const PLACES: [&str; 3] = ["REQUESTS_IN_FLIGHT", "REQUEST_BYTES_IN_FLIGHT", "REPLY_BYTES_IN_FLIGHT"];
/// Operations of one message of a stream.
const MESSAGE_OPERATIONS: usize = 128;

/// How calls have ended.
#[derive(Debug, Default)]
pub struct Ends {
    /// By the limit that was met; each with a time after which to come again.
    pub refused: BTreeMap<String, u64>,
    /// At their deadline, and not before.
    pub overdue: u64,
    /// How long those took that were carried out, each, in no order.
    took: Vec<Duration>,
}

impl fmt::Display for Ends {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { refused, overdue, took: _ } = self;
        let [median, p99, most] = [50, 99, 100].map(|percent| self.took_at(percent));
        write!(formatter, "{} done in {median:?}, p99 {p99:?}, at most {most:?}; ", self.done())?;
        write!(formatter, "{overdue} overdue, refused {refused:?}")
    }
}

impl Ends {
    /// Counts the end of a unary call that took this long.
    ///
    /// # Panics
    /// When it is one that a client under pressure must never be told.
    pub fn unary<T>(&mut self, result: Result<T, Status>, took: Duration) {
        let Err(status) = result else {
            self.took.push(took);
            return;
        };
        let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
        self.failed(status.code(), reason(&status).as_deref(), retry, took, status.message());
    }

    /// Counts the end of an operation on a stream.
    ///
    /// # Panics
    /// As [`Ends::unary`].
    pub fn streamed(&mut self, result: Option<&batch_result::Result>, took: Duration) {
        match result {
            Some(batch_result::Result::Failure(failure)) => {
                let Failure { code, reason, message, retry_after_ms, .. } = failure;
                let retry = Duration::from_millis((*retry_after_ms).into());
                self.failed(Code::from_i32(*code), Some(reason), Some(retry), took, message);
            }
            Some(_) => self.took.push(took),
            None => panic!("an answer without a result"),
        }
    }

    /// Counts the end of a stream that was refused, or ended, with `count` operations unanswered: none of them happened.
    ///
    /// # Panics
    /// As [`Ends::unary`].
    pub fn stream(&mut self, status: &Status, count: u64) {
        let limit = reason(status);
        let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
        assert!(
            status.code() == Code::ResourceExhausted && retry.is_some_and(|retry| !retry.is_zero()),
            "a stream ended with {status}"
        );
        *self.refused.entry(limit.unwrap_or_default()).or_default() += count;
    }

    fn failed(
        &mut self,
        code: Code,
        reason: Option<&str>,
        retry: Option<Duration>,
        took: Duration,
        message: &str,
    ) {
        let late = took + CLOCKS >= DEADLINE;
        match (code, reason) {
            (Code::ResourceExhausted, Some(limit)) => {
                assert!(retry.is_some_and(|retry| !retry.is_zero()), "{limit} without a time to come again");
                *self.refused.entry(limit.to_owned()).or_default() += 1;
            }
            // Of the node; or of the client, whose own clock may be first.
            (Code::Unknown, Some("OUTCOME_UNKNOWN"))
            | (Code::Unavailable | Code::DeadlineExceeded, Some("NOT_APPLIED_EXPIRED"))
            | (Code::Cancelled | Code::DeadlineExceeded, None)
                if late =>
            {
                self.overdue += 1;
            }
            _ => panic!("after {took:?} a call ended with {code:?} {reason:?}: {message}"),
        }
    }

    /// Adds those of another client.
    pub fn add(&mut self, other: Self) {
        self.overdue += other.overdue;
        self.took.extend(other.took);
        for (limit, count) in other.refused {
            *self.refused.entry(limit).or_default() += count;
        }
    }

    /// What so many percent of those that were carried out took at most; zero: none was.
    pub fn took_at(&self, percent: usize) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        let last = took.len().saturating_sub(1);
        took.get((took.len() * percent / 100).min(last)).copied().unwrap_or_default()
    }

    /// Every refusal named one of [`PLACES`].
    ///
    /// # Panics
    /// When one did not: a bound behind them was met first, or one that nobody knows.
    pub fn assert_refused_by_places(&self) {
        let unknown: Vec<_> = self.refused.keys().filter(|limit| !PLACES.contains(&limit.as_str())).collect();
        assert!(unknown.is_empty(), "refused by {unknown:?}: {self}");
    }

    /// Those that were carried out.
    pub fn done(&self) -> u64 {
        self.took.len() as u64
    }

    /// All refusals.
    pub fn refusals(&self) -> u64 {
        self.refused.values().sum()
    }

    /// All calls.
    pub fn all(&self) -> u64 {
        self.done() + self.overdue + self.refusals()
    }
}

/// A connection of its own, as most clients make it.
pub async fn connect(address: SocketAddr) -> Channel {
    endpoint(address).connect().await.expect("a connection")
}

/// Where readers that stand still come from. One address may hold few large replies of a node with little memory, and these
/// keep them: what a node leaves to others is seen from another address.
const READERS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// A connection of readers, which takes in little of what its caller does not read: the rest stays at the node. Less than a MiB
/// would be too little for hundreds of calls, whose library ends a connection when as many small frames wait to be read.
pub async fn connect_narrow(address: SocketAddr) -> Channel {
    const STREAM_WINDOW: u32 = 65_535;
    const WINDOW: u32 = 1 << 20;
    let endpoint = endpoint(address).local_address(Some(READERS));
    let endpoint = endpoint.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(WINDOW);
    endpoint.connect().await.expect("a connection")
}

/// A neighbour of the readers that stand still: of their address, on a connection of its own.
pub async fn connect_beside_readers(address: SocketAddr) -> Api {
    let endpoint = endpoint(address).local_address(Some(READERS));
    let channel = endpoint.connect().await.expect("a connection");
    Api { kv: KvClient::new(channel.clone()), admin: AdminClient::new(channel) }
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::from_shared(format!("http://{address}")).expect("a socket address makes a URI")
}

/// A put on a stream.
pub fn put(id: u64, key: String, value: Bytes) -> BatchOperation {
    let put = PutRequest { key: key.into(), value, ..PutRequest::default() };
    operation(id, batch_operation::Operation::Put(put))
}

/// A linearizable get on a stream.
pub fn get(id: u64, key: String) -> BatchOperation {
    let get = GetRequest { key: key.into(), ..GetRequest::default() };
    operation(id, batch_operation::Operation::Get(get))
}

fn operation(id: u64, operation: batch_operation::Operation) -> BatchOperation {
    let timeout_ms = u32::try_from(DEADLINE.as_millis()).expect("seconds");
    BatchOperation { id, timeout_ms, operation: Some(operation) }
}

/// Opens a stream and sends all of these at once, as fast as the node takes them; whoever calls reads the answers, or does
/// not.
pub async fn stream_of(
    channel: Channel,
    operations: &[BatchOperation],
) -> Result<Streaming<BatchResponse>, Status> {
    let messages: Vec<BatchRequest> = operations
        .chunks(MESSAGE_OPERATIONS)
        .map(|operations| BatchRequest { operations: operations.to_vec() })
        .collect();
    Ok(KvClient::new(channel).batch(stream::iter(messages)).await?.into_inner())
}

/// Reads a stream to its end, answer by answer.
///
/// # Errors
/// When it does not end in order.
pub async fn read_all(
    replies: &mut Streaming<BatchResponse>,
    mut each: impl FnMut(u64, Option<batch_result::Result>),
) -> Result<(), Status> {
    while let Some(reply) = replies.message().await? {
        for answer in reply.results {
            each(answer.id, answer.result);
        }
    }
    Ok(())
}

/// Writes and reads of a small load.
const STEADY_CLIENTS: usize = 6;
const STEADY_CALLS: usize = 40;

/// The small load through all nodes: every call of it must succeed at once. Keys begin with `prefix`. Says how long it took.
///
/// # Panics
/// When a call fails.
pub async fn steady(cluster: &Cluster, prefix: &str) -> Duration {
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for number in 0..STEADY_CLIENTS {
        let (api, prefix) = (cluster.api(number % cluster.nodes.len()), format!("{prefix}/{number}"));
        clients.spawn(async move {
            for call in 0..STEADY_CALLS {
                write_and_read(api.clone(), &format!("{prefix}/{call}")).await;
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.expect("the small load is served");
    }
    begun.elapsed()
}

/// A put and the get that sees it.
///
/// # Panics
/// When one of them fails.
pub async fn write_and_read(mut api: Api, key: &str) {
    let value = Bytes::copy_from_slice(key.as_bytes());
    let put = api.put(key, value, None).await.unwrap_or_else(|status| panic!("put {key}: {status}"));
    let get = api.get(key, Read::Linearizable).await.unwrap_or_else(|status| panic!("get {key}: {status}"));
    let found = get.kv.map(|kv| kv.mod_revision);
    assert_eq!(found, Some(put.mod_revision), "{key} is read as it was written");
}
