//! What a checker found: the promise that was broken, and the few operations that show it.

use std::fmt;

use crate::operation::{Nanos, Operation};

/// The promise that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ViolationKind {
    /// The recorder's fault: two calls wrote the same value, so nothing can be concluded.
    ValueNotUnique,
    /// A read showed a value that nobody wrote.
    PhantomRead,
    /// A write that the store said it had not applied became visible.
    RefusedWriteVisible,
    /// One write was seen at two mod revisions.
    AppliedTwice,
    /// Two values were seen at one mod revision.
    RevisionShared,
    /// A key's mod revision did not grow.
    RevisionWentBack,
    /// No order of the operations explains the replies.
    NotLinearizable,
    /// An acknowledged write is not there at the end.
    LostWrite,
}

impl fmt::Display for ViolationKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ValueNotUnique => "the recorder wrote one value twice",
            Self::PhantomRead => "a value was read that nobody wrote",
            Self::RefusedWriteVisible => "a refused write became visible",
            Self::AppliedTwice => "a write was applied twice",
            Self::RevisionShared => "two values share a mod revision",
            Self::RevisionWentBack => "the mod revision did not grow",
            Self::NotLinearizable => "no order of the operations explains the replies",
            Self::LostWrite => "an acknowledged write is lost",
        })
    }
}

/// A broken promise on one key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Violation {
    /// The key.
    pub key: String,
    /// The promise.
    pub kind: ViolationKind,
    /// The operations that show it, by invocation.
    pub operations: Vec<Operation>,
    /// How they show it, in a sentence.
    pub explanation: String,
}

impl Violation {
    pub(crate) fn new<'o>(
        kind: ViolationKind,
        operations: impl IntoIterator<Item = &'o Operation>,
        explanation: impl Into<String>,
    ) -> Self {
        let mut operations: Vec<Operation> = operations.into_iter().cloned().collect();
        operations.sort_by_key(|operation| (operation.invoked_at, operation.id));
        operations.dedup_by_key(|operation| operation.id);
        let key = operations.first().map(|operation| operation.key.clone()).unwrap_or_default();
        Self { key, kind, operations, explanation: explanation.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "key {:?}: {}. {}", self.key, self.kind, self.explanation)?;
        let start = self.operations.first().map_or(Nanos(0), |operation| operation.invoked_at);
        for operation in &self.operations {
            let begin = microseconds_since(start, operation.invoked_at);
            match operation.ended_at() {
                Nanos(u64::MAX) => write!(formatter, "  [{begin:>12} us,         ... us] ")?,
                end => write!(formatter, "  [{begin:>12} us, {:>12} us] ", microseconds_since(start, end))?,
            }
            writeln!(formatter, "{operation}")?;
        }
        Ok(())
    }
}

/// With three decimals, exact.
fn microseconds_since(start: Nanos, moment: Nanos) -> String {
    let nanos = moment.0.saturating_sub(start.0);
    format!("{}.{:03}", nanos / 1_000, nanos % 1_000)
}
