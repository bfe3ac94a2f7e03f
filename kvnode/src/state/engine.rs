//! What a state store must do, and no more: synchronous, ordered, without a log of its own.
//!
//! A write is visible when it returns and durable with the next flush. A crash goes back to a prefix of the writes:
//! all of those up to some point, and none after it. Tables brought in by [`StateEngine::ingest`] are durable and
//! visible at once, all or none.
//!
//! Calls may block on the device, so they are made by threads of the state store and by reads, never while a lock
//! of a group is held.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::{
    error::StateError,
    pins::Copied,
    snapshot::table::{Table, TableSink},
};

/// A half-open range of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Included.
    pub start: Vec<u8>,
    /// Not included.
    pub end: Vec<u8>,
}

impl Span {
    /// Whether `name` is inside.
    pub fn contains(&self, name: &[u8]) -> bool {
        self.start.as_slice() <= name && name < self.end.as_slice()
    }

    /// Whether nothing can be inside.
    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }
}

/// Which way a scan goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the first name on.
    Forward,
    /// From the last name back.
    Reverse,
}

/// One step of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Sets a record.
    Put {
        /// Its name.
        name: Vec<u8>,
        /// Its encoding.
        value: Bytes,
    },
    /// Removes a record if it is there.
    Delete {
        /// Its name.
        name: Vec<u8>,
    },
    /// Removes all records in a range.
    DeleteRange(Span),
}

impl Change {
    /// The name of the record that is set, if one is.
    pub fn put_name(&self) -> Option<&[u8]> {
        match self {
            Self::Put { name, .. } => Some(name),
            Self::Delete { .. } | Self::DeleteRange(_) => None,
        }
    }
}

/// Changes that become visible together and, after a crash, are there together or not at all. Later ones win.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// In order.
    pub changes: Vec<Change>,
}

impl Batch {
    /// Sets a record.
    pub fn put(&mut self, name: Vec<u8>, value: impl Into<Bytes>) {
        self.changes.push(Change::Put { name, value: value.into() });
    }

    /// Bytes of names and values.
    pub fn bytes(&self) -> u64 {
        let bytes: usize = self
            .changes
            .iter()
            .map(|change| match change {
                Change::Put { name, value } => name.len() + value.len(),
                Change::Delete { name } => name.len(),
                Change::DeleteRange(span) => span.start.len() + span.end.len(),
            })
            .sum();
        bytes as u64
    }
}

/// Takes a record that a scan found and says whether to go on.
pub type Visitor<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// The first and the last name in a table.
pub type Bounds = (Vec<u8>, Vec<u8>);

/// Something that records can be read from.
pub trait View {
    /// The record with this name.
    ///
    /// # Errors
    /// [`StateError::Damage`] when its bytes fail a checksum.
    fn get(&self, name: &[u8]) -> Result<Option<Bytes>, StateError>;

    /// Shows the records of a range to `visit`, in order, until it breaks off.
    ///
    /// # Errors
    /// [`StateError::Damage`] when bytes on the way fail a checksum; the records shown before are sound.
    fn scan(&self, span: &Span, direction: Direction, visit: &mut Visitor<'_>) -> Result<(), StateError>;
}

/// A state store. As a [`View`] it shows the newest state, each call by itself.
pub trait StateEngine: View + Send + Sync + 'static {
    /// The record as a crash at this moment would leave it.
    ///
    /// # Errors
    /// As for [`View::get`].
    fn get_persisted(&self, name: &[u8]) -> Result<Option<Bytes>, StateError>;

    /// Applies a batch. It is visible on return, and not durable.
    ///
    /// # Errors
    /// [`StateError::Engine`]: the device failed, and the node must stop.
    fn write(&self, batch: Batch) -> Result<(), StateError>;

    /// Applies a batch of records in the order of their names, each name once; `None` removes a record.
    ///
    /// # Errors
    /// As for [`StateEngine::write`].
    fn write_in_order(&self, records: &[(&[u8], Option<&Bytes>)]) -> Result<(), StateError> {
        let change = |(name, value): &(&[u8], Option<&Bytes>)| match value {
            Some(value) => Change::Put { name: name.to_vec(), value: (*value).clone() },
            None => Change::Delete { name: name.to_vec() },
        };
        self.write(Batch { changes: records.iter().map(change).collect() })
    }

    /// Shows one moment of the state to `read`; see [`with_view`] for a result.
    fn view(&self, read: &mut dyn FnMut(&dyn View));

