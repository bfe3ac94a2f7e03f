//! What no plan and no step may do, whatever has happened before.

use std::collections::BTreeSet;

use super::model::World;
use crate::{
    NodeId, ReplicaId, ShardId,
    growth::Step,
    map::{NodeState, ReplicaPlacement},
    moves::{Move, Shard, Why, next_moves},
    quorum::majority,
};

impl World {
    /// The next moves, held against what no move may be.
    pub fn planned_moves(&self) -> Vec<Move> {
        let shards = self.shards();
        let moves = next_moves(&self.hosts, &shards, self.limits);
        for planned in &moves {
            self.check_move(planned);
        }
        let shards_moved: BTreeSet<ShardId> = moves.iter().map(|planned| planned.shard).collect();
        assert_eq!(shards_moved.len(), moves.len(), "one move a shard: {moves:?}");
        self.check_limits(&moves);
        moves
    }

    pub fn check_move(&self, planned: &Move) {
        let Move { shard, from, from_node, to, why } = *planned;
        let group = &self.groups[&shard];
        assert!(group.moving.is_none(), "{planned:?}");
        assert!(
            group.placements.contains(&ReplicaPlacement { replica: from, node: from_node }),
            "{planned:?}"
        );
        let goal = self.host_of(to);
        let takes = goal.state == NodeState::Active && goal.there && goal.has_room;
        assert!(takes, "{planned:?} to {goal:?}");
        let held = group.placements.iter().any(|placed| placed.node == to && placed.replica != from);
        assert!(!held && (to != from_node || why == Why::Damaged), "{planned:?}");
        let decides = |voter: ReplicaId| !group.unfit.contains(&voter) && self.is_alive(group, voter);
        // A joint configuration is not seen here; who carries out the move waits for its end.
        let decided = group.membership.is_joint() || group.membership.has_quorum(decides);
        assert!(decided, "{planned:?} of {group:?}");
        let state = self.host_of(from_node).state;
        let damaged = group.unfit.contains(&from);
        match why {
            Why::Removed => assert_eq!(state, NodeState::Removed),
            Why::Lost => assert_eq!(state, NodeState::Lost),
            Why::Damaged => assert!(damaged),
            Why::Drain => assert!(matches!(state, NodeState::Draining | NodeState::Drained)),
            Why::Zones | Why::Balance => {
                assert!(!damaged && state == NodeState::Active, "{planned:?}");
                assert!(self.in_state(NodeState::Active).all(|node| self.is_there(node)), "{planned:?}");
                assert!(self.groups.values().all(|group| group.moving.is_none()), "{planned:?}");
            }
        }
    }

    pub fn check_limits(&self, planned: &[Move]) {
        let under_way = self.groups.values().filter_map(|group| Some(group.moving?.0));
        let all: Vec<Move> = planned.iter().copied().chain(under_way).collect();
        assert!(planned.is_empty() || all.len() <= self.limits.at_once, "{all:?}");
        for host in &self.hosts {
            let dead = matches!(host.state, NodeState::Lost | NodeState::Removed);
            let busy = |of: &&Move| of.to == host.node || (of.from_node == host.node && !dead);
            let new = planned.iter().filter(busy).count();
            assert!(new == 0 || all.iter().filter(busy).count() <= self.limits.per_node, "{all:?}");
        }
    }

    pub fn check_step(&self, id: ShardId, step: &Step, surplus: &BTreeSet<ReplicaId>) {
        let group = &self.groups[&id];
        let says = || format!("{step:?} of {id}: {group:?}");
        match step {
            Step::SetVoters { voters } => {
                let now = group.membership.goal().unwrap();
                let pair = now.len() == 1 && voters.len() == 2 && voters.is_superset(now);
                assert!(voters.len() % 2 == 1 || pair, "{}", says());
                for set in [now, voters] {
                    let sound = set.iter().filter(|voter| self.is_sound(group, **voter)).count();
                    assert!(sound >= majority(set.len()), "{}", says());
                }
                assert!(group.leader.is_some_and(|leader| voters.contains(&leader)), "{}", says());
                let was_pair = now.len() == 2 && voters.len() == 1;
                let fewer = voters.len() < now.len() && !was_pair;
                assert!(!fewer || now.iter().any(|voter| surplus.contains(voter)), "{}", says());
            }
            Step::TransferLeader(placed) => {
                assert!(group.membership.is_voter(placed.replica), "{}", says());
                assert!(self.is_sound(group, placed.replica), "{}", says());
            }
            Step::RemoveLearner(replica) => {
                assert!(group.membership.learners.contains(replica), "{}", says());
            }
            Step::DropPlacement(replica) => {
                assert!(!group.membership.names(*replica), "{}", says());
                assert!(group.moving.is_none_or(|(moving, to)| ![moving.from, to].contains(replica)));
            }
            Step::EndMove => {
                let (moving, to) = group.moving.unwrap();
                assert!(group.membership.names(to) && !group.membership.names(moving.from), "{}", says());
            }
            Step::AddReplica { node } => {
                let host = self.host_of(*node);
                assert!(host.state == NodeState::Active && host.there && host.has_room, "{}", says());
            }
            Step::FinishJoint { .. } | Step::AddLearner(_) => {}
        }
    }

    /// What must hold at all times: one replica of a shard on a node, and the leader votes.
    pub fn check_group(&self, id: ShardId) {
        let group = &self.groups[&id];
        let nodes: BTreeSet<NodeId> = group.placements.iter().map(|placed| placed.node).collect();
        assert_eq!(nodes.len(), group.placements.len(), "{id}: {group:?}");
        assert!(group.leader.is_none_or(|leader| group.membership.is_voter(leader)), "{id}: {group:?}");
    }
}

/// As many as there are too many, and never the last fit one.
pub fn check_surplus(shard: &Shard, surplus: &BTreeSet<ReplicaId>) {
    assert_eq!(surplus.len(), shard.held.len().saturating_sub(shard.factor), "{shard:?}");
    let fit = shard.held.iter().filter(|held| held.fit);
    assert!(fit.clone().count() == 0 || !fit.into_iter().all(|held| surplus.contains(&held.replica)));
}
