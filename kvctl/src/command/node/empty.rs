//! How far a drain has come, as a sequence of looks at the cluster tells it. Pure: the time is an argument.

use std::time::Duration;

use kv_client::admin::{ClusterStatus, NodeState, NodeView};

use crate::text;

/// A node that has not heard yet of the drain that was just begun shows the old state so long at most.
const NEWS_MAX: Duration = Duration::from_secs(10);

/// What a node still holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Replicas that are placed there.
    pub replicas: usize,
    /// Their state on disk, about; `None`: the node does not answer.
    pub bytes: Option<u64>,
    /// Of the replicas, those that another one is taking the place of.
    pub moving: usize,
}

impl Left {
    /// As this status tells it.
    pub fn of(status: &ClusterStatus, node: u64) -> Self {
        let placed: Vec<u64> = status
            .shards
            .iter()
            .flat_map(|shard| &shard.replicas)
            .filter(|placement| placement.node_id == node)
            .map(|placement| placement.replica_id)
            .collect();
        let bytes = view(status, node).and_then(|view| view.status.as_ref()).map(|report| {
            let replicas = report.replicas.iter().filter(|replica| placed.contains(&replica.replica_id));
            replicas.map(|replica| replica.state_bytes).sum()
        });
        let moving = status.moves.iter().filter(|moved| moved.from_node_id == node).count();
        Self { replicas: placed.len(), bytes, moving }
    }

    /// For people.
    pub fn words(self) -> String {
        let replicas = if self.replicas == 1 { "replica" } else { "replicas" };
        match self.bytes {
            Some(bytes) if self.replicas > 0 => {
                format!("{} {replicas} ({})", self.replicas, text::size(bytes))
            }
            Some(_) | None => format!("{} {replicas}", self.replicas),
        }
    }
}

/// What a look at the cluster shows of the drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The asked node has not heard of it yet, or not of what another one has told.
    Old,
    /// It goes on.
    Draining(Progress),
    /// The node is empty.
    Drained,
    /// Somebody cancelled it.
    Cancelled,
    /// The node was silent for too long: what it held is rebuilt elsewhere.
    Lost,
    /// The node is not part of the cluster any more.
    Removed,
    /// It has been silent for as long as makes other nodes lost, and nothing of what it holds moves: nobody else can take it over.
    Stuck,
}

/// How far a drain has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is still there.
    pub left: Left,
    /// The most replicas that were seen there.
    pub total: usize,
    /// As long as it takes at the rate so far; `None`: nothing has moved yet.
    pub time_left: Option<Duration>,
    /// The node with an open permit: until that is over no voters change, and no replica leaves.
    pub permit: Option<u64>,
}

/// One drain that is being watched.
#[derive(Debug)]
pub struct Emptying {
    node: u64,
    /// The first look that showed the drain, and when that was.
    first: Option<(Duration, Left)>,
    total: usize,
    epoch: u64,
    /// Since when it has been silent, with so many replicas of which none moves.
    still: Option<(Duration, usize)>,
}

impl Emptying {
    /// Of this node.
    pub fn of(node: u64) -> Self {
        Self { node, first: None, total: 0, epoch: 0, still: None }
    }

    /// Takes in a status, `at` so long after the drain was asked for.
    pub fn look(&mut self, status: &ClusterStatus, at: Duration) -> Look {
        if status.map_epoch < self.epoch {
            return Look::Old;
        }
        self.epoch = status.map_epoch;
        let info = view(status, self.node).and_then(|view| view.info.as_ref());
        let state = info.map_or(NodeState::Removed, |info| info.state());
        let is_news = self.first.is_some() || at > NEWS_MAX;
        match state {
            NodeState::Draining => {
                let progress = self.draining(status, at);
                if self.is_stuck(status, progress.left, at) { Look::Stuck } else { Look::Draining(progress) }
            }
            NodeState::Drained => Look::Drained,
            NodeState::Lost => Look::Lost,
            NodeState::Active | NodeState::Joining if is_news => Look::Cancelled,
            NodeState::Removed if is_news => Look::Removed,
            NodeState::Active | NodeState::Joining | NodeState::Removed | NodeState::Unspecified => Look::Old,
        }
    }

