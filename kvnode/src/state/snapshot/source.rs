//! The sending side of a snapshot.

use std::{
    collections::BTreeMap,
    fmt, io,
    ops::ControlFlow,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use kv_proto::{
    disk::v1::LogId,
    peer::v1::{SnapshotChunk, SnapshotEnd},
};
use kv_topology::{Generation, ReplicaId};
use tokio::sync::{Semaphore, mpsc};

use super::{
    CHUNK_BYTES, OUTGOING_MAX, TABLE_BYTES,
    table::{Table, TableSink},
};
use crate::{
    state::{
        Direction, Span, StateEngine, StateError, View,
        engine::with_view,
        hub::Hooks,
        keys::{self, Scope},
        workers::Workers,
    },
    state_machine::replica::read_record,
};

/// Chunks that wait for the transport: 1 MiB.
const CHUNKS_AHEAD: usize = 4;

/// The ids that snapshots under way were announced with. The log after the lowest must stay.
#[derive(Debug, Default)]
pub struct Sending {
    ids: Mutex<BTreeMap<(u64, u64), LogId>>,
    next: std::sync::atomic::AtomicU64,
}

impl Sending {
    fn ids(&self) -> MutexGuard<'_, BTreeMap<(u64, u64), LogId>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lowest id.
    pub fn lowest(&self) -> Option<LogId> {
        self.ids().first_key_value().map(|(_, id)| *id)
    }

    /// Holds `id` until the value is dropped. Without an id nothing is held.
    pub fn hold(self: &Arc<Self>, id: Option<LogId>) -> Held {
        let token = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let key = id.map(|id| {
            self.ids().insert((id.index, token), id);
            (id.index, token)
        });
        Held { sending: self.clone(), key }
    }
}

/// Keeps the log after an id from being purged.
#[derive(Debug)]
pub struct Held {
    sending: Arc<Sending>,
    key: Option<(u64, u64)>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.sending.ids().remove(&key);
        }
    }
}

/// A replica's state, to be read when it is sent.
pub struct SnapshotSource {
    pub(crate) engine: Arc<dyn StateEngine>,
    pub(crate) workers: Workers,
    pub(crate) limit: Arc<Semaphore>,
    pub(crate) replica: ReplicaId,
    /// Told of damage that is met while it is read.
    pub(crate) hooks: Hooks,
    /// The log after the announced id stays until this is dropped.
    pub(crate) _held: Held,
}

impl fmt::Debug for SnapshotSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "snapshot of {}", self.replica)
    }
}

impl SnapshotSource {
    /// Reads the state as it is now, for a receiver's replica and new generation. Reading goes on in a thread of
    /// its own, as fast as chunks are taken; it ends when the receiver is dropped. The last chunk has an `end`.
    /// Without one, or after an error, nothing that came may be installed.
    ///
    /// The value must be kept until the receiver has answered: it keeps the log that follows.
    ///
    /// # Errors
    /// [`StateError::Busy`]: too many snapshots are being sent.
    pub fn stream(
        &self,
        receiver: ReplicaId,
        generation: Generation,
    ) -> Result<mpsc::Receiver<io::Result<SnapshotChunk>>, StateError> {
        let permit = self
            .limit
            .clone()
            .try_acquire_owned()
            .map_err(|_| StateError::Busy { what: "snapshots going out", limit: OUTGOING_MAX })?;
        let (engine, from, to) = (self.engine.clone(), self.replica, Scope::new(receiver, generation));
        let hooks = self.hooks.clone();
        match &self.workers {
            Workers::Simulated { .. } => {
                let mut chunks = Vec::new();
                let result = read(engine.as_ref(), from, to, TABLE_BYTES, &mut |chunk| {
                    chunks.push(Ok(chunk));
                    true
                });
                chunks.extend(result.err().map(|error| Err(told(&hooks, error))));
                let (sender, stream) = mpsc::channel(chunks.len().max(1));
                for chunk in chunks {
                    // There is room for each.
                    sender.try_send(chunk).ok();
                }
                Ok(stream)
            }
            Workers::Threads { threads, .. } => {
                let (sender, stream) = mpsc::channel(CHUNKS_AHEAD);
                let work = move || {
                    let _permit = permit;
                    let result = read(engine.as_ref(), from, to, TABLE_BYTES, &mut |chunk| {
                        sender.blocking_send(Ok(chunk)).is_ok()
                    });
                    if let Err(error) = result {
                        // The receiver may be gone; then nobody needs to know.
                        sender.blocking_send(Err(told(&hooks, error))).ok();
                    }
                };
                threads("snapshot", Box::new(work))
                    .map_err(|error| StateError::engine("start a snapshot thread", error))?;
                Ok(stream)
            }
        }
    }
}

/// Damage is the sender's: it must not vote or serve any more. Anything else ends this snapshot only.
fn told(hooks: &Hooks, error: StateError) -> io::Error {
    if let StateError::Damage(_) = error {
        hooks.tell(&error);
    }
    error.into()
}

