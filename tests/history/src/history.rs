//! The record of what concurrent clients did. Operations are added when they are invoked and completed later;
//! one that is never completed has an unknown outcome.

use std::collections::BTreeMap;

use crate::operation::{Call, ClientId, Nanos, Operation, OperationId, Outcome, Reply};

/// A line of a written history could not be read back.
#[derive(Debug, thiserror::Error)]
#[error("line {line} of the history is not an operation")]
pub struct ParseError {
    /// From 1.
    pub line: usize,
    /// What the parser said.
    #[source]
    pub source: serde_json::Error,
}

/// All operations of a run, in the order in which they were recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    operations: Vec<Operation>,
}

impl History {
    /// An empty history.
    pub fn new() -> Self {
        Self::default()
    }

    /// Records that `client` begins to ask `call` of `key`. Its outcome is unknown until it is completed.
    pub fn invoke(&mut self, client: ClientId, key: impl Into<String>, call: Call, at: Nanos) -> OperationId {
        let id = OperationId(
            u32::try_from(self.operations.len()).expect("a history has fewer than 2^32 operations"),
        );
        let outcome = Outcome::Unknown;
        self.operations.push(Operation { id, client, key: key.into(), call, invoked_at: at, outcome });
        id
    }

    /// Records the reply to `id`.
    ///
    /// # Panics
    /// When it ended before it began: the recorder's clock is broken.
    pub fn returned(&mut self, id: OperationId, reply: Reply, at: Nanos) {
        let operation = self.operation_mut(id);
        assert!(at >= operation.invoked_at, "operation #{} returned before it was invoked", id.0);
        operation.outcome = Outcome::Returned { at, reply };
    }

    /// Records that `id` surely had and will have no effect.
    pub fn failed(&mut self, id: OperationId) {
        self.operation_mut(id).outcome = Outcome::Failed;
    }

    /// Records that nobody knows what became of `id`. The same as never completing it.
    pub fn unknown(&mut self, id: OperationId) {
        self.operation_mut(id).outcome = Outcome::Unknown;
    }

    /// All operations.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// Number of operations.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// The operations of each key, by invocation.
    pub fn by_key(&self) -> BTreeMap<&str, Vec<&Operation>> {
        let mut keys: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
        for operation in &self.operations {
            keys.entry(&operation.key).or_default().push(operation);
        }
        for operations in keys.values_mut() {
            operations.sort_by_key(|operation| (operation.invoked_at, operation.id));
        }
        keys
    }

    /// The history as one JSON object a line, for inspection and for replaying a check.
    pub fn to_json_lines(&self) -> String {
        let mut lines = String::new();
        for operation in &self.operations {
            lines.push_str(&serde_json::to_string(operation).expect("an operation has a JSON form"));
            lines.push('\n');
        }
        lines
    }

    /// Reads what [`to_json_lines`](Self::to_json_lines) wrote. Ids are given anew by position.
    ///
    /// # Errors
    /// When a line is not an operation.
    pub fn from_json_lines(text: &str) -> Result<Self, ParseError> {
        let mut operations = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let mut operation: Operation =
                serde_json::from_str(line).map_err(|source| ParseError { line: index + 1, source })?;
            operation.id =
                OperationId(u32::try_from(index).expect("a history has fewer than 2^32 operations"));
            operations.push(operation);
        }
        Ok(Self { operations })
    }

    fn operation_mut(&mut self, id: OperationId) -> &mut Operation {
        &mut self.operations[id.0 as usize]
    }
}
