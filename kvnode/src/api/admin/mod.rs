//! The service `admin.v1.Admin`: what this node is, what the cluster is, and what persons and the operator ask of them.
//!
//! The node itself is behind [`Node`], what is asked of the cluster behind [`Operations`]; here requests are checked
//! ([`check`]), answers put together, and watches fed ([`watch`]).

pub mod check;
pub mod node;
pub mod watch;

use std::{future::Future, sync::Arc};

use futures::future::join_all;
use kv_proto::{
    admin::v1::{
        BootstrapRequest, BootstrapResponse, ClusterEvent, ClusterStatus, DrainNodeRequest,
        DrainNodeResponse, GetClusterStatusRequest, GetJournalRequest, GetJournalResponse,
        GetNodeStatusRequest, GetShardMapRequest, HandOverRequest, HandOverResponse, JoinRequest,
        JoinResponse, ListNodesRequest, ListNodesResponse, NodeStatus, ReleasePermitRequest,
        ReleasePermitResponse, RemoveNodeRequest, RemoveNodeResponse, RequestPermitRequest,
        RequestPermitResponse, SetNodeLabelsRequest, SetNodeLabelsResponse, SetPolicyRequest,
        SetPolicyResponse, ShardMap, TransferLeaderRequest, TransferLeaderResponse, UndrainNodeRequest,
        UndrainNodeResponse, WatchClusterRequest, admin_server::Admin,
    },
    peer::v1::Refusal,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{
    cluster_view::{self, Reports},
    error::{self, Refused},
    kv::{Caller, Replies, holding},
    limits::STATUS_DEADLINE,
    validate::Checked,
};
use crate::meta::view;

pub use node::{Node, Operations};
pub use watch::Watches;

/// The service.
pub struct AdminService<N> {
    node: Arc<N>,
    watches: Watches,
}

impl<N: Node> AdminService<N> {
    /// Over `node`. Watches end as `watches` says.
    pub fn new(node: Arc<N>, watches: Watches) -> Self {
        Self { node, watches }
    }

    fn status(&self, refused: &Refused) -> Status {
        error::describe(refused, &self.node.map()).status()
    }

    /// Asks all nodes at once. Silent ones are left out.
    async fn reports(&self) -> Reports {
        let own = self.node.status();
        let own_id = own.node.as_ref().map_or(0, |node| node.node_id);
        let deadline = Instant::now() + STATUS_DEADLINE;
        let meta = self.node.meta();
        let others = meta.nodes.iter().map(view::node_info);
        let others = others.filter(|node| node.node_id != own_id && cluster_view::is_member(node));
        let answers = join_all(others.map(|node| async move {
            let node_id = node.node_id;
            let asked = tokio::time::timeout_at(deadline, self.node.status_of(node, deadline)).await;
            Some((node_id, asked.ok().flatten()?))
        }));
        let mut reports: Reports = answers.await.into_iter().flatten().collect();
        reports.insert(own_id, own);
        reports
    }

    fn own_report(&self) -> Reports {
        let own = self.node.status();
        [(own.node.as_ref().map_or(0, |node| node.node_id), own)].into()
    }

    /// Leaders are told as far as this node knows them, without asking.
    fn known_map(&self) -> ShardMap {
        let own = self.own_report();
        let mut map = cluster_view::shard_map(&self.node.meta(), &own);
        let heard: Vec<_> = own.values().flat_map(|status| &status.replicas).collect();
        for shard in &mut map.shards {
            if let Some(replica) = heard.iter().find(|replica| replica.group_id == shard.group_id) {
                shard.leader_node_id = replica.leader_node_id;
            }
        }
        map
    }

    /// Checks a request and carries it out.
    async fn carry_out<Q, A, F>(
        &self,
        request: Request<Q>,
        check: fn(&Q) -> Checked,
        operation: impl FnOnce(Q, Instant) -> F,
    ) -> Result<Response<A>, Status>
    where
        F: Future<Output = Result<A, Refusal>>,
    {
        let until = Caller::of(&request).until();
        let request = request.into_inner();
        check(&request).map_err(|violation| self.status(&violation.into()))?;
        let answer = operation(request, until).await;
        answer.map(Response::new).map_err(|refusal| self.status(&Refused::Store(refusal)))
    }
}

#[tonic::async_trait]
impl<N: Node> Admin for AdminService<N> {
    async fn get_node_status(
        &self,
        _: Request<GetNodeStatusRequest>,
    ) -> Result<Response<NodeStatus>, Status> {
        Ok(Response::new(self.node.status()))
    }

    async fn get_cluster_status(
        &self,
        _: Request<GetClusterStatusRequest>,
    ) -> Result<Response<ClusterStatus>, Status> {
        let reports = self.reports().await;
        Ok(Response::new(cluster_view::cluster_status(&self.node.meta(), &reports)))
    }

    async fn get_shard_map(
        &self,
        request: Request<GetShardMapRequest>,
    ) -> Result<Response<ShardMap>, Status> {
        let mut map = self.known_map();
        if map.epoch <= request.get_ref().newer_than_epoch {
            map.shards.clear();
            map.nodes.clear();
        }
        Ok(Response::new(map))
    }

    async fn list_nodes(&self, _: Request<ListNodesRequest>) -> Result<Response<ListNodesResponse>, Status> {
        let nodes = self.node.meta().nodes.iter().map(view::node_info).collect();
        Ok(Response::new(ListNodesResponse { nodes }))
    }

    async fn bootstrap(
        &self,
        request: Request<BootstrapRequest>,
    ) -> Result<Response<BootstrapResponse>, Status> {
        self.carry_out(request, check::bootstrap, |request, until| self.node.bootstrap(request, until)).await
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let joined = |JoinRequest { node, cluster_id }: JoinRequest, until| async move {
            let node_id = self.node.join(node.unwrap_or_default(), cluster_id, until).await?.get();
            let map = self.known_map();
            Ok(JoinResponse { cluster_id: map.cluster_id.clone(), node_id, map: Some(map) })
        };
        self.carry_out(request, check::join, joined).await
    }

    async fn drain_node(
        &self,
        request: Request<DrainNodeRequest>,
    ) -> Result<Response<DrainNodeResponse>, Status> {
        self.carry_out(request, check::drain, |request, until| self.node.drain_node(request, until)).await
    }

    async fn undrain_node(
        &self,
        request: Request<UndrainNodeRequest>,
    ) -> Result<Response<UndrainNodeResponse>, Status> {
        self.carry_out(request, check::undrain, |request, until| self.node.undrain_node(request, until)).await
    }

    async fn remove_node(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        self.carry_out(request, check::remove, |request, until| self.node.remove_node(request, until)).await
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        self.carry_out(request, check::transfer, |request, until| self.node.transfer_leader(request, until))
            .await
    }

    async fn request_permit(
        &self,
        request: Request<RequestPermitRequest>,
    ) -> Result<Response<RequestPermitResponse>, Status> {
        self.carry_out(request, check::permit, |request, until| self.node.request_permit(request, until))
            .await
    }

    async fn release_permit(
        &self,
        request: Request<ReleasePermitRequest>,
    ) -> Result<Response<ReleasePermitResponse>, Status> {
        self.carry_out(request, check::release, |request, until| self.node.release_permit(request, until))
            .await
    }

    async fn hand_over(
        &self,
        request: Request<HandOverRequest>,
    ) -> Result<Response<HandOverResponse>, Status> {
        self.carry_out(request, check::hand_over, |request, until| self.node.hand_over(request, until)).await
    }

    async fn set_node_labels(
        &self,
        request: Request<SetNodeLabelsRequest>,
    ) -> Result<Response<SetNodeLabelsResponse>, Status> {
        self.carry_out(request, check::labels, |request, until| self.node.set_node_labels(request, until))
            .await
    }

    async fn set_policy(
        &self,
        request: Request<SetPolicyRequest>,
    ) -> Result<Response<SetPolicyResponse>, Status> {
        self.carry_out(request, check::policy, |request, until| self.node.set_policy(request, until)).await
    }

    async fn get_journal(
        &self,
        request: Request<GetJournalRequest>,
    ) -> Result<Response<GetJournalResponse>, Status> {
        // A thousand entries with the longest reasons take more than a small reply may.
        let share = Caller::of(&request).large_share(true).await.map_err(|refused| self.status(&refused))?;
        let page = |request, until| self.node.get_journal(request, until);
        let page = self.carry_out(request, check::journal, page).await?;
        Ok(holding(page.into_inner(), share))
    }

    type WatchClusterStream = Replies<ClusterEvent>;

    async fn watch_cluster(
        &self,
        request: Request<WatchClusterRequest>,
    ) -> Result<Response<Self::WatchClusterStream>, Status> {
        let caller = Caller::of(&request);
        let share = caller.stream_share().map_err(|refused| self.status(&refused))?;
        let end = self.watches.end_of(&caller);
        let newer_than = request.get_ref().newer_than_epoch;
        Ok(Response::new(watch::events(self.node.clone(), newer_than, end, share)))
    }
}