    fn is_stuck(&mut self, status: &ClusterStatus, left: Left, at: Duration) -> bool {
        let silent = view(status, self.node).is_none_or(|view| view.status.is_none());
        if !silent || left.moving > 0 {
            self.still = None;
            return false;
        }
        let grace = status.policy.as_ref().map_or(0, |policy| policy.lost_node_grace_ms);
        let (since, _) = *self.still.insert(
            self.still.filter(|(_, replicas)| *replicas == left.replicas).unwrap_or((at, left.replicas)),
        );
        grace > 0 && at.saturating_sub(since) >= Duration::from_millis(grace)
    }

    fn draining(&mut self, status: &ClusterStatus, at: Duration) -> Progress {
        let left = Left::of(status, self.node);
        let (since, first) = *self.first.get_or_insert((at, left));
        self.total = self.total.max(left.replicas);
        let open = status.permits.iter().find(|permit| !permit.overdue);
        Progress {
            left,
            total: self.total,
            time_left: time_left(first, left, at.saturating_sub(since)),
            permit: open.map(|permit| permit.node_id),
        }
    }
}

/// By bytes where they are known and there are any, else by replicas.
fn time_left(first: Left, left: Left, took: Duration) -> Option<Duration> {
    let (was, is) = match (first.bytes, left.bytes) {
        (Some(was), Some(is)) if was > 0 => (was, is),
        _ => (first.replicas as u64, left.replicas as u64),
    };
    let gone = was.checked_sub(is).filter(|gone| *gone > 0)?;
    #[allow(clippy::cast_precision_loss, reason = "an estimate")]
    let ratio = is as f64 / gone as f64;
    Duration::try_from_secs_f64(took.as_secs_f64() * ratio).ok()
}

fn view(status: &ClusterStatus, node: u64) -> Option<&NodeView> {
    status.nodes.iter().find(|view| view.info.as_ref().is_some_and(|info| info.node_id == node))
}

#[cfg(test)]
mod tests {
    use kv_client::admin::{
        Move, NodeInfo, NodeStatus, Permit, Policy, ReplicaPlacement, ReplicaStatus, ShardStatus,
    };

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Node 3 in this state with so many replicas of 100 bytes; one more has left it and lies there still.
    fn status(state: NodeState, replicas: u64) -> ClusterStatus {
        let shards = (1..=replicas).map(|replica_id| ShardStatus {
            replicas: vec![
                ReplicaPlacement { replica_id, node_id: 3, voter: true },
                ReplicaPlacement { replica_id: 90 + replica_id, node_id: 1, voter: true },
            ],
            ..ShardStatus::default()
        });
        let lying = (1..=replicas + 1).map(|replica_id| ReplicaStatus {
            replica_id,
            state_bytes: 100,
            ..ReplicaStatus::default()
        });
        let view = NodeView {
            info: Some(NodeInfo { node_id: 3, state: state.into(), ..NodeInfo::default() }),
            status: Some(NodeStatus { replicas: lying.collect(), ..NodeStatus::default() }),
        };
        ClusterStatus {
            nodes: vec![view],
            shards: shards.collect(),
            moves: vec![
                Move { from_node_id: 3, ..Move::default() },
                Move { to_node_id: 3, ..Move::default() },
            ],
            map_epoch: 5,
            ..ClusterStatus::default()
        }
    }

    fn look(left: Left, total: usize, time_left: Option<Duration>) -> Look {
        Look::Draining(Progress { left, total, time_left, permit: None })
    }

    #[test]
    fn what_is_left_and_how_long_it_takes_follow_from_the_rate_so_far() {
        let mut emptying = Emptying::of(3);
        let left = |replicas| Left { replicas, bytes: Some(replicas as u64 * 100), moving: 1 };
        assert_eq!(emptying.look(&status(NodeState::Draining, 8), SECOND), look(left(8), 8, None));
        let seen = emptying.look(&status(NodeState::Draining, 6), SECOND * 5);
        assert_eq!(seen, look(left(6), 8, Some(SECOND * 12)));
        assert_eq!(emptying.look(&status(NodeState::Drained, 0), SECOND * 9), Look::Drained);
    }

