//! What a controller found out since it leads. A later leadership finds the world changed, and begins with an empty
//! memory.
//!
//! Nothing here is needed to go on: whoever forgets it only learns it again, and waits once more before it gives
//! something up. Time is counted only while somebody looks: after a pause of the process, or of the lead, nobody knows
//! whether those who are silent now were silent meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kv_proto::{
    disk::v1::{LogId, MetaRecord, MoveReason, NodeState, ShardRecord},
    peer::v1::{GroupDescription, NodeDescription},
};
use kv_topology::{GroupId, NodeId, ReplicaId, ShardId};
use tokio::time::Instant;

use crate::meta::{
    planner::is_near,
    view::{membership, placements},
};

/// Time between two looks counts up to here: longer than a round takes when nodes do not answer.
const LONGEST_GAP: Duration = Duration::from_secs(10);

/// What was found out.
#[derive(Default)]
pub(super) struct Memory {
    /// For how long this controller has looked at the cluster, up to the last look.
    watched: Duration,
    last_look: Option<Instant>,
    /// Replicas that their nodes confirmed.
    pub(super) created: BTreeSet<ReplicaId>,
    /// Replicas that never start again.
    pub(super) unfit: BTreeSet<ReplicaId>,
    /// Groups whose initialization was confirmed.
    pub(super) formed: BTreeSet<GroupId>,
    /// Who answered last for a group.
    pub(super) leaders: BTreeMap<GroupId, NodeId>,
    /// Since when nodes are silent.
    silent_since: BTreeMap<NodeId, Duration>,
    /// By move: what was last seen of its new replica.
    moves: BTreeMap<u64, Course>,
    /// The changes of voters that were begun, and when their groups were last asked for them.
    asked: BTreeMap<ShardId, Asked>,
    /// Targets that were given up.
    avoided: BTreeMap<(ShardId, NodeId), Duration>,
}

/// How far the new replica of a move has come.
struct Course {
    shard: ShardId,
    to: ReplicaId,
    to_node: NodeId,
    from_node: NodeId,
    reason: MoveReason,
    /// The end of its log, and the bytes of its state, as far as they are known.
    progress: (Option<u64>, Option<u64>),
    /// Since when it lags and has come no further.
    since: Duration,
}

impl Course {
    fn was_done(&self, record: &MetaRecord) -> bool {
        let shard = record.shards.iter().find(|shard| shard.shard_id == self.shard.0);
        let observed = shard.and_then(|shard| shard.observed.as_ref()).map(membership);
        observed.is_some_and(|observed| observed.is_voter(self.to))
    }

    /// Whether what caused the move was gone: its target was not at fault.
    fn was_needless(&self, record: &MetaRecord) -> bool {
        let from = record.nodes.iter().find(|node| node.node_id == self.from_node.0);
        let is_active = from.is_some_and(|node| node.state() == NodeState::Active);
        match self.reason {
            MoveReason::Drain | MoveReason::Lost => is_active,
            MoveReason::Removed
            | MoveReason::Damaged
            | MoveReason::Zones
            | MoveReason::Balance
            | MoveReason::Unspecified => false,
        }
    }
}

struct Asked {
    expected: Option<LogId>,
    at: Duration,
}

/// What is seen of the cluster in one look.
pub(super) struct Sight<'a> {
    pub(super) record: &'a MetaRecord,
    pub(super) heard: &'a BTreeSet<NodeId>,
    pub(super) groups: &'a BTreeMap<GroupId, GroupDescription>,
    pub(super) nodes: &'a BTreeMap<NodeId, NodeDescription>,
}

impl Memory {
    /// For how long this controller has looked.
    pub(super) fn watched(&self, now: Instant) -> Duration {
        let gap = self.last_look.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.watched + gap.min(LONGEST_GAP)
    }

    /// Takes in what is seen now.
    pub(super) fn look(&mut self, now: Instant, sight: &Sight<'_>) {
        self.watched = self.watched(now);
        self.last_look = Some(now);
        self.listen(sight);
        self.follow_moves(sight);
        self.follow_changes(sight.record);
        let unfit = sight.nodes.values().flat_map(|told| &told.unfit_replica_ids);
        self.unfit.extend(unfit.copied().map(ReplicaId));
        self.forget_replicas(sight.record);
    }

