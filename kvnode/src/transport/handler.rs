//! What answers the requests of other nodes that are not Raft's own.

use std::{future::Future, sync::Arc};

use futures::future::BoxFuture;
use kv_proto::peer::v1::{Frame, frame::Body};
use kv_topology::NodeId;

/// Answers read-index questions, forwarded writes and reads, and control.
pub trait Handler: Send + Sync + 'static {
    /// Answers the request in `frame` from `from`. Many run side by side, in the task that serves the connection, so it
    /// must not block. The future is dropped when the connection ends.
    fn handle(&self, from: NodeId, frame: Frame) -> impl Future<Output = Body> + Send;
}

/// The same behind a pointer.
pub(super) trait DynHandler: Send + Sync {
    fn handle(self: Arc<Self>, from: NodeId, frame: Frame) -> BoxFuture<'static, Body>;
}

impl<H: Handler> DynHandler for H {
    fn handle(self: Arc<Self>, from: NodeId, frame: Frame) -> BoxFuture<'static, Body> {
        Box::pin(async move { Handler::handle(&*self, from, frame).await })
    }
}
