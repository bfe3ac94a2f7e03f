//! The record and what was seen in the words of [`kv_topology::moves`]: nodes, and shards as they will be once the
//! moves under way are done. What is planned on this view comes to an end.

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::disk::v1::{MetaRecord, NodeRecord, NodeState, ShardRecord};
use kv_topology::{
    GroupId, Membership, NodeId, ReplicaId, ShardId,
    map::NodeState as HostState,
    moves::{self, Held, Host, Shard},
    quorum::odd_voters,
};

use super::{
    Seen, Subject, factor_of,
    groups::{is_near, progress_of},
};
use crate::meta::view::{log_position, membership, placements, zone_of};

/// Nodes and shards for the placement, and what it says at once.
pub(super) struct Layout {
    pub(super) hosts: Vec<Host>,
    pub(super) shards: Vec<Shard>,
    /// Where shards that have too few replicas get their next one.
    pub(super) gains: BTreeMap<ShardId, NodeId>,
    /// Replicas that shards have too many of.
    surplus: BTreeMap<ShardId, BTreeSet<ReplicaId>>,
    /// Shards that no move can begin in now.
    busy: BTreeSet<ShardId>,
}

impl Layout {
    pub(super) fn of(record: &MetaRecord, seen: &Seen) -> Self {
        let hosts: Vec<Host> = record.nodes.iter().map(|node| host(node, seen)).collect();
        let mut shards: Vec<Shard> =
            record.shards.iter().map(|shard| shard_of(record, shard, seen)).collect();
        let gains = moves::gains(&hosts, &shards);
        let surplus = surplus(&hosts, &shards, record, seen);
        let mut busy = BTreeSet::new();
        for (shard, known) in shards.iter_mut().zip(&record.shards) {
            let at_rest = is_at_rest(known, seen);
            if !at_rest {
                busy.insert(shard.id);
            }
            shard.settled = at_rest
                && !surplus.contains_key(&shard.id)
                && !gains.contains_key(&shard.id)
                && has_its_voters(shard, known, &hosts);
        }
        Self { hosts, shards, gains, surplus, busy }
    }

    /// Whether a move of the shard can begin: nothing is under way, and the group has a leader that would carry it out.
    pub(super) fn is_at_rest(&self, shard: ShardId) -> bool {
        !self.busy.contains(&shard)
    }

    /// The node as placement sees it.
    pub(super) fn host(&self, node: NodeId) -> Option<&Host> {
        self.hosts.iter().find(|host| host.node == node)
    }

    /// The replicas of a shard that are to be taken away.
    pub(super) fn surplus_of(&self, shard: ShardId) -> BTreeSet<ReplicaId> {
        self.surplus.get(&shard).cloned().unwrap_or_default()
    }
}

fn host(node: &NodeRecord, seen: &Seen) -> Host {
    let id = NodeId(node.node_id);
    Host {
        node: id,
        zone: zone_of(node).to_owned(),
        state: host_state(node.state()),
        there: seen.heard.contains(&id),
        has_room: !seen.full.contains(&id),
    }
}

pub(super) const fn host_state(state: NodeState) -> HostState {
    match state {
        // A state that this version does not know: nothing is placed there, and nothing taken away.
        NodeState::Joining | NodeState::Unspecified => HostState::Joining,
        NodeState::Active => HostState::Active,
        NodeState::Draining => HostState::Draining,
        NodeState::Drained => HostState::Drained,
        NodeState::Lost => HostState::Lost,
        NodeState::Removed => HostState::Removed,
    }
}

fn shard_of(record: &MetaRecord, shard: &ShardRecord, seen: &Seen) -> Shard {
    let known = shard.observed.as_ref().map(membership).unwrap_or_default();
    let (from, to) = shard.r#move.map_or((None, None), |under_way| {
        (Some(ReplicaId(under_way.from_replica_id)), Some(ReplicaId(under_way.to_replica_id)))
    });
    let inherits = from.is_some_and(|from| known.is_voter(from));
    let held = placements(shard).into_iter().filter(|placement| Some(placement.replica) != from);
    let held = held.map(|placement| Held {
        replica: placement.replica,
        node: placement.node,
        voter: known.is_voter(placement.replica) || (inherits && Some(placement.replica) == to),
        fit: !seen.unfit.contains(&placement.replica),
    });
    Shard {
        id: ShardId(shard.shard_id),
        factor: factor_of(record, shard),
        held: held.collect(),
        settled: false,
        moving: shard.r#move.map(|under_way| (NodeId(under_way.from_node_id), NodeId(under_way.to_node_id))),
    }
}

