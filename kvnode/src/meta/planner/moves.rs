//! Moves: which begin, and which are given up.

use std::{collections::BTreeMap, time::Duration};

use kv_proto::disk::v1::{
    Move as UnderWay, MoveReason, NodeState, ShardRecord,
    meta_command::{BeginMove, Command, EndMove},
};
use kv_topology::{
    GroupId, NodeId, ReplicaId, ShardId,
    moves::{Held, Host, Limits, Move, Shard, Why, next_moves},
};

use super::{
    Planner, Subject,
    groups::{lag, progress_of},
    layout::known_membership,
    spell,
};
use crate::meta::machine;

/// Replicas that come to a node or leave it at the same time: each snapshot takes from what the node does for clients.
const MOVES_PER_NODE: usize = 2;

/// Looks for moves that may begin in a plan: after each but the first, other targets were found not to suit.
const ATTEMPTS: usize = 16;

impl Planner<'_> {
    /// Plans the moves that may begin now.
    pub(super) fn begin_moves(&mut self) {
        let hosts = self.targets();
        let mut shards = self.layout.shards.clone();
        for shard in &mut shards {
            if !self.layout.is_at_rest(shard.id) || !self.is_free(shard.id) {
                pass_over(shard);
            }
        }
        for _ in 0..ATTEMPTS {
            let found = next_moves(&hosts, &shards, self.limits());
            if found.iter().any(|found| !must_be(found.why)) {
                self.begin_improvements(&shards);
                return;
            }
            if found.is_empty() {
                return;
            }
            for wanted in found {
                let suitable = self.suitable(&hosts, &shards, wanted);
                let Some(shard) = shards.iter_mut().find(|shard| shard.id == wanted.shard) else { continue };
                match suitable {
                    Some(chosen) => {
                        note(shard, chosen);
                        self.begin_move(chosen);
                    }
                    None => pass_over(shard),
                }
            }
        }
    }

    /// Moves that only make things better wait until their target is as it should be.
    fn begin_improvements(&mut self, shards: &[Shard]) {
        let greatest = shards.iter().map(|shard| self.bytes_of(shard.id)).max().unwrap_or(0);
        let roomy = |host: &Host| Host {
            has_room: host.has_room && self.free_bytes(host.node).is_none_or(|free| free > greatest),
            ..host.clone()
        };
        let hosts: Vec<Host> = self.targets().iter().map(roomy).collect();
        for found in next_moves(&hosts, shards, self.limits()) {
            if !self.seen.avoided.contains(&(found.shard, found.to)) {
                self.begin_move(found);
            }
        }
    }

    fn limits(&self) -> Limits {
        let at_once = machine::policy(self.record).moves_at_once as usize;
        Limits { at_once, per_node: MOVES_PER_NODE }
    }

    /// A node that was let go for a restart is no target meanwhile.
    fn targets(&self) -> Vec<Host> {
        let holder = self.permit_holder();
        let usable = |host: &Host| Host { there: host.there && Some(host.node) != holder, ..host.clone() };
        self.layout.hosts.iter().map(usable).collect()
    }

    /// The move that was found, or one of the same shard to a better node: where its bytes fit, and where none was
    /// given up a while ago. Where one was is better than nowhere.
    fn suitable(&self, hosts: &[Host], shards: &[Shard], wanted: Move) -> Option<Move> {
        let avoided = |node: NodeId| self.seen.avoided.contains(&(wanted.shard, node));
        // A damaged replica that is replaced on its own node has no other place to go.
        if wanted.to == wanted.from_node || (self.fits(wanted.shard, wanted.to) && !avoided(wanted.to)) {
            return Some(wanted);
        }
        let mut alone = shards.to_vec();
        alone.iter_mut().filter(|shard| shard.id != wanted.shard).for_each(pass_over);
        let elsewhere = |closed: &dyn Fn(NodeId) -> bool| {
            let open = |host: &Host| Host { has_room: host.has_room && !closed(host.node), ..host.clone() };
            let hosts: Vec<Host> = hosts.iter().map(open).collect();
            next_moves(&hosts, &alone, self.limits()).into_iter().find(|found| must_be(found.why))
        };
        let full = |node: NodeId| !self.fits(wanted.shard, node);
        elsewhere(&|node| full(node) || avoided(node)).or_else(|| elsewhere(&full))
    }

    /// Whether the node's disk has room for the shard, as far as both are known.
    fn fits(&self, shard: ShardId, node: NodeId) -> bool {
        self.free_bytes(node).is_none_or(|free| free > self.bytes_of(shard))
    }

    fn free_bytes(&self, node: NodeId) -> Option<u64> {
        let told = self.seen.nodes.get(&node).filter(|told| told.disk_total_bytes > 0)?;
        Some(told.disk_total_bytes.saturating_sub(told.disk_used_bytes))
    }

    /// Bytes of the greatest replica of a shard; 0: nobody has told.
    fn bytes_of(&self, shard: ShardId) -> u64 {
        let held = self.layout.shards.iter().find(|known| known.id == shard);
        let held = held.map(|shard| shard.held.as_slice()).unwrap_or_default();
        let names = |id: u64| held.iter().any(|held| held.replica.0 == id);
        let sizes = self.seen.nodes.values().flat_map(|told| &told.sizes);
        sizes.filter(|size| names(size.replica_id)).map(|size| size.bytes).max().unwrap_or(0)
    }

    fn begin_move(&mut self, chosen: Move) {
        let reason = match chosen.why {
            Why::Drain => MoveReason::Drain,
            Why::Lost => MoveReason::Lost,
            Why::Removed => MoveReason::Removed,
            Why::Damaged => MoveReason::Damaged,
            Why::Zones => MoveReason::Zones,
            Why::Balance => MoveReason::Balance,
        };
        let evidence = self.evidence(chosen);
        let command = BeginMove {
            shard_id: chosen.shard.0,
            from_replica_id: chosen.from.0,
            to_node_id: chosen.to.0,
            reason: reason.into(),
            expected_epoch: self.epoch(),
        };
        self.propose(Subject::Shard(chosen.shard), Command::BeginMove(command), evidence);
    }

    /// Why the replica moves, and why there.
    fn evidence(&self, chosen: Move) -> String {
        let Move { shard, from, from_node, to, why } = chosen;
        let said = |node: NodeId| {
            let reason = self.node(node).map(|node| node.state_reason.as_str()).unwrap_or_default();
            if reason.is_empty() { String::new() } else { format!(" ({reason})") }
        };
        let loads = self.loads(shard.is_meta());
        let load = |node: NodeId| loads.get(&node).copied().unwrap_or(0);
        match why {
            Why::Drain => {
                format!("{from_node} is draining{}; {to} holds {} replicas", said(from_node), load(to))
            }
            Why::Lost => format!("{from_node} is lost{}; {to} holds {} replicas", said(from_node), load(to)),
            Why::Removed => {
                format!("{from_node} was removed{}; {to} holds {} replicas", said(from_node), load(to))
            }
            Why::Damaged => format!("{from_node} says that {from} is damaged or has lost its data"),
            Why::Zones => {
                format!("{shard} is held in zones {}; {to} is in {}", self.zones(shard), self.zone(to))
            }
            Why::Balance => {
                format!("{from_node} holds {} replicas, {to} holds {}", load(from_node), load(to))
            }
        }
    }

    /// Replicas by node, once the moves under way are done: of meta, or of all data shards.
    fn loads(&self, meta: bool) -> BTreeMap<NodeId, usize> {
        let shards = self.layout.shards.iter().filter(|shard| shard.id.is_meta() == meta);
        let mut loads = BTreeMap::new();
        for held in shards.flat_map(|shard| &shard.held) {
            *loads.entry(held.node).or_default() += 1;
        }
        loads
    }

    fn zone(&self, node: NodeId) -> String {
        let zone = self.layout.host(node).map(|host| host.zone.clone()).unwrap_or_default();
        if zone.is_empty() { "none".to_owned() } else { zone }
    }

    fn zones(&self, shard: ShardId) -> String {
        let held = self.layout.shards.iter().find(|known| known.id == shard);
        let held = held.map(|shard| shard.held.as_slice()).unwrap_or_default();
        held.iter().map(|held| self.zone(held.node)).collect::<Vec<_>>().join(" ")
    }

    /// The end of the move under way, when it cannot go on or is needed no more, and why. Not while its group may be
    /// changing its voters, and not once its new replica votes: then it is done rather than undone.
    pub(super) fn move_to_abandon(&self, shard: &ShardRecord) -> Option<(EndMove, String)> {
        let under_way = shard.r#move.filter(|_| shard.change.is_none())?;
        let known = known_membership(shard, self.seen);
        if known.is_joint() || known.is_voter(ReplicaId(under_way.to_replica_id)) {
            return None;
        }
        let reason =
            self.why_impossible(shard, &under_way).or_else(|| self.why_needless(shard, &under_way))?;
        let end = EndMove { shard_id: shard.shard_id, move_id: under_way.move_id, abandoned: true };
        Some((end, reason))
    }

    fn why_impossible(&self, shard: &ShardRecord, under_way: &UnderWay) -> Option<String> {
        let (to, replica) = (NodeId(under_way.to_node_id), ReplicaId(under_way.to_replica_id));
        let state = self.state(to);
        if state != NodeState::Active {
            return Some(format!("{to} is {state:?}"));
        }
        // A leader would neither take it in nor let it go.
        if shard.replicas.iter().all(|placement| placement.replica_id != replica.0) {
            return Some(format!("{replica} is placed nowhere"));
        }
        if self.seen.unfit.contains(&replica) {
            return Some(format!("{to} says that {replica} is damaged or has lost its data"));
        }
        if self.seen.full.contains(&to) {
            return Some(format!("the disk of {to} is nearly full"));
        }
        let silent = self.seen.silent.get(&to).filter(|_| self.permit_holder() != Some(to));
        if let Some(silent) = silent.filter(|silent| **silent >= self.patience.target_silence) {
            return Some(format!("{to} has been silent for {}", spell(*silent)));
        }
        let stalled = *self.seen.stalled.get(&under_way.move_id)?;
        let sending = Duration::from_secs(
            self.bytes_of(ShardId(shard.shard_id)) / self.patience.slowest_snapshot.max(1),
        );
        (stalled >= self.patience.target_stall + sending).then(|| {
            let description = self.seen.groups.get(&GroupId(shard.group_id));
            let known = description.filter(|told| progress_of(told, replica).is_some());
            let lagging =
                known.map_or_else(|| format!("{replica} (not reached yet)"), |told| lag(told, replica));
            format!("{lagging} has come no further for {}", spell(stalled))
        })
    }

    /// What caused the move is gone.
    fn why_needless(&self, shard: &ShardRecord, under_way: &UnderWay) -> Option<String> {
        let from = NodeId(under_way.from_node_id);
        let is_active = self.state(from) == NodeState::Active;
        if self.layout.surplus_of(ShardId(shard.shard_id)).contains(&ReplicaId(under_way.to_replica_id)) {
            return Some(format!("s{} has replicas enough", shard.shard_id));
        }
        match under_way.reason() {
            MoveReason::Drain if is_active => Some(format!("{from} is not draining any more")),
            MoveReason::Lost if is_active => Some(format!("{from} is back")),
            MoveReason::Drain
            | MoveReason::Lost
            | MoveReason::Removed
            | MoveReason::Damaged
            | MoveReason::Zones
            | MoveReason::Balance
            | MoveReason::Unspecified => None,
        }
    }
}

/// Whether a replica cannot stay where it is.
const fn must_be(why: Why) -> bool {
    match why {
        Why::Drain | Why::Lost | Why::Removed | Why::Damaged => true,
        Why::Zones | Why::Balance => false,
    }
}

/// The shard as it will be once `begun` is done.
fn note(shard: &mut Shard, begun: Move) {
    let voter = shard.held.iter().any(|held| held.replica == begun.from && held.voter);
    shard.held.retain(|held| held.replica != begun.from);
    // Its id is minted when the move begins; nothing is decided by it before.
    shard.held.push(Held { replica: ReplicaId(u64::MAX), node: begun.to, voter, fit: true });
    shard.moving = Some((begun.from_node, begun.to));
    shard.settled = false;
}

/// Keeps moves of the shard from being planned: it has more replicas than it should, as far as `next_moves` can see.
fn pass_over(shard: &mut Shard) {
    shard.factor = 0;
    shard.settled = false;
}
