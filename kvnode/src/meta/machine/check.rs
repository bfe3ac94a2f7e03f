//! Checks that several commands make, and the refusals that they give.

use kv_proto::{
    disk::v1::{Member, MetaRecord, NodeRecord, NodeState, ShardRecord, StoredMembership},
    peer::v1::{Refusal, refusal::Kind},
};

use crate::refusal::{self, reason};

/// Length of an address, zone, version, actor or token at most: a DNS name and a port.
pub(super) const MAX_TEXT_BYTES: usize = 261;

/// Greatest id of a replica that is believed when somebody tells it: those after it must exist, too.
pub(super) const MAX_REPLICA_ID: u64 = u64::MAX / 2;

/// Where a shard is among the record's.
pub(super) fn shard_index(record: &MetaRecord, shard: u32) -> Result<usize, Refusal> {
    let index = record.shards.iter().position(|known| known.shard_id == shard);
    index.ok_or_else(|| not_found(reason::SHARD_UNKNOWN, format!("there is no s{shard}")))
}

/// Where a node is among the record's; refused when it was removed.
pub(super) fn node_index(record: &MetaRecord, node: u64) -> Result<usize, Refusal> {
    match record.nodes.iter().position(|known| known.node_id == node) {
        Some(index) if is_removed(&record.nodes[index]) => {
            Err(failed(reason::NODE_IS_GONE, format!("#{node} was removed from the cluster")))
        }
        Some(index) => Ok(index),
        None => Err(not_found(reason::NODE_UNKNOWN, format!("there is no node #{node}"))),
    }
}

/// What the id of a node is that the record does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// Its node was removed long ago.
    Removed,
    /// The majority of meta that was lost may have given it out.
    LostWithMeta,
    /// Nobody has it.
    NeverGiven,
}

/// What `node` is, which the record does not have.
pub(super) fn missing(record: &MetaRecord, node: u64) -> Missing {
    if !was_given(record, node) {
        Missing::NeverGiven
    } else if record.lost_node_ids.iter().any(|lost| (lost.first..lost.end).contains(&node)) {
        Missing::LostWithMeta
    } else {
        Missing::Removed
    }
}

/// Whether some node may have this id.
pub(super) fn was_given(record: &MetaRecord, node: u64) -> bool {
    (1..record.next_node_id).contains(&node)
}

/// What was decided was decided on this record.
pub(super) fn check_epoch(record: &MetaRecord, expected: u64) -> Result<(), Refusal> {
    if record.epoch == expected {
        return Ok(());
    }
    let message = format!("decided at epoch {expected}, the record is at {}", record.epoch);
    Err(failed(reason::EPOCH_MOVED_ON, message))
}

/// The shard lives in this group.
pub(super) fn check_group(shard: &ShardRecord, group: u64) -> Result<(), Refusal> {
    if shard.group_id == group {
        return Ok(());
    }
    let message = format!("s{} lives in g{}, not in g{group}", shard.shard_id, shard.group_id);
    Err(failed(reason::GROUP_REPLACED, message))
}

/// The group of the shard was seen: whoever forms it takes all placed replicas as its members, which must not change
/// before.
pub(super) fn check_formed(shard: &ShardRecord) -> Result<&StoredMembership, Refusal> {
    let unseen =
        || failed(reason::GROUP_NOT_FORMED, format!("the group of s{} was not seen yet", shard.shard_id));
    shard.observed.as_ref().ok_or_else(unseen)
}

/// The node is active.
pub(super) fn check_takes_replicas(record: &MetaRecord, node_id: u64) -> Result<(), Refusal> {
    match record.nodes.iter().find(|node| node.node_id == node_id) {
        None => Err(not_found(reason::NODE_UNKNOWN, format!("there is no node #{node_id}"))),
        Some(node) if node.state() == NodeState::Active => Ok(()),
        Some(node) => {
            let message = format!("#{node_id} is {:?} and takes no replicas", node.state());
            Err(failed(reason::NODE_TAKES_NO_REPLICAS, message))
        }
    }
}

/// A text that is shown, of bounded length.
pub(super) fn check_text(field: &str, text: &str) -> Result<(), Refusal> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(invalid(field, "TEXT_TOO_LONG", format!("at most {MAX_TEXT_BYTES} bytes")));
    }
    Ok(())
}

/// Wished numbers of voters that there are.
pub(super) fn check_replication_factor(factor: u32) -> Result<(), Refusal> {
    if matches!(factor, 1 | 3 | 5 | 7) {
        return Ok(());
    }
    let message = format!("replication factor {factor}: choose 1, 3, 5 or 7");
    Err(invalid("replication_factor", "REPLICATION_FACTOR_OUT_OF_RANGE", message))
}

/// Whether the node is no longer part of the cluster.
pub(super) fn is_removed(node: &NodeRecord) -> bool {
    node.state() == NodeState::Removed
}

/// Nodes that take replicas, but for `other`.
pub(super) fn active_nodes_but(record: &MetaRecord, other: Option<u64>) -> usize {
    let stays = |node: &&NodeRecord| node.state() == NodeState::Active && Some(node.node_id) != other;
    record.nodes.iter().filter(stays).count()
}

/// Voters and learners.
pub(super) fn members(membership: Option<&StoredMembership>) -> &[Member] {
    membership.and_then(|stored| stored.membership.as_ref()).map_or(&[], |membership| &membership.members)
}

/// Whether a replica of the shard is placed on the node, or its group was last seen with one there.
pub(in crate::meta) fn is_hosted(shard: &ShardRecord, node: u64) -> bool {
    shard.replicas.iter().any(|placement| placement.node_id == node)
        || members(shard.observed.as_ref()).iter().any(|member| member.node_id == node)
}

/// The shards of which the node has a replica.
pub(super) fn hosted(record: &MetaRecord, node: u64) -> Vec<u32> {
    let hosted = record.shards.iter().filter(|shard| is_hosted(shard, node));
    hosted.map(|shard| shard.shard_id).collect()
}

/// `s1, s2, s3 and 5 more`.
pub(super) fn listed(shards: &[u32]) -> String {
    const NAMED: usize = 8;
    let named: Vec<String> = shards.iter().take(NAMED).map(|shard| format!("s{shard}")).collect();
    let named = named.join(", ");
    match shards.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// The state of the cluster forbids it.
pub(super) fn failed(reason: &str, message: impl Into<String>) -> Refusal {
    refusal::of(Kind::FailedPrecondition, reason, message)
}

/// It does not exist.
pub(super) fn not_found(reason: &str, message: impl Into<String>) -> Refusal {
    refusal::of(Kind::NotFound, reason, message)
}

/// A field is wrong.
pub(super) fn invalid(field: &str, reason: &str, message: impl Into<String>) -> Refusal {
    Refusal { field: field.to_owned(), ..refusal::of(Kind::InvalidArgument, reason, message) }
}
