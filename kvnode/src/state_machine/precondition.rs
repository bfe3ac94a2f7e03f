//! Whether a write may happen. An absent key has mod revision 0 and version 0, as in etcd.

use kv_proto::{
    disk::v1::KeyRecord,
    kv::v1::{Precondition, precondition::Condition},
    peer::v1::Refusal,
};

use super::refusal;

/// Whether it holds for the key as it is now. None: always.
pub(crate) fn holds(precondition: Option<&Precondition>, current: Option<&KeyRecord>) -> bool {
    let Some(condition) = precondition.and_then(|precondition| precondition.condition.as_ref()) else {
        return true;
    };
    match condition {
        Condition::Absent(absent) => current.is_none() == *absent,
        Condition::Present(present) => current.is_some() == *present,
        Condition::ModRevision(wanted) => current.map_or(0, |record| record.mod_revision) == *wanted,
        Condition::Version(wanted) => current.map_or(0, |record| record.version) == *wanted,
    }
}

/// A precondition that says nothing is an error, not one that always holds: it may be one that this version does
/// not know.
///
/// # Errors
/// The refusal.
pub(crate) fn check_shape(precondition: Option<&Precondition>) -> Result<(), Refusal> {
    match precondition {
        Some(Precondition { condition: None }) => {
            Err(refusal::invalid("precondition", "names no condition that this version knows"))
        }
        Some(Precondition { condition: Some(_) }) | None => Ok(()),
    }
}
