//! A stream of pages that is opened again, behind the last page that came whole, when it breaks.

use std::{fmt, future::Future};

use kv_http2::client::Connection;
use kv_proto::kv::v1::kv_client::KvClient;
use tokio::time::timeout_at;
use tonic::{Response, Status, Streaming};

use crate::{call::Call, error::Result, pool::Node};

/// A request whose answer is a stream of pages.
pub(crate) trait Paged: Clone + fmt::Debug + Send + 'static {
    /// A page.
    type Page: fmt::Debug + Send;

    /// Sends it.
    fn send(
        kv: KvClient<Connection>,
        request: tonic::Request<Self>,
    ) -> impl Future<Output = std::result::Result<Response<Streaming<Self::Page>>, Status>> + Send;
}

/// Pages under way.
#[derive(Debug)]
pub(crate) struct Pages<R: Paged> {
    pub(crate) call: Call,
    /// What is asked for when the stream is opened next; whoever takes a page moves it behind that page.
    pub(crate) request: R,
    open: Option<(Node, Streaming<R::Page>)>,
}

impl<R: Paged> Pages<R> {
    pub(crate) fn new(call: Call, request: R) -> Self {
        Self { call: call.transfer(), request, open: None }
    }

    /// The next page; `None`: the stream ended in order, and the next call opens another one.
    pub(crate) async fn next(&mut self) -> Result<Option<R::Page>> {
        loop {
            let (node, mut stream) = match self.open.take() {
                Some(open) => open,
                None => self.open().await?,
            };
            match timeout_at(self.call.deadline(), stream.message()).await {
                Ok(Ok(Some(page))) => {
                    self.open = Some((node, stream));
                    return Ok(Some(page));
                }
                Ok(Ok(None)) => return Ok(None),
                Ok(Err(status)) => self.call.failed_at(&node, &status).await?,
                Err(_) => self.silent(&node).await?,
            }
        }
    }

    async fn open(&mut self) -> Result<(Node, Streaming<R::Page>)> {
        loop {
            let node = self.call.node().await?;
            let sent = R::send(node.kv(), self.call.request(self.request.clone()));
            match timeout_at(self.call.deadline(), sent).await {
                Ok(Ok(reply)) => return Ok((node, reply.into_inner())),
                Ok(Err(status)) => self.call.failed_at(&node, &status).await?,
                Err(_) => self.silent(&node).await?,
            }
        }
    }

    async fn silent(&mut self, node: &Node) -> Result<()> {
        let failure = self.call.silence_of(node);
        self.call.failed(failure).await
    }
}
