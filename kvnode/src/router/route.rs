//! Where the next attempt of a request goes, and whether there is one. Pure.

use std::time::Duration;

use kv_proto::peer::v1::{Outcome, Refusal, outcome, refusal::Kind};
use kv_topology::{NodeId, map::ShardEntry};

/// First wait before an attempt that has no better idea than the last one.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// Longest wait between two attempts: about a heartbeat.
const PAUSE_MAX: Duration = Duration::from_millis(160);

/// What is known before an attempt.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// This node.
    pub me: NodeId,
    /// The local replica, if there is one: which node it thinks leads.
    pub local: Option<Option<NodeId>>,
    /// The leader that the last refusal named.
    pub hint: Option<NodeId>,
    /// The shard in the map.
    pub shard: Option<&'a ShardEntry>,
    /// 0 for the first attempt.
    pub attempt: u32,
}

/// Where an attempt goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The replica on this node.
    Here,
    /// Another node.
    At(NodeId),
    /// Nobody is known to ask.
    Nobody,
}

/// Where a write goes: to the leader, as the local replica, the last refusal or the map knows it.
pub fn for_write(known: &Known<'_>) -> Target {
    let told = match known.local {
        // A refusal by the local replica names the same leader: its own view is the newer one.
        Some(leader) => leader.or(known.hint.filter(|hint| *hint != known.me)),
        None => known.hint.or_else(|| replica_by_turn(known)),
    };
    target(known, told)
}

/// Where a read goes that the local replica does not serve: as a write, or to any replica.
pub fn for_read(known: &Known<'_>) -> Target {
    match known.local {
        Some(_) => Target::Here,
        None => target(known, known.hint.or_else(|| replica_by_turn(known))),
    }
}

fn target(known: &Known<'_>, node: Option<NodeId>) -> Target {
    match node {
        Some(node) if node == known.me => {
            if known.local.is_some() {
                Target::Here
            } else {
                Target::Nobody
            }
        }
        Some(node) => Target::At(node),
        None => Target::Nobody,
    }
}

/// The preferred leader first, then every other replica's node in turn.
fn replica_by_turn(known: &Known<'_>) -> Option<NodeId> {
    let shard = known.shard?;
    if known.attempt == 0 && shard.preferred_leader.is_some() {
        return shard.preferred_leader;
    }
    let others: Vec<NodeId> =
        shard.replicas.iter().map(|placement| placement.node).filter(|node| *node != known.me).collect();
    let turn = usize::try_from(known.attempt).unwrap_or(0);
    (!others.is_empty()).then(|| others[turn % others.len()])
}

/// What to do about a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try again after this pause; the leader to try, if one was named.
    Again {
        /// How long to wait first.
        pause: Duration,
        /// The leader that the refusal named.
        hint: Option<NodeId>,
    },
    /// Ask for a newer map, then as `Again`.
    RefreshMap,
    /// The caller gets the refusal.
    Final,
}

/// The refusal in outcomes that all say that the key is not here: nothing happened, as if the whole had been refused.
/// So answers a group that was formed and has not applied its slots yet.
pub fn refused_as_wrong_shard(outcomes: &[Outcome]) -> Option<&Refusal> {
    let refusal = |outcome: &'_ Outcome| match &outcome.result {
        Some(outcome::Result::Refusal(refused)) => refused.kind() == Kind::WrongShard,
        _ => false,
    };
    if !outcomes.iter().all(refusal) {
        return None;
    }
    match outcomes.first()?.result.as_ref()? {
        outcome::Result::Refusal(refused) => Some(refused),
        _ => None,
    }
}

/// Decides about a refused write: again only when it surely did not happen.
pub fn after_write(refused: &Refusal, tried: Target, attempt: u32) -> Next {
    match refused.kind() {
        Kind::NotApplied => again(refused, tried, attempt),
        Kind::WrongShard => Next::RefreshMap,
        // The caller must slow down; trying again here would keep the queue full.
        Kind::ResourceExhausted
        | Kind::Unspecified
        | Kind::InvalidArgument
        | Kind::OutcomeUnknown
        | Kind::DeadlineExceeded
        | Kind::DataLoss
        | Kind::FailedPrecondition
        | Kind::NotFound
        | Kind::Internal => Next::Final,
    }
}

/// Decides about a refused read: it has no effect, so also again when its fate is unknown.
pub fn after_read(refused: &Refusal, tried: Target, attempt: u32) -> Next {
    match refused.kind() {
        Kind::NotApplied | Kind::OutcomeUnknown => again(refused, tried, attempt),
        Kind::WrongShard => Next::RefreshMap,
        Kind::ResourceExhausted
        | Kind::Unspecified
        | Kind::InvalidArgument
        | Kind::DeadlineExceeded
        | Kind::DataLoss
        | Kind::FailedPrecondition
        | Kind::NotFound
        | Kind::Internal => Next::Final,
    }
}

