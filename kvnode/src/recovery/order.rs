//! What may be written on a disk, and what is: a request to rewrite, checked against what is there. Pure.
//!
//! The one who asks has looked at the disk before, and says what it saw. Where that is no longer so, nothing is written:
//! somebody started the node in between. What is there already as it was asked for is not written again.

use kv_proto::{
    admin::v1::{FenceReplica, LogPosition, ReplaceShardGroup, RewriteMeta, RewriteReplica, SeenMembership},
    disk::v1::{
        LogId, MetaCommand, Operation, Recovered, ReplicaDescriptor,
        meta_command::{Command, ObserveMembership, ReplaceGroup},
        operation::Kind,
    },
    peer::v1::{Outcome, Refusal, outcome, refusal},
};

use super::{
    inspect::{self, log_id},
    on_disk::OnDisk,
    rewrite,
};
use crate::{log::hub::rewrite::Rewrite, refusal as refusals, state_machine::recovered};

/// The log of a replica does not end where the asker saw it end: the node ran in between.
pub const LOG_ENDS_ELSEWHERE: &str = "LOG_ENDS_ELSEWHERE";
/// The replica is of another group than the asker saw.
pub const GROUP_IS_ANOTHER: &str = "GROUP_IS_ANOTHER";
/// What a replica has cannot be used.
pub const REPLICA_UNFIT: &str = "REPLICA_UNFIT";

/// What becomes of meta's replica.
#[derive(Clone, Debug, PartialEq)]
pub struct MetaOrder {
    /// As it is written; the group is known once its entries are applied.
    pub rewrite: Rewrite,
    /// It is the only voter of its group already: there is something to write only if the commands change something.
    pub was_alone: bool,
    /// So many of its commands, the first ones, must be accepted. What comes after them meta may know better.
    pub required: usize,
}

/// Makes a command of meta, with who asks and why.
pub type Envelope<'a> = &'a dyn Fn(Command) -> MetaCommand;

/// Lets meta's replica go on alone, if it does not already, and decides on the groups that were asked for.
///
/// # Errors
/// Why not: the replica is unfit, or not as it was seen.
pub fn meta(
    order: &RewriteMeta,
    found: &OnDisk,
    node_id: u64,
    envelope: Envelope<'_>,
) -> Result<MetaOrder, Refusal> {
    check_fit(&found.descriptor, None)?;
    let was_alone = found.is_alone();
    let mut commands: Vec<Command> =
        order.replace.iter().map(|asked| Command::ReplaceGroup(replacement(asked))).collect();
    let mut seen = Vec::new();
    if !was_alone {
        check_group(&found.descriptor, order.group_id)?;
        check_end(found, order.last.as_ref())?;
        let own = ReplaceGroup {
            shard_id: 0,
            expected_group_id: order.group_id,
            replica_id: order.replica_id,
            node_id,
            last: found.last,
        };
        // First: what is decided after it gets its ids from after the jump.
        commands.insert(0, Command::ReplaceGroup(own));
        seen.extend(order.seen.iter().map(observed));
    }
    let required = commands.len();
    let operation = |command| Operation { kind: Some(Kind::Meta(envelope(command))), ..Operation::default() };
    let operations = commands.into_iter().chain(seen).map(operation).collect();
    let rewrite = if was_alone {
        rewrite::decided(found, operations)
    } else {
        rewrite::alone(found, node_id, found.descriptor.group_id, operations)
    };
    Ok(MetaOrder { rewrite, was_alone, required })
}

/// What a group has by what a survivor knows. A replica that meta does not know would pass for one that nobody needs.
fn observed(seen: &SeenMembership) -> Command {
    let SeenMembership { shard_id, group_id, membership } = seen;
    let membership = membership.as_ref().map(inspect::seen);
    Command::ObserveMembership(ObserveMembership { shard_id: *shard_id, group_id: *group_id, membership })
}

/// What the commands that were appended to meta's log came to, of which so many are required.
///
/// # Errors
/// The first refusal among those: then nothing may be written.
pub fn check_outcomes(outcomes: &[Outcome], required: usize) -> Result<(), Refusal> {
    let refused = outcomes.iter().take(required).find_map(|outcome| match &outcome.result {
        Some(outcome::Result::Refusal(refused)) => Some(refused.clone()),
        _ => None,
    });
    refused.map_or(Ok(()), Err)
}

