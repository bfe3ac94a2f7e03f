//! The state store on RocksDB: one column family, no write-ahead log.
//!
//! One column family, because then a flush of the memtable is a prefix of the writes: a replica's data and the id
//! up to which they were applied are on disk together or not at all. Layout of the folder: `db` is RocksDB's,
//! `staging` holds tables on their way in or out and is emptied at each start.

use std::{
    fs, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use kv_topology::ReplicaId;
use rocksdb::{
    DB, DBRawIterator, ErrorKind, ReadOptions, SnapshotWithThreadMode, SstFileWriter, WriteBatch,
    properties::BACKGROUND_ERRORS,
};

use super::{
    engine::{Batch, Change, Direction, Span, StateEngine, View, Visitor},
    error::StateError,
    keys,
    options::{MemoryBudget, StateOptions},
    snapshot::table::{StagedFile, Table, TableSink},
};

/// The state store of a node on disk.
pub struct RocksEngine {
    database: DB,
    options: StateOptions,
    staging: PathBuf,
    next_staged: AtomicU64,
}

impl RocksEngine {
    /// Opens the store in folder `path`, which is made if it is not there.
    ///
    /// # Errors
    /// When the folder cannot be used, is used by another process, or RocksDB finds it damaged.
    pub fn open(path: &Path, budget: MemoryBudget) -> Result<Self, StateError> {
        let staging = path.join("staging");
        let options = StateOptions::new(budget);
        fs::create_dir_all(path).map_err(|error| StateError::engine("make the folder", error))?;
        let database = DB::open(&options.database, path.join("db"))
            .map_err(|error| StateError::engine("open", error))?;
        // After the lock on the database was taken, so that no other process is using them.
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StateError::engine("empty the staging folder", error));
            }
            Ok(()) | Err(_) => {}
        }
        fs::create_dir(&staging).map_err(|error| StateError::engine("make the staging folder", error))?;
        Ok(Self { database, options, staging, next_staged: AtomicU64::new(0) })
    }

    fn stage(&self) -> StagedFile {
        let number = self.next_staged.fetch_add(1, Ordering::Relaxed);
        StagedFile::new(self.staging.join(format!("{number:06}.sst")))
    }
}

/// A checksum failure of a read belongs to the replica whose records were read; anything else to the node.
fn failed_read(operation: &'static str, name: &[u8], error: &rocksdb::Error) -> StateError {
    match error.kind() {
        ErrorKind::Corruption => {
            StateError::damage(keys::owner(name).unwrap_or(ReplicaId(0)), format!("{operation}: {error}"))
        }
        _ => StateError::engine(operation, error),
    }
}

fn scan(
    mut iterator: DBRawIterator<'_>,
    span: &Span,
    direction: Direction,
    visit: &mut Visitor<'_>,
) -> Result<(), StateError> {
    match direction {
        Direction::Forward => iterator.seek_to_first(),
        Direction::Reverse => iterator.seek_to_last(),
    }
    while let Some((name, value)) = iterator.item() {
        if visit(name, value) == ControlFlow::Break(()) {
            return Ok(());
        }
        match direction {
            Direction::Forward => iterator.next(),
            Direction::Reverse => iterator.prev(),
        }
    }
    // It ends at the end of the range and at an error alike.
    iterator.status().map_err(|error| failed_read("scan", &span.start, &error))
}

fn bounded(mut options: ReadOptions, span: &Span) -> ReadOptions {
    options.set_iterate_lower_bound(span.start.clone());
    options.set_iterate_upper_bound(span.end.clone());
    options
}

impl View for RocksEngine {
    fn get(&self, name: &[u8]) -> Result<Option<Bytes>, StateError> {
        let value = self
            .database
            .get_opt(name, &StateOptions::read())
            .map_err(|error| failed_read("get", name, &error))?;
        Ok(value.map(Bytes::from))
    }

    fn scan(&self, span: &Span, direction: Direction, visit: &mut Visitor<'_>) -> Result<(), StateError> {
        if span.is_empty() {
            return Ok(());
        }
        let iterator = self.database.raw_iterator_opt(bounded(StateOptions::read(), span));
        scan(iterator, span, direction, visit)
    }
}

/// One moment of the store.
struct PinnedView<'a>(SnapshotWithThreadMode<'a, DB>);