/// Replicas that shards have too many of. First of all those that do not vote and are not about to: the new replica of
/// a move that was given up must not stand in the way of the next one.
fn surplus(
    hosts: &[Host],
    shards: &[Shard],
    record: &MetaRecord,
    seen: &Seen,
) -> BTreeMap<ShardId, BTreeSet<ReplicaId>> {
    let mut surplus: BTreeMap<ShardId, BTreeSet<ReplicaId>> = BTreeMap::new();
    for (shard, known) in shards.iter().zip(&record.shards) {
        let comes = known.r#move.map(|under_way| ReplicaId(under_way.to_replica_id));
        let useless = |held: &&Held| {
            !held.voter && Some(held.replica) != comes && !could_vote(hosts, held, known, seen)
        };
        let excess = shard.held.len().saturating_sub(shard.factor);
        let mut found: BTreeSet<ReplicaId> =
            shard.held.iter().filter(useless).map(|held| held.replica).take(excess).collect();
        let others = shard.held.iter().filter(|held| !found.contains(&held.replica)).copied().collect();
        found.extend(moves::surplus(hosts, &Shard { held: others, ..shard.clone() }));
        if !found.is_empty() {
            surplus.insert(shard.id, found);
        }
    }
    surplus
}

/// Whether a learner is as good as a voter.
fn could_vote(hosts: &[Host], held: &Held, known: &ShardRecord, seen: &Seen) -> bool {
    let host = hosts.iter().find(|host| host.node == held.node);
    let takes = host.is_some_and(|host| host.state == HostState::Active && host.there && host.has_room);
    let description = seen.groups.get(&GroupId(known.group_id));
    let near = description.is_some_and(|description| {
        progress_of(description, held.replica)
            .is_some_and(|progress| is_near(progress, description.last_log_index))
    });
    held.fit && takes && near
}

/// Nothing is under way, and the group has a leader that would carry out a move now: one that cannot go on would keep
/// others from beginning.
fn is_at_rest(shard: &ShardRecord, seen: &Seen) -> bool {
    let Some(observed) = &shard.observed else { return false };
    let Some(description) = seen.groups.get(&GroupId(shard.group_id)) else { return false };
    let told = description.membership.as_ref();
    let alive = |replica: ReplicaId| {
        let placed = shard.replicas.iter().find(|placement| placement.replica_id == replica.0);
        !seen.unfit.contains(&replica)
            && (description.leader_replica_id == replica.0
                || placed.is_some_and(|placement| seen.heard.contains(&NodeId(placement.node_id))))
    };
    shard.r#move.is_none()
        && shard.change.is_none()
        && !seen.held.contains(&Subject::Shard(ShardId(shard.shard_id)))
        && told.is_some_and(|told| log_position(told) == log_position(observed))
        && membership(observed).has_quorum(alive)
}

/// As many replicas vote as there should be, unless one that is of no use is the reason.
fn has_its_voters(shard: &Shard, known: &ShardRecord, hosts: &[Host]) -> bool {
    let observed = known.observed.as_ref().map(membership).unwrap_or_default();
    let voters = observed.goal().map_or(0, BTreeSet::len);
    let ails = |held: &Held| {
        let host = hosts.iter().find(|host| host.node == held.node);
        !held.fit || host.is_none_or(|host| host.state != HostState::Active)
    };
    voters == odd_voters(shard.held.len(), shard.factor) || shard.held.iter().any(ails)
}

/// Where a replica is: where it is placed, or where its group says. That of a replica which was replaced on its own
/// node is placed nowhere.
pub(super) fn node_of(shard: &ShardRecord, replica: ReplicaId) -> Option<NodeId> {
    let placed = shard.replicas.iter().find(|placement| placement.replica_id == replica.0);
    let placed = placed.map(|placement| placement.node_id);
    let members = || {
        let observed = shard.observed.as_ref()?.membership.as_ref()?;
        let member = observed.members.iter().find(|member| member.replica_id == replica.0)?;
        Some(member.node_id)
    };
    placed.or_else(members).map(NodeId)
}

/// The membership that counts: as the group's leader tells it, or as it was last seen.
pub(super) fn known_membership(shard: &ShardRecord, seen: &Seen) -> Membership {
    let told = seen.groups.get(&GroupId(shard.group_id)).and_then(|told| told.membership.as_ref());
    told.or(shard.observed.as_ref()).map(membership).unwrap_or_default()
}
