//! Nodes: who is in the cluster, and in which state.
//!
//! ```text
//!          ┌──────────── heard again ────────────┐
//!          ▼                                     │
//! joining ─► active ─► draining ─► drained       │
//!              ▲──────────┴───────────┘          │
//! each of the four ── silent for too long ─► lost┘       all of them ─► removed, for good
//! ```
//!
//! A draining node counts as one that goes, and a lost one as one that is not there: only active nodes stay.

use kv_proto::{
    disk::v1::{
        MetaRecord, NodeRecord, NodeState, ReplicaPlacement, ShardRecord,
        meta_command::{Bootstrap, RegisterNode, RemoveNode, SetNodeState, SetZone},
    },
    peer::v1::Refusal,
};

use super::{
    FEATURE_LEVEL, Found, MAX_NODES, MAX_REMOVED_NODES, MAX_SHARDS, Told,
    check::{
        MAX_TEXT_BYTES, Missing, active_nodes_but, check_replication_factor, check_text, failed, hosted,
        invalid, is_hosted, is_removed, listed, members, missing, node_index, not_found,
    },
    journal, permits,
};
use crate::{meta::view, refusal::reason};

/// Length of a node's name at most: a DNS label.
const MAX_NAME_BYTES: usize = 63;

const DISK_UUID_BYTES: usize = 16;

pub(super) fn bootstrap(
    record: &mut MetaRecord,
    bootstrap: &Bootstrap,
    told: Told<'_>,
) -> Result<Found, Refusal> {
    let Bootstrap { cluster_id, token, shards, replication_factor, node } = bootstrap;
    let node = node.as_ref().ok_or_else(|| invalid("node", "NODE_MISSING", "the node is not given"))?;
    if !record.cluster_id.is_empty() {
        let founder = record.nodes.iter().find(|known| known.disk_uuid == node.disk_uuid);
        return match founder {
            Some(founder) if record.bootstrap_token == *token => Ok(Found::node(founder.node_id)),
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
    check_replication_factor(*replication_factor)?;
    check_node(node)?;
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
        feature_level: FEATURE_LEVEL,
        next_node_id: 2,
        next_replica_id: 2,
        next_group_id: 1,
        nodes: vec![new_node(1, NodeState::Active, node, None, told)],
        shards: vec![meta],
        bootstrap_token: token.clone(),
        policy: None,
        permits: Vec::new(),
        next_journal_sequence: record.next_journal_sequence,
        next_move_id: 1,
        recoveries: 0,
        lost_node_ids: Vec::new(),
    };
    Ok(Found { node_id: 1, replica_id: 1, other_node_id: 0 })
}

fn new_node(
    node_id: u64,
    state: NodeState,
    node: &NodeRecord,
    zone_label: Option<String>,
    told: Told<'_>,
) -> NodeRecord {
    let mut new = NodeRecord { node_id, zone_label, ..node.clone() };
    enter(&mut new, state, journal::reason(told), told);
    new
}

fn enter(node: &mut NodeRecord, state: NodeState, reason: String, told: Told<'_>) {
    node.state = state.into();
    node.state_reason = reason;
    node.state_since_unix_ms = told.unix_ms;
}

pub(super) fn register(
    record: &mut MetaRecord,
    register: &RegisterNode,
    told: Told<'_>,
) -> Result<Found, Refusal> {
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
        return Ok(Found::node(node_id));
    }
    if record.nodes.iter().all(|known| known.node_id != node.node_id) {
        match missing(record, node.node_id) {
            Missing::Removed => return Err(removed(node.node_id)),
            Missing::LostWithMeta => return Err(forgotten(node.node_id)),
            Missing::NeverGiven => {}
        }
    }
    let holder = record.nodes.iter().position(|known| known.name == node.name && !is_removed(known));
    if holder.is_some() && *name_holder_alive {
        let message = format!(
            "another node called {} was heard of within the last 10 s; stop it or take another name",
            node.name
        );
        return Err(failed("NODE_NAME_IN_USE", message));
    }
    let members = record.nodes.iter().filter(|known| !is_removed(known)).count();
    if holder.is_none() && members >= MAX_NODES {
        return Err(failed("CLUSTER_FULL", format!("the cluster has {MAX_NODES} nodes already")));
    }
    let node_id = record.next_node_id;
    record.next_node_id += 1;
    let mut found = Found::node(node_id);
    let mut zone_label = None;
    if let Some(index) = holder {
        // A new disk under an old name: what the old disk held is gone for good. Where it stands is where the old one stood.
        zone_label.clone_from(&record.nodes[index].zone_label);
        found.other_node_id = record.nodes[index].node_id;
        take_out(record, index, format!("a new disk took its name (#{node_id})"), told);
    }
    record.nodes.push(new_node(node_id, NodeState::Joining, node, zone_label, told));
    record.epoch += 1;
    Ok(found)
}