    #[test]
    fn replicas_tell_the_rate_where_bytes_are_not_known() {
        let mut emptying = Emptying::of(3);
        emptying.look(&status(NodeState::Draining, 4), Duration::ZERO);
        let mut silent = status(NodeState::Draining, 1);
        silent.nodes[0].status = None;
        let left = Left { replicas: 1, bytes: None, moving: 1 };
        assert_eq!(emptying.look(&silent, SECOND * 6), look(left, 4, Some(SECOND * 2)));
    }

    #[test]
    fn a_silent_node_of_which_nothing_moves_is_stuck_after_the_grace_time() {
        let silent = |replicas| {
            let mut status = status(NodeState::Draining, replicas);
            status.nodes[0].status = None;
            status.moves.clear();
            let policy = Policy { lost_node_grace_ms: 10_000, ..Policy::default() };
            ClusterStatus { policy: Some(policy), ..status }
        };
        let mut emptying = Emptying::of(3);
        for (at, replicas) in [(0, 3), (9, 3), (10, 2), (19, 2)] {
            let seen = emptying.look(&silent(replicas), SECOND * at);
            assert!(matches!(seen, Look::Draining(_)), "{at}: {seen:?}");
        }
        let moving = ClusterStatus { moves: vec![Move { from_node_id: 3, ..Move::default() }], ..silent(2) };
        assert!(matches!(emptying.look(&moving, SECOND * 25), Look::Draining(_)));
        assert!(matches!(emptying.look(&silent(2), SECOND * 26), Look::Draining(_)));
        assert_eq!(emptying.look(&silent(2), SECOND * 36), Look::Stuck);
    }

    #[test]
    fn an_open_permit_is_seen_and_an_overdue_one_holds_nothing() {
        let permit_of = |overdue| {
            let permits = vec![Permit { node_id: 2, overdue, ..Permit::default() }];
            let status = ClusterStatus { permits, ..status(NodeState::Draining, 4) };
            match Emptying::of(3).look(&status, SECOND) {
                Look::Draining(progress) => progress.permit,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((permit_of(false), permit_of(true)), (Some(2), None));
    }

    #[test]
    fn a_node_that_has_not_heard_of_the_drain_yet_does_not_end_the_wait() {
        let mut emptying = Emptying::of(3);
        assert_eq!(emptying.look(&status(NodeState::Active, 4), SECOND), Look::Old);
        assert_eq!(emptying.look(&ClusterStatus::default(), SECOND), Look::Old);
        emptying.look(&status(NodeState::Draining, 4), SECOND);
        let older = ClusterStatus { map_epoch: 4, ..status(NodeState::Active, 4) };
        assert_eq!(emptying.look(&older, SECOND * 20), Look::Old);
        assert_eq!(emptying.look(&status(NodeState::Active, 4), SECOND * 2), Look::Cancelled);
        let gone = ClusterStatus { map_epoch: 6, ..ClusterStatus::default() };
        assert_eq!(emptying.look(&gone, SECOND * 3), Look::Removed);
    }

    #[test]
    fn a_drain_that_nobody_hears_of_was_cancelled_at_once() {
        let mut emptying = Emptying::of(3);
        assert_eq!(emptying.look(&status(NodeState::Active, 4), SECOND * 11), Look::Cancelled);
        assert_eq!(Emptying::of(4).look(&status(NodeState::Active, 4), SECOND * 11), Look::Removed);
        assert_eq!(Emptying::of(3).look(&status(NodeState::Lost, 4), SECOND), Look::Lost);
    }

    #[test]
    fn what_is_left_is_told_in_words() {
        let left = |replicas, bytes| Left { replicas, bytes, moving: 0 }.words();
        assert_eq!(left(1, Some(1024)), "1 replica (1.0 KiB)");
        assert_eq!(left(2, None), "2 replicas");
        assert_eq!(left(0, Some(0)), "0 replicas");
    }
}