    /// The same, of what is in memory: never waits for the disk. False: something was not there, and whatever `read`
    /// made of it counts for nothing.
    fn view_in_memory(&self, read: &mut dyn FnMut(&dyn View)) -> bool {
        self.view(read);
        true
    }

    /// The present moment as a value, where it is one: in memory. `None`: a view borrows from the store.
    fn copy(&self) -> Option<Copied> {
        None
    }

    /// Makes everything written before durable.
    ///
    /// # Errors
    /// [`StateError::Engine`]: the device failed, and the node must stop.
    fn flush(&self) -> Result<(), StateError>;

    /// Removes all records of a range, for instance of a replica or a generation that is gone. Views that are open
    /// still show them.
    ///
    /// # Errors
    /// As for [`StateEngine::write`].
    fn delete_range(&self, span: Span) -> Result<(), StateError> {
        if span.is_empty() {
            return Ok(());
        }
        self.write(Batch { changes: vec![Change::DeleteRange(span)] })
    }

    /// Writes a table of sorted records outside the store. `fill` puts them in; without any there is no table.
    ///
    /// # Errors
    /// Those of `fill`, and of the device.
    fn build_table(
        &self,
        fill: &mut dyn FnMut(&mut dyn TableSink) -> Result<(), StateError>,
    ) -> Result<Option<Table>, StateError>;

    /// A new, empty table that is received piece by piece.
    ///
    /// # Errors
    /// When the device refuses.
    fn receive_table(&self) -> Result<Table, StateError>;

    /// The first and the last name in a received table. `None`: it holds no records.
    ///
    /// # Errors
    /// [`StateError::BadSnapshot`] when the table cannot be read.
    fn bounds(&self, table: &Table) -> Result<Option<Bounds>, StateError>;

    /// Brings tables of records in, with one durable step: all of them or none. They do not overlap.
    ///
    /// # Errors
    /// Nothing was brought in. [`StateError::BadSnapshot`] when a table cannot be read.
    fn ingest(&self, tables: Vec<Table>) -> Result<(), StateError>;

    /// Deletes that were written up to now; those from before the store was opened count as one. 0: there is nothing to
    /// give back.
    fn deletes(&self) -> u64 {
        0
    }

    /// Bytes in memory that a flush would write.
    ///
    /// # Errors
    /// [`StateError::Engine`]: the engine does not say.
    fn unflushed_bytes(&self) -> Result<u64, StateError> {
        Ok(0)
    }

    /// Gives the space of deleted records back, in the whole store or `within` a range, piece by piece, and returns when all
    /// was gone through. For each piece `spare_bytes` says how much may be written before anything becomes free; what needs
    /// more is passed over. `None` ends the round. Blocks for as long as that part of the store takes to be written anew.
    /// False: something was passed over.
    ///
    /// # Errors
    /// [`StateError::Engine`]: the device failed, and the node must stop.
    fn reclaim(
        &self,
        within: Option<&Span>,
        spare_bytes: &dyn Fn() -> Option<u64>,
    ) -> Result<bool, StateError> {
        let _ = (within, spare_bytes);
        Ok(true)
    }

    /// Bytes that each of these ranges has on disk, about; what was not flushed is in none of them. May read the disk. A
    /// store without a disk has none.
    fn disk_bytes(&self, spans: &[Span]) -> Vec<u64> {
        vec![0; spans.len()]
    }

    /// Ends the compactions that run, and begins no more: before the store closes. Nothing may be flushed after it.
    fn end_compactions(&self) {}

    /// Whether the engine is still able to work; polled, because it has no other way to tell.
    ///
    /// # Errors
    /// [`StateError::Engine`]: work in the background has failed, and the node must stop.
    fn check_health(&self) -> Result<(), StateError>;
}

/// Reads one moment of the state.
pub fn with_view<T>(engine: &dyn StateEngine, read: impl FnOnce(&dyn View) -> T) -> T {
    let mut read = Some(read);
    let mut result = None;
    engine.view(&mut |view| result = read.take().map(|read| read(view)));
    #[allow(
        clippy::expect_used,
        reason = "an engine that shows no view has a bug, and the state cannot be served"
    )]
    result.expect("an engine shows exactly one view")
}

/// The same without the disk. `None`: something that was asked for is not in memory.
pub fn with_view_in_memory<T>(engine: &dyn StateEngine, read: impl FnOnce(&dyn View) -> T) -> Option<T> {
    let mut read = Some(read);
    let mut result = None;
    let complete = engine.view_in_memory(&mut |view| result = read.take().map(|read| read(view)));
    result.filter(|_| complete)
}
