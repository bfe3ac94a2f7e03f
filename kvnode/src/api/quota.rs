//! How much of a node its clients may hold: connections, requests, their bytes, replies, large replies, streams, health checks.
//!
//! A place is taken three times: of the node, of the client's address, which may hold no more than it leaves free
//! ([`share`](crate::net::share)), and for the kinds that cost memory of the connection, which may hold a fixed number.
//! So neither a client nor all clients of one address can take everything. What is taken is given back when the last
//! owner of it is dropped: a large reply counts until HTTP/2 has sent its last byte, so that a client that reads
//! nothing soon gets nothing more.
//!
//! What nodes forward to each other comes over the peer port and counts at the node that the client asked.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
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
        BATCH_REPLY_BYTES, LARGE_REPLIES_PER_CONNECTION_MAX, Limit, REPLY_BYTES_PER_CONNECTION_PART,
        REQUEST_BYTES_PER_CONNECTION_MAX, SCAN_ROOM_BYTES_MIN, STREAMED_REPLIES_MAX,
        STREAMED_REPLIES_PER_CONNECTION_MAX,
    },
};
use crate::net::{
    places::{self, Guest, Line, Places},
    share::Pool,
};

const KINDS: usize = Limit::ALL.len();

type Place = places::Place<KINDS>;

/// Counters of what was refused, in the order of [`Limit::ALL`].
pub type Refusals = [Counter; KINDS];

/// The places of a node.
#[derive(Debug)]
pub struct NodeQuota {
    places: Arc<Places<KINDS>>,
    refused: Refusals,
    ended: AtomicBool,
    epoch: Instant,
}

/// What a node has for its clients, where that may be less than the limits of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// See [`Limit::Connections`].
    pub connections: usize,
    /// See [`Limit::Requests`].
    pub requests: usize,
    /// See [`Limit::RequestBytes`].
    pub request_bytes: usize,
    /// See [`Limit::LargeReplies`].
    pub large_replies: usize,
    /// See [`Limit::ReplyBytes`]; there is room for two scans at least.
    pub reply_bytes: usize,
    /// Answers of all Batch streams that have not been taken by their clients, bytes.
    pub batch_reply_bytes: usize,
}

impl Default for Capacity {
    /// All that the API allows.
    fn default() -> Self {
        Self {
            connections: Limit::Connections.max(),
            requests: Limit::Requests.max(),
            request_bytes: Limit::RequestBytes.max(),
            large_replies: Limit::LargeReplies.max(),
            reply_bytes: Limit::ReplyBytes.max(),
            batch_reply_bytes: usize::MAX,
        }
    }
}

impl Capacity {
    /// What may wait to be sent on each Batch stream, bytes, see [`BATCH_REPLY_BYTES`].
    pub fn of_batch_stream(&self) -> usize {
        let held = self.batch_reply_bytes / STREAMED_REPLIES_MAX / 3;
        held.clamp(*BATCH_REPLY_BYTES.start(), *BATCH_REPLY_BYTES.end())
    }
}

impl NodeQuota {
    /// With the limits of the API or this capacity, whichever is less, and counters of what is refused.
    pub fn new(capacity: &Capacity, refused: Refusals) -> Arc<Self> {
        let max = Limit::ALL.map(|limit| match limit {
            Limit::Connections => limit.max().min(capacity.connections),
            Limit::Requests => limit.max().min(capacity.requests),
            Limit::RequestBytes => limit.max().min(capacity.request_bytes),
            Limit::LargeReplies => limit.max().min(capacity.large_replies),
            Limit::ReplyBytes => limit.max().min(capacity.reply_bytes).max(2 * SCAN_ROOM_BYTES_MIN),
            Limit::Streams | Limit::HealthChecks => limit.max(),
        });
        let (places, ended) = (Places::new(max), AtomicBool::new(false));
        Arc::new(Self { places, refused, ended, epoch: Instant::now() })
    }

    /// How full one of the limits is.
    pub fn pool(&self, limit: Limit) -> Pool {
        self.places.pool(limit as usize)
    }

    /// Addresses with a connection.
    pub fn addresses(&self) -> usize {
        self.places.guests()
    }

