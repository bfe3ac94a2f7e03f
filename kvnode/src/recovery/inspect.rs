//! What is on a disk, in the words of `admin.v1`, and back. Pure.

use kv_proto::{
    admin::v1::{
        LogPosition, MemberOnDisk, MembershipOnDisk, RecordOnDisk, RecordedNode, RecordedShard,
        ReplacedShardGroup, ReplicaOnDisk, VoterReplicas,
    },
    disk::v1::{
        LogId, Member, Membership, MetaRecord, NodeState, ReplacedGroup, ReplicaDescriptor, ReplicaPlacement,
        StoredMembership, VoterSet,
    },
};

use super::on_disk::OnDisk;

/// A replica that was read.
pub fn replica(found: &OnDisk) -> ReplicaOnDisk {
    let OnDisk { descriptor, vote, last, last_of_log: _, committed, applied, revision, .. } = found;
    ReplicaOnDisk {
        vote_term: vote.term,
        last: last.as_ref().map(position),
        committed: committed.as_ref().map(position),
        applied: applied.as_ref().map(position),
        membership: Some(stored_membership(&found.membership)),
        applied_membership: Some(stored_membership(&found.applied_membership)),
        revision: if descriptor.shard_id == 0 { 0 } else { *revision },
        ..unread(descriptor, "")
    }
}

/// A replica of which only the descriptor counts: it is out of service, or cannot be read.
pub fn unread(descriptor: &ReplicaDescriptor, why: &str) -> ReplicaOnDisk {
    let ReplicaDescriptor {
        replica_id,
        shard_id,
        group_id,
        quarantine_reason,
        removed,
        replaced_by_group_id,
    } = descriptor;
    let removed = if *removed { "it was removed from its group" } else { "" };
    let unusable = [why, removed].into_iter().find(|reason| !reason.is_empty());
    let reason = unusable.unwrap_or(quarantine_reason);
    ReplicaOnDisk {
        shard_id: *shard_id,
        group_id: *group_id,
        replica_id: *replica_id,
        quarantine_reason: reason.to_owned(),
        // It tells that the bytes are sound.
        replaced_by_group_id: if unusable.is_none() { *replaced_by_group_id } else { 0 },
        ..ReplicaOnDisk::default()
    }
}

/// What the node knows of its cluster. `of_replica`: from its own replica of meta.
pub fn record(record: &MetaRecord, of_replica: bool) -> RecordOnDisk {
    let nodes = record.nodes.iter().map(|node| RecordedNode {
        node_id: node.node_id,
        name: node.name.clone(),
        client_address: node.client_address.clone(),
        removed: node.state() == NodeState::Removed,
    });
    let shards = record.shards.iter().map(|shard| RecordedShard {
        shard_id: shard.shard_id,
        group_id: shard.group_id,
        replicas: shard.replicas.iter().map(placement).collect(),
        replaced: shard.replaced.as_ref().map(replaced),
        formed: shard.observed.is_some() || shard.replaced.is_some(),
    });
    RecordOnDisk {
        epoch: record.epoch,
        recoveries: record.recoveries,
        of_replica,
        nodes: nodes.collect(),
        shards: shards.collect(),
    }
}

/// A membership that was seen on a disk, for meta.
pub fn seen(told: &MembershipOnDisk) -> StoredMembership {
    let voters = told.voters.iter().map(|set| VoterSet { replica_ids: set.replica_ids.clone() });
    let member = |member: &MemberOnDisk| Member { replica_id: member.replica_id, node_id: member.node_id };
    StoredMembership {
        log_id: told.at.as_ref().map(log_id),
        membership: Some(Membership {
            voters: voters.collect(),
            members: told.members.iter().map(member).collect(),
        }),
    }
}

/// A position in a log, as the disk has it.
pub fn log_id(position: &LogPosition) -> LogId {
    LogId { term: position.term, replica_id: position.replica_id, index: position.index }
}

fn stored_membership(stored: &StoredMembership) -> MembershipOnDisk {
    let membership = stored.membership.clone().unwrap_or_default();
    let voters = membership.voters.into_iter().map(|set| VoterReplicas { replica_ids: set.replica_ids });
    let member = |member: &Member| MemberOnDisk { replica_id: member.replica_id, node_id: member.node_id };
    MembershipOnDisk {
        at: stored.log_id.as_ref().map(position),
        voters: voters.collect(),
        members: membership.members.iter().map(member).collect(),
    }
}

fn placement(placement: &ReplicaPlacement) -> MemberOnDisk {
    MemberOnDisk { replica_id: placement.replica_id, node_id: placement.node_id }
}

fn replaced(replaced: &ReplacedGroup) -> ReplacedShardGroup {
    ReplacedShardGroup {
        group_id: replaced.group_id,
        replica_id: replaced.replica_id,
        node_id: replaced.node_id,
        last: replaced.last.as_ref().map(position),
    }
}

fn position(id: &LogId) -> LogPosition {
    LogPosition { term: id.term, replica_id: id.replica_id, index: id.index }
}

#[cfg(test)]
mod tests {
    use kv_proto::disk::v1::ShardRecord;

    use super::*;

    #[test]
    fn only_what_can_be_read_and_stays_passes_for_sound() {
        let given_up = ReplicaDescriptor {
            replica_id: 5,
            quarantine_reason: "shard 2 goes on in group 12".to_owned(),
            replaced_by_group_id: 12,
            ..ReplicaDescriptor::default()
        };
        let told = |descriptor: &ReplicaDescriptor, why: &str| {
            let told = unread(descriptor, why);
            (told.quarantine_reason, told.replaced_by_group_id)
        };
        assert_eq!(told(&given_up, ""), ("shard 2 goes on in group 12".to_owned(), 12));
        assert_eq!(told(&given_up, "a bit"), ("a bit".to_owned(), 0));
        let leaving = ReplicaDescriptor { removed: true, ..given_up };
        assert_eq!(told(&leaving, ""), ("it was removed from its group".to_owned(), 0));
    }

    #[test]
    fn a_record_tells_which_groups_were_there() {
        let observed = ShardRecord { observed: Some(StoredMembership::default()), ..ShardRecord::default() };
        let begun_anew = ShardRecord { replaced: Some(ReplacedGroup::default()), ..ShardRecord::default() };
        let shards = vec![ShardRecord::default(), observed, begun_anew];
        let told = record(&MetaRecord { shards, ..MetaRecord::default() }, false);
        let formed: Vec<bool> = told.shards.iter().map(|shard| shard.formed).collect();
        assert_eq!(formed, [false, true, true]);
    }
}
