//! Uploads: begin, chunks in order, commit or abort; and the sweep of those that nobody goes on with.
//!
//! ```text
//!            begin            chunk 0, 1, …            commit
//!  nothing ────────► record ────────────────► record ────────► key names the upload, record gone
//!                       └──── abort, or 10 minutes of log time without a chunk ───► nothing
//! ```
//!
//! Invariants: a record's counters are those of its chunks, since both change in one batch; all chunks but the last
//! have [`CHUNK_BYTES`]; chunks belong to a record or to a key that names their upload, never to both or neither.
//! Nothing here hashes a value: the SHA-256 was computed by the node that received it.

use std::ops::ControlFlow;

use bytes::Bytes;
use kv_proto::{
    disk::v1::{
        BlobReference, ChunkRecord, KeyRecord, UploadAbort, UploadBegin, UploadChunk, UploadCommit,
        UploadRecord, key_record,
    },
    peer::v1::{Done, UploadOutcome, outcome},
};
use kv_topology::KeyspaceId;
use prost::Message;

use super::{
    apply::{Rejection, Step, described},
    limits::{CHUNK_BYTES, SWEPT_UPLOADS_MAX, UPLOAD_IDLE_MS},
    precondition, refusal, slots, value,
};
use crate::state::{
    StateError,
    keys::{Name, UploadId},
};

fn upload_id(bytes: &[u8]) -> Result<UploadId, Rejection> {
    UploadId::try_from(bytes).map_err(|_| refusal::invalid("upload_id", "has 16 B").into())
}

fn find(step: &Step<'_, '_>, id: &UploadId) -> Result<Option<UploadRecord>, StateError> {
    let bytes = step.overlay.get(&step.scope.upload(id))?;
    bytes.map(|bytes| value::decode(step.scope.replica, "an upload's record", bytes)).transpose()
}

/// The record of an upload of this key; refused when there is none.
fn of_key(
    step: &Step<'_, '_>,
    keyspace: KeyspaceId,
    key: &[u8],
    id: &UploadId,
) -> Result<UploadRecord, Rejection> {
    find(step, id)?
        .filter(|record| record.key == key && record.keyspace_id == keyspace.0)
        .ok_or_else(|| refusal::upload_not_found().into())
}

fn remove(step: &mut Step<'_, '_>, keyspace: KeyspaceId, id: &UploadId) {
    step.overlay.delete(step.scope.upload(id));
    step.overlay.delete_range(step.scope.chunks(keyspace, id, 0));
}

fn progress(record: &UploadRecord, applied: bool) -> UploadOutcome {
    UploadOutcome { applied, kv: None, next_chunk: record.chunks, stored_bytes: record.size_bytes }
}

/// Begins an upload. Again with the same id: says how far it has come.
pub(crate) fn begin(
    step: &mut Step<'_, '_>,
    keyspace: KeyspaceId,
    begin: &UploadBegin,
) -> Result<UploadOutcome, Rejection> {
    slots::check(step.group, keyspace, &begin.key)?;
    let id = upload_id(&begin.upload_id)?;
    if let Some(record) = find(step, &id)? {
        if record.key != begin.key || record.keyspace_id != keyspace.0 {
            return Err(refusal::invalid("upload_id", "is of an upload of another key").into());
        }
        return Ok(progress(&record, true));
    }
    let current = step.key(keyspace, &begin.key)?;
    // Without a record, chunks of this id are a committed value: they are not to be written over.
    let committed = step.overlay.get(&step.scope.chunk(keyspace, &id, 0))?.is_some()
        || current.as_ref().is_some_and(|record| names(record, &id));
    if committed {
        return Err(refusal::failed_precondition("UPLOAD_COMMITTED", "the upload was committed").into());
    }
    if !precondition::holds(begin.precondition.as_ref(), current.as_ref()) {
        let kv = described(&begin.key, current.as_ref());
        return Ok(UploadOutcome { applied: false, kv, ..UploadOutcome::default() });
    }
    let record = UploadRecord {
        key: begin.key.clone(),
        keyspace_id: keyspace.0,
        precondition: begin.precondition,
        chunks: 0,
        size_bytes: 0,
        touched_ms: step.group.log_time_ms,
    };
    step.overlay.put(step.scope.upload(&id), record.encode_to_vec());
    Ok(progress(&record, true))
}

/// Takes the next chunk, or the last one again. Any other is not applied, and the outcome says which comes next.
pub(crate) fn chunk(
    step: &mut Step<'_, '_>,
    keyspace: KeyspaceId,
    chunk: &UploadChunk,
) -> Result<UploadOutcome, Rejection> {
    slots::check(step.group, keyspace, &chunk.key)?;
    let id = upload_id(&chunk.upload_id)?;
    let mut record = of_key(step, keyspace, &chunk.key, &id)?;
    if chunk.number.checked_add(1) == Some(record.chunks) {
        return repeat(step, keyspace, chunk, &id, &record);
    }
    if chunk.number != record.chunks {
        return Ok(progress(&record, false));
    }
    if record.size_bytes != u64::from(record.chunks) * CHUNK_BYTES as u64 {
        let message = format!("nothing follows a chunk shorter than {CHUNK_BYTES} B");
        return Err(refusal::invalid("number", message).into());
    }
    let Some(chunks) = record.chunks.checked_add(1) else {
        return Err(refusal::invalid("number", "is the greatest").into());
    };
    record.chunks = chunks;
    record.size_bytes += chunk.data.len() as u64;
    record.touched_ms = step.group.log_time_ms;
    let stored = ChunkRecord { data: chunk.data.clone(), crc32c: chunk.crc32c };
    step.overlay.put(step.scope.chunk(keyspace, &id, chunk.number), stored.encode_to_vec());
    step.overlay.put(step.scope.upload(&id), record.encode_to_vec());
    Ok(progress(&record, true))
}

