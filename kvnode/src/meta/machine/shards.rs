//! Shards: which there are, where their replicas are placed, and what was last seen of their groups.

use kv_proto::{
    disk::v1::{
        Member, MetaRecord, ReplicaPlacement, ShardRecord, StoredMembership,
        meta_command::{AddReplica, CreateShards, DropReplica, ObserveMembership, PreferLeaders},
    },
    peer::v1::Refusal,
};
use kv_topology::SLOT_COUNT;

use super::{
    Found, Told,
    check::{
        MAX_REPLICA_ID, check_epoch, check_formed, check_group, check_takes_replicas, failed, invalid,
        is_removed, members, shard_index, was_given,
    },
    nodes,
};
use crate::{
    meta::view::{log_id_position, log_position},
    refusal::reason,
};

pub(super) fn create(record: &mut MetaRecord, create: &CreateShards) -> Result<Found, Refusal> {
    let CreateShards { shards, expected_epoch } = create;
    if record.shards.iter().any(|shard| shard.shard_id != 0) {
        return Err(failed("SHARDS_EXIST", "the data shards were created before"));
    }
    check_epoch(record, *expected_epoch)?;
    if shards.len() != record.shard_count as usize {
        let message = format!("{} shards given, the cluster has {}", shards.len(), record.shard_count);
        return Err(invalid("shards", "SHARD_COUNT_MISMATCH", message));
    }
    check_slots(shards)?;
    for (shard, expected) in shards.iter().zip(1_u32..) {
        check_new_shard(record, shard, expected)?;
    }
    for wished in shards {
        let ShardRecord { shard_id, slots, preferred_leader_node_id, initializer_node_id, .. } = wished;
        let mut replicas = wished.replicas.clone();
        for placement in &mut replicas {
            placement.replica_id = record.next_replica_id;
            record.next_replica_id += 1;
        }
        record.shards.push(ShardRecord {
            shard_id: *shard_id,
            group_id: record.next_group_id,
            slots: slots.clone(),
            replicas,
            preferred_leader_node_id: *preferred_leader_node_id,
            observed: None,
            initializer_node_id: *initializer_node_id,
            r#move: None,
            change: None,
            replaced: None,
            leader_chosen: false,
        });
        record.next_group_id += 1;
    }
    record.epoch += 1;
    Ok(Found::default())
}

/// Every slot once.
fn check_slots(shards: &[ShardRecord]) -> Result<(), Refusal> {
    let slots = u32::from(SLOT_COUNT);
    let mut ranges: Vec<(u32, u32)> =
        shards.iter().flat_map(|shard| &shard.slots).map(|range| (range.first, range.last)).collect();
    ranges.sort_unstable();
    let mut next = 0;
    for (first, last) in ranges {
        if first != next || last < first || last >= slots {
            let message = format!("slots {first}-{last} do not follow slot {next}");
            return Err(invalid("shards.slots", "SLOTS_NOT_COVERED_ONCE", message));
        }
        next = last + 1;
    }
    if next == slots {
        Ok(())
    } else {
        Err(invalid("shards.slots", "SLOTS_NOT_COVERED_ONCE", format!("no shard owns slot {next}")))
    }
}

fn check_new_shard(record: &MetaRecord, shard: &ShardRecord, expected: u32) -> Result<(), Refusal> {
    if shard.shard_id != expected {
        let message = format!("shard {} where {expected} was expected", shard.shard_id);
        return Err(invalid("shards.shard_id", "SHARD_IDS_NOT_IN_ORDER", message));
    }
    let mut nodes: Vec<u64> = shard.replicas.iter().map(|placement| placement.node_id).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let count = shard.replicas.len();
    if nodes.len() != count || count.is_multiple_of(2) || count > record.replication_factor as usize {
        let message = format!("s{expected}: {count} replicas: an odd number on different nodes is needed");
        return Err(invalid("shards.replicas", "REPLICAS_NOT_PLACEABLE", message));
    }
    for node in &nodes {
        check_takes_replicas(record, *node)?;
    }
    for (field, node) in [
        ("shards.preferred_leader_node_id", shard.preferred_leader_node_id),
        ("shards.initializer_node_id", shard.initializer_node_id),
    ] {
        if !nodes.contains(&node) {
            return Err(invalid(
                field,
                "NODE_HOLDS_NO_REPLICA",
                format!("#{node} holds no replica of s{expected}"),
            ));
        }
    }
    Ok(())
}

