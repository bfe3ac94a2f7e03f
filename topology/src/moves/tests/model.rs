//! A cluster in one value: nodes, groups, and a controller that carries out what is planned. Whatever is planned is held
//! against what no plan may do.

use std::collections::{BTreeMap, BTreeSet};

use super::checks::check_surplus;
use crate::{
    Membership, NodeId, ReplicaId, ShardId,
    growth::{GroupView, Moving, Step, next_step},
    map::{NodeState, ReplicaPlacement},
    moves::{Held, Host, Limits, Move, Shard, Why, gains, surplus},
    placement::{Candidate, Placement, place, spread_leaders},
    quorum::{meta_factor, odd_voters},
};

/// A cluster that has not come to rest after so many rounds never will.
const ROUNDS_MAX: usize = 2_000;

#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub placements: Vec<ReplicaPlacement>,
    pub membership: Membership,
    pub leader: Option<ReplicaId>,
    /// The move under way, and its new replica.
    pub moving: Option<(Move, ReplicaId)>,
    pub caught_up: BTreeSet<ReplicaId>,
    /// Damaged replicas.
    pub unfit: BTreeSet<ReplicaId>,
    pub preferred: Option<NodeId>,
}

#[derive(Clone, Debug)]
pub struct World {
    pub hosts: Vec<Host>,
    pub groups: BTreeMap<ShardId, Group>,
    pub factor: usize,
    pub limits: Limits,
    next_replica: u64,
    /// All moves that ever began.
    pub begun: Vec<Move>,
    /// What happened, for people.
    pub text: String,
}

/// A node, by its number.
pub const fn n(number: u64) -> NodeId {
    NodeId(number)
}

impl World {
    /// As many nodes as zones, meta and `shards` data shards, placed evenly.
    pub fn new(zones: &[&str], shards: u32, factor: usize) -> Self {
        let mut world = Self {
            hosts: Vec::new(),
            groups: BTreeMap::new(),
            factor,
            limits: Limits { at_once: 4, per_node: 2 },
            next_replica: 1,
            begun: Vec::new(),
            text: String::new(),
        };
        for zone in zones {
            world.add_node(zone);
        }
        world.form_all([ShardId::META]);
        world.form_all((1..=shards).map(ShardId));
        world.settle();
        world.begun.clear();
        world.text.clear();
        world
    }

    fn form_all(&mut self, shards: impl IntoIterator<Item = ShardId>) {
        let candidate = |host: &Host| Candidate { node: host.node, zone: host.zone.clone() };
        let candidates: Vec<Candidate> = self.hosts.iter().map(candidate).collect();
        let shards: Vec<ShardId> = shards.into_iter().collect();
        let Some(factor) = shards.first().map(|shard| self.factor_of(*shard)) else { return };
        let replicas = odd_voters(candidates.len(), factor);
        for (shard, nodes) in place(shards, replicas, &candidates, &Placement::new()) {
            self.form(shard, &nodes);
        }
    }

    fn form(&mut self, shard: ShardId, nodes: &BTreeSet<NodeId>) {
        let placements: Vec<ReplicaPlacement> =
            nodes.iter().map(|node| ReplicaPlacement { replica: self.mint(), node: *node }).collect();
        let voters: BTreeSet<ReplicaId> = placements.iter().map(|placed| placed.replica).collect();
        let group = Group {
            leader: voters.first().copied(),
            membership: Membership::uniform(voters.iter().copied()),
            caught_up: voters,
            placements,
            moving: None,
            unfit: BTreeSet::new(),
            preferred: None,
        };
        self.groups.insert(shard, group);
    }

    fn mint(&mut self) -> ReplicaId {
        self.next_replica += 1;
        ReplicaId(self.next_replica - 1)
    }

    pub fn say(&mut self, line: &str) {
        self.text += &format!("> {line}\n");
    }