/// Lets a data replica go on alone in `group`. `None`: it does already.
///
/// # Errors
/// Why not: the replica is unfit, or not as it was seen.
pub fn replica(
    order: &RewriteReplica,
    found: &OnDisk,
    node_id: u64,
    group: u64,
) -> Result<Option<Rewrite>, Refusal> {
    if found.descriptor.group_id == group && found.is_alone() {
        return Ok(None);
    }
    check_fit(&found.descriptor, Some(group))?;
    check_group(&found.descriptor, order.group_id)?;
    check_end(found, order.last.as_ref())?;
    if group <= order.group_id {
        let message = format!("group {group} is not later than group {}", order.group_id);
        return Err(failed(GROUP_IS_ANOTHER, message));
    }
    let jump =
        Operation { kind: Some(Kind::Recovered(Recovered { gap: recovered::GAP })), ..Operation::default() };
    Ok(Some(rewrite::alone(found, node_id, group, vec![jump])))
}

/// Closes a replica out, whose shard goes on in `group`. `None`: it is out already.
///
/// # Errors
/// When the replica is not as it was seen.
pub fn fence(
    order: &FenceReplica,
    descriptor: &ReplicaDescriptor,
    group: u64,
) -> Result<Option<Rewrite>, Refusal> {
    check_group(descriptor, order.group_id)?;
    if group <= order.group_id {
        let message = format!("group {group} is not later than group {}", order.group_id);
        return Err(failed(GROUP_IS_ANOTHER, message));
    }
    // What is damaged keeps its own reason: it is out for good anyway.
    let is_out = !descriptor.quarantine_reason.is_empty() || descriptor.removed;
    Ok((!is_out).then(|| rewrite::fenced(descriptor, group)))
}

/// A decision of meta as it was asked for.
pub fn replacement(asked: &ReplaceShardGroup) -> ReplaceGroup {
    let ReplaceShardGroup { shard_id, expected_group_id, replica_id, node_id, last } = *asked;
    ReplaceGroup { shard_id, expected_group_id, replica_id, node_id, last: last.as_ref().map(log_id) }
}

/// Sound and here to stay. One that was given up comes back only as the survivor that a group begins with, and not for a group
/// from before it was given up.
fn check_fit(descriptor: &ReplicaDescriptor, group: Option<u64>) -> Result<(), Refusal> {
    let ReplicaDescriptor { replica_id, quarantine_reason, removed, replaced_by_group_id, .. } = descriptor;
    if *removed {
        return Err(failed(REPLICA_UNFIT, format!("replica {replica_id} was removed from its group")));
    }
    let given_up = *replaced_by_group_id;
    let comes_back = given_up != 0 && group.is_some_and(|group| group >= given_up);
    if quarantine_reason.is_empty() || comes_back {
        return Ok(());
    }
    Err(failed(REPLICA_UNFIT, format!("replica {replica_id} is quarantined: {quarantine_reason}")))
}

fn check_group(descriptor: &ReplicaDescriptor, expected: u64) -> Result<(), Refusal> {
    let ReplicaDescriptor { replica_id, group_id, .. } = descriptor;
    if *group_id == expected {
        return Ok(());
    }
    Err(failed(GROUP_IS_ANOTHER, format!("replica {replica_id} is of group {group_id}, not of {expected}")))
}

/// The log ends where the asker saw it end.
pub fn check_end(found: &OnDisk, expected: Option<&LogPosition>) -> Result<(), Refusal> {
    if found.last.is_some() && found.last == expected.map(log_id) {
        return Ok(());
    }
    let words = |at: Option<LogId>| {
        at.map_or("nowhere".to_owned(), |at| format!("at term {}, index {}", at.term, at.index))
    };
    let message = format!(
        "the log of replica {} ends {}, and it was seen to end {}: inspect it again",
        found.descriptor.replica_id,
        words(found.last),
        words(expected.map(log_id)),
    );
    Err(failed(LOG_ENDS_ELSEWHERE, message))
}

/// Nothing was written.
pub fn failed(reason: &str, message: impl Into<String>) -> Refusal {
    refusals::of(refusal::Kind::FailedPrecondition, reason, message)
}

#[cfg(test)]
mod tests {
    use kv_proto::disk::v1::{StoredMembership, log_entry::Payload};

    use super::*;
    use crate::recovery::{on_disk, rewrite::closed_out};

    fn position(term: u64, index: u64) -> Option<LogPosition> {
        Some(LogPosition { term, replica_id: 6, index })
    }

    /// Replica 5 of shard 2, in group 3.
    fn found() -> OnDisk {
        let last = position(4, 90).as_ref().map(log_id);
        OnDisk {
            descriptor: ReplicaDescriptor {
                replica_id: 5,
                shard_id: 2,
                group_id: 3,
                ..ReplicaDescriptor::default()
            },
            last,
            last_of_log: last,
            ..OnDisk::default()
        }
    }

    fn is_alone(found: OnDisk) -> OnDisk {
        let membership = StoredMembership { log_id: found.last, membership: Some(on_disk::alone(5, 1)) };
        OnDisk { membership, ..found }
    }

    fn order() -> RewriteReplica {
        RewriteReplica { shard_id: 2, replica_id: 5, group_id: 3, new_group_id: 12, last: position(4, 90) }
    }

