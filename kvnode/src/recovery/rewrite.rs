//! What is written into a replica that goes on alone, or that never goes on again. Pure.
//!
//! An appended entry must be one that Raft could have appended: of a term that is greater than every one that the replica
//! voted in or has entries of, with the replica as its leader. Nobody else was ever leader in that term by this replica's
//! vote, and the group's id keeps everybody else's vote out.

use kv_proto::disk::v1::{LogEntry, LogId, Operation, Proposal, ReplicaDescriptor, Vote, log_entry::Payload};
use prost::Message;

use super::on_disk::{self, OnDisk};
use crate::log::hub::rewrite::Rewrite;

/// The replica goes on alone in `group`: its log ends with a membership of itself, and after that these operations.
pub fn alone(found: &OnDisk, node_id: u64, group_id: u64, operations: Vec<Operation>) -> Rewrite {
    let membership = on_disk::alone(found.descriptor.replica_id, node_id);
    let mut payloads = vec![Payload::Membership(membership)];
    payloads.extend(proposal(operations));
    appended(found, group_id, payloads)
}

/// The replica is alone in its group, and these operations are decided.
pub fn decided(found: &OnDisk, operations: Vec<Operation>) -> Rewrite {
    appended(found, found.descriptor.group_id, proposal(operations).into_iter().collect())
}

/// The replica never votes or serves again: its shard goes on in `group`.
pub fn fenced(descriptor: &ReplicaDescriptor, group_id: u64) -> Rewrite {
    Rewrite { descriptor: closed_out(descriptor, group_id), vote: None, purged: None, entries: Vec::new() }
}

/// What the node knows of such a replica.
pub fn closed_out(descriptor: &ReplicaDescriptor, group_id: u64) -> ReplicaDescriptor {
    let quarantine_reason = format!(
        "shard {} goes on in group {group_id} since group {} was given up",
        descriptor.shard_id, descriptor.group_id
    );
    ReplicaDescriptor { quarantine_reason, replaced_by_group_id: group_id, ..descriptor.clone() }
}

/// `None`: there is nothing to propose.
fn proposal(operations: Vec<Operation>) -> Option<Payload> {
    // Log time goes on from where it is.
    let proposal = Proposal { log_time_ms: 0, operations };
    (!proposal.operations.is_empty()).then(|| Payload::Proposal(proposal.encode_to_vec().into()))
}

fn appended(found: &OnDisk, group_id: u64, payloads: Vec<Payload>) -> Rewrite {
    let OnDisk { descriptor, vote, last, last_of_log, .. } = found;
    let replica_id = descriptor.replica_id;
    let term = vote.term.max(last.map_or(0, |last| last.term)) + 1;
    let first = last.map_or(0, |last| last.index + 1);
    let entries = payloads.into_iter().zip(first..).map(|(payload, index)| LogEntry {
        log_id: Some(LogId { term, replica_id, index }),
        payload: Some(payload),
    });
    Rewrite {
        descriptor: ReplicaDescriptor {
            replica_id,
            shard_id: descriptor.shard_id,
            group_id,
            ..ReplicaDescriptor::default()
        },
        // As of a leader that was stopped: after the start it elects itself in the term after this one.
        vote: Some(Vote { term, replica_id, committed: true }),
        // The entries before a snapshot do not lead up to what comes after it.
        purged: (*last != *last_of_log).then_some(*last).flatten(),
        entries: entries.collect(),
    }
}

#[cfg(test)]
mod tests {
    use kv_proto::disk::v1::{Recovered, operation::Kind};

    use super::*;

    fn at(term: u64, replica_id: u64, index: u64) -> Option<LogId> {
        Some(LogId { term, replica_id, index })
    }

    fn found(vote_term: u64, last_of_log: Option<LogId>, applied: Option<LogId>) -> OnDisk {
        OnDisk {
            descriptor: ReplicaDescriptor {
                replica_id: 5,
                shard_id: 2,
                group_id: 3,
                quarantine_reason: "fenced once".to_owned(),
                replaced_by_group_id: 9,
                ..ReplicaDescriptor::default()
            },
            vote: Vote { term: vote_term, replica_id: 4, committed: true },
            last: if applied.map(|id| id.index) > last_of_log.map(|id| id.index) {
                applied
            } else {
                last_of_log
            },
            last_of_log,
            applied,
            ..OnDisk::default()
        }
    }

    fn operation() -> Operation {
        Operation { kind: Some(Kind::Recovered(Recovered { gap: 7 })), ..Operation::default() }
    }

    #[test]
    fn a_survivor_votes_for_itself_in_a_term_that_nobody_led() {
        for (vote, last, expected) in [
            (4, at(3, 6, 90), (5, 91)),
            (4, at(8, 6, 90), (9, 91)),
            (0, at(1, 5, 0), (2, 1)),
            (3, None, (4, 0)),
        ] {
            let rewrite = alone(&found(vote, last, None), 1, 12, vec![operation()]);
            let (term, first) = expected;
            assert_eq!(rewrite.vote, Some(Vote { term, replica_id: 5, committed: true }));
            let ids: Vec<_> = rewrite.entries.iter().filter_map(|entry| entry.log_id).collect();
            assert_eq!(ids, [at(term, 5, first), at(term, 5, first + 1)].map(Option::unwrap_or_default));
            assert_eq!(rewrite.purged, None, "the log is as it was");
        }
    }

    #[test]
    fn a_survivor_is_alone_in_its_new_group_and_in_service_again() {
        let rewrite = alone(&found(4, at(3, 6, 90), None), 1, 12, Vec::new());
        assert_eq!((rewrite.descriptor.group_id, rewrite.descriptor.shard_id), (12, 2));
        assert_eq!(
            (rewrite.descriptor.quarantine_reason.as_str(), rewrite.descriptor.replaced_by_group_id),
            ("", 0)
        );
        let [LogEntry { payload: Some(Payload::Membership(membership)), .. }] = &rewrite.entries[..] else {
            panic!("{rewrite:?}")
        };
        assert_eq!(*membership, on_disk::alone(5, 1));
    }

    #[test]
    fn entries_before_a_snapshot_that_was_put_in_do_not_stay() {
        let rewrite = alone(&found(4, at(3, 6, 50), at(4, 6, 90)), 1, 12, Vec::new());
        assert_eq!(rewrite.purged, at(4, 6, 90));
        assert_eq!(rewrite.entries[0].log_id, at(5, 5, 91));
    }

    #[test]
    fn who_is_alone_already_decides_in_its_own_group() {
        let rewrite = decided(&found(4, at(3, 6, 90), None), vec![operation()]);
        assert_eq!(rewrite.descriptor.group_id, 3);
        assert!(matches!(&rewrite.entries[..], [LogEntry { payload: Some(Payload::Proposal(_)), .. }]));
        assert_eq!(decided(&found(4, at(3, 6, 90), None), Vec::new()).entries, []);
    }

    #[test]
    fn a_fenced_replica_keeps_what_it_has_and_says_why_it_does_not_start() {
        let before = found(4, at(3, 6, 90), None).descriptor;
        let rewrite = fenced(&before, 12);
        assert_eq!((rewrite.vote, rewrite.entries.len()), (None, 0));
        assert_eq!((rewrite.descriptor.group_id, rewrite.descriptor.replaced_by_group_id), (3, 12));
        assert_eq!(
            rewrite.descriptor.quarantine_reason,
            "shard 2 goes on in group 12 since group 3 was given up"
        );
    }
}