    pub fn add_node(&mut self, zone: &str) -> NodeId {
        let node = NodeId(self.hosts.len() as u64 + 1);
        let zone = zone.to_owned();
        self.hosts.push(Host { node, zone, state: NodeState::Active, there: true, has_room: true });
        node
    }

    pub fn host(&mut self, node: NodeId) -> &mut Host {
        self.hosts.iter_mut().find(|host| host.node == node).unwrap()
    }

    pub fn host_of(&self, node: NodeId) -> &Host {
        self.hosts.iter().find(|host| host.node == node).unwrap()
    }

    /// Begins to drain a node, if the machine would let it.
    pub fn drain(&mut self, node: NodeId) -> bool {
        let active = self.in_state(NodeState::Active).filter(|other| *other != node).count();
        let may = active >= self.factor && self.host_of(node).state == NodeState::Active;
        if may {
            self.host(node).state = NodeState::Draining;
        }
        may
    }

    pub fn in_state(&self, state: NodeState) -> impl Iterator<Item = NodeId> {
        self.hosts.iter().filter(move |host| host.state == state).map(|host| host.node)
    }

    pub fn factor_of(&self, shard: ShardId) -> usize {
        let staying = self.hosts.iter().filter(|host| host.state.stays()).count();
        if shard.is_meta() { meta_factor(self.factor, staying) } else { self.factor }
    }

    pub fn is_there(&self, node: NodeId) -> bool {
        let host = self.host_of(node);
        host.there && host.state != NodeState::Removed
    }

    /// Replicas on a node, of all shards.
    pub fn held_by(&self, node: NodeId) -> usize {
        self.groups.values().filter(|group| group.placements.iter().any(|placed| placed.node == node)).count()
    }

    /// The shards as placement sees them.
    pub fn shards(&self) -> Vec<Shard> {
        self.groups.iter().map(|(id, group)| self.shard(*id, group)).collect()
    }

    fn shard(&self, id: ShardId, group: &Group) -> Shard {
        let factor = self.factor_of(id);
        let moving = group.moving;
        let inherits = moving.is_some_and(|(moving, _)| group.membership.is_voter(moving.from));
        let stays =
            |placed: &&ReplicaPlacement| moving.is_none_or(|(moving, _)| moving.from != placed.replica);
        let held = group.placements.iter().filter(stays).map(|placed| Held {
            replica: placed.replica,
            node: placed.node,
            voter: group.membership.is_voter(placed.replica)
                || (inherits && moving.is_some_and(|(_, to)| to == placed.replica)),
            fit: !group.unfit.contains(&placed.replica),
        });
        let held: Vec<Held> = held.collect();
        let voters = group.membership.goal().map_or(0, BTreeSet::len);
        let settled = moving.is_none()
            && !group.membership.is_joint()
            && group.placements.iter().all(|placed| group.membership.names(placed.replica))
            && voters == odd_voters(held.len(), factor);
        Shard { id, factor, held, settled, moving: moving.map(|(moving, _)| (moving.from_node, moving.to)) }
    }

    pub fn is_alive(&self, group: &Group, replica: ReplicaId) -> bool {
        let placed = group.placements.iter().find(|placed| placed.replica == replica);
        placed.is_some_and(|placed| self.is_there(placed.node))
    }

    /// Alive, fit and caught up.
    pub fn is_sound(&self, group: &Group, replica: ReplicaId) -> bool {
        self.is_alive(group, replica)
            && !group.unfit.contains(&replica)
            && (group.caught_up.contains(&replica) || group.leader == Some(replica))
    }

