//! A store whose writes gather in memory and go on to the store below many at a time, in the order of their names.
//!
//! ```text
//! write ─► active ─► sinking ─► the store below        get: active, sinking, the store below
//! ```
//!
//! Why. What is applied in one round is a hundred records all over the key space, and RocksDB finds the place of each of
//! them in a list of hundreds of thousands, on each replica: that was a quarter of the CPU of a put. Thousands of records
//! in order find their places next to each other, and what every round writes anew (the records of replicas, groups
//! and sessions) goes on once.
//!
//! Nothing changes for anybody: a batch is visible when it is written and durable with the next flush. What is gathered
//! goes on as one batch, so a crash still goes back to a prefix of the writes. Whatever needs the store below as a
//! whole (scans, views, flushes, ranges that are deleted, tables that come in) lets everything settle first.

use std::{
    cell::Cell,
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;

use super::{
    engine::{Batch, Bounds, Change, Direction, Span, StateEngine, View, Visitor},
    error::StateError,
    pins::Copied,
    snapshot::table::{Table, TableSink},
};

/// Records by name; `None` is a delete.
#[derive(Debug, Default)]
struct Layer {
    records: HashMap<Vec<u8>, Option<Bytes>>,
    /// Of names and values.
    bytes: usize,
    deletes: u64,
}

impl Layer {
    fn put(&mut self, name: Vec<u8>, value: Option<Bytes>) {
        let length = |value: &Option<Bytes>| value.as_ref().map_or(0, Bytes::len);
        self.deletes += u64::from(value.is_none());
        self.bytes += name.len() + length(&value);
        let taken = name.len();
        if let Some(old) = self.records.insert(name, value) {
            self.bytes -= taken + length(&old);
        }
    }

    fn in_order(&self) -> Vec<(&[u8], Option<&Bytes>)> {
        let mut records: Vec<_> =
            self.records.iter().map(|(name, value)| (name.as_slice(), value.as_ref())).collect();
        records.sort_unstable_by_key(|(name, _)| *name);
        records
    }
}

/// What the store below does not have yet, or has just now.
#[derive(Debug, Default)]
struct Layers {
    active: Layer,
    /// On its way into the store below; newer than what is there.
    sinking: Option<Arc<Layer>>,
}

impl Layers {
    fn get(&self, name: &[u8]) -> Option<&Option<Bytes>> {
        let sinking = || self.sinking.as_ref()?.records.get(name);
        self.active.records.get(name).or_else(sinking)
    }

    fn bytes(&self) -> usize {
        self.active.bytes + self.sinking.as_ref().map_or(0, |layer| layer.bytes)
    }
}

/// A store over another one.
#[derive(Debug)]
pub struct WriteBehind<E> {
    below: E,
    layers: RwLock<Layers>,
    /// Held by whoever lets a layer sink: layers reach the store below in order.
    settling: Mutex<()>,
    bytes_max: usize,
}

impl<E: StateEngine> WriteBehind<E> {
    /// Over `below`; what is gathered goes on when it has so many bytes.
    pub fn new(below: E, bytes_max: usize) -> Self {
        Self { below, layers: RwLock::default(), settling: Mutex::default(), bytes_max }
    }

    /// The store below, which does not have everything.
    pub fn below(&self) -> &E {
        &self.below
    }

    fn read(&self) -> RwLockReadGuard<'_, Layers> {
        self.layers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, Layers> {
        self.layers.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything written before is in the store below when this returns; `then` is done before anything later is.
    fn settled<T>(&self, then: impl FnOnce() -> Result<T, StateError>) -> Result<T, StateError> {
        let _turn = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        self.sink()?;
        then()
    }

    fn sink(&self) -> Result<(), StateError> {
        let sinking = {
            let mut layers = self.change();
            if layers.sinking.is_some() {
                // It stays where readers find it; the node stops.
                return Err(StateError::engine("write", "an earlier write has failed"));
            }
            if layers.active.records.is_empty() {
                return Ok(());
            }
            let next = HashMap::with_capacity(layers.active.records.len());
            let full = mem::replace(&mut layers.active, Layer { records: next, ..Layer::default() });
            let sinking = Arc::new(full);
            layers.sinking = Some(sinking.clone());
            sinking
        };
        self.below.write_in_order(&sinking.in_order())?;
        self.change().sinking = None;
        Ok(())
    }
}

impl<E: StateEngine> View for WriteBehind<E> {
    fn get(&self, name: &[u8]) -> Result<Option<Bytes>, StateError> {
        if let Some(value) = self.read().get(name) {
            return Ok(value.clone());
        }
        self.below.get(name)
    }

    fn scan(&self, span: &Span, direction: Direction, visit: &mut Visitor<'_>) -> Result<(), StateError> {
        self.settled(|| Ok(()))?;
        self.below.scan(span, direction, visit)
    }
}

/// One moment of what is in memory.
struct Together<'a> {
    layers: &'a Layers,
    below: &'a dyn View,
    missed: &'a Cell<bool>,
}

impl View for Together<'_> {
    fn get(&self, name: &[u8]) -> Result<Option<Bytes>, StateError> {
        match self.layers.get(name) {
            Some(value) => Ok(value.clone()),
            None => self.below.get(name),
        }
    }

    /// A scan may be long, and keeps writers waiting.
    fn scan(&self, _: &Span, _: Direction, _: &mut Visitor<'_>) -> Result<(), StateError> {
        self.missed.set(true);
        Err(StateError::Busy { what: "scans of memory", limit: 0 })
    }
}