    /// Tells every connection to close.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Whether connections must close.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn refused(&self, limit: Limit) -> Refused {
        self.refused[limit as usize].inc();
        Refused::Limit(limit.reason())
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The places of a connection.
#[derive(Debug)]
pub struct ConnectionQuota {
    /// Of the client.
    pub remote: SocketAddr,
    /// Of the node.
    pub node: Arc<NodeQuota>,
    /// When it was accepted.
    pub since: Instant,
    address: Arc<Guest<KINDS>>,
    large: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    request_bytes: AtomicUsize,
    reply_bytes: AtomicUsize,
    reply_bytes_max: usize,
    unsent_bytes: AtomicUsize,
    /// When bytes last left, ms since the node's epoch.
    progress_ms: AtomicU64,
    _place: Place,
}

impl ConnectionQuota {
    /// Of a connection that was just accepted; `None`: there is no place for it.
    pub fn new(node: &Arc<NodeQuota>, remote: SocketAddr) -> Option<Arc<Self>> {
        let address = node.places.guest(remote.ip());
        let Some(place) = address.try_take(Limit::Connections as usize) else {
            node.refused[Limit::Connections as usize].inc();
            return None;
        };
        Some(Arc::new(Self {
            remote,
            since: Instant::now(),
            address,
            large: Arc::new(Semaphore::new(LARGE_REPLIES_PER_CONNECTION_MAX)),
            streams: Arc::new(Semaphore::new(STREAMED_REPLIES_PER_CONNECTION_MAX)),
            request_bytes: AtomicUsize::new(0),
            reply_bytes: AtomicUsize::new(0),
            reply_bytes_max: (node.pool(Limit::ReplyBytes).max / REPLY_BYTES_PER_CONNECTION_PART)
                .max(SCAN_ROOM_BYTES_MIN),
            unsent_bytes: AtomicUsize::new(0),
            progress_ms: AtomicU64::new(node.now_ms()),
            node: node.clone(),
            _place: place,
        }))
    }

    fn take(&self, limit: Limit) -> Result<Place, Refused> {
        self.address.try_take(limit as usize).ok_or_else(|| self.node.refused(limit))
    }

    /// Admits a request, which is one of `limit`.
    ///
    /// # Errors
    /// When too many are running.
    pub fn request(self: &Arc<Self>, limit: Limit) -> Result<Arc<InFlight>, Refused> {
        let place = self.take(limit)?;
        let bytes = self.address.none(Limit::RequestBytes as usize);
        Ok(Arc::new(InFlight { connection: self.clone(), bytes, _place: place }))
    }

    /// Counts bytes of requests that a stream has taken, until they are dropped.
    ///
    /// # Errors
    /// When too many are held.
    pub fn hold(self: &Arc<Self>, bytes: usize) -> Result<HeldBytes, Refused> {
        let place = self.address.none(Limit::RequestBytes as usize);
        self.grow(&place, bytes)?;
        Ok(HeldBytes { connection: self.clone(), bytes: place })
    }

    fn grow(&self, place: &Place, bytes: usize) -> Result<(), Refused> {
        if self.try_grow(place, bytes) { Ok(()) } else { Err(self.node.refused(Limit::RequestBytes)) }
    }

