//! One connection per node, made when first needed, shared by everybody, replaced when it failed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kv_proto::{admin::v1::admin_client::AdminClient, kv::v1::kv_client::KvClient};
use tonic::transport::{Channel, Endpoint};

use crate::address::Address;

/// A TCP and HTTP/2 handshake takes two round trips; one that takes longer is to a dead host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// An idle connection through a silent network partition is noticed after this and [`KEEP_ALIVE_TIMEOUT`].
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Windows of a connection, so that an upload or download is not paced by round trips.
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// Messages are at most 4 MiB both ways; what is above leaves room for a later server.
const MAX_REPLY_BYTES: usize = 8 * 1024 * 1024;

/// A connected node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) address: Address,
    channel: Channel,
    generation: u64,
}

impl Node {
    pub(crate) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
    }

    pub(crate) fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone()).max_decoding_message_size(MAX_REPLY_BYTES)
    }
}

/// The slot of one address. Its lock is held while connecting, so that many callers share one attempt.
#[derive(Debug, Default)]
struct Slot {
    connection: tokio::sync::Mutex<Connection>,
}

#[derive(Debug, Default)]
struct Connection {
    channel: Option<Channel>,
    /// Counts the channels of this address, so that a late failure of an old one does not close the new one.
    generation: u64,
}

/// The connections of a client. Bounded by the number of nodes that it ever heard of.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    slots: Mutex<BTreeMap<Address, Arc<Slot>>>,
}

impl Pool {
    /// The connection to `address`, made now if there is none.
    pub(crate) async fn node(&self, address: &Address) -> Result<Node, tonic::transport::Error> {
        let slot = self.slot(address);
        let mut connection = slot.connection.lock().await;
        let channel = match &connection.channel {
            Some(channel) => channel.clone(),
            None => {
                let channel = endpoint(address)?.connect().await?;
                connection.generation += 1;
                connection.channel = Some(channel.clone());
                channel
            }
        };
        Ok(Node { address: address.clone(), channel, generation: connection.generation })
    }

    /// Forgets the connection of a node that failed; the next caller makes a new one.
    pub(crate) async fn discard(&self, node: &Node) {
        let slot = self.slot(&node.address);
        let mut connection = slot.connection.lock().await;
        if connection.generation == node.generation {
            connection.channel = None;
        }
    }

    fn slot(&self, address: &Address) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(address.clone()).or_default().clone()
    }
}

fn endpoint(address: &Address) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(address.uri())?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES))
}
