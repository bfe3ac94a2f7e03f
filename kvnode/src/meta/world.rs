//! A model of nodes and groups that keeps the promises of `ControlRequest` and checks those of its caller.
//!
//! Checked with every step: no change of voters goes below a quorum, happens while a permit is open, or was not begun
//! in the record; an id of a replica is given to one node only; nobody asks for a replica that was deleted, and none
//! is deleted that its group still counts on.

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::{
    disk::v1::{
        Member, MetaCommand, MetaRecord, NodeRecord, NodeState, ReplicaPlacement, ShardRecord,
        StoredMembership,
        meta_command::{
            Bootstrap, Command, GrantPermit, RegisterNode, RemoveNode, SetNodeState, SetPolicy, SetZone,
        },
    },
    peer::v1::{GroupDescription, MetaOutcome, NodeDescription, Progress, Refusal, ReplicaSize},
};
use kv_topology::{NodeId, ReplicaId};

use super::{machine, view};

mod control;

/// Bytes of an entry, and of a replica that has caught up.
const BYTES: u64 = 100;

#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) record: MetaRecord,
    pub(super) groups: BTreeMap<u64, Group>,
    /// Node → replica → its group.
    pub(super) hosted: BTreeMap<u64, BTreeMap<u64, u64>>,
    pub(super) down: BTreeSet<u64>,
    /// Nodes that never come back.
    pub(super) dead: BTreeSet<u64>,
    /// Nodes that are about to go down: whoever leads there gives its group away.
    pub(super) stopping: BTreeSet<u64>,
    /// Nodes whose disk is nearly full.
    pub(super) full: BTreeSet<u64>,
    /// Nodes whose replicas come no further.
    pub(super) slow: BTreeSet<u64>,
    /// Replicas that never start again.
    pub(super) damaged: BTreeSet<u64>,
    /// The next change of voters stops in the joint configuration, as if its leader died.
    pub(super) stay_joint: bool,
    pub(super) log_ms: u64,
    /// Where each replica was created.
    homes: BTreeMap<u64, u64>,
    deleted: BTreeSet<u64>,
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) membership: StoredMembership,
    pub(super) leader: u64,
    /// Who leads in `term`: another one does so in the next.
    elected: u64,
    term: u64,
    index: u64,
    /// How far the logs of its members reach.
    matching: BTreeMap<u64, u64>,
    pub(super) transfers: u32,
}

/// What a node tells of itself when it starts for the first time.
pub(super) fn node(number: u8) -> NodeRecord {
    NodeRecord {
        name: format!("n{number}"),
        disk_uuid: vec![number; 16].into(),
        client_address: format!("host-{number}:50051"),
        peer_address: format!("host-{number}:50061"),
        version: "0.1.0".to_owned(),
        boot_counter: 1,
        ..NodeRecord::default()
    }
}

fn command(command: Command, reason: &str) -> MetaCommand {
    MetaCommand { command: Some(command), reason: reason.to_owned(), ..MetaCommand::default() }
}

fn names(membership: Option<&StoredMembership>, replica: u64) -> bool {
    membership.is_some_and(|stored| view::membership(stored).names(ReplicaId(replica)))
}

/// What persons and nodes do.
impl World {
    /// A cluster founded by n1.
    pub(super) fn founded(shards: u32, replication_factor: u32) -> Self {
        let mut world = Self::default();
        let (cluster_id, token) = ("c".to_owned(), "t".to_owned());
        let bootstrap = Bootstrap { cluster_id, token, shards, replication_factor, node: Some(node(1)) };
        world.ask(Command::Bootstrap(bootstrap), "founded").unwrap();
        world.hosted.entry(1).or_default().insert(1, 0);
        world.homes.insert(1, 1);
        world.form(0, 1, &[Member { replica_id: 1, node_id: 1 }]);
        world
    }

    pub(super) fn register(&mut self, number: u8) -> u64 {
        self.register_as(node(number))
    }

