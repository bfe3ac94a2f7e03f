//! [`GroupControl`] over openraft: the last place that sees its types.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use kv_proto::{
    admin::v1::{ReplicaLag, ReplicaStatus, Role, VoterSet},
    disk::v1 as disk,
    peer::v1::{GroupDescription, Refusal},
};
use kv_topology::{GroupId, NodeId, ReplicaId, ShardId};
use openraft::{Raft, ServerState, metrics::RaftMetrics, storage::RaftStateMachine};
use openraft_rt::{AsyncRuntime, watch::WatchReceiver};
use tokio::time::{Instant, sleep, timeout};

use super::{
    membership::Membership,
    read_gate::leader_of,
    replica::{GroupControl, ReadState},
    type_config::TypeConfig,
};
use crate::log::LogView;

/// A hand-over that takes longer is given up: the election after the stop finds a leader too.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);
/// A successor that has not taken over by then does not: it needs a sync of its log and one round of votes.
const SUCCESSION_TIMEOUT: Duration = Duration::from_millis(400);
/// A replica that has not stopped by then waits for its disk; it ends with the process.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a hand-over looks whether the target has taken over.
const HAND_OVER_POLL: Duration = Duration::from_millis(10);

/// When a node was last heard of.
pub type Heard = Arc<dyn Fn(NodeId) -> Option<Instant> + Send + Sync>;

/// The Raft of one replica.
pub struct RaftControl<RT, SM>
where
    RT: AsyncRuntime,
    SM: RaftStateMachine<TypeConfig<RT>>,
{
    /// The shard that it is a copy of.
    pub shard: ShardId,
    /// Its group.
    pub group: GroupId,
    /// This node.
    pub node: NodeId,
    /// openraft.
    pub raft: Raft<TypeConfig<RT>, SM>,
    /// For the revision in the status.
    pub state: Arc<dyn ReadState>,
    /// For whether a successor is there.
    pub heard: Heard,
    /// For how much of it others lack.
    pub log: LogView,
}

impl<RT, SM> Clone for RaftControl<RT, SM>
where
    RT: AsyncRuntime,
    SM: RaftStateMachine<TypeConfig<RT>>,
{
    fn clone(&self) -> Self {
        let (raft, state) = (self.raft.clone(), self.state.clone());
        Self { raft, state, heard: self.heard.clone(), log: self.log.clone(), ..*self }
    }
}

impl<RT, SM> RaftControl<RT, SM>
where
    RT: AsyncRuntime,
    SM: RaftStateMachine<TypeConfig<RT>>,
{
    fn membership(&self) -> Membership<'_, RT, SM> {
        Membership { shard: self.shard, raft: &self.raft, heard: &self.heard, log: &self.log }
    }

    /// The other voters that were heard of lately, the one that has caught up best first.
    fn successors(&self) -> Vec<ReplicaId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let Some(replication) = metrics.replication.as_ref() else { return Vec::new() };
        let mut voters: Vec<(u64, u64)> = metrics
            .membership_config
            .voter_ids()
            .filter(|id| *id != metrics.id && self.membership().is_heard(&metrics, *id))
            .map(|id| (replication.get(&id).and_then(Option::as_ref).map_or(0, |log| log.index), id))
            .collect();
        voters.sort_unstable_by(|one, other| other.cmp(one));
        voters.into_iter().map(|(_, id)| ReplicaId(id)).collect()
    }

    async fn hand_to_any(&self) {
        for target in self.successors() {
            if self.membership().begin_transfer(target).await.is_err() {
                continue;
            }
            let attempt = Instant::now() + SUCCESSION_TIMEOUT;
            while self.raft.is_leader() && Instant::now() < attempt {
                sleep(HAND_OVER_POLL).await;
            }
            if !self.raft.is_leader() {
                return;
            }
        }
    }
}

