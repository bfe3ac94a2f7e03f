//! openraft's network, on the links of the transport.
//!
//! One [`Network`] is one replica of ours talking to one replica elsewhere. Votes, heartbeats and transfers are single
//! requests; replication is a stream with several requests in flight; snapshots go over `bulk`. Whatever keeps a
//! request from being answered is `Unreachable`, so that openraft backs off instead of asking again at once.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use kv_proto::peer::v1::frame::Body;
use kv_topology::{GroupId, NodeId, ReplicaId};
use openraft::{
    OptionalSend, RaftNetworkFactory, RaftTypeConfig,
    alias::{SnapshotOf, VoteOf},
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{RPCOption, v2::RaftNetworkV2},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use openraft_rt::AsyncRuntime;

use super::{
    Transport,
    append_stream::{Answers, AppendStream},
    call::CallError,
    codec::{
        CodecError, append_response, decode_append_result, decode_transfer_response, decode_vote_response,
        encode_append_request, encode_transfer_request, encode_vote_request, last_of, previous_of,
    },
    conduit::Lane,
    link::Address,
    outbox::Class,
    snapshot::SnapshotOut,
    snapshot_out::{SendError, Sending},
};
use crate::group::type_config::{Member, TypeConfig};

/// Makes the networks of one local replica.
pub struct NetworkFactory<RT, S> {
    transport: Transport,
    group: GroupId,
    replica: ReplicaId,
    snapshots: Arc<S>,
    runtime: PhantomData<fn() -> RT>,
}

impl<RT, S> NetworkFactory<RT, S> {
    /// For `replica` of `group`; `snapshots` reads what it sends.
    pub fn new(transport: Transport, group: GroupId, replica: ReplicaId, snapshots: Arc<S>) -> Self {
        Self { transport, group, replica, snapshots, runtime: PhantomData }
    }

    fn network(&self, target: u64, member: Member, is_heartbeat: bool) -> Network<RT, S> {
        Network {
            transport: self.transport.clone(),
            node: NodeId(member.node),
            address: Address { group: self.group.0, from_replica: self.replica.0, to_replica: target },
            is_heartbeat,
            snapshots: self.snapshots.clone(),
            runtime: PhantomData,
        }
    }
}

impl<RT: AsyncRuntime, S: SnapshotOut> RaftNetworkFactory<TypeConfig<RT>> for NetworkFactory<RT, S> {
    type Network = Network<RT, S>;

    async fn new_client(&mut self, target: u64, node: &Member) -> Self::Network {
        self.network(target, *node, false)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Member) -> Self::Network {
        self.network(target, *node, true)
    }
}

/// One local replica talking to another one.
pub struct Network<RT, S> {
    transport: Transport,
    node: NodeId,
    address: Address,
    /// Heartbeats stand alone: they pass the appends.
    is_heartbeat: bool,
    snapshots: Arc<S>,
    runtime: PhantomData<fn() -> RT>,
}

impl<RT: AsyncRuntime, S: SnapshotOut> Network<RT, S> {
    async fn ask(&self, body: Body, time: Duration) -> Result<Body, CallError> {
        self.transport.ask((self.node, Lane::Raft), self.address, Class::Urgent, body, time).await
    }

    /// One append that stands alone. Of a request that exceeds a frame only the first part is sent, and the answer
    /// says how far that went.
    async fn append_alone(
        &self,
        request: AppendEntriesRequest<TypeConfig<RT>>,
        time: Duration,
    ) -> Result<StreamAppendResult<TypeConfig<RT>>, RPCError<TypeConfig<RT>>> {
        let mut parts = encode_append_request(request, self.transport.limits().frame_bytes);
        let part = parts.swap_remove(0);
        let (previous, last) = (previous_of(&part), last_of(&part));
        match self.ask(Body::AppendRequest(part), time).await.map_err(|error| rpc_error(&error))? {
            Body::AppendResponse(response) => {
                decode_append_result::<RT>(&response, previous, last).map_err(|error| malformed(&error))
            }
            _ => Err(unexpected()),
        }
    }

    async fn snapshot(
        &self,
        vote: &VoteOf<TypeConfig<RT>>,
        data: S::Data,
    ) -> Result<SnapshotResponse<TypeConfig<RT>>, SendError> {
        let outgoing = self.transport.outgoing();
        let Ok(_place) = outgoing.places.acquire().await else { return Err(SendError::Incomplete) };
        let link = self.transport.link(self.node, Lane::Bulk)?;
        let sending = Sending::new(link, self.transport.limits().clone(), self.address);
        Ok(SnapshotResponse::new(sending.send(outgoing, vote, &*self.snapshots, data).await?))
    }
}

impl<RT: AsyncRuntime, S: SnapshotOut> RaftNetworkV2<TypeConfig<RT>> for Network<RT, S> {
    type SnapshotData = S::Data;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig<RT>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig<RT>>, RPCError<TypeConfig<RT>>> {
        use openraft::entry::RaftEntry;
        let last = request.entries.last().map(RaftEntry::log_id).or(request.prev_log_id);
        let result = self.append_alone(request, option.soft_ttl()).await?;
        Ok(append_response(&result, last))
    }

    fn stream_append<'s, I>(
        &'s mut self,
        mut input: I,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig<RT>>, RPCError<TypeConfig<RT>>>>,
            RPCError<TypeConfig<RT>>,
        >,
    >
    where
        I: Stream<Item = AppendEntriesRequest<TypeConfig<RT>>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            if self.is_heartbeat {
                let Some(request) = input.next().await else {
                    return Ok(Box::pin(futures::stream::empty()) as BoxStream<'s, _>);
                };
                let result = self.append_alone(request, option.hard_ttl()).await?;
                return Ok(Box::pin(futures::stream::once(async { Ok(result) })) as BoxStream<'s, _>);
            }
            let link = match self.transport.link(self.node, Lane::Raft) {
                Ok(link) => link,
                Err(error) => {
                    // openraft waits out its back-off inside its requests: an error before the first one makes it spin.
                    let _ = input.next().await;
                    return Err(rpc_error(&error));
                }
            };
            let stream = AppendStream::new(input, link, self.transport.limits().clone(), self.address);
            Ok(Box::pin(Answers::<I, RT>(stream, PhantomData)) as BoxStream<'s, _>)
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig<RT>>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<RT>>, RPCError<TypeConfig<RT>>> {
        let body = Body::VoteRequest(encode_vote_request(&request));
        match self.ask(body, option.hard_ttl()).await.map_err(|error| rpc_error(&error))? {
            Body::VoteResponse(response) => decode_vote_response::<RT>(&response).map_err(|e| malformed(&e)),
            _ => Err(unexpected()),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig<RT>>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<RT>>, RPCError<TypeConfig<RT>>> {
        let body = Body::PreVoteRequest(encode_vote_request(&request));
        match self.ask(body, option.hard_ttl()).await.map_err(|error| rpc_error(&error))? {
            Body::PreVoteResponse(response) => {
                decode_vote_response::<RT>(&response).map_err(|e| malformed(&e))
            }
            _ => Err(unexpected()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<TypeConfig<RT>>,
        snapshot: SnapshotOf<TypeConfig<RT>, Self::SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig<RT>>, StreamingError<TypeConfig<RT>>> {
        tokio::select! {
            biased;
            closed = cancel => Err(closed.into()),
            sent = self.snapshot(&vote, snapshot.snapshot) => sent.map_err(|error| {
                tracing::warn!(
                    node = self.node.0, replica = self.address.to_replica, %error, "snapshot did not arrive"
                );
                Unreachable::from_string(error).into()
            }),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig<RT>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig<RT>>, RPCError<TypeConfig<RT>>> {
        let body = Body::TransferRequest(encode_transfer_request(&request));
        match self.ask(body, option.hard_ttl()).await.map_err(|error| rpc_error(&error))? {
            Body::TransferResponse(response) => {
                decode_transfer_response::<RT>(&response, &request).map_err(|error| malformed(&error))
            }
            _ => Err(unexpected()),
        }
    }
}

/// All of them ask for a pause before the next attempt.
pub(super) fn rpc_error<C: RaftTypeConfig>(error: &CallError) -> RPCError<C> {
    RPCError::Unreachable(Unreachable::new(error))
}

fn malformed<C: RaftTypeConfig>(error: &CodecError) -> RPCError<C> {
    RPCError::Network(NetworkError::new(error))
}

fn unexpected<C: RaftTypeConfig>() -> RPCError<C> {
    RPCError::Network(NetworkError::from_string("the peer answered with something else"))
}