    #[test]
    fn a_replica_is_rewritten_as_it_was_seen_and_only_then() {
        let written = replica(&order(), &found(), 1, 12).expect("as it was seen").expect("written");
        assert_eq!((written.descriptor.group_id, written.entries.len()), (12, 2));
        let with = |change: &dyn Fn(&mut OnDisk)| {
            let mut changed = found();
            change(&mut changed);
            replica(&order(), &changed, 1, 12).expect_err("not as it was seen").reason
        };
        assert_eq!(with(&|found| found.last = position(4, 91).as_ref().map(log_id)), LOG_ENDS_ELSEWHERE);
        assert_eq!(with(&|found| found.last = None), LOG_ENDS_ELSEWHERE);
        assert_eq!(with(&|found| found.descriptor.group_id = 7), GROUP_IS_ANOTHER);
        assert_eq!(with(&|found| found.descriptor.removed = true), REPLICA_UNFIT);
        assert_eq!(with(&|found| found.descriptor.quarantine_reason = "a bit".to_owned()), REPLICA_UNFIT);
        let older = replica(&order(), &found(), 1, 3).expect_err("not a later group");
        assert_eq!(older.reason, GROUP_IS_ANOTHER);
    }

    #[test]
    fn what_was_rewritten_is_not_rewritten_again() {
        let done = OnDisk { last: position(5, 92).as_ref().map(log_id), ..is_alone(found()) };
        let done =
            OnDisk { descriptor: ReplicaDescriptor { group_id: 12, ..done.descriptor.clone() }, ..done };
        assert_eq!(replica(&order(), &done, 1, 12), Ok(None));
    }

    #[test]
    fn a_survivor_that_was_fenced_before_it_was_rewritten_comes_back() {
        let descriptor = closed_out(&found().descriptor, 12);
        let fenced = OnDisk { descriptor, ..found() };
        assert!(replica(&order(), &fenced, 1, 12).expect("the decided survivor").is_some());
        let refused = replica(&order(), &fenced, 1, 11).expect_err("a decision from before");
        assert_eq!(refused.reason, REPLICA_UNFIT);
    }

    fn meta_order(replace: Vec<ReplaceShardGroup>) -> RewriteMeta {
        let seen = vec![SeenMembership { shard_id: 3, group_id: 4, membership: None }];
        RewriteMeta { replica_id: 5, group_id: 3, last: position(4, 90), replace, seen }
    }

    /// The shards that the appended commands are about.
    fn commands(rewrite: &Rewrite) -> Vec<u32> {
        use prost::Message;
        let proposals = rewrite.entries.iter().filter_map(|entry| match &entry.payload {
            Some(Payload::Proposal(bytes)) => kv_proto::disk::v1::Proposal::decode(bytes.clone()).ok(),
            _ => None,
        });
        proposals
            .flat_map(|proposal| proposal.operations)
            .filter_map(|operation| match operation.kind {
                Some(Kind::Meta(MetaCommand { command, .. })) => command,
                _ => None,
            })
            .map(|command| match command {
                Command::ReplaceGroup(replace) => replace.shard_id,
                Command::ObserveMembership(observe) => observe.shard_id,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn meta_first_replaces_itself_and_then_the_others() {
        let envelope = |command| MetaCommand { command: Some(command), ..MetaCommand::default() };
        let shard = ReplaceShardGroup { shard_id: 1, expected_group_id: 1, ..ReplaceShardGroup::default() };
        let order = meta_order(vec![shard]);
        let made = meta(&order, &found(), 1, &envelope).expect("as it was seen");
        assert_eq!((made.was_alone, commands(&made.rewrite), made.required), (false, vec![0, 1, 3], 2));
        assert_eq!(made.rewrite.entries.len(), 2, "a membership, and one proposal");

        let made = meta(&order, &is_alone(found()), 1, &envelope).expect("alone already");
        assert_eq!((made.was_alone, commands(&made.rewrite), made.required), (true, vec![1], 1));
    }

    #[test]
    fn a_fence_is_put_up_once_and_never_around_a_later_group() {
        let order = FenceReplica { shard_id: 2, replica_id: 5, group_id: 3, new_group_id: 12 };
        let written = fence(&order, &found().descriptor, 12).expect("as it was seen").expect("written");
        assert_eq!(written.descriptor.replaced_by_group_id, 12);
        assert_eq!(fence(&order, &written.descriptor, 12), Ok(None));
        let newer = ReplicaDescriptor { group_id: 12, ..found().descriptor };
        assert_eq!(fence(&order, &newer, 12).expect_err("the survivor").reason, GROUP_IS_ANOTHER);
        assert_eq!(fence(&order, &found().descriptor, 3).expect_err("no later one").reason, GROUP_IS_ANOTHER);
    }
}
