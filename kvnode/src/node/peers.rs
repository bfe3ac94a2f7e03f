//! Requests to other nodes over the transport, with their failures as refusals.

use futures::{FutureExt, future::BoxFuture};
use kv_proto::{
    disk::v1::Operation,
    peer::v1::{
        ControlRequest, ControlResponse, Outcome, ReadIndexRequest, ReadIndexResponse, ReadRequest,
        ReadResponse, Refusal, WriteRequest, frame::Body,
    },
};
use kv_topology::{GroupId, NodeId, ShardId};
use prost::Message;
use tokio::time::Instant;

use crate::{
    group::read_gate::AskLeader,
    refusal,
    router::Peers,
    transport::{CallError, Lane, Transport},
};

/// Writes from this size on travel with the bulk, so that small ones keep their latency; bytes.
const BULK_FROM_BYTES: usize = 64 * 1024;

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
}

impl AskLeader for OverTransport {
    fn read_index(
        &self,
        leader: NodeId,
        shard: ShardId,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<ReadIndexResponse, Refusal>> {
        let this = self.clone();
        async move {
            let request = Body::ReadIndexRequest(ReadIndexRequest { shard_id: shard.get() });
            match this.ask(leader, Lane::Raft, request, deadline).await? {
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
        Some(Read::Get(_) | Read::Scan(_) | Read::Blob(_)) | None => Lane::Bulk,
    }
}

fn unexpected(node: NodeId) -> Refusal {
    refusal::internal(format!("node {node} answered with something else"))
}

fn refusal_of(node: NodeId, error: CallError) -> Refusal {
    match error {
        CallError::Refused(refused) => refused,
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
