//! The batch under construction, laid over the store: later operations of a batch read what earlier ones wrote.
//!
//! It lives from the first entry of a batch to the write of that batch, and belongs to one replica. Dropping it
//! undoes everything.

use std::{collections::BTreeMap, ops::ControlFlow};

use bytes::Bytes;

use crate::state::{Batch, Change, Direction, Span, StateError, View, engine::Visitor};

/// Changes not yet written, over what is.
pub struct Overlay<'a> {
    base: &'a dyn View,
    /// `None`: deleted.
    points: BTreeMap<Vec<u8>, Option<Bytes>>,
    /// Hidden in the base. What was put there afterwards is in `points`.
    removed: Vec<Span>,
}

impl<'a> Overlay<'a> {
    /// Nothing changed yet.
    pub fn new(base: &'a dyn View) -> Self {
        Self { base, points: BTreeMap::new(), removed: Vec::new() }
    }

    /// The record as the operations so far have left it.
    ///
    /// # Errors
    /// Those of the store.
    pub fn get(&self, name: &[u8]) -> Result<Option<Bytes>, StateError> {
        if let Some(changed) = self.points.get(name) {
            return Ok(changed.clone());
        }
        if self.hides(name) {
            return Ok(None);
        }
        self.base.get(name)
    }

    /// Sets a record.
    pub fn put(&mut self, name: Vec<u8>, value: impl Into<Bytes>) {
        self.points.insert(name, Some(value.into()));
    }

    /// Removes a record.
    pub fn delete(&mut self, name: Vec<u8>) {
        self.points.insert(name, None);
    }

    /// Removes all records of a range.
    pub fn delete_range(&mut self, span: Span) {
        if span.is_empty() {
            return;
        }
        self.points.retain(|name, _| !span.contains(name));
        self.removed.push(span);
    }

    /// Shows the records of a range in ascending order until `visit` breaks off.
    ///
    /// # Errors
    /// Those of the store.
    pub fn scan(&self, span: &Span, visit: &mut Visitor<'_>) -> Result<(), StateError> {
        if span.is_empty() {
            return Ok(());
        }
        let mut changed = self.points.range(span.start.clone()..span.end.clone()).peekable();
        let mut flow = ControlFlow::Continue(());
        self.base.scan(span, Direction::Forward, &mut |name, value| {
            while let Some((earlier, new)) = changed.next_if(|(changed, _)| changed.as_slice() < name) {
                flow = show(visit, earlier, new.as_ref(), flow);
                if flow.is_break() {
                    return flow;
                }
            }
            flow = match changed.next_if(|(changed, _)| changed.as_slice() == name) {
                Some((name, new)) => show(visit, name, new.as_ref(), flow),
                None if self.hides(name) => flow,
                None => visit(name, value),
            };
            flow
        })?;
        for (name, new) in changed {
            if flow.is_break() {
                break;
            }
            flow = show(visit, name, new.as_ref(), flow);
        }
        Ok(())
    }

    /// The changes as one batch: ranges first, since what was put after them is in the points.
    pub fn into_batch(self) -> Batch {
        let ranges = self.removed.into_iter().map(Change::DeleteRange);
        let points = self.points.into_iter().map(|(name, value)| match value {
            Some(value) => Change::Put { name, value },
            None => Change::Delete { name },
        });
        Batch { changes: ranges.chain(points).collect() }
    }

    fn hides(&self, name: &[u8]) -> bool {
        self.removed.iter().any(|span| span.contains(name))
    }
}

fn show(
    visit: &mut Visitor<'_>,
    name: &[u8],
    value: Option<&Bytes>,
    flow: ControlFlow<()>,
) -> ControlFlow<()> {
    match value {
        Some(value) if flow.is_continue() => visit(name, value),
        Some(_) | None => flow,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::{StateEngine, memory::MemoryEngine};

    #[derive(Clone, Debug)]
    enum Step {
        Put(u8, u8),
        Delete(u8),
        DeleteRange(u8, u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..20_u8, any::<u8>()).prop_map(|(name, value)| Step::Put(name, value)),
            (0..20_u8).prop_map(Step::Delete),
            (0..20_u8, 0..20_u8).prop_map(|(start, end)| Step::DeleteRange(start, end)),
        ]
    }

    fn change(step: &Step) -> Change {
        match *step {
            Step::Put(name, value) => Change::Put { name: vec![name], value: Bytes::from(vec![value]) },
            Step::Delete(name) => Change::Delete { name: vec![name] },
            Step::DeleteRange(start, end) => Change::DeleteRange(Span { start: vec![start], end: vec![end] }),
        }
    }

    fn perform(overlay: &mut Overlay<'_>, step: &Step) {
        match change(step) {
            Change::Put { name, value } => overlay.put(name, value),
            Change::Delete { name } => overlay.delete(name),
            Change::DeleteRange(span) => overlay.delete_range(span),
        }
    }

    proptest! {
        /// The overlay shows, before it is written, what the store shows when each step was written by itself.
        #[test]
        fn reads_its_own_writes(
            before in prop::collection::vec(step(), 0..20),
            steps in prop::collection::vec(step(), 0..20),
            span in (0..20_u8, 0..21_u8),
        ) {
            let base = MemoryEngine::new();
            let plain = MemoryEngine::new();
            for step in &before {
                base.write(Batch { changes: vec![change(step)] }).unwrap();
                plain.write(Batch { changes: vec![change(step)] }).unwrap();
            }
            let mut overlay = Overlay::new(&base);
            for step in &steps {
                perform(&mut overlay, step);
                plain.write(Batch { changes: vec![change(step)] }).unwrap();
            }
            let span = Span { start: vec![span.0], end: vec![span.1] };
            let mut seen = Vec::new();
            overlay.scan(&span, &mut |name, value| {
                seen.push((name.to_vec(), value.to_vec()));
                ControlFlow::Continue(())
            }).unwrap();
            let expected: Vec<_> = plain.records().into_iter()
                .filter(|(name, _)| span.contains(name))
                .map(|(name, value)| (name, value.to_vec()))
                .collect();
            prop_assert_eq!(seen, expected);
            for name in 0..20_u8 {
                prop_assert_eq!(overlay.get(&[name]).unwrap(), plain.get(&[name]).unwrap());
            }
            let batch = overlay.into_batch();
            base.write(batch).unwrap();
            prop_assert_eq!(base.records(), plain.records());
        }
    }
}
