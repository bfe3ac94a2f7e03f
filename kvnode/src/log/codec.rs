//! The Raft library's values as `disk.v1` messages, and back.
//!
//! Used by the log, by the transport (frames carry the same messages) and by the state machine. Payloads are
//! [`bytes::Bytes`]: they are counted references, so that no function here copies a proposal. What comes from disk
//! or wire is checked: these functions return errors and never panic.

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::disk::v1 as disk;
use thiserror::Error;

use crate::group::type_config::{Member, Proposal};

/// Who leads a term. The types below are those of every `TypeConfig<RT>`: none depends on the runtime.
pub type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
/// Position of an entry: the leader that proposed it and its index.
pub type LogId = openraft::LogId<LeaderId>;
/// The vote of a replica.
pub type Vote = openraft::impls::Vote<LeaderId>;
/// What an entry carries.
pub type Payload = openraft::EntryPayload<Proposal, u64, Member>;
/// One entry of the Raft log.
pub type Entry = openraft::Entry<LeaderId, Payload>;
/// Voters and learners of a group.
pub type Membership = openraft::Membership<u64, Member>;
/// A membership and the entry that made it.
pub type StoredMembership = openraft::StoredMembership<LeaderId, u64, Member>;

/// A `disk.v1` message that is not what its writer can have meant.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CodecError {
    /// The bytes are no such message.
    #[error("malformed {message}: {source}")]
    Malformed {
        /// The message that was expected.
        message: &'static str,
        /// What protobuf says.
        source: prost::DecodeError,
    },
    /// A field without which the message means nothing.
    #[error("{message} without {field}")]
    Missing {
        /// The message.
        message: &'static str,
        /// The field.
        field: &'static str,
    },
    /// An entry of a kind that this version does not know: a newer version wrote it.
    #[error("entry {index} is of an unknown kind")]
    UnknownEntry {
        /// Its index.
        index: u64,
    },
    /// A replica is named twice.
    #[error("membership names replica {replica} twice")]
    DuplicateReplica {
        /// Its id.
        replica: u64,
    },
    /// An empty set of voters, or a voter that is no member.
    #[error("invalid membership: {0}")]
    InvalidMembership(String),
}

/// Encodes one message.
pub fn to_bytes(message: &impl prost::Message) -> bytes::Bytes {
    message.encode_to_vec().into()
}

/// Decodes one message; byte fields of a [`bytes::Bytes`] buffer are slices of it.
///
/// # Errors
/// When the bytes are no such message.
pub fn from_bytes<M: prost::Message + Default>(
    message: &'static str,
    bytes: impl bytes::Buf,
) -> Result<M, CodecError> {
    M::decode(bytes).map_err(|source| CodecError::Malformed { message, source })
}

/// A log id as a message.
pub fn log_id_to_disk(id: &LogId) -> disk::LogId {
    disk::LogId { term: id.leader_id.term, replica_id: id.leader_id.node_id, index: id.index }
}

/// A log id from its message. Every value is valid.
pub fn log_id_from_disk(id: &disk::LogId) -> LogId {
    LogId::new(LeaderId { term: id.term, node_id: id.replica_id }, id.index)
}

/// A vote as a message.
pub fn vote_to_disk(vote: &Vote) -> disk::Vote {
    disk::Vote { term: vote.leader_id.term, replica_id: vote.leader_id.node_id, committed: vote.committed }
}

/// A vote from its message. Every value is valid.
pub fn vote_from_disk(vote: &disk::Vote) -> Vote {
    Vote { leader_id: LeaderId { term: vote.term, node_id: vote.replica_id }, committed: vote.committed }
}

/// A membership as a message: sets in the order of the joint configuration, ids ascending.
pub fn membership_to_disk(membership: &Membership) -> disk::Membership {
    let voters = membership.get_joint_config().iter();
    disk::Membership {
        voters: voters.map(|set| disk::VoterSet { replica_ids: set.iter().copied().collect() }).collect(),
        members: membership
            .nodes()
            .map(|(replica, member)| disk::Member { replica_id: *replica, node_id: member.node })
            .collect(),
    }
}