impl<RT, SM> GroupControl for RaftControl<RT, SM>
where
    RT: AsyncRuntime,
    SM: RaftStateMachine<TypeConfig<RT>>,
{
    fn leader(&self) -> Option<NodeId> {
        leader_of(&self.raft)
    }

    fn term(&self) -> u64 {
        self.raft.server_metrics().borrow_watched().vote.leader_id.term
    }

    fn failure(&self) -> Option<String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.running_state.as_ref().err().map(ToString::to_string)
    }

    fn status(&self) -> ReplicaStatus {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        ReplicaStatus {
            shard_id: self.shard.get(),
            group_id: self.group.get(),
            leader_node_id: self.leader().map_or(0, NodeId::get),
            revision: if self.shard.is_meta() { 0 } else { self.state.revision() },
            ..status_of(&metrics)
        }
    }

    fn describe(&self) -> Result<GroupDescription, Refusal> {
        self.membership().describe()
    }

    fn initialize(&self, members: Vec<disk::Member>) -> BoxFuture<'static, Result<(), Refusal>> {
        let this = self.clone();
        async move { this.membership().initialize(&members).await }.boxed()
    }

    fn add_learner(&self, member: disk::Member) -> BoxFuture<'static, Result<(), Refusal>> {
        let this = self.clone();
        async move { this.membership().add_learner(member).await }.boxed()
    }

    fn change_voters(
        &self,
        voters: BTreeSet<u64>,
        expected: Option<disk::LogId>,
    ) -> BoxFuture<'static, Result<(), Refusal>> {
        let this = self.clone();
        async move { this.membership().change_voters(voters, expected.as_ref()).await }.boxed()
    }

    fn remove_learner(
        &self,
        replica: ReplicaId,
        expected: Option<disk::LogId>,
    ) -> BoxFuture<'static, Result<(), Refusal>> {
        let this = self.clone();
        async move { this.membership().remove_learner(replica, expected.as_ref()).await }.boxed()
    }

    fn transfer_leader(&self, target: ReplicaId) -> BoxFuture<'static, Result<(), Refusal>> {
        let this = self.clone();
        async move { this.membership().transfer_leader(target).await }.boxed()
    }

    fn begin_transfer(&self, target: ReplicaId) -> BoxFuture<'static, Result<(), Refusal>> {
        let this = self.clone();
        async move { this.membership().begin_transfer(target).await }.boxed()
    }

    fn has_member_on(&self, node: NodeId) -> bool {
        self.membership().has_member_on(node)
    }

    fn set_campaigning(&self, may: bool) {
        self.raft.runtime_config().elect(may);
    }

    fn give_away(&self) -> BoxFuture<'static, ()> {
        let this = self.clone();
        async move {
            if this.raft.is_leader() && timeout(HAND_OVER_TIMEOUT, this.hand_to_any()).await.is_err() {
                tracing::warn!(shard = this.shard.get(), "nobody took the leadership over in time");
            }
        }
        .boxed()
    }

    fn compact(&self) -> BoxFuture<'static, ()> {
        let this = self.clone();
        async move {
            if let Err(fatal) = this.raft.trigger().snapshot().await {
                tracing::warn!(shard = this.shard.get(), %fatal, "compaction met a stopped replica");
            }
        }
        .boxed()
    }

    fn stop(&self) -> BoxFuture<'static, ()> {
        let this = self.clone();
        async move {
            match timeout(STOP_TIMEOUT, this.raft.shutdown()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(shard = this.shard.get(), %error, "a replica did not stop cleanly");
                }
                Err(_) => tracing::warn!(shard = this.shard.get(), "a replica did not stop in time"),
            }
        }
        .boxed()
    }
}

fn status_of<RT: AsyncRuntime>(metrics: &RaftMetrics<TypeConfig<RT>>) -> ReplicaStatus {
    let stored = &metrics.membership_config;
    let voters: BTreeSet<u64> = stored.voter_ids().collect();
    let (mut voter_node_ids, mut learner_node_ids) = (Vec::new(), Vec::new());
    for (replica, member) in stored.nodes() {
        if voters.contains(replica) { &mut voter_node_ids } else { &mut learner_node_ids }.push(member.node);
    }
    let last = metrics.last_log_index.unwrap_or(0);
    let lags = metrics.replication.iter().flatten().filter_map(|(replica, matching)| {
        let node = stored.membership().get_node(replica)?;
        let entries = last.saturating_sub(matching.as_ref().map_or(0, |id| id.index));
        (*replica != metrics.id).then_some(ReplicaLag { node_id: node.node, entries, replica_id: *replica })
    });
    let sets = stored.membership().get_joint_config().iter();
    let voter_sets = sets.map(|set| VoterSet { replica_ids: set.iter().copied().collect() });
    ReplicaStatus {
        replica_id: metrics.id,
        role: role_of(metrics.state).into(),
        term: metrics.current_term,
        last_log_index: last,
        committed_index: metrics.local_committed.as_ref().map_or(0, |id| id.index),
        applied_index: metrics.last_applied.as_ref().map_or(0, |id| id.index),
        snapshot_index: metrics.snapshot.as_ref().map_or(0, |id| id.index),
        purged_index: metrics.purged.as_ref().map_or(0, |id| id.index),
        lags: lags.collect(),
        voter_sets: voter_sets.collect(),
        voter_node_ids,
        learner_node_ids,
        ..ReplicaStatus::default()
    }
}

fn role_of(state: ServerState) -> Role {
    match state {
        ServerState::Leader => Role::Leader,
        ServerState::Follower => Role::Follower,
        ServerState::Learner => Role::Learner,
        ServerState::Candidate => Role::Candidate,
        ServerState::Shutdown => Role::Unspecified,
    }
}
