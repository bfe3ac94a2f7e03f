//! A key's record and what a client sees of it. Values are checked against their CRC32C before they are shown.

use bytes::Bytes;
use kv_proto::{
    disk::v1::{InlineValue, KeyRecord, key_record},
    kv::v1::{Blob, KeyValue, key_value},
};
use kv_topology::ReplicaId;
use prost::Message;

use crate::state::StateError;

/// Decodes a record of our disk.
///
/// # Errors
/// Damage: nothing that we wrote looks like that.
pub(crate) fn decode<M: Message + Default>(
    replica: ReplicaId,
    what: &'static str,
    bytes: Bytes,
) -> Result<M, StateError> {
    M::decode(bytes).map_err(|error| StateError::damage(replica, format!("{what}: {error}")))
}

/// A value with its checksum, as it lies in a record.
pub(crate) fn inline(data: Bytes, crc32c: u32) -> key_record::Value {
    key_record::Value::Inline(InlineValue { data, crc32c })
}

/// The key without its value. An uploaded value is described, since that costs nothing.
pub(crate) fn describe(key: Bytes, record: &KeyRecord) -> KeyValue {
    let value = match &record.value {
        Some(key_record::Value::Blob(blob)) => {
            Some(key_value::Value::Blob(Blob { size_bytes: blob.size_bytes, sha256: blob.sha256.clone() }))
        }
        Some(key_record::Value::Inline(_)) | None => None,
    };
    KeyValue {
        key,
        create_revision: record.create_revision,
        mod_revision: record.mod_revision,
        version: record.version,
        value,
    }
}

/// The key with its value; an uploaded one is described.
///
/// # Errors
/// Damage, when the value does not match its checksum or there is none.
pub(crate) fn show(replica: ReplicaId, key: Bytes, record: &KeyRecord) -> Result<KeyValue, StateError> {
    let mut shown = describe(key, record);
    match &record.value {
        Some(key_record::Value::Blob(_)) => {}
        Some(key_record::Value::Inline(value)) => {
            check(replica, "a value", &value.data, value.crc32c)?;
            shown.value = Some(key_value::Value::Inline(value.data.clone()));
        }
        None => return Err(StateError::damage(replica, "a key's record without a value")),
    }
    Ok(shown)
}

/// Checks bytes against their checksum.
///
/// # Errors
/// Damage, when they do not match.
pub(crate) fn check(replica: ReplicaId, what: &str, data: &[u8], crc32c: u32) -> Result<(), StateError> {
    if crc32c::crc32c(data) == crc32c {
        Ok(())
    } else {
        Err(StateError::damage(replica, format!("{what} of {} B does not match its CRC32C", data.len())))
    }
}

/// Bytes of the inline value.
pub(crate) fn inline_bytes(record: &KeyRecord) -> usize {
    match &record.value {
        Some(key_record::Value::Inline(value)) => value.data.len(),
        Some(key_record::Value::Blob(_)) | None => 0,
    }
}

/// The id by which the chunks of an uploaded value are read; empty for an inline one.
pub(super) fn upload_id(record: Option<&KeyRecord>) -> Bytes {
    match record.and_then(|record| record.value.as_ref()) {
        Some(key_record::Value::Blob(blob)) => blob.upload_id.clone(),
        Some(key_record::Value::Inline(_)) | None => Bytes::new(),
    }
}
