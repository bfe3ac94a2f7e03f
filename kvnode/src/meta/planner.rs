//! What the meta leader should do next: for each shard at most one step, each with its reason.
//!
//! Flow: the meta record (what was decided) and what was seen (what the groups' leaders say, who was heard of) come in;
//! control requests to nodes and commands to the meta group go out. Every step is idempotent and is derived again
//! from scratch each time, so whoever takes them may die between any two.
//!
//! The life of a data group: `CreateShards` places it → `CreateReplica` at each node → `InitializeGroup` at one of them,
//! always with all placed replicas, so that a second call elsewhere is harmless → its membership is observed → from then
//! on [`kv_topology::growth`] says what it lacks. The meta group begins at the last of these: bootstrap formed it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use kv_proto::{
    disk::v1::{
        Member, MetaCommand, MetaRecord, NodeState, ShardRecord, SlotRange, StoredMembership,
        meta_command::{
            AddReplica, Command, CreateShards, ObserveMembership, PreferLeaders, PreferredLeader,
            SetNodeState,
        },
    },
    peer::v1::{
        AddLearner, ChangeVoters, ControlRequest, CreateReplica, GroupDescription, InitializeGroup,
        TransferLeader, control_request::Request,
    },
};
use kv_topology::{
    GroupId, Membership, NodeId, ReplicaId, ShardId,
    growth::{self, GroupView, Step},
    map::ReplicaPlacement,
    placement::{Candidate, Placement, extend, place, spread_leaders},
    quorum::{majority, odd_voters},
    slot::contiguous_runs,
};

use super::view::{log_position, membership, placements, some_node};

/// A replica this many entries behind its leader's log has caught up: it may vote and lead (design 5.8).
pub const CAUGHT_UP_ENTRIES: u64 = 1_000;

/// Steps of one plan at most: each may start a snapshot or an election.
pub const MAX_STEPS: usize = 16;

/// The meta group has at least this many voters, as far as there are nodes, whatever the replication factor.
const META_VOTERS: usize = 3;

/// What the controller found out.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Groups as their leaders describe them. Missing: no leader answered.
    pub groups: BTreeMap<GroupId, GroupDescription>,
    /// Replicas that their nodes confirmed to this controller.
    pub created: BTreeSet<ReplicaId>,
    /// Replicas whose nodes said that their data are lost: they are not started again.
    pub lost: BTreeSet<ReplicaId>,
    /// Groups whose initialization was confirmed to this controller.
    pub formed: BTreeSet<GroupId>,
    /// Nodes heard of recently, this one included.
    pub heard: BTreeSet<NodeId>,
    /// Nodes whose disk is nearly full: they get no leaderships.
    pub full: BTreeSet<NodeId>,
    /// Nodes that said that they are stopping. Nothing new is given to them, leaderships least of all.
    pub stopping: BTreeSet<NodeId>,
    /// Shards to leave alone for now: their last step failed a moment ago.
    pub held: BTreeSet<ShardId>,
}

/// What is known about the nodes to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// Nodes of the static start, from the flags; 1 for a node bootstrapped alone.
    pub nodes: usize,
    /// Whether the data groups wait for all of them; otherwise only for as many as the replication factor.
    pub wait_for_all: bool,
}

/// A request to a node or a command to the meta group.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// A node is asked.
    Control {
        /// Whom.
        node: NodeId,
        /// For what.
        request: ControlRequest,
    },
    /// The meta group is asked.
    Propose(MetaCommand),
}

/// A step, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Whose step it is. Commands about nodes count for meta.
    pub shard: ShardId,
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
    /// Shards that are not as wished although nothing can be done now.
    pub waits: Vec<(ShardId, String)>,
}

