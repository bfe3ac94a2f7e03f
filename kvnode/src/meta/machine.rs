//! The state machine of the meta group: what a committed command does to the record.
//!
//! Deterministic: nothing but record and command counts, and every replica of the meta group comes to the same record.
//! Whoever proposes decides (placement, who is alive); here it is only checked that the decision still holds.
//!
//! Invariants: the epoch grows by one with every change and only then; node, group and replica ids are never reused; a
//! refused command leaves the record as it was; a command that is repeated changes nothing the second time.

use kv_proto::{
    disk::v1::{
        Member, MetaCommand, MetaRecord, NodeRecord, NodeState, ReplicaPlacement, ShardRecord,
        StoredMembership,
        meta_command::{
            AddReplica, Bootstrap, Command, CreateShards, ObserveMembership, PreferLeaders, RegisterNode,
            SetNodeState,
        },
    },
    peer::v1::{MetaOutcome, Refusal, refusal::Kind},
};
use kv_topology::SLOT_COUNT;

use super::view::log_position;
use crate::refusal::{self, reason};

/// Nodes of a cluster at most, removed ones not counted.
pub const MAX_NODES: usize = 99;

/// Data shards of a cluster at most.
pub const MAX_SHARDS: u32 = 256;

/// Length of a node's name at most: a DNS label.
const MAX_NAME_BYTES: usize = 63;

/// Length of an address, zone or version at most: a DNS name and a port.
const MAX_TEXT_BYTES: usize = 261;

const DISK_UUID_BYTES: usize = 16;

/// Applies `command` to `record`.
///
/// # Errors
/// The refusal that the proposer gets; the record is unchanged.
pub fn apply(record: &mut MetaRecord, command: &MetaCommand) -> Result<MetaOutcome, Refusal> {
    let Some(command) = &command.command else {
        return Err(invalid("command", "META_COMMAND_UNKNOWN", "the meta command is empty"));
    };
    if let Command::Bootstrap(bootstrap) = command {
        return apply_bootstrap(record, bootstrap);
    }
    if record.cluster_id.is_empty() {
        return Err(failed("NOT_BOOTSTRAPPED", "there is no cluster yet"));
    }
    let mut outcome = match command {
        Command::Bootstrap(bootstrap) => apply_bootstrap(record, bootstrap),
        Command::RegisterNode(register) => apply_register_node(record, register),
        Command::CreateShards(create) => apply_create_shards(record, create),
        Command::AddReplica(add) => apply_add_replica(record, *add),
        Command::ObserveMembership(observe) => apply_observe_membership(record, observe),
        Command::PreferLeaders(prefer) => apply_prefer_leaders(record, prefer),
        Command::SetNodeState(set) => apply_set_node_state(record, *set),
    }?;
    outcome.epoch = record.epoch;
    Ok(outcome)
}

fn apply_bootstrap(record: &mut MetaRecord, bootstrap: &Bootstrap) -> Result<MetaOutcome, Refusal> {
    let Bootstrap { cluster_id, token, shards, replication_factor, node } = bootstrap;
    let node = node.as_ref().ok_or_else(|| invalid("node", "NODE_MISSING", "the node is not given"))?;
    if !record.cluster_id.is_empty() {
        let founder = record.nodes.iter().find(|known| known.disk_uuid == node.disk_uuid);
        return match founder {
            Some(founder) if record.bootstrap_token == *token => {
                Ok(MetaOutcome { epoch: record.epoch, node_id: founder.node_id, replica_id: 0 })
            }
            _ => Err(failed("ALREADY_BOOTSTRAPPED", format!("this is cluster {}", record.cluster_id))),
        };
    }
    if cluster_id.is_empty() {
        return Err(invalid("cluster_id", "CLUSTER_ID_MISSING", "the cluster id is empty"));
    }
    if !(1..=MAX_SHARDS).contains(shards) {
        let message = format!("{shards} shards: choose 1 to {MAX_SHARDS}");
        return Err(invalid("shards", "SHARD_COUNT_OUT_OF_RANGE", message));
    }
    if !matches!(replication_factor, 1 | 3 | 5 | 7) {
        let message = format!("replication factor {replication_factor}: choose 1, 3, 5 or 7");
        return Err(invalid("replication_factor", "REPLICATION_FACTOR_OUT_OF_RANGE", message));
    }
    check_node(node)?;
    let founder = NodeRecord { node_id: 1, state: NodeState::Active.into(), ..node.clone() };
    let meta = ShardRecord {
        replicas: vec![ReplicaPlacement { replica_id: 1, node_id: 1 }],
        initializer_node_id: 1,
        ..ShardRecord::default()
    };
    *record = MetaRecord {
        cluster_id: cluster_id.clone(),
        epoch: record.epoch + 1,
        replication_factor: *replication_factor,
        shard_count: *shards,
        feature_level: 1,
        next_node_id: 2,
        next_replica_id: 2,
        next_group_id: 1,
        nodes: vec![founder],
        shards: vec![meta],
        bootstrap_token: token.clone(),
    };
    Ok(MetaOutcome { epoch: record.epoch, node_id: 1, replica_id: 1 })
}

