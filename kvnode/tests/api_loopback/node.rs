//! A node that does what it is asked at once, notes what that was, and refuses by script.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kv_proto::{
    admin::v1::{
        BootstrapRequest, BootstrapResponse, DrainNodeRequest, DrainNodeResponse, GetJournalRequest,
        GetJournalResponse, HandOverRequest, HandOverResponse, JournalEntry, NodeInfo, NodeState, NodeStatus,
        Objection, Phase, Policy, ReleasePermitRequest, ReleasePermitResponse, RemoveNodeRequest,
        RemoveNodeResponse, RequestPermitRequest, RequestPermitResponse, SetNodeLabelsRequest,
        SetNodeLabelsResponse, SetPolicyRequest, SetPolicyResponse, TransferLeaderRequest,
        TransferLeaderResponse, UndrainNodeRequest, UndrainNodeResponse,
    },
    disk::v1::MetaRecord,
    peer::v1::{Refusal, refusal::Kind},
};
use kv_topology::{ClusterMap, NodeId};
use kvnode::{
    api::admin::{Node, Operations},
    meta::registry::Registry,
};
use tokio::time::Instant;

use crate::fake;

/// The token of every permit.
pub const TOKEN: &str = "secret";

/// A node without a cluster. What it is asked about is always node 3.
pub struct FakeNode {
    registry: Registry,
    phase: Mutex<Phase>,
    asked: Mutex<Vec<String>>,
    refusal: Mutex<Option<Refusal>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn record(epoch: u64) -> MetaRecord {
    MetaRecord { cluster_id: "fake".to_owned(), epoch, ..MetaRecord::default() }
}

impl Default for FakeNode {
    fn default() -> Self {
        let registry = Registry::new(record(4), Box::new(|_| {})).expect("a possible map");
        Self {
            registry,
            phase: Mutex::new(Phase::Running),
            asked: Mutex::default(),
            refusal: Mutex::default(),
        }
    }
}

impl FakeNode {
    /// The record is at this epoch from now on.
    pub fn reach(&self, epoch: u64) {
        self.registry.offer(record(epoch));
    }

    /// It is in this phase from now on.
    pub fn enter(&self, phase: Phase) {
        *lock(&self.phase) = phase;
    }

    /// The next operation is refused.
    pub fn refuse(&self, refusal: Refusal) {
        *lock(&self.refusal) = Some(refusal);
    }

    /// What was asked for since the last look.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.asked))
    }

    /// Notes who asked for what, and answers.
    fn note<T>(&self, asked: String, answer: T) -> Result<T, Refusal> {
        lock(&self.asked).push(asked);
        lock(&self.refusal).take().map_or(Ok(answer), Err)
    }
}

impl Node for FakeNode {
    fn status(&self) -> NodeStatus {
        let phase = (*lock(&self.phase)).into();
        NodeStatus { cluster_id: "fake".to_owned(), ready: true, phase, ..NodeStatus::default() }
    }

    async fn status_of(&self, _: NodeInfo, _: Instant) -> Option<NodeStatus> {
        None
    }

    fn meta(&self) -> Arc<MetaRecord> {
        self.registry.view().record.clone()
    }

    async fn meta_newer_than(&self, epoch: u64) -> Arc<MetaRecord> {
        self.registry.newer_than(epoch).await.record.clone()
    }

    fn map(&self) -> Arc<ClusterMap> {
        Arc::default()
    }

    async fn bootstrap(&self, _: BootstrapRequest, _: Instant) -> Result<BootstrapResponse, Refusal> {
        Err(fake::refusal(Kind::FailedPrecondition, "NOT_EMPTY"))
    }

    async fn join(&self, _: NodeInfo, _: String, _: Instant) -> Result<NodeId, Refusal> {
        Ok(NodeId(2))
    }
}

