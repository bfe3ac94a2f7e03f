//! Where the next attempt of a request goes, and whether there is one. Pure.

use std::{collections::BTreeSet, time::Duration};

use kv_proto::{
    disk::v1::Operation,
    peer::v1::{Outcome, Refusal, outcome, refusal::Kind},
};
use kv_topology::{NodeId, map::ShardEntry};

use crate::refusal;

/// First wait before an attempt that has no better idea than the last one.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// Longest wait between two attempts: about a heartbeat.
const PAUSE_MAX: Duration = Duration::from_millis(160);
/// How often the node that keeps a moment is asked at most: somebody else may find that the value was replaced.
const KEEPER_ATTEMPTS: u32 = 4;

/// What is known before an attempt.
#[derive(Clone, Copy)]
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
    /// Where the last attempt went.
    pub last: Option<Target>,
    /// What earlier attempts taught about replicas.
    pub lessons: &'a Lessons,
    /// Nodes that were heard of once and not lately: asked only when there is nobody else.
    pub silent: &'a dyn Fn(NodeId) -> bool,
}

/// What the attempts of one request taught about the replicas that refused it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lessons {
    /// The local replica refused: others are asked first, and it again when its turn comes.
    pub local_refused: bool,
    /// Nodes whose bytes are damaged. They are not asked again.
    pub damaged: BTreeSet<NodeId>,
}

impl Lessons {
    /// Learns from the refusal of a read by `tried`.
    pub fn learn(&mut self, me: NodeId, tried: Target, refused: &Refusal) {
        self.local_refused |= tried == Target::Here;
        let node = match tried {
            Target::Here => me,
            Target::At(node) => node,
            Target::Nobody => return,
        };
        if refused.kind() == Kind::DataLoss {
            self.damaged.insert(node);
        }
    }

