//! One connection per node, made when first needed, shared by everybody, replaced when it failed; and on it one stream of
//! operations.

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
    gathered::Gathered,
};
use kv_proto::{admin::v1::admin_client::AdminClient, kv::v1::kv_client::KvClient};
use thiserror::Error;
use tokio::{net::TcpStream, time::timeout};

use crate::{address::Address, stream::BatchStream};

/// A TCP and HTTP/2 handshake takes two round trips; one that takes longer is to a dead host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// An idle connection through a silent network partition is noticed after this.
const KEEP_ALIVE: KeepAlive =
    KeepAlive { interval: Duration::from_secs(10), timeout: Duration::from_secs(5) };
/// So that an upload or download is not paced by round trips.
const WINDOWS: Windows = Windows { stream: 2 * 1024 * 1024, connection: 8 * 1024 * 1024 };
/// Messages are at most 4 MiB both ways; what is above leaves room for a later server.
const MAX_REPLY_BYTES: usize = 8 * 1024 * 1024;

/// A connected node. Clones share the connection and its stream of operations.
#[derive(Clone, Debug)]
pub(crate) struct Node(Arc<Connected>);

#[derive(Debug)]
struct Connected {
    address: Address,
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

/// The place of one address.
#[derive(Debug, Default)]
struct Place {
    node: Mutex<Option<Node>>,
    /// Held while connecting, so that many callers share one attempt.
    connecting: tokio::sync::Mutex<()>,
}

impl Place {
    fn node(&self) -> Option<Node> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The connections of a client. Bounded by the number of nodes that it ever heard of.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    places: Mutex<BTreeMap<Address, Arc<Place>>>,
    /// As a stream told it.
    cluster_id: Arc<OnceLock<String>>,
}

impl Pool {
    /// Of the cluster that is at the other end of the streams; empty before any of them has told.
    pub(crate) fn cluster_id(&self) -> String {
        self.cluster_id.get().cloned().unwrap_or_default()
    }

    /// The connection to `address`, when there is one.
    pub(crate) fn connected(&self, address: &Address) -> Option<Node> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).get(address)?.node()
    }

    /// The connection to `address`, made now if there is none.
    pub(crate) async fn node(&self, address: &Address) -> Result<Node, NoConnection> {
        let place = self.place(address);
        let _connecting = place.connecting.lock().await;
        if let Some(node) = place.node() {
            return Ok(node);
        }
        let node = Node(Arc::new(Connected {
            address: address.clone(),
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
        let place = self.place(failed.address());
        let mut node = place.node.lock().unwrap_or_else(PoisonError::into_inner);
        node.take_if(|node| Arc::ptr_eq(&node.0, &failed.0));
    }

    fn place(&self, address: &Address) -> Arc<Place> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.entry(address.clone()).or_default().clone()
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
        let socket = TcpStream::connect(address.as_str()).await?;
        socket.set_nodelay(true)?;
        let options = Options { windows: WINDOWS, keep_alive: KEEP_ALIVE };
        Ok(Connection::open(Gathered(socket), options).await?)
    };
    timeout(CONNECT_TIMEOUT, opening).await?
}
