//! What a person or the operator asks of a cluster, without the client library: one node asked, one call, no retries. Nodes
//! are named by their name or their id. With patience the same is in [`crate::operations`].

use std::{net::SocketAddr, time::Duration};

use kv_proto::admin::v1::{
    ClusterEvent, ClusterStatus, DrainNodeRequest, GetClusterStatusRequest, GetJournalRequest,
    HandOverRequest, JournalEntry, ListNodesRequest, NodeInfo, NodeState, Policy, ReleasePermitRequest,
    RemoveNodeRequest, RequestPermitRequest, RequestPermitResponse, SetNodeLabelsRequest, SetPolicyRequest,
    TransferLeaderRequest, UndrainNodeRequest, WatchClusterRequest, admin_client::AdminClient,
};
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

/// Longer than a node waits for anything before it answers: a transfer, a hand-over.
pub const CALL_DEADLINE: Duration = Duration::from_secs(20);

/// Who asks. The journal tells it.
pub const ACTOR: &str = "cluster tests";

/// Entries of a page of the journal.
const PAGE_ENTRIES: u32 = 1_000;

/// The administration of one node, dialled when first used and again after the connection broke.
#[derive(Clone, Debug)]
pub struct Admin(AdminClient<Channel>);

/// How a node is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is empty.
    Empty,
    /// It will not come back.
    Lost,
}

impl Admin {
    /// Of the node whose client port is `address`.
    ///
    /// # Panics
    /// Never: a socket address always makes a URI.
    pub fn new(address: SocketAddr) -> Self {
        let endpoint =
            Endpoint::from_shared(format!("http://{address}")).expect("a socket address makes a URI");
        let channel = endpoint.connect_timeout(CALL_DEADLINE).timeout(CALL_DEADLINE).connect_lazy();
        Self(AdminClient::new(channel))
    }

    fn client(&self) -> AdminClient<Channel> {
        self.0.clone()
    }

    /// The whole cluster as this node sees it.
    ///
    /// # Errors
    /// When the node cannot answer.
    pub async fn cluster_status(&self) -> Result<ClusterStatus, Status> {
        Ok(self.client().get_cluster_status(GetClusterStatusRequest {}).await?.into_inner())
    }

    /// The registry, removed nodes included.
    ///
    /// # Errors
    /// When the node cannot answer.
    pub async fn nodes(&self) -> Result<Vec<NodeInfo>, Status> {
        Ok(self.client().list_nodes(ListNodesRequest {}).await?.into_inner().nodes)
    }

    /// Begins to move everything away from a node.
    ///
    /// # Errors
    /// When it is refused, or the node cannot answer.
    pub async fn drain(&self, node: &str, reason: &str) -> Result<NodeState, Status> {
        let request =
            DrainNodeRequest { node: node.to_owned(), actor: ACTOR.to_owned(), reason: reason.to_owned() };
        Ok(self.client().drain_node(request).await?.into_inner().state())
    }

    /// Cancels a drain.
    ///
    /// # Errors
    /// When it is refused, or the node cannot answer.
    pub async fn undrain(&self, node: &str, reason: &str) -> Result<NodeState, Status> {
        let request =
            UndrainNodeRequest { node: node.to_owned(), actor: ACTOR.to_owned(), reason: reason.to_owned() };
        Ok(self.client().undrain_node(request).await?.into_inner().state())
    }

    /// Takes a node out of the cluster, at the cost of no data. Gives its id.
    ///
    /// # Errors
    /// When it is refused, or the node cannot answer.
    pub async fn remove(&self, node: &str, removal: Removal) -> Result<u64, Status> {
        let request = RemoveNodeRequest {
            node: node.to_owned(),
            lost: removal == Removal::Lost,
            accept_data_loss: false,
            actor: ACTOR.to_owned(),
            reason: String::new(),
        };
        Ok(self.client().remove_node(request).await?.into_inner().node_id)
    }

    /// Lets another node lead a shard. Gives the id of the node that leads it then.
    ///
    /// # Errors
    /// When it is refused, or the node cannot answer.
    pub async fn transfer_leader(&self, shard: u32, to: &str) -> Result<u64, Status> {
        let request = TransferLeaderRequest {
            shard_id: shard,
            to_node: to.to_owned(),
            actor: ACTOR.to_owned(),
            reason: String::new(),
        };
        Ok(self.client().transfer_leader(request).await?.into_inner().leader_node_id)
    }

