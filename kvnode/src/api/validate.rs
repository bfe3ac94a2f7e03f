//! What a well-formed request is. Pure; every refusal names the field by its path, for example `then[3].put.value`.

use std::{collections::BTreeSet, fmt};

use kv_proto::kv::v1::{
    BatchGetRequest, BulkWriteRequest, Compare, Consistency, DeleteRangeRequest, DeleteRequest,
    DownloadRequest, GetRequest, KeyRange, OpenSessionRequest, Precondition, PutRequest, ReadOptions,
    ScanRequest, TxnOperation, TxnRequest, compare, open_session_request, precondition, txn_operation,
    upload_request, write_operation,
};

use super::limits::{
    BATCH_OPERATIONS_MAX, CHUNK_BYTES, INLINE_VALUE_BYTES_MAX, KEY_BYTES_MAX, PAGE_TOKEN_BYTES_MAX,
    TXN_BYTES_MAX, TXN_OPERATIONS_MAX, UPLOAD_BYTES_MAX,
};
use crate::state_machine::limits::{SESSION_TTL_MAX_MS, SESSION_TTL_MIN_MS};

/// A field that is wrong, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {description}")]
pub struct Violation {
    /// Its path in the request.
    pub field: String,
    /// What is wrong with it, without its content.
    pub description: String,
}

impl Violation {
    /// A violation of `field`.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }
}

/// The outcome of a check.
pub type Checked = Result<(), Violation>;

/// Where in the request we are: the prefix of the names of fields.
#[derive(Clone, Copy)]
struct At<'a>(&'a dyn fmt::Display);

const TOP: At<'static> = At(&"");

impl At<'_> {
    fn field(self, name: &str) -> String {
        format!("{}{name}", self.0)
    }

    fn wrong<T>(self, name: &str, description: impl Into<String>) -> Result<T, Violation> {
        Err(Violation::new(self.field(name), description))
    }
}

/// Checks a Put.
pub fn put(request: &PutRequest) -> Checked {
    put_at(TOP, request)?;
    stamp_at(TOP, request.session_id, request.sequence, request.lowest_outstanding)
}

/// Checks a Get.
pub fn get(request: &GetRequest) -> Checked {
    key_at(TOP, "key", &request.key)?;
    read_options(request.options.as_ref())
}

/// Checks a Delete.
pub fn delete(request: &DeleteRequest) -> Checked {
    delete_at(TOP, request)?;
    stamp_at(TOP, request.session_id, request.sequence, request.lowest_outstanding)
}

/// Checks a BatchGet.
pub fn batch_get(request: &BatchGetRequest) -> Checked {
    count(TOP, "keys", request.keys.len(), BATCH_OPERATIONS_MAX)?;
    for (number, key) in request.keys.iter().enumerate() {
        key_at(TOP, &format!("keys[{number}]"), key)?;
    }
    read_options(request.options.as_ref())
}

/// Checks a BulkWrite.
pub fn bulk_write(request: &BulkWriteRequest) -> Checked {
    count(TOP, "operations", request.operations.len(), BATCH_OPERATIONS_MAX)?;
    for (number, operation) in request.operations.iter().enumerate() {
        match &operation.operation {
            Some(write_operation::Operation::Put(put)) => {
                let at = format_args!("operations[{number}].put.");
                put_at(At(&at), put)?;
                stamp_at(At(&at), put.session_id, put.sequence, put.lowest_outstanding)?;
            }
            Some(write_operation::Operation::Delete(delete)) => {
                let at = format_args!("operations[{number}].delete.");
                delete_at(At(&at), delete)?;
                stamp_at(At(&at), delete.session_id, delete.sequence, delete.lowest_outstanding)?;
            }
            None => return TOP.wrong(&format!("operations[{number}]"), "must be a put or a delete"),
        }
    }
    Ok(())
}