/// Of a store that failed: nothing can be read from it.
struct Failed(StateError);

impl View for Failed {
    fn get(&self, _: &[u8]) -> Result<Option<Bytes>, StateError> {
        Err(StateError::engine("write", &self.0))
    }

    fn scan(&self, _: &Span, _: Direction, _: &mut Visitor<'_>) -> Result<(), StateError> {
        Err(StateError::engine("write", &self.0))
    }
}

impl<E: StateEngine> StateEngine for WriteBehind<E> {
    fn get_persisted(&self, name: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.below.get_persisted(name)
    }

    fn write(&self, batch: Batch) -> Result<(), StateError> {
        let is_range = |change: &Change| matches!(change, Change::DeleteRange(_));
        if batch.changes.iter().any(is_range) {
            return self.settled(|| self.below.write(batch));
        }
        let is_full = {
            let mut layers = self.change();
            for change in batch.changes {
                match change {
                    Change::Put { name, value } => layers.active.put(name, Some(value)),
                    Change::Delete { name } => layers.active.put(name, None),
                    Change::DeleteRange(_) => {}
                }
            }
            layers.active.bytes >= self.bytes_max
        };
        if is_full { self.settled(|| Ok(())) } else { Ok(()) }
    }

    fn view(&self, read: &mut dyn FnMut(&dyn View)) {
        match self.settled(|| Ok(())) {
            Ok(()) => self.below.view(read),
            Err(error) => read(&Failed(error)),
        }
    }

    fn view_in_memory(&self, read: &mut dyn FnMut(&dyn View)) -> bool {
        let missed = Cell::new(false);
        let layers = self.read();
        let complete = self.below.view_in_memory(&mut |below| {
            read(&Together { layers: &layers, below, missed: &missed });
        });
        complete && !missed.get()
    }

    fn copy(&self) -> Option<Copied> {
        self.settled(|| Ok(())).ok()?;
        self.below.copy()
    }

    fn flush(&self) -> Result<(), StateError> {
        self.settled(|| Ok(()))?;
        self.below.flush()
    }

    fn build_table(
        &self,
        fill: &mut dyn FnMut(&mut dyn TableSink) -> Result<(), StateError>,
    ) -> Result<Option<Table>, StateError> {
        self.below.build_table(fill)
    }

    fn receive_table(&self) -> Result<Table, StateError> {
        self.below.receive_table()
    }

    fn bounds(&self, table: &Table) -> Result<Option<Bounds>, StateError> {
        self.below.bounds(table)
    }

    fn ingest(&self, tables: Vec<Table>) -> Result<(), StateError> {
        self.settled(|| self.below.ingest(tables))
    }

    fn deletes(&self) -> u64 {
        let layers = self.read();
        let sinking = layers.sinking.as_ref().map_or(0, |layer| layer.deletes);
        self.below.deletes() + layers.active.deletes + sinking
    }

    fn unflushed_bytes(&self) -> Result<u64, StateError> {
        let gathered = self.read().bytes() as u64;
        Ok(self.below.unflushed_bytes()? + gathered)
    }

    fn reclaim(&self, spare_bytes: &dyn Fn() -> Option<u64>) -> Result<bool, StateError> {
        self.settled(|| Ok(()))?;
        self.below.reclaim(spare_bytes)
    }

    fn end_compactions(&self) {
        self.below.end_compactions();
    }

