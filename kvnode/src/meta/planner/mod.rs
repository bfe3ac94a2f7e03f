//! What the meta leader should do next: for each shard at most one step, each with its reason.
//!
//! Flow: the meta record (what was decided) and what was seen (what the groups' leaders and the nodes say, who was
//! heard of) come in; control requests to nodes and commands to the meta group go out. Every step is idempotent and is
//! derived again from scratch each time, so whoever takes them may die between any two.
//!
//! ```text
//! record, seen ─► layout: what topology sees ─► nodes:   states, permits that are over
//!                                             ─► groups:  the next step of each shard (forming, changes)
//!                                             ─► moves:   which replicas begin to move
//!                                             ─► forming: the data shards, once
//!                                             ─► leaders: who should lead
//! ```
//!
//! A replica that takes another one's place: `BeginMove` → `CreateReplica` → `AddLearner` → it catches up → the
//! leadership leaves the replica that leaves → `BeginChange` → `ChangeVoters` → `ObserveMembership` → `EndMove`. What
//! was begun and is needed no more is abandoned: the new replica is surplus then, and is taken away like any other.

mod changes;
mod display;
mod forming;
mod groups;
mod layout;
mod leaders;
mod moves;
mod nodes;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kv_proto::{
    disk::v1::{MetaCommand, MetaRecord, NodeRecord, NodeState, ShardRecord, meta_command::Command},
    peer::v1::{ControlRequest, GroupDescription, NodeDescription, control_request::Request},
};
use kv_topology::{GroupId, NodeId, ReplicaId, ShardId, quorum::meta_factor};

use self::layout::{Layout, host_state};

pub(super) use self::groups::is_near;

/// Steps that are taken of one plan at most: each may start a snapshot or an election.
pub const MAX_STEPS: usize = 16;

/// What the controller found out.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The node that it runs at: it is never silent.
    pub me: NodeId,
    /// Groups as their leaders describe them. Missing: no leader answered.
    pub groups: BTreeMap<GroupId, GroupDescription>,
    /// Nodes as they describe themselves. Missing: no answer.
    pub nodes: BTreeMap<NodeId, NodeDescription>,
    /// Replicas that their nodes confirmed to this controller.
    pub created: BTreeSet<ReplicaId>,
    /// Replicas whose nodes said that they are damaged or have lost their data: they never start again.
    pub unfit: BTreeSet<ReplicaId>,
    /// Groups whose initialization was confirmed to this controller.
    pub formed: BTreeSet<GroupId>,
    /// Nodes heard of recently, this one included.
    pub heard: BTreeSet<NodeId>,
    /// For how long nodes have been silent, as far as this controller can tell: it began to listen when it began to
    /// lead. Missing: heard of.
    pub silent: BTreeMap<NodeId, Duration>,
    /// Nodes whose disk is nearly full: they get no leaderships and no replicas.
    pub full: BTreeSet<NodeId>,
    /// Nodes that said that they are stopping, or did not answer when they were asked. Nothing new is given to them,
    /// leaderships least of all.
    pub stopping: BTreeSet<NodeId>,
    /// By move: for how long its new replica has lagged and come no further.
    pub stalled: BTreeMap<u64, Duration>,
    /// By shard: for how long nobody has asked its group for the change of voters that was begun.
    pub unasked: BTreeMap<ShardId, Duration>,
    /// Moves of this shard to this node were given up a while ago.
    pub avoided: BTreeSet<(ShardId, NodeId)>,
    /// What is to be left alone for now: its last step failed a moment ago.
    pub held: BTreeSet<Subject>,
}

/// What is known about the nodes to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// Nodes of the static start, from the flags; 1 for a node bootstrapped alone.
    pub nodes: usize,
    /// Whether the data groups wait for all of them; otherwise only for as many as the replication factor.
    pub wait_for_all: bool,
}

/// How long something is waited for before it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For the silent target of a move.
    pub target_silence: Duration,
    /// For the new replica of a move that lags and comes no further.
    pub target_stall: Duration,
    /// A snapshot that is sent is at least so fast, bytes a second: nothing is seen of it until it is there.
    pub slowest_snapshot: u64,
    /// For a change of voters that was asked for and did not happen: longer than a request lives.
    pub change: Duration,
}

