//! The receiving side of a snapshot: chunks are checked, written beside the store, and made durable.

use std::{fmt, sync::Arc};

use kv_proto::{
    disk::v1::ReplicaRecord,
    peer::v1::{SnapshotChunk, SnapshotEnd},
};
use kv_topology::{Generation, ReplicaId};
use prost::Message;
use tokio::sync::OwnedSemaphorePermit;

use super::{CHUNK_BYTES, table::Table};
use crate::state::{Span, StateEngine, StateError, keys, workers::Workers};

/// A snapshot that is being received. Dropping it forgets all of it.
pub struct SnapshotStage {
    engine: Arc<dyn StateEngine>,
    workers: Workers,
    permit: OwnedSemaphorePermit,
    replica: ReplicaId,
    generation: Generation,
    tables: Vec<Table>,
    /// The table whose end has not come, and its length so far.
    open: Option<(Table, u64)>,
    end: Option<SnapshotEnd>,
}

impl fmt::Debug for SnapshotStage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "snapshot for {} {}, {} tables", self.replica, self.generation, self.tables.len())
    }
}

fn bad(detail: impl Into<String>) -> StateError {
    StateError::BadSnapshot(detail.into())
}

/// Refuses a table with records of another replica or generation: the sender is at fault, and taken in they would
/// replace what is sound here. Records are sorted, so both ends are enough.
fn check_bounds(engine: &dyn StateEngine, table: &Table, allowed: &Span) -> Result<(), StateError> {
    let Some((first, last)) = engine.bounds(table)? else { return Err(bad("a table without records")) };
    if allowed.contains(&first) && allowed.contains(&last) {
        return Ok(());
    }
    Err(bad("the sender put records of another replica or generation into it"))
}

impl SnapshotStage {
    pub(crate) fn new(
        engine: Arc<dyn StateEngine>,
        workers: Workers,
        permit: OwnedSemaphorePermit,
        replica: ReplicaId,
        generation: Generation,
    ) -> Self {
        Self { engine, workers, permit, replica, generation, tables: Vec::new(), open: None, end: None }
    }

    /// What the sender must write its records under.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Takes the next chunk. Chunks come in order, without gaps.
    ///
    /// # Errors
    /// The chunk is damaged or not the next one, or the disk refuses: give up and drop the stage.
    pub async fn accept(&mut self, chunk: SnapshotChunk) -> Result<(), StateError> {
        self.check(&chunk)?;
        if !chunk.data.is_empty() {
            let (mut table, length) = match self.open.take() {
                Some(open) => open,
                None => (self.engine.receive_table()?, 0),
            };
            table.append(&chunk.data)?;
            self.open = Some((table, length + chunk.data.len() as u64));
        }
        if chunk.end_of_file {
            let (table, _) = self.open.take().ok_or_else(|| bad("a file of no bytes"))?;
            let (engine, allowed) = (self.engine.clone(), self.allowed());
            let keep = move || {
                table.sync()?;
                check_bounds(engine.as_ref(), &table, &allowed)?;
                Ok::<Table, StateError>(table)
            };
            let synced = self
                .workers
                .blocking("sync a snapshot", keep)
                .await
                .map_err(|error| StateError::engine("sync a snapshot", error))??;
            self.tables.push(synced);
        }
        self.end = chunk.end;
        Ok(())
    }

    /// The names that the announced replica and generation have.
    fn allowed(&self) -> Span {
        keys::generations(self.replica, self.generation, Generation(self.generation.0.saturating_add(1)))
    }

    fn check(&self, chunk: &SnapshotChunk) -> Result<(), StateError> {
        if self.end.is_some() {
            return Err(bad("a chunk after the end"));
        }
        let offset = self.open.as_ref().map_or(0, |(_, length)| *length);
        if chunk.file as usize != self.tables.len() || chunk.offset != offset {
            return Err(bad(format!(
                "chunk {}+{} came where {}+{offset} was to come",
                chunk.file,
                chunk.offset,
                self.tables.len()
            )));
        }
        if chunk.data.len() > CHUNK_BYTES {
            return Err(bad(format!("a chunk of {} B", chunk.data.len())));
        }
        if crc32c::crc32c(&chunk.data) != chunk.crc32c {
            return Err(bad(format!("chunk {}+{offset} does not match its CRC32C", chunk.file)));
        }
        Ok(())
    }

    /// All has come.
    ///
    /// # Errors
    /// It has not.
    pub fn finish(self) -> Result<StagedSnapshot, StateError> {
        if self.open.is_some() {
            return Err(bad("it ends within a file"));
        }
        let end = self.end.ok_or_else(|| bad("its end is missing"))?;
        Ok(StagedSnapshot {
            replica: self.replica,
            generation: self.generation,
            end,
            tables: self.tables,
            _permit: self.permit,
        })
    }
}

/// A snapshot that was received whole and is durable, though not yet part of the store.
pub struct StagedSnapshot {
    /// For whom.
    pub replica: ReplicaId,
    /// Under which its records lie.
    pub generation: Generation,
    /// What it holds.
    pub end: SnapshotEnd,
    tables: Vec<Table>,
    _permit: OwnedSemaphorePermit,
}

impl fmt::Debug for StagedSnapshot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "staged snapshot for {} {}", self.replica, self.generation)
    }
}

impl StagedSnapshot {
    /// Makes it the replica's state, with one durable step: its records and the record that names their generation.
    /// What was there before lies in older generations and is nobody's.
    ///
    /// # Errors
    /// Nothing was changed.
    pub(crate) fn install(self, engine: &dyn StateEngine) -> Result<(), StateError> {
        let record = ReplicaRecord {
            generation: self.generation.0,
            applied: self.end.last_log_id,
            membership: self.end.membership,
        };
        let name = keys::replica_record(self.replica);
        let switch = engine.build_table(&mut |sink| sink.put(&name, &record.encode_to_vec()))?;
        let switch = switch.ok_or_else(|| bad("the switch is empty"))?;
        switch.sync()?;
        let mut tables = self.tables;
        tables.push(switch);
        engine.ingest(tables)
    }
}
