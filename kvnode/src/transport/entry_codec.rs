//! Log entries, log ids, votes and memberships of Raft as `disk.v1` messages, and back.
//!
//! What comes from the wire is checked: a damaged or foreign message becomes an error, never a panic. Payloads are
//! shared, not copied.

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::disk::v1 as disk;
use openraft::EntryPayload;

use crate::group::type_config::{Member, Proposal};

/// Who leads: term and replica id.
pub type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
/// A vote, or the leadership that came of it.
pub type Vote = openraft::impls::Vote<LeaderId>;
/// The id of an entry.
pub type LogId = openraft::LogId<LeaderId>;
/// Voters and learners of a group.
pub type Membership = openraft::Membership<u64, Member>;
/// A membership and the id of the entry that made it so.
pub type StoredMembership = openraft::StoredMembership<LeaderId, u64, Member>;
/// A log entry.
pub type Entry = openraft::Entry<LeaderId, EntryPayload<Proposal, u64, Member>>;

/// A message that cannot be what a replica of ours sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// A field that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field contradicts another, or itself.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl CodecError {
    pub(super) fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Invalid { field, problem: problem.into() }
    }
}

pub(super) fn encode_log_id(id: &LogId) -> disk::LogId {
    disk::LogId { term: id.leader_id.term, replica_id: id.leader_id.node_id, index: id.index }
}

pub(super) fn decode_log_id(id: &disk::LogId) -> LogId {
    LogId { leader_id: LeaderId { term: id.term, node_id: id.replica_id }, index: id.index }
}

pub(super) fn encode_vote(vote: &Vote) -> disk::Vote {
    disk::Vote { term: vote.leader_id.term, replica_id: vote.leader_id.node_id, committed: vote.committed }
}

pub(super) fn decode_vote(vote: Option<&disk::Vote>) -> Result<Vote, CodecError> {
    let vote = vote.ok_or(CodecError::Missing("vote"))?;
    let leader_id = LeaderId { term: vote.term, node_id: vote.replica_id };
    Ok(Vote { leader_id, committed: vote.committed })
}

pub(super) fn encode_entry(entry: &Entry) -> disk::LogEntry {
    use disk::log_entry::Payload;
    let payload = match &entry.payload {
        EntryPayload::Blank => Payload::Blank(disk::Blank {}),
        EntryPayload::Normal(proposal) => Payload::Proposal(proposal.0.clone()),
        EntryPayload::Membership(membership) => Payload::Membership(encode_membership(membership)),
    };
    disk::LogEntry { log_id: Some(encode_log_id(&entry.log_id)), payload: Some(payload) }
}

pub(super) fn decode_entry(entry: disk::LogEntry) -> Result<Entry, CodecError> {
    use disk::log_entry::Payload;
    let log_id = decode_log_id(entry.log_id.as_ref().ok_or(CodecError::Missing("entry.log_id"))?);
    let payload = match entry.payload.ok_or(CodecError::Missing("entry.payload"))? {
        Payload::Blank(disk::Blank {}) => EntryPayload::Blank,
        Payload::Proposal(bytes) => EntryPayload::Normal(Proposal(bytes)),
        Payload::Membership(membership) => EntryPayload::Membership(decode_membership(&membership)?),
    };
    Ok(Entry { log_id, payload })
}

pub(super) fn encode_membership(membership: &Membership) -> disk::Membership {
    let voters = membership.get_joint_config().iter();
    let voters = voters.map(|set| disk::VoterSet { replica_ids: set.iter().copied().collect() }).collect();
    let members = membership.nodes();
    let members =
        members.map(|(id, member)| disk::Member { replica_id: *id, node_id: member.node }).collect();
    disk::Membership { voters, members }
}

pub(super) fn decode_membership(membership: &disk::Membership) -> Result<Membership, CodecError> {
    let invalid = |problem: String| CodecError::invalid("membership", problem);
    let mut members = BTreeMap::new();
    for member in &membership.members {
        if members.insert(member.replica_id, Member { node: member.node_id }).is_some() {
            return Err(invalid(format!("replica {} twice", member.replica_id)));
        }
    }
    let voters = membership.voters.iter().map(|set| BTreeSet::from_iter(set.replica_ids.iter().copied()));
    Membership::new(voters.collect(), members).map_err(|error| invalid(error.to_string()))
}

pub(super) fn encode_stored_membership(stored: &StoredMembership) -> disk::StoredMembership {
    disk::StoredMembership {
        log_id: stored.log_id().as_ref().map(encode_log_id),
        membership: Some(encode_membership(stored.membership())),
    }
}

pub(super) fn decode_stored_membership(
    stored: &disk::StoredMembership,
) -> Result<StoredMembership, CodecError> {
    let membership = stored.membership.as_ref().ok_or(CodecError::Missing("membership"))?;
    Ok(StoredMembership::new(stored.log_id.as_ref().map(decode_log_id), decode_membership(membership)?))
}