fn removed(node: u64) -> Refusal {
    failed(
        reason::NODE_REMOVED,
        format!("#{node} was removed from the cluster; its folder must be set aside"),
    )
}

/// What it holds may be all that is left of it: a person must decide.
fn forgotten(node: u64) -> Refusal {
    let message =
        format!("meta was recovered from a time before node #{node} joined: it is a stranger to the cluster");
    failed(reason::NODE_FORGOTTEN, message)
}

/// The record of a known disk as its node tells it now. What only meta knows stays.
fn updated(known: &NodeRecord, node: &NodeRecord) -> Result<NodeRecord, Refusal> {
    if is_removed(known) {
        return Err(removed(known.node_id));
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
    let mut updated = NodeRecord {
        node_id: known.node_id,
        state: known.state,
        state_reason: known.state_reason.clone(),
        state_since_unix_ms: known.state_since_unix_ms,
        zone_label: known.zone_label.clone(),
        ..node.clone()
    };
    if node.boot_counter == known.boot_counter && node.boot_id.is_empty() {
        // A join does not tell it, and may come again.
        updated.boot_id.clone_from(&known.boot_id);
    }
    Ok(updated)
}

pub(super) fn set_state(
    record: &mut MetaRecord,
    set: SetNodeState,
    told: Told<'_>,
) -> Result<Found, Refusal> {
    let SetNodeState { node_id, .. } = set;
    let (from, to) = (set.from(), set.to());
    if !goes(from, to) {
        let message = format!("a node does not go from {from:?} to {to:?} like this");
        return Err(invalid("to", "NODE_STATE_CHANGE_UNKNOWN", message));
    }
    let index = node_index(record, node_id)?;
    let state = record.nodes[index].state();
    if state == to {
        return Ok(Found::node(node_id));
    }
    if state != from {
        return Err(failed(reason::NODE_STATE_CHANGED, format!("#{node_id} is {state:?}")));
    }
    match to {
        NodeState::Draining => check_drain(record, node_id)?,
        NodeState::Drained => check_empty(record, node_id)?,
        NodeState::Lost => check_loss(record, node_id)?,
        // Leaders are spread over all nodes anew.
        NodeState::Active => record.shards.iter_mut().for_each(|shard| shard.leader_chosen = false),
        NodeState::Unspecified | NodeState::Joining | NodeState::Removed => {}
    }
    enter(&mut record.nodes[index], to, journal::reason(told), told);
    record.epoch += 1;
    Ok(Found::node(node_id))
}

/// Whether a node may go from the one state to the other.
const fn goes(from: NodeState, to: NodeState) -> bool {
    match to {
        NodeState::Active => {
            matches!(from, NodeState::Joining | NodeState::Draining | NodeState::Drained | NodeState::Lost)
        }
        NodeState::Draining => matches!(from, NodeState::Active),
        NodeState::Drained => matches!(from, NodeState::Draining),
        NodeState::Lost => {
            matches!(from, NodeState::Joining | NodeState::Active | NodeState::Draining | NodeState::Drained)
        }
        NodeState::Unspecified | NodeState::Joining | NodeState::Removed => false,
    }
}

fn check_drain(record: &MetaRecord, node: u64) -> Result<(), Refusal> {
    let (stay, needed) = (active_nodes_but(record, Some(node)), record.replication_factor);
    if stay >= needed as usize {
        return Ok(());
    }
    let message = format!(
        "without #{node} {stay} active nodes would stay, and the replication factor asks for {needed}"
    );
    Err(failed(reason::TOO_FEW_NODES, message))
}

fn check_empty(record: &MetaRecord, node: u64) -> Result<(), Refusal> {
    let shards = hosted(record, node);
    if shards.is_empty() {
        return Ok(());
    }
    Err(failed(reason::NODE_NOT_EMPTY, format!("#{node} has replicas of {}", listed(&shards))))
}

/// A node that was let go for a while is not missed before that while is over.
fn check_loss(record: &MetaRecord, node: u64) -> Result<(), Refusal> {
    match permits::open_permit(record) {
        Some(permit) if permit.node_id == node => {
            let message = format!("#{node} has a permit to be away for {} ms", permit.ttl_ms);
            Err(failed(reason::PERMIT_OPEN, message))
        }
        Some(_) | None => Ok(()),
    }
}

pub(super) fn remove(record: &mut MetaRecord, remove: RemoveNode, told: Told<'_>) -> Result<Found, Refusal> {
    let RemoveNode { node_id, lost, accept_data_loss, alive } = remove;
    let Some(index) = record.nodes.iter().position(|known| known.node_id == node_id) else {
        return match missing(record, node_id) {
            Missing::Removed => Ok(Found::node(node_id)),
            Missing::LostWithMeta | Missing::NeverGiven => {
                Err(not_found(reason::NODE_UNKNOWN, format!("there is no node #{node_id}")))
            }
        };
    };
    if is_removed(&record.nodes[index]) {
        return Ok(Found::node(node_id));
    }
    if !lost {
        check_empty(record, node_id)?;
    } else if alive {
        let message = format!("#{node_id} was heard of just now: drain it, or stop it first");
        return Err(failed(reason::NODE_IS_ALIVE, message));
    } else if !accept_data_loss {
        check_no_data_loss(record, node_id)?;
    }
    take_out(record, index, journal::reason(told), told);
    record.epoch += 1;
    Ok(Found::node(node_id))
}

fn check_no_data_loss(record: &MetaRecord, node: u64) -> Result<(), Refusal> {
    let bereft = record.shards.iter().filter(|shard| is_hosted(shard, node));
    let bereft: Vec<u32> =
        bereft.filter(|shard| !is_held_without(record, shard, node)).map(|shard| shard.shard_id).collect();
    if bereft.is_empty() {
        return Ok(());
    }
    let message = format!("#{node} has the last replica of {}", listed(&bereft));
    Err(failed(reason::DATA_LOSS_NOT_ACCEPTED, message))
}

/// Whether another node of the cluster has a replica of the shard that was seen to vote: a learner may have nothing yet.
fn is_held_without(record: &MetaRecord, shard: &ShardRecord, node: u64) -> bool {
    let stays =
        |id: u64| id != node && record.nodes.iter().any(|known| known.node_id == id && !is_removed(known));
    let Some(observed) = &shard.observed else {
        return shard.replicas.iter().any(|placement| stays(placement.node_id));
    };
    let seen = view::membership(observed);
    let votes = |replica: u64| seen.is_voter(kv_topology::ReplicaId(replica));
    members(Some(observed)).iter().any(|member| votes(member.replica_id) && stays(member.node_id))
}

/// The node is no longer part of the cluster. What its groups have of it stays placed until they let go of it.
fn take_out(record: &mut MetaRecord, index: usize, reason: String, told: Told<'_>) {
    let node = &mut record.nodes[index];
    enter(node, NodeState::Removed, reason, told);
    let node_id = node.node_id;
    permits::end_those_of(record, node_id);
    forget_long_removed(record);
}

/// The record does not grow with every node that ever was. Those with the lowest ids go first.
fn forget_long_removed(record: &mut MetaRecord) {
    let all: Vec<u64> =
        record.nodes.iter().filter(|node| is_removed(node)).map(|node| node.node_id).collect();
    let surplus = all.len().saturating_sub(MAX_REMOVED_NODES);
    let empty = all.into_iter().filter(|node| hosted(record, *node).is_empty());
    let forgotten: Vec<u64> = empty.take(surplus).collect();
    record.nodes.retain(|node| !forgotten.contains(&node.node_id));
}

pub(super) fn set_zone(record: &mut MetaRecord, set: &SetZone) -> Result<Found, Refusal> {
    let SetZone { node_id, zone } = set;
    check_text("zone", zone.as_deref().unwrap_or_default())?;
    let index = node_index(record, *node_id)?;
    if record.nodes[index].zone_label != *zone {
        record.nodes[index].zone_label.clone_from(zone);
        record.epoch += 1;
    }
    Ok(Found::node(*node_id))
}

/// A membership was seen that names a replica on a node that was thought to be empty: it has to be moved away, too.
pub(super) fn drain_again(record: &mut MetaRecord, shard: usize, told: Told<'_>) {
    let MetaRecord { nodes, shards, .. } = record;
    let shard = &shards[shard];
    for node in nodes {
        if node.state() == NodeState::Drained && is_hosted(shard, node.node_id) {
            let reason = format!("s{} was seen with a replica there", shard.shard_id);
            enter(node, NodeState::Draining, reason, told);
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
    check_text("node.zone", &node.zone)?;
    check_text("node.version", &node.version)
}
