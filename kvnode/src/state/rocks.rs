//! The state store on RocksDB: one column family, no write-ahead log.
//!
//! One column family, because then a flush of the memtable is a prefix of the writes: a replica's data and the id
//! up to which they were applied are on disk together or not at all. Layout of the folder: `db` is RocksDB's,
//! `staging` holds tables on their way in or out and is emptied at each start.

use std::{
    cell::Cell,
    fs, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use kv_topology::ReplicaId;
use rocksdb::{
    DB, DBRawIterator, ErrorKind, IngestExternalFileOptions, LiveFile, Options, Range, ReadOptions,
    SnapshotWithThreadMode, SstFileWriter, WriteBatch,
    properties::{BACKGROUND_ERRORS, CUR_SIZE_ALL_MEM_TABLES},
};

use super::{
    engine::{Batch, Bounds, Change, Direction, Span, StateEngine, View, Visitor},
    error::StateError,
    keys,
    options::{MemoryBudget, StateOptions},
    reclaim::{Piece, TableInfo, next_piece},
    snapshot::table::{StagedFile, Table, TableSink},
};
use crate::data_dir::{database, small_file::sync_folder};

/// RocksDB's, in the folder of the store.
const DATABASE: &str = "db";

/// The state store of a node on disk.
pub struct RocksEngine {
    database: DB,
    options: StateOptions,
    folder: PathBuf,
    staging: PathBuf,
    next_staged: AtomicU64,
    deletes: AtomicU64,
}

/// Why a state store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is damaged as a whole, and must be set aside.
    #[error("the state store is damaged: {0}")]
    Damaged(String),
    /// Anything else: no space, no permission, in use by another process.
    #[error(transparent)]
    Failed(#[from] StateError),
}

impl RocksEngine {
    /// Opens the store in folder `path`, which is made if it is not there.
    ///
    /// # Errors
    /// When the folder cannot be used, is used by another process, or is damaged.
    pub fn open(path: &Path, budget: MemoryBudget) -> Result<Self, OpenError> {
        let staging = path.join("staging");
        let options = StateOptions::new(budget);
        fs::create_dir_all(path).map_err(|error| StateError::engine("make the folder", error))?;
        let known = database::known_damage(path, DATABASE);
        if let Some(reason) = known.map_err(|error| StateError::engine("look into the folder", error))? {
            return Err(OpenError::Damaged(reason));
        }
        let opened = DB::open(&options.database, path.join(DATABASE)).map_err(|error| {
            if database::is_damage(&error) {
                OpenError::Damaged(error.to_string())
            } else {
                StateError::engine("open", error).into()
            }
        })?;
        // After the lock on the database was taken, so that no other process is using them.
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StateError::engine("empty the staging folder", error).into());
            }
            Ok(()) | Err(_) => {}
        }
        fs::create_dir(&staging).map_err(|error| StateError::engine("make the staging folder", error))?;
        // RocksDB syncs what is in its folder, and nobody but we the names of that folder and of the one around it:
        // without them a flush would be lost whole with the power, after the log that it covers was purged.
        for folder in path.ancestors().take(2) {
            sync_folder(folder).map_err(|error| StateError::engine("sync the folder", error))?;
        }
        Ok(Self {
            database: opened,
            options,
            folder: path.to_owned(),
            staging,
            next_staged: AtomicU64::new(0),
            // There may be some from before.
            deletes: AtomicU64::new(1),
        })
    }

    /// Damage that stops all writing was met by the background, which will meet it again at every start.
    fn failed(&self, operation: &'static str, error: &rocksdb::Error) -> StateError {
        if error.kind() == ErrorKind::Corruption {
            database::mark_damaged(&self.folder, error.as_ref());
        }
        StateError::engine(operation, error)
    }

    fn write_native(&self, batch: WriteBatch, deletes: u64) -> Result<(), StateError> {
        self.database.write_opt(batch, &self.options.write).map_err(|error| self.failed("write", &error))?;
        self.deletes.fetch_add(deletes, Ordering::Relaxed);
        Ok(())
    }

    fn tables(&self) -> Result<Vec<TableInfo>, StateError> {
        let files = self.database.live_files().map_err(|error| StateError::engine("list tables", error))?;
        let info = |file: LiveFile| {
            Some(TableInfo {
                level: u32::try_from(file.level).ok()?,
                first: file.start_key?,
                last: file.end_key?,
                bytes: file.size as u64,
                // After a start RocksDB has read what is in some tables only; no table is empty.
                deletes: if file.num_entries == 0 { 1 } else { file.num_deletions },
            })
        };
        Ok(files.into_iter().filter_map(info).collect())
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

/// One moment of the store as far as it is in memory.
struct MemoryView<'a> {
    snapshot: SnapshotWithThreadMode<'a, DB>,
    /// Something was not.
    missed: Cell<bool>,
}

