//! Permits to restart a node on purpose, and the lock that they are together with changes of voters.
//!
//! ```text
//! grant ─► open ─── end ───────────────────────────► gone
//!             └── its time is over ─► overdue ─ end ─┘      or its node is removed
//! ```
//!
//! At most one permit is open, and while one is, no change of voters is begun; a permit is not granted while a change is
//! under way. Time is log time: no clock moves it, and it stands still without entries.

use kv_proto::{
    disk::v1::{
        JournalEntry, MetaRecord, NodeState, Permit,
        meta_command::{EndPermit, GrantPermit},
    },
    peer::v1::Refusal,
};

use super::{
    Found, Told,
    check::{MAX_TEXT_BYTES, check_epoch, failed, invalid, listed, node_index, not_found, shard_index},
    journal,
};
use crate::refusal::reason;

/// Shortest permit, ms.
const TTL_MIN_MS: u64 = 1_000;
/// Longest permit, ms: an hour.
const TTL_MAX_MS: u64 = 3_600_000;

/// The permit that is open; an overdue one is not.
pub fn open_permit(record: &MetaRecord) -> Option<&Permit> {
    record.permits.iter().find(|permit| !permit.overdue)
}

/// Refused while a permit is open.
pub(super) fn check_none_open(record: &MetaRecord) -> Result<(), Refusal> {
    match open_permit(record) {
        None => Ok(()),
        Some(permit) => {
            let message = format!("#{} has a permit of {} ms to be restarted", permit.node_id, permit.ttl_ms);
            Err(failed(reason::PERMIT_OPEN, message))
        }
    }
}

pub(super) fn grant(record: &mut MetaRecord, grant: &GrantPermit, told: Told<'_>) -> Result<Found, Refusal> {
    let GrantPermit { token, node_id, ttl_ms, outage_shard_ids, expected_epoch } = grant;
    check_grant(record, grant)?;
    if let Some(known) = record.permits.iter().find(|permit| permit.token == *token) {
        return granted_before(known, *node_id);
    }
    let index = node_index(record, *node_id)?;
    if record.nodes[index].state() == NodeState::Lost {
        let message = format!("#{node_id} is lost: it needs no permit, and nothing may rely on it");
        return Err(failed(reason::NODE_IS_GONE, message));
    }
    check_none_open(record)?;
    let changing = record.shards.iter().filter(|shard| shard.change.is_some());
    let changing: Vec<u32> = changing.map(|shard| shard.shard_id).collect();
    if !changing.is_empty() {
        let message = format!("the voters of {} are changing", listed(&changing));
        return Err(failed(reason::CHANGE_UNDER_WAY, message));
    }
    check_epoch(record, *expected_epoch)?;
    // One permit of a node: what is overdue is told by the new one when it, too, is over.
    record.permits.retain(|permit| permit.node_id != *node_id);
    record.permits.push(Permit {
        token: token.clone(),
        node_id: *node_id,
        granted_log_ms: told.log_time_ms,
        expires_log_ms: told.log_time_ms.saturating_add(*ttl_ms),
        ttl_ms: *ttl_ms,
        granted_unix_ms: told.unix_ms,
        overdue: false,
        outage_shard_ids: outage_shard_ids.clone(),
    });
    record.epoch += 1;
    Ok(Found::node(*node_id))
}

/// What can be said without looking at what goes on in the cluster.
fn check_grant(record: &MetaRecord, grant: &GrantPermit) -> Result<(), Refusal> {
    if grant.token.is_empty() || grant.token.len() > MAX_TEXT_BYTES {
        let message = format!("a token has 1 to {MAX_TEXT_BYTES} bytes");
        return Err(invalid("token", "PERMIT_TOKEN_MALFORMED", message));
    }
    if !(TTL_MIN_MS..=TTL_MAX_MS).contains(&grant.ttl_ms) {
        let message = format!("choose {TTL_MIN_MS} to {TTL_MAX_MS} ms");
        return Err(invalid("ttl_ms", "PERMIT_TTL_OUT_OF_RANGE", message));
    }
    let known = |shard: &u32| shard_index(record, *shard).map(drop);
    grant.outage_shard_ids.iter().try_for_each(known)
}

fn granted_before(known: &Permit, node: u64) -> Result<Found, Refusal> {
    if known.node_id != node {
        let message = format!("this token is that of a permit of #{}", known.node_id);
        return Err(invalid("token", "PERMIT_TOKEN_IN_USE", message));
    }
    if known.overdue {
        return Err(failed(reason::PERMIT_UNKNOWN, format!("the permit of #{node} has expired")));
    }
    Ok(Found::node(node))
}

/// With no permit at all there is nothing to give back: done already. Otherwise a token that no permit has may be a wrong
/// one, and whoever sent it should know.
pub(super) fn end(record: &mut MetaRecord, end: &EndPermit) -> Result<Found, Refusal> {
    let Some(index) = record.permits.iter().position(|permit| permit.token == end.token) else {
        if record.permits.is_empty() {
            return Ok(Found::default());
        }
        return Err(not_found(reason::PERMIT_UNKNOWN, "no permit has this token (any more)"));
    };
    let ended = record.permits.remove(index);
    record.epoch += 1;
    Ok(Found::node(ended.node_id))
}

/// A node that is no longer part of the cluster needs no permit.
pub(super) fn end_those_of(record: &mut MetaRecord, node: u64) {
    record.permits.retain(|permit| permit.node_id != node);
}

/// Makes permits overdue whose time is over at this log time. What the journal keeps of it.
pub fn expire(record: &mut MetaRecord, log_time_ms: u64) -> Vec<JournalEntry> {
    let mut entries = Vec::new();
    for index in 0..record.permits.len() {
        let permit = &mut record.permits[index];
        if permit.overdue || permit.expires_log_ms > log_time_ms {
            continue;
        }
        permit.overdue = true;
        record.epoch += 1;
        entries.push(journal::overdue(record, index, log_time_ms));
    }
    entries
}
