//! Put: sets a key when its precondition holds.

use kv_proto::{
    disk::v1::{KeyRecord, Put},
    peer::v1::PutOutcome,
};
use kv_topology::KeyspaceId;

use super::{
    apply::{Rejection, Step, described},
    precondition, slots, value,
};

/// Applies a put of its own.
pub(crate) fn put(step: &mut Step<'_, '_>, keyspace: KeyspaceId, put: &Put) -> Result<PutOutcome, Rejection> {
    slots::check(step.group, keyspace, &put.key)?;
    let current =
        if put.return_previous { step.key(keyspace, &put.key)? } else { step.head(keyspace, &put.key)? };
    if !precondition::holds(put.precondition.as_ref(), current.as_ref()) {
        return Ok(PutOutcome { previous: described(&put.key, current.as_ref()), ..PutOutcome::default() });
    }
    let revision = step.next_revision();
    let outcome = write(step, keyspace, put, current.as_ref(), revision)?;
    step.group.revision = revision;
    Ok(outcome)
}

/// Writes the key at `revision`, whatever its precondition.
pub(crate) fn write(
    step: &mut Step<'_, '_>,
    keyspace: KeyspaceId,
    put: &Put,
    current: Option<&KeyRecord>,
    revision: u64,
) -> Result<PutOutcome, Rejection> {
    let previous = match current {
        Some(record) if put.return_previous => {
            Some(value::show(step.scope.replica, put.key.clone(), record)?)
        }
        Some(_) | None => None,
    };
    let value = value::inline(put.value.clone(), put.value_crc32c);
    let record = step.set_key(keyspace, &put.key, current, value, revision);
    Ok(PutOutcome { applied: true, previous, mod_revision: record.mod_revision, version: record.version })
}
