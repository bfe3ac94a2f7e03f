//! The state store in memory, for simulation and for tests of what lies above: written and flushed kept apart.
//!
//! It forgets what a RocksDB without a write-ahead log would forget: [`MemoryEngine::crash`] goes back to the last
//! flush, or to any prefix of the batches since then, because RocksDB flushes by itself too.

use std::{
    collections::BTreeMap,
    mem,
    ops::ControlFlow,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;

use super::{
    engine::{Batch, Bounds, Change, Direction, Span, StateEngine, View, Visitor},
    error::StateError,
    pins::Copied,
    snapshot::table::{Table, TableSink},
};

type Records = BTreeMap<Vec<u8>, Bytes>;

/// What is in memory and what is on the disk of a store that has no disk.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    image: RwLock<Image>,
}

#[derive(Debug, Default)]
struct Image {
    live: Records,
    persisted: Records,
    /// Written and not flushed, oldest first.
    unflushed: Vec<Batch>,
}

fn apply(records: &mut Records, batch: &Batch) {
    for change in &batch.changes {
        match change {
            Change::Put { name, value } => {
                records.insert(name.clone(), value.clone());
            }
            Change::Delete { name } => {
                records.remove(name);
            }
            Change::DeleteRange(span) => {
                if !span.is_empty() {
                    let mut rest = records.split_off(&span.start);
                    records.append(&mut rest.split_off(&span.end));
                }
            }
        }
    }
}

impl Image {
    fn flush(&mut self, batches: usize) {
        for batch in self.unflushed.drain(..batches) {
            apply(&mut self.persisted, &batch);
        }
    }
}

impl MemoryEngine {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Power loss: what was not flushed is gone, but for the oldest `kept` batches, which happened to be.
    pub fn crash(&self, kept: usize) {
        let mut image = self.write_image();
        let kept = kept.min(image.unflushed.len());
        image.flush(kept);
        image.unflushed.clear();
        image.live = image.persisted.clone();
    }

    /// How many batches a crash could take back.
    pub fn unflushed(&self) -> usize {
        self.read_image().unflushed.len()
    }

    /// All records, as a reader sees them.
    pub fn records(&self) -> BTreeMap<Vec<u8>, Bytes> {
        self.read_image().live.clone()
    }

