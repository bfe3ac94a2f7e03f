//! The replicas of this node, as frames reach them.
//!
//! A replica is registered when its Raft runs and taken out before it stops. From that moment on nothing reaches it, of
//! streams and transfers that are under way neither. A frame for one that is not here is answered `Removed`, which is no
//! proof: it may not have started yet. A frame never makes a replica.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use kv_proto::peer::v1::{Removed, frame::Body, refusal};
use kv_topology::{GroupId, ReplicaId};
use openraft::{
    Raft,
    raft::{AppendEntriesResponse, StreamAppendError},
    storage::RaftStateMachine,
};
use openraft_rt::{AsyncRuntime, watch::WatchReceiver};
use tokio::sync::oneshot;

use super::{
    call::refusal,
    codec::{
        CodecError, Vote, decode_append_request, decode_transfer_request, decode_vote_request,
        encode_append_result, encode_transfer_response, encode_vote_response, last_of,
    },
    inbox::{Requests, feed},
    snapshot::SnapshotInFactory,
    snapshot_in::{Transfer, receive},
};
use crate::group::type_config::TypeConfig;

/// What frames can do to a replica. Hides its runtime and its state machine.
pub(super) trait LocalReplica: Send + Sync {
    /// Votes, heartbeats and transfers of leadership: each answered for itself.
    fn answer(&self, request: Body) -> BoxFuture<'static, Body>;
    /// The index of the last entry in its log, as it was a moment ago.
    fn last_index(&self) -> u64;
    /// Takes the append requests of one stream, in order, until the replica is gone.
    fn append(&self, requests: Requests, gone: Gone) -> BoxFuture<'static, ()>;
    /// Takes a snapshot that a leader offered under `vote`.
    fn receive(&self, vote: Vote, transfer: Transfer) -> BoxFuture<'static, ()>;
}

/// Ready once a replica was taken out.
pub(super) type Gone = Shared<BoxFuture<'static, ()>>;

/// A replica that was here when it was looked for.
pub(super) struct Reached {
    local: Arc<dyn LocalReplica>,
    gone: Gone,
}

impl Reached {
    /// As [`LocalReplica::answer`], while the replica is here.
    pub(super) fn answer(&self, request: Body) -> BoxFuture<'static, Body> {
        let (answering, gone) = (self.local.answer(request), self.gone.clone());
        Box::pin(async move { while_here(gone, answering).await.unwrap_or(Body::Removed(Removed {})) })
    }

    /// As [`LocalReplica::last_index`].
    pub(super) fn last_index(&self) -> u64 {
        self.local.last_index()
    }

    /// As [`LocalReplica::append`].
    pub(super) fn append(&self, requests: Requests) -> BoxFuture<'static, ()> {
        self.local.append(requests, self.gone.clone())
    }

    /// As [`LocalReplica::receive`], while the replica is here.
    pub(super) fn receive(&self, vote: Vote, transfer: Transfer) -> BoxFuture<'static, ()> {
        let (receiving, gone) = (self.local.receive(vote, transfer), self.gone.clone());
        Box::pin(async move { while_here(gone, receiving).await.unwrap_or_default() })
    }
}

/// `None`: the replica was taken out before.
async fn while_here<T>(gone: Gone, work: BoxFuture<'static, T>) -> Option<T> {
    tokio::select! {
        biased;
        () = gone => None,
        done = work => Some(done),
    }
}

/// A replica and where its snapshots go.
pub(super) struct RaftReplica<RT, SM, F>
where
    RT: AsyncRuntime,
    SM: RaftStateMachine<TypeConfig<RT>>,
{
    pub(super) id: ReplicaId,
    pub(super) raft: Raft<TypeConfig<RT>, SM>,
    pub(super) snapshots: Arc<F>,
}

impl<RT, SM, F> LocalReplica for RaftReplica<RT, SM, F>
where
    RT: AsyncRuntime,
    SM: RaftStateMachine<TypeConfig<RT>>,
    F: SnapshotInFactory<Data = SM::SnapshotData>,
{
    fn answer(&self, request: Body) -> BoxFuture<'static, Body> {
        let raft = self.raft.clone();
        Box::pin(async move { answer(raft, request).await.unwrap_or_else(|body| body) })
    }

    fn last_index(&self) -> u64 {
        self.raft.metrics().borrow_watched().last_log_index.unwrap_or(0)
    }

    fn append(&self, requests: Requests, gone: Gone) -> BoxFuture<'static, ()> {
        Box::pin(feed(self.raft.clone(), requests, gone))
    }

    fn receive(&self, vote: Vote, transfer: Transfer) -> BoxFuture<'static, ()> {
        Box::pin(receive(self.id, self.raft.clone(), self.snapshots.clone(), vote, transfer))
    }
}

fn stopped(error: impl std::error::Error) -> Body {
    refusal(refusal::Kind::NotApplied, "REPLICA_STOPPED", error.to_string())
}

fn malformed(error: &CodecError) -> Body {
    refusal(refusal::Kind::InvalidArgument, "MALFORMED", error.to_string())
}

