//! May a failed attempt be repeated? Pure: what failed and what was asked come in, the decision comes out.
//!
//! A read may always be repeated, and so may a write in a session, with the same stamp, and what is done already when it is
//! done. Any other write only when the store says that it surely did not happen. Everything that has no word of ours in it
//! came from a transport or a proxy, after the request may have reached a node: for such a write, the outcome is unknown, and
//! repeating it could apply it twice.

use std::time::Duration;

use tonic::Code;

/// Whether an operation changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Has no effect.
    Read,
    /// Has an effect, and repeating it could have it twice.
    Write,
    /// Has an effect, in a session: once, however often it is sent.
    Once,
    /// Has an effect, and done already is done: sent again, it changes nothing more. What administrators wish of the cluster.
    Idempotent,
}

impl Kind {
    /// Whether it may have had its effect and may be sent again all the same.
    pub(crate) fn bears_doubt(self) -> bool {
        match self {
            Self::Once | Self::Idempotent => true,
            Self::Read | Self::Write => false,
        }
    }

    /// Whether a node that does not answer is left for another one before the deadline comes.
    pub(crate) fn is_quick(self) -> bool {
        match self {
            Self::Read | Self::Idempotent => true,
            Self::Write | Self::Once => false,
        }
    }
}

/// What a failed attempt tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No connection came about: the request never left.
    NotSent,
    /// The node says that it surely did not happen (`NOT_APPLIED_…`): no leader, starting, stopping.
    NotApplied,
    /// The shard does not own the key's slot: the map moved on.
    WrongShard,
    /// A limit was reached before anything happened. `advised`: the node says when to come again.
    Exhausted {
        /// Whether a `RetryInfo` came with it.
        advised: bool,
    },
    /// The node does not know what became of it.
    OutcomeUnknown,
    /// Nothing of ours in the answer, or no answer: lost on the way there or back.
    Lost,
    /// The request is wrong, or forbidden, in this state. Repeating it changes nothing.
    Refused,
    /// The node found its own bytes damaged; another replica may have them whole.
    DataLoss,
    /// A bug of the node.
    Bug,
    /// The shard does not have the session of the write: it has expired, or is one of another shard. This attempt did not
    /// happen; earlier ones may have.
    NoSession,
}

/// Whether a failed operation may have had its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// Surely not.
    No,
    /// Nobody can tell.
    Perhaps,
}

/// Where the next attempt goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// To the hinted leader; to the same node where there is no hint.
    Leader,
    /// To the same node.
    Same,
    /// To another node, where one is known.
    Other,
    /// To whom the refreshed map names.
    Refreshed,
}

/// What to do after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Try again, while the deadline allows.
    Retry(Turn),
    /// Give up.
    Fail(Happened),
}

/// The reason prefix by which a node promises that nothing happened.
const NOT_APPLIED_PREFIX: &str = "NOT_APPLIED_";
const WRONG_SHARD: &str = "WRONG_SHARD";
const OUTCOME_UNKNOWN: &str = "OUTCOME_UNKNOWN";
const SESSION_EXPIRED: &str = "SESSION_EXPIRED";
const SESSION_WINDOW_FULL: &str = "SESSION_WINDOW_FULL";
/// A leadership cannot go where it was to go. Surely not applied, and not before that replica has caught up.
const TARGET_NOT_READY: &str = "NOT_APPLIED_TARGET_NOT_READY";
/// The cluster has changed while something was decided: nothing was done, and all may be looked at again.
const EPOCH_MOVED_ON: &str = "EPOCH_MOVED_ON";

impl Cause {
    /// Reads a status. `reason` is that of our `ErrorInfo`; `None` when the status carries none of ours.
    pub fn of(code: Code, reason: Option<&str>, advised: bool) -> Self {
        match reason {
            Some(TARGET_NOT_READY) => Self::Refused,
            Some(reason) if reason.starts_with(NOT_APPLIED_PREFIX) => Self::NotApplied,
            Some(EPOCH_MOVED_ON) => Self::NotApplied,
            Some(WRONG_SHARD) => Self::WrongShard,
            Some(OUTCOME_UNKNOWN) => Self::OutcomeUnknown,
            Some(SESSION_EXPIRED) => Self::NoSession,
            // The next attempt acknowledges what was answered meanwhile.
            Some(SESSION_WINDOW_FULL) => Self::Exhausted { advised: true },
            Some(_) => Self::of_ours(code, advised),
            None => Self::of_foreign(code),
        }
    }