    /// The node has lost its disk, and starts again.
    pub(super) fn wipe(&mut self, id: u64) -> u64 {
        let known = self.record.nodes.iter().find(|known| known.node_id == id).unwrap().clone();
        self.hosted.remove(&id);
        self.dead.insert(id);
        let fresh = u8::try_from(100 + self.record.next_node_id).unwrap();
        self.register_as(NodeRecord { name: known.name, disk_uuid: vec![fresh; 16].into(), ..node(fresh) })
    }

    fn register_as(&mut self, node: NodeRecord) -> u64 {
        let register = RegisterNode { node: Some(node), name_holder_alive: false };
        self.ask(Command::RegisterNode(register), "started").unwrap().node_id
    }

    pub(super) fn set_state(
        &mut self,
        node_id: u64,
        from: NodeState,
        to: NodeState,
    ) -> Result<MetaOutcome, Refusal> {
        let set = SetNodeState { node_id, from: from.into(), to: to.into() };
        self.ask(Command::SetNodeState(set), "asked by kvctl")
    }

    pub(super) fn drain(&mut self, node: u64) -> Result<MetaOutcome, Refusal> {
        self.set_state(node, NodeState::Active, NodeState::Draining)
    }

    pub(super) fn undrain(&mut self, node: u64) -> Result<MetaOutcome, Refusal> {
        self.set_state(node, self.state(node), NodeState::Active)
    }

    /// It will not come back.
    pub(super) fn remove_lost(&mut self, node_id: u64) -> Result<MetaOutcome, Refusal> {
        let remove = RemoveNode { node_id, lost: true, ..RemoveNode::default() };
        let removed = self.ask(Command::RemoveNode(remove), "its host burned down")?;
        self.dead.insert(node_id);
        Ok(removed)
    }

    pub(super) fn label(&mut self, node_id: u64, zone: &str) {
        let set = SetZone { node_id, zone: Some(zone.to_owned()) };
        self.ask(Command::SetZone(set), "asked by kvctl").unwrap();
    }

    pub(super) fn set_factor(&mut self, factor: u32) -> Result<MetaOutcome, Refusal> {
        let set = SetPolicy { replication_factor: Some(factor), ..SetPolicy::default() };
        self.ask(Command::SetPolicy(set), "asked by kvctl")
    }

    pub(super) fn set_grace(&mut self, millis: u64) {
        let set = SetPolicy { lost_node_grace_ms: Some(millis), ..SetPolicy::default() };
        self.ask(Command::SetPolicy(set), "asked by kvctl").unwrap();
    }

    pub(super) fn grant(&mut self, node_id: u64, ttl_ms: u64) -> Result<MetaOutcome, Refusal> {
        let expected_epoch = self.record.epoch;
        let token = format!("permit {expected_epoch}");
        let grant = GrantPermit { token, node_id, ttl_ms, expected_epoch, ..GrantPermit::default() };
        self.ask(Command::GrantPermit(grant), "asked by kvctl")
    }

    pub(super) fn pass(&mut self, millis: u64) {
        self.log_ms += millis;
        machine::expire(&mut self.record, self.log_ms);
    }

    pub(super) fn ask(&mut self, asked: Command, reason: &str) -> Result<MetaOutcome, Refusal> {
        self.propose(&command(asked, reason))
    }

    pub(super) fn propose(&mut self, command: &MetaCommand) -> Result<MetaOutcome, Refusal> {
        let before = self.record.epoch;
        let applied = machine::apply(&mut self.record, command, self.log_ms);
        assert!(self.record.epoch >= before, "the epoch goes back");
        view::cluster_map(&self.record).expect("the record is a map");
        self.sweep();
        applied.map(|applied| applied.outcome)
    }

    /// The replica of the group on the node, damaged or not.
    pub(super) fn replica_on(&self, node: u64, group: u64) -> Option<u64> {
        let hosted = self.hosted.get(&node)?;
        hosted.iter().find(|(_, of)| **of == group).map(|(replica, _)| *replica)
    }

