//! What a call asks for, in a buffer of its own instead of that of its message. Pure.

use bytes::{Bytes, BytesMut};
use kv_proto::{
    disk::v1::{Operation, operation, txn_operation},
    kv::v1::compare::Target,
};

use super::intake::Ask;

/// Copies all keys and values of `ask`, which take at most `bytes`, into one buffer.
pub fn detach(ask: &mut Ask, bytes: usize) {
    let mut buffer = BytesMut::with_capacity(bytes);
    let mut copy = |field: &mut Bytes| {
        buffer.extend_from_slice(field);
        *field = buffer.split().freeze();
    };
    match ask {
        Ask::Write(operations) => {
            operations.iter_mut().for_each(|operation| each_field(operation, &mut copy));
        }
        Ask::Read(reading) => reading.keys.iter_mut().for_each(copy),
    }
}

/// Of the operations that come on streams.
fn each_field(operation: &mut Operation, copy: &mut impl FnMut(&mut Bytes)) {
    match &mut operation.kind {
        Some(operation::Kind::Put(put)) => {
            copy(&mut put.key);
            copy(&mut put.value);
        }
        Some(operation::Kind::Delete(delete)) => copy(&mut delete.key),
        Some(operation::Kind::Txn(txn)) => {
            for compare in &mut txn.compare {
                copy(&mut compare.key);
                if let Some(Target::Value(value)) = &mut compare.target {
                    copy(value);
                }
            }
            for one in txn.then.iter_mut().chain(&mut txn.r#else) {
                match &mut one.operation {
                    Some(txn_operation::Operation::Get(get)) => copy(&mut get.key),
                    Some(txn_operation::Operation::Put(put)) => {
                        copy(&mut put.key);
                        copy(&mut put.value);
                    }
                    Some(txn_operation::Operation::Delete(delete)) => copy(&mut delete.key),
                    None => {}
                }
            }
        }
        _ => {}
    }
}