/// A membership from its message.
///
/// # Errors
/// When a set of voters is empty, a voter is no member, or a replica is named twice.
pub fn membership_from_disk(membership: &disk::Membership) -> Result<Membership, CodecError> {
    let mut sets = Vec::with_capacity(membership.voters.len());
    for voters in &membership.voters {
        let mut set = BTreeSet::new();
        for replica in &voters.replica_ids {
            if !set.insert(*replica) {
                return Err(CodecError::DuplicateReplica { replica: *replica });
            }
        }
        sets.push(set);
    }
    let mut members = BTreeMap::new();
    for member in &membership.members {
        if members.insert(member.replica_id, Member { node: member.node_id }).is_some() {
            return Err(CodecError::DuplicateReplica { replica: member.replica_id });
        }
    }
    Membership::new(sets, members).map_err(|error| CodecError::InvalidMembership(error.to_string()))
}

/// A membership with its log id as a message.
pub fn stored_membership_to_disk(stored: &StoredMembership) -> disk::StoredMembership {
    disk::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_to_disk),
        membership: Some(membership_to_disk(stored.membership())),
    }
}

/// A membership with its log id from its message. An unset membership is the empty one.
///
/// # Errors
/// As [`membership_from_disk`].
pub fn stored_membership_from_disk(stored: &disk::StoredMembership) -> Result<StoredMembership, CodecError> {
    let membership = stored.membership.as_ref().map(membership_from_disk).transpose()?;
    Ok(StoredMembership::new(stored.log_id.as_ref().map(log_id_from_disk), membership.unwrap_or_default()))
}

/// An entry as a message; the proposal's bytes are shared with it.
pub fn encode_entry(entry: &Entry) -> disk::LogEntry {
    let payload = match &entry.payload {
        Payload::Blank => disk::log_entry::Payload::Blank(disk::Blank {}),
        Payload::Normal(proposal) => disk::log_entry::Payload::Proposal(proposal.0.clone()),
        Payload::Membership(membership) => {
            disk::log_entry::Payload::Membership(membership_to_disk(membership))
        }
    };
    disk::LogEntry { log_id: Some(log_id_to_disk(&entry.log_id)), payload: Some(payload) }
}

