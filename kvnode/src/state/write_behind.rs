//! A store whose writes gather in memory and go on to the store below many at a time, in the order of their names.
//!
//! ```text
//! write ─► active ─► frozen, oldest first ─► the store below
//! ```
//!
//! Why. What is applied in one round is a hundred records all over the key space, and RocksDB finds the place of each of
//! them in a list of hundreds of thousands, on each replica: that was a quarter of the CPU of a put. Thousands of records
//! in order find their places next to each other, and what every round writes anew (the records of replicas, groups
//! and sessions) goes on once.
//!
//! Nothing changes for anybody: a batch is visible when it is written and durable with the next flush. What is gathered
//! goes on as one batch, so a crash still goes back to a prefix of the writes. A view shares what is gathered and lays it
//! over a view of the store below: who reads never writes. What a view still looks at when more is written is frozen, and a
//! new layer begun. Writers, flushes, ranges that are deleted and tables that come in let everything settle in the store below.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
    mem,
    ops::ControlFlow,
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;

use super::{
    engine::{Batch, Bounds, Change, Direction, Span, StateEngine, View, Visitor, with_view},
    error::StateError,
    pins::Copied,
    snapshot::table::{Table, TableSink},
};

/// Frozen layers that a writer lets be; each makes reads look into one more table.
const FROZEN_MAX: usize = 4;

/// Records by name; `None` is a delete.
type Records = HashMap<Vec<u8>, Option<Bytes>>;

/// Layers that do not change any more, oldest first.
type Frozen = Vec<Arc<Records>>;

/// Records of frozen layers, in order.
type Above<'a> = BTreeMap<&'a [u8], Option<&'a Bytes>>;

/// What the store below does not have yet, or has just now.
#[derive(Debug, Default)]
struct Layers {
    /// The newest writes. Views share it, and while they do it does not change.
    active: Arc<Records>,
    /// Newer than the store below, older than `active`.
    frozen: Frozen,
    /// Of names and values that were written since all settled.
    bytes: usize,
    /// The store below has refused a write: the node stops.
    failed: bool,
}

impl Layers {
    /// Takes in what a batch changes, but for ranges.
    fn take_in(&mut self, changes: Vec<Change>) {
        if Arc::get_mut(&mut self.active).is_none() {
            self.freeze();
        }
        // Nobody shares it now, so that this copies nothing.
        let active = Arc::make_mut(&mut self.active);
        for change in changes {
            let (name, value) = match change {
                Change::Put { name, value } => (name, Some(value)),
                Change::Delete { name } => (name, None),
                Change::DeleteRange(_) => continue,
            };
            self.bytes += name.len() + value.as_ref().map_or(0, Bytes::len);
            active.insert(name, value);
        }
    }

    fn get(&self, name: &[u8]) -> Option<&Option<Bytes>> {
        self.active.get(name).or_else(|| newest(&self.frozen, name))
    }

    fn freeze(&mut self) {
        let next = HashMap::with_capacity(self.active.len());
        let frozen = mem::replace(&mut self.active, Arc::new(next));
        if !frozen.is_empty() {
            self.frozen.push(frozen);
        }
    }

    /// All of them, oldest first.
    fn all(&self) -> Frozen {
        self.frozen.iter().chain([&self.active]).filter(|layer| !layer.is_empty()).cloned().collect()
    }
}

fn newest<'a>(frozen: &'a [Arc<Records>], name: &[u8]) -> Option<&'a Option<Bytes>> {
    frozen.iter().rev().find_map(|layer| layer.get(name))
}

/// The newest of each name among those that `wanted` takes, in order.
fn merged(frozen: &[Arc<Records>], wanted: impl Fn(&[u8]) -> bool) -> Above<'_> {
    let records = frozen.iter().flat_map(|layer| layer.iter());
    let wanted = records.filter(|(name, _)| wanted(name));
    wanted.map(|(name, value)| (name.as_slice(), value.as_ref())).collect()
}