/// The next steps for all shards. An empty record has none.
pub fn plan(record: &MetaRecord, seen: &Seen, expectation: Expectation) -> Plan {
    if record.cluster_id.is_empty() || seen.heard.is_subset(&seen.stopping) {
        return Plan::default();
    }
    // To the steps of growth a node that is about to be gone is as good as gone.
    let there = seen.heard.difference(&seen.stopping).copied().collect();
    let seen = &Seen { heard: there, ..seen.clone() };
    let mut planner = Planner { record, seen, plan: Plan::default(), proposals: 0 };
    planner.activate_nodes();
    let wished = planner.wished_holders();
    let no_wish = BTreeSet::new();
    for shard in &record.shards {
        let id = ShardId(shard.shard_id);
        if planner.plan.steps.len() < MAX_STEPS && !seen.held.contains(&id) {
            planner.step_for(shard, wished.get(&id).unwrap_or(&no_wish));
        }
    }
    planner.create_shards(expectation);
    planner.spread_leaders();
    planner.plan
}

struct Planner<'a> {
    record: &'a MetaRecord,
    seen: &'a Seen,
    plan: Plan,
    /// Commands planned so far: each will raise the epoch by one.
    proposals: u64,
}

impl Planner<'_> {
    fn control(&mut self, shard: ShardId, node: NodeId, request: Request, reason: impl Into<String>) {
        let action = Action::Control { node, request: ControlRequest { request: Some(request) } };
        self.plan.steps.push(Planned { shard, action, reason: reason.into() });
    }

    fn propose(&mut self, shard: ShardId, command: Command, reason: impl Into<String>) {
        let action = Action::Propose(MetaCommand { command: Some(command) });
        self.plan.steps.push(Planned { shard, action, reason: reason.into() });
        self.proposals += 1;
    }

    fn wait(&mut self, shard: ShardId, reason: impl Into<String>) {
        self.plan.waits.push((shard, reason.into()));
    }

    /// The epoch once the commands planned so far have been applied.
    fn epoch(&self) -> u64 {
        self.record.epoch + self.proposals
    }

    fn nodes_in(&self, state: NodeState) -> impl Iterator<Item = NodeId> {
        self.record.nodes.iter().filter(move |node| node.state() == state).map(|node| NodeId(node.node_id))
    }

    fn activate_nodes(&mut self) {
        let joined: Vec<NodeId> =
            self.nodes_in(NodeState::Joining).filter(|node| self.seen.heard.contains(node)).collect();
        for node in joined {
            let (from, to) = (NodeState::Joining.into(), NodeState::Active.into());
            let command = Command::SetNodeState(SetNodeState { node_id: node.0, from, to });
            self.propose(ShardId::META, command, format!("{node} joined and was heard of"));
        }
    }

    /// Active nodes that were heard of or hold one of `shards` already: a silent node is not given anything new.
    fn candidates(&self, existing: &Placement) -> Vec<Candidate> {
        let holds = |node: NodeId| existing.values().any(|holders| holders.contains(&node));
        let active = self.record.nodes.iter().filter(|node| node.state() == NodeState::Active);
        active
            .map(|node| Candidate { node: NodeId(node.node_id), zone: node.zone.clone() })
            .filter(|candidate| self.seen.heard.contains(&candidate.node) || holds(candidate.node))
            .collect()
    }

    fn data_factor(&self) -> usize {
        self.record.replication_factor as usize
    }

    fn factor_of(&self, shard: ShardId) -> usize {
        if shard.is_meta() { self.data_factor().max(META_VOTERS) } else { self.data_factor() }
    }

    /// The nodes that should hold each shard: those that do, and more where nodes allow. Nothing moves.
    fn wished_holders(&self) -> Placement {
        let existing = |meta: bool| -> Placement {
            let shards = self.record.shards.iter().filter(|shard| (shard.shard_id == 0) == meta);
            let holders =
                |shard: &ShardRecord| placements(shard).iter().map(|placement| placement.node).collect();
            shards.map(|shard| (ShardId(shard.shard_id), holders(shard))).collect()
        };
        let (meta, data) = (existing(true), existing(false));
        let factor = self.factor_of(ShardId::META);
        let mut wished = extend(meta.keys().copied(), factor, &self.candidates(&meta), &meta);
        wished.extend(extend(data.keys().copied(), self.data_factor(), &self.candidates(&data), &data));
        wished
    }

    fn step_for(&mut self, shard: &ShardRecord, wished: &BTreeSet<NodeId>) {
        let id = ShardId(shard.shard_id);
        let group = GroupId(shard.group_id);
        let description = self.seen.groups.get(&group);
        if let Some(placement) = self.replica_to_create(shard, description) {
            let (shard_id, group_id, replica_id) = (shard.shard_id, shard.group_id, placement.replica.0);
            let request = Request::CreateReplica(CreateReplica { shard_id, group_id, replica_id });
            self.control(id, placement.node, request, format!("{} is placed there", placement.replica));
            return;
        }
        if shard.observed.is_none() && !id.is_meta() && !self.seen.formed.contains(&group) {
            self.form(shard, description);
            return;
        }
        let Some(description) = description else {
            self.wait(id, format!("no leader of {group} answers"));
            return;
        };
        if let Some(seen) = newer_membership(shard, description) {
            let reason = format!("its leader tells {}", membership(seen));
            let (shard_id, group_id, membership) = (shard.shard_id, shard.group_id, Some(seen.clone()));
            let command = ObserveMembership { shard_id, group_id, membership };
            self.propose(id, Command::ObserveMembership(command), reason);
            return;
        }
        self.grow(shard, description, wished);
    }

    /// A placed replica that its node has neither confirmed nor shown by following its leader.
    fn replica_to_create(
        &self,
        shard: &ShardRecord,
        description: Option<&GroupDescription>,
    ) -> Option<ReplicaPlacement> {
        let lives = |replica: ReplicaId| {
            description.is_some_and(|description| {
                description.leader_replica_id == replica.0
                    || description
                        .progress
                        .iter()
                        .any(|progress| progress.replica_id == replica.0 && progress.matching_index > 0)
            })
        };
        placements(shard).into_iter().find(|placement| {
            let founder = shard.shard_id == 0 && shard.observed.is_none();
            !founder
                && self.seen.heard.contains(&placement.node)
                && self.nodes_in(NodeState::Removed).all(|gone| gone != placement.node)
                && !self.seen.created.contains(&placement.replica)
                && !self.seen.lost.contains(&placement.replica)
                && !lives(placement.replica)
        })
    }

    /// Lets one replica call the group to life, once a majority is there and the rest is silent.
    fn form(&mut self, shard: &ShardRecord, description: Option<&GroupDescription>) {
        let id = ShardId(shard.shard_id);
        let placed = placements(shard);
        let ready = |placement: &&ReplicaPlacement| {
            self.seen.created.contains(&placement.replica) && self.seen.heard.contains(&placement.node)
        };
        let able: Vec<ReplicaPlacement> = placed.iter().filter(ready).copied().collect();
        if able.len() < majority(placed.len()) {
            self.wait(id, format!("{} of {} replicas are there", able.len(), placed.len()));
            return;
        }
        let leads = |placement: &&ReplicaPlacement| {
            description.is_some_and(|description| description.leader_replica_id == placement.replica.0)
        };
        let initializes = |placement: &&ReplicaPlacement| placement.node.0 == shard.initializer_node_id;
        let chosen =
            able.iter().find(leads).or_else(|| able.iter().find(initializes)).or_else(|| able.first());
        let Some(chosen) = chosen else { return };
        let members = placed
            .iter()
            .map(|placement| Member { replica_id: placement.replica.0, node_id: placement.node.0 });
        let request = InitializeGroup {
            shard_id: shard.shard_id,
            group_id: shard.group_id,
            members: members.collect(),
            slots: shard.slots.clone(),
        };
        let reason = format!("{} of {} replicas are there", able.len(), placed.len());
        self.control(id, chosen.node, Request::InitializeGroup(request), reason);
    }

    fn grow(&mut self, shard: &ShardRecord, description: &GroupDescription, wished: &BTreeSet<NodeId>) {
        let id = ShardId(shard.shard_id);
        let Some(stored) = &description.membership else { return };
        let (placed, membership) = (placements(shard), membership(stored));
        let caught_up = caught_up(description);
        let gone = self.nodes_in(NodeState::Removed).collect();
        let group = GroupView {
            placements: &placed,
            membership: &membership,
            leader: ReplicaId(description.leader_replica_id),
            caught_up: &caught_up,
            alive: &self.seen.heard,
            gone: &gone,
            wished,
            replication_factor: self.factor_of(id),
            preferred_leader: some_node(shard.preferred_leader_node_id)
                .filter(|node| !self.seen.full.contains(node)),
        };
        let leader = placed.iter().find(|placement| placement.replica.0 == description.leader_replica_id);
        match (growth::next_step(&group), leader) {
            (Some(step), Some(leader)) => self.take(shard, stored, leader.node, step, &membership),
            (Some(_), None) => {
                self.wait(id, format!("r{} leads and is placed nowhere", description.leader_replica_id));
            }
            (None, _) => self.explain_rest(id, &group),
        }
    }

    fn take(
        &mut self,
        shard: &ShardRecord,
        stored: &StoredMembership,
        leader: NodeId,
        step: Step,
        membership: &Membership,
    ) {
        let id = ShardId(shard.shard_id);
        let group_id = shard.group_id;
        let change = |voters: BTreeSet<ReplicaId>| {
            let voter_replica_ids = voters.into_iter().map(ReplicaId::get).collect();
            let expected_membership = stored.log_id;
            Request::ChangeVoters(ChangeVoters { group_id, voter_replica_ids, expected_membership })
        };
        match step {
            Step::AddReplica { node } => {
                let (shard_id, expected_epoch) = (shard.shard_id, self.epoch());
                let command = AddReplica { shard_id, node_id: node.0, expected_epoch };
                let held: Vec<String> =
                    shard.replicas.iter().map(|known| format!("n{}", known.node_id)).collect();
                let reason = format!("held by {}; {node} should hold it too", held.join(" "));
                self.propose(id, Command::AddReplica(command), reason);
            }
            Step::AddLearner(placement) => {
                let member = Member { replica_id: placement.replica.0, node_id: placement.node.0 };
                let request = Request::AddLearner(AddLearner { group_id, member: Some(member) });
                self.control(id, leader, request, format!("{} is not in {membership}", placement.replica));
            }
            Step::Promote { voters } => {
                self.control(id, leader, change(voters), format!("learners of {membership} have caught up"));
            }
            Step::FinishJoint { voters } => {
                self.control(id, leader, change(voters), format!("{membership} was left joint"));
            }
            Step::TransferLeader(placement) => {
                let to_replica = placement.replica.0;
                let request = Request::TransferLeader(TransferLeader { group_id, to_replica });
                self.control(id, leader, request, format!("{} should lead, {leader} does", placement.node));
            }
        }
    }

    /// Says what keeps a group from being as wished.
    fn explain_rest(&mut self, id: ShardId, group: &GroupView<'_>) {
        let lagging: Vec<String> = group
            .membership
            .learners
            .iter()
            .filter(|learner| !group.caught_up.contains(learner))
            .map(ToString::to_string)
            .collect();
        if !lagging.is_empty() {
            self.wait(id, format!("{} must catch up", lagging.join(", ")));
        }
    }

    /// Places the data groups, once: when meta stands and the nodes to come have come.
    fn create_shards(&mut self, expectation: Expectation) {
        if self.record.shards.iter().any(|shard| shard.shard_id != 0) {
            return;
        }
        let candidates = self.candidates(&Placement::new());
        let expected = expectation.nodes.max(1);
        let enough = if expectation.wait_for_all { expected } else { expected.min(self.data_factor()) };
        if candidates.len() < enough {
            self.wait(
                ShardId::META,
                format!("data groups wait for {enough} nodes; {} are there", candidates.len()),
            );
            return;
        }
        let meta = self.record.shards.iter().find(|shard| shard.shard_id == 0);
        let observed = meta.and_then(|shard| shard.observed.as_ref()).map(membership).unwrap_or_default();
        let voters = observed.goal().map_or(0, BTreeSet::len);
        let wished = odd_voters(enough, self.factor_of(ShardId::META));
        if (expectation.wait_for_all && !self.plan.steps.is_empty()) || voters < wished {
            self.wait(
                ShardId::META,
                format!("data groups wait for {wished} voters of meta; it has {voters}"),
            );
            return;
        }
        let Ok(count) = u16::try_from(self.record.shard_count) else { return };
        let shards = (1..=u32::from(count)).map(ShardId);
        let replicas = odd_voters(candidates.len(), self.data_factor());
        let placement = place(shards, replicas, &candidates, &Placement::new());
        let leaders = spread_leaders(&placement, &BTreeMap::new());
        let shard = |((shard, nodes), range): ((&ShardId, &BTreeSet<NodeId>), kv_topology::SlotRange)| {
            let leader = leaders.get(shard).map_or(0, |node| node.0);
            let (first, last) = (range.first.get().into(), range.last.get().into());
            let replica =
                |node: &NodeId| kv_proto::disk::v1::ReplicaPlacement { replica_id: 0, node_id: node.0 };
            ShardRecord {
                shard_id: shard.0,
                slots: vec![SlotRange { first, last }],
                replicas: nodes.iter().map(replica).collect(),
                preferred_leader_node_id: leader,
                // Whoever calls a group to life usually becomes its first leader.
                initializer_node_id: leader,
                ..ShardRecord::default()
            }
        };
        let shards = placement.iter().zip(contiguous_runs(count)).map(shard).collect();
        let command = CreateShards { shards, expected_epoch: self.epoch() };
        let reason =
            format!("{} nodes are there; {replicas} voters for each of {count} shards", candidates.len());
        self.propose(ShardId::META, Command::CreateShards(command), reason);
    }

    /// Spreads the wishes for leaders anew when the groups have come to rest.
    fn spread_leaders(&mut self) {
        let data = || self.record.shards.iter().filter(|shard| shard.shard_id != 0);
        if self.plan.steps.iter().any(|step| !is_transfer(step)) || !self.seen.held.is_empty() {
            return;
        }
        // Whoever stops usually comes back in a moment: its wishes wait for it.
        if !self.seen.stopping.is_empty() {
            return;
        }
        if data().any(|shard| shard.observed.is_none()) {
            return;
        }
        let gone: BTreeSet<NodeId> = self.nodes_in(NodeState::Removed).collect();
        let voting_nodes = |shard: &ShardRecord| {
            let seen = shard.observed.as_ref().map(membership).unwrap_or_default();
            let voting = placements(shard).into_iter().filter(|placement| seen.is_voter(placement.replica));
            let sound = voting.filter(|placement| !self.seen.lost.contains(&placement.replica));
            sound.map(|placement| placement.node).filter(|node| !gone.contains(node)).collect()
        };
        let holders: Placement = data().map(|shard| (ShardId(shard.shard_id), voting_nodes(shard))).collect();
        let wishes: BTreeMap<ShardId, NodeId> = data()
            .filter_map(|shard| Some((ShardId(shard.shard_id), some_node(shard.preferred_leader_node_id)?)))
            .collect();
        let spread = spread_leaders(&holders, &wishes);
        let changed = spread.into_iter().filter(|(shard, node)| wishes.get(shard) != Some(node));
        let leaders: Vec<PreferredLeader> =
            changed.map(|(shard, node)| PreferredLeader { shard_id: shard.0, node_id: node.0 }).collect();
        if leaders.is_empty() {
            return;
        }
        // A transfer planned for the old wish would be undone at once.
        self.plan.steps.clear();
        let reason = format!("leaders of {} shards spread evenly over their voters", leaders.len());
        let command = PreferLeaders { leaders, expected_epoch: self.epoch() };
        self.propose(ShardId::META, Command::PreferLeaders(command), reason);
    }
}