    /// Asks whether a node may be restarted now, and takes the permit when it may. A refusal is no error: it is in the answer.
    ///
    /// # Errors
    /// When the node cannot answer.
    pub async fn permit(&self, node: &str, ttl: Duration) -> Result<RequestPermitResponse, Status> {
        self.ask_permit(node, ttl, false).await
    }

    /// What the answer would be.
    ///
    /// # Errors
    /// When the node cannot answer.
    pub async fn would_permit(&self, node: &str) -> Result<RequestPermitResponse, Status> {
        self.ask_permit(node, Duration::ZERO, true).await
    }

    async fn ask_permit(
        &self,
        node: &str,
        ttl: Duration,
        dry_run: bool,
    ) -> Result<RequestPermitResponse, Status> {
        let request = RequestPermitRequest {
            node: node.to_owned(),
            ttl_ms: u64::try_from(ttl.as_millis()).expect("tests take less than 500 million years"),
            actor: ACTOR.to_owned(),
            reason: String::new(),
            dry_run,
        };
        Ok(self.client().request_permit(request).await?.into_inner())
    }

    /// Gives a permit back.
    ///
    /// # Errors
    /// When the node cannot answer.
    pub async fn release(&self, token: &str) -> Result<(), Status> {
        let request = ReleasePermitRequest { token: token.to_owned(), actor: ACTOR.to_owned() };
        self.client().release_permit(request).await.map(drop)
    }

    /// Lets a node give its leaderships away.
    ///
    /// # Errors
    /// When it is refused, or the node cannot answer.
    pub async fn hand_over(&self, node: &str, token: &str) -> Result<(), Status> {
        let request = HandOverRequest { node: node.to_owned(), permit_token: token.to_owned() };
        self.client().hand_over(request).await.map(drop)
    }

    /// Says in which zone a node is. `None`: what the node tells counts again.
    ///
    /// # Errors
    /// When it is refused, or the node cannot answer.
    pub async fn label(&self, node: &str, zone: Option<&str>) -> Result<u64, Status> {
        let request = SetNodeLabelsRequest {
            node: node.to_owned(),
            zone: zone.map(str::to_owned),
            actor: ACTOR.to_owned(),
        };
        Ok(self.client().set_node_labels(request).await?.into_inner().node_id)
    }

    /// Wishes another replication factor.
    ///
    /// # Errors
    /// When it is refused, or the node cannot answer.
    pub async fn set_replication_factor(&self, factor: u32) -> Result<Policy, Status> {
        self.set_policy(SetPolicyRequest { replication_factor: Some(factor), ..policy_request() }).await
    }

    /// Changes for how long a node may be silent before it counts as lost.
    ///
    /// # Errors
    /// When it is refused, or the node cannot answer.
    pub async fn set_lost_node_grace(&self, grace: Duration) -> Result<Policy, Status> {
        let grace_ms = u64::try_from(grace.as_millis()).expect("tests take less than 500 million years");
        self.set_policy(SetPolicyRequest { lost_node_grace_ms: Some(grace_ms), ..policy_request() }).await
    }

    /// Changes how many replicas may move at a time.
    ///
    /// # Errors
    /// When it is refused, or the node cannot answer.
    pub async fn set_moves_at_once(&self, moves: u32) -> Result<Policy, Status> {
        self.set_policy(SetPolicyRequest { moves_at_once: Some(moves), ..policy_request() }).await
    }

    async fn set_policy(&self, request: SetPolicyRequest) -> Result<Policy, Status> {
        Ok(self.client().set_policy(request).await?.into_inner().policy.unwrap_or_default())
    }

    /// The whole journal, the oldest entry first.
    ///
    /// # Errors
    /// When the node cannot answer.
    pub async fn journal(&self) -> Result<Vec<JournalEntry>, Status> {
        let mut entries = Vec::new();
        let mut before = 0;
        loop {
            let request = GetJournalRequest { limit: PAGE_ENTRIES, before, ..GetJournalRequest::default() };
            let page = self.client().get_journal(request).await?.into_inner();
            entries.extend(page.entries);
            if page.next_before == 0 {
                entries.reverse();
                return Ok(entries);
            }
            before = page.next_before;
        }
    }

    /// The state of the cluster, at once and after each change.
    ///
    /// # Errors
    /// When the node cannot answer.
    pub async fn watch(&self) -> Result<Streaming<ClusterEvent>, Status> {
        let request = WatchClusterRequest { newer_than_epoch: 0 };
        Ok(self.client().watch_cluster(request).await?.into_inner())
    }
}

fn policy_request() -> SetPolicyRequest {
    SetPolicyRequest { actor: ACTOR.to_owned(), ..SetPolicyRequest::default() }
}