/// A store over another one.
#[derive(Debug)]
pub struct WriteBehind<E> {
    below: Arc<E>,
    layers: RwLock<Layers>,
    /// Held by whoever lets layers settle: they reach the store below in order.
    settling: Mutex<()>,
    bytes_max: usize,
    deletes: AtomicU64,
}

impl<E: StateEngine> WriteBehind<E> {
    /// Over `below`; what is gathered goes on when so many bytes were written.
    pub fn new(below: Arc<E>, bytes_max: usize) -> Self {
        let deletes = AtomicU64::new(below.deletes());
        Self { below, layers: RwLock::default(), settling: Mutex::default(), bytes_max, deletes }
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
        self.settle()?;
        then()
    }

    fn settle(&self) -> Result<(), StateError> {
        let frozen = {
            let mut layers = self.change();
            check(&layers)?;
            layers.bytes = 0;
            layers.freeze();
            layers.frozen.clone()
        };
        if frozen.is_empty() {
            return Ok(());
        }
        let records: Vec<_> = merged(&frozen, |_| true).into_iter().collect();
        let written = self.below.write_in_order(&records);
        let mut layers = self.change();
        match &written {
            // A view may have frozen more meanwhile.
            Ok(()) => drop(layers.frozen.drain(..frozen.len())),
            // They stay where readers find them.
            Err(_) => layers.failed = true,
        }
        written
    }
}

fn check(layers: &Layers) -> Result<(), StateError> {
    if layers.failed { Err(StateError::engine("write", "an earlier write has failed")) } else { Ok(()) }
}

impl<E: StateEngine> View for WriteBehind<E> {
    fn get(&self, name: &[u8]) -> Result<Option<Bytes>, StateError> {
        if let Some(value) = self.read().get(name) {
            return Ok(value.clone());
        }
        self.below.get(name)
    }

    fn scan(&self, span: &Span, direction: Direction, visit: &mut Visitor<'_>) -> Result<(), StateError> {
        with_view(self, |view| view.scan(span, direction, visit))
    }
}

/// One moment: frozen layers over a view of the store below.
struct Laid<'a> {
    frozen: Frozen,
    below: &'a dyn View,
}

impl View for Laid<'_> {
    fn get(&self, name: &[u8]) -> Result<Option<Bytes>, StateError> {
        match newest(&self.frozen, name) {
            Some(value) => Ok(value.clone()),
            None => self.below.get(name),
        }
    }

    fn scan(&self, span: &Span, direction: Direction, visit: &mut Visitor<'_>) -> Result<(), StateError> {
        let mut above = merged(&self.frozen, |name| span.contains(name));
        let mut goes_on = true;
        self.below.scan(span, direction, &mut |name, value| {
            while let Some(next) = first(&above, direction).filter(|next| comes_before(next, name, direction))
            {
                goes_on = show(&mut above, next, visit);
                if !goes_on {
                    return ControlFlow::Break(());
                }
            }
            let flow = match above.remove(name) {
                None => visit(name, value),
                // A name of the store's own is shown with what is newer, or not at all.
                Some(Some(newer)) => visit(name, newer),
                Some(None) => ControlFlow::Continue(()),
            };
            goes_on = flow.is_continue();
            flow
        })?;
        while goes_on && let Some(next) = first(&above, direction) {
            goes_on = show(&mut above, next, visit);
        }
        Ok(())
    }
}

fn first<'a>(above: &Above<'a>, direction: Direction) -> Option<&'a [u8]> {
    let next = match direction {
        Direction::Forward => above.first_key_value(),
        Direction::Reverse => above.last_key_value(),
    };
    next.map(|(name, _)| *name)
}

fn comes_before(one: &[u8], other: &[u8], direction: Direction) -> bool {
    match direction {
        Direction::Forward => one < other,
        Direction::Reverse => one > other,
    }
}

