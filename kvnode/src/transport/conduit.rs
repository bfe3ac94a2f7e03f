//! The seam between the transport and the wire: two connectors, and batches of frames in between.
//!
//! A [`Conduit`] dials; what it dials arrives at the other node's [`Accept`]. Both ends then hold a [`Connection`]: an
//! ordered stream of batches each way, which ends when either side ends it or it breaks. Everything above works
//! on connections alone: gRPC makes them in production, [`super::loopback`] in one process, and a simulation can
//! bring its own.

use futures::{future::BoxFuture, stream::BoxStream};
use kv_proto::peer::v1::FrameBatch;
use kv_topology::NodeId;
use tokio::sync::mpsc;

use super::identity::Refused;

/// Which of the two streams to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Votes, heartbeats, appends, questions, small forwarded requests.
    Raft,
    /// Snapshots, reads of many bytes, uploads.
    Bulk,
}

impl Lane {
    /// For logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raft => "raft",
            Self::Bulk => "bulk",
        }
    }
}

/// Why a connection could not be made, or ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The registry knows no address of this node.
    #[error("no address is known for {0}")]
    NoAddress(NodeId),
    /// The attempt took too long.
    #[error("no connection within the time allowed")]
    ConnectTimeout,
    /// The connection could not be made.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// It broke, or the other side refused it.
    #[error("the stream broke: {0}")]
    Stream(String),
    /// The other side ended it.
    #[error("the other side ended the stream")]
    Ended,
    /// Nothing was heard for too long.
    #[error("nothing was heard within the idle time-out")]
    Idle,
    /// What came does not belong here.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// One end of a connection.
pub struct Connection {
    /// Batches to write, in order; the last item may tell the other side why the stream ends. Dropping it ends the
    /// stream. Its capacity is small: what is in it counts as written.
    pub outbound: mpsc::Sender<Result<FrameBatch, Refused>>,
    /// Batches that arrived, in order, until the stream ends or breaks.
    pub inbound: BoxStream<'static, Result<FrameBatch, Broken>>,
}

/// Batches that may be on their way to the wire: one, while the next one collects.
pub const OUTBOUND_BATCHES: usize = 1;

/// Dials other nodes.
pub trait Conduit: Send + Sync + 'static {
    /// Opens a lane to a node. May take forever: the caller bounds it.
    fn connect(&self, to: NodeId, lane: Lane) -> BoxFuture<'_, Result<Connection, Broken>>;
}

/// Takes connections that other nodes dialled. Does not block.
pub trait Accept: Send + Sync + 'static {
    /// Serves this connection until it ends. The first batch tells who is at its other end.
    fn accept(&self, lane: Lane, connection: Connection);
}