    /// One round of the controller. Groups that `skipped` names take no step. Whether anything was done.
    pub fn round(&mut self, skipped: &mut impl FnMut() -> bool) -> bool {
        let before = (self.hosts.clone(), self.groups.clone());
        self.elect();
        self.give_up_moves();
        self.begin_moves();
        let hosts = self.hosts.clone();
        let shards = self.shards();
        let gains = gains(&hosts, &shards);
        for shard in shards {
            let surplus = surplus(&hosts, &shard);
            check_surplus(&shard, &surplus);
            let step = self.next_step(shard.id, &surplus, gains.get(&shard.id).copied());
            if let Some(step) = step.filter(|_| !skipped()) {
                self.take(shard.id, step, &surplus);
            }
            self.check_group(shard.id);
        }
        self.catch_up(skipped);
        self.finish_drains();
        if self.is_at_rest() {
            self.spread_leaders();
        }
        before != (self.hosts.clone(), self.groups.clone())
    }

    /// All rounds to the end.
    pub fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            if !self.round(&mut || false) {
                assert!(self.planned_moves().is_empty(), "nothing changes and still a move is planned");
                return;
            }
        }
        panic!("does not come to rest:\n{}\n{:?}", self.text, self.hosts);
    }

    /// A group whose leader is silent or damaged elects another one, if it can.
    fn elect(&mut self) {
        for (id, group) in self.groups.clone() {
            let sound = |voter: ReplicaId| !group.unfit.contains(&voter) && self.is_alive(&group, voter);
            let voters = group.membership.all_voters();
            let leads = group.leader.filter(|leader| voters.contains(leader) && sound(*leader));
            let able =
                voters.iter().copied().filter(|voter| sound(*voter) && group.caught_up.contains(voter));
            let leader = leads.or_else(|| able.min()).filter(|_| group.membership.has_quorum(sound));
            self.groups.get_mut(&id).unwrap().leader = leader;
        }
    }

    /// A move whose goal is of no use any more, or whose cause is gone, is given up while the new replica does not vote.
    fn give_up_moves(&mut self) {
        for (id, group) in self.groups.clone() {
            let Some((moving, to)) = group.moving else { continue };
            let goal = self.host_of(moving.to);
            let usable = goal.state == NodeState::Active && goal.there && goal.has_room;
            let source = self.host_of(moving.from_node);
            let caused = match moving.why {
                Why::Drain | Why::Lost => source.state != NodeState::Active,
                Why::Removed | Why::Damaged | Why::Zones | Why::Balance => true,
            };
            let wanted = !surplus(&self.hosts, &self.shard(id, &group)).contains(&to);
            if group.membership.is_voter(to) || (usable && caused && wanted && !group.unfit.contains(&to)) {
                continue;
            }
            self.text += &format!("{id}: the move from {} to {} is given up\n", moving.from_node, moving.to);
            self.groups.get_mut(&id).unwrap().moving = None;
        }
    }

    fn begin_moves(&mut self) {
        for planned in self.planned_moves() {
            let Move { shard, from, from_node, to, why } = planned;
            let replica = self.mint();
            let group = self.groups.get_mut(&shard).unwrap();
            if from_node == to {
                group.placements.retain(|placed| placed.replica != from);
            }
            group.placements.push(ReplicaPlacement { replica, node: to });
            group.moving = Some((planned, replica));
            self.begun.push(planned);
            self.text += &format!("{shard}: moves from {from_node} to {to}: {why:?}\n");
        }
    }

    fn next_step(&self, id: ShardId, surplus: &BTreeSet<ReplicaId>, gain: Option<NodeId>) -> Option<Step> {
        let group = &self.groups[&id];
        let there = self.hosts.iter().map(|host| host.node).filter(|node| self.is_there(*node)).collect();
        let caught_up = group.caught_up.difference(&group.unfit).copied().collect();
        let gone = self.in_state(NodeState::Removed).collect();
        next_step(&GroupView {
            placements: &group.placements,
            membership: &group.membership,
            leader: group.leader?,
            caught_up: &caught_up,
            alive: &there,
            gone: &gone,
            moving: group.moving.map(|(moving, to)| Moving { from: moving.from, to }),
            surplus,
            gain,
            replication_factor: self.factor_of(id),
            preferred_leader: group.preferred,
        })
    }

    fn take(&mut self, id: ShardId, step: Step, surplus: &BTreeSet<ReplicaId>) {
        self.check_step(id, &step, surplus);
        self.text += &self.told(id, &step);
        let minted = self.mint();
        let group = self.groups.get_mut(&id).unwrap();
        match step {
            Step::FinishJoint { voters } => {
                let before = std::mem::take(&mut group.membership.voters);
                let left = before.into_iter().flatten().filter(|voter| !voters.contains(voter)).collect();
                // Who was elected in between may be outside the new set: it steps down.
                group.leader = group.leader.filter(|leader| voters.contains(leader));
                group.membership.voters = vec![voters];
                group.forget(&left);
            }
            Step::AddLearner(placed) => {
                group.membership.learners.insert(placed.replica);
            }
            Step::SetVoters { voters } => {
                group.membership.learners.retain(|learner| !voters.contains(learner));
                group.membership.voters.push(voters);
            }
            Step::EndMove => group.moving = None,
            Step::RemoveLearner(replica) => {
                group.membership.learners.remove(&replica);
                group.forget(&[replica].into());
            }
            Step::DropPlacement(replica) => group.forget(&[replica].into()),
            Step::AddReplica { node } => {
                group.placements.push(ReplicaPlacement { replica: minted, node });
            }
            Step::TransferLeader(placed) => group.leader = Some(placed.replica),
        }
    }

    /// Members on living nodes follow their leader; the others fall behind it.
    fn catch_up(&mut self, skipped: &mut impl FnMut() -> bool) {
        for (id, group) in self.groups.clone().into_iter().filter(|(_, group)| group.leader.is_some()) {
            let members = group.membership.all_voters().into_iter().chain(group.membership.learners.clone());
            let follows =
                |replica: &ReplicaId| self.is_alive(&group, *replica) && !group.unfit.contains(replica);
            let mut late = |replica: &ReplicaId| !group.caught_up.contains(replica) && skipped();
            let follows: BTreeSet<ReplicaId> = members.filter(follows).collect();
            let late: BTreeSet<ReplicaId> = follows.iter().copied().filter(|replica| late(replica)).collect();
            self.groups.get_mut(&id).unwrap().caught_up = follows.difference(&late).copied().collect();
        }
    }

    fn finish_drains(&mut self) {
        for node in self.in_state(NodeState::Draining).collect::<Vec<_>>() {
            if self.held_by(node) == 0 {
                self.host(node).state = NodeState::Drained;
                self.text += &format!("{node}: is empty\n");
            }
        }
    }

    fn is_at_rest(&self) -> bool {
        self.shards().iter().all(|shard| shard.settled) && self.planned_moves().is_empty()
    }

    /// As the planner does when the groups have come to rest.
    fn spread_leaders(&mut self) {
        let voting = |group: &Group| {
            let placed = group.placements.iter().filter(|placed| group.membership.is_voter(placed.replica));
            let usable = placed.filter(|placed| self.host_of(placed.node).state == NodeState::Active);
            usable.map(|placed| placed.node).collect()
        };
        let data = || self.groups.iter().filter(|(id, _)| !id.is_meta());
        let holders: Placement = data().map(|(id, group)| (*id, voting(group))).collect();
        let wishes: BTreeMap<ShardId, NodeId> =
            data().filter_map(|(id, group)| Some((*id, group.preferred?))).collect();
        for (id, node) in spread_leaders(&holders, &wishes) {
            self.groups.get_mut(&id).unwrap().preferred = Some(node);
        }
    }
}

impl Group {
    /// What left the group is seen to have left, and is placed nowhere from then on.
    fn forget(&mut self, replicas: &BTreeSet<ReplicaId>) {
        self.placements.retain(|placed| !replicas.contains(&placed.replica));
    }
}