/// Shows a record unless it is a delete. Whether the visitor goes on.
fn show(above: &mut Above<'_>, name: &[u8], visit: &mut Visitor<'_>) -> bool {
    let value = above.remove(name).flatten();
    value.is_none_or(|value| visit(name, value).is_continue())
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

impl<E: StateEngine> StateEngine for WriteBehind<E> {
    fn get_persisted(&self, name: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.below.get_persisted(name)
    }

    fn write(&self, batch: Batch) -> Result<(), StateError> {
        let is_put = |change: &Change| matches!(change, Change::Put { .. });
        let deletes = batch.changes.iter().filter(|change| !is_put(change)).count() as u64;
        self.deletes.fetch_add(deletes, Ordering::Relaxed);
        if batch.changes.iter().any(|change| matches!(change, Change::DeleteRange(_))) {
            return self.settled(|| self.below.write(batch));
        }
        let is_full = {
            let mut layers = self.change();
            check(&layers)?;
            layers.take_in(batch.changes);
            layers.bytes >= self.bytes_max || layers.frozen.len() > FROZEN_MAX
        };
        if is_full { self.settled(|| Ok(())) } else { Ok(()) }
    }

    fn view(&self, read: &mut dyn FnMut(&dyn View)) {
        let layers = self.read();
        let frozen = layers.all();
        let mut writers_wait = Some(layers);
        self.below.view(&mut |below| {
            // The moment of the store below is taken.
            writers_wait = None;
            read(&Laid { frozen: frozen.clone(), below });
        });
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
        self.deletes.load(Ordering::Relaxed)
    }

    fn unflushed_bytes(&self) -> Result<u64, StateError> {
        let gathered = self.read().bytes as u64;
        Ok(self.below.unflushed_bytes()? + gathered)
    }

    fn reclaim(
        &self,
        within: Option<&Span>,
        spare_bytes: &dyn Fn() -> Option<u64>,
    ) -> Result<bool, StateError> {
        self.settled(|| Ok(()))?;
        self.below.reclaim(within, spare_bytes)
    }

    fn disk_bytes(&self, spans: &[Span]) -> Vec<u64> {
        self.below.disk_bytes(spans)
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
    use std::{
        sync::{Condvar, atomic::AtomicBool},
        thread,
    };

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
            ControlFlow::Continue(())
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
            let (plain, store) = (MemoryEngine::new(), WriteBehind::new(Arc::new(MemoryEngine::new()), bytes_max));
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
            let (plain, store) = (MemoryEngine::new(), WriteBehind::new(Arc::new(MemoryEngine::new()), bytes_max));
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
        let store = WriteBehind::new(Arc::new(MemoryEngine::new()), 1_000);
        store.write(batch(&[(1, Some(1)), (2, None), (1, Some(2))])).expect("a write");
        assert_eq!(store.unflushed_bytes().expect("a number"), 2 * (2 + 3) + 2);
        assert_eq!(store.below().unflushed(), 0);
        assert_eq!(store.deletes(), 1);
        store.flush().expect("a flush");
        assert_eq!(store.unflushed_bytes().expect("a number"), 0);
        assert_eq!(store.below().records().len(), 1);
    }

    /// A store whose ordered writes wait until they may go on, and then do what they are told.
    #[derive(Default)]
    struct Slow {
        store: MemoryEngine,
        begun: Event,
        may_end: Event,
        fails: AtomicBool,
    }

    #[derive(Default)]
    struct Event(Mutex<bool>, Condvar);

    impl Event {
        fn tell(&self) {
            *self.0.lock().expect("a lock") = true;
            self.1.notify_all();
        }

        fn wait(&self) {
            let told = self.0.lock().expect("a lock");
            drop(self.1.wait_while(told, |told| !*told).expect("a lock"));
        }
    }

    impl View for Slow {
        fn get(&self, name: &[u8]) -> Result<Option<Bytes>, StateError> {
            self.store.get(name)
        }

        fn scan(&self, span: &Span, direction: Direction, visit: &mut Visitor<'_>) -> Result<(), StateError> {
            self.store.scan(span, direction, visit)
        }
    }

    impl StateEngine for Slow {
        fn get_persisted(&self, name: &[u8]) -> Result<Option<Bytes>, StateError> {
            self.store.get_persisted(name)
        }

        fn write(&self, batch: Batch) -> Result<(), StateError> {
            self.store.write(batch)
        }

        fn write_in_order(&self, records: &[(&[u8], Option<&Bytes>)]) -> Result<(), StateError> {
            self.begun.tell();
            self.may_end.wait();
            if self.fails.load(Ordering::SeqCst) {
                return Err(StateError::engine("write", "told to fail"));
            }
            self.store.write_in_order(records)
        }

        fn view(&self, read: &mut dyn FnMut(&dyn View)) {
            self.store.view(read);
        }

        fn flush(&self) -> Result<(), StateError> {
            self.store.flush()
        }

        fn build_table(
            &self,
            fill: &mut dyn FnMut(&mut dyn TableSink) -> Result<(), StateError>,
        ) -> Result<Option<Table>, StateError> {
            self.store.build_table(fill)
        }

        fn receive_table(&self) -> Result<Table, StateError> {
            self.store.receive_table()
        }

        fn bounds(&self, table: &Table) -> Result<Option<Bounds>, StateError> {
            self.store.bounds(table)
        }

        fn ingest(&self, tables: Vec<Table>) -> Result<(), StateError> {
            self.store.ingest(tables)
        }

        fn check_health(&self) -> Result<(), StateError> {
            self.store.check_health()
        }
    }

    #[test]
    fn nobody_waits_for_what_settles_and_nobody_misses_it() {
        let store = WriteBehind::new(Arc::new(Slow::default()), 1_000);
        store.write(batch(&[(1, Some(1)), (2, Some(1))])).expect("a write");
        thread::scope(|scope| {
            let flushing = scope.spawn(|| store.flush());
            store.below().begun.wait();
            let three = |value: u8| Some(Bytes::from(vec![value; 3]));
            assert_eq!(store.get(&name(1)).expect("a read"), three(1));
            let seen = with_view_in_memory(&store, |view| view.get(&name(2)));
            assert_eq!(seen.expect("in memory").expect("a read"), three(1));
            store.write(batch(&[(2, Some(2)), (3, Some(2)), (1, None)])).expect("a write");
            let all = with_view(&store, |view| shown(view, &span(0, EVERYTHING)));
            assert_eq!(all, BTreeMap::from([(name(2), three(2).unwrap()), (name(3), three(2).unwrap())]));
            store.below().may_end.tell();
            flushing.join().expect("no panic").expect("a flush");
            assert_eq!(store.below().get(&name(2)).expect("a read"), three(1));
            assert_eq!(store.get(&name(2)).expect("a read"), three(2));
            assert_eq!(store.get(&name(1)).expect("a read"), None);
        });
    }

    #[test]
    fn views_that_are_over_leave_nothing_and_others_keep_their_moment() {
        let store = WriteBehind::new(Arc::new(MemoryEngine::new()), 10_000);
        for round in 0..20 {
            store.write(batch(&[(1, Some(round))])).expect("a write");
            assert!(with_view(&store, |view| view.get(&name(1))).expect("a read").is_some());
        }
        assert_eq!(store.read().frozen.len(), 0);
        with_view(&store, |view| {
            store.write(batch(&[(1, None), (2, Some(7))])).expect("a write");
            assert_eq!(view.get(&name(1)).expect("a read"), Some(Bytes::from(vec![19; 3])));
            assert_eq!(view.get(&name(2)).expect("a read"), None);
        });
        assert_eq!(store.read().frozen.len(), 1);
        assert_eq!(store.get(&name(1)).expect("a read"), None);
    }

    #[test]
    fn a_store_that_failed_takes_no_more_and_still_shows_what_it_took() {
        let store = WriteBehind::new(Arc::new(Slow::default()), 1_000);
        store.below().may_end.tell();
        store.below().fails.store(true, Ordering::SeqCst);
        store.write(batch(&[(1, Some(1))])).expect("a write");
        store.flush().expect_err("a flush that was told to fail");
        store.below().fails.store(false, Ordering::SeqCst);
        store.write(batch(&[(2, Some(1))])).expect_err("a write after a failure");
        store.flush().expect_err("a flush after a failure");
        assert!(store.get(&name(1)).expect("a read").is_some());
    }
}