fn is_transfer(step: &Planned) -> bool {
    matches!(
        &step.action,
        Action::Control { request: ControlRequest { request: Some(Request::TransferLeader(_)) }, .. }
    )
}

/// The described membership, when it is worth keeping: committed, uniform, and newer than the one kept.
fn newer_membership<'a>(
    shard: &ShardRecord,
    description: &'a GroupDescription,
) -> Option<&'a StoredMembership> {
    let told = description.membership.as_ref()?;
    let index = told.log_id.as_ref()?.index;
    let kept = shard.observed.as_ref().and_then(log_position);
    let worth = index <= description.committed_index
        && membership(told).voters.len() == 1
        && log_position(told) > kept;
    worth.then_some(told)
}

fn caught_up(description: &GroupDescription) -> BTreeSet<ReplicaId> {
    // A replica that its leader never reached matches nothing, however short the log is.
    let near = description.progress.iter().filter(|progress| {
        progress.matching_index > 0
            && progress.matching_index.saturating_add(CAUGHT_UP_ENTRIES) >= description.last_log_index
    });
    let near = near.map(|progress| ReplicaId(progress.replica_id));
    near.chain([ReplicaId(description.leader_replica_id)]).collect()
}

impl fmt::Display for Planned {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}: {}", self.shard, self.action, self.reason)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control { node, request } => match &request.request {
                Some(request) => write!(formatter, "{node} {}", Requested(request)),
                None => write!(formatter, "{node} nothing"),
            },
            Self::Propose(MetaCommand { command: Some(command) }) => {
                write!(formatter, "meta {}", Commanded(command))
            }
            Self::Propose(MetaCommand { command: None }) => formatter.write_str("meta nothing"),
        }
    }
}

