//! The service `admin.v1.Admin`: what this node is, what the cluster is, bootstrap and join.
//!
//! The node itself is behind [`Node`]; here requests are checked and answers put together.

use std::{future::Future, sync::Arc};

use futures::future::join_all;
use kv_proto::{
    admin::v1::{
        BootstrapRequest, BootstrapResponse, ClusterStatus, GetClusterStatusRequest, GetNodeStatusRequest,
        GetShardMapRequest, JoinRequest, JoinResponse, ListNodesRequest, ListNodesResponse, NodeInfo,
        NodeStatus, ShardMap, admin_server::Admin,
    },
    disk::v1::MetaRecord,
    peer::v1::Refusal,
};
use kv_topology::{ClusterMap, NodeId};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{
    cluster_view::{self, Reports},
    deadline::Deadline,
    error::{self, Refused},
    limits::STATUS_DEADLINE,
    validate::Violation,
};
use crate::meta::view;

/// Most shards of a cluster.
const SHARDS_MAX: u32 = 256;
/// Longest name, token, zone or version, bytes.
const NAME_BYTES_MAX: usize = 253;

/// The node, as its administrators see it.
pub trait Node: Send + Sync + 'static {
    /// What this node is and what its replicas do, without asking anybody.
    fn status(&self) -> NodeStatus;

    /// The same of another node; `None` when it does not answer until `deadline`.
    fn status_of(&self, node: NodeInfo, deadline: Instant)
    -> impl Future<Output = Option<NodeStatus>> + Send;

    /// The registry and map that this node knows.
    fn meta(&self) -> Arc<MetaRecord>;

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

/// The service.
pub struct AdminService<N>(Arc<N>);

impl<N: Node> AdminService<N> {
    /// Over `node`.
    pub fn new(node: Arc<N>) -> Self {
        Self(node)
    }

    fn status(&self, refused: &Refused) -> Status {
        error::describe(refused, &self.0.map()).status()
    }

    /// Asks all nodes at once. Silent ones are left out.
    async fn reports(&self) -> Reports {
        let own = self.0.status();
        let own_id = own.node.as_ref().map_or(0, |node| node.node_id);
        let deadline = Instant::now() + STATUS_DEADLINE;
        let meta = self.0.meta();
        let others = meta.nodes.iter().map(view::node_info);
        let others = others.filter(|node| node.node_id != own_id && cluster_view::is_member(node));
        let answers = join_all(others.map(|node| async move {
            let node_id = node.node_id;
            let asked = tokio::time::timeout_at(deadline, self.0.status_of(node, deadline)).await;
            Some((node_id, asked.ok().flatten()?))
        }));
        let mut reports: Reports = answers.await.into_iter().flatten().collect();
        reports.insert(own_id, own);
        reports
    }

    fn own_report(&self) -> Reports {
        let own = self.0.status();
        [(own.node.as_ref().map_or(0, |node| node.node_id), own)].into()
    }

    /// Leaders are told as far as this node knows them, without asking.
    fn known_map(&self) -> ShardMap {
        let own = self.own_report();
        let mut map = cluster_view::shard_map(&self.0.meta(), &own);
        let heard: Vec<_> = own.values().flat_map(|status| &status.replicas).collect();
        for shard in &mut map.shards {
            if let Some(replica) = heard.iter().find(|replica| replica.group_id == shard.group_id) {
                shard.leader_node_id = replica.leader_node_id;
            }
        }
        map
    }
}

#[tonic::async_trait]
impl<N: Node> Admin for AdminService<N> {
    async fn get_node_status(
        &self,
        _: Request<GetNodeStatusRequest>,
    ) -> Result<Response<NodeStatus>, Status> {
        Ok(Response::new(self.0.status()))
    }

    async fn get_cluster_status(
        &self,
        _: Request<GetClusterStatusRequest>,
    ) -> Result<Response<ClusterStatus>, Status> {
        let reports = self.reports().await;
        Ok(Response::new(cluster_view::cluster_status(&self.0.meta(), &reports)))
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
        let nodes = self.0.meta().nodes.iter().map(view::node_info).collect();
        Ok(Response::new(ListNodesResponse { nodes }))
    }

    async fn bootstrap(
        &self,
        request: Request<BootstrapRequest>,
    ) -> Result<Response<BootstrapResponse>, Status> {
        let deadline = Deadline::of(request.metadata(), Instant::now()).unary(Instant::now());
        let request = request.into_inner();
        check_bootstrap(&request).map_err(|violation| self.status(&violation.into()))?;
        let done = self.0.bootstrap(request, deadline).await;
        done.map(Response::new).map_err(|refusal| self.status(&Refused::Store(refusal)))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let deadline = Deadline::of(request.metadata(), Instant::now()).unary(Instant::now());
        let request = request.into_inner();
        let node = check_join(request.node).map_err(|violation| self.status(&violation.into()))?;
        let joined = self.0.join(node, request.cluster_id, deadline).await;
        let node_id = joined.map_err(|refusal| self.status(&Refused::Store(refusal)))?.get();
        let map = self.known_map();
        Ok(Response::new(JoinResponse { cluster_id: map.cluster_id.clone(), node_id, map: Some(map) }))
    }
}

