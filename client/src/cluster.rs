//! What administrators ask about the cluster, and of it: the calls of `admin.v1`, in the words of the wire.
//!
//! Any node takes each of them, and a node is named by its name or its id. Questions are repeated at other nodes until the
//! deadline. So is what is done already when it is done: a drain that was asked for twice is one drain. Such a call ends as
//! [`Error::OutcomeUnknown`] only when the deadline comes, and may then be made again. Two are different:
//!
//! * A permit is asked for once ([`Client::request_permit`]): whoever loses the answer loses the token.
//! * Changes come as a stream that is opened again wherever it breaks ([`Client::watch_cluster`]).

use kv_proto::admin::v1 as admin;

use crate::{
    client::Client,
    error::{Error, Result},
    pool::Node,
    retry::Kind,
    routing::Route,
    shard_map::ShardMap,
};

/// Runs a call of `admin.v1` to its end.
macro_rules! ask {
    ($client:expr, $kind:expr, $operation:literal, $method:ident, $request:expr) => {{
        let call = $client.call($operation, $kind, Route::Any);
        let send = |node: Node, request| async move { node.admin().$method(request).await };
        call.unary($request, send).await.map(|(reply, _)| reply)
    }};
}

/// What one may know.
impl Client {
    /// The whole cluster as the asked node sees it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cluster_status(&self) -> Result<admin::ClusterStatus> {
        let request = admin::GetClusterStatusRequest {};
        ask!(self, Kind::Read, "GetClusterStatus", get_cluster_status, request)
    }

    /// What the asked node says of itself.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn node_status(&self) -> Result<admin::NodeStatus> {
        ask!(self, Kind::Read, "GetNodeStatus", get_node_status, admin::GetNodeStatusRequest {})
    }

    /// The registry of nodes.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn nodes(&self) -> Result<Vec<admin::NodeInfo>> {
        let reply = ask!(self, Kind::Read, "ListNodes", list_nodes, admin::ListNodesRequest {});
        reply.map(|reply| reply.nodes)
    }

    /// The shard map that the asked node knows.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn shard_map(&self) -> Result<ShardMap> {
        let request = admin::GetShardMapRequest { newer_than_epoch: 0 };
        let map = ask!(self, Kind::Read, "GetShardMap", get_shard_map, request)?;
        ShardMap::from_proto(map).map_err(|error| Error::protocol("GetShardMap", error.to_string()))
    }

    /// A page of the journal, the newest entries first: what was done, when, why and on what evidence.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn journal(&self, request: admin::GetJournalRequest) -> Result<admin::GetJournalResponse> {
        ask!(self, Kind::Read, "GetJournal", get_journal, request)
    }
}

/// What one may wish.
impl Client {
    /// Moves everything away from a node, which serves until it is empty. Returns when that was begun; how far it is,
    /// [`Self::cluster_status`] and [`Self::watch_cluster`] tell.
    ///
    /// # Errors
    /// See [`Error`]. [`Error::Refused`] with `TOO_FEW_NODES`: fewer active nodes than the replication factor would stay.
    pub async fn drain_node(&self, request: admin::DrainNodeRequest) -> Result<admin::DrainNodeResponse> {
        ask!(self, Kind::Idempotent, "DrainNode", drain_node, request)
    }

    /// Cancels a drain, also half way: what has moved stays where it is until the balance says otherwise.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn undrain_node(
        &self,
        request: admin::UndrainNodeRequest,
    ) -> Result<admin::UndrainNodeResponse> {
        ask!(self, Kind::Idempotent, "UndrainNode", undrain_node, request)
    }

    /// Takes a node that is empty, or that will not come back, out of the cluster for good.
    ///
    /// # Errors
    /// See [`Error`]. [`Error::Refused`] with `NODE_NOT_EMPTY`, `NODE_IS_ALIVE` or `DATA_LOSS_NOT_ACCEPTED`.
    pub async fn remove_node(&self, request: admin::RemoveNodeRequest) -> Result<admin::RemoveNodeResponse> {
        ask!(self, Kind::Idempotent, "RemoveNode", remove_node, request)
    }

    /// Lets the replica of a shard on another node lead. Returns when it does.
    ///
    /// # Errors
    /// See [`Error`]. [`Error::Refused`] with `NOT_APPLIED_TARGET_NOT_READY`: there is no voter of the shard on that node that
    /// is alive and has caught up.
    pub async fn transfer_leader(
        &self,
        request: admin::TransferLeaderRequest,
    ) -> Result<admin::TransferLeaderResponse> {
        ask!(self, Kind::Idempotent, "TransferLeader", transfer_leader, request)
    }

    /// Asks whether a node may be restarted now. A refusal is a reply too: it tells each shard that would suffer, and why.
    ///
    /// Only repeated as long as it surely did not happen: two permits would be granted where one was asked for, or the second
    /// question be refused because of the first one. With `dry_run` it is a question like others.
    ///
    /// # Errors
    /// See [`Error`]. After [`Error::OutcomeUnknown`] a permit may be open whose token nobody knows. It ends by itself when its
    /// time is over; until then no other one is granted.
    pub async fn request_permit(
        &self,
        request: admin::RequestPermitRequest,
    ) -> Result<admin::RequestPermitResponse> {
        let kind = if request.dry_run { Kind::Read } else { Kind::Write };
        ask!(self, kind, "RequestPermit", request_permit, request)
    }

    /// Gives a permit back. One that is over already is no error.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn release_permit(
        &self,
        request: admin::ReleasePermitRequest,
    ) -> Result<admin::ReleasePermitResponse> {
        ask!(self, Kind::Idempotent, "ReleasePermit", release_permit, request)
    }

    /// Lets the node of a permit give its leaderships away before it is stopped. Returns when they are gone; the node takes none
    /// until the permit is over.
    ///
    /// # Errors
    /// See [`Error`]. [`Error::Refused`] with `PERMIT_UNKNOWN`: the token is not that of the open permit of this node.
    pub async fn hand_over(&self, request: admin::HandOverRequest) -> Result<admin::HandOverResponse> {
        ask!(self, Kind::Idempotent, "HandOver", hand_over, request)
    }

    /// Sets what a person or the operator knows of a node: its zone.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set_node_labels(
        &self,
        request: admin::SetNodeLabelsRequest,
    ) -> Result<admin::SetNodeLabelsResponse> {
        ask!(self, Kind::Idempotent, "SetNodeLabels", set_node_labels, request)
    }

    /// Sets wishes of the whole cluster: replication factor, times, limits. What is left out stays as it is.
    ///
    /// # Errors
    /// See [`Error`]. [`Error::Refused`] with `TOO_FEW_NODES`: there are fewer active nodes than replicas are wished for.
    pub async fn set_policy(&self, request: admin::SetPolicyRequest) -> Result<admin::SetPolicyResponse> {
        ask!(self, Kind::Idempotent, "SetPolicy", set_policy, request)
    }
}