impl MemoryView<'_> {
    fn miss(&self) -> StateError {
        self.missed.set(true);
        StateError::Busy { what: "reads of memory", limit: 0 }
    }
}

impl View for MemoryView<'_> {
    fn get(&self, name: &[u8]) -> Result<Option<Bytes>, StateError> {
        match self.snapshot.get_opt(name, StateOptions::read_memory()) {
            Ok(value) => Ok(value.map(Bytes::from)),
            Err(error) if error.kind() == ErrorKind::Incomplete => Err(self.miss()),
            Err(error) => Err(failed_read("get", name, &error)),
        }
    }

    /// A scan may be long, in memory too.
    fn scan(&self, _: &Span, _: Direction, _: &mut Visitor<'_>) -> Result<(), StateError> {
        Err(self.miss())
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
        let mut deletes = 0;
        for change in &batch.changes {
            match change {
                Change::Put { name, value } => native.put(name, value),
                Change::Delete { name } => {
                    deletes += 1;
                    native.delete(name);
                }
                Change::DeleteRange(span) => {
                    deletes += 1;
                    native.delete_range(&span.start, &span.end);
                }
            }
        }
        self.write_native(native, deletes)
    }

    fn write_in_order(&self, records: &[(&[u8], Option<&Bytes>)]) -> Result<(), StateError> {
        let bytes = |(name, value): &(&[u8], Option<&Bytes>)| name.len() + value.map_or(0, Bytes::len) + 16;
        let mut native = WriteBatch::with_capacity_bytes(records.iter().map(bytes).sum());
        let mut deletes = 0;
        for (name, value) in records {
            match value {
                Some(value) => native.put(name, value),
                None => {
                    deletes += 1;
                    native.delete(name);
                }
            }
        }
        self.write_native(native, deletes)
    }

    fn view(&self, read: &mut dyn FnMut(&dyn View)) {
        read(&PinnedView(self.database.snapshot()));
    }

    fn view_in_memory(&self, read: &mut dyn FnMut(&dyn View)) -> bool {
        let view = MemoryView { snapshot: self.database.snapshot(), missed: Cell::new(false) };
        read(&view);
        !view.missed.get()
    }

    fn flush(&self) -> Result<(), StateError> {
        self.database.flush().map_err(|error| self.failed("flush", &error))
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

    fn bounds(&self, table: &Table) -> Result<Option<Bounds>, StateError> {
        let Table::File(file) = table else {
            return Err(StateError::BadSnapshot("a table in memory was given to RocksDB".to_owned()));
        };
        bounds_of(file.path())
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
        sync_folder(&self.staging).map_err(|error| StateError::engine("sync the staging folder", error))?;
        self.database.ingest_external_file_opts(&self.options.ingest, paths).map_err(|error| {
            match error.kind() {
                ErrorKind::Corruption | ErrorKind::InvalidArgument => {
                    StateError::BadSnapshot(error.to_string())
                }
                _ => StateError::engine("ingest", error),
            }
        })
    }

    fn deletes(&self) -> u64 {
        self.deletes.load(Ordering::Relaxed)
    }

    fn unflushed_bytes(&self) -> Result<u64, StateError> {
        let bytes = self.database.property_int_value(CUR_SIZE_ALL_MEM_TABLES);
        Ok(bytes.map_err(|error| StateError::engine("look at memory", error))?.unwrap_or(0))
    }

    fn reclaim(
        &self,
        within: Option<&Span>,
        spare_bytes: &dyn Fn() -> Option<u64>,
    ) -> Result<bool, StateError> {
        // Deletes in memory are in no table yet, and those of whole replicas and generations wait for no flush.
        self.flush()?;
        let end = within.map(|span| &span.end);
        let (mut from, mut whole) = (within.map_or_else(Vec::new, |span| span.start.clone()), true);
        loop {
            let Some(spare_bytes) = spare_bytes() else { return Ok(false) };
            let piece = next_piece(&self.tables()?, &from, spare_bytes);
            let inside = |piece: &Piece| end.is_none_or(|end| piece.first < *end);
            let Some(piece) = piece.filter(inside) else { return Ok(whole) };
            whole &= piece.fits;
            if piece.fits {
                // A piece ends where a table does, which may be in what others have.
                let last = end.map_or(&piece.last, |end| end.min(&piece.last));
                self.database.compact_range_opt(Some(&piece.first), Some(last), &StateOptions::reclaim());
                // It does not say itself whether it failed.
                self.check_health()?;
            }
            from = piece.after();
        }
    }

    fn disk_bytes(&self, spans: &[Span]) -> Vec<u64> {
        let ranges: Vec<Range<'_>> = spans.iter().map(|span| Range::new(&span.start, &span.end)).collect();
        self.database.get_approximate_sizes(&ranges)
    }

    fn end_compactions(&self) {
        self.database.cancel_all_background_work(false);
    }

    fn check_health(&self) -> Result<(), StateError> {
        let errors = self
            .database
            .property_int_value(BACKGROUND_ERRORS)
            .map_err(|error| StateError::engine("poll background errors", error))?;
        match errors {
            None | Some(0) => Ok(()),
            Some(count) => {
                // A write that changes nothing is refused with what stopped the background.
                self.write(Batch::default())?;
                Err(StateError::engine("work in the background", format!("{count} errors")))
            }
        }
    }
}

