//! How much of a node its clients may hold, and one client of it: requests, their bytes, large replies, streams.
//!
//! A share of the node is taken together with the same share of the connection, which is smaller: a single client
//! cannot take everything. What is taken is given back when the last owner of it is dropped: a large reply counts
//! until HTTP/2 has sent its last byte, so that a client that reads nothing soon gets nothing more.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use super::{
    error::Refused,
    limits::{
        CONNECTIONS_MAX, LARGE_REPLIES_MAX, LARGE_REPLIES_PER_CONNECTION_MAX, REQUEST_BYTES_IN_FLIGHT_MAX,
        REQUEST_BYTES_PER_CONNECTION_MAX, REQUESTS_IN_FLIGHT_MAX, STREAMED_REPLIES_MAX,
        STREAMED_REPLIES_PER_CONNECTION_MAX,
    },
};

/// Names of the limits, as clients and metrics see them.
pub mod limit {
    /// Requests at the same time.
    pub const REQUESTS: &str = "REQUESTS_IN_FLIGHT";
    /// Bytes of requests at the same time.
    pub const REQUEST_BYTES: &str = "REQUEST_BYTES_IN_FLIGHT";
    /// Large replies at the same time.
    pub const LARGE_REPLIES: &str = "LARGE_REPLIES";
    /// Scans, uploads and downloads at the same time.
    pub const STREAMS: &str = "STREAMS";
}

/// The shares of a node.
#[derive(Debug)]
pub struct NodeQuota {
    /// Connections.
    pub connections: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    large: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    request_bytes: AtomicUsize,
    ended: AtomicBool,
    epoch: Instant,
    requests_max: usize,
    refused: Refusals,
}

/// Counters of what was refused, by limit.
#[derive(Debug, Default)]
pub struct Refusals {
    /// Requests.
    pub requests: Counter,
    /// Scans, uploads and downloads.
    pub streams: Counter,
}

impl NodeQuota {
    /// With the limits of the API, except those that are given.
    pub fn new(connections: usize, requests: usize) -> Arc<Self> {
        Self::counted(connections, requests, Refusals::default())
    }

    /// The same, with counters of what it refuses.
    pub fn counted(connections: usize, requests: usize, refused: Refusals) -> Arc<Self> {
        Arc::new(Self {
            requests_max: requests.min(REQUESTS_IN_FLIGHT_MAX),
            refused,
            connections: Arc::new(Semaphore::new(connections.min(CONNECTIONS_MAX))),
            requests: Arc::new(Semaphore::new(requests.min(REQUESTS_IN_FLIGHT_MAX))),
            large: Arc::new(Semaphore::new(LARGE_REPLIES_MAX)),
            streams: Arc::new(Semaphore::new(STREAMED_REPLIES_MAX)),
            request_bytes: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            epoch: Instant::now(),
        })
    }

    /// Requests between their arrival and the end of their reply.
    pub fn requests_in_flight(&self) -> usize {
        self.requests_max.saturating_sub(self.requests.available_permits())
    }

    /// Scans, uploads and downloads in progress.
    pub fn streams_in_progress(&self) -> usize {
        STREAMED_REPLIES_MAX.saturating_sub(self.streams.available_permits())
    }

    /// Tells every connection to close.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Whether connections must close.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The shares of a connection.
#[derive(Debug)]
pub struct ConnectionQuota {
    /// Of the client.
    pub remote: Option<SocketAddr>,
    /// Of the node.
    pub node: Arc<NodeQuota>,
    large: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    request_bytes: AtomicUsize,
    unsent_bytes: AtomicUsize,
    /// When bytes last left, ms since the node's epoch.
    progress_ms: AtomicU64,
    _connection: OwnedSemaphorePermit,
}

impl ConnectionQuota {
    /// Of a connection that was just accepted.
    pub fn new(
        node: Arc<NodeQuota>,
        remote: Option<SocketAddr>,
        connection: OwnedSemaphorePermit,
    ) -> Arc<Self> {
        Arc::new(Self {
            remote,
            large: Arc::new(Semaphore::new(LARGE_REPLIES_PER_CONNECTION_MAX)),
            streams: Arc::new(Semaphore::new(STREAMED_REPLIES_PER_CONNECTION_MAX)),
            request_bytes: AtomicUsize::new(0),
            unsent_bytes: AtomicUsize::new(0),
            progress_ms: AtomicU64::new(node.now_ms()),
            node,
            _connection: connection,
        })
    }

