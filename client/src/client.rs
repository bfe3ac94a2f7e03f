//! The client: a handle that is cheap to clone, and the operations of one request and one reply.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use kv_proto::kv::v1::{self as proto, batch_operation::Operation, batch_result::Result as Answer};
use kv_topology::{KeyspaceId, Slot};
use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};

use crate::{
    address::{Address, AddressError},
    call::{Call, Plan},
    error::{Error, Result},
    keeper::Clones,
    options::{GetOptions, ReadOptions, WriteOptions},
    pool::Pool,
    retry::Kind,
    routing::{Knowledge, Route, Routing},
    sessions::{Sessions, ttl_ms},
    small::mismatch,
    txn::{Txn, TxnReply},
    value::{DeleteReply, GetReply, Header, PutReply, ServedBy},
};

/// An operation that nobody gave a time to ends after this.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// A client of one cluster. Clones share connections, sessions and what was learned of the cluster. When the last one is
/// dropped, the sessions are closed in the background.
#[derive(Clone, Debug)]
pub struct Client {
    clones: Arc<Clones>,
    timeout: Duration,
    pinned: Option<Address>,
}

/// What the clones of a client share.
pub(crate) struct Core {
    pub(crate) pool: Pool,
    pub(crate) knowledge: Knowledge,
    pub(crate) sessions: Sessions,
    pub(crate) fail_fast: bool,
    /// Whether small operations travel on streams.
    pub(crate) streams: bool,
    has_sessions: bool,
    /// 0: the node's default.
    pub(crate) session_ttl_ms: u32,
    rng: Mutex<Box<dyn Rng + Send>>,
}

impl fmt::Debug for Core {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Core").field("knowledge", &self.knowledge).finish_non_exhaustive()
    }
}

impl Core {
    /// From 0 to 1.
    pub(crate) fn jitter(&self) -> f64 {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).random()
    }

    /// Names an upload: 16 bytes at random.
    pub(crate) fn upload_id(&self) -> Bytes {
        let id: [u8; 16] = self.rng.lock().unwrap_or_else(PoisonError::into_inner).random();
        Bytes::copy_from_slice(&id)
    }

    pub(crate) fn learn(&self, header: &Header) {
        let served_by = match header.served_by {
            ServedBy::Unspecified => proto::ServedBy::Unspecified,
            ServedBy::Leader => proto::ServedBy::Leader,
            ServedBy::Follower => proto::ServedBy::Follower,
        };
        let header = proto::ResponseHeader {
            node_id: header.node.get(),
            shard_id: header.shard.get(),
            map_epoch: header.map_epoch,
            served_by: served_by.into(),
            ..Default::default()
        };
        self.knowledge.learn(None, &header);
    }
}

/// Settings of a client.
pub struct ClientBuilder {
    addresses: Vec<Address>,
    timeout: Duration,
    routing: Routing,
    fail_fast: bool,
    sessions: bool,
    session_ttl: Option<Duration>,
    streams: bool,
    rng: Option<Box<dyn Rng + Send>>,
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ClientBuilder")
            .field("addresses", &self.addresses)
            .field("timeout", &self.timeout)
            .field("routing", &self.routing)
            .finish_non_exhaustive()
    }
}

impl ClientBuilder {
    /// How long an operation may take, and how long a stream may stand still. 10 s unless set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How requests find their node. Through one node unless set.
    #[must_use]
    pub fn routing(mut self, routing: Routing) -> Self {
        self.routing = routing;
        self
    }

    /// Gives up when each known node refused a connection once, instead of trying until the deadline. For tools
    /// that a person waits for; off unless set.
    ///
    /// Only as long as no node has answered this client or a clone of it: one that has is most likely starting again, and is
    /// waited for. A client of one node ([`Client::at`]) gives up whenever that node refuses a connection. What may have had
    /// its effect and may be sent again is, until the deadline, whoever refuses.
    #[must_use]
    pub fn fail_fast(mut self, fail_fast: bool) -> Self {
        self.fail_fast = fail_fast;
        self
    }

    /// Whether writes are in sessions, so that each is applied once however often it must be sent. On unless set. Off: a
    /// write whose answer is lost ends as [`Error::OutcomeUnknown`] at once.
    #[must_use]
    pub fn sessions(mut self, sessions: bool) -> Self {
        self.sessions = sessions;
        self
    }

