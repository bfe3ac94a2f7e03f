//! Which replicas should move, where missing ones go, and which are one too many.
//!
//! Flow: nodes and shards come in, shards as they will be once the moves under way are done; a few moves come out, those
//! that may begin now. Planned on that view, it converges and stops: what was planned is in the next view, and when
//! nothing is left to improve, nothing is planned.
//!
//! A shard first gets what it lacks ([`gains`]) and loses what it has too much of ([`surplus`]). Then replicas move that
//! must: off removed and lost nodes, damaged ones, off draining nodes. Only when no replica must, everybody is there and
//! all shards have settled, replicas are spread better over zones, then over nodes. A node that is silent for a
//! moment is neither a goal nor a reason to move.
//!
//! Nothing is planned for a shard whose voters do not decide: nobody could carry it out.

mod balance;
mod forced;
mod room;
mod scene;
mod surplus;

use std::collections::{BTreeMap, BTreeSet};

use self::{room::Room, scene::Scene};
use crate::{NodeId, ReplicaId, ShardId, map::NodeState};

/// A node, as far as it matters to placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The node.
    pub node: NodeId,
    /// Nodes of one zone may fail together. Empty: unknown, a zone like any other.
    pub zone: String,
    /// Where in its life it is. Only an active one is given replicas.
    pub state: NodeState,
    /// Heard of lately and not stopping.
    pub there: bool,
    /// Its disk takes more.
    pub has_room: bool,
}

/// A replica of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The replica.
    pub replica: ReplicaId,
    /// Where it is.
    pub node: NodeId,
    /// Whether it votes, or will in place of one that does. Otherwise it learns, or is no member yet.
    pub voter: bool,
    /// Not so: it is damaged or lost its data, and never starts again.
    pub fit: bool,
}

/// A shard, as it will be once the move under way is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// The shard. Loads of meta and of data shards are evened out apart from each other.
    pub id: ShardId,
    /// How many replicas are wished for.
    pub factor: usize,
    /// All that are placed, but for the one that the move under way takes the place of.
    pub held: Vec<Held>,
    /// No move, no change of voters, formed, and as many replicas as wished for, as far as there are nodes.
    pub settled: bool,
    /// From where to where the move under way goes.
    pub moving: Option<(NodeId, NodeId)>,
}

/// How many moves may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In the whole cluster.
    pub at_once: usize,
    /// That come to a node or leave it. Nothing leaves a node that is lost or removed: its replicas are rebuilt.
    pub per_node: usize,
}

/// Why a replica moves; in the order of `MoveReason` on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Its node is draining.
    Drain,
    /// Its node was silent for longer than the grace time.
    Lost,
    /// Its node is no longer part of the cluster.
    Removed,
    /// It is damaged or lost its data.
    Damaged,
    /// The replicas of its shard spread better over zones.
    Zones,
    /// The replicas of all shards spread better over nodes.
    Balance,
}

/// A replica whose place a new one should take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Of this shard.
    pub shard: ShardId,
    /// It leaves.
    pub from: ReplicaId,
    /// Where it is.
    pub from_node: NodeId,
    /// Where the new one will be. `from_node` only for a damaged one when no other node can take it.
    pub to: NodeId,
    /// What for.
    pub why: Why,
}

/// The moves that may begin now: at most one for each shard that has none, as many as the limits leave room for. A shard with
/// more replicas than its factor has none: first it loses some.
pub fn next_moves(hosts: &[Host], shards: &[Shard], limits: Limits) -> Vec<Move> {
    let scene = Scene::new(hosts, shards);
    let mut room = Room::new(limits, &scene, shards);
    if forced::is_any_wished(&scene, shards) {
        return forced::forced_moves(&scene, shards, &mut room);
    }
    let waits = hosts.iter().any(|host| host.state.takes_replicas() && !host.there);
    let settled = |shard: &Shard| {
        let lacks = shard.held.len() < shard.factor && scene.has_goal(shard);
        shard.settled && shard.moving.is_none() && shard.held.len() <= shard.factor && !lacks
    };
    if waits || !shards.iter().all(settled) {
        return Vec::new();
    }
    balance::balancing_moves(&scene, shards, &mut room)
}

/// Where each shard that has too few replicas gets its next one. Shards without a node for it are left out.
pub fn gains(hosts: &[Host], shards: &[Shard]) -> BTreeMap<ShardId, NodeId> {
    let missing = |shard: &Shard| shard.factor.saturating_sub(shard.held.len());
    let wanted: Vec<(&Shard, usize)> =
        shards.iter().map(|shard| (shard, missing(shard))).filter(|(_, missing)| *missing > 0).collect();
    let goals = Scene::new(hosts, shards).goals(&wanted);
    goals.into_iter().filter_map(|(shard, goals)| Some((shard, goals.first().copied()?))).collect()
}

/// Which replicas a shard that has more than its factor should lose, down to it: learners that could not vote first, then
/// unfit ones, those on nodes that are lost or removed, those on draining nodes, other learners, those on silent nodes, in a
/// zone with many, on a full node.
///
/// The new replica of a move under way is kept if it can be. The last fit one is never among them. What is left to choose
/// differs from shard to shard, so that the loads of the nodes stay about even.
pub fn surplus(hosts: &[Host], shard: &Shard) -> BTreeSet<ReplicaId> {
    surplus::surplus(&Scene::new(hosts, &[]), shard)
}

#[cfg(test)]
mod tests;