    /// Admits a request.
    ///
    /// # Errors
    /// When too many are running.
    pub fn request(self: &Arc<Self>) -> Result<Arc<InFlight>, Refused> {
        let permit = self.node.requests.clone().try_acquire_owned().map_err(|_| {
            self.node.refused.requests.inc();
            Refused::Limit(limit::REQUESTS)
        })?;
        Ok(Arc::new(InFlight { connection: self.clone(), bytes: AtomicUsize::new(0), _request: permit }))
    }

    /// Admits a scan, upload or download.
    ///
    /// # Errors
    /// When too many are running.
    pub fn stream(&self) -> Result<Share, Refused> {
        let take = |of: &Arc<Semaphore>| {
            of.clone().try_acquire_owned().map_err(|_| {
                self.node.refused.streams.inc();
                Refused::Limit(limit::STREAMS)
            })
        };
        Ok(Share(Arc::new((take(&self.streams)?, take(&self.node.streams)?))))
    }

    /// Waits for the share of a reply that may be as large as a message.
    ///
    /// # Errors
    /// When there was none until `deadline`.
    pub async fn large_reply(&self, deadline: Instant) -> Result<Share, Refused> {
        let both = async {
            let own = self.large.clone().acquire_owned().await.ok()?;
            Some((own, self.node.large.clone().acquire_owned().await.ok()?))
        };
        match timeout_at(deadline, both).await {
            Ok(Some(both)) => Ok(Share(Arc::new(both))),
            Ok(None) | Err(_) => Err(Refused::Limit(limit::LARGE_REPLIES)),
        }
    }

    /// Bytes were handed to HTTP/2.
    pub fn queued(&self, bytes: usize) {
        if self.unsent_bytes.fetch_add(bytes, Ordering::Relaxed) == 0 {
            self.progressed();
        }
    }

    /// HTTP/2 is done with them.
    pub fn sent(&self, bytes: usize) {
        self.unsent_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.progressed();
    }

    /// Bytes of replies left the node.
    pub fn progressed(&self) {
        self.progress_ms.store(self.node.now_ms(), Ordering::Relaxed);
    }

    /// Whether replies wait and none moved for `longest`.
    pub fn is_stalled(&self, longest: Duration) -> bool {
        let silent = self.node.now_ms().saturating_sub(self.progress_ms.load(Ordering::Relaxed));
        self.unsent_bytes.load(Ordering::Relaxed) > 0 && u128::from(silent) > longest.as_millis()
    }
}

/// What a request holds until its last owner is dropped.
#[derive(Clone, Debug)]
pub struct Share(
    #[allow(dead_code, reason = "held, not read")] Arc<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
);

/// A request between its arrival and the end of its reply.
#[derive(Debug)]
pub struct InFlight {
    /// Where it came from.
    pub connection: Arc<ConnectionQuota>,
    bytes: AtomicUsize,
    _request: OwnedSemaphorePermit,
}

impl InFlight {
    /// Counts received bytes.
    ///
    /// # Errors
    /// When too many are held.
    pub fn received(&self, bytes: usize) -> Result<(), Refused> {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let own = self.connection.request_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let all = self.connection.node.request_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if own > REQUEST_BYTES_PER_CONNECTION_MAX || all > REQUEST_BYTES_IN_FLIGHT_MAX {
            return Err(Refused::Limit(limit::REQUEST_BYTES));
        }
        Ok(())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let bytes = self.bytes.load(Ordering::Relaxed);
        self.connection.request_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.connection.node.request_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}