    /// Nodes delete replicas that the record names no more.
    pub(super) fn sweep(&mut self) {
        let record = &self.record;
        let is_named = |shard: &ShardRecord, replica: u64| {
            shard.replicas.iter().any(|placement| placement.replica_id == replica)
                || shard.r#move.is_some_and(|under_way| {
                    [under_way.from_replica_id, under_way.to_replica_id].contains(&replica)
                })
                || names(shard.observed.as_ref(), replica)
        };
        for (node, hosted) in &mut self.hosted {
            if self.down.contains(node) || self.dead.contains(node) {
                continue;
            }
            for (replica, group) in hosted.extract_if(.., |replica, _| {
                *replica < record.next_replica_id
                    && !record.shards.iter().any(|shard| is_named(shard, *replica))
            }) {
                let known = self.groups.get(&group).map(|group| view::membership(&group.membership));
                let votes = known.is_some_and(|known| known.is_voter(ReplicaId(replica)));
                assert!(!votes, "#{node} deletes r{replica}, which votes in g{group}");
                self.deleted.insert(replica);
                self.damaged.remove(&replica);
            }
        }
    }
}

/// What is seen of it.
impl World {
    pub(super) fn is_up(&self, node: u64) -> bool {
        !self.down.contains(&node) && !self.dead.contains(&node)
    }

    pub(super) fn state(&self, node: u64) -> NodeState {
        self.record.nodes.iter().find(|known| known.node_id == node).unwrap().state()
    }

    pub(super) fn heard(&self) -> BTreeSet<NodeId> {
        let nodes = self.record.nodes.iter().map(|node| node.node_id);
        nodes.filter(|node| self.is_up(*node)).map(NodeId).collect()
    }

    fn host_of(&self, replica: u64) -> Option<u64> {
        self.hosted.iter().find(|(_, hosted)| hosted.contains_key(&replica)).map(|(node, _)| *node)
    }

    fn lives(&self, replica: u64) -> bool {
        !self.damaged.contains(&replica) && self.host_of(replica).is_some_and(|node| self.is_up(node))
    }

    fn shard_of(&self, group: u64) -> &ShardRecord {
        self.record.shards.iter().find(|shard| shard.group_id == group).expect("a shard of the group")
    }

    /// Lets all replicas that live catch up, but for those on slow nodes.
    fn replicate(&mut self, group: u64) {
        let members = self.groups[&group].membership.membership.clone().unwrap().members;
        let index = self.groups[&group].index;
        for member in members {
            let fast = self.lives(member.replica_id)
                && self.host_of(member.replica_id).is_some_and(|node| !self.slow.contains(&node));
            let matching = &mut self.groups.get_mut(&group).unwrap().matching;
            let known = matching.entry(member.replica_id).or_default();
            if fast {
                *known = index;
            }
        }
    }

    fn has_caught_up(&self, group: u64, replica: u64) -> bool {
        let group = &self.groups[&group];
        group.matching.get(&replica).is_some_and(|matching| *matching > 0 && matching + 1_000 >= group.index)
    }

    /// The node that leads `group`; elects one when the leader is down.
    pub(super) fn leader_node(&mut self, group: u64) -> Option<u64> {
        let membership = view::membership(&self.groups.get(&group)?.membership);
        if !membership.has_quorum(|replica| self.lives(replica.0)) {
            return None;
        }
        let leader = self.groups[&group].leader;
        if !self.lives(leader) || !membership.is_voter(ReplicaId(leader)) {
            let matching = |replica: &ReplicaId| self.groups[&group].matching.get(&replica.0).copied();
            let living = membership.all_voters().into_iter().filter(|replica| self.lives(replica.0));
            let next = living.max_by_key(|replica| (matching(replica), std::cmp::Reverse(*replica)))?;
            self.groups.get_mut(&group)?.leader = next.0;
        }
        let group = self.groups.get_mut(&group)?;
        if group.elected != group.leader {
            (group.elected, group.term) = (group.leader, group.term + 1);
        }
        let leader = group.leader;
        self.host_of(leader)
    }