impl Operations for FakeNode {
    async fn drain_node(&self, request: DrainNodeRequest, _: Instant) -> Result<DrainNodeResponse, Refusal> {
        let DrainNodeRequest { node, actor, reason } = request;
        let state = NodeState::Draining.into();
        self.note(format!("drain {node} by {actor}: {reason}"), DrainNodeResponse { node_id: 3, state })
    }

    async fn undrain_node(
        &self,
        request: UndrainNodeRequest,
        _: Instant,
    ) -> Result<UndrainNodeResponse, Refusal> {
        let state = NodeState::Active.into();
        self.note(format!("undrain {}", request.node), UndrainNodeResponse { node_id: 3, state })
    }

    async fn remove_node(
        &self,
        request: RemoveNodeRequest,
        _: Instant,
    ) -> Result<RemoveNodeResponse, Refusal> {
        let lost = if request.lost { " lost" } else { "" };
        self.note(format!("remove {}{lost}", request.node), RemoveNodeResponse { node_id: 3 })
    }

    async fn transfer_leader(
        &self,
        request: TransferLeaderRequest,
        _: Instant,
    ) -> Result<TransferLeaderResponse, Refusal> {
        let TransferLeaderRequest { shard_id, to_node, .. } = request;
        let answer = TransferLeaderResponse { leader_node_id: 3 };
        self.note(format!("transfer {shard_id} to {to_node}"), answer)
    }

    /// Refused is node `risky`.
    async fn request_permit(
        &self,
        request: RequestPermitRequest,
        _: Instant,
    ) -> Result<RequestPermitResponse, Refusal> {
        let RequestPermitRequest { node, ttl_ms, .. } = request;
        let objection = Objection {
            shard_id: Some(5),
            reason: "QUORUM_AT_RISK".to_owned(),
            message: "scripted".to_owned(),
        };
        let answer = if node == "risky" {
            RequestPermitResponse { objections: vec![objection], node_id: 3, ..Default::default() }
        } else {
            RequestPermitResponse {
                granted: true,
                token: TOKEN.to_owned(),
                ttl_ms,
                node_id: 3,
                ..Default::default()
            }
        };
        self.note(format!("permit {node}"), answer)
    }

    async fn release_permit(
        &self,
        request: ReleasePermitRequest,
        _: Instant,
    ) -> Result<ReleasePermitResponse, Refusal> {
        self.note(format!("release {}", request.token), ReleasePermitResponse { released: true })
    }

    async fn hand_over(&self, request: HandOverRequest, _: Instant) -> Result<HandOverResponse, Refusal> {
        let HandOverRequest { node, permit_token } = request;
        self.note(format!("hand over {node} with {permit_token}"), HandOverResponse {})
    }

    async fn set_node_labels(
        &self,
        request: SetNodeLabelsRequest,
        _: Instant,
    ) -> Result<SetNodeLabelsResponse, Refusal> {
        let SetNodeLabelsRequest { node, zone, .. } = request;
        self.note(format!("label {node} {zone:?}"), SetNodeLabelsResponse { node_id: 3 })
    }

    async fn set_policy(&self, request: SetPolicyRequest, _: Instant) -> Result<SetPolicyResponse, Refusal> {
        let replication_factor = request.replication_factor.unwrap_or(3);
        let policy = Some(Policy { replication_factor, ..Policy::default() });
        self.note(format!("factor {:?}", request.replication_factor), SetPolicyResponse { policy })
    }

    async fn get_journal(
        &self,
        request: GetJournalRequest,
        _: Instant,
    ) -> Result<GetJournalResponse, Refusal> {
        let GetJournalRequest { shard_id, node, limit, before } = request;
        let entry = JournalEntry { sequence: 9, event: "scripted".to_owned(), ..JournalEntry::default() };
        let answer = GetJournalResponse { entries: vec![entry], next_before: 9 };
        self.note(format!("journal of {shard_id:?} {node:?} {limit} {before}"), answer)
    }
}
