//! The thin shell around the planner: runs at every node, acts only while this node leads the meta group.
//!
//! A round: read the record linearizably → ask each group's leader to describe it → plan → take the steps. A round that
//! achieved something is followed by the next; otherwise the loop sleeps until something changed or the slow tick.
//! Nothing is remembered that a new controller could not find out again, so it may die between any two calls; what
//! two controllers do at once (the older one does not know yet that it lost the lead) is harmless, because every step
//! names what it was decided on.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use kv_proto::{
    disk::v1::{self as disk, MetaCommand, MetaRecord, ShardRecord},
    peer::v1::{
        ControlRequest, ControlResponse, DescribeGroup, DescribeNode, GroupDescription, MetaOutcome, Refusal,
        control_request::Request, control_response::Response, refusal::Kind,
    },
};
use kv_topology::{GroupId, NodeId, ReplicaId, ShardId};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    planner::{self, Action, Expectation, Planned, Seen},
    view::{placements, some_node},
};
use crate::refusal;

/// Calls under way at once: a few groups for each of a handful of nodes.
const CALLS_AT_ONCE: usize = 16;

/// Nodes asked for one group in one round: its last leader, the one that a refusal hints at, and another.
const ASKED_PER_GROUP: usize = 4;

/// What the controller can do. The node implements it; tests do with a model.
pub trait Hands: Send + Sync + 'static {
    /// Whether this node leads the meta group, as far as it knows.
    fn leads_meta(&self) -> bool;

    /// The meta record, read linearizably: whoever lost the lead gets a refusal, not an old record.
    fn record(&self, deadline: Instant) -> impl Future<Output = Result<Arc<MetaRecord>, Refusal>> + Send;

    /// Proposes to the meta group.
    fn propose(
        &self,
        command: MetaCommand,
        deadline: Instant,
    ) -> impl Future<Output = Result<MetaOutcome, Refusal>> + Send;

    /// Asks a node, this one included. `InitializeGroup` is done once the group has a leader and owns its slots; a node
    /// that does not lead the group refuses and names the leader's node if it knows it.
    fn control(
        &self,
        node: NodeId,
        request: ControlRequest,
        deadline: Instant,
    ) -> impl Future<Output = Result<ControlResponse, Refusal>> + Send;

    /// Whether the node was heard of within the last few heartbeats. Always true of this node.
    fn heard_recently(&self, node: NodeId) -> bool;

    /// Whether the node said that its disk is nearly full.
    fn disk_is_low(&self, _: NodeId) -> bool {
        false
    }

    /// Returns when the lead of the meta group, the record or the set of nodes heard of has changed since the last call.
    /// May be dropped at any time.
    fn changed(&self) -> impl Future<Output = ()> + Send;
}

/// The controller's times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Each call's deadline.
    pub call: Duration,
    /// Between rounds without achievement, at least, whatever changes.
    pub rest: Duration,
    /// Between rounds when nothing changes.
    pub tick: Duration,
    /// Before a shard's step is tried again after its first failure; doubles with each.
    pub first_retry: Duration,
    /// The longest wait before a retry.
    pub last_retry: Duration,
    /// Before the very same step is taken again although it succeeded: it had no lasting effect.
    pub repeat: Duration,
    /// For this long the data groups wait for all expected nodes; afterwards for the replication factor.
    pub patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(2),
            rest: Duration::from_millis(50),
            tick: Duration::from_secs(2),
            first_retry: Duration::from_millis(200),
            last_retry: Duration::from_secs(15),
            repeat: Duration::from_secs(5),
            patience: Duration::from_secs(10),
        }
    }
}

/// The loop and what it found out since it leads.
pub struct Controller<H> {
    hands: Arc<H>,
    pace: Pace,
    /// Nodes of the static start; 1 for a node bootstrapped alone.
    expected_nodes: usize,
    led_since: Option<Instant>,
    created: BTreeSet<ReplicaId>,
    lost: BTreeSet<ReplicaId>,
    formed: BTreeSet<GroupId>,
    leaders: BTreeMap<GroupId, NodeId>,
    tried: BTreeMap<ShardId, Tried>,
}

/// The last step of a shard.
struct Tried {
    action: Action,
    failures: u32,
    not_before: Instant,
}

impl<H: Hands> Controller<H> {
    /// A controller that does nothing until [`Controller::run`].
    pub fn new(hands: Arc<H>, pace: Pace, expected_nodes: usize) -> Self {
        Self {
            hands,
            pace,
            expected_nodes,
            led_since: None,
            created: BTreeSet::new(),
            lost: BTreeSet::new(),
            formed: BTreeSet::new(),
            leaders: BTreeMap::new(),
            tried: BTreeMap::new(),
        }
    }

