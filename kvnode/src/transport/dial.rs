//! Dials other nodes over gRPC.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, future::BoxFuture};
use kv_proto::peer::v1::{FrameBatch, peer_client::PeerClient};
use kv_topology::NodeId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Endpoint};

use super::{
    conduit::{Broken, Conduit, Connection, Lane, OUTBOUND_BATCHES},
    limits::Limits,
};

/// Tells where a node's peer port is. Asked at each connect, because pods change address.
pub trait Resolve: Send + Sync + 'static {
    /// `HOST:PORT`, or `None` when the node is not known.
    fn peer_address(&self, node: NodeId) -> Option<String>;
}

/// Makes gRPC connections.
pub struct GrpcConduit {
    resolve: Arc<dyn Resolve>,
    limits: Limits,
}

impl GrpcConduit {
    /// Dials what `resolve` names.
    pub fn new(resolve: Arc<dyn Resolve>, limits: Limits) -> Self {
        Self { resolve, limits }
    }

    fn endpoint(&self, node: NodeId) -> Result<Endpoint, Broken> {
        /// The kernel notices a dead host, too, should our own time-outs ever fail to.
        const TCP_KEEP_ALIVE: Duration = Duration::from_secs(10);
        let address = self.resolve.peer_address(node).ok_or(Broken::NoAddress(node))?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| Broken::Connect(chain(&error)))?;
        Ok(endpoint
            .connect_timeout(self.limits.connect)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(TCP_KEEP_ALIVE))
            .initial_stream_window_size(self.limits.window_bytes)
            .initial_connection_window_size(self.limits.window_bytes))
    }

    async fn dial(&self, to: NodeId, lane: Lane) -> Result<Connection, Broken> {
        let channel = self.endpoint(to)?.connect().await.map_err(|error| Broken::Connect(chain(&error)))?;
        let mut client = PeerClient::new(channel).max_decoding_message_size(self.limits.message_bytes);
        let (outbound, queue) = mpsc::channel(OUTBOUND_BATCHES);
        // An error among the batches ends the stream; only the accepting side gives a reason.
        let batches = ReceiverStream::new(queue)
            .take_while(|batch: &Result<FrameBatch, _>| std::future::ready(batch.is_ok()))
            .filter_map(|batch| std::future::ready(batch.ok()));
        let answers = match lane {
            Lane::Raft => client.raft(batches).await,
            Lane::Bulk => client.bulk(batches).await,
        };
        let answers = answers.map_err(|status| broken(&status))?.into_inner();
        // The client, and with it the connection, lives as long as the stream.
        let inbound = answers.map(move |batch| {
            let _alive = &client;
            batch.map_err(|status| broken(&status))
        });
        Ok(Connection { outbound, inbound: Box::pin(inbound) })
    }
}

impl Conduit for GrpcConduit {
    fn connect(&self, to: NodeId, lane: Lane) -> BoxFuture<'_, Result<Connection, Broken>> {
        Box::pin(self.dial(to, lane))
    }
}

/// A status in the words of the transport.
pub(super) fn broken(status: &Status) -> Broken {
    Broken::Stream(format!("{:?}: {}", status.code(), status.message()))
}

/// An error with its causes: tonic's own text says only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