fn repeat(
    step: &Step<'_, '_>,
    keyspace: KeyspaceId,
    chunk: &UploadChunk,
    id: &UploadId,
    record: &UploadRecord,
) -> Result<UploadOutcome, Rejection> {
    let bytes = step.overlay.get(&step.scope.chunk(keyspace, id, chunk.number))?;
    let bytes = bytes.ok_or_else(|| missing_chunk(step, chunk.number))?;
    let stored: ChunkRecord = value::decode(step.scope.replica, "a chunk", bytes)?;
    if stored.crc32c != chunk.crc32c || stored.data.len() != chunk.data.len() {
        return Err(refusal::invalid("data", "is not what this chunk had before").into());
    }
    Ok(progress(record, true))
}

fn missing_chunk(step: &Step<'_, '_>, number: u32) -> StateError {
    StateError::damage(step.scope.replica, format!("chunk {number} of an upload is missing"))
}

/// Makes the value visible, if all of it is there and its precondition still holds. Again: says that it is visible.
pub(crate) fn commit(
    step: &mut Step<'_, '_>,
    keyspace: KeyspaceId,
    commit: &UploadCommit,
) -> Result<UploadOutcome, Rejection> {
    slots::check(step.group, keyspace, &commit.key)?;
    let id = upload_id(&commit.upload_id)?;
    let current = step.key(keyspace, &commit.key)?;
    if let Some(record) = current.as_ref().filter(|record| names(record, &id)) {
        return Ok(committed(&commit.key, record));
    }
    let record = of_key(step, keyspace, &commit.key, &id)?;
    if record.chunks != commit.chunks || record.size_bytes != commit.size_bytes {
        let message = format!("the store has {} chunks, {} B", record.chunks, record.size_bytes);
        return Err(refusal::failed_precondition("UPLOAD_INCOMPLETE", message).into());
    }
    if !precondition::holds(record.precondition.as_ref(), current.as_ref()) {
        remove(step, keyspace, &id);
        let kv = described(&commit.key, current.as_ref());
        return Ok(UploadOutcome { applied: false, kv, ..UploadOutcome::default() });
    }
    let blob = BlobReference {
        upload_id: commit.upload_id.clone(),
        size_bytes: record.size_bytes,
        chunks: record.chunks,
        sha256: commit.sha256.clone(),
    };
    let revision = step.next_revision();
    let written =
        step.set_key(keyspace, &commit.key, current.as_ref(), key_record::Value::Blob(blob), revision);
    step.overlay.delete(step.scope.upload(&id));
    step.group.revision = revision;
    Ok(committed(&commit.key, &written))
}

fn names(record: &KeyRecord, id: &UploadId) -> bool {
    match &record.value {
        Some(key_record::Value::Blob(blob)) => blob.upload_id == id.as_slice(),
        Some(key_record::Value::Inline(_)) | None => false,
    }
}

fn committed(key: &Bytes, record: &KeyRecord) -> UploadOutcome {
    let (chunks, bytes) = match &record.value {
        Some(key_record::Value::Blob(blob)) => (blob.chunks, blob.size_bytes),
        Some(key_record::Value::Inline(_)) | None => (0, 0),
    };
    UploadOutcome { applied: true, kv: described(key, Some(record)), next_chunk: chunks, stored_bytes: bytes }
}

/// Forgets an upload. One that is not going on (any more) is left alone, and so is its value.
pub(crate) fn abort(
    step: &mut Step<'_, '_>,
    keyspace: KeyspaceId,
    abort: &UploadAbort,
) -> Result<UploadOutcome, Rejection> {
    slots::check(step.group, keyspace, &abort.key)?;
    let id = upload_id(&abort.upload_id)?;
    match of_key(step, keyspace, &abort.key, &id) {
        Ok(record) => {
            remove(step, keyspace, &id);
            Ok(UploadOutcome { applied: true, stored_bytes: record.size_bytes, ..UploadOutcome::default() })
        }
        Err(Rejection::Refused(_)) => Ok(UploadOutcome::default()),
        Err(stop @ Rejection::Stop(_)) => Err(stop),
    }
}

/// Forgets the first uploads, in the order of their ids, that were not touched for ten minutes of log time.
pub(crate) fn sweep(step: &mut Step<'_, '_>) -> Result<outcome::Result, Rejection> {
    let mut idle = Vec::new();
    let mut damage = None;
    let now_ms = step.group.log_time_ms;
    step.overlay.scan(&step.scope.uploads(), &mut |name, bytes| {
        match look(step, name, bytes) {
            Ok((id, record)) if record.touched_ms.saturating_add(UPLOAD_IDLE_MS) <= now_ms => {
                idle.push((KeyspaceId(record.keyspace_id), id));
            }
            Ok(_) => {}
            Err(error) => damage = Some(error),
        }
        if idle.len() == SWEPT_UPLOADS_MAX || damage.is_some() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    if let Some(error) = damage {
        return Err(error.into());
    }
    for (keyspace, id) in idle {
        remove(step, keyspace, &id);
    }
    Ok(outcome::Result::Done(Done {}))
}

fn look(step: &Step<'_, '_>, name: &[u8], bytes: &[u8]) -> Result<(UploadId, UploadRecord), StateError> {
    let id = Name::parse(name).and_then(|name| name.upload_id());
    let id = id.ok_or_else(|| StateError::damage(step.scope.replica, "the name of an upload's record"))?;
    let record = value::decode(step.scope.replica, "an upload's record", Bytes::copy_from_slice(bytes))?;
    Ok((id, record))
}