    fn of_ours(code: Code, advised: bool) -> Self {
        match code {
            Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
            | Code::OutOfRange => Self::Refused,
            Code::ResourceExhausted => Self::Exhausted { advised },
            Code::DataLoss => Self::DataLoss,
            Code::Internal => Self::Bug,
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::Unavailable => Self::Lost,
        }
    }

    /// gRPC libraries and proxies make these up by themselves. Some only before a handler ran; the rest also after
    /// it: `OUT_OF_RANGE` for a reply too large to decode, `RESOURCE_EXHAUSTED` and `INTERNAL` for a reset stream.
    fn of_foreign(code: Code) -> Self {
        match code {
            Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented => Self::Refused,
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::OutOfRange
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => Self::Lost,
        }
    }

    /// Whether the attempt may have had its effect, had it been a write.
    pub fn happened(self) -> Happened {
        match self {
            Self::NotSent
            | Self::NotApplied
            | Self::WrongShard
            | Self::Exhausted { .. }
            | Self::Refused
            | Self::NoSession => Happened::No,
            Self::OutcomeUnknown | Self::Lost | Self::DataLoss | Self::Bug => Happened::Perhaps,
        }
    }
}

/// Decides. The deadline is the caller's business.
pub fn decide(kind: Kind, cause: Cause) -> Decision {
    match (kind, cause) {
        (_, Cause::NotSent) => Decision::Retry(Turn::Other),
        (_, Cause::NotApplied) => Decision::Retry(Turn::Leader),
        (_, Cause::WrongShard) => Decision::Retry(Turn::Refreshed),
        (_, Cause::Exhausted { advised: true }) => Decision::Retry(Turn::Same),
        (_, Cause::Exhausted { advised: false } | Cause::Refused) => Decision::Fail(Happened::No),
        (Kind::Once, Cause::NoSession) => Decision::Retry(Turn::Same),
        (Kind::Read | Kind::Write | Kind::Idempotent, Cause::NoSession) => Decision::Fail(Happened::No),
        (
            Kind::Read | Kind::Once | Kind::Idempotent,
            Cause::OutcomeUnknown | Cause::Lost | Cause::DataLoss,
        ) => Decision::Retry(Turn::Other),
        (Kind::Read, Cause::Bug) => Decision::Fail(Happened::No),
        (Kind::Once | Kind::Idempotent, Cause::Bug) => Decision::Fail(Happened::Perhaps),
        (Kind::Write, Cause::OutcomeUnknown | Cause::Lost | Cause::DataLoss | Cause::Bug) => {
            Decision::Fail(Happened::Perhaps)
        }
    }
}

/// So a node refuses to answer from a replica of its own that it does not have.
pub const NO_REPLICA: &str = "NOT_APPLIED_NO_REPLICA";
/// Reads that a node without a replica is asked for, when no other node may be: it may have just started.
const ABSENCES_MAX: u32 = 2;

/// Whether a node that has refused a read so often for want of a replica would refuse again for longer than anybody waits.
pub fn is_lasting_absence(kind: Kind, absences: u32) -> bool {
    kind == Kind::Read && absences >= ABSENCES_MAX
}