fn apply_register_node(record: &mut MetaRecord, register: &RegisterNode) -> Result<MetaOutcome, Refusal> {
    let RegisterNode { node, name_holder_alive } = register;
    let node = node.as_ref().ok_or_else(|| invalid("node", "NODE_MISSING", "the node is not given"))?;
    check_node(node)?;
    if let Some(index) = record.nodes.iter().position(|known| known.disk_uuid == node.disk_uuid) {
        let known = updated(&record.nodes[index], node)?;
        let node_id = known.node_id;
        if known != record.nodes[index] {
            record.nodes[index] = known;
            record.epoch += 1;
        }
        return Ok(MetaOutcome { node_id, ..MetaOutcome::default() });
    }
    let removed = i32::from(NodeState::Removed);
    let holder = record.nodes.iter().position(|known| known.name == node.name && known.state != removed);
    if holder.is_some() && *name_holder_alive {
        let message = format!(
            "another node called {} was heard of within the last 10 s; stop it or take another name",
            node.name
        );
        return Err(failed("NODE_NAME_IN_USE", message));
    }
    let members = record.nodes.iter().filter(|known| known.state != removed).count();
    if holder.is_none() && members >= MAX_NODES {
        return Err(failed("CLUSTER_FULL", format!("the cluster has {MAX_NODES} nodes already")));
    }
    if let Some(index) = holder {
        // A new disk under an old name: what the old disk held is gone for good.
        record.nodes[index].state = removed;
    }
    let node_id = record.next_node_id;
    record.next_node_id += 1;
    record.nodes.push(NodeRecord { node_id, state: NodeState::Joining.into(), ..node.clone() });
    record.epoch += 1;
    Ok(MetaOutcome { node_id, ..MetaOutcome::default() })
}

/// The record of a known disk as its node tells it now.
fn updated(known: &NodeRecord, node: &NodeRecord) -> Result<NodeRecord, Refusal> {
    if known.state == i32::from(NodeState::Removed) {
        let message =
            format!("n{} was removed from the cluster; its folder must be set aside", known.node_id);
        return Err(failed(reason::NODE_REMOVED, message));
    }
    if known.name != node.name {
        let message = format!("this disk is that of node {}, and it starts as {}", known.name, node.name);
        return Err(failed("DISK_OF_ANOTHER_NODE", message));
    }
    let moved = known.client_address != node.client_address || known.peer_address != node.peer_address;
    let told = !known.boot_id.is_empty() && !node.boot_id.is_empty();
    let another_start = moved || (told && known.boot_id != node.boot_id);
    // One start has one counter, one id and one address: whoever repeats a counter in another one runs on a copy.
    if node.boot_counter < known.boot_counter || (node.boot_counter == known.boot_counter && another_start) {
        let message = format!(
            "start {} of the disk of node {} is already known, at {}: this volume is a clone or was restored",
            known.boot_counter, known.name, known.client_address
        );
        return Err(failed(reason::DISK_CLONED_OR_RESTORED, message));
    }
    let mut updated = NodeRecord { node_id: known.node_id, state: known.state, ..node.clone() };
    if node.boot_counter == known.boot_counter && node.boot_id.is_empty() {
        // A join does not tell it, and may come again.
        updated.boot_id.clone_from(&known.boot_id);
    }
    Ok(updated)
}

fn apply_create_shards(record: &mut MetaRecord, create: &CreateShards) -> Result<MetaOutcome, Refusal> {
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
        let mut shard = ShardRecord { group_id: record.next_group_id, observed: None, ..wished.clone() };
        record.next_group_id += 1;
        for placement in &mut shard.replicas {
            placement.replica_id = record.next_replica_id;
            record.next_replica_id += 1;
        }
        record.shards.push(shard);
    }
    record.epoch += 1;
    Ok(MetaOutcome::default())
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
                format!("n{node} holds no replica of s{expected}"),
            ));
        }
    }
    Ok(())
}

