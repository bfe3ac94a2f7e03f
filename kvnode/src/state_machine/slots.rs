//! Which slots the group owns: replicated state, checked for every key in apply and in reads.

use kv_proto::{
    disk::v1::{GroupRecord, OwnSlots},
    peer::v1::{Done, Refusal, outcome},
};
use kv_topology::{KeyspaceId, Slot, SlotRange};

use super::{
    apply::{Rejection, Step},
    refusal,
};

/// Whether the group owns the slot of `key`.
pub(crate) fn owns(group: &GroupRecord, keyspace: KeyspaceId, key: &[u8]) -> bool {
    check(group, keyspace, key).is_ok()
}

/// Refuses a key of another shard.
///
/// # Errors
/// The refusal.
pub(crate) fn check(group: &GroupRecord, keyspace: KeyspaceId, key: &[u8]) -> Result<(), Refusal> {
    let slot = Slot::of(keyspace, key);
    let number = u32::from(slot.get());
    if group.slots.iter().any(|range| range.first <= number && number <= range.last) {
        Ok(())
    } else {
        Err(refusal::wrong_shard(slot))
    }
}

/// Each range has slots in it, and they are slots.
///
/// # Errors
/// The refusal.
pub(crate) fn check_shape(operation: &OwnSlots) -> Result<(), Refusal> {
    for (number, range) in operation.slots.iter().enumerate() {
        let known = match (u16::try_from(range.first), u16::try_from(range.last)) {
            (Ok(first), Ok(last)) => SlotRange::new(first, last).is_some(),
            (Err(_), _) | (_, Err(_)) => false,
        };
        if !known {
            return Err(refusal::invalid(format!("slots[{number}]"), "no range of slots"));
        }
    }
    Ok(())
}

/// Takes the slots. Taking the same ones again changes nothing; slots do not move yet.
pub(crate) fn own(step: &mut Step<'_, '_>, operation: &OwnSlots) -> Result<outcome::Result, Rejection> {
    if operation.shard_id != step.group.shard_id {
        let message = format!("this is shard {}", step.group.shard_id);
        return Err(refusal::invalid("shard_id", message).into());
    }
    if !step.group.slots.is_empty() && step.group.slots != operation.slots {
        return Err(refusal::failed_precondition("SLOTS_OWNED", "the group owns other slots already").into());
    }
    step.group.slots.clone_from(&operation.slots);
    Ok(outcome::Result::Done(Done {}))
}
