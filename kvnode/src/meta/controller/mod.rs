//! The thin shell around the planner: runs at every node, acts only while this node leads the meta group.
//!
//! A round: read the record linearizably → ask each group's leader to describe it, and each node itself → plan → take
//! the steps. A round that achieved something is followed by the next; otherwise the loop sleeps until something
//! changed or the slow tick. Nothing is remembered that a new controller could not find out again, so it may die
//! between any two calls; what two controllers do at once (the older one does not know yet that it lost the lead) is
//! harmless, because every step names what it was decided on. Voters change only while the record says that they are
//! about to.

mod look;
mod memory;
mod tries;

use std::{collections::BTreeSet, future::Future, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use kv_proto::{
    disk::v1::{MetaCommand, MetaRecord},
    peer::v1::{
        ControlRequest, ControlResponse, MetaOutcome, Refusal, control_request::Request,
        control_response::Response, refusal::Kind,
    },
};
use kv_topology::{GroupId, NodeId, ReplicaId, ShardId};
use tokio::time::{Instant, sleep, timeout_at};

use self::{memory::Memory, tries::Tries};
use super::{
    planner::{self, Action, Expectation, MAX_STEPS, Patience, Planned, Subject},
    view::some_node,
};
use crate::refusal;

/// Calls under way at once: a few groups for each of a handful of nodes.
const CALLS_AT_ONCE: usize = 16;

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

    /// This node.
    fn me(&self) -> NodeId;

    /// Milliseconds since 1970 by the clock of this node. For the journal: nothing is decided by it.
    fn unix_ms(&self) -> u64;

    /// Returns when the lead of the meta group, the record or the set of nodes heard of has changed since the last
    /// call. May be dropped at any time.
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
    /// Between rounds when nothing changes and something is being waited for, like a replica that catches up.
    pub watch: Duration,
    /// Before a step is tried again after its first failure; doubles with each.
    pub first_retry: Duration,
    /// The longest wait before a retry.
    pub last_retry: Duration,
    /// Before the very same step is taken again although it succeeded: it had no lasting effect.
    pub repeat: Duration,
    /// For this long the data groups wait for all expected nodes; afterwards for the replication factor.
    pub patience: Duration,
    /// A move is given up when its target is silent for so long.
    pub target_silence: Duration,
    /// A move is given up when its new replica lags and comes no further for so long. What a snapshot takes comes on
    /// top.
    pub target_stall: Duration,
    /// A snapshot that is sent is at least so fast, bytes a second.
    pub slowest_snapshot: u64,
    /// For so long a target that was given up is not chosen again for the same shard, unless there is no other.
    pub target_pause: Duration,
    /// A change of voters that did not happen is ended when its group was not asked for it for so long: longer than a
    /// request lives.
    pub change: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(2),
            rest: Duration::from_millis(50),
            tick: Duration::from_secs(2),
            watch: Duration::from_secs(1),
            first_retry: Duration::from_millis(200),
            last_retry: Duration::from_secs(15),
            repeat: Duration::from_secs(5),
            patience: Duration::from_secs(10),
            target_silence: Duration::from_secs(30),
            target_stall: Duration::from_secs(120),
            slowest_snapshot: 4 << 20,
            target_pause: Duration::from_secs(300),
            change: Duration::from_secs(10),
        }
    }
}

/// The loop and what it found out since it leads.
pub struct Controller<H> {
    hands: Arc<H>,
    pace: Pace,
    /// Nodes of the static start; 1 for a node bootstrapped alone.
    expected_nodes: usize,
    memory: Memory,
    tries: Tries,
}

/// What came of a round.
enum Round {
    /// A step was taken with success: another one may follow from it.
    Achieved,
    /// Something is not as wished, and nothing can be done now.
    Waits,
    /// Nothing is to do.
    Idle,
}

impl<H: Hands> Controller<H> {
    /// A controller that does nothing until [`Controller::run`].
    pub fn new(hands: Arc<H>, pace: Pace, expected_nodes: usize) -> Self {
        Self { hands, pace, expected_nodes, memory: Memory::default(), tries: Tries::default() }
    }

