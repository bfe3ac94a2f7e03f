//! The connections to each node, made when first needed, shared by everybody, replaced when they failed: one for operations,
//! with one stream of them on it, and one for what its caller reads or feeds at his own pace.
//!
//! Apart from each other, so that pages nobody takes and bytes that a node cannot take yet hold back no put: not in a window
//! of HTTP/2, not in a socket, and not among the calls that a node lets a connection have.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::Uri;
use kv_http2::{
    KeepAlive, Windows,
    client::{Connection, Options},
};
use kv_proto::{
    admin::v1::{admin_client::AdminClient, recovery_client::RecoveryClient},
    kv::v1::kv_client::KvClient,
};
use thiserror::Error;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

use crate::{address::Address, stream::BatchStream};

/// A TCP and HTTP/2 handshake takes two round trips; one that takes longer is to a dead host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// An idle connection through a silent network partition is noticed after this.
const KEEP_ALIVE: KeepAlive =
    KeepAlive { interval: Duration::from_secs(10), timeout: Duration::from_secs(5) };
/// A stream's: so that a download is not paced by round trips. The connection's: the largest there is, which no streams
/// together use up. Those that nobody reads would otherwise stop all others of their connection. So what waits here unread
/// is bounded by 2 MiB for each stream that a caller has opened, of which a node lets a connection have some hundred at most.
const WINDOWS: Windows = Windows { stream: 2 * 1024 * 1024, connection: (1 << 31) - 1 };
/// Messages are at most 4 MiB both ways; what is above leaves room for a later server.
const MAX_REPLY_BYTES: usize = 8 * 1024 * 1024;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Calls, and the stream of operations: whatever is answered at once, and taken at once.
    Operations,
    /// Scans, downloads, uploads: as fast as their caller is, or the shard.
    Transfers,
}

/// A connected node. Clones share the connection and its stream of operations.
#[derive(Clone, Debug)]
pub(crate) struct Node(Arc<Connected>);

#[derive(Debug)]
struct Connected {
    address: Address,
    purpose: Purpose,
    connection: Connection,
    origin: Uri,
    /// Made when first needed, and again when it has ended.
    stream: Mutex<Option<Arc<BatchStream>>>,
    /// The node has no streams of operations.
    is_unary: AtomicBool,
    cluster_id: Arc<OnceLock<String>>,
}

impl Node {
    pub(crate) fn address(&self) -> &Address {
        &self.0.address
    }

    pub(crate) fn kv(&self) -> KvClient<Connection> {
        let Connected { connection, origin, .. } = &*self.0;
        KvClient::with_origin(connection.clone(), origin.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
    }

    pub(crate) fn admin(&self) -> AdminClient<Connection> {
        let Connected { connection, origin, .. } = &*self.0;
        AdminClient::with_origin(connection.clone(), origin.clone())
            .max_decoding_message_size(MAX_REPLY_BYTES)
    }

    pub(crate) fn recovery(&self) -> RecoveryClient<Connection> {
        let Connected { connection, origin, .. } = &*self.0;
        RecoveryClient::with_origin(connection.clone(), origin.clone())
            .max_decoding_message_size(MAX_REPLY_BYTES)
    }

    /// The stream of this connection; `None`: the node has none, calls are unary.
    pub(crate) fn stream(&self) -> Option<Arc<BatchStream>> {
        if self.0.is_unary.load(Ordering::Relaxed) {
            return None;
        }
        let mut stream = self.0.stream.lock().unwrap_or_else(PoisonError::into_inner);
        match &*stream {
            Some(stream) if !stream.is_over() => Some(stream.clone()),
            Some(_) | None => {
                let started = Arc::new(BatchStream::start(self.kv(), self.0.cluster_id.clone()));
                *stream = Some(started.clone());
                Some(started)
            }
        }
    }

    /// The node knows no streams of operations: for good, as long as the connection lasts.
    pub(crate) fn has_no_streams(&self) {
        self.0.is_unary.store(true, Ordering::Relaxed);
    }
}

/// The place of one connection.
#[derive(Debug, Default)]
struct Place {
    node: Mutex<Option<Node>>,
    /// Held while connecting, so that many callers share one attempt.
    connecting: tokio::sync::Mutex<()>,
}

impl Place {
    /// One that takes no more calls is not there any more: its node may have asked for another one.
    fn node(&self) -> Option<Node> {
        let mut node = self.node.lock().unwrap_or_else(PoisonError::into_inner);
        node.take_if(|node| !node.0.connection.is_open());
        node.clone()
    }
}

/// The connections of a client. Bounded by twice the number of nodes that it ever heard of.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    places: Mutex<BTreeMap<Address, [Arc<Place>; 2]>>,
    /// As a stream told it.
    cluster_id: Arc<OnceLock<String>>,
}