/// The first and the last name in an SST file. The binding has no reader of single files, so the file is linked into a
/// database of its own, which looks at both ends when it takes it in.
fn bounds_of(file: &Path) -> Result<Option<Bounds>, StateError> {
    let scratch = file.with_extension("bounds");
    let found = look_at(file, &scratch);
    // What is left behind goes at the next start, with the rest of the staging folder.
    fs::remove_dir_all(&scratch).ok();
    found
}

fn look_at(file: &Path, scratch: &Path) -> Result<Option<Bounds>, StateError> {
    let unreadable = |error: rocksdb::Error| match error.kind() {
        ErrorKind::IOError => StateError::engine("look at a table", error),
        _ => StateError::BadSnapshot(error.to_string()),
    };
    let linked = file.with_extension("linked");
    fs::hard_link(file, &linked).map_err(|error| StateError::engine("link a table", error))?;
    // Gone when it was moved into the database.
    let linked = StagedFile::new(linked);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_disable_auto_compactions(true);
    let database = DB::open(&options, scratch).map_err(unreadable)?;
    let mut ingest = IngestExternalFileOptions::default();
    ingest.set_move_files(true);
    database.ingest_external_file_opts(&ingest, vec![linked.path()]).map_err(unreadable)?;
    let files = database.live_files().map_err(unreadable)?;
    let first = files.iter().filter_map(|file| file.start_key.clone()).min();
    Ok(first.zip(files.iter().filter_map(|file| file.end_key.clone()).max()))
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