    /// A session that is not used for so long expires: 1 s to 1 day. The node's default, 10 minutes, unless set.
    #[must_use]
    pub fn session_ttl(mut self, ttl: Duration) -> Self {
        self.session_ttl = Some(ttl);
        self
    }

    /// Whether puts, gets, deletes and transactions travel on one stream of each connection, many in a message. On unless
    /// set; off, each is a call of its own. Nodes that know no streams get calls anyway.
    #[must_use]
    pub fn streams(mut self, streams: bool) -> Self {
        self.streams = streams;
        self
    }

    /// Where the jitter of pauses comes from. Seeded by the system unless set.
    #[must_use]
    pub fn rng(mut self, rng: impl Rng + Send + 'static) -> Self {
        self.rng = Some(Box::new(rng));
        self
    }

    /// The client. Connections are made when they are first needed.
    ///
    /// # Errors
    /// When no address was given.
    pub fn build(self) -> Result<Client> {
        if self.addresses.is_empty() {
            return Err(Error::Address(AddressError { text: String::new(), problem: "no address given" }));
        }
        let rng = self
            .rng
            .unwrap_or_else(|| Box::new(SmallRng::seed_from_u64(RandomState::new().hash_one("jitter"))));
        let core = Core {
            pool: Pool::default(),
            knowledge: Knowledge::new(self.addresses, self.routing),
            sessions: Sessions::default(),
            fail_fast: self.fail_fast,
            streams: self.streams,
            has_sessions: self.sessions,
            session_ttl_ms: ttl_ms(self.session_ttl),
            rng: Mutex::new(rng),
        };
        Ok(Client { timeout: self.timeout, ..Client::of(Clones::of(Arc::new(core))) })
    }
}

impl Client {
    /// A client with default settings. `addresses`: one or more, separated by commas, with or without `http://`.
    ///
    /// Makes no connection yet: a node that is down is found out by the first operation.
    ///
    /// # Errors
    /// When an address is malformed or there is none.
    pub fn connect(addresses: &str) -> Result<Self> {
        Self::builder(Address::parse_list(addresses)?).build()
    }

    /// Settings for a client of the cluster that these nodes belong to.
    pub fn builder(addresses: impl IntoIterator<Item = Address>) -> ClientBuilder {
        ClientBuilder {
            addresses: addresses.into_iter().collect(),
            timeout: DEFAULT_TIMEOUT,
            routing: Routing::default(),
            fail_fast: false,
            sessions: true,
            session_ttl: None,
            streams: true,
            rng: None,
        }
    }

    /// The same client with another time limit.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The same client, asking only the node at this address.
    #[must_use]
    pub fn at(&self, address: Address) -> Self {
        Self { pinned: Some(address), ..self.clone() }
    }

    /// How long an operation may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The addresses that the client was given.
    pub fn addresses(&self) -> &[Address] {
        self.core().knowledge.given()
    }

    pub(crate) fn of(clones: Arc<Clones>) -> Self {
        Self { clones, timeout: DEFAULT_TIMEOUT, pinned: None }
    }

    pub(crate) fn core(&self) -> &Core {
        self.clones.core()
    }

    pub(crate) fn clones(&self) -> &Arc<Clones> {
        &self.clones
    }

    pub(crate) fn pinned(&self) -> Option<&Address> {
        self.pinned.as_ref()
    }

    /// Begins an operation.
    pub(crate) fn call(&self, operation: &'static str, kind: Kind, route: Route) -> Call {
        Call::new(self.clone(), Plan { operation, kind, route })
    }