    fn check_health(&self) -> Result<(), StateError> {
        self.below.check_health()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::state::{
        engine::{with_view, with_view_in_memory},
        memory::MemoryEngine,
    };

    const EVERYTHING: u8 = u8::MAX;

    fn name(number: u8) -> Vec<u8> {
        vec![b'n', number]
    }

    fn span(from: u8, to: u8) -> Span {
        Span { start: name(from), end: name(to) }
    }

    /// One step, done to the store and to a plain one.
    #[derive(Clone, Debug)]
    enum Step {
        Write(Vec<(u8, Option<u8>)>),
        DeleteRange(u8, u8),
        Scan(u8, u8),
        View,
        Flush,
        /// Of a store in memory that loses what was not flushed.
        Ingest(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let number = 0..24_u8;
        let change = (number.clone(), proptest::option::weighted(0.8, any::<u8>()));
        let step = prop_oneof![
            8 => proptest::collection::vec(change, 1..6).prop_map(Step::Write),
            1 => (number.clone(), number.clone()).prop_map(|(from, to)| Step::DeleteRange(from, to)),
            1 => (number.clone(), number.clone()).prop_map(|(from, to)| Step::Scan(from, to)),
            1 => Just(Step::View),
            1 => Just(Step::Flush),
            1 => number.prop_map(Step::Ingest),
        ];
        proptest::collection::vec(step, 1..60)
    }

    fn batch(changes: &[(u8, Option<u8>)]) -> Batch {
        let change = |(number, value): &(u8, Option<u8>)| match value {
            Some(value) => Change::Put { name: name(*number), value: Bytes::from(vec![*value; 3]) },
            None => Change::Delete { name: name(*number) },
        };
        Batch { changes: changes.iter().map(change).collect() }
    }

    fn shown(view: &dyn View, span: &Span) -> BTreeMap<Vec<u8>, Bytes> {
        let mut found = BTreeMap::new();
        view.scan(span, Direction::Forward, &mut |name, value| {
            found.insert(name.to_vec(), Bytes::copy_from_slice(value));
            std::ops::ControlFlow::Continue(())
        })
        .expect("a scan");
        found
    }

    fn table(engine: &dyn StateEngine, number: u8) -> Table {
        let built = engine.build_table(&mut |sink| sink.put(&name(number), b"ingested"));
        built.expect("a table").expect("with a record")
    }

    fn take(engine: &dyn StateEngine, step: &Step) {
        match step {
            Step::Write(changes) => engine.write(batch(changes)).expect("a write"),
            Step::DeleteRange(from, to) => engine.delete_range(span(*from, *to)).expect("a range"),
            Step::Flush => engine.flush().expect("a flush"),
            Step::Ingest(number) => engine.ingest(vec![table(engine, *number)]).expect("taken in"),
            Step::Scan(..) | Step::View => {}
        }
    }

    proptest! {
        #[test]
        fn it_shows_what_a_plain_store_shows(steps in steps(), bytes_max in 0..120_usize) {
            let (plain, store) = (MemoryEngine::new(), WriteBehind::new(MemoryEngine::new(), bytes_max));
            for step in &steps {
                take(&plain, step);
                take(&store, step);
                for number in 0..24 {
                    let expected = plain.get(&name(number)).expect("a read");
                    prop_assert_eq!(&store.get(&name(number)).expect("a read"), &expected);
                    let seen = with_view_in_memory(&store, |view| view.get(&name(number)));
                    prop_assert_eq!(seen.expect("all is in memory").expect("a read"), expected);
                }
                match step {
                    Step::Scan(from, to) => {
                        prop_assert_eq!(shown(&store, &span(*from, *to)), shown(&plain, &span(*from, *to)));
                    }
                    Step::View => {
                        let all = span(0, EVERYTHING);
                        prop_assert_eq!(with_view(&store, |view| shown(view, &all)), plain.records());
                    }
                    _ => {}
                }
            }
        }

        /// What is left is what a plain store held at some moment since the last flush.
        #[test]
        fn a_crash_goes_back_to_a_prefix(
            steps in steps(), bytes_max in 0..120_usize, kept in 0..8_usize,
        ) {
            let (plain, store) = (MemoryEngine::new(), WriteBehind::new(MemoryEngine::new(), bytes_max));
            let mut moments = vec![plain.records()];
            for step in &steps {
                take(&plain, step);
                take(&store, step);
                if let Step::Flush = step {
                    moments.clear();
                }
                moments.push(plain.records());
            }
            store.below().crash(kept);
            prop_assert!(moments.contains(&store.below().records()));
        }
    }

    #[test]
    fn what_was_gathered_counts_as_not_flushed() {
        let store = WriteBehind::new(MemoryEngine::new(), 1_000);
        store.write(batch(&[(1, Some(1)), (2, None), (1, Some(2))])).expect("a write");
        assert_eq!(store.unflushed_bytes().expect("a number"), 2 + 3 + 2);
        assert_eq!(store.below().unflushed(), 0);
        assert_eq!(store.deletes(), 1);
        store.flush().expect("a flush");
        assert_eq!(store.unflushed_bytes().expect("a number"), 0);
        assert_eq!(store.below().records().len(), 1);
    }
}