    /// The leader hands over, to a node that is not stopping if it can: always when all are.
    pub(super) fn give_away(&mut self, group: u64) {
        let leader = self.leader_node(group);
        let leaves = |node: u64| self.stopping.contains(&node);
        if !self.stopping.is_empty() && !leader.is_some_and(leaves) {
            return;
        }
        let voters = view::membership(&self.groups[&group].membership).all_voters();
        let able = |replica: &&ReplicaId| {
            self.lives(replica.0)
                && self.host_of(replica.0).is_some_and(|node| Some(node) != leader && !leaves(node))
        };
        if let Some(next) = voters.iter().find(able).map(|replica| replica.0) {
            self.groups.get_mut(&group).unwrap().leader = next;
        }
    }

    pub(super) fn describe(&mut self, group: u64) -> Option<GroupDescription> {
        self.leader_node(group)?;
        self.replicate(group);
        let state = &self.groups[&group];
        let members = &state.membership.membership.as_ref()?.members;
        let progress = members.iter().map(|member| {
            let matching_index = state.matching.get(&member.replica_id).copied().unwrap_or(0);
            Progress {
                replica_id: member.replica_id,
                matching_index,
                heard_ms_ago: Some(if self.is_up(member.node_id) { 20 } else { 60_000 }),
                lag_bytes: Some((state.index - matching_index) * BYTES),
            }
        });
        Some(GroupDescription {
            membership: Some(state.membership.clone()),
            term: state.term,
            last_log_index: state.index,
            progress: progress.collect(),
            leader_replica_id: state.leader,
            committed_index: state.index,
        })
    }

    pub(super) fn describe_node(&self, node: u64) -> Option<NodeDescription> {
        if !self.is_up(node) {
            return None;
        }
        let hosted = self.hosted.get(&node).into_iter().flatten();
        let bytes = |(replica, group): (&u64, &u64)| {
            let matching = self.groups.get(group).and_then(|group| group.matching.get(replica));
            ReplicaSize { replica_id: *replica, bytes: matching.copied().unwrap_or(0) * BYTES }
        };
        let sizes: Vec<ReplicaSize> = hosted.clone().map(bytes).collect();
        let unfit = hosted.map(|(replica, _)| *replica).filter(|replica| self.damaged.contains(replica));
        Some(NodeDescription {
            stopping: self.stopping.contains(&node),
            unfit_replica_ids: unfit.collect(),
            caught_up: !self.slow.contains(&node),
            boot_counter: 1,
            disk_used_bytes: sizes.iter().map(|size| size.bytes).sum(),
            disk_total_bytes: 1 << 40,
            sizes,
        })
    }

    /// Each group on a line: `s1: {r1 r2 | r3} r1@n1 r2@n2 r3@n3 led by n1`, and nodes that are not active before them.
    pub(super) fn text(&mut self) -> String {
        let mut lines = String::new();
        for node in self.record.nodes.iter().filter(|node| node.state() != NodeState::Active) {
            lines += &format!("#{} is {:?}\n", node.node_id, node.state());
        }
        for shard in self.record.shards.clone() {
            let leader =
                self.leader_node(shard.group_id).map_or("nobody".to_owned(), |node| format!("#{node}"));
            let seen = self.groups.get(&shard.group_id).map(|group| view::membership(&group.membership));
            let seen = seen.map_or("not formed".to_owned(), |seen| seen.to_string());
            let placed = |known: &ReplicaPlacement| format!("r{}@#{}", known.replica_id, known.node_id);
            let nodes: Vec<String> = shard.replicas.iter().map(placed).collect();
            lines += &format!("s{}: {seen} {} led by {leader}\n", shard.shard_id, nodes.join(" "));
        }
        lines
    }
}