    /// Writes a key.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn put(&self, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Result<PutReply> {
        self.put_with(key, value, WriteOptions::default()).await
    }

    /// Writes a key if the precondition holds; whether it did is in the reply.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn put_with(
        &self,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
        options: WriteOptions,
    ) -> Result<PutReply> {
        let key = Bytes::copy_from_slice(key.as_ref());
        let call = self.call("Put", self.write_kind(), Route::Leader(slot(&key)));
        let request = put_request(key.clone(), value.into(), options);
        match call.small(&key, Operation::Put(request)).await? {
            Answer::Put(mut reply) => {
                let header = self.header(reply.header.take());
                Ok(PutReply { header, ..reply.into() })
            }
            _ => Err(mismatch("Put")),
        }
    }

    /// Reads a key, linearizably.
    ///
    /// # Errors
    /// See [`Error`]; an absent key is none.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<GetReply> {
        self.get_with(key, GetOptions::default()).await
    }

    /// Reads a key.
    ///
    /// # Errors
    /// See [`Error`]; an absent key is none.
    pub async fn get_with(&self, key: impl AsRef<[u8]>, options: GetOptions) -> Result<GetReply> {
        let key = Bytes::copy_from_slice(key.as_ref());
        let call = self.call("Get", Kind::Read, read_route(&key, options.read));
        let request = get_request(key.clone(), options);
        match call.small(&key, Operation::Get(request)).await? {
            Answer::Get(reply) => {
                Ok(GetReply { header: self.header(reply.header), kv: reply.kv.map(Into::into) })
            }
            _ => Err(mismatch("Get")),
        }
    }

    /// Deletes a key; whether it was there is in the reply.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<DeleteReply> {
        self.delete_with(key, WriteOptions::default()).await
    }

    /// Deletes a key if the precondition holds; whether it did is in the reply.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_with(&self, key: impl AsRef<[u8]>, options: WriteOptions) -> Result<DeleteReply> {
        let key = Bytes::copy_from_slice(key.as_ref());
        let call = self.call("Delete", self.write_kind(), Route::Leader(slot(&key)));
        let request = delete_request(key.clone(), options);
        match call.small(&key, Operation::Delete(request)).await? {
            Answer::Delete(mut reply) => {
                let header = self.header(reply.header.take());
                Ok(DeleteReply { header, ..reply.into() })
            }
            _ => Err(mismatch("Delete")),
        }
    }

    /// Compares, then does one thing or the other, atomically in one shard. Reads only: repeated like a read.
    ///
    /// # Errors
    /// See [`Error`]. Keys of several shards are [`Error::Refused`].
    pub async fn txn(&self, txn: Txn) -> Result<TxnReply> {
        let kind = if txn.writes() { self.write_kind() } else { Kind::Read };
        let key = txn.first_key().cloned();
        let route = key.as_ref().map_or(Route::Any, |key| Route::Leader(slot(key)));
        let call = self.call("Txn", kind, route);
        match call.small(&key.unwrap_or_default(), Operation::Txn(txn.into())).await? {
            Answer::Txn(mut reply) => {
                let header = self.header(reply.header.take());
                Ok(TxnReply { header, ..reply.try_into()? })
            }
            _ => Err(mismatch("Txn")),
        }
    }

    /// How a small write may be repeated.
    pub(crate) fn write_kind(&self) -> Kind {
        if self.core().has_sessions { Kind::Once } else { Kind::Write }
    }

    /// A reply's header. On a stream it leaves out the cluster, which the message has told.
    fn header(&self, header: Option<proto::ResponseHeader>) -> Header {
        let mut header = Header::from(header);
        if header.cluster_id.is_empty() {
            header.cluster_id = self.core().pool.cluster_id();
        }
        header
    }
}

/// The slot of a key of the default keyspace.
pub(crate) fn slot(key: &[u8]) -> Slot {
    Slot::of(KeyspaceId(0), key)
}

/// Linearizable reads are cheapest at the leader; others at any replica.
pub(crate) fn read_route(key: &[u8], read: ReadOptions) -> Route {
    if read.any_replica() { Route::Replica(slot(key)) } else { Route::Leader(slot(key)) }
}

pub(crate) fn put_request(key: Bytes, value: Bytes, options: WriteOptions) -> proto::PutRequest {
    proto::PutRequest {
        key,
        value,
        precondition: options.precondition.map(Into::into),
        return_previous: options.return_previous,
        ..Default::default()
    }
}

pub(crate) fn get_request(key: Bytes, options: GetOptions) -> proto::GetRequest {
    proto::GetRequest { key, options: Some(options.read.into()), metadata_only: options.metadata_only }
}

pub(crate) fn delete_request(key: Bytes, options: WriteOptions) -> proto::DeleteRequest {
    proto::DeleteRequest {
        key,
        precondition: options.precondition.map(Into::into),
        return_previous: options.return_previous,
        ..Default::default()
    }
}