impl View for PinnedView<'_> {
    fn get(&self, name: &[u8]) -> Result<Option<Bytes>, StateError> {
        let value =
            self.0.get_opt(name, StateOptions::read()).map_err(|error| failed_read("get", name, &error))?;
        Ok(value.map(Bytes::from))
    }

    fn scan(&self, span: &Span, direction: Direction, visit: &mut Visitor<'_>) -> Result<(), StateError> {
        if span.is_empty() {
            return Ok(());
        }
        // A range with a whole replica in it is read once, for a snapshot.
        let options = match span.start.len() {
            keys::SCOPE_BYTES => StateOptions::read_all(),
            _ => StateOptions::read(),
        };
        scan(self.0.raw_iterator_opt(bounded(options, span)), span, direction, visit)
    }
}

impl StateEngine for RocksEngine {
    fn get_persisted(&self, name: &[u8]) -> Result<Option<Bytes>, StateError> {
        let value = self
            .database
            .get_opt(name, &StateOptions::read_persisted())
            .map_err(|error| failed_read("get what is on disk", name, &error))?;
        Ok(value.map(Bytes::from))
    }

    fn write(&self, batch: Batch) -> Result<(), StateError> {
        let mut native = WriteBatch::default();
        for change in &batch.changes {
            match change {
                Change::Put { name, value } => native.put(name, value),
                Change::Delete { name } => native.delete(name),
                Change::DeleteRange(span) => native.delete_range(&span.start, &span.end),
            }
        }
        self.database
            .write_opt(native, &self.options.write)
            .map_err(|error| StateError::engine("write", error))
    }

    fn view(&self, read: &mut dyn FnMut(&dyn View)) {
        read(&PinnedView(self.database.snapshot()));
    }

    fn flush(&self) -> Result<(), StateError> {
        self.database.flush().map_err(|error| StateError::engine("flush", error))
    }

    fn build_table(
        &self,
        fill: &mut dyn FnMut(&mut dyn TableSink) -> Result<(), StateError>,
    ) -> Result<Option<Table>, StateError> {
        let failed = |error| StateError::engine("build a table", error);
        let file = self.stage();
        let writer = SstFileWriter::create(&self.options.database);
        writer.open(file.path()).map_err(failed)?;
        let mut sink = SstSink { writer, records: 0, bytes: 0 };
        fill(&mut sink)?;
        if sink.records == 0 {
            return Ok(None);
        }
        sink.writer.finish().map_err(failed)?;
        Ok(Some(Table::File(file)))
    }

    fn receive_table(&self) -> Result<Table, StateError> {
        Ok(Table::File(self.stage()))
    }

    fn ingest(&self, tables: Vec<Table>) -> Result<(), StateError> {
        let mut paths = Vec::with_capacity(tables.len());
        for table in &tables {
            match table {
                Table::File(file) => paths.push(file.path().to_owned()),
                Table::Memory(_) => {
                    return Err(StateError::BadSnapshot("a table in memory was given to RocksDB".to_owned()));
                }
            }
        }
        // The names of the new tables and of the staging folder itself, before RocksDB links them.
        fs::File::open(&self.staging)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| StateError::engine("sync the staging folder", error))?;
        self.database.ingest_external_file_opts(&self.options.ingest, paths).map_err(|error| {
            match error.kind() {
                ErrorKind::Corruption | ErrorKind::InvalidArgument => {
                    StateError::BadSnapshot(error.to_string())
                }
                _ => StateError::engine("ingest", error),
            }
        })
    }

    fn check_health(&self) -> Result<(), StateError> {
        let errors = self
            .database
            .property_int_value(BACKGROUND_ERRORS)
            .map_err(|error| StateError::engine("poll background errors", error))?;
        match errors {
            None | Some(0) => Ok(()),
            Some(count) => Err(StateError::engine("work in the background", format!("{count} errors"))),
        }
    }
}

/// Writes an SST file.
struct SstSink<'a> {
    writer: SstFileWriter<'a>,
    records: u64,
    /// Of names and values. The writer's own count lags behind by its buffers.
    bytes: u64,
}

impl TableSink for SstSink<'_> {
    fn put(&mut self, name: &[u8], value: &[u8]) -> Result<(), StateError> {
        self.writer.put(name, value).map_err(|error| StateError::engine("build a table", error))?;
        self.records += 1;
        self.bytes += (name.len() + value.len()) as u64;
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}