struct Requested<'a>(&'a Request);

impl fmt::Display for Requested<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Request::CreateReplica(create) => write!(formatter, "creates r{}", create.replica_id),
            Request::InitializeGroup(initialize) => {
                let members: Vec<String> =
                    initialize.members.iter().map(|member| format!("r{}", member.replica_id)).collect();
                write!(formatter, "initializes g{} with {}", initialize.group_id, members.join(" "))
            }
            Request::AddLearner(add) => {
                let replica = add.member.as_ref().map_or(0, |member| member.replica_id);
                write!(formatter, "adds learner r{replica}")
            }
            Request::ChangeVoters(change) => {
                let voters: Vec<String> =
                    change.voter_replica_ids.iter().map(|voter| format!("r{voter}")).collect();
                write!(formatter, "makes voters {}", voters.join(" "))
            }
            Request::TransferLeader(transfer) => write!(formatter, "hands over to r{}", transfer.to_replica),
            Request::DescribeGroup(describe) => write!(formatter, "describes g{}", describe.group_id),
            Request::DescribeNode(_) => formatter.write_str("describes itself"),
            Request::FetchMap(_) => formatter.write_str("fetches the map"),
        }
    }
}

struct Commanded<'a>(&'a Command);

impl fmt::Display for Commanded<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Command::Bootstrap(_) => formatter.write_str("bootstraps"),
            Command::RegisterNode(_) => formatter.write_str("registers a node"),
            Command::CreateShards(create) => write!(formatter, "creates {} shards", create.shards.len()),
            Command::AddReplica(add) => write!(formatter, "adds a replica on n{}", add.node_id),
            Command::ObserveMembership(observe) => {
                let seen = observe.membership.as_ref().map(membership).unwrap_or_default();
                write!(formatter, "observes {seen}")
            }
            Command::PreferLeaders(prefer) => {
                let wishes: Vec<String> = prefer
                    .leaders
                    .iter()
                    .map(|wish| format!("s{}@n{}", wish.shard_id, wish.node_id))
                    .collect();
                write!(formatter, "prefers leaders {}", wishes.join(" "))
            }
            Command::SetNodeState(set) => write!(formatter, "makes n{} {:?}", set.node_id, set.to()),
        }
    }
}

#[cfg(test)]
mod tests;
