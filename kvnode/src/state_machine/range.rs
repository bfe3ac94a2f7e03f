//! DeleteRange: removes a bounded number of keys in one revision, and says where to go on.

use std::ops::ControlFlow;

use bytes::Bytes;
use kv_proto::{
    disk::v1::{DeleteRange, KeyRecord},
    peer::v1::DeleteRangeOutcome,
};
use kv_topology::KeyspaceId;

use super::{
    apply::{Rejection, Step},
    limits::DELETE_RANGE_KEYS_MAX,
    slots, value,
};
use crate::state::{StateError, keys::PREFIX_BYTES};

/// The keys to remove, and the first one that is left.
struct Found {
    doomed: Vec<(Bytes, KeyRecord)>,
    next: Option<Bytes>,
}

/// Removes the first keys of the range that this group owns.
pub(crate) fn delete_range(
    step: &mut Step<'_, '_>,
    keyspace: KeyspaceId,
    range: &DeleteRange,
) -> Result<DeleteRangeOutcome, Rejection> {
    let limit = match range.limit {
        0 => DELETE_RANGE_KEYS_MAX,
        asked => asked.min(DELETE_RANGE_KEYS_MAX),
    };
    let Found { doomed, next } = find(step, keyspace, range, limit as usize)?;
    for (key, record) in &doomed {
        step.remove_key(keyspace, key, record);
    }
    if !doomed.is_empty() {
        step.group.revision = step.next_revision();
    }
    Ok(DeleteRangeOutcome { deleted: doomed.len() as u64, next_key: next.unwrap_or_default() })
}

fn find(
    step: &Step<'_, '_>,
    keyspace: KeyspaceId,
    range: &DeleteRange,
    limit: usize,
) -> Result<Found, StateError> {
    let mut found = Found { doomed: Vec::new(), next: None };
    let mut damage = None;
    let span = step.scope.keys(keyspace, &range.start, &range.end);
    step.overlay.scan(&span, &mut |name, bytes| {
        let key = Bytes::copy_from_slice(&name[PREFIX_BYTES..]);
        if !slots::owns(step.group, keyspace, &key) {
            return ControlFlow::Continue(());
        }
        if found.doomed.len() == limit {
            found.next = Some(key);
            return ControlFlow::Break(());
        }
        match without_value(step, bytes) {
            Ok(record) => found.doomed.push((key, record)),
            Err(error) => {
                damage = Some(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    damage.map_or(Ok(found), Err)
}

/// The record without the bytes of an inline value: a thousand of them may be a gigabyte.
fn without_value(step: &Step<'_, '_>, bytes: &[u8]) -> Result<KeyRecord, StateError> {
    let mut record: KeyRecord =
        value::decode(step.scope.replica, "a key's record", Bytes::copy_from_slice(bytes))?;
    if value::inline_bytes(&record) > 0 {
        record.value = None;
    }
    Ok(record)
}
