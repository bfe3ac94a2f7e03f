//! Delete: removes a key when it is there and its precondition holds.

use kv_proto::{
    disk::v1::{Delete, KeyRecord},
    peer::v1::DeleteOutcome,
};
use kv_topology::KeyspaceId;

use super::{
    apply::{Rejection, Step, described},
    precondition, slots, value,
};

/// Applies a delete of its own.
pub(crate) fn delete(
    step: &mut Step<'_, '_>,
    keyspace: KeyspaceId,
    delete: &Delete,
) -> Result<DeleteOutcome, Rejection> {
    slots::check(step.group, keyspace, &delete.key)?;
    let current = if delete.return_previous {
        step.key(keyspace, &delete.key)?
    } else {
        step.head(keyspace, &delete.key)?
    };
    if !precondition::holds(delete.precondition.as_ref(), current.as_ref()) {
        return Ok(DeleteOutcome { applied: false, previous: described(&delete.key, current.as_ref()) });
    }
    let outcome = remove(step, keyspace, delete, current.as_ref())?;
    if outcome.applied {
        step.group.revision = step.next_revision();
    }
    Ok(outcome)
}

/// Removes the key, whatever its precondition.
pub(crate) fn remove(
    step: &mut Step<'_, '_>,
    keyspace: KeyspaceId,
    delete: &Delete,
    current: Option<&KeyRecord>,
) -> Result<DeleteOutcome, Rejection> {
    let Some(record) = current else { return Ok(DeleteOutcome::default()) };
    let previous = if delete.return_previous {
        Some(value::show(step.scope.replica, delete.key.clone(), record)?)
    } else {
        None
    };
    step.remove_key(keyspace, &delete.key, record);
    Ok(DeleteOutcome { applied: true, previous })
}