pub(super) fn add_replica(record: &mut MetaRecord, add: AddReplica) -> Result<Found, Refusal> {
    let AddReplica { shard_id, node_id, expected_epoch } = add;
    let index = shard_index(record, shard_id)?;
    let shard = &record.shards[index];
    if let Some(held) = shard.replicas.iter().find(|placement| placement.node_id == node_id) {
        return Ok(Found { replica_id: held.replica_id, ..Found::node(node_id) });
    }
    check_epoch(record, expected_epoch)?;
    check_formed(shard)?;
    check_takes_replicas(record, node_id)?;
    let replica_id = record.next_replica_id;
    record.next_replica_id += 1;
    record.shards[index].replicas.push(ReplicaPlacement { replica_id, node_id });
    record.epoch += 1;
    Ok(Found { replica_id, ..Found::node(node_id) })
}

/// A replica that the group has, or that a change of voters or a move counts on, keeps its place.
pub(super) fn drop_replica(record: &mut MetaRecord, drop: DropReplica) -> Result<Found, Refusal> {
    let DropReplica { shard_id, replica_id } = drop;
    let index = shard_index(record, shard_id)?;
    let shard = &record.shards[index];
    let Some(held) = shard.replicas.iter().position(|placement| placement.replica_id == replica_id) else {
        return Ok(Found::default());
    };
    let observed = check_formed(shard)?;
    if names(members(Some(observed)), replica_id) {
        let message = format!("r{replica_id} is a member of the group of s{shard_id}");
        return Err(failed(reason::REPLICA_IS_MEMBER, message));
    }
    let moves =
        |known: kv_proto::disk::v1::Move| [known.from_replica_id, known.to_replica_id].contains(&replica_id);
    if shard.r#move.is_some_and(moves) {
        let message = format!("r{replica_id} of s{shard_id} is part of a move");
        return Err(failed(reason::MOVE_UNDER_WAY, message));
    }
    // It may vote by now, and nobody has seen it.
    if shard.change.as_ref().is_some_and(|change| change.voter_replica_ids.contains(&replica_id)) {
        let message = format!("r{replica_id} of s{shard_id} is to become a voter");
        return Err(failed(reason::CHANGE_UNDER_WAY, message));
    }
    let shard = &mut record.shards[index];
    let ReplicaPlacement { replica_id, node_id } = shard.replicas.remove(held);
    keep_wish(shard);
    record.epoch += 1;
    Ok(Found { replica_id, ..Found::node(node_id) })
}

/// Keeps the newest membership that was seen, the placements in step with it, and ends the change that led to it.
pub(super) fn observe_membership(
    record: &mut MetaRecord,
    observe: &ObserveMembership,
    told: Told<'_>,
) -> Result<Found, Refusal> {
    let ObserveMembership { shard_id, group_id, membership } = observe;
    let index = shard_index(record, *shard_id)?;
    let shard = &record.shards[index];
    check_group(shard, *group_id)?;
    let seen = check_membership(record, membership.as_ref())?;
    let before = shard.observed.as_ref();
    if before.is_some_and(|before| log_position(before) >= log_position(seen)) {
        return Ok(Found::default());
    }
    let replicas = placements_after(record, shard, seen);
    let greatest = members(Some(seen)).iter().map(|member| member.replica_id).max().unwrap_or(0);
    record.next_replica_id = record.next_replica_id.max(greatest + 1);
    let shard = &mut record.shards[index];
    shard.replicas = replicas;
    shard.observed = Some(seen.clone());
    let expected = shard.change.as_ref().map(|change| change.expected_membership);
    if expected.is_some_and(|expected| log_position(seen) > expected.as_ref().map(log_id_position)) {
        shard.change = None;
    }
    keep_wish(shard);
    nodes::drain_again(record, index, told);
    record.epoch += 1;
    Ok(Found::default())
}