    fn read_image(&self) -> RwLockReadGuard<'_, Image> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_image(&self) -> RwLockWriteGuard<'_, Image> {
        self.image.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl View for Records {
    fn get(&self, name: &[u8]) -> Result<Option<Bytes>, StateError> {
        Ok(BTreeMap::get(self, name).cloned())
    }

    fn scan(&self, span: &Span, direction: Direction, visit: &mut Visitor<'_>) -> Result<(), StateError> {
        if span.is_empty() {
            return Ok(());
        }
        let mut range = self.range(span.start.clone()..span.end.clone());
        loop {
            let next = match direction {
                Direction::Forward => range.next(),
                Direction::Reverse => range.next_back(),
            };
            let Some((name, value)) = next else { return Ok(()) };
            if visit(name, value) == ControlFlow::Break(()) {
                return Ok(());
            }
        }
    }
}

impl View for MemoryEngine {
    fn get(&self, name: &[u8]) -> Result<Option<Bytes>, StateError> {
        View::get(&self.read_image().live, name)
    }

    fn scan(&self, span: &Span, direction: Direction, visit: &mut Visitor<'_>) -> Result<(), StateError> {
        self.read_image().live.scan(span, direction, visit)
    }
}

impl StateEngine for MemoryEngine {
    fn get_persisted(&self, name: &[u8]) -> Result<Option<Bytes>, StateError> {
        View::get(&self.read_image().persisted, name)
    }

    fn write(&self, batch: Batch) -> Result<(), StateError> {
        let mut image = self.write_image();
        apply(&mut image.live, &batch);
        image.unflushed.push(batch);
        Ok(())
    }

    fn view(&self, read: &mut dyn FnMut(&dyn View)) {
        read(&self.read_image().live);
    }

    fn copy(&self) -> Option<Copied> {
        Some(Box::new(self.records()))
    }

    fn flush(&self) -> Result<(), StateError> {
        let mut image = self.write_image();
        let all = image.unflushed.len();
        image.flush(all);
        Ok(())
    }

    fn build_table(
        &self,
        fill: &mut dyn FnMut(&mut dyn TableSink) -> Result<(), StateError>,
    ) -> Result<Option<Table>, StateError> {
        let mut frames = Frames(Vec::new());
        fill(&mut frames)?;
        Ok((!frames.0.is_empty()).then_some(Table::Memory(frames.0)))
    }

    fn receive_table(&self) -> Result<Table, StateError> {
        Ok(Table::Memory(Vec::new()))
    }

    fn bounds(&self, table: &Table) -> Result<Option<Bounds>, StateError> {
        let Table::Memory(bytes) = table else {
            return Err(StateError::BadSnapshot("a file was given to a store in memory".to_owned()));
        };
        let mut batch = Batch::default();
        read_frames(bytes, &mut batch)
            .ok_or_else(|| StateError::BadSnapshot("a table ends within a record".to_owned()))?;
        let names = || batch.changes.iter().filter_map(Change::put_name);
        Ok(names().min().zip(names().max()).map(|(first, last)| (first.to_vec(), last.to_vec())))
    }

    fn ingest(&self, tables: Vec<Table>) -> Result<(), StateError> {
        let mut batch = Batch::default();
        for table in tables {
            let Table::Memory(mut bytes) = table else {
                return Err(StateError::BadSnapshot("a file was given to a store in memory".to_owned()));
            };
            read_frames(&mem::take(&mut bytes), &mut batch)
                .ok_or_else(|| StateError::BadSnapshot("a table ends within a record".to_owned()))?;
        }
        let mut image = self.write_image();
        // RocksDB flushes a memtable that overlaps with what is taken in. Older batches that became durable after it
        // would bring back what it has replaced.
        let older = image.unflushed.len();
        image.flush(older);
        apply(&mut image.live, &batch);
        apply(&mut image.persisted, &batch);
        Ok(())
    }

    fn check_health(&self) -> Result<(), StateError> {
        Ok(())
    }
}

/// Records one after another: length of the name and of the value (4 bytes BE each), name, value.
struct Frames(Vec<u8>);

impl TableSink for Frames {
    fn put(&mut self, name: &[u8], value: &[u8]) -> Result<(), StateError> {
        for part in [name, value] {
            let length =
                u32::try_from(part.len()).map_err(|error| StateError::engine("build a table", error))?;
            self.0.extend_from_slice(&length.to_be_bytes());
        }
        self.0.extend_from_slice(name);
        self.0.extend_from_slice(value);
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.0.len() as u64
    }
}

fn read_frames(mut bytes: &[u8], batch: &mut Batch) -> Option<()> {
    while !bytes.is_empty() {
        let (name_length, rest) = bytes.split_first_chunk::<4>()?;
        let (value_length, rest) = rest.split_first_chunk::<4>()?;
        let (name, rest) = rest.split_at_checked(u32::from_be_bytes(*name_length) as usize)?;
        let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*value_length) as usize)?;
        batch.put(name.to_vec(), Bytes::copy_from_slice(value));
        bytes = rest;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(engine: &MemoryEngine, name: &[u8], value: &'static [u8]) {
        let mut batch = Batch::default();
        batch.put(name.to_vec(), value);
        engine.write(batch).unwrap();
    }

    #[test]
    fn a_crash_keeps_what_was_flushed_and_a_prefix_of_the_rest() {
        let engine = MemoryEngine::new();
        put(&engine, b"a", b"1");
        engine.flush().unwrap();
        put(&engine, b"b", b"2");
        put(&engine, b"c", b"3");
        assert_eq!(engine.get_persisted(b"b").unwrap(), None);
        engine.crash(1);
        assert_eq!(engine.records().into_keys().collect::<Vec<_>>(), [b"a".to_vec(), b"b".to_vec()]);
    }

    #[test]
    fn what_was_taken_in_is_not_replaced_by_older_batches_at_a_crash() {
        let engine = MemoryEngine::new();
        put(&engine, b"a", b"old");
        let taken_in = engine.build_table(&mut |table| table.put(b"a", b"new")).unwrap();
        engine.ingest(taken_in.into_iter().collect()).unwrap();
        engine.crash(1);
        assert_eq!(engine.records().into_values().collect::<Vec<_>>(), [Bytes::from_static(b"new")]);
    }

    #[test]
    fn a_range_is_removed_and_its_neighbours_are_not() {
        let engine = MemoryEngine::new();
        for name in [b"a", b"b", b"c", b"d"] {
            put(&engine, name, b"");
        }
        engine.delete_range(Span { start: b"b".to_vec(), end: b"d".to_vec() }).unwrap();
        assert_eq!(engine.records().into_keys().collect::<Vec<_>>(), [b"a".to_vec(), b"d".to_vec()]);
    }
}