/// An entry from its message; the proposal's bytes are shared with it.
///
/// # Errors
/// When the log id is missing, the kind of payload is unknown, or a membership is not valid.
pub fn decode_entry(entry: disk::LogEntry) -> Result<Entry, CodecError> {
    let id = entry.log_id.ok_or(CodecError::Missing { message: "LogEntry", field: "log_id" })?;
    let payload = match entry.payload {
        Some(disk::log_entry::Payload::Blank(disk::Blank {})) => Payload::Blank,
        Some(disk::log_entry::Payload::Proposal(proposal)) => Payload::Normal(Proposal(proposal)),
        Some(disk::log_entry::Payload::Membership(membership)) => {
            Payload::Membership(membership_from_disk(&membership)?)
        }
        None => return Err(CodecError::UnknownEntry { index: id.index }),
    };
    Ok(Entry { log_id: log_id_from_disk(&id), payload })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn hex(message: &impl prost::Message) -> String {
        message.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn id(term: u64, replica: u64, index: u64) -> LogId {
        LogId::new(LeaderId { term, node_id: replica }, index)
    }

    fn member(node: u64) -> Member {
        Member { node }
    }

    fn joint() -> Membership {
        let members = BTreeMap::from([(11, member(1)), (12, member(2)), (13, member(3))]);
        Membership::new(vec![BTreeSet::from([11, 12]), BTreeSet::from([12])], members).expect("valid")
    }

    #[test]
    fn encodings_on_disk_keep_their_bytes() {
        assert_eq!(hex(&log_id_to_disk(&id(3, 11, 300))), "0803100b18ac02");
        assert_eq!(hex(&log_id_to_disk(&id(0, 0, 0))), "", "an empty record is the log id of all zeros");
        let vote = Vote { leader_id: LeaderId { term: 3, node_id: 11 }, committed: true };
        assert_eq!(hex(&vote_to_disk(&vote)), "0803100b1801");
        assert_eq!(
            hex(&membership_to_disk(&joint())),
            "0a040a020b0c0a030a010c1204080b10011204080c10021204080d1003"
        );
        let stored = StoredMembership::new(Some(id(1, 11, 0)), joint());
        assert_eq!(
            hex(&stored_membership_to_disk(&stored)),
            "0a040801100b121d0a040a020b0c0a030a010c1204080b10011204080c10021204080d1003"
        );
        let entry = |payload| hex(&encode_entry(&Entry { log_id: id(3, 11, 300), payload }));
        assert_eq!(entry(Payload::Blank), "0a070803100b18ac021200");
        assert_eq!(
            entry(Payload::Normal(Proposal(Bytes::from_static(b"hello")))),
            "0a070803100b18ac021a0568656c6c6f"
        );
        assert_eq!(
            entry(Payload::Membership(joint())),
            "0a070803100b18ac02221d0a040a020b0c0a030a010c1204080b10011204080c10021204080d1003"
        );
    }

    #[test]
    fn a_proposal_is_shared_not_copied() {
        let proposal = Bytes::from(vec![7; 1000]);
        let entry = Entry { log_id: id(1, 1, 1), payload: Payload::Normal(Proposal(proposal.clone())) };
        let message = encode_entry(&entry);
        let Some(disk::log_entry::Payload::Proposal(encoded)) = &message.payload else {
            panic!("{message:?}")
        };
        assert_eq!(encoded.as_ptr(), proposal.as_ptr());
        let buffer = to_bytes(&message);
        let Payload::Normal(Proposal(decoded)) =
            decode_entry(from_bytes("LogEntry", buffer.clone()).expect("decodes")).expect("valid").payload
        else {
            panic!("another payload")
        };
        assert!(buffer.as_ptr_range().contains(&decoded.as_ptr()));
    }

    #[test]
    fn messages_that_mean_nothing_are_errors() {
        let blank = || Some(disk::log_entry::Payload::Blank(disk::Blank {}));
        let entry = disk::LogEntry { log_id: None, payload: blank() };
        assert_eq!(decode_entry(entry), Err(CodecError::Missing { message: "LogEntry", field: "log_id" }));
        let entry = disk::LogEntry { log_id: Some(log_id_to_disk(&id(1, 1, 9))), payload: None };
        assert_eq!(decode_entry(entry), Err(CodecError::UnknownEntry { index: 9 }));
        let set = |replica_ids: &[u64]| disk::VoterSet { replica_ids: replica_ids.to_vec() };
        let members =
            |ids: &[u64]| ids.iter().map(|id| disk::Member { replica_id: *id, node_id: 1 }).collect();
        for (voters, members) in [
            (vec![set(&[])], members(&[1])),
            (vec![set(&[1, 2])], members(&[1])),
            (vec![set(&[1, 1])], members(&[1])),
            (vec![set(&[1])], members(&[1, 1])),
        ] {
            let membership = disk::Membership { voters, members };
            assert!(membership_from_disk(&membership).is_err(), "{membership:?}");
        }
    }

    fn memberships() -> impl Strategy<Value = Membership> {
        let sets = prop::collection::vec(prop::collection::btree_set(0u64..9, 1..5), 0..3);
        (sets, prop::collection::btree_map(any::<u64>(), any::<u64>(), 0..4)).prop_map(|(sets, others)| {
            let mut members: BTreeMap<u64, Member> =
                others.into_iter().map(|(id, node)| (id, member(node))).collect();
            members.extend(sets.iter().flatten().map(|id| (*id, member(id + 100))));
            Membership::new(sets, members).expect("valid")
        })
    }

    fn payloads() -> impl Strategy<Value = Payload> {
        prop_oneof![
            Just(Payload::Blank),
            prop::collection::vec(any::<u8>(), 0..300)
                .prop_map(|bytes| Payload::Normal(Proposal(bytes.into()))),
            memberships().prop_map(Payload::Membership),
        ]
    }

    proptest! {
        #[test]
        fn every_entry_reads_back(term: u64, replica: u64, index: u64, payload in payloads()) {
            let entry = Entry { log_id: id(term, replica, index), payload };
            let bytes = to_bytes(&encode_entry(&entry));
            prop_assert_eq!(decode_entry(from_bytes("LogEntry", bytes).expect("decodes")), Ok(entry));
        }

        #[test]
        fn every_stored_membership_reads_back(log_id in any::<Option<(u64, u64, u64)>>(), membership in memberships()) {
            let stored = StoredMembership::new(log_id.map(|(t, r, i)| id(t, r, i)), membership);
            prop_assert_eq!(stored_membership_from_disk(&stored_membership_to_disk(&stored)), Ok(stored));
        }

        #[test]
        fn every_vote_reads_back(term: u64, node_id: u64, committed: bool) {
            let vote = Vote { leader_id: LeaderId { term, node_id }, committed };
            prop_assert_eq!(vote_from_disk(&vote_to_disk(&vote)), vote);
        }

        #[test]
        fn any_bytes_decode_or_fail_without_panic(bytes: Vec<u8>) {
            let entry = from_bytes::<disk::LogEntry>("LogEntry", &bytes[..]).and_then(decode_entry);
            prop_assert!(entry.is_ok() || entry.is_err());
        }
    }
}