    /// Whether a replica of the shard is left whose bytes were not found damaged.
    pub fn leave_a_replica(&self, shard: Option<&ShardEntry>) -> bool {
        shard.is_some_and(|shard| shard.replicas.iter().any(|replica| !self.damaged.contains(&replica.node)))
    }
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

/// Where a write goes: to the leader, as the local replica, the last refusal or the map knows it. When nobody knows it,
/// to the others in turn: a replica that is cut off from its leader hears of it last, and one that has left its group never.
pub fn for_write(known: &Known<'_>) -> Target {
    let hint = known.hint.filter(|hint| *hint != known.me || known.local.is_none());
    let told = match known.local.flatten() {
        // It was asked in vain: what it said is newer than what the local replica knows, and its silence says enough.
        Some(leader) if leader != known.me && was_last(known, leader) => {
            hint.or(Some(leader).filter(|leader| !(known.silent)(*leader)))
        }
        // A refusal by the local replica names the same leader: its own view is the newer one.
        leader => leader.or(hint),
    };
    target(known, told.or_else(|| other_by_turn(known)))
}

/// Where a read goes: to the local replica; when that has refused or there is none, to the leader that somebody named,
/// then to all replicas in turn, but those with damaged bytes. A read that must be served here is not for this function.
pub fn for_read(known: &Known<'_>) -> Target {
    match known.local {
        Some(_) if !known.lessons.local_refused => Target::Here,
        local => {
            let useful = |node: &NodeId| !known.lessons.damaged.contains(node) && !was_last(known, *node);
            let leader = local.flatten().filter(|leader| *leader != known.me);
            let told = known.hint.filter(useful).or_else(|| leader.filter(useful));
            target(known, told.or_else(|| replica_by_turn(known)))
        }
    }
}

/// Where a read of a pinned moment goes: to the node that keeps it, although it may be silent where few frames pass; and
/// again when it did not answer, unless it is silent then. After that, as any read: the value may still be there.
pub fn for_pinned(known: &Known<'_>, keeper: NodeId) -> Target {
    let may_keep = keeper != known.me || known.local.is_some();
    let whole = !known.lessons.damaged.contains(&keeper);
    let worth_asking =
        known.attempt == 0 || (known.attempt < KEEPER_ATTEMPTS && whole && !(known.silent)(keeper));
    if may_keep && worth_asking { target(known, Some(keeper)) } else { for_read(known) }
}

fn was_last(known: &Known<'_>, node: NodeId) -> bool {
    match known.last {
        Some(Target::Here) => node == known.me,
        Some(Target::At(last)) => node == last,
        Some(Target::Nobody) | None => false,
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
fn other_by_turn(known: &Known<'_>) -> Option<NodeId> {
    let shard = known.shard?;
    let preferred = preferred_elsewhere(known, shard);
    if known.attempt == 0 && preferred.is_some() {
        return preferred;
    }
    by_turn(known, others(known, shard))
}

/// As [`other_by_turn`], without damaged replicas, and with the local one at the end of each turn.
fn replica_by_turn(known: &Known<'_>) -> Option<NodeId> {
    let shard = known.shard?;
    let whole = |node: &NodeId| !known.lessons.damaged.contains(node);
    let preferred = preferred_elsewhere(known, shard);
    if let Some(preferred) = preferred.filter(|node| known.attempt == 0 && whole(node)) {
        return Some(preferred);
    }
    let local = known.local.map(|_| known.me);
    by_turn(known, others(known, shard).into_iter().chain(local).filter(whole).collect())
}

fn preferred_elsewhere(known: &Known<'_>, shard: &ShardEntry) -> Option<NodeId> {
    shard.preferred_leader.filter(|node| *node != known.me && !(known.silent)(*node))
}

fn others(known: &Known<'_>, shard: &ShardEntry) -> Vec<NodeId> {
    shard.replicas.iter().map(|placement| placement.node).filter(|node| *node != known.me).collect()
}

/// One of these nodes, another at each attempt; the last one and the silent ones only when there is nobody else.
fn by_turn(known: &Known<'_>, mut nodes: Vec<NodeId>) -> Option<NodeId> {
    if nodes.iter().any(|node| !(known.silent)(*node)) {
        nodes.retain(|node| !(known.silent)(*node));
    }
    let turn = usize::try_from(known.attempt).unwrap_or(0) % nodes.len().max(1);
    let in_turn = || nodes[turn..].iter().chain(&nodes[..turn]).copied();
    in_turn().find(|node| !was_last(known, *node)).or_else(|| in_turn().next())
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

/// Whether the operations may be sent again although they may have happened: each is in a session, which tells.
pub fn are_repeatable(operations: &[Operation]) -> bool {
    operations.iter().all(|operation| operation.session_id != 0)
}

/// Decides about a refused write: again only when it surely did not happen, or when it is `repeatable`, see
/// [`are_repeatable`].
pub fn after_write(refused: &Refusal, tried: Target, attempt: u32, repeatable: bool) -> Next {
    match refused.kind() {
        Kind::NotApplied => again(refused, tried, attempt),
        Kind::OutcomeUnknown if repeatable => again(refused, tried, attempt),
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

/// What a refusal says of a write of which an earlier attempt is in doubt: that one may still have happened, whatever
/// this one met.
pub fn in_doubt(refused: Refusal) -> Refusal {
    match refused.kind() {
        Kind::NotApplied
        | Kind::WrongShard
        | Kind::ResourceExhausted
        | Kind::DeadlineExceeded
        | Kind::FailedPrecondition
        | Kind::NotFound
        | Kind::DataLoss => {
            let Refusal { reason, message, .. } = refused;
            refusal::outcome_unknown(format!(
                "an earlier attempt is in doubt; the last one met {reason}: {message}"
            ))
        }
        // A field that is wrong was wrong before.
        Kind::InvalidArgument | Kind::OutcomeUnknown | Kind::Internal | Kind::Unspecified => refused,
    }
}

/// The same for the refusals among outcomes.
pub fn in_doubt_each(outcomes: &mut [Outcome]) {
    for outcome in outcomes {
        if let Some(outcome::Result::Refusal(refused)) = &mut outcome.result {
            *refused = in_doubt(std::mem::take(refused));
        }
    }
}

/// Decides about a refused read: it has no effect, so also again when its fate is unknown, and when a replica's bytes are
/// damaged and `replica_left` says that another one has them. `here_only`: no other replica may answer.
pub fn after_read(
    refused: &Refusal,
    tried: Target,
    attempt: u32,
    here_only: bool,
    replica_left: bool,
) -> Next {
    match refused.kind() {
        Kind::NotApplied | Kind::OutcomeUnknown => match again(refused, tried, attempt) {
            // There is somebody else to ask: what the local replica lacks now it will lack in a moment too.
            Next::Again { hint, .. } if tried == Target::Here && attempt == 0 && !here_only => {
                Next::Again { pause: Duration::ZERO, hint }
            }
            next => next,
        },
        Kind::DataLoss if !here_only && replica_left => Next::Again { pause: Duration::ZERO, hint: None },
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

    static NOTHING: Lessons = Lessons { local_refused: false, damaged: BTreeSet::new() };
    static NOBODY: BTreeSet<NodeId> = BTreeSet::new();

    fn known(
        local: Option<Option<NodeId>>,
        hint: Option<NodeId>,
        shard: &ShardEntry,
        attempt: u32,
    ) -> Known<'_> {
        let (lessons, silent) = (&NOTHING, &|_| false);
        Known { me: ME, local, hint, shard: Some(shard), attempt, last: None, lessons, silent }
    }

    /// The shard with a replica here too.
    fn shared() -> ShardEntry {
        let replicas =
            [1, 2, 3].map(|node| ReplicaPlacement { replica: ReplicaId(node), node: NodeId(node) });
        ShardEntry { replicas: replicas.into(), ..shard() }
    }

    /// Where the attempts of a read go when all are refused with this kind, and how many there are of at most eight.
    fn course_of_a_read(kind: Kind, local: Option<Option<NodeId>>, silent: &BTreeSet<NodeId>) -> Vec<Target> {
        let (shard, mut lessons) = (shared(), Lessons::default());
        let (mut tried, mut hint) = (Vec::new(), None);
        for attempt in 0..8 {
            let last = tried.last().copied();
            let lessons_now = lessons.clone();
            let known = Known {
                last,
                lessons: &lessons_now,
                silent: &|node| silent.contains(&node),
                ..known(local, hint, &shard, attempt)
            };
            let target = for_read(&known);
            tried.push(target);
            let refused = Refusal { kind: kind.into(), ..Refusal::default() };
            lessons.learn(ME, target, &refused);
            let left = lessons.leave_a_replica(Some(&shard));
            match after_read(&refused, target, attempt, false, left) {
                Next::Again { hint: named, .. } => hint = named,
                Next::RefreshMap | Next::Final => break,
            }
        }
        tried
    }

    #[test]
    fn a_read_that_the_local_replica_refuses_goes_to_the_leader_and_then_to_all_in_turn() {
        let tried = course_of_a_read(Kind::NotApplied, Some(Some(NodeId(2))), &NOBODY);
        assert_eq!(tried[..2], [Target::Here, Target::At(NodeId(2))]);
        assert!(tried[2..].contains(&Target::At(NodeId(3))), "{tried:?}");
        assert!(tried[2..].contains(&Target::Here), "it may be well again: {tried:?}");
        assert!(tried.windows(2).all(|two| two[0] != two[1]), "{tried:?}");
        let leaderless = course_of_a_read(Kind::NotApplied, Some(None), &NOBODY);
        for node in [2, 3] {
            assert!(leaderless.contains(&Target::At(NodeId(node))), "{leaderless:?}");
        }
    }

    #[test]
    fn damaged_bytes_are_read_from_another_replica_and_asked_for_once_only() {
        let tried = course_of_a_read(Kind::DataLoss, Some(Some(NodeId(2))), &NOBODY);
        assert_eq!(tried, [Target::Here, Target::At(NodeId(2)), Target::At(NodeId(3))]);
        let tried = course_of_a_read(Kind::DataLoss, Some(Some(ME)), &NOBODY);
        assert_eq!(tried.len(), 3, "{tried:?}");
        assert_eq!(tried[0], Target::Here);
    }

    #[test]
    fn a_read_that_must_be_served_here_meets_its_refusal() {
        let damaged = outcome_of(Kind::DataLoss);
        let Some(outcome::Result::Refusal(damaged)) = damaged.result else { unreachable!() };
        assert_eq!(after_read(&damaged, Target::Here, 0, true, true), Next::Final);
        let stale = refusal::not_applied(refusal::TOO_STALE, "");
        let next = after_read(&stale, Target::Here, 0, true, true);
        assert!(matches!(next, Next::Again { pause, .. } if pause > Duration::ZERO));
        let next = after_read(&stale, Target::Here, 0, false, true);
        assert_eq!(next, Next::Again { pause: Duration::ZERO, hint: None });
    }

    #[test]
    fn nobody_asks_a_silent_node_while_another_answers() {
        let silent = BTreeSet::from([NodeId(2)]);
        let tried = course_of_a_read(Kind::NotApplied, Some(None), &silent);
        assert!(!tried.contains(&Target::At(NodeId(2))), "{tried:?}");
        let all = BTreeSet::from([NodeId(2), NodeId(3)]);
        let shard = shared();
        let tried: Vec<Target> = (0..3)
            .map(|attempt| {
                for_write(&Known {
                    silent: &|node| all.contains(&node),
                    ..known(Some(None), None, &shard, attempt)
                })
            })
            .collect();
        assert!(tried.contains(&Target::At(NodeId(2))) && tried.contains(&Target::At(NodeId(3))));
    }

    #[test]
    fn a_write_asks_the_others_when_the_local_replica_knows_no_leader() {
        let shard = shared();
        let tried: Vec<Target> =
            (0..4).map(|attempt| for_write(&known(Some(None), None, &shard, attempt))).collect();
        assert_eq!(tried[0], Target::At(NodeId(3)), "the preferred leader");
        assert!(tried.contains(&Target::At(NodeId(2))) && !tried.contains(&Target::Here), "{tried:?}");
        let told = for_write(&known(Some(None), Some(NodeId(2)), &shard, 1));
        assert_eq!(told, Target::At(NodeId(2)));
    }

    #[test]
    fn a_write_follows_the_local_replicas_view_of_the_leader() {
        let shard = shard();
        assert_eq!(for_write(&known(Some(Some(ME)), None, &shard, 0)), Target::Here);
        assert_eq!(
            for_write(&known(Some(Some(NodeId(2))), Some(NodeId(3)), &shard, 0)),
            Target::At(NodeId(2))
        );
    }

    #[test]
    fn a_write_goes_past_a_local_replica_that_has_left_its_group_and_hears_of_no_new_leader() {
        let shard = shared();
        let stale = |hint| Known {
            last: Some(Target::At(NodeId(2))),
            ..known(Some(Some(NodeId(2))), hint, &shard, 1)
        };
        assert_eq!(for_write(&stale(Some(NodeId(3)))), Target::At(NodeId(3)), "who was asked knows better");
        assert_eq!(for_write(&stale(Some(ME))), Target::At(NodeId(2)), "not here");
        assert_eq!(for_write(&stale(None)), Target::At(NodeId(2)), "it may lead in a moment");
        let silent = |node| node == NodeId(2);
        let gone = Known { silent: &silent, ..stale(None) };
        assert_eq!(for_write(&gone), Target::At(NodeId(3)), "it is gone");
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
    fn a_pinned_read_goes_to_the_node_that_keeps_it_and_then_as_any_read() {
        let (shard, keeper) = (shared(), NodeId(3));
        let local = Some(Some(NodeId(2)));
        let first = known(local, Some(NodeId(2)), &shard, 0);
        assert_eq!(for_pinned(&first, keeper), Target::At(keeper), "although there is a replica here");
        assert_eq!(for_pinned(&first, ME), Target::Here);
        let again = known(local, None, &shard, 1);
        assert_eq!(for_pinned(&again, keeper), Target::At(keeper), "it may only have lost the question");
        let silent = |node| node == keeper;
        assert_eq!(for_pinned(&Known { silent: &silent, ..first }, keeper), Target::At(keeper));
        assert_eq!(for_pinned(&Known { silent: &silent, ..again }, keeper), Target::Here);
        assert_eq!(for_pinned(&known(local, None, &shard, KEEPER_ATTEMPTS), keeper), Target::Here);
        let damaged = Lessons { damaged: BTreeSet::from([keeper]), ..Lessons::default() };
        assert_eq!(for_pinned(&Known { lessons: &damaged, ..again }, keeper), Target::Here);
        let moved_away = known(None, Some(NodeId(2)), &shard, 0);
        assert_eq!(for_pinned(&moved_away, ME), Target::At(NodeId(2)));
    }

    #[test]
    fn a_write_that_may_have_happened_is_tried_again_only_in_a_session() {
        let unknown = refusal::outcome_unknown("the leader changed");
        assert_eq!(after_write(&unknown, Target::Here, 0, false), Next::Final);
        assert!(matches!(after_write(&unknown, Target::Here, 0, true), Next::Again { .. }));
        assert!(matches!(after_read(&unknown, Target::Here, 0, false, true), Next::Again { .. }));
        for kind in [Kind::InvalidArgument, Kind::FailedPrecondition, Kind::ResourceExhausted, Kind::Internal]
        {
            let refused = Refusal { kind: kind.into(), ..Refusal::default() };
            assert_eq!(after_write(&refused, Target::Here, 0, true), Next::Final, "{kind:?}");
        }
        let (in_session, plain) = (Operation { session_id: 7, ..Operation::default() }, Operation::default());
        assert!(are_repeatable(&[in_session.clone(), in_session.clone()]));
        assert!(!are_repeatable(&[in_session, plain]));
    }

    #[test]
    fn no_later_refusal_makes_an_earlier_doubt_go_away() {
        for refused in [
            refusal::not_leader(kv_topology::ShardId(1), None),
            refusal::of(Kind::WrongShard, refusal::WRONG_SHARD, ""),
            refusal::of(Kind::FailedPrecondition, refusal::SESSION_EXPIRED, ""),
            refusal::exhausted(refusal::SESSION_WINDOW_FULL, "", 1),
            refusal::deadline_exceeded(""),
        ] {
            let reason = refused.reason.clone();
            let told = in_doubt(refused);
            assert_eq!((told.kind(), told.reason.as_str()), (Kind::OutcomeUnknown, refusal::OUTCOME_UNKNOWN));
            assert!(told.message.contains(&reason), "{}", told.message);
        }
        let mut outcomes = [outcome_of(Kind::FailedPrecondition), Outcome::default()];
        in_doubt_each(&mut outcomes);
        let kind = outcomes[0].result.as_ref().map(|result| match result {
            outcome::Result::Refusal(refused) => refused.kind(),
            _ => Kind::Unspecified,
        });
        assert_eq!((kind, &outcomes[1]), (Some(Kind::OutcomeUnknown), &Outcome::default()));
    }

    #[test]
    fn a_new_leader_is_tried_at_once_and_silence_is_given_time() {
        let moved = refusal::not_leader(kv_topology::ShardId(1), Some(NodeId(2)));
        let next = after_write(&moved, Target::Here, 0, false);
        assert_eq!(next, Next::Again { pause: Duration::ZERO, hint: Some(NodeId(2)) });
        let nobody = refusal::not_leader(kv_topology::ShardId(1), None);
        assert_eq!(
            after_write(&nobody, Target::Here, 9, false),
            Next::Again { pause: PAUSE_MAX, hint: None }
        );
    }
}
