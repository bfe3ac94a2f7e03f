//! What an operation must look like, whatever the state is.
//!
//! The proposer calls [`validate`] on every operation before it goes into an entry; apply calls the same checks
//! again. They differ in one thing: bytes that do not match their checksum are refused by the proposer, and stop
//! the replica in apply, because there they were right when they were proposed.

use kv_proto::{
    disk::v1::{Operation, operation::Kind, txn_operation},
    peer::v1::Refusal,
};

use super::{
    limits::{CHUNK_BYTES, KEY_BYTES_MAX, SESSION_TTL_MAX_MS, SESSION_TTL_MIN_MS, VALUE_BYTES_MAX},
    precondition, refusal, slots, txn,
};
use crate::state::keys::UPLOAD_ID_BYTES;

/// Checks an operation before it is proposed.
///
/// # Errors
/// The refusal, which names the field.
pub fn validate(operation: &Operation) -> Result<(), Refusal> {
    let Some(kind) = &operation.kind else {
        return Err(refusal::invalid("kind", "is not known"));
    };
    check_stamp(operation, kind)?;
    check_shape(kind)?;
    match damaged(kind) {
        Some(what) => Err(refusal::invalid("value", what)),
        None => Ok(()),
    }
}

/// Checks which write of which session it is: all of that or nothing, and only of writes that a session can keep.
///
/// # Errors
/// The refusal, which names the field.
pub(crate) fn check_stamp(operation: &Operation, kind: &Kind) -> Result<(), Refusal> {
    let Operation { session_id, sequence, lowest_outstanding, .. } = *operation;
    if session_id == 0 {
        return match (sequence, lowest_outstanding) {
            (0, 0) => Ok(()),
            (0, _) => Err(refusal::invalid("lowest_outstanding", "only together with session_id")),
            (_, _) => Err(refusal::invalid("sequence", "only together with session_id")),
        };
    }
    if !matches!(kind, Kind::Put(_) | Kind::Delete(_) | Kind::Txn(_)) {
        return Err(refusal::invalid("session_id", "not for operations of this kind"));
    }
    if sequence == 0 {
        return Err(refusal::invalid("sequence", "begins with 1"));
    }
    if lowest_outstanding == 0 || lowest_outstanding > sequence {
        return Err(refusal::invalid("lowest_outstanding", "has 1 to the sequence"));
    }
    Ok(())
}

/// Checks all but checksums.
///
/// # Errors
/// The refusal, which names the field.
pub(crate) fn check_shape(kind: &Kind) -> Result<(), Refusal> {
    match kind {
        Kind::Put(put) => {
            check_key("key", &put.key)?;
            check_value("value", &put.value)?;
            precondition::check_shape(put.precondition.as_ref())
        }
        Kind::Delete(delete) => {
            check_key("key", &delete.key)?;
            precondition::check_shape(delete.precondition.as_ref())
        }
        Kind::DeleteRange(range) => {
            check_bound("range.start", &range.start)?;
            check_bound("range.end", &range.end)
        }
        Kind::Txn(txn) => txn::check_shape(txn),
        Kind::UploadBegin(begin) => {
            check_upload(&begin.key, &begin.upload_id)?;
            precondition::check_shape(begin.precondition.as_ref())
        }
        Kind::UploadChunk(chunk) => {
            check_upload(&chunk.key, &chunk.upload_id)?;
            if chunk.data.is_empty() || chunk.data.len() > CHUNK_BYTES {
                return Err(refusal::invalid("data", format!("has 1 B to {CHUNK_BYTES} B")));
            }
            Ok(())
        }
        Kind::UploadCommit(commit) => {
            check_upload(&commit.key, &commit.upload_id)?;
            if commit.sha256.len() != 32 {
                return Err(refusal::invalid("sha256", "has 32 B"));
            }
            Ok(())
        }
        Kind::UploadAbort(abort) => check_upload(&abort.key, &abort.upload_id),
        Kind::OwnSlots(own) => slots::check_shape(own),
        Kind::OpenSession(open) => {
            if !(SESSION_TTL_MIN_MS..=SESSION_TTL_MAX_MS).contains(&open.ttl_ms) {
                let message = format!("has {SESSION_TTL_MIN_MS} to {SESSION_TTL_MAX_MS}");
                return Err(refusal::invalid("ttl_ms", message));
            }
            Ok(())
        }
        // As with an operation, what an older node passes on has lost the command that it did not know.
        Kind::Meta(command) if command.command.is_none() => Err(refusal::invalid("command", "is not known")),
        Kind::Tick(_) | Kind::CloseSession(_) | Kind::Recovered(_) | Kind::Meta(_) => Ok(()),
    }
}

/// What does not match its checksum, if anything.
pub(crate) fn damaged(kind: &Kind) -> Option<&'static str> {
    let sound = |data: &[u8], crc32c: u32| crc32c::crc32c(data) == crc32c;
    let what = "a value that does not match its CRC32C";
    match kind {
        Kind::Put(put) => (!sound(&put.value, put.value_crc32c)).then_some(what),
        Kind::UploadChunk(chunk) => {
            (!sound(&chunk.data, chunk.crc32c)).then_some("a chunk that does not match its CRC32C")
        }
        Kind::Txn(txn) => txn
            .then
            .iter()
            .chain(&txn.r#else)
            .any(|operation| match &operation.operation {
                Some(txn_operation::Operation::Put(put)) => !sound(&put.value, put.value_crc32c),
                Some(txn_operation::Operation::Get(_) | txn_operation::Operation::Delete(_)) | None => false,
            })
            .then_some(what),
        Kind::Delete(_)
        | Kind::DeleteRange(_)
        | Kind::UploadBegin(_)
        | Kind::UploadCommit(_)
        | Kind::UploadAbort(_)
        | Kind::OwnSlots(_)
        | Kind::Tick(_)
        | Kind::OpenSession(_)
        | Kind::CloseSession(_)
        | Kind::Recovered(_)
        | Kind::Meta(_) => None,
    }
}

/// A key has 1 B to 4 KiB.
pub(crate) fn check_key(field: &str, key: &[u8]) -> Result<(), Refusal> {
    if key.is_empty() {
        return Err(refusal::invalid(field, "is empty"));
    }
    check_bound(field, key)
}

/// A bound of a range is a key, or empty, or just above a key.
fn check_bound(field: &str, key: &[u8]) -> Result<(), Refusal> {
    // A client's bound may be its last key with a zero byte after it.
    let limit = if field.starts_with("range") { KEY_BYTES_MAX + 1 } else { KEY_BYTES_MAX };
    if key.len() > limit {
        return Err(refusal::invalid(field, format!("has {} B, more than {KEY_BYTES_MAX} B", key.len())));
    }
    Ok(())
}

/// An inline value has at most 1 MiB.
pub(crate) fn check_value(field: &str, value: &[u8]) -> Result<(), Refusal> {
    if value.len() > VALUE_BYTES_MAX {
        let message = format!("has {} B, more than {VALUE_BYTES_MAX} B: use Upload", value.len());
        return Err(refusal::invalid(field, message));
    }
    Ok(())
}

fn check_upload(key: &[u8], upload_id: &[u8]) -> Result<(), Refusal> {
    check_key("key", key)?;
    if upload_id.len() != UPLOAD_ID_BYTES {
        return Err(refusal::invalid("upload_id", format!("has {UPLOAD_ID_BYTES} B")));
    }
    Ok(())
}
