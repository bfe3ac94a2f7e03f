//! Requests to other nodes over the transport, with their failures as refusals.

use std::time::Duration;

use futures::{FutureExt, future::BoxFuture};
use kv_proto::{
    disk::v1::Operation,
    peer::v1::{
        ControlRequest, ControlResponse, Outcome, ReadIndexRequest, ReadIndexResponse, ReadRequest,
        ReadResponse, Refusal, WriteRequest, frame::Body,
    },
};
use kv_topology::{GroupId, NodeId};
use prost::Message;
use tokio::time::Instant;

use crate::{
    group::read_gate::AskLeader,
    refusal,
    router::Peers,
    transport::{CallError, Lane, NotSent, Transport},
};

/// Writes from this size on travel with the bulk, so that small ones keep their latency; bytes.
const BULK_FROM_BYTES: usize = 64 * 1024;

/// Advice to who is refused because of a full queue, ms.
const RETRY_AFTER_MS: u32 = 50;
/// A node of which nothing was heard for so long is asked last: three heartbeats, less than an election takes.
const SILENT_AFTER: Duration = Duration::from_millis(450);

/// Asks other nodes.
#[derive(Clone)]
pub struct OverTransport(pub Transport);

impl OverTransport {
    async fn ask(self, node: NodeId, lane: Lane, body: Body, deadline: Instant) -> Result<Body, Refusal> {
        match self.0.call(node, lane, GroupId::META, body, deadline).await {
            Ok(Body::Refusal(refused)) => Err(refused),
            Ok(answer) => Ok(answer),
            Err(error) => Err(refusal_of(node, error)),
        }
    }

    /// One step of the controller.
    ///
    /// # Errors
    /// The node refused, or could not be asked.
    pub async fn control(
        self,
        node: NodeId,
        request: ControlRequest,
        deadline: Instant,
    ) -> Result<ControlResponse, Refusal> {
        match self.ask(node, Lane::Raft, Body::ControlRequest(request), deadline).await? {
            Body::ControlResponse(response) => Ok(response),
            _ => Err(unexpected(node)),
        }
    }
}

impl Peers for OverTransport {
    fn write(
        &self,
        node: NodeId,
        request: WriteRequest,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Vec<Outcome>, Refusal>> {
        let this = self.clone();
        async move {
            let asked = request.operations.len();
            let lane = write_lane(&request.operations);
            match this.ask(node, lane, Body::WriteRequest(request), deadline).await? {
                Body::WriteResponse(response) if response.outcomes.len() == asked => Ok(response.outcomes),
                // It was proposed there: what became of it is not known.
                _ => {
                    Err(refusal::outcome_unknown(format!("node {node} answered a write with something else")))
                }
            }
        }
        .boxed()
    }

    fn read(
        &self,
        node: NodeId,
        request: ReadRequest,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<ReadResponse, Refusal>> {
        let this = self.clone();
        async move {
            let lane = read_lane(&request);
            match this.ask(node, lane, Body::ReadRequest(request), deadline).await? {
                Body::ReadResponse(response) => Ok(response),
                _ => Err(unexpected(node)),
            }
        }
        .boxed()
    }

    fn is_silent(&self, node: NodeId) -> bool {
        self.0.heard_from(node).is_some_and(|heard| heard.elapsed() > SILENT_AFTER)
    }
}

impl AskLeader for OverTransport {
    fn read_index(
        &self,
        leader: NodeId,
        request: ReadIndexRequest,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<ReadIndexResponse, Refusal>> {
        let this = self.clone();
        async move {
            match this.ask(leader, Lane::Raft, Body::ReadIndexRequest(request), deadline).await? {
                Body::ReadIndexResponse(response) => Ok(response),
                _ => Err(unexpected(leader)),
            }
        }
        .boxed()
    }
}

fn write_lane(operations: &[Operation]) -> Lane {
    let bytes: usize = operations.iter().map(Message::encoded_len).sum();
    if bytes < BULK_FROM_BYTES { Lane::Raft } else { Lane::Bulk }
}

/// Point reads are small; pages and chunks are not.
fn read_lane(request: &ReadRequest) -> Lane {
    use kv_proto::peer::v1::read_request::Read;
    match &request.read {
        Some(Read::Get(get)) if get.keys.len() == 1 => Lane::Raft,
        Some(Read::Unpin(_)) => Lane::Raft,
        Some(Read::Get(_) | Read::Scan(_) | Read::Blob(_) | Read::Meta(_) | Read::Journal(_)) | None => {
            Lane::Bulk
        }
    }
}

fn unexpected(node: NodeId) -> Refusal {
    refusal::internal(format!("node {node} answered with something else"))
}

fn refusal_of(node: NodeId, error: CallError) -> Refusal {
    match error {
        CallError::Refused(refused) => refused,
        CallError::NotSent(NotSent::QueueFull) => {
            let message = format!("too much waits for node {node}");
            refusal::exhausted(refusal::PEER_QUEUE_FULL, message, RETRY_AFTER_MS)
        }
        CallError::NotSent(why @ NotSent::TooLarge { .. }) => {
            refusal::too_large(format!("for node {node}: {why}"))
        }
        CallError::NotSent(why) => {
            refusal::not_applied(refusal::UNREACHABLE, format!("node {node} was not asked: {why}"))
        }
        CallError::Removed => {
            refusal::not_applied(refusal::NO_REPLICA, format!("node {node} has no such replica any more"))
        }
        CallError::OutcomeUnknown | CallError::Deadline => {
            refusal::outcome_unknown(format!("node {node}: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use kv_proto::peer::v1::refusal::Kind;

    use super::*;
    use crate::router::route::{Next, Target, after_write};

    #[test]
    fn a_full_queue_slows_the_caller_down_and_a_request_that_fits_nowhere_is_not_repeated() {
        let node = NodeId(2);
        let full = refusal_of(node, CallError::NotSent(NotSent::QueueFull));
        assert_eq!((full.kind(), full.reason.as_str()), (Kind::ResourceExhausted, refusal::PEER_QUEUE_FULL));
        assert!(full.retry_after_ms > 0);
        let large = refusal_of(node, CallError::NotSent(NotSent::TooLarge { bytes: 9_000, limit: 8_000 }));
        assert_eq!(large.kind(), Kind::InvalidArgument);
        assert!(large.message.contains("9000 B") && large.message.contains("8000 B"), "{}", large.message);
        assert_eq!(after_write(&large, Target::At(node), 0, true), Next::Final);
        let gone = refusal_of(node, CallError::NotSent(NotSent::Unreachable));
        assert_eq!(gone.kind(), Kind::NotApplied);
        let unknown = refusal_of(node, CallError::Deadline);
        assert_eq!(unknown.kind(), Kind::OutcomeUnknown);
    }
}