fn check_bootstrap(request: &BootstrapRequest) -> Result<(), Violation> {
    short("token", &request.token)?;
    if request.token.is_empty() {
        return Err(Violation::new("token", "must not be empty: it makes a retry the same bootstrap"));
    }
    if request.shards > SHARDS_MAX {
        return Err(Violation::new("shards", format!("must be 1 to {SHARDS_MAX}, or 0 for the default")));
    }
    if !matches!(request.replication_factor, 0 | 1 | 3 | 5 | 7) {
        return Err(Violation::new("replication_factor", "must be 1, 3, 5 or 7, or 0 for the default"));
    }
    Ok(())
}

fn check_join(node: Option<NodeInfo>) -> Result<NodeInfo, Violation> {
    let node = node.ok_or_else(|| Violation::new("node", "must be given"))?;
    for (field, text) in
        [("node.name", &node.name), ("node.zone", &node.zone), ("node.version", &node.version)]
    {
        short(field, text)?;
    }
    if !node.name.starts_with(|first: char| first.is_ascii_alphabetic()) {
        return Err(Violation::new("node.name", "must begin with a letter"));
    }
    if uuid::Uuid::parse_str(&node.disk_uuid).map_or(true, |uuid| uuid.is_nil()) {
        return Err(Violation::new("node.disk_uuid", "must be a UUID"));
    }
    address("node.client_address", &node.client_address)?;
    address("node.peer_address", &node.peer_address)?;
    Ok(node)
}

fn short(field: &str, text: &str) -> Result<(), Violation> {
    if text.len() > NAME_BYTES_MAX {
        return Err(Violation::new(field, format!("{} B, at most {NAME_BYTES_MAX} are allowed", text.len())));
    }
    Ok(())
}

/// HOST:PORT, where HOST may be an IPv6 address in brackets.
fn address(field: &str, text: &str) -> Result<(), Violation> {
    let well_formed = text.rsplit_once(':').is_some_and(|(host, port)| {
        let is_bracketed = host.starts_with('[') && host.ends_with(']');
        let has_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        has_port && !host.is_empty() && (is_bracketed || !host.contains([':', '/', ' ', '@']))
    });
    if well_formed && text.len() <= NAME_BYTES_MAX + 6 {
        return Ok(());
    }
    Err(Violation::new(field, "must be HOST:PORT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeInfo {
        NodeInfo {
            name: "n1".to_owned(),
            disk_uuid: "67e55044-10b1-426f-9247-bb680e5fe0c8".to_owned(),
            client_address: "127.0.0.1:50051".to_owned(),
            peer_address: "[::1]:50061".to_owned(),
            ..NodeInfo::default()
        }
    }

    #[test]
    fn a_join_without_a_proper_name_disk_or_address_names_the_field() {
        assert!(check_join(Some(node())).is_ok());
        assert_eq!(check_join(None).expect_err("no node").field, "node");
        type Spoil = fn(&mut NodeInfo);
        let table: [(&str, Spoil); 7] = [
            ("node.name", |node| node.name = String::new()),
            ("node.name", |node| node.name = "1st".to_owned()),
            ("node.name", |node| node.name = "n".repeat(NAME_BYTES_MAX + 1)),
            ("node.disk_uuid", |node| node.disk_uuid = "disk".to_owned()),
            ("node.client_address", |node| node.client_address = "localhost".to_owned()),
            ("node.peer_address", |node| node.peer_address = "::1:50061".to_owned()),
            ("node.peer_address", |node| node.peer_address = "host:0".to_owned()),
        ];
        for (field, spoil) in table {
            let mut node = node();
            spoil(&mut node);
            assert_eq!(check_join(Some(node)).expect_err(field).field, field);
        }
    }

    #[test]
    fn a_bootstrap_names_a_token_and_a_sensible_size() {
        let request = |token: &str, shards, replication_factor| BootstrapRequest {
            token: token.to_owned(),
            shards,
            replication_factor,
        };
        assert!(check_bootstrap(&request("t", 0, 0)).is_ok());
        assert!(check_bootstrap(&request("t", 256, 7)).is_ok());
        for (field, request) in [
            ("token", request("", 0, 0)),
            ("shards", request("t", 257, 3)),
            ("replication_factor", request("t", 8, 2)),
        ] {
            assert_eq!(check_bootstrap(&request).expect_err(field).field, field);
        }
    }
}
