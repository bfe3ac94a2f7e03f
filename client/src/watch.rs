//! Changes of the cluster as they happen: a stream that is opened again, at another node if need be, behind the last state that
//! came.
//!
//! Each event is the whole state, so that whoever misses one has lost nothing. What is older than what came before, from a node
//! that has not heard of it yet, is left out.

use std::time::Duration;

use futures::{Stream, stream};
use kv_proto::admin::v1::{ClusterEvent, WatchClusterRequest};
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Status, Streaming};

use crate::{
    call::Call,
    client::Client,
    error::Result,
    failure::Failure,
    pool::Node,
    retry::{Cause, Kind},
    routing::Route,
};

/// A stream that lasted so long was a good one: what ends it is not counted as a failed attempt of those before it.
const SETTLED: Duration = Duration::from_secs(1);

/// So a node ends a stream.
const STREAM_ENDED: &str = "NOT_APPLIED_STREAM_ENDED";

/// A watch under way. Dropping it ends it.
#[derive(Debug)]
pub struct ClusterWatch {
    call: Call,
    epoch: u64,
    open: Option<Open>,
    /// Nothing was tried yet, or it was given up: the next call of [`Self::next`] has time of its own.
    is_at_rest: bool,
}

/// A stream under way.
#[derive(Debug)]
struct Open {
    node: Node,
    events: Streaming<ClusterEvent>,
    since: Instant,
    /// Whether an event came on it.
    has_told: bool,
}

impl Client {
    /// Watches nodes, moves and permits: the state that is newer than this epoch, and again after each change. 0: the state as
    /// it is, at once. Makes no connection yet.
    pub fn watch_cluster(&self, newer_than_epoch: u64) -> ClusterWatch {
        let call = self.call("WatchCluster", Kind::Read, Route::Any).transfer();
        ClusterWatch { call, epoch: newer_than_epoch, open: None, is_at_rest: true }
    }
}

impl ClusterWatch {
    /// The next state. Waits for it as long as it takes, while a node is there that would tell it. Whoever stops waiting loses
    /// none.
    ///
    /// # Errors
    /// When no node took the watch for as long as an operation may take ([`Client::timeout`]), or when one refuses. The next
    /// call tries again.
    pub async fn next(&mut self) -> Result<ClusterEvent> {
        if std::mem::take(&mut self.is_at_rest) {
            self.call.progressed();
        }
        let told = self.told().await;
        self.is_at_rest = told.is_err();
        told
    }

    /// Of the last state that came.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The same as a stream, which goes on after an error and never ends.
    pub fn into_stream(self) -> impl Stream<Item = Result<ClusterEvent>> + Send {
        stream::unfold(self, |mut watch| async move { Some((watch.next().await, watch)) })
    }

    async fn told(&mut self) -> Result<ClusterEvent> {
        loop {
            let Some(open) = &mut self.open else {
                self.open = Some(self.opened().await?);
                continue;
            };
            // No deadline: nothing may change for days. That the node is there, the keep-alive of its connection tells.
            let ended = match open.events.message().await {
                Ok(Some(event)) => {
                    open.has_told = true;
                    if event.epoch > self.epoch {
                        self.epoch = event.epoch;
                        return Ok(event);
                    }
                    continue;
                }
                Ok(None) => None,
                Err(status) => Some(status),
            };
            let Some(Open { node, since, has_told, .. }) = self.open.take() else { continue };
            if has_told || since.elapsed() >= SETTLED {
                self.call.progressed();
            }
            match ended {
                Some(status) if !self.is_orderly(&node, &status) => {
                    self.call.failed_at(&node, &status).await?;
                }
                Some(_) | None => {
                    let ending = self.ending_of(&node);
                    self.call.failed(ending).await?;
                }
            }
        }
    }

    async fn opened(&mut self) -> Result<Open> {
        loop {
            let node = self.call.node().await?;
            // Without the deadline, which would end the stream at the node.
            let request = Request::new(WatchClusterRequest { newer_than_epoch: self.epoch });
            let asked = timeout_at(self.call.patience(true), node.admin().watch_cluster(request)).await;
            match asked {
                Ok(Ok(reply)) => {
                    let (events, since) = (reply.into_inner(), Instant::now());
                    self.call.client.core().knowledge.met();
                    return Ok(Open { node, events, since, has_told: false });
                }
                Ok(Err(status)) => self.call.failed_at(&node, &status).await?,
                Err(_) => {
                    let failure = self.call.silence_of(&node);
                    self.call.failed(failure).await?;
                }
            }
        }
    }

    /// Whether the node ends the stream because it stops, or wants a new connection: another node is asked first.
    fn is_orderly(&self, node: &Node, status: &Status) -> bool {
        self.call.failure_of(node, status).reason.as_deref() == Some(STREAM_ENDED)
    }

    /// The stream ended in order.
    fn ending_of(&self, node: &Node) -> Failure {
        let message = "the node ended the stream";
        Failure::local(self.call.plan.operation, Some(node.address()), Cause::Lost, message)
    }
}