    fn listen(&mut self, sight: &Sight<'_>) {
        let known: BTreeSet<NodeId> = sight.record.nodes.iter().map(|node| NodeId(node.node_id)).collect();
        self.silent_since.retain(|node, _| known.contains(node) && !sight.heard.contains(node));
        for node in known.difference(sight.heard) {
            self.silent_since.entry(*node).or_insert(self.watched);
        }
    }

    fn follow_moves(&mut self, sight: &Sight<'_>) {
        let under_way: BTreeSet<u64> = sight
            .record
            .shards
            .iter()
            .filter_map(|shard| shard.r#move.map(|under_way| under_way.move_id))
            .collect();
        for (_, ended) in self.moves.extract_if(.., |id, _| !under_way.contains(id)) {
            if !ended.was_done(sight.record) && !ended.was_needless(sight.record) {
                self.avoided.insert((ended.shard, ended.to_node), self.watched);
            }
        }
        for shard in &sight.record.shards {
            self.follow_move(shard, sight);
        }
    }

    fn follow_move(&mut self, shard: &ShardRecord, sight: &Sight<'_>) {
        let Some(under_way) = shard.r#move else { return };
        let description = sight.groups.get(&GroupId(shard.group_id));
        let told = description
            .and_then(|told| told.progress.iter().find(|known| known.replica_id == under_way.to_replica_id));
        let target = sight.nodes.get(&NodeId(under_way.to_node_id));
        let size =
            target.and_then(|node| node.sizes.iter().find(|size| size.replica_id == under_way.to_replica_id));
        let progress = (told.map(|told| told.matching_index), size.map(|size| size.bytes));
        let last = description.map_or(u64::MAX, |description| description.last_log_index);
        let is_near = told.is_some_and(|told| is_near(told, last));
        let course = self.moves.entry(under_way.move_id).or_insert(Course {
            shard: ShardId(shard.shard_id),
            to: ReplicaId(under_way.to_replica_id),
            to_node: NodeId(under_way.to_node_id),
            from_node: NodeId(under_way.from_node_id),
            reason: under_way.reason(),
            progress,
            since: self.watched,
        });
        if course.progress != progress || is_near {
            course.progress = progress;
            course.since = self.watched;
        }
    }

    fn follow_changes(&mut self, record: &MetaRecord) {
        let mut asked = BTreeMap::new();
        for shard in &record.shards {
            let (Some(change), id) = (&shard.change, ShardId(shard.shard_id)) else { continue };
            // Whoever led before may have asked a moment ago.
            let known = self.asked.remove(&id).filter(|known| known.expected == change.expected_membership);
            let new = Asked { expected: change.expected_membership, at: self.watched };
            asked.insert(id, known.unwrap_or(new));
        }
        self.asked = asked;
    }

    /// Ids of replicas are never used again: those that nobody names need not be remembered.
    fn forget_replicas(&mut self, record: &MetaRecord) {
        let mut named = BTreeSet::new();
        for shard in &record.shards {
            named.extend(placements(shard).into_iter().map(|placement| placement.replica));
            let seen = shard.observed.as_ref().map(membership).unwrap_or_default();
            named.extend(seen.all_voters());
            named.extend(seen.learners);
        }
        self.created.retain(|replica| named.contains(replica));
        self.unfit.retain(|replica| named.contains(replica));
    }

    /// A group is asked for its change of voters now.
    pub(super) fn asks(&mut self, shard: ShardId, now: Instant) {
        let at = self.watched(now);
        if let Some(asked) = self.asked.get_mut(&shard) {
            asked.at = at;
        }
    }

    pub(super) fn silent(&self) -> BTreeMap<NodeId, Duration> {
        let silence = |(node, since): (&NodeId, &Duration)| (*node, self.watched.saturating_sub(*since));
        self.silent_since.iter().map(silence).collect()
    }

    pub(super) fn stalled(&self) -> BTreeMap<u64, Duration> {
        let stall = |(id, course): (&u64, &Course)| (*id, self.watched.saturating_sub(course.since));
        self.moves.iter().map(stall).collect()
    }

    pub(super) fn unasked(&self) -> BTreeMap<ShardId, Duration> {
        let idle = |(id, asked): (&ShardId, &Asked)| (*id, self.watched.saturating_sub(asked.at));
        self.asked.iter().map(idle).collect()
    }

    /// Targets that were given up less than `pause` ago.
    pub(super) fn avoided(&mut self, pause: Duration) -> BTreeSet<(ShardId, NodeId)> {
        let watched = self.watched;
        self.avoided.retain(|_, since| watched.saturating_sub(*since) < pause);
        self.avoided.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use kv_proto::{
        disk::v1::{Move, NodeRecord},
        peer::v1::Progress,
    };

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Two nodes and a shard whose replica moves to the second.
    fn record() -> MetaRecord {
        let node = |node_id| NodeRecord { node_id, ..NodeRecord::default() };
        let under_way = Move { move_id: 7, to_replica_id: 2, to_node_id: 2, ..Move::default() };
        let shard =
            ShardRecord { shard_id: 1, group_id: 1, r#move: Some(under_way), ..ShardRecord::default() };
        MetaRecord { nodes: vec![node(1), node(2)], shards: vec![shard], ..MetaRecord::default() }
    }

    /// A look at the record when these were heard of and the new replica's log reached so far, of 10,000 entries.
    fn look(memory: &mut Memory, now: Instant, record: &MetaRecord, heard: &[u64], matching_index: u64) {
        let progress = Progress { replica_id: 2, matching_index, ..Progress::default() };
        let told = GroupDescription {
            progress: vec![progress],
            last_log_index: 10_000,
            ..GroupDescription::default()
        };
        let sight = Sight {
            record,
            heard: &heard.iter().copied().map(NodeId).collect(),
            groups: &[(GroupId(1), told)].into(),
            nodes: &BTreeMap::new(),
        };
        memory.look(now, &sight);
    }

    #[test]
    fn silence_counts_from_the_first_look_and_ends_with_a_word() {
        let (mut memory, record, begin) = (Memory::default(), record(), Instant::now());
        look(&mut memory, begin, &record, &[1], 0);
        assert_eq!(memory.silent(), [(NodeId(2), Duration::ZERO)].into(), "whatever was before");
        look(&mut memory, begin + 3 * SECOND, &record, &[1], 0);
        assert_eq!(memory.silent()[&NodeId(2)], 3 * SECOND);
        look(&mut memory, begin + 4 * SECOND, &record, &[1, 2], 0);
        assert!(memory.silent().is_empty());
        look(&mut memory, begin + 5 * SECOND, &record, &[1], 0);
        assert_eq!(memory.silent()[&NodeId(2)], Duration::ZERO, "from here on anew");
    }

    #[test]
    fn a_pause_of_this_process_is_no_silence_of_the_others() {
        let (mut memory, record, begin) = (Memory::default(), record(), Instant::now());
        look(&mut memory, begin, &record, &[1], 0);
        look(&mut memory, begin + 3_600 * SECOND, &record, &[1], 0);
        assert_eq!(memory.silent()[&NodeId(2)], LONGEST_GAP);
    }

    #[test]
    fn a_replica_that_lags_and_comes_no_further_stalls() {
        let (mut memory, record, begin) = (Memory::default(), record(), Instant::now());
        for (second, index) in [(0, 5), (1, 5), (2, 6), (3, 6), (4, 6)] {
            look(&mut memory, begin + second * SECOND, &record, &[1, 2], index);
        }
        assert_eq!(memory.stalled(), [(7, 2 * SECOND)].into());
        look(&mut memory, begin + 5 * SECOND, &record, &[1, 2], 9_500);
        look(&mut memory, begin + 9 * SECOND, &record, &[1, 2], 9_500);
        assert_eq!(memory.stalled()[&7], Duration::ZERO, "it has caught up: others are waited for");
    }

    #[test]
    fn a_target_that_was_given_up_is_avoided_for_a_while() {
        let (mut memory, mut record, begin) = (Memory::default(), record(), Instant::now());
        look(&mut memory, begin, &record, &[1, 2], 5);
        record.shards[0].r#move = None;
        look(&mut memory, begin + SECOND, &record, &[1, 2], 5);
        assert_eq!(memory.avoided(5 * SECOND), [(ShardId(1), NodeId(2))].into());
        look(&mut memory, begin + 6 * SECOND, &record, &[1, 2], 5);
        assert!(memory.avoided(5 * SECOND).is_empty());
    }
}
