//! The node as its administrators see it.

use std::sync::Arc;

use kv_proto::{
    admin::v1::{BootstrapRequest, BootstrapResponse, NodeInfo, NodeStatus, Phase},
    disk::v1::{MetaRecord, NodeRecord, NodeState},
    peer::v1::{Refusal, refusal::Kind},
};
use kv_topology::{ClusterMap, NodeId};
use tokio::{
    sync::oneshot,
    time::{Duration, Instant, timeout_at},
};

use super::{core::Core, formation, registration};
use crate::{api::admin::Node, meta::view, refusal, router::Maps};

/// A node that was heard of within this time holds its name.
pub(super) const NAME_HELD_FOR: Duration = Duration::from_secs(10);
/// For the answer of a node that was not heard of and may hold its name.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

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

    async fn meta_newer_than(&self, epoch: u64) -> Arc<MetaRecord> {
        self.maps.registry.newer_than(epoch).await.record.clone()
    }

    fn map(&self) -> Arc<ClusterMap> {
        self.maps.map()
    }

    async fn bootstrap(
        &self,
        request: BootstrapRequest,
        deadline: Instant,
    ) -> Result<BootstrapResponse, Refusal> {
        let unfinished =
            || refusal::outcome_unknown("the cluster is still being founded; ask again with this token");
        // Whoever founds holds it to the end.
        let forming =
            timeout_at(deadline, self.forming.clone().lock_owned()).await.map_err(|_| unfinished())?;
        let founded = match self.identity() {
            Some(identity) => {
                let token =
                    self.founding().map_or_else(|| self.meta().bootstrap_token.clone(), |own| own.token);
                if request.token.is_empty() || request.token != token {
                    return Err(already_in(&identity.cluster_id));
                }
                self.founding().is_none()
            }
            None => false,
        };
        if !founded {
            // In a task of the node: a caller that gives up does not cut the founding off.
            let this = self.me.upgrade().ok_or_else(|| refusal::internal("the node is gone"))?;
            let (done, result) = oneshot::channel();
            self.spawner.spawn("founding", async move {
                let _forming = forming;
                // The caller may have given up.
                done.send(this.found_for(&request).await).ok();
            });
            match timeout_at(deadline, result).await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) => return Err(refusal::internal(format!("{error:#}"))),
                Ok(Err(_)) | Err(_) => return Err(unfinished()),
            }
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
        let record = view::node_record(&node);
        let holds = |known: &&NodeRecord| {
            known.name == record.name
                && known.disk_uuid != record.disk_uuid
                && known.state() != NodeState::Removed
        };
        let held = match meta.nodes.iter().find(holds) {
            Some(holder) => self.was_heard_lately(NodeId(holder.node_id)) || answers(holder, deadline).await,
            None => false,
        };
        let registered = registration::register(&*self.store, record, held, deadline).await?;
        self.maps.refresh();
        let known = self.maps.registry.newer_than(registered.epoch.saturating_sub(1));
        timeout_at(deadline, known).await.map_err(|_| {
            refusal::not_applied(refusal::STARTING, "this node's map is older than the registration")
        })?;
        Ok(NodeId(registered.node_id))
    }
}

fn already_in(cluster_id: &str) -> Refusal {
    Refusal {
        kind: Kind::FailedPrecondition.into(),
        reason: "ALREADY_IN_A_CLUSTER".to_owned(),
        message: format!("this node belongs to cluster {cluster_id}"),
        ..Refusal::default()
    }
}

impl Core {
    /// Founds a cluster as it was asked for, or finishes what was begun.
    async fn found_for(&self, request: &BootstrapRequest) -> anyhow::Result<()> {
        if self.identity().is_some() {
            self.finish_founding().await?;
        } else {
            let shards = if request.shards == 0 { self.config.shards } else { request.shards };
            let factor = match request.replication_factor {
                0 => self.config.replication_factor,
                factor => factor,
            };
            self.found(&request.token, shards, factor).await?;
        }
        self.enter(Phase::Running, "");
        Ok(())
    }

    /// Whether the node was heard of within [`NAME_HELD_FOR`], or might not have had the time to say anything.
    pub(super) fn was_heard_lately(&self, node: NodeId) -> bool {
        let Some(member) = self.member.get() else { return true };
        let heard = member.transport.heard_from(node).map(|at| at.elapsed());
        node == member.identity.node || holds_its_name(heard, self.started.elapsed())
    }
}

/// Whether the node of this record answers at its address: it may be alive and have nothing to do with the node that is
/// asked. Another one at the address, such as the one that wants the name, does not count.
pub(super) async fn answers(holder: &NodeRecord, deadline: Instant) -> bool {
    let deadline = deadline.min(Instant::now() + ANSWER_TIMEOUT);
    let status = formation::status_of(&holder.client_address, deadline).await;
    status.is_some_and(|status| is_in_service(holder, &status))
}

/// Whether what answered has the holder's disk, and is not done with its cluster.
fn is_in_service(holder: &NodeRecord, status: &NodeStatus) -> bool {
    let disk = status.node.as_ref().map(|node| view::node_record(node).disk_uuid);
    disk.as_ref() == Some(&holder.disk_uuid) && status.phase() != Phase::Failed
}

/// Whether a node that was heard of so long ago may be alive. One that this node has not heard of since it started may
/// not have had the time to say anything.
fn holds_its_name(heard: Option<Duration>, uptime: Duration) -> bool {
    heard.unwrap_or(uptime) <= NAME_HELD_FOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_disk_that_holds_a_name_keeps_it() {
        let status = |disk: u8, phase: Phase| {
            let record = NodeRecord { disk_uuid: vec![disk; 16].into(), ..NodeRecord::default() };
            NodeStatus { node: Some(view::node_info(&record)), phase: phase.into(), ..NodeStatus::default() }
        };
        let holder = NodeRecord { disk_uuid: vec![1; 16].into(), ..NodeRecord::default() };
        assert!(is_in_service(&holder, &status(1, Phase::Running)));
        assert!(is_in_service(&holder, &status(1, Phase::Starting)));
        assert!(!is_in_service(&holder, &status(2, Phase::Running)), "the new node, at the same address");
        assert!(!is_in_service(&holder, &status(1, Phase::Failed)), "it was removed or fenced");
        assert!(!is_in_service(&holder, &NodeStatus::default()));
    }

    #[test]
    fn a_node_that_was_not_heard_of_yet_holds_its_name_for_as_long_as_one_that_was() {
        let seconds = Duration::from_secs;
        assert!(holds_its_name(Some(seconds(3)), seconds(100)));
        assert!(!holds_its_name(Some(seconds(11)), seconds(100)));
        assert!(holds_its_name(None, seconds(3)), "just restarted");
        assert!(!holds_its_name(None, seconds(11)));
    }
}
