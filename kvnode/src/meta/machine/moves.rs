//! Moves: a replica that takes another one's place.
//!
//! Begun here and carried out by the controller: the new replica learns, votes instead of the old one, and the old one's
//! placement goes when its group no longer names it. A move ends when the group names the new replica and not the old one,
//! or is given up: then the new replica is surplus.

use kv_proto::{
    disk::v1::{
        MetaRecord, Move, MoveReason, ReplicaPlacement, ShardRecord,
        meta_command::{BeginMove, EndMove},
    },
    peer::v1::Refusal,
};

use super::{
    Found, Told,
    check::{
        check_epoch, check_formed, check_takes_replicas, failed, invalid, members, not_found, shard_index,
    },
};
use crate::refusal::reason;

fn found(of: Move) -> Found {
    Found { node_id: of.to_node_id, replica_id: of.to_replica_id, other_node_id: of.from_node_id }
}

pub(super) fn begin(record: &mut MetaRecord, begin: BeginMove, told: Told<'_>) -> Result<Found, Refusal> {
    let BeginMove { shard_id, from_replica_id, to_node_id, reason: _, expected_epoch } = begin;
    let index = shard_index(record, shard_id)?;
    let shard = &record.shards[index];
    if let Some(known) = shard.r#move {
        if (known.from_replica_id, known.to_node_id) == (from_replica_id, to_node_id) {
            return Ok(found(known));
        }
        let message = format!("r{} is moving to #{} already", known.from_replica_id, known.to_node_id);
        return Err(failed(reason::MOVE_UNDER_WAY, message));
    }
    check_epoch(record, expected_epoch)?;
    let from_node_id = check_begin(record, shard, begin)?;
    let move_id = record.next_move_id.max(1);
    let to_replica_id = record.next_replica_id;
    record.next_move_id = move_id + 1;
    record.next_replica_id += 1;
    let begun = Move {
        move_id,
        from_replica_id,
        from_node_id,
        to_replica_id,
        to_node_id,
        reason: begin.reason,
        begun_unix_ms: told.unix_ms,
    };
    let shard = &mut record.shards[index];
    if from_node_id == to_node_id {
        // A node has one replica of a shard at most, and the old one is of no use.
        shard.replicas.retain(|placement| placement.replica_id != from_replica_id);
    }
    shard.replicas.push(ReplicaPlacement { replica_id: to_replica_id, node_id: to_node_id });
    shard.r#move = Some(begun);
    record.epoch += 1;
    Ok(found(begun))
}

/// The node of the replica that moves.
fn check_begin(record: &MetaRecord, shard: &ShardRecord, begin: BeginMove) -> Result<u64, Refusal> {
    let BeginMove { shard_id, from_replica_id, to_node_id, .. } = begin;
    if begin.reason() == MoveReason::Unspecified {
        return Err(invalid("reason", "MOVE_REASON_UNKNOWN", "why the replica moves is not given"));
    }
    let observed = members(Some(check_formed(shard)?));
    let placed = shard.replicas.iter().map(|placement| (placement.replica_id, placement.node_id));
    let named = observed.iter().map(|member| (member.replica_id, member.node_id));
    let mut all = placed.chain(named);
    let Some((_, from_node_id)) = all.clone().find(|(replica, _)| *replica == from_replica_id) else {
        return Err(not_found(reason::REPLICA_UNKNOWN, format!("s{shard_id} has no r{from_replica_id}")));
    };
    check_takes_replicas(record, to_node_id)?;
    if let Some((held, _)) = all.find(|(replica, node)| *node == to_node_id && *replica != from_replica_id) {
        let message = format!("r{held} of s{shard_id} is on #{to_node_id}");
        return Err(failed(reason::NODE_HOLDS_REPLICA, message));
    }
    if from_node_id == to_node_id && begin.reason() != MoveReason::Damaged {
        let message =
            format!("r{from_replica_id} is on #{to_node_id}; only a damaged replica is replaced there");
        return Err(failed(reason::NODE_HOLDS_REPLICA, message));
    }
    Ok(from_node_id)
}

pub(super) fn end(record: &mut MetaRecord, end: EndMove) -> Result<Found, Refusal> {
    let EndMove { shard_id, move_id, abandoned } = end;
    let index = shard_index(record, shard_id)?;
    let shard = &record.shards[index];
    let known = match shard.r#move {
        Some(known) if known.move_id == move_id => known,
        // It was begun once and is no more.
        None if (1..record.next_move_id).contains(&move_id) => return Ok(Found::default()),
        Some(_) | None => {
            let message = format!("move {move_id} is not that of s{shard_id}");
            return Err(failed(reason::MOVE_MOVED_ON, message));
        }
    };
    let observed = members(shard.observed.as_ref());
    let names = |replica: u64| observed.iter().any(|member| member.replica_id == replica);
    if !abandoned && (!names(known.to_replica_id) || names(known.from_replica_id)) {
        let Move { from_replica_id, to_replica_id, .. } = known;
        let message = format!("r{to_replica_id} has not taken the place of r{from_replica_id} yet");
        return Err(failed(reason::MOVE_UNDER_WAY, message));
    }
    record.shards[index].r#move = None;
    record.epoch += 1;
    Ok(found(known))
}