    /// Runs until dropped.
    pub async fn run(mut self) {
        loop {
            let mut tick = self.pace.tick;
            if self.hands.leads_meta() {
                match self.round().await {
                    Round::Achieved => continue,
                    Round::Waits => tick = self.pace.watch,
                    Round::Idle => {}
                }
            } else {
                self.memory = Memory::default();
                self.tries = Tries::default();
            }
            sleep(self.pace.rest).await;
            let tick = Instant::now() + tick;
            let wake = self.tries.next().map_or(tick, |retry| retry.min(tick));
            tokio::select! {
                biased;
                () = self.hands.changed() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    async fn round(&mut self) -> Round {
        let record = match self.within(|deadline| self.hands.record(deadline)).await {
            Ok(record) => record,
            Err(refusal) => {
                tracing::debug!(reason = refusal.reason, "meta record not read");
                return Round::Idle;
            }
        };
        let seen = self.look(&record).await;
        let now = Instant::now();
        let wait_for_all = self.memory.watched(now) < self.pace.patience;
        let expectation = Expectation { nodes: self.expected_nodes, wait_for_all };
        let patience = Patience {
            target_silence: self.pace.target_silence,
            target_stall: self.pace.target_stall,
            slowest_snapshot: self.pace.slowest_snapshot,
            change: self.pace.change,
        };
        let plan = planner::plan(&record, &seen, expectation, patience);
        for (subject, reason) in &plan.waits {
            tracing::debug!(%subject, reason, "waiting");
        }
        self.tries.forget_needless(&plan.steps, now);
        if self.take(plan.steps).await {
            Round::Achieved
        } else if plan.waits.is_empty() {
            Round::Idle
        } else {
            Round::Waits
        }
    }

    /// Takes the steps that are due: commands one after the other, requests to nodes together. Whether one succeeded.
    async fn take(&mut self, steps: Vec<Planned>) -> bool {
        let steps = self.due(steps);
        let mut results = Vec::new();
        for planned in &steps {
            let Action::Propose(command) = &planned.action else { continue };
            let command = self.signed(command, &planned.reason);
            let result = self.within(|deadline| self.hands.propose(command, deadline)).await;
            let refused = result.is_err();
            results.push((planned, result.map(|_| ())));
            if refused {
                // The later ones expect an epoch that will not come.
                break;
            }
        }
        let changing = self.changing(&steps).await;
        let this = &*self;
        let mut requests: Vec<BoxFuture<'_, (&Planned, Result<(), Refusal>)>> = Vec::new();
        for planned in &steps {
            let Action::Control { node, request } = &planned.action else { continue };
            let Some(request) = request.request.clone() else { continue };
            if shard_to_change(planned).is_some_and(|shard| !changing.contains(&shard)) {
                continue;
            }
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

    /// The steps that may be taken now, not too many at once.
    fn due(&self, steps: Vec<Planned>) -> Vec<Planned> {
        let now = Instant::now();
        let mut due = Vec::new();
        let mut in_order = true;
        for planned in steps {
            let proposes = matches!(planned.action, Action::Propose(_));
            if !self.tries.is_due(&planned, now) {
                // The commands after it expect the epoch that it would come to.
                in_order &= !proposes;
            } else if due.len() < MAX_STEPS && (in_order || !proposes) {
                due.push(planned);
            } else {
                in_order &= !proposes;
            }
        }
        due
    }

    /// The command as the journal keeps it: by whom, why, and when.
    fn signed(&self, command: &MetaCommand, reason: &str) -> MetaCommand {
        MetaCommand {
            command: command.command.clone(),
            actor: format!("controller at {}", self.hands.me()),
            reason: reason.to_owned(),
            unix_ms: self.hands.unix_ms(),
        }
    }

    /// Of the shards whose voters are to change now, those of which the record still says so. Read again: the round
    /// may have been a long one, the lead may be lost, and a permit may be open by now.
    async fn changing(&self, steps: &[Planned]) -> BTreeSet<ShardId> {
        if steps.iter().all(|step| shard_to_change(step).is_none()) {
            return BTreeSet::new();
        }
        match self.within(|deadline| self.hands.record(deadline)).await {
            Ok(record) => {
                let changing = record.shards.iter().filter(|shard| shard.change.is_some());
                changing.map(|shard| ShardId(shard.shard_id)).collect()
            }
            Err(_) => BTreeSet::new(),
        }
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
        if let Some(shard) = shard_to_change(planned) {
            self.memory.asks(shard, now);
        }
        let subject = planned.subject;
        let Err(refusal) = result else {
            tracing::info!(%subject, action = %planned.action, reason = planned.reason, "step taken");
            self.confirm(&planned.action);
            self.tries.succeeded(planned, now, &self.pace);
            return true;
        };
        tracing::warn!(
            %subject,
            action = %planned.action,
            refusal = refusal.reason,
            message = refusal.message,
            "step refused"
        );
        if let Some(replica) = lost(&planned.action, &refusal) {
            // It is not made again under this id: the other steps of its shard go on without it.
            self.memory.unfit.insert(replica);
            return true;
        }
        self.tries.failed(planned, now, &self.pace);
        false
    }

    fn confirm(&mut self, action: &Action) {
        let Action::Control { request: ControlRequest { request: Some(request) }, .. } = action else {
            return;
        };
        match request {
            Request::CreateReplica(create) => {
                self.memory.created.insert(ReplicaId(create.replica_id));
            }
            Request::InitializeGroup(initialize) => {
                self.memory.formed.insert(GroupId(initialize.group_id));
            }
            Request::AddLearner(_)
            | Request::RemoveLearner(_)
            | Request::ChangeVoters(_)
            | Request::TransferLeader(_)
            | Request::DescribeGroup(_)
            | Request::DescribeNode(_)
            | Request::FetchMap(_)
            | Request::HandOver(_) => {}
        }
    }
}

/// The shard whose group is asked for other voters.
fn shard_to_change(planned: &Planned) -> Option<ShardId> {
    match (&planned.action, planned.subject) {
        (
            Action::Control { request: ControlRequest { request: Some(Request::ChangeVoters(_)) }, .. },
            Subject::Shard(shard),
        ) => Some(shard),
        (Action::Control { .. } | Action::Propose(_), _) => None,
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
