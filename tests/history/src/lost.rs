//! Acknowledged writes are there at the end.
//!
//! The linearizability check finds a lost write too, once it was read after the loss; this oracle asks it of the
//! state found after everything has ended, key by key, and says which write is gone. It never accuses wrongly: a
//! write that another one may have replaced is not missed.

use std::collections::BTreeMap;

use crate::{
    history::History,
    operation::{Call, Observed, Operation, Outcome, Reply},
    violation::{Violation, ViolationKind},
};

/// What was found under each key after all clients had ended; `None`: absent. Keys not listed are not checked.
pub type FinalState = BTreeMap<String, Option<Observed>>;

/// Checks `found` against what `history` acknowledged.
///
/// # Errors
/// The first violation found, by key.
pub fn check_final(history: &History, found: &FinalState) -> Result<(), Violation> {
    let keys = history.by_key();
    for (key, found) in found {
        let operations = keys.get(key.as_str()).map_or(&[][..], Vec::as_slice);
        check_key(key, operations, *found)?;
    }
    Ok(())
}

fn check_key(key: &str, operations: &[&Operation], found: Option<Observed>) -> Result<(), Violation> {
    let Some(observed) = found else { return check_absent(operations) };
    let Some(writer) = operations.iter().find(|operation| operation.call.written() == Some(observed.value))
    else {
        let explanation = format!("v{} was found at the end.", observed.value.0);
        let violation = Violation::new(ViolationKind::PhantomRead, [], explanation);
        return Err(Violation { key: key.to_owned(), ..violation });
    };
    if matches!(writer.outcome, Outcome::Failed | Outcome::Returned { reply: Reply::NotSwapped(_), .. }) {
        let explanation = format!("v{} was refused, and found at the end.", observed.value.0);
        return Err(Violation::new(ViolationKind::RefusedWriteVisible, [*writer], explanation));
    }
    for lost in operations.iter().filter(|operation| is_acknowledged_change(operation)) {
        if writer.precedes(lost) {
            let explanation =
                format!("v{} was found at the end, though #{} came after it.", observed.value.0, lost.id.0);
            return Err(Violation::new(ViolationKind::LostWrite, [*writer, *lost], explanation));
        }
        if lost
            .seen_revision()
            .zip(observed.revision)
            .is_some_and(|(made, found)| changed(lost) && made > found)
        {
            let explanation = format!(
                "v{} was found at the end at a revision below the one that #{} made.",
                observed.value.0, lost.id.0
            );
            return Err(Violation::new(ViolationKind::LostWrite, [*writer, *lost], explanation));
        }
    }
    Ok(())
}

/// An absent key is right if nothing was acknowledged, or a delete may have come after every acknowledged write.
fn check_absent(operations: &[&Operation]) -> Result<(), Violation> {
    let deletes: Vec<&Operation> =
        operations.iter().filter(|operation| may_have_deleted(operation)).copied().collect();
    for write in operations.iter().filter(|operation| changed(operation)) {
        if deletes.iter().all(|delete| delete.precedes(write)) {
            let explanation =
                format!("#{} was acknowledged, nothing deleted it, and the key is absent.", write.id.0);
            return Err(Violation::new(ViolationKind::LostWrite, [*write], explanation));
        }
    }
    Ok(())
}

/// A write that took effect, as the client was told.
fn changed(operation: &Operation) -> bool {
    matches!(operation.reply(), Some(Reply::Put(_) | Reply::Swapped(_)))
}

/// A write or delete that took effect, as the client was told.
fn is_acknowledged_change(operation: &Operation) -> bool {
    changed(operation) || operation.reply() == Some(Reply::Deleted(true))
}

fn may_have_deleted(operation: &Operation) -> bool {
    let acknowledged_or_unknown = matches!(
        operation.outcome,
        Outcome::Unknown | Outcome::Returned { reply: Reply::Deleted(true) | Reply::Cleared, .. }
    );
    matches!(operation.call, Call::Delete) && acknowledged_or_unknown
}
