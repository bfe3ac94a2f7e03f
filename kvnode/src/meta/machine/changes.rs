//! Changes of voters: what is begun before a group is asked to change them, and the lock with permits.
//!
//! Only voters take the lock; learners may be filled at any time. A change ends when a uniform membership is seen that is
//! younger than the one it goes out from (see [`super::shards`]), or when it is told that it will not happen.

use kv_proto::{
    disk::v1::{
        LogId, MetaRecord, ShardRecord, VoterChange,
        meta_command::{BeginChange, EndChange},
    },
    peer::v1::Refusal,
};

use super::{
    Found, Told,
    check::{check_formed, check_group, failed, invalid, members, not_found, shard_index},
    permits,
};
use crate::{
    meta::view::{log_id_position, log_position},
    refusal::reason,
};

pub(super) fn begin(record: &mut MetaRecord, begin: &BeginChange, told: Told<'_>) -> Result<Found, Refusal> {
    let BeginChange { shard_id, group_id, voter_replica_ids, expected_membership } = begin;
    let index = shard_index(record, *shard_id)?;
    let shard = &record.shards[index];
    check_group(shard, *group_id)?;
    let Some(expected) = expected_membership else {
        let message = "the membership that the change goes out from is not given";
        return Err(invalid("expected_membership", "MEMBERSHIP_MALFORMED", message));
    };
    if let Some(change) = &shard.change {
        if change.expected_membership == Some(*expected) && change.voter_replica_ids == *voter_replica_ids {
            return Ok(Found::default());
        }
        let message = format!("another change of the voters of s{shard_id} was begun");
        return Err(failed(reason::CHANGE_UNDER_WAY, message));
    }
    permits::check_none_open(record)?;
    check_begin(shard, voter_replica_ids, expected)?;
    record.shards[index].change = Some(VoterChange {
        voter_replica_ids: voter_replica_ids.clone(),
        expected_membership: Some(*expected),
        begun_unix_ms: told.unix_ms,
    });
    record.epoch += 1;
    Ok(Found::default())
}

fn check_begin(shard: &ShardRecord, voters: &[u64], expected: &LogId) -> Result<(), Refusal> {
    let observed = check_formed(shard)?;
    let shard_id = shard.shard_id;
    if log_position(observed) > Some(log_id_position(expected)) {
        let message = format!("the membership of s{shard_id} is another one by now");
        return Err(failed(reason::MEMBERSHIP_MOVED_ON, message));
    }
    let mut distinct = voters.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    if voters.is_empty() || distinct.len() != voters.len() {
        let message = "voters are named once each, and there is at least one";
        return Err(invalid("voter_replica_ids", "VOTERS_MALFORMED", message));
    }
    for voter in voters {
        let placed = shard.replicas.iter().any(|placement| placement.replica_id == *voter);
        if !placed && members(Some(observed)).iter().all(|member| member.replica_id != *voter) {
            return Err(not_found(reason::REPLICA_UNKNOWN, format!("s{shard_id} has no r{voter}")));
        }
    }
    Ok(())
}

pub(super) fn end(record: &mut MetaRecord, end: EndChange) -> Result<Found, Refusal> {
    let EndChange { shard_id, expected_membership } = end;
    let index = shard_index(record, shard_id)?;
    let Some(change) = &record.shards[index].change else { return Ok(Found::default()) };
    if change.expected_membership != expected_membership {
        let message = format!("the change of the voters of s{shard_id} that is under way is another one");
        return Err(failed(reason::CHANGE_MOVED_ON, message));
    }
    record.shards[index].change = None;
    record.epoch += 1;
    Ok(Found::default())
}