/// Checks a Txn, except that its keys share a shard.
pub fn txn(request: &TxnRequest) -> Checked {
    let operations = request.compare.len() + request.then.len() + request.r#else.len();
    if operations == 0 {
        return TOP.wrong("then", "the transaction is empty");
    }
    if operations > TXN_OPERATIONS_MAX {
        let text =
            format!("{operations} comparisons and operations, at most {TXN_OPERATIONS_MAX} are allowed");
        return TOP.wrong(if request.then.is_empty() { "compare" } else { "then" }, text);
    }
    let mut bytes = 0;
    for (number, compare) in request.compare.iter().enumerate() {
        compare_at(At(&format_args!("compare[{number}].")), compare)?;
        let value = if let Some(compare::Target::Value(value)) = &compare.target { value.len() } else { 0 };
        add_bytes(&mut bytes, &format!("compare[{number}]"), compare.key.len() + value)?;
    }
    branch("then", &request.then, &mut bytes)?;
    branch("else", &request.r#else, &mut bytes)?;
    stamp_at(TOP, request.session_id, request.sequence, request.lowest_outstanding)
}

/// Checks an OpenSession, except that the shard is there.
pub fn open_session(request: &OpenSessionRequest) -> Checked {
    match &request.shard {
        Some(open_session_request::Shard::Key(key)) => key_at(TOP, "key", key)?,
        Some(open_session_request::Shard::ShardId(_)) => {}
        None => return TOP.wrong("shard", "must be given, as a key or a shard_id"),
    }
    match request.ttl_ms {
        0 | SESSION_TTL_MIN_MS..=SESSION_TTL_MAX_MS => Ok(()),
        _ => TOP.wrong("ttl_ms", format!("must be 0, or {SESSION_TTL_MIN_MS} to {SESSION_TTL_MAX_MS}")),
    }
}

/// Checks a Scan, except its page token.
pub fn scan(request: &ScanRequest) -> Checked {
    key_range(request.range.as_ref())?;
    page_token(&request.page_token)?;
    if request.keys_only && request.count_only {
        return TOP.wrong("count_only", "not together with keys_only");
    }
    read_options(request.options.as_ref())
}

/// Checks a DeleteRange, except its page token.
pub fn delete_range(request: &DeleteRangeRequest) -> Checked {
    if request.range.is_none() {
        return TOP.wrong("range", "must be given; an empty range means all keys");
    }
    key_range(request.range.as_ref())?;
    page_token(&request.page_token)
}

/// Checks the header of an Upload.
pub fn upload(header: &upload_request::Header) -> Checked {
    const AT: At<'static> = At(&"header.");
    key_at(AT, "key", &header.key)?;
    if header.size_bytes.is_some_and(|size| size > UPLOAD_BYTES_MAX) {
        return AT.wrong("size_bytes", format!("at most {UPLOAD_BYTES_MAX}"));
    }
    if !matches!(header.sha256.len(), 0 | 32) {
        return AT.wrong("sha256", format!("{} B, must have 32 or none", header.sha256.len()));
    }
    if !matches!(header.upload_id.len(), 0 | 16) {
        return AT.wrong("upload_id", format!("{} B, must have 16 or none", header.upload_id.len()));
    }
    if header.resume_from_bytes > 0 && header.upload_id.is_empty() {
        return AT.wrong("upload_id", "must be given together with resume_from_bytes");
    }
    if header.size_bytes.is_some_and(|size| header.resume_from_bytes > size) {
        return AT.wrong("resume_from_bytes", "greater than size_bytes");
    }
    let is_chunk_end = header.resume_from_bytes.is_multiple_of(CHUNK_BYTES as u64);
    if !is_chunk_end && header.size_bytes.is_some_and(|size| header.resume_from_bytes != size) {
        return AT
            .wrong("resume_from_bytes", format!("must be a multiple of {CHUNK_BYTES} or the whole size"));
    }
    precondition_at(AT, header.precondition.as_ref())
}

/// Checks a Download.
pub fn download(request: &DownloadRequest) -> Checked {
    key_at(TOP, "key", &request.key)?;
    if request.offset.checked_add(request.length).is_none() {
        return TOP.wrong("length", "offset and length together exceed 64 bits");
    }
    read_options(request.options.as_ref())
}

fn put_at(at: At<'_>, put: &PutRequest) -> Checked {
    key_at(at, "key", &put.key)?;
    value_at(at, "value", &put.value)?;
    precondition_at(at, put.precondition.as_ref())
}

fn delete_at(at: At<'_>, delete: &DeleteRequest) -> Checked {
    key_at(at, "key", &delete.key)?;
    precondition_at(at, delete.precondition.as_ref())
}

/// All three or none, and no outcome is outstanding above the write itself.
fn stamp_at(at: At<'_>, session_id: u64, sequence: u64, lowest_outstanding: u64) -> Checked {
    if session_id == 0 {
        return no_stamp_at(at, session_id, sequence, lowest_outstanding, "only together with session_id");
    }
    if sequence == 0 {
        return at.wrong("sequence", "must be at least 1 in a session");
    }
    match lowest_outstanding {
        0 => at.wrong("lowest_outstanding", "must be at least 1 in a session"),
        lowest if lowest > sequence => at.wrong("lowest_outstanding", "must not be greater than sequence"),
        _ => Ok(()),
    }
}

fn no_stamp_at(
    at: At<'_>,
    session_id: u64,
    sequence: u64,
    lowest_outstanding: u64,
    description: &str,
) -> Checked {
    let fields =
        [("session_id", session_id), ("sequence", sequence), ("lowest_outstanding", lowest_outstanding)];
    match fields.into_iter().find(|(_, value)| *value != 0) {
        Some((name, _)) => at.wrong(name, description),
        None => Ok(()),
    }
}

fn key_at(at: At<'_>, name: &str, key: &[u8]) -> Checked {
    match key.len() {
        0 => at.wrong(name, "must not be empty"),
        1..=KEY_BYTES_MAX => Ok(()),
        length => at.wrong(name, format!("{length} B, at most {KEY_BYTES_MAX} are allowed")),
    }
}

fn value_at(at: At<'_>, name: &str, value: &[u8]) -> Checked {
    if value.len() > INLINE_VALUE_BYTES_MAX {
        let length = value.len();
        return at
            .wrong(name, format!("{length} B, at most {INLINE_VALUE_BYTES_MAX} are allowed; use Upload"));
    }
    Ok(())
}

fn precondition_at(at: At<'_>, precondition: Option<&Precondition>) -> Checked {
    let Some(precondition) = precondition else { return Ok(()) };
    match precondition.condition {
        None => at.wrong("precondition", "names no condition"),
        Some(precondition::Condition::Absent(false)) => {
            at.wrong("precondition.absent", "must be true; use present for the opposite")
        }
        Some(precondition::Condition::Present(false)) => {
            at.wrong("precondition.present", "must be true; use absent for the opposite")
        }
        Some(precondition::Condition::ModRevision(0)) => {
            at.wrong("precondition.mod_revision", "must not be 0; use absent")
        }
        Some(precondition::Condition::Version(0)) => {
            at.wrong("precondition.version", "must not be 0; use absent")
        }
        Some(_) => Ok(()),
    }
}

fn compare_at(at: At<'_>, compare: &Compare) -> Checked {
    key_at(at, "key", &compare.key)?;
    if compare::Operator::try_from(compare.operator).is_err() {
        return at.wrong("operator", "unknown");
    }
    let is_equality = matches!(
        compare.operator(),
        compare::Operator::Unspecified | compare::Operator::Equal | compare::Operator::NotEqual
    );
    match &compare.target {
        None => at.wrong("target", "names nothing to compare with"),
        Some(compare::Target::Present(_)) if !is_equality => {
            at.wrong("operator", "presence can only be equal or not equal")
        }
        Some(compare::Target::Value(value)) => value_at(at, "value", value),
        Some(_) => Ok(()),
    }
}

fn branch(name: &str, operations: &[TxnOperation], bytes: &mut usize) -> Checked {
    let mut written = BTreeSet::new();
    for (number, operation) in operations.iter().enumerate() {
        let size = match &operation.operation {
            Some(txn_operation::Operation::Get(get)) => {
                let at = format!("{name}[{number}].get.");
                key_at(At(&at), "key", &get.key)?;
                if get.options.is_some_and(|options| options != ReadOptions::default()) {
                    return At(&at).wrong("options", "a read inside a transaction takes no options");
                }
                get.key.len()
            }
            Some(txn_operation::Operation::Put(put)) => {
                let at = format!("{name}[{number}].put.");
                put_at(At(&at), put)?;
                write_inside(At(&at), &mut written, &put.key, put.precondition.is_some())?;
                no_stamp_at(At(&at), put.session_id, put.sequence, put.lowest_outstanding, INSIDE)?;
                put.key.len() + put.value.len()
            }
            Some(txn_operation::Operation::Delete(delete)) => {
                let at = format!("{name}[{number}].delete.");
                delete_at(At(&at), delete)?;
                write_inside(At(&at), &mut written, &delete.key, delete.precondition.is_some())?;
                no_stamp_at(At(&at), delete.session_id, delete.sequence, delete.lowest_outstanding, INSIDE)?;
                delete.key.len()
            }
            None => return TOP.wrong(&format!("{name}[{number}]"), "must be a get, a put or a delete"),
        };
        add_bytes(bytes, &format!("{name}[{number}]"), size)?;
    }
    Ok(())
}

/// Why a write inside a transaction names no session.
const INSIDE: &str = "the session is the transaction's";

fn write_inside<'a>(
    at: At<'_>,
    written: &mut BTreeSet<&'a [u8]>,
    key: &'a [u8],
    conditional: bool,
) -> Checked {
    if !written.insert(key) {
        return at.wrong("key", "written twice by the same branch");
    }
    if conditional {
        return at.wrong("precondition", "use compare: a branch of a transaction happens whole");
    }
    Ok(())
}