/// A placement goes when the uniform membership no longer names it and it did so before, or its node is gone: a replica
/// that has an id but was not added to its group yet must stay, and so must the one that a move brings, until the move is
/// over. A member without a placement gets one: Raft is right. But not on a node that nobody knows: no map would show it.
fn placements_after(
    record: &MetaRecord,
    shard: &ShardRecord,
    seen: &StoredMembership,
) -> Vec<ReplicaPlacement> {
    let (named_before, named) = (members(shard.observed.as_ref()), members(Some(seen)));
    let gone = |node: u64| record.nodes.iter().all(|known| known.node_id != node || is_removed(known));
    let comes = |replica: u64| shard.r#move.is_some_and(|known| known.to_replica_id == replica);
    let stays = |placement: &ReplicaPlacement| {
        names(named, placement.replica_id)
            || comes(placement.replica_id)
            || !(names(named_before, placement.replica_id) || gone(placement.node_id))
    };
    let mut replicas: Vec<ReplicaPlacement> = shard.replicas.iter().copied().filter(stays).collect();
    let known = |node: u64| record.nodes.iter().any(|known| known.node_id == node);
    for member in named.iter().filter(|member| known(member.node_id)) {
        // One replica of a shard on a node: a map with two would be refused everywhere.
        if replicas
            .iter()
            .all(|known| known.replica_id != member.replica_id && known.node_id != member.node_id)
        {
            replicas.push(ReplicaPlacement { replica_id: member.replica_id, node_id: member.node_id });
        }
    }
    replicas
}

fn names(members: &[Member], replica: u64) -> bool {
    members.iter().any(|member| member.replica_id == replica)
}

/// Nobody wishes for a leader where no replica is.
fn keep_wish(shard: &mut ShardRecord) {
    if shard.replicas.iter().all(|placement| placement.node_id != shard.preferred_leader_node_id) {
        shard.preferred_leader_node_id = 0;
        shard.leader_chosen = false;
    }
}

/// Uniform, with a log id, its voters among its members and those on nodes that there were: one may be forgotten by now, or have
/// joined in what a recovered meta has lost. What of such a group is on other nodes must be known all the same, or it would be
/// taken for what nobody needs.
fn check_membership<'a>(
    record: &MetaRecord,
    membership: Option<&'a StoredMembership>,
) -> Result<&'a StoredMembership, Refusal> {
    let malformed = |message: &str| invalid("membership", "MEMBERSHIP_MALFORMED", message);
    let stored = membership.ok_or_else(|| malformed("the membership is not given"))?;
    if stored.log_id.is_none() {
        return Err(malformed("the membership has no log id: the group was never formed"));
    }
    let [voters] = stored.membership.as_ref().map_or(&[][..], |membership| &membership.voters) else {
        return Err(malformed("the membership is not uniform"));
    };
    let members = members(Some(stored));
    if voters.replica_ids.is_empty() {
        return Err(malformed("the membership has no voters"));
    }
    if voters.replica_ids.iter().any(|voter| !names(members, *voter)) {
        return Err(malformed("a voter is not among the members"));
    }
    if members.iter().any(|member| !was_given(record, member.node_id)) {
        return Err(malformed("a member lives on a node that was never registered"));
    }
    if members.iter().any(|member| !(1..=MAX_REPLICA_ID).contains(&member.replica_id)) {
        return Err(malformed("a member has no replica id"));
    }
    Ok(stored)
}

pub(super) fn prefer_leaders(record: &mut MetaRecord, prefer: &PreferLeaders) -> Result<Found, Refusal> {
    let PreferLeaders { leaders, expected_epoch, chosen } = prefer;
    let mut changes = Vec::new();
    for wish in leaders {
        let index = shard_index(record, wish.shard_id)?;
        let shard = &record.shards[index];
        if shard.replicas.iter().all(|placement| placement.node_id != wish.node_id) {
            let message = format!("#{} holds no replica of s{}", wish.node_id, wish.shard_id);
            return Err(invalid("leaders.node_id", "NODE_HOLDS_NO_REPLICA", message));
        }
        // What a person chose is not less chosen because the controller wishes for it, too.
        if shard.preferred_leader_node_id != wish.node_id || (*chosen && !shard.leader_chosen) {
            changes.push((index, wish.node_id));
        }
    }
    if changes.is_empty() {
        return Ok(Found::default());
    }
    check_epoch(record, *expected_epoch)?;
    for (index, node) in changes {
        record.shards[index].preferred_leader_node_id = node;
        record.shards[index].leader_chosen = *chosen;
    }
    record.epoch += 1;
    Ok(Found::default())
}