/// What a step is about. A plan has at most one step for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The state of a node.
    Node(NodeId),
    /// The permit of a node.
    Permit(NodeId),
    /// A shard, or meta.
    Shard(ShardId),
    /// The data shards as a whole: that they exist, and who should lead them.
    Shards,
}

/// A request to a node or a command to the meta group.
#[allow(clippy::large_enum_variant, reason = "a plan has a handful of them, and each goes its way once")]
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// A node is asked.
    Control {
        /// Whom.
        node: NodeId,
        /// For what.
        request: ControlRequest,
    },
    /// The meta group is asked. Who does so, when and why is left open.
    Propose(MetaCommand),
}

/// A step, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// What it is about.
    pub subject: Subject,
    /// What to do.
    pub action: Action,
    /// What it is for, on what evidence.
    pub reason: String,
}

/// What to do now, and what is being waited for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In order; those that propose must be taken one after the other, since each expects the epoch after the last.
    pub steps: Vec<Planned>,
    /// What is not as wished although nothing can be done now.
    pub waits: Vec<(Subject, String)>,
}

/// The next steps for all nodes and shards. An empty record has none.
pub fn plan(record: &MetaRecord, seen: &Seen, expectation: Expectation, patience: Patience) -> Plan {
    if record.cluster_id.is_empty() || seen.heard.is_subset(&seen.stopping) {
        return Plan::default();
    }
    // To the steps of a shard a node that is about to be gone is as good as gone.
    let there = seen.heard.difference(&seen.stopping).copied().collect();
    let seen = &Seen { heard: there, ..seen.clone() };
    let layout = Layout::of(record, seen);
    let mut planner = Planner { record, seen, patience, layout, plan: Plan::default(), proposals: 0 };
    planner.settle_nodes();
    planner.end_permits();
    for shard in &record.shards {
        if !seen.held.contains(&Subject::Shard(ShardId(shard.shard_id))) {
            planner.step_for(shard);
        }
    }
    planner.begin_moves();
    planner.create_shards(expectation);
    planner.choose_leaders();
    planner.plan
}

struct Planner<'a> {
    record: &'a MetaRecord,
    seen: &'a Seen,
    patience: Patience,
    layout: Layout,
    plan: Plan,
    /// Commands planned so far: each will raise the epoch by one.
    proposals: u64,
}

impl Planner<'_> {
    fn control(&mut self, shard: ShardId, node: NodeId, request: Request, reason: impl Into<String>) {
        let action = Action::Control { node, request: ControlRequest { request: Some(request) } };
        self.plan.steps.push(Planned { subject: Subject::Shard(shard), action, reason: reason.into() });
    }

    fn propose(&mut self, subject: Subject, command: Command, reason: impl Into<String>) {
        let action = Action::Propose(MetaCommand { command: Some(command), ..MetaCommand::default() });
        self.plan.steps.push(Planned { subject, action, reason: reason.into() });
        self.proposals += 1;
    }

    fn wait(&mut self, subject: Subject, reason: impl Into<String>) {
        self.plan.waits.push((subject, reason.into()));
    }

    /// The epoch once the commands planned so far have been applied.
    fn epoch(&self) -> u64 {
        self.record.epoch + self.proposals
    }

    /// Whether nothing is planned for the shard so far.
    fn is_free(&self, shard: ShardId) -> bool {
        self.plan.steps.iter().all(|step| step.subject != Subject::Shard(shard))
    }

    /// Whether the node was heard of and is not stopping.
    fn is_there(&self, node: NodeId) -> bool {
        self.seen.heard.contains(&node)
    }

    fn node(&self, node: NodeId) -> Option<&NodeRecord> {
        self.record.nodes.iter().find(|known| known.node_id == node.0)
    }

    /// A node that is not known any more was removed.
    fn state(&self, node: NodeId) -> NodeState {
        self.node(node).map_or(NodeState::Removed, NodeRecord::state)
    }
}

/// How many replicas a shard should have; meta's follow the nodes that stay.
pub fn factor_of(record: &MetaRecord, shard: &ShardRecord) -> usize {
    let data = record.replication_factor as usize;
    let staying = || record.nodes.iter().filter(|node| host_state(node.state()).stays()).count();
    if shard.shard_id == 0 { meta_factor(data, staying()) } else { data }
}

/// `12 s`, `1 h 30 min`: a length of time in words.
fn spell(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3_600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, 0) => format!("{minutes} min"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, 0, _) => format!("{hours} h"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests;