fn apply_add_replica(record: &mut MetaRecord, add: AddReplica) -> Result<MetaOutcome, Refusal> {
    let AddReplica { shard_id, node_id, expected_epoch } = add;
    let index = shard_index(record, shard_id)?;
    let shard = &record.shards[index];
    if let Some(held) = shard.replicas.iter().find(|placement| placement.node_id == node_id) {
        return Ok(MetaOutcome { node_id, replica_id: held.replica_id, ..MetaOutcome::default() });
    }
    check_epoch(record, expected_epoch)?;
    if shard.observed.is_none() {
        // Whoever forms the group takes all placed replicas as its members: they must not change before.
        return Err(failed("GROUP_NOT_FORMED", format!("the group of s{shard_id} was not seen yet")));
    }
    check_takes_replicas(record, node_id)?;
    let replica_id = record.next_replica_id;
    record.next_replica_id += 1;
    record.shards[index].replicas.push(ReplicaPlacement { replica_id, node_id });
    record.epoch += 1;
    Ok(MetaOutcome { node_id, replica_id, ..MetaOutcome::default() })
}

/// Keeps the newest membership that was seen, and the placements in step with it.
///
/// A placement goes when the uniform membership no longer names it and it did so before, or its node is gone: a replica
/// that has an id but was not added to its group yet must stay. A member without a placement gets one: Raft is right.
fn apply_observe_membership(
    record: &mut MetaRecord,
    observe: &ObserveMembership,
) -> Result<MetaOutcome, Refusal> {
    let ObserveMembership { shard_id, group_id, membership } = observe;
    let index = shard_index(record, *shard_id)?;
    let shard = &record.shards[index];
    if shard.group_id != *group_id {
        let message = format!("s{shard_id} lives in g{}, not in g{group_id}", shard.group_id);
        return Err(failed("GROUP_REPLACED", message));
    }
    let seen = check_membership(record, membership.as_ref())?;
    let before = shard.observed.as_ref();
    if before.is_some_and(|before| log_position(before) >= log_position(seen)) {
        return Ok(MetaOutcome::default());
    }
    let members = members(Some(seen));
    let named_before = self::members(before);
    let names = |members: &[Member], replica: u64| members.iter().any(|member| member.replica_id == replica);
    let gone = |node: u64| {
        record.nodes.iter().all(|known| known.node_id != node || known.state == i32::from(NodeState::Removed))
    };
    let stays = |placement: &ReplicaPlacement| {
        names(members, placement.replica_id)
            || !(names(named_before, placement.replica_id) || gone(placement.node_id))
    };
    let mut replicas: Vec<ReplicaPlacement> = shard.replicas.iter().copied().filter(stays).collect();
    for member in members {
        // One replica of a shard on a node: a map with two would be refused everywhere.
        if replicas
            .iter()
            .all(|known| known.replica_id != member.replica_id && known.node_id != member.node_id)
        {
            replicas.push(ReplicaPlacement { replica_id: member.replica_id, node_id: member.node_id });
        }
    }
    let greatest = members.iter().map(|member| member.replica_id).max().unwrap_or(0);
    let seen = seen.clone();
    record.next_replica_id = record.next_replica_id.max(greatest + 1);
    let shard = &mut record.shards[index];
    shard.replicas = replicas;
    shard.observed = Some(seen);
    if shard.replicas.iter().all(|placement| placement.node_id != shard.preferred_leader_node_id) {
        shard.preferred_leader_node_id = 0;
    }
    record.epoch += 1;
    Ok(MetaOutcome::default())
}

fn members(membership: Option<&StoredMembership>) -> &[Member] {
    membership.and_then(|stored| stored.membership.as_ref()).map_or(&[], |membership| &membership.members)
}

/// Uniform, with a log id, its voters among its members and those on known nodes.
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
    if voters.replica_ids.iter().any(|voter| members.iter().all(|member| member.replica_id != *voter)) {
        return Err(malformed("a voter is not among the members"));
    }
    if members.iter().any(|member| record.nodes.iter().all(|node| node.node_id != member.node_id)) {
        return Err(malformed("a member lives on a node that was never registered"));
    }
    // The id after it must exist.
    if members.iter().any(|member| member.replica_id == 0 || member.replica_id == u64::MAX) {
        return Err(malformed("a member has no replica id"));
    }
    Ok(stored)
}

fn apply_prefer_leaders(record: &mut MetaRecord, prefer: &PreferLeaders) -> Result<MetaOutcome, Refusal> {
    let PreferLeaders { leaders, expected_epoch } = prefer;
    let mut changes = Vec::new();
    for wish in leaders {
        let index = shard_index(record, wish.shard_id)?;
        let shard = &record.shards[index];
        if shard.replicas.iter().all(|placement| placement.node_id != wish.node_id) {
            let message = format!("n{} holds no replica of s{}", wish.node_id, wish.shard_id);
            return Err(invalid("leaders.node_id", "NODE_HOLDS_NO_REPLICA", message));
        }
        if shard.preferred_leader_node_id != wish.node_id {
            changes.push((index, wish.node_id));
        }
    }
    if changes.is_empty() {
        return Ok(MetaOutcome::default());
    }
    check_epoch(record, *expected_epoch)?;
    for (index, node) in changes {
        record.shards[index].preferred_leader_node_id = node;
    }
    record.epoch += 1;
    Ok(MetaOutcome::default())
}