impl Pool {
    /// Of the cluster that is at the other end of the streams; empty before any of them has told.
    pub(crate) fn cluster_id(&self) -> String {
        self.cluster_id.get().cloned().unwrap_or_default()
    }

    /// The connection to `address`, when there is one.
    pub(crate) fn connected(&self, address: &Address, purpose: Purpose) -> Option<Node> {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.get(address)?[purpose as usize].node()
    }

    /// The connection to `address`, made now if there is none.
    pub(crate) async fn node(&self, address: &Address, purpose: Purpose) -> Result<Node, NoConnection> {
        let place = self.place(address, purpose);
        let _connecting = place.connecting.lock().await;
        if let Some(node) = place.node() {
            return Ok(node);
        }
        let node = Node(Arc::new(Connected {
            address: address.clone(),
            purpose,
            connection: connect(address).await?,
            origin: address.uri().parse()?,
            stream: Mutex::default(),
            is_unary: AtomicBool::new(false),
            cluster_id: self.cluster_id.clone(),
        }));
        *place.node.lock().unwrap_or_else(PoisonError::into_inner) = Some(node.clone());
        Ok(node)
    }

    /// Forgets the connection of a node that failed; the next caller makes a new one. A late failure of an old connection
    /// does not close the new one.
    pub(crate) fn discard(&self, failed: &Node) {
        let place = self.place(failed.address(), failed.0.purpose);
        let mut node = place.node.lock().unwrap_or_else(PoisonError::into_inner);
        node.take_if(|node| Arc::ptr_eq(&node.0, &failed.0));
    }

    fn place(&self, address: &Address, purpose: Purpose) -> Arc<Place> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.entry(address.clone()).or_default()[purpose as usize].clone()
    }
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub(crate) enum NoConnection {
    #[error("no URI")]
    Address(#[from] http::uri::InvalidUri),
    #[error("connect")]
    Tcp(#[from] io::Error),
    #[error("no HTTP/2")]
    Http(#[from] h2::Error),
    #[error("connect: no answer for {} s", CONNECT_TIMEOUT.as_secs())]
    Silent(#[from] tokio::time::error::Elapsed),
}

async fn connect(address: &Address) -> Result<Connection, NoConnection> {
    let opening = async {
        let options = Options { windows: WINDOWS, keep_alive: KEEP_ALIVE };
        Ok(Connection::open(socket(address).await?, options).await?)
    };
    timeout(CONNECT_TIMEOUT, opening).await?
}

/// To the first of the name's addresses that answers; each has an equal part of the time.
async fn socket(address: &Address) -> io::Result<TcpStream> {
    let found: Vec<_> = lookup_host(address.as_str()).await?.collect();
    let patience = CONNECT_TIMEOUT / u32::try_from(found.len().max(1)).unwrap_or(u32::MAX);
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in found {
        match timeout(patience, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => {
                socket.set_nodelay(true)?;
                return Ok(socket);
            }
            Ok(Err(error)) => failed = error,
            Err(_) => failed = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failed)
}