/// The answer to a request; as an error when the request was refused.
async fn answer<RT, SM>(raft: Raft<TypeConfig<RT>, SM>, request: Body) -> Result<Body, Body>
where
    RT: AsyncRuntime,
    SM: RaftStateMachine<TypeConfig<RT>>,
{
    Ok(match request {
        Body::VoteRequest(request) => {
            let request = decode_vote_request::<RT>(&request).map_err(|error| malformed(&error))?;
            Body::VoteResponse(encode_vote_response(&raft.vote(request).await.map_err(stopped)?))
        }
        Body::PreVoteRequest(request) => {
            let request = decode_vote_request::<RT>(&request).map_err(|error| malformed(&error))?;
            Body::PreVoteResponse(encode_vote_response(&raft.pre_vote(request).await.map_err(stopped)?))
        }
        Body::AppendRequest(request) => {
            let last = last_of(&request);
            let request = decode_append_request::<RT>(request).map_err(|error| malformed(&error))?;
            let previous = request.prev_log_id;
            let result = match raft.append_entries(request).await.map_err(stopped)? {
                AppendEntriesResponse::Success => Ok(last),
                AppendEntriesResponse::PartialSuccess(matching) => Ok(matching),
                AppendEntriesResponse::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote)),
                AppendEntriesResponse::Conflict => {
                    let previous = previous.ok_or_else(|| malformed(&CodecError::Missing("previous")))?;
                    Err(StreamAppendError::Conflict(previous))
                }
            };
            Body::AppendResponse(encode_append_result::<RT>(&result, last))
        }
        Body::TransferRequest(request) => {
            let request = decode_transfer_request::<RT>(&request).map_err(|error| malformed(&error))?;
            let leader = *request.from_leader();
            let response = raft.handle_transfer_leader(request).await.map_err(stopped)?;
            Body::TransferResponse(encode_transfer_response::<RT>(&response, &leader))
        }
        _ => return Err(refusal(refusal::Kind::InvalidArgument, "UNEXPECTED_FRAME", "not for a replica")),
    })
}

/// The replicas of this node.
#[derive(Default)]
pub(super) struct Registry {
    replicas: RwLock<BTreeMap<ReplicaId, Registered>>,
    no_leaderships: AtomicBool,
}

struct Registered {
    group: GroupId,
    local: Arc<dyn LocalReplica>,
    gone: Gone,
    /// Dropped with the entry.
    _here: oneshot::Sender<()>,
}

impl Registry {
    pub(super) fn insert(&self, group: GroupId, replica: ReplicaId, local: Arc<dyn LocalReplica>) {
        let (here, dropped) = oneshot::channel();
        let gone = dropped.map(drop).boxed().shared();
        let registered = Registered { group, local, gone, _here: here };
        self.replicas.write().unwrap_or_else(PoisonError::into_inner).insert(replica, registered);
    }

    /// Takes a replica out: what is under way to it ends.
    pub(super) fn remove(&self, replica: ReplicaId) {
        self.replicas.write().unwrap_or_else(PoisonError::into_inner).remove(&replica);
    }

    pub(super) fn set_leaderships(&self, taken: bool) {
        self.no_leaderships.store(!taken, Relaxed);
    }

    /// The refusal of a request to take a leadership over, when this node takes none. The others of the group are told of
    /// the transfer by the same request, and may go on.
    pub(super) fn refusal_to_lead(&self, replica: ReplicaId, request: &Body) -> Option<Body> {
        match request {
            Body::TransferRequest(transfer)
                if transfer.to_replica == replica.0 && self.no_leaderships.load(Relaxed) =>
            {
                Some(refusal(refusal::Kind::NotApplied, crate::refusal::STOPPING, "the node is stopping"))
            }
            _ => None,
        }
    }

    /// Takes all out: the replicas may go.
    pub(super) fn clear(&self) {
        self.replicas.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The replica that a frame is for, or the answer that it is not here.
    pub(super) fn find(&self, group: GroupId, replica: ReplicaId) -> Result<Reached, Box<Body>> {
        let replicas = self.replicas.read().unwrap_or_else(PoisonError::into_inner);
        match replicas.get(&replica) {
            None => Err(Box::new(Body::Removed(Removed {}))),
            Some(found) if found.group != group => {
                let message = format!("{replica} is of {}, not of {group}", found.group);
                Err(Box::new(refusal(refusal::Kind::FailedPrecondition, "OTHER_GROUP", message)))
            }
            Some(found) => Ok(Reached { local: found.local.clone(), gone: found.gone.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use kv_proto::peer::v1::{TransferRequest, VoteRequest};

    use super::*;

    #[test]
    fn who_takes_no_leaderships_refuses_transfers_to_itself_until_it_takes_them_again() {
        let registry = Registry::default();
        let transfer =
            |to_replica| Body::TransferRequest(TransferRequest { to_replica, ..Default::default() });
        let refused = |body: &Body| registry.refusal_to_lead(ReplicaId(1), body).is_some();
        assert!(!refused(&transfer(1)));
        registry.set_leaderships(false);
        assert!(refused(&transfer(1)));
        assert!(!refused(&transfer(2)), "others may, and it must know");
        assert!(!refused(&Body::VoteRequest(VoteRequest::default())), "it votes");
        registry.set_leaderships(true);
        assert!(!refused(&transfer(1)));
    }
}
