//! Accepts other nodes over gRPC: the service `peer.v1.Peer`.

use std::{io, pin::Pin, sync::Arc};

use futures::{Stream, StreamExt};
use kv_proto::peer::v1::{
    FrameBatch,
    peer_server::{Peer, PeerServer},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::{
    conduit::{Accept, Connection, Lane, OUTBOUND_BATCHES},
    dial::broken,
    identity::Refused,
    limits::Limits,
    socket::incoming,
};

/// The gRPC service. Holds no decisions: it makes connections of streams.
pub struct PeerService {
    accept: Arc<dyn Accept>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<FrameBatch, Status>> + Send>>;

impl PeerService {
    /// Gives what arrives to `accept`.
    pub fn new(accept: Arc<dyn Accept>) -> Self {
        Self { accept }
    }

    /// The service with the message limit, for a server of one's own.
    pub fn into_server(self, limits: &Limits) -> PeerServer<Self> {
        PeerServer::new(self).max_decoding_message_size(limits.message_bytes)
    }

    fn connect(&self, lane: Lane, batches: Streaming<FrameBatch>) -> Response<Answers> {
        let (outbound, answers) = mpsc::channel(OUTBOUND_BATCHES);
        let inbound = Box::pin(batches.map(|batch| batch.map_err(|status| broken(&status))));
        self.accept.accept(lane, Connection { outbound, inbound });
        let answers = ReceiverStream::new(answers).map(|batch| batch.map_err(|refused| status(&refused)));
        Response::new(Box::pin(answers))
    }
}

fn status(refused: &Refused) -> Status {
    let message = refused.to_string();
    match refused {
        Refused::NoClusterYet => Status::unavailable(message),
        Refused::TooManyStrangers => Status::resource_exhausted(message),
        Refused::OtherCluster { .. } | Refused::OtherNode { .. } | Refused::OtherSender { .. } => {
            Status::failed_precondition(message)
        }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type RaftStream = Answers;
    type BulkStream = Answers;

    async fn raft(&self, request: Request<Streaming<FrameBatch>>) -> Result<Response<Answers>, Status> {
        Ok(self.connect(Lane::Raft, request.into_inner()))
    }

    async fn bulk(&self, request: Request<Streaming<FrameBatch>>) -> Result<Response<Answers>, Status> {
        Ok(self.connect(Lane::Bulk, request.into_inner()))
    }
}

/// Serves the peer port until it is dropped.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, accept: Arc<dyn Accept>, limits: Limits) -> io::Result<()> {
    /// Each peer needs one stream on a connection.
    const STREAMS_PER_CONNECTION: u32 = 4;
    let incoming = incoming(listener, &limits);
    Server::builder()
        .initial_stream_window_size(limits.window_bytes)
        .initial_connection_window_size(limits.window_bytes)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        // A socket without a stream has nobody else who looks whether its other end is alive.
        .http2_keepalive_interval(Some(limits.bulk_idle))
        .http2_keepalive_timeout(Some(limits.bulk_idle))
        .add_service(PeerService::new(accept).into_server(&limits))
        .serve_with_incoming(incoming)
        .await
        .map_err(io::Error::other)
}
