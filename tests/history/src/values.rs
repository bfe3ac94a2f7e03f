//! Who wrote each value of a key, and at which mod revision it was seen.
//!
//! Values are unique, so this is known before any order is: a put whose own outcome is unknown gets its revision
//! from the first read that shows it. What contradicts itself here needs no search to be called a violation.

use std::collections::BTreeMap;

use crate::{
    operation::{Observed, Operation, Outcome, Reply, Revision, ValueId},
    violation::{Violation, ViolationKind},
};

/// What is known of one written value.
struct Written<'h> {
    by: &'h Operation,
    /// The mod revision, and who told it.
    revision: Option<(Revision, &'h Operation)>,
    /// The first read that showed it.
    read_by: Option<&'h Operation>,
}

/// The values of one key.
pub(crate) struct Values<'h> {
    written: BTreeMap<ValueId, Written<'h>>,
    by_revision: BTreeMap<Revision, ValueId>,
}

impl<'h> Values<'h> {
    /// Collects the values of one key's operations.
    pub(crate) fn collect(operations: &[&'h Operation]) -> Result<Self, Violation> {
        let mut values = Self { written: BTreeMap::new(), by_revision: BTreeMap::new() };
        for operation in operations {
            values.add_write(operation)?;
        }
        for operation in operations {
            values.add_reply(operation)?;
        }
        Ok(values)
    }

    /// The mod revision of `value`, if any reply told it.
    pub(crate) fn revision_of(&self, value: ValueId) -> Option<Revision> {
        self.written.get(&value)?.revision.map(|(revision, _)| revision)
    }

    /// The value that was seen at `revision`.
    pub(crate) fn value_at(&self, revision: Revision) -> Option<ValueId> {
        self.by_revision.get(&revision).copied()
    }

    /// Whether any reply shows that `value` took effect: it was read, or its revision was told.
    pub(crate) fn was_seen(&self, value: ValueId) -> bool {
        self.written
            .get(&value)
            .is_some_and(|written| written.read_by.is_some() || written.revision.is_some())
    }

    fn add_write(&mut self, operation: &'h Operation) -> Result<(), Violation> {
        let Some(value) = operation.call.written() else { return Ok(()) };
        let written = Written { by: operation, revision: None, read_by: None };
        match self.written.insert(value, written) {
            None => Ok(()),
            Some(earlier) => Err(Violation::new(
                ViolationKind::ValueNotUnique,
                [earlier.by, operation],
                format!("Both wrote v{}.", value.0),
            )),
        }
    }

    fn add_reply(&mut self, operation: &'h Operation) -> Result<(), Violation> {
        match (operation.reply(), operation.call.written()) {
            (Some(Reply::Got(Some(observed))), _) => self.add_read(operation, observed),
            (Some(Reply::Put(Some(revision)) | Reply::Swapped(Some(revision))), Some(value)) => {
                self.add_revision(value, revision, operation)
            }
            _ => Ok(()),
        }
    }

    fn add_read(&mut self, operation: &'h Operation, observed: Observed) -> Result<(), Violation> {
        let Some(written) = self.written.get_mut(&observed.value) else {
            let explanation = format!("No operation of this history wrote v{}.", observed.value.0);
            return Err(Violation::new(ViolationKind::PhantomRead, [operation], explanation));
        };
        written.read_by.get_or_insert(operation);
        let refused = match written.by.outcome {
            Outcome::Failed | Outcome::Returned { reply: Reply::NotSwapped(_), .. } => true,
            Outcome::Unknown | Outcome::Returned { .. } => false,
        };
        if refused {
            let explanation = format!("v{} was refused, and read.", observed.value.0);
            return Err(Violation::new(
                ViolationKind::RefusedWriteVisible,
                [written.by, operation],
                explanation,
            ));
        }
        match observed.revision {
            Some(revision) => self.add_revision(observed.value, revision, operation),
            None => Ok(()),
        }
    }

    fn add_revision(
        &mut self,
        value: ValueId,
        revision: Revision,
        told_by: &'h Operation,
    ) -> Result<(), Violation> {
        if let Some(other) = self.by_revision.insert(revision, value).filter(|other| *other != value) {
            let explanation =
                format!("v{} and v{} were both seen at revision {}.", other.0, value.0, revision.0);
            let told_other = self.written[&other].revision.map(|(_, by)| by);
            return Err(Violation::new(
                ViolationKind::RevisionShared,
                told_other.into_iter().chain([told_by]),
                explanation,
            ));
        }
        let Some(written) = self.written.get_mut(&value) else { return Ok(()) };
        match written.revision {
            Some((earlier, told_earlier)) if earlier != revision => Err(Violation::new(
                ViolationKind::AppliedTwice,
                [written.by, told_earlier, told_by],
                format!("v{} was seen at revisions {} and {}.", value.0, earlier.0, revision.0),
            )),
            _ => {
                written.revision = Some((revision, told_by));
                Ok(())
            }
        }
    }
}