/// The first pause; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
/// No pause of our own is longer: an election takes 0.5 to 1 s.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The pause before attempt `next` (the first retry is 2), with `jitter` from 0 to 1.
///
/// From half of the doubling pause to the whole of it. With `advice`, no sooner than it says; up to a quarter later,
/// so that those who were told the same do not come together.
pub fn pause(next: u32, advice: Option<Duration>, jitter: f64) -> Duration {
    let jitter = jitter.clamp(0.0, 1.0);
    let doublings = next.saturating_sub(2).min(10);
    let whole = FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE);
    let advised = advice.unwrap_or_default().mul_f64(1.0 + jitter / 4.0);
    whole.mul_f64(0.5 + jitter / 2.0).max(advised)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODES: [Code; 17] = [
        Code::Ok,
        Code::Cancelled,
        Code::Unknown,
        Code::InvalidArgument,
        Code::DeadlineExceeded,
        Code::NotFound,
        Code::AlreadyExists,
        Code::PermissionDenied,
        Code::ResourceExhausted,
        Code::FailedPrecondition,
        Code::Aborted,
        Code::OutOfRange,
        Code::Unimplemented,
        Code::Internal,
        Code::Unavailable,
        Code::DataLoss,
        Code::Unauthenticated,
    ];

    #[test]
    fn a_write_without_a_word_of_ours_is_never_repeated() {
        for code in CODES {
            for advised in [false, true] {
                let decision = decide(Kind::Write, Cause::of(code, None, advised));
                assert!(matches!(decision, Decision::Fail(_)), "{code:?}: {decision:?}");
            }
        }
        for code in
            [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Unknown, Code::Internal]
        {
            assert_eq!(decide(Kind::Write, Cause::of(code, None, true)), Decision::Fail(Happened::Perhaps));
        }
    }

    #[test]
    fn a_write_is_repeated_only_when_it_surely_did_not_happen() {
        for code in CODES {
            for reason in
                [None, Some("NOT_APPLIED_NO_LEADER"), Some("WRONG_SHARD"), Some("OUTCOME_UNKNOWN"), Some("X")]
            {
                for advised in [false, true] {
                    let cause = Cause::of(code, reason, advised);
                    let safe = matches!(reason, Some("NOT_APPLIED_NO_LEADER" | "WRONG_SHARD"))
                        || (code == Code::ResourceExhausted && reason == Some("X") && advised);
                    let retried = matches!(decide(Kind::Write, cause), Decision::Retry(_));
                    assert_eq!(retried, safe, "{code:?} {reason:?} {advised}");
                    assert!(!retried || cause.happened() == Happened::No);
                }
            }
        }
    }

    #[test]
    fn the_table() {
        use Decision::{Fail, Retry};
        use Happened::{No, Perhaps};
        let all = |decision| [decision; 4];
        let other = Retry(Turn::Other);
        for (cause, decisions) in [
            (Cause::NotSent, all(other)),
            (Cause::NotApplied, all(Retry(Turn::Leader))),
            (Cause::WrongShard, all(Retry(Turn::Refreshed))),
            (Cause::Exhausted { advised: true }, all(Retry(Turn::Same))),
            (Cause::Exhausted { advised: false }, all(Fail(No))),
            (Cause::OutcomeUnknown, [other, Fail(Perhaps), other, other]),
            (Cause::Lost, [other, Fail(Perhaps), other, other]),
            (Cause::Refused, all(Fail(No))),
            (Cause::DataLoss, [other, Fail(Perhaps), other, other]),
            (Cause::Bug, [Fail(No), Fail(Perhaps), Fail(Perhaps), Fail(Perhaps)]),
            (Cause::NoSession, [Fail(No), Fail(No), Retry(Turn::Same), Fail(No)]),
        ] {
            let kinds = [Kind::Read, Kind::Write, Kind::Once, Kind::Idempotent];
            assert_eq!(kinds.map(|kind| decide(kind, cause)), decisions, "{cause:?}");
        }
    }

    #[test]
    fn a_permit_is_asked_for_again_when_the_cluster_has_changed_meanwhile() {
        let cause = Cause::of(Code::Unavailable, Some("EPOCH_MOVED_ON"), true);
        assert_eq!(decide(Kind::Write, cause), Decision::Retry(Turn::Leader));
    }

    #[test]
    fn a_leadership_that_cannot_go_there_is_refused_at_once() {
        let cause = Cause::of(Code::Unavailable, Some("NOT_APPLIED_TARGET_NOT_READY"), true);
        assert_eq!(decide(Kind::Idempotent, cause), Decision::Fail(Happened::No));
    }

    #[test]
    fn a_node_without_a_replica_is_asked_once_more_only() {
        assert!(!is_lasting_absence(Kind::Read, 1));
        assert!(is_lasting_absence(Kind::Read, 2));
        assert!(!is_lasting_absence(Kind::Write, 9), "others were asked for it");
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_honour_advice() {
        assert_eq!(pause(2, None, 1.0), FIRST_PAUSE);
        assert_eq!(pause(3, None, 1.0), FIRST_PAUSE * 2);
        assert_eq!(pause(3, None, 0.0), FIRST_PAUSE);
        assert_eq!(pause(u32::MAX, None, 1.0), LONGEST_PAUSE);
        let advice = Duration::from_millis(400);
        assert_eq!(pause(2, Some(advice), 0.0), advice);
        assert_eq!(pause(2, Some(advice), 1.0), Duration::from_millis(500));
        assert_eq!(pause(9, Some(advice), 1.0), LONGEST_PAUSE, "advice does not stop the doubling");
    }
}