    /// Runs until dropped.
    pub async fn run(mut self) {
        loop {
            if self.hands.leads_meta() {
                if self.round().await {
                    continue;
                }
            } else {
                self.forget();
            }
            sleep(self.pace.rest).await;
            let retry =
                self.tried.values().filter(|tried| tried.failures > 0).map(|tried| tried.not_before).min();
            let tick = Instant::now() + self.pace.tick;
            let wake = retry.map_or(tick, |retry| retry.min(tick));
            tokio::select! {
                biased;
                () = self.hands.changed() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// A later leadership finds the world changed.
    fn forget(&mut self) {
        self.led_since = None;
        self.created.clear();
        self.lost.clear();
        self.formed.clear();
        self.leaders.clear();
        self.tried.clear();
    }

    /// One round. Whether a step was taken with success.
    async fn round(&mut self) -> bool {
        let now = Instant::now();
        let led_since = *self.led_since.get_or_insert(now);
        let record = match self.within(|deadline| self.hands.record(deadline)).await {
            Ok(record) => record,
            Err(refusal) => {
                tracing::debug!(reason = refusal.reason, "meta record not read");
                return false;
            }
        };
        let seen = self.look(&record).await;
        let wait_for_all = led_since.elapsed() < self.pace.patience;
        let plan = planner::plan(&record, &seen, Expectation { nodes: self.expected_nodes, wait_for_all });
        for (shard, reason) in &plan.waits {
            tracing::debug!(shard = shard.0, reason, "waiting");
        }
        self.take(plan.steps).await
    }

    /// What the groups' leaders say, and who is there.
    async fn look(&mut self, record: &MetaRecord) -> Seen {
        let now = Instant::now();
        let nodes = record.nodes.iter().map(|node| NodeId(node.node_id));
        let heard: BTreeSet<NodeId> = nodes.filter(|node| self.hands.heard_recently(*node)).collect();
        let full = heard.iter().copied().filter(|node| self.hands.disk_is_low(*node)).collect();
        // Boxed: a stream of borrowed closures is not `Send` enough for the spawner.
        let mut questions: Vec<BoxFuture<'_, Option<(GroupId, NodeId, GroupDescription)>>> = Vec::new();
        for shard in &record.shards {
            let created =
                |placement: &disk::ReplicaPlacement| self.created.contains(&ReplicaId(placement.replica_id));
            if shard.observed.is_some() || shard.shard_id == 0 || shard.replicas.iter().any(created) {
                questions.push(self.describe(shard, &heard).boxed());
            }
        }
        let asked = stream::iter(questions).buffered(CALLS_AT_ONCE).collect::<Vec<_>>();
        let (answers, stopping) = tokio::join!(asked, self.stopping(&heard));
        let found: Vec<_> = answers.into_iter().flatten().collect();
        let mut groups = BTreeMap::new();
        for (group, node, description) in found {
            self.leaders.insert(group, node);
            groups.insert(group, description);
        }
        let held = |(shard, tried): (&ShardId, &Tried)| {
            (tried.failures > 0 && tried.not_before > now).then_some(*shard)
        };
        Seen {
            groups,
            created: self.created.clone(),
            lost: self.lost.clone(),
            formed: self.formed.clone(),
            heard,
            full,
            stopping,
            held: self.tried.iter().filter_map(held).collect(),
        }
    }

    /// Which of the nodes say that they are stopping.
    async fn stopping(&self, nodes: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let mut questions: Vec<BoxFuture<'_, Option<NodeId>>> = Vec::new();
        for node in nodes.iter().copied() {
            let question = async move {
                match self.ask(node, Request::DescribeNode(DescribeNode {})).await {
                    Ok(Response::Node(described)) => described.stopping.then_some(node),
                    Ok(_) | Err(_) => None,
                }
            };
            questions.push(question.boxed());
        }
        stream::iter(questions).buffered(CALLS_AT_ONCE).filter_map(std::future::ready).collect().await
    }

    /// Finds the leader of a group and lets it describe the group.
    async fn describe(
        &self,
        shard: &ShardRecord,
        heard: &BTreeSet<NodeId>,
    ) -> Option<(GroupId, NodeId, GroupDescription)> {
        let group = GroupId(shard.group_id);
        let holders = placements(shard).into_iter().map(|placement| placement.node);
        let mut open: Vec<NodeId> = self
            .leaders
            .get(&group)
            .copied()
            .into_iter()
            .chain(some_node(shard.preferred_leader_node_id))
            .chain(holders)
            .filter(|node| heard.contains(node))
            .rev()
            .collect();
        let mut asked = BTreeSet::new();
        while let Some(node) = open.pop() {
            if asked.len() == ASKED_PER_GROUP {
                break;
            }
            if !asked.insert(node) {
                continue;
            }
            let request = Request::DescribeGroup(DescribeGroup { group_id: group.0 });
            match self.ask(node, request).await {
                Ok(Response::Group(description)) => return Some((group, node, description)),
                Ok(_) => {}
                Err(refusal) => {
                    open.extend(some_node(refusal.leader_node_id).filter(|hint| heard.contains(hint)));
                }
            }
        }
        None
    }

    /// Takes the steps: commands one after the other, requests to nodes together. Whether one succeeded.
    async fn take(&mut self, steps: Vec<Planned>) -> bool {
        let now = Instant::now();
        let due = |planned: &Planned| {
            self.tried
                .get(&planned.shard)
                .is_none_or(|tried| tried.action != planned.action || tried.not_before <= now)
        };
        let steps: Vec<Planned> = steps.into_iter().filter(due).collect();
        let mut results = Vec::new();
        for planned in &steps {
            let Action::Propose(command) = &planned.action else { continue };
            let result = self.within(|deadline| self.hands.propose(command.clone(), deadline)).await;
            let refused = result.is_err();
            results.push((planned, result.map(|_| ())));
            if refused {
                // The later ones expect an epoch that will not come.
                break;
            }
        }
        let this = &*self;
        let mut requests: Vec<BoxFuture<'_, (&Planned, Result<(), Refusal>)>> = Vec::new();
        for planned in &steps {
            let Action::Control { node, request } = &planned.action else { continue };
            let Some(request) = request.request.clone() else { continue };
            let node = *node;
            requests.push(async move { (planned, this.carry_out(node, request).await) }.boxed());
        }
        let answers: Vec<_> = stream::iter(requests).buffered(CALLS_AT_ONCE).collect().await;
        results.extend(answers);
        let mut achieved = false;
        for (planned, result) in results {
            achieved |= self.note(planned, result);
        }
        achieved
    }

    /// Asks a node, and its group's leader when the node names another.
    async fn carry_out(&self, node: NodeId, request: Request) -> Result<(), Refusal> {
        match self.ask(node, request.clone()).await {
            Err(refusal) if matches!(request, Request::InitializeGroup(_)) => {
                let leader = some_node(refusal.leader_node_id).filter(|leader| *leader != node);
                let leader = leader.ok_or(refusal)?;
                self.ask(leader, request).await.map(|_| ())
            }
            other => other.map(|_| ()),
        }
    }

    async fn ask(&self, node: NodeId, request: Request) -> Result<Response, Refusal> {
        let request = ControlRequest { request: Some(request) };
        let answer = self.within(|deadline| self.hands.control(node, request, deadline)).await?;
        match answer.response {
            Some(Response::Refusal(refusal)) => Err(refusal),
            Some(response) => Ok(response),
            None => Err(refusal::of(Kind::Internal, "EMPTY_ANSWER", format!("{node} answered nothing"))),
        }
    }

    /// A call with its deadline, kept even by a callee that does not.
    async fn within<T, F>(&self, call: impl FnOnce(Instant) -> F) -> Result<T, Refusal>
    where
        F: Future<Output = Result<T, Refusal>>,
    {
        let deadline = Instant::now() + self.pace.call;
        timeout_at(deadline, call(deadline)).await.unwrap_or_else(|_| {
            let message = format!("no answer within {:?}", self.pace.call);
            Err(refusal::of(Kind::DeadlineExceeded, "CONTROL_DEADLINE", message))
        })
    }

    /// Remembers what became of a step. Whether it succeeded.
    fn note(&mut self, planned: &Planned, result: Result<(), Refusal>) -> bool {
        let now = Instant::now();
        let before = self.tried.get(&planned.shard).map_or(0, |tried| tried.failures);
        let action = planned.action.clone();
        let Err(refusal) = result else {
            tracing::info!(shard = planned.shard.0, action = %planned.action, reason = planned.reason, "step taken");
            self.confirm(&planned.action);
            let not_before = now + self.pace.repeat;
            self.tried.insert(planned.shard, Tried { action, failures: 0, not_before });
            return true;
        };
        tracing::warn!(
            shard = planned.shard.0,
            action = %planned.action,
            refusal = refusal.reason,
            message = refusal.message,
            "step refused"
        );
        if let Some(replica) = lost(&planned.action, &refusal) {
            // It is not made again under this id: the other steps of its shard go on without it.
            self.lost.insert(replica);
            return true;
        }
        let failures = before.saturating_add(1);
        let pause =
            self.pace.first_retry.saturating_mul(1 << (failures - 1).min(16)).min(self.pace.last_retry);
        self.tried.insert(planned.shard, Tried { action, failures, not_before: now + pause });
        false
    }

    fn confirm(&mut self, action: &Action) {
        let Action::Control { request: ControlRequest { request: Some(request) }, .. } = action else {
            return;
        };
        match request {
            Request::CreateReplica(create) => {
                self.created.insert(ReplicaId(create.replica_id));
            }
            Request::InitializeGroup(initialize) => {
                self.formed.insert(GroupId(initialize.group_id));
            }
            Request::AddLearner(_)
            | Request::ChangeVoters(_)
            | Request::TransferLeader(_)
            | Request::DescribeGroup(_)
            | Request::DescribeNode(_)
            | Request::FetchMap(_) => {}
        }
    }
}

/// The replica that was asked for and whose data are lost on its node.
fn lost(action: &Action, refusal: &Refusal) -> Option<ReplicaId> {
    let Action::Control { request: ControlRequest { request: Some(Request::CreateReplica(create)) }, .. } =
        action
    else {
        return None;
    };
    (refusal.kind() == Kind::DataLoss).then_some(ReplicaId(create.replica_id))
}

#[cfg(test)]
mod tests;
