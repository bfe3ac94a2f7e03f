//! A group goes on from what one survivor has, after the majority of its replicas was lost for good.
//!
//! Clients hold what the lost majority gave out after the survivor's last entry: revisions of writes that are lost, numbers of
//! sessions. Were they given out again, a mod revision would name two writes, and two clients would be in one session.

use kv_proto::{
    disk::v1::Recovered,
    peer::v1::{Done, outcome},
};

use super::apply::{Rejection, Step};

/// How far revisions and numbers of sessions jump: more than a shard gives out in the time that a replica may be behind.
pub const GAP: u64 = 1_000_000;

/// Jumps. The sessions that the survivor knows stay.
pub(crate) fn recovered(step: &mut Step<'_, '_>, operation: Recovered) -> Result<outcome::Result, Rejection> {
    let Recovered { gap } = operation;
    step.group.revision = step.group.revision.saturating_add(gap);
    step.group.sessions_opened = step.group.sessions_opened.saturating_add(gap);
    Ok(outcome::Result::Done(Done {}))
}