/// Reads one moment of `replica` and shows it in chunks, under the names of `to`, until `take` answers false.
fn read(
    engine: &dyn StateEngine,
    replica: ReplicaId,
    to: Scope,
    table_bytes: u64,
    take: &mut dyn FnMut(SnapshotChunk) -> bool,
) -> Result<(), StateError> {
    with_view(engine, |view| {
        let record = read_record(view, replica)?
            .ok_or_else(|| StateError::BadSnapshot(format!("{replica} has no state to send")))?;
        let end = SnapshotEnd { last_log_id: record.applied, membership: record.membership };
        let mut rest = Some(Scope::new(replica, Generation(record.generation)).span());
        let mut file = 0;
        while let Some(span) = rest.take() {
            let table;
            (table, rest) = build(engine, view, &span, to, table_bytes)?;
            let end = if rest.is_none() { Some(&end) } else { None };
            if !send(table.as_ref(), file, end, take)? {
                return Ok(());
            }
            file += 1;
        }
        Ok(())
    })
}

/// Builds one table of the first records of `span`. Also what of the span is left.
fn build(
    engine: &dyn StateEngine,
    view: &dyn View,
    span: &Span,
    to: Scope,
    table_bytes: u64,
) -> Result<(Option<Table>, Option<Span>), StateError> {
    let mut rest = None;
    let table = engine.build_table(&mut |sink: &mut dyn TableSink| {
        let mut failure = None;
        view.scan(span, Direction::Forward, &mut |name, value| {
            if sink.bytes() >= table_bytes {
                rest = Some(Span { start: name.to_vec(), end: span.end.clone() });
                return ControlFlow::Break(());
            }
            // Every name in the span is longer than what is replaced.
            let moved = keys::moved_to(to, name).unwrap_or_default();
            match sink.put(&moved, value) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        failure.map_or(Ok(()), Err)
    })?;
    Ok((table, rest))
}

/// Sends one table; its last chunk is the snapshot's last when there is an `end`. False: the receiver is gone.
fn send(
    table: Option<&Table>,
    file: u32,
    end: Option<&SnapshotEnd>,
    take: &mut dyn FnMut(SnapshotChunk) -> bool,
) -> Result<bool, StateError> {
    let Some(table) = table else {
        let nothing = SnapshotChunk { file, end: end.cloned(), ..SnapshotChunk::default() };
        return Ok(take(nothing));
    };
    let mut going_on = true;
    table.read_pieces(CHUNK_BYTES, &mut |offset, data, last| {
        going_on = take(SnapshotChunk {
            file,
            offset,
            crc32c: crc32c::crc32c(&data),
            data: Bytes::from(data),
            end_of_file: last,
            end: if last { end.cloned() } else { None },
        });
        going_on
    })?;
    Ok(going_on)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Batch, memory::MemoryEngine};
    use kv_proto::disk::v1::ReplicaRecord;
    use prost::Message;

    fn chunks(engine: &MemoryEngine, table_bytes: u64) -> Vec<SnapshotChunk> {
        let mut chunks = Vec::new();
        let to = Scope::new(ReplicaId(9), Generation(4));
        read(engine, ReplicaId(1), to, table_bytes, &mut |chunk| {
            chunks.push(chunk);
            true
        })
        .unwrap();
        chunks
    }

    fn filled(records: u8) -> MemoryEngine {
        let engine = MemoryEngine::new();
        let mut batch = Batch::default();
        let record = ReplicaRecord { generation: 2, applied: None, membership: None };
        batch.put(keys::replica_record(ReplicaId(1)), record.encode_to_vec());
        for number in 0..records {
            let name = Scope::new(ReplicaId(1), Generation(2)).key(0.into(), &[number]);
            batch.put(name, vec![number; 100]);
        }
        engine.write(batch).unwrap();
        engine
    }

    #[test]
    fn a_large_state_comes_in_several_tables_and_only_the_last_chunk_ends_it() {
        let chunks = chunks(&filled(50), 1_000);
        assert!(chunks.len() > 3);
        assert!(chunks.iter().enumerate().all(|(number, chunk)| chunk.file as usize == number));
        assert!(chunks.iter().all(|chunk| chunk.end_of_file));
        let (last, before) = chunks.split_last().unwrap();
        assert!(last.end.is_some() && before.iter().all(|chunk| chunk.end.is_none()));
    }

    #[test]
    fn an_empty_state_is_one_chunk_without_bytes() {
        let chunks = chunks(&filled(0), 1_000);
        assert_eq!(chunks.len(), 1);
        assert!(chunks[0].data.is_empty() && !chunks[0].end_of_file && chunks[0].end.is_some());
    }

    #[test]
    fn the_lowest_of_the_ids_being_sent_is_held() {
        let sending = Arc::new(Sending::default());
        let at = |index| Some(LogId { term: 1, replica_id: 1, index });
        let five = sending.hold(at(5));
        let _nothing = sending.hold(None);
        let three = sending.hold(at(3));
        assert_eq!(sending.lowest(), at(3));
        drop(three);
        assert_eq!(sending.lowest(), at(5));
        drop(five);
        assert_eq!(sending.lowest(), None);
    }
}
