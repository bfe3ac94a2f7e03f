//! The mod revision of a key only grows: whoever begins after a revision was shown sees at least that one, and a
//! write makes a greater one.

use crate::{
    operation::{Operation, Reply, Revision},
    violation::{Violation, ViolationKind},
};

/// Checks one key's operations, given by invocation.
pub(crate) fn check(operations: &[&Operation]) -> Result<(), Violation> {
    let mut ended: Vec<(&Operation, Revision)> =
        operations.iter().filter_map(|operation| Some((*operation, operation.seen_revision()?))).collect();
    let mut begun = ended.clone();
    ended.sort_by_key(|(operation, _)| operation.ended_at());
    begun.sort_by_key(|(operation, _)| operation.invoked_at);

    let mut shown: Option<(&Operation, Revision)> = None;
    let mut ended = ended.into_iter().peekable();
    for (operation, revision) in begun {
        while let Some(earlier) = ended.next_if(|(earlier, _)| earlier.precedes(operation)) {
            if shown.is_none_or(|(_, greatest)| earlier.1 > greatest) {
                shown = Some(earlier);
            }
        }
        let Some((by, floor)) = shown else { continue };
        let wrote = matches!(operation.reply(), Some(Reply::Put(_) | Reply::Swapped(_)));
        if revision < floor || (wrote && revision == floor) {
            let explanation = format!(
                "Revision {} was shown before #{} began, which {} revision {}.",
                floor.0,
                operation.id.0,
                if wrote { "made" } else { "saw" },
                revision.0
            );
            return Err(Violation::new(ViolationKind::RevisionWentBack, [by, operation], explanation));
        }
    }
    Ok(())
}
