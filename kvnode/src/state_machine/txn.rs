//! Txn: compares, then runs one of two lists of operations, in one revision.
//!
//! Comparisons see the state before the transaction; operations run in order and see those before them. All writes
//! carry the same revision, which the shard takes only if something changed. Preconditions on the operations are
//! refused: that is what comparisons are for.

use std::{cmp::Ordering, collections::BTreeSet};

use bytes::Bytes;
use kv_proto::{
    disk::v1::{Get, KeyRecord, Txn, TxnOperation, key_record, txn_operation::Operation},
    kv::v1::{
        Compare,
        compare::{Operator, Target},
    },
    peer::v1::{GetOutcome, Refusal, TxnOutcome, TxnResult, txn_result},
};
use kv_topology::KeyspaceId;

use super::{
    apply::{Rejection, Step},
    delete,
    limits::{TXN_OPERATIONS_MAX, TXN_REPLY_BYTES_MAX},
    put, refusal, slots, validate, value,
};
use crate::state::StateError;

/// Applies a transaction.
pub(crate) fn txn(step: &mut Step<'_, '_>, keyspace: KeyspaceId, txn: &Txn) -> Result<TxnOutcome, Rejection> {
    for compare in &txn.compare {
        slots::check(step.group, keyspace, &compare.key)?;
    }
    for operation in txn.then.iter().chain(&txn.r#else) {
        slots::check(step.group, keyspace, key_of(operation))?;
    }
    let mut succeeded = true;
    for compare in &txn.compare {
        let current = step.key(keyspace, &compare.key)?;
        succeeded = succeeded && holds(step, compare, current.as_ref())?;
    }
    let branch = if succeeded { &txn.then } else { &txn.r#else };
    check_reply(step, keyspace, branch)?;

    let revision = step.next_revision();
    let mut changed = false;
    let mut results = Vec::with_capacity(branch.len());
    for operation in branch {
        let result = run(step, keyspace, operation, revision)?;
        changed |= match &result {
            txn_result::Result::Get(_) => false,
            txn_result::Result::Put(put) => put.applied,
            txn_result::Result::Delete(delete) => delete.applied,
        };
        results.push(TxnResult { result: Some(result) });
    }
    if changed {
        step.group.revision = revision;
    }
    Ok(TxnOutcome { succeeded, results })
}

fn run(
    step: &mut Step<'_, '_>,
    keyspace: KeyspaceId,
    operation: &TxnOperation,
    revision: u64,
) -> Result<txn_result::Result, Rejection> {
    let current = step.key(keyspace, key_of(operation))?;
    let current = current.as_ref();
    Ok(match &operation.operation {
        Some(Operation::Get(get)) => txn_result::Result::Get(read(step, get, current)?),
        Some(Operation::Put(put)) => {
            txn_result::Result::Put(put::write(step, keyspace, put, current, revision)?)
        }
        Some(Operation::Delete(delete)) => {
            txn_result::Result::Delete(delete::remove(step, keyspace, delete, current)?)
        }
        // Its shape was checked.
        None => return Err(refusal::invalid("operation", "is missing").into()),
    })
}

fn read(step: &Step<'_, '_>, get: &Get, current: Option<&KeyRecord>) -> Result<GetOutcome, StateError> {
    let kv = match current {
        None => None,
        Some(record) if get.metadata_only => Some(value::describe(get.key.clone(), record)),
        Some(record) => Some(value::show(step.scope.replica, get.key.clone(), record)?),
    };
    Ok(GetOutcome { kv, upload_id: value::upload_id(current) })
}

/// Whether the answer holds the value that the key has.
pub(crate) fn returns_value(operation: &TxnOperation) -> bool {
    match &operation.operation {
        Some(Operation::Get(get)) => !get.metadata_only,
        Some(Operation::Put(put)) => put.return_previous,
        Some(Operation::Delete(delete)) => delete.return_previous,
        None => false,
    }
}

/// Refuses, before anything is written, what could not be answered. Values that the transaction itself writes are
/// bounded by its request.
fn check_reply(step: &Step<'_, '_>, keyspace: KeyspaceId, branch: &[TxnOperation]) -> Result<(), Rejection> {
    let mut bytes = 0;
    for operation in branch {
        if returns_value(operation) {
            let current = step.key(keyspace, key_of(operation))?;
            bytes += current.as_ref().map_or(0, value::inline_bytes);
        }
    }
    if bytes > TXN_REPLY_BYTES_MAX {
        return Err(refusal::reply_too_large(TXN_REPLY_BYTES_MAX).into());
    }
    Ok(())
}

/// Whether a comparison holds. As in etcd, an absent key has revisions and version 0, and no comparison with a
/// value holds for it. An uploaded value is never equal, less or greater.
fn holds(step: &Step<'_, '_>, compare: &Compare, current: Option<&KeyRecord>) -> Result<bool, StateError> {
    let number = |field: fn(&KeyRecord) -> u64, wanted: &u64| Some(current.map_or(0, field).cmp(wanted));
    let order = match &compare.target {
        Some(Target::Present(wanted)) => Some(current.is_some().cmp(wanted)),
        Some(Target::ModRevision(wanted)) => number(|record| record.mod_revision, wanted),
        Some(Target::CreateRevision(wanted)) => number(|record| record.create_revision, wanted),
        Some(Target::Version(wanted)) => number(|record| record.version, wanted),
        Some(Target::Value(wanted)) => match current {
            None => return Ok(false),
            Some(record) => compare_value(step, record, wanted)?,
        },
        // Its shape was checked.
        None => return Ok(false),
    };
    Ok(match compare.operator() {
        Operator::Unspecified | Operator::Equal => order == Some(Ordering::Equal),
        Operator::NotEqual => order != Some(Ordering::Equal),
        Operator::Less => order == Some(Ordering::Less),
        Operator::Greater => order == Some(Ordering::Greater),
    })
}

fn compare_value(
    step: &Step<'_, '_>,
    record: &KeyRecord,
    wanted: &Bytes,
) -> Result<Option<Ordering>, StateError> {
    match &record.value {
        Some(key_record::Value::Inline(inline)) => {
            value::check(step.scope.replica, "a compared value", &inline.data, inline.crc32c)?;
            Ok(Some(inline.data.cmp(wanted)))
        }
        Some(key_record::Value::Blob(_)) | None => Ok(None),
    }
}

fn key_of(operation: &TxnOperation) -> &Bytes {
    static NONE: Bytes = Bytes::new();
    match &operation.operation {
        Some(Operation::Get(get)) => &get.key,
        Some(Operation::Put(put)) => &put.key,
        Some(Operation::Delete(delete)) => &delete.key,
        None => &NONE,
    }
}

/// Refuses what no transaction may look like, naming the field.
///
/// # Errors
/// The refusal.
pub(crate) fn check_shape(txn: &Txn) -> Result<(), Refusal> {
    if txn.compare.len() > TXN_OPERATIONS_MAX {
        return Err(refusal::invalid("compare", format!("has more than {TXN_OPERATIONS_MAX}")));
    }
    for (number, compare) in txn.compare.iter().enumerate() {
        let field = |name: &str| format!("compare[{number}].{name}");
        validate::check_key(&field("key"), &compare.key)?;
        if compare.target.is_none() {
            return Err(refusal::invalid(field("target"), "names nothing that this version knows"));
        }
        if Operator::try_from(compare.operator).is_err() {
            return Err(refusal::invalid(field("operator"), "is not known"));
        }
    }
    check_branch("then", &txn.then)?;
    check_branch("else", &txn.r#else)
}

fn check_branch(branch: &str, operations: &[TxnOperation]) -> Result<(), Refusal> {
    if operations.len() > TXN_OPERATIONS_MAX {
        return Err(refusal::invalid(branch, format!("has more than {TXN_OPERATIONS_MAX} operations")));
    }
    let mut written = BTreeSet::new();
    for (number, operation) in operations.iter().enumerate() {
        let field = |name: &str| format!("{branch}[{number}].{name}");
        let (writes, precondition) = match &operation.operation {
            None => return Err(refusal::invalid(field("operation"), "is missing")),
            Some(Operation::Get(_)) => (false, None),
            Some(Operation::Put(put)) => {
                validate::check_value(&field("put.value"), &put.value)?;
                (true, put.precondition.as_ref())
            }
            Some(Operation::Delete(delete)) => (true, delete.precondition.as_ref()),
        };
        validate::check_key(&field("key"), key_of(operation))?;
        if precondition.is_some() {
            return Err(refusal::invalid(field("precondition"), "belongs into compare"));
        }
        if writes && !written.insert(key_of(operation)) {
            return Err(refusal::invalid(field("key"), "is written twice"));
        }
    }
    Ok(())
}