    fn try_grow(&self, place: &Place, bytes: usize) -> bool {
        let own = self.request_bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let grown = own <= REQUEST_BYTES_PER_CONNECTION_MAX && place.grow(bytes);
        if !grown {
            self.request_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        grown
    }

    /// Admits a scan, upload, download or Batch stream.
    ///
    /// # Errors
    /// When too many are running.
    pub fn stream(&self) -> Result<Share, Refused> {
        let own = self.streams.clone().try_acquire_owned();
        let own = own.map_err(|_| self.node.refused(Limit::Streams))?;
        Ok(Share::of(own, self.take(Limit::Streams)?))
    }

    /// The share of a reply that may be as large as a message, if it can be had now.
    pub fn large_reply_now(&self) -> Option<Share> {
        let own = self.large.clone().try_acquire_owned().ok()?;
        Some(Share::of(own, self.address.try_take_in_turn(Limit::LargeReplies as usize)?))
    }

    /// Waits for the share of a reply that may be as large as a message.
    ///
    /// # Errors
    /// When there was none until `deadline`.
    pub async fn large_reply(&self, deadline: Instant) -> Result<Share, Refused> {
        let both = async {
            let own = self.large.clone().acquire_owned().await.ok()?;
            Some((own, self.address.take(Limit::LargeReplies as usize).await))
        };
        match timeout_at(deadline, both).await {
            Ok(Some((own, place))) => Ok(Share::of(own, place)),
            Ok(None) | Err(_) => Err(self.node.refused(Limit::LargeReplies)),
        }
    }

    /// Room for so many bytes that are read for the client, if there is any now.
    pub fn reply_bytes_now(self: &Arc<Self>, bytes: usize) -> Option<ReplyBytes> {
        let more = |own: usize| own.checked_add(bytes).filter(|all| *all <= self.reply_bytes_max);
        self.reply_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        let held = self.address.none(Limit::ReplyBytes as usize);
        if !held.grow(bytes) {
            // Nobody is told: an attempt that failed would wake itself.
            self.reply_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return None;
        }
        Some(ReplyBytes { connection: self.clone(), bytes: held })
    }

    /// The same, as soon as there is any and those in the same line that came earlier have got theirs.
    ///
    /// # Errors
    /// When there was none until `deadline`.
    pub async fn reply_bytes(
        self: &Arc<Self>,
        bytes: usize,
        line: Line,
        deadline: Instant,
    ) -> Result<ReplyBytes, Refused> {
        let held = self.address.in_turn(Limit::ReplyBytes as usize, line, || self.reply_bytes_now(bytes));
        timeout_at(deadline, held).await.map_err(|_| self.node.refused(Limit::ReplyBytes))
    }

    /// What one reply may hold of the room for bytes that are read for the client.
    pub fn reply_bytes_max(&self) -> usize {
        self.reply_bytes_max
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
pub struct Share(#[allow(dead_code, reason = "held, not read")] Arc<Held>);

#[derive(Debug)]
#[allow(dead_code, reason = "held, not read")]
enum Held {
    Place(OwnedSemaphorePermit, Place),
    Bytes(ReplyBytes),
}

impl Share {
    fn of(own: OwnedSemaphorePermit, place: Place) -> Self {
        Self(Arc::new(Held::Place(own, place)))
    }
}

impl From<ReplyBytes> for Share {
    fn from(bytes: ReplyBytes) -> Self {
        Self(Arc::new(Held::Bytes(bytes)))
    }
}

/// The shares of what a streamed reply sends now: each piece holds those that are set when it is made, until HTTP/2 has sent it.
#[derive(Clone, Debug, Default)]
pub struct Sending(Arc<Mutex<Vec<Share>>>);

impl Sending {
    /// What is made from now on holds these.
    pub fn set(&self, shares: Vec<Share>) {
        *self.shares() = shares;
    }

    /// What was set is held by the pieces that were made, and by nobody else: to be called before the next message is waited for.
    /// A message that is too small to be a piece of its own is not held then.
    pub fn clear(&self) {
        self.set(Vec::new());
    }

    /// Those that are set.
    pub fn current(&self) -> Vec<Share> {
        self.shares().clone()
    }

    fn shares(&self) -> MutexGuard<'_, Vec<Share>> {
        // Nothing panics while it is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that were read for a client, until it has taken them. Dropping them gives them back.
#[derive(Debug)]
pub struct ReplyBytes {
    connection: Arc<ConnectionQuota>,
    bytes: Place,
}

impl ReplyBytes {
    /// How many.
    pub fn count(&self) -> usize {
        self.bytes.count()
    }

    /// Moves so many of them, or all that there are, to an owner that gives them back for itself.
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Self {
        Self { connection: self.connection.clone(), bytes: self.bytes.split(bytes) }
    }

    /// Gives back all but so many.
    pub fn keep(&mut self, bytes: usize) {
        let less = self.count().saturating_sub(bytes);
        // Of the connection first: who waits is told by the node.
        self.connection.reply_bytes.fetch_sub(less, Ordering::Relaxed);
        self.bytes.give_back(less);
    }
}

impl Drop for ReplyBytes {
    fn drop(&mut self) {
        self.connection.reply_bytes.fetch_sub(self.count(), Ordering::Relaxed);
    }
}

/// A request between its arrival and the end of its reply.
#[derive(Debug)]
pub struct InFlight {
    /// Where it came from.
    pub connection: Arc<ConnectionQuota>,
    bytes: Place,
    _place: Place,
}

impl InFlight {
    /// Counts received bytes.
    ///
    /// # Errors
    /// When too many are held.
    pub fn received(&self, bytes: usize) -> Result<(), Refused> {
        self.connection.grow(&self.bytes, bytes)
    }

    /// The same; false: too many are held. It is no refusal yet.
    pub fn try_received(&self, bytes: usize) -> bool {
        self.connection.try_grow(&self.bytes, bytes)
    }

    /// The same, as soon as there is room for them.
    ///
    /// # Errors
    /// When there was none until `deadline`.
    pub async fn room(self: Arc<Self>, bytes: usize, deadline: Instant) -> Result<(), Refused> {
        let kind = Limit::RequestBytes as usize;
        let grown = self.connection.address.retry(kind, || self.try_received(bytes).then_some(()));
        timeout_at(deadline, grown).await.map_err(|_| self.connection.node.refused(Limit::RequestBytes))
    }

    /// Bytes that were received are no longer held.
    pub fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            self.connection.request_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.bytes.give_back(bytes);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.connection.request_bytes.fetch_sub(self.bytes.count(), Ordering::Relaxed);
    }
}

/// Bytes of requests that a stream has taken. Dropping them gives them back.
#[derive(Debug)]
pub struct HeldBytes {
    connection: Arc<ConnectionQuota>,
    bytes: Place,
}

impl HeldBytes {
    /// Moves so many of them, or all that there are, to an owner that gives them back for itself.
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Self {
        Self { connection: self.connection.clone(), bytes: self.bytes.split(bytes) }
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.connection.request_bytes.fetch_sub(self.bytes.count(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::api::limits::DOWNLOAD_BYTES;

    fn connect(node: &Arc<NodeQuota>, host: u8) -> Option<Arc<ConnectionQuota>> {
        ConnectionQuota::new(node, ([127, 0, 0, host], 9).into())
    }

    fn node() -> Arc<NodeQuota> {
        NodeQuota::new(&Capacity::default(), Refusals::default())
    }

    #[test]
    fn a_flood_of_one_address_leaves_half_of_everything_to_others() {
        let node = node();
        let flood: Vec<_> = std::iter::from_fn(|| connect(&node, 1)).collect();
        assert_eq!(flood.len(), Limit::Connections.max() / 2);
        let requests: Vec<_> = flood.iter().filter_map(|one| one.request(Limit::Requests).ok()).collect();
        assert_eq!(requests.len(), Limit::Requests.max() / 2);
        let streams: Vec<_> = flood.iter().filter_map(|one| one.stream().ok()).collect();
        assert_eq!(streams.len(), Limit::Streams.max() / 2);
        let replies: Vec<_> = flood.iter().filter_map(|one| one.large_reply_now()).collect();
        assert_eq!(replies.len(), Limit::LargeReplies.max() / 2);
        let bytes: Vec<_> = requests.iter().map_while(|request| request.received(1 << 20).ok()).collect();
        assert_eq!(bytes.len() << 20, Limit::RequestBytes.max() / 2);

        let other = connect(&node, 2).expect("a place for another address");
        let request = other.request(Limit::Requests).expect("of its requests");
        request.received(4 << 20).expect("of their bytes");
        other.stream().expect("of its streams");
        assert!(other.large_reply_now().is_some());
        other.request(Limit::HealthChecks).expect("of its health checks");
        assert_eq!(node.addresses(), 2);
        assert_eq!(node.refused[Limit::Connections as usize].get(), 1);
    }

    #[test]
    fn one_connection_does_not_take_what_its_address_may() {
        let node = node();
        let (one, other) = (connect(&node, 1).expect("room"), connect(&node, 1).expect("room"));
        let streams: Vec<_> = std::iter::from_fn(|| one.stream().ok()).collect();
        assert_eq!(streams.len(), STREAMED_REPLIES_PER_CONNECTION_MAX);
        other.stream().expect("a stream of another connection");
        let replies: Vec<_> = std::iter::from_fn(|| one.large_reply_now()).collect();
        assert_eq!(replies.len(), LARGE_REPLIES_PER_CONNECTION_MAX);
        assert!(other.large_reply_now().is_some());
        let request = one.request(Limit::Requests).expect("room");
        request.received(REQUEST_BYTES_PER_CONNECTION_MAX).expect("room");
        assert!(request.received(1).is_err());
        other.request(Limit::Requests).expect("room").received(1 << 20).expect("room");
    }

    #[test]
    fn bytes_of_replies_are_those_of_a_connection_and_of_an_address() {
        let room = 16 * SCAN_ROOM_BYTES_MIN;
        let node =
            NodeQuota::new(&Capacity { reply_bytes: room, ..Capacity::default() }, Refusals::default());
        let connect = || connect(&node, 1).expect("room");
        let (one, other) = (connect(), connect());
        let mut quarter = one.reply_bytes_now(room / 4).expect("a quarter for a connection");
        assert!(one.reply_bytes_now(1).is_none());
        let another = other.reply_bytes_now(room / 4).expect("half for an address");
        assert!(connect().reply_bytes_now(1).is_none());
        let part = quarter.split(room / 16);
        quarter.keep(room / 16);
        let counts = (quarter.count(), part.count(), node.pool(Limit::ReplyBytes).taken);
        assert_eq!(counts, (room / 16, room / 16, room / 4 + room / 8));
        drop((quarter, part, another));
        assert_eq!(node.pool(Limit::ReplyBytes).taken, 0);
        assert!(one.reply_bytes_now(room / 4).is_some(), "what was refused counts for nothing");
    }

    #[test]
    fn a_node_with_little_memory_has_room_for_a_scan_and_for_a_download() {
        let node = NodeQuota::new(&Capacity { reply_bytes: 0, ..Capacity::default() }, Refusals::default());
        let one = connect(&node, 1).expect("room");
        let scan = one.reply_bytes_now(one.reply_bytes_max()).expect("room for one scan");
        assert!(scan.count() >= SCAN_ROOM_BYTES_MIN);
        drop(scan);
        assert!(one.reply_bytes_now(DOWNLOAD_BYTES).is_some());
    }

    #[tokio::test]
    async fn who_waits_for_bytes_of_replies_gets_them_when_they_are_given_back() {
        let room = 8 * SCAN_ROOM_BYTES_MIN;
        let node =
            NodeQuota::new(&Capacity { reply_bytes: room, ..Capacity::default() }, Refusals::default());
        let one = connect(&node, 1).expect("room");
        let mut held = one.reply_bytes_now(room / 4).expect("room");
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut much = Box::pin(one.reply_bytes(room / 8, Line::Usual, deadline));
        let mut little = Box::pin(one.reply_bytes(1, Line::Little, deadline));
        assert!(much.as_mut().now_or_never().is_none() && little.as_mut().now_or_never().is_none());
        held.keep(room / 4 - 1);
        little.await.expect("not behind who wants much");
        held.keep(room / 8);
        much.await.expect("room again");
        let soon = Instant::now() + Duration::from_millis(20);
        let refused = one.reply_bytes(room, Line::Usual, soon).await.expect_err("more than there is");
        assert!(matches!(refused, Refused::Limit("REPLY_BYTES_IN_FLIGHT")));
    }

    #[test]
    fn all_is_given_back_with_the_last_that_holds_it() {
        let node = node();
        let connection = connect(&node, 1).expect("room");
        let (request, stream) = (connection.request(Limit::Requests), connection.stream());
        request.as_ref().expect("room").received(1_000).expect("room");
        assert!(request.as_ref().expect("room").received(usize::MAX / 2).is_err());
        let held = connection.hold(500).expect("room");
        assert!(connection.hold(REQUEST_BYTES_PER_CONNECTION_MAX - 1_499).is_err());
        drop(connection);
        assert_eq!((node.addresses(), node.pool(Limit::RequestBytes).taken), (1, 1_500));
        drop((request, stream, held));
        assert_eq!(node.addresses(), 0);
        for limit in Limit::ALL {
            assert_eq!(node.pool(limit).taken, 0, "{limit:?}");
        }
    }
}
