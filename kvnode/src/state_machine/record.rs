//! Log ids and memberships between openraft's types and `disk.v1`, for the replica's record and for snapshots.
//!
//! Private to the state machine and the snapshots' senders. Nothing else of the Raft library is in the state store.

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::disk::v1;
use openraft::impls::leader_id_adv::LeaderId;

use crate::group::type_config::Member;

/// openraft's id of an entry, whatever the runtime.
pub type LogId = openraft::LogId<LeaderId<u64, u64>>;
/// openraft's membership with the id of the entry that brought it.
pub type StoredMembership = openraft::StoredMembership<LeaderId<u64, u64>, u64, Member>;
/// openraft's membership.
pub type Membership = openraft::Membership<u64, Member>;
/// openraft's description of a snapshot.
pub type SnapshotMeta = openraft::SnapshotMeta<LeaderId<u64, u64>, u64, Member>;

/// To disk.
pub fn log_id_to_disk(id: &LogId) -> v1::LogId {
    v1::LogId { term: id.leader_id.term, replica_id: id.leader_id.node_id, index: id.index }
}

/// From disk.
pub fn log_id_from_disk(id: &v1::LogId) -> LogId {
    LogId::new(LeaderId { term: id.term, node_id: id.replica_id }, id.index)
}

/// To disk.
pub fn membership_to_disk(membership: &Membership) -> v1::Membership {
    v1::Membership {
        voters: membership
            .get_joint_config()
            .iter()
            .map(|set| v1::VoterSet { replica_ids: set.iter().copied().collect() })
            .collect(),
        members: membership
            .nodes()
            .map(|(replica, member)| v1::Member { replica_id: *replica, node_id: member.node })
            .collect(),
    }
}

/// From disk.
///
/// # Errors
/// What is wrong: a voter that is no member.
pub fn membership_from_disk(membership: &v1::Membership) -> Result<Membership, String> {
    let voters: Vec<BTreeSet<u64>> =
        membership.voters.iter().map(|set| set.replica_ids.iter().copied().collect()).collect();
    let members: BTreeMap<u64, Member> = membership
        .members
        .iter()
        .map(|member| (member.replica_id, Member { node: member.node_id }))
        .collect();
    if voters.is_empty() && members.is_empty() {
        // The default, which the constructor does not take.
        return Ok(Membership::default());
    }
    Membership::new(voters, members).map_err(|error| error.to_string())
}

/// To disk.
pub fn stored_to_disk(stored: &StoredMembership) -> v1::StoredMembership {
    v1::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_to_disk),
        membership: Some(membership_to_disk(stored.membership())),
    }
}

/// From disk. `None`: the default, of a replica that was never initialized.
///
/// # Errors
/// What is wrong with it.
pub fn stored_from_disk(stored: Option<&v1::StoredMembership>) -> Result<StoredMembership, String> {
    let Some(stored) = stored else { return Ok(StoredMembership::default()) };
    let membership = match &stored.membership {
        Some(membership) => membership_from_disk(membership)?,
        None => Membership::default(),
    };
    Ok(StoredMembership::new(stored.log_id.as_ref().map(log_id_from_disk), membership))
}

/// What a record says of its state, in openraft's words.
///
/// # Errors
/// What is wrong with it.
pub fn snapshot_meta(
    applied: Option<&v1::LogId>,
    membership: Option<&v1::StoredMembership>,
) -> Result<SnapshotMeta, String> {
    Ok(SnapshotMeta {
        last_log_id: applied.map(log_id_from_disk),
        last_membership: stored_from_disk(membership)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joint_membership_with_a_learner_comes_back_from_disk() {
        let members: BTreeMap<u64, Member> = (1..=5).map(|id| (id, Member { node: id * 10 })).collect();
        let joint = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3, 4])];
        let membership = Membership::new(joint, members).unwrap();
        let stored = StoredMembership::new(Some(LogId::new(LeaderId { term: 3, node_id: 2 }, 9)), membership);
        assert_eq!(stored_from_disk(Some(&stored_to_disk(&stored))).unwrap(), stored);
    }

    #[test]
    fn the_default_membership_comes_back_from_disk() {
        let stored = StoredMembership::default();
        assert_eq!(stored_from_disk(Some(&stored_to_disk(&stored))).unwrap(), stored);
        assert_eq!(stored_from_disk(None).unwrap(), stored);
    }

    #[test]
    fn a_voter_that_is_no_member_is_an_error() {
        let broken = v1::Membership { voters: vec![v1::VoterSet { replica_ids: vec![1] }], members: vec![] };
        assert!(membership_from_disk(&broken).is_err());
    }
}