fn add_bytes(bytes: &mut usize, field: &str, more: usize) -> Checked {
    *bytes += more;
    if *bytes > TXN_BYTES_MAX {
        return TOP.wrong(field, format!("keys and values up to here exceed {TXN_BYTES_MAX} B"));
    }
    Ok(())
}

fn count(at: At<'_>, name: &str, length: usize, most: usize) -> Checked {
    match length {
        0 => at.wrong(name, "must not be empty"),
        length if length > most => at.wrong(name, format!("{length} given, at most {most} are allowed")),
        _ => Ok(()),
    }
}

fn key_range(range: Option<&KeyRange>) -> Checked {
    const AT: At<'static> = At(&"range.");
    let Some(range) = range else { return Ok(()) };
    // The successor of the longest key is a fine bound.
    for (name, bound) in [("start", &range.start), ("end", &range.end), ("prefix", &range.prefix)] {
        if bound.len() > KEY_BYTES_MAX + 1 {
            return AT.wrong(name, format!("{} B, at most {} are allowed", bound.len(), KEY_BYTES_MAX + 1));
        }
    }
    let is_bounded = !range.start.is_empty() || !range.end.is_empty();
    if !range.prefix.is_empty() && is_bounded {
        return AT.wrong("prefix", "not together with start or end");
    }
    if !range.end.is_empty() && range.start > range.end {
        return AT.wrong("end", "lies before start");
    }
    Ok(())
}

fn page_token(token: &[u8]) -> Checked {
    if token.len() > PAGE_TOKEN_BYTES_MAX {
        return TOP.wrong("page_token", "not one of ours");
    }
    Ok(())
}

fn read_options(options: Option<&ReadOptions>) -> Checked {
    const AT: At<'static> = At(&"options.");
    let Some(options) = options else { return Ok(()) };
    match Consistency::try_from(options.consistency) {
        Err(_) => AT.wrong("consistency", "unknown"),
        Ok(Consistency::Stale) => Ok(()),
        Ok(Consistency::Unspecified | Consistency::Linearizable) => {
            if options.max_staleness_ms != 0 {
                return AT.wrong("max_staleness_ms", "only with CONSISTENCY_STALE");
            }
            if options.min_revision != 0 {
                return AT.wrong("min_revision", "only with CONSISTENCY_STALE");
            }
            Ok(())
        }
    }
}

#[cfg(test)]
#[path = "validate_table.rs"]
mod tests;
