//! The node and its cluster, as those see them who administer them.

use std::{future::Future, sync::Arc};

use kv_proto::{
    admin::v1::{
        BootstrapRequest, BootstrapResponse, DrainNodeRequest, DrainNodeResponse, GetJournalRequest,
        GetJournalResponse, HandOverRequest, HandOverResponse, NodeInfo, NodeStatus, ReleasePermitRequest,
        ReleasePermitResponse, RemoveNodeRequest, RemoveNodeResponse, RequestPermitRequest,
        RequestPermitResponse, SetNodeLabelsRequest, SetNodeLabelsResponse, SetPolicyRequest,
        SetPolicyResponse, TransferLeaderRequest, TransferLeaderResponse, UndrainNodeRequest,
        UndrainNodeResponse,
    },
    disk::v1::MetaRecord,
    peer::v1::Refusal,
};
use kv_topology::{ClusterMap, NodeId};
use tokio::time::Instant;

/// The node, as its administrators see it.
pub trait Node: Operations {
    /// What this node is and what its replicas do, without asking anybody.
    fn status(&self) -> NodeStatus;

    /// The same of another node; `None` when it does not answer until `deadline`.
    fn status_of(&self, node: NodeInfo, deadline: Instant)
    -> impl Future<Output = Option<NodeStatus>> + Send;

    /// The registry and map that this node knows.
    fn meta(&self) -> Arc<MetaRecord>;

    /// The same, once its epoch is above `epoch`. May be dropped at any time.
    fn meta_newer_than(&self, epoch: u64) -> impl Future<Output = Arc<MetaRecord>> + Send;

    /// The same, decoded.
    fn map(&self) -> Arc<ClusterMap>;

    /// Makes a cluster of this empty node.
    ///
    /// # Errors
    /// When it is not empty, unless by the same token.
    fn bootstrap(
        &self,
        request: BootstrapRequest,
        deadline: Instant,
    ) -> impl Future<Output = Result<BootstrapResponse, Refusal>> + Send;

    /// Registers `node`, which belonged to `cluster_id` before (empty: to none), and tells its id. Afterwards this
    /// node's map has it.
    ///
    /// # Errors
    /// When the cluster does not take it.
    fn join(
        &self,
        node: NodeInfo,
        cluster_id: String,
        deadline: Instant,
    ) -> impl Future<Output = Result<NodeId, Refusal>> + Send;
}

/// What may be asked of the cluster at any of its nodes. Requests have been checked, but for the names in them: a node or shard
/// that does not exist is refused as `NODE_UNKNOWN` or `SHARD_UNKNOWN`, with the field. What the cluster does not allow is
/// refused with its reason.
pub trait Operations: Send + Sync + 'static {
    /// Begins to move everything away from a node.
    ///
    /// # Errors
    /// When too few nodes would stay.
    fn drain_node(
        &self,
        request: DrainNodeRequest,
        deadline: Instant,
    ) -> impl Future<Output = Result<DrainNodeResponse, Refusal>> + Send;

    /// Cancels a drain.
    ///
    /// # Errors
    /// When the node is not draining or drained.
    fn undrain_node(
        &self,
        request: UndrainNodeRequest,
        deadline: Instant,
    ) -> impl Future<Output = Result<UndrainNodeResponse, Refusal>> + Send;

    /// Takes a node out of the cluster for good.
    ///
    /// # Errors
    /// When it is not empty, and not lost either.
    fn remove_node(
        &self,
        request: RemoveNodeRequest,
        deadline: Instant,
    ) -> impl Future<Output = Result<RemoveNodeResponse, Refusal>> + Send;

    /// Lets another replica of a shard lead; returns when it does.
    ///
    /// # Errors
    /// When it cannot take over.
    fn transfer_leader(
        &self,
        request: TransferLeaderRequest,
        deadline: Instant,
    ) -> impl Future<Output = Result<TransferLeaderResponse, Refusal>> + Send;

    /// Asks whether a node may be restarted now. That it may not is an answer.
    ///
    /// # Errors
    /// When there is no answer.
    fn request_permit(
        &self,
        request: RequestPermitRequest,
        deadline: Instant,
    ) -> impl Future<Output = Result<RequestPermitResponse, Refusal>> + Send;

    /// Gives a permit back; done already is done.
    ///
    /// # Errors
    /// When the meta group cannot be asked.
    fn release_permit(
        &self,
        request: ReleasePermitRequest,
        deadline: Instant,
    ) -> impl Future<Output = Result<ReleasePermitResponse, Refusal>> + Send;

    /// Lets the node of a permit give its leaderships away; returns when they are gone.
    ///
    /// # Errors
    /// When the token is not that of an open permit of the node.
    fn hand_over(
        &self,
        request: HandOverRequest,
        deadline: Instant,
    ) -> impl Future<Output = Result<HandOverResponse, Refusal>> + Send;

    /// Labels a node.
    ///
    /// # Errors
    /// When the meta group cannot be asked.
    fn set_node_labels(
        &self,
        request: SetNodeLabelsRequest,
        deadline: Instant,
    ) -> impl Future<Output = Result<SetNodeLabelsResponse, Refusal>> + Send;

    /// Changes what is wished of the whole cluster, and tells what is wished then.
    ///
    /// # Errors
    /// When there are too few nodes for it.
    fn set_policy(
        &self,
        request: SetPolicyRequest,
        deadline: Instant,
    ) -> impl Future<Output = Result<SetPolicyResponse, Refusal>> + Send;

    /// A page of the journal.
    ///
    /// # Errors
    /// When the meta group cannot be asked.
    fn get_journal(
        &self,
        request: GetJournalRequest,
        deadline: Instant,
    ) -> impl Future<Output = Result<GetJournalResponse, Refusal>> + Send;
}
