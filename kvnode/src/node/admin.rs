//! The node as its administrators see it.

use std::sync::Arc;

use kv_proto::{
    admin::v1::{BootstrapRequest, BootstrapResponse, NodeInfo, NodeStatus, Phase},
    disk::v1::MetaRecord,
    peer::v1::{Refusal, refusal::Kind},
};
use kv_topology::{ClusterMap, NodeId};
use tokio::time::{Duration, Instant, timeout_at};

use super::{core::Core, formation, registration};
use crate::{api::admin::Node, meta::view, refusal, router::Maps};

/// A node that was heard of within this time holds its name.
const NAME_HELD_FOR: Duration = Duration::from_secs(10);

impl Node for Core {
    fn status(&self) -> NodeStatus {
        self.node_status()
    }

    async fn status_of(&self, node: NodeInfo, deadline: Instant) -> Option<NodeStatus> {
        formation::status_of(&node.client_address, deadline).await
    }

    fn meta(&self) -> Arc<MetaRecord> {
        self.maps.meta()
    }

    fn map(&self) -> Arc<ClusterMap> {
        self.maps.map()
    }

    async fn bootstrap(
        &self,
        request: BootstrapRequest,
        deadline: Instant,
    ) -> Result<BootstrapResponse, Refusal> {
        let _one_at_a_time = self.forming.lock().await;
        if let Some(identity) = self.identity() {
            let kept = self.stores.kept_map();
            if kept.bootstrap_token == request.token && !request.token.is_empty() {
                return Ok(BootstrapResponse {
                    cluster_id: identity.cluster_id,
                    node_id: identity.node.get(),
                });
            }
            return Err(Refusal {
                kind: Kind::FailedPrecondition.into(),
                reason: "ALREADY_IN_A_CLUSTER".to_owned(),
                message: format!("this node belongs to cluster {}", identity.cluster_id),
                ..Refusal::default()
            });
        }
        let shards = if request.shards == 0 { self.config.shards } else { request.shards };
        let factor = match request.replication_factor {
            0 => self.config.replication_factor,
            factor => factor,
        };
        let founded = timeout_at(deadline, self.found(&request.token, shards, factor)).await;
        match founded {
            Ok(Ok(())) => self.enter(Phase::Running, ""),
            Ok(Err(error)) => return Err(refusal::internal(format!("{error:#}"))),
            Err(_) => return Err(refusal::outcome_unknown("the cluster is still being founded")),
        }
        let identity = self.identity().ok_or_else(|| refusal::internal("founded, and yet nowhere"))?;
        Ok(BootstrapResponse { cluster_id: identity.cluster_id, node_id: identity.node.get() })
    }

    async fn join(&self, node: NodeInfo, cluster_id: String, deadline: Instant) -> Result<NodeId, Refusal> {
        let meta = self.maps.meta();
        if !cluster_id.is_empty() && cluster_id != meta.cluster_id {
            return Err(Refusal {
                kind: Kind::FailedPrecondition.into(),
                reason: "OTHER_CLUSTER".to_owned(),
                message: format!("this is cluster {}, not {cluster_id}", meta.cluster_id),
                ..Refusal::default()
            });
        }
        let held = meta.nodes.iter().any(|known| {
            let other_disk = *known.disk_uuid != *view::node_record(&node).disk_uuid;
            known.name == node.name && other_disk && self.heard_within(NodeId(known.node_id), NAME_HELD_FOR)
        });
        let record = view::node_record(&node);
        let registered = registration::register(&*self.store, record, held, deadline).await?;
        self.maps.refresh();
        let known = self.maps.registry.newer_than(registered.epoch.saturating_sub(1));
        timeout_at(deadline, known).await.map_err(|_| {
            refusal::not_applied(refusal::STARTING, "this node's map is older than the registration")
        })?;
        Ok(NodeId(registered.node_id))
    }
}

impl Core {
    fn heard_within(&self, node: NodeId, time: Duration) -> bool {
        let Some(member) = self.member.get() else { return false };
        let heard = member.transport.heard_from(node).is_some_and(|at| at.elapsed() <= time);
        node == member.identity.node || heard
    }
}