fn apply_set_node_state(record: &mut MetaRecord, set: SetNodeState) -> Result<MetaOutcome, Refusal> {
    if (set.from(), set.to()) != (NodeState::Joining, NodeState::Active) {
        let message = format!("a node does not go from {:?} to {:?} like this", set.from(), set.to());
        return Err(invalid("to", "NODE_STATE_CHANGE_UNKNOWN", message));
    }
    let Some(node) = record.nodes.iter_mut().find(|node| node.node_id == set.node_id) else {
        return Err(not_found("NODE_UNKNOWN", format!("there is no n{}", set.node_id)));
    };
    if node.state == set.to {
        return Ok(MetaOutcome { node_id: set.node_id, ..MetaOutcome::default() });
    }
    if node.state != set.from {
        return Err(failed("NODE_STATE_CHANGED", format!("n{} is {:?}", set.node_id, node.state())));
    }
    node.state = set.to;
    record.epoch += 1;
    Ok(MetaOutcome { node_id: set.node_id, ..MetaOutcome::default() })
}

fn shard_index(record: &MetaRecord, shard: u32) -> Result<usize, Refusal> {
    let index = record.shards.iter().position(|known| known.shard_id == shard);
    index.ok_or_else(|| not_found("SHARD_UNKNOWN", format!("there is no s{shard}")))
}

fn check_epoch(record: &MetaRecord, expected: u64) -> Result<(), Refusal> {
    if record.epoch == expected {
        return Ok(());
    }
    Err(failed("EPOCH_MOVED_ON", format!("decided at epoch {expected}, the record is at {}", record.epoch)))
}

fn check_takes_replicas(record: &MetaRecord, node_id: u64) -> Result<(), Refusal> {
    match record.nodes.iter().find(|node| node.node_id == node_id) {
        None => Err(not_found("NODE_UNKNOWN", format!("there is no n{node_id}"))),
        Some(node) if node.state() == NodeState::Active => Ok(()),
        Some(node) => {
            let message = format!("n{node_id} is {:?} and takes no replicas", node.state());
            Err(failed("NODE_TAKES_NO_REPLICAS", message))
        }
    }
}

/// What a node says of itself.
fn check_node(node: &NodeRecord) -> Result<(), Refusal> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let begins_with_letter = node.name.starts_with(|first: char| first.is_ascii_alphabetic());
    if !begins_with_letter || node.name.len() > MAX_NAME_BYTES || !node.name.bytes().all(plain) {
        let message = format!(
            "a node's name begins with a letter and has at most {MAX_NAME_BYTES} letters, digits, '-', '_' and '.'"
        );
        return Err(invalid("node.name", "NODE_NAME_MALFORMED", message));
    }
    if node.disk_uuid.len() != DISK_UUID_BYTES {
        return Err(invalid("node.disk_uuid", "DISK_UUID_MALFORMED", "a disk UUID has 16 bytes"));
    }
    for (field, address) in
        [("node.client_address", &node.client_address), ("node.peer_address", &node.peer_address)]
    {
        let port = address
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty())
            .map(|(_, port)| port.parse::<u16>());
        if address.len() > MAX_TEXT_BYTES || !matches!(port, Some(Ok(1..))) {
            return Err(invalid(field, "ADDRESS_MALFORMED", "an address is HOST:PORT"));
        }
    }
    for (field, text) in [("node.zone", &node.zone), ("node.version", &node.version)] {
        if text.len() > MAX_TEXT_BYTES {
            return Err(invalid(field, "TEXT_TOO_LONG", format!("at most {MAX_TEXT_BYTES} bytes")));
        }
    }
    Ok(())
}

fn failed(reason: &str, message: impl Into<String>) -> Refusal {
    refusal::of(Kind::FailedPrecondition, reason, message)
}

fn not_found(reason: &str, message: impl Into<String>) -> Refusal {
    refusal::of(Kind::NotFound, reason, message)
}

fn invalid(field: &str, reason: &str, message: impl Into<String>) -> Refusal {
    Refusal { field: field.to_owned(), ..refusal::of(Kind::InvalidArgument, reason, message) }
}

#[cfg(test)]
mod tests;