fn again(refused: &Refusal, tried: Target, attempt: u32) -> Next {
    let hint = (refused.leader_node_id != 0).then_some(NodeId(refused.leader_node_id));
    let new_lead = attempt == 0 && hint.is_some_and(|hint| tried != Target::At(hint));
    let pause = if new_lead { Duration::ZERO } else { pause(attempt) };
    Next::Again { pause, hint }
}

/// Doubles from 5 ms to 160 ms.
pub fn pause(attempt: u32) -> Duration {
    PAUSE_MIN.saturating_mul(1 << attempt.min(10)).min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use kv_topology::{GroupId, ReplicaId, map::ReplicaPlacement};

    use super::*;
    use crate::refusal;

    fn outcome_of(kind: Kind) -> Outcome {
        let refused = Refusal { kind: kind.into(), ..Refusal::default() };
        Outcome { result: Some(outcome::Result::Refusal(refused)), ..Outcome::default() }
    }

    #[test]
    fn a_write_is_tried_again_only_when_all_of_it_met_the_wrong_shard() {
        let (wrong, other) = (outcome_of(Kind::WrongShard), outcome_of(Kind::FailedPrecondition));
        assert!(refused_as_wrong_shard(&[wrong.clone(), wrong.clone()]).is_some());
        assert!(refused_as_wrong_shard(&[wrong.clone(), other]).is_none());
        assert!(refused_as_wrong_shard(&[wrong, Outcome::default()]).is_none());
        assert!(refused_as_wrong_shard(&[]).is_none());
    }

    const ME: NodeId = NodeId(1);

    fn shard() -> ShardEntry {
        let replicas = [2, 3].map(|node| ReplicaPlacement { replica: ReplicaId(node), node: NodeId(node) });
        ShardEntry {
            group: GroupId(1),
            slots: vec![],
            replicas: replicas.into(),
            preferred_leader: Some(NodeId(3)),
        }
    }

    fn known(
        local: Option<Option<NodeId>>,
        hint: Option<NodeId>,
        shard: &ShardEntry,
        attempt: u32,
    ) -> Known<'_> {
        Known { me: ME, local, hint, shard: Some(shard), attempt }
    }

    #[test]
    fn a_write_follows_the_local_replicas_view_of_the_leader() {
        let shard = shard();
        assert_eq!(for_write(&known(Some(Some(ME)), None, &shard, 0)), Target::Here);
        assert_eq!(
            for_write(&known(Some(Some(NodeId(2))), Some(NodeId(3)), &shard, 0)),
            Target::At(NodeId(2))
        );
        assert_eq!(for_write(&known(Some(None), None, &shard, 0)), Target::Nobody);
    }

    #[test]
    fn a_write_without_a_local_replica_tries_the_preferred_leader_then_everybody() {
        let shard = shard();
        let tried: Vec<Target> =
            (0..4).map(|attempt| for_write(&known(None, None, &shard, attempt))).collect();
        assert_eq!(tried[0], Target::At(NodeId(3)));
        assert!(tried.contains(&Target::At(NodeId(2))));
        assert_eq!(for_write(&known(None, Some(NodeId(2)), &shard, 1)), Target::At(NodeId(2)));
    }

    #[test]
    fn a_read_is_served_by_the_local_replica() {
        let shard = shard();
        assert_eq!(for_read(&known(Some(None), None, &shard, 0)), Target::Here);
        assert_eq!(for_read(&known(None, None, &shard, 0)), Target::At(NodeId(3)));
    }

    #[test]
    fn a_write_is_never_tried_again_when_it_may_have_happened() {
        let unknown = refusal::outcome_unknown("the leader changed");
        assert_eq!(after_write(&unknown, Target::Here, 0), Next::Final);
        assert!(matches!(after_read(&unknown, Target::Here, 0), Next::Again { .. }));
    }

    #[test]
    fn a_new_leader_is_tried_at_once_and_silence_is_given_time() {
        let moved = refusal::not_leader(kv_topology::ShardId(1), Some(NodeId(2)));
        let next = after_write(&moved, Target::Here, 0);
        assert_eq!(next, Next::Again { pause: Duration::ZERO, hint: Some(NodeId(2)) });
        let nobody = refusal::not_leader(kv_topology::ShardId(1), None);
        assert_eq!(after_write(&nobody, Target::Here, 9), Next::Again { pause: PAUSE_MAX, hint: None });
    }
}
