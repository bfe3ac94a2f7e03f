//! A panic ends the node, and one in apply would end all nodes of a group: whatever operation or question decodes, the
//! state machine answers it.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test fails by panicking, and its name says what it shows"
)]

mod state_support;

use std::sync::Arc;

use bytes::Bytes;
use kv_proto::{
    disk::v1::{
        CloseSession, Get, MetaCommand, NodeRecord, OpenSession, Operation, Txn, TxnOperation, meta_command,
        operation::Kind, txn_operation,
    },
    kv::v1::precondition::Condition,
    peer::v1::{GetKeys, ReadBlob, ReadRequest, ScanPage, read_request::Read},
};
use kvnode::{
    state::{engine::with_view, memory::MemoryEngine},
    state_machine::{reads::Reader, validate},
};
use proptest::prelude::*;
use prost::Message;
use state_support::*;

/// Well-formed messages of each kind, to be garbled: bytes at random hardly ever decode to anything.
fn operations() -> Vec<Vec<u8>> {
    let get = TxnOperation {
        operation: Some(txn_operation::Operation::Get(Get { key: Bytes::from("k"), metadata_only: false })),
    };
    let put_k = TxnOperation { operation: Some(txn_operation::Operation::Put(put("k", b"value"))) };
    let guarded =
        kv_proto::disk::v1::Delete { precondition: condition(Condition::ModRevision(3)), ..delete("k") };
    let node = NodeRecord { name: "n9".to_owned(), disk_uuid: vec![9; 16].into(), ..NodeRecord::default() };
    let register = meta_command::RegisterNode { node: Some(node), name_holder_alive: false };
    let kinds = [
        Kind::Put(put("k", b"value")),
        Kind::Delete(guarded),
        Kind::DeleteRange(delete_range("a", "z", 10)),
        Kind::Txn(Txn { then: vec![put_k, get.clone()], r#else: vec![get], ..Txn::default() }),
        Kind::UploadBegin(begin("k", 1)),
        Kind::UploadChunk(chunk("k", 1, 0, b"chunk")),
        Kind::UploadCommit(commit("k", 1, 1, 5)),
        Kind::UploadAbort(abort("k", 1)),
        Kind::Meta(MetaCommand {
            command: Some(meta_command::Command::RegisterNode(register)),
            ..MetaCommand::default()
        }),
    ];
    let in_session = Operation {
        session_id: 1 << 48 | 1,
        sequence: 1,
        lowest_outstanding: 1,
        ..operation(Kind::Put(put("k", b"value")))
    };
    let open = operation(Kind::OpenSession(OpenSession { ttl_ms: 1_000 }));
    let close = operation(Kind::CloseSession(CloseSession { session_id: 1 << 48 | 1 }));
    let fixed = [own_all(), tick(), open.clone(), open, in_session.clone(), in_session, close];
    kinds.into_iter().map(operation).chain(fixed).map(|operation| operation.encode_to_vec()).collect()
}

fn questions() -> Vec<Vec<u8>> {
    let reads = [
        Read::Get(GetKeys { keys: vec![Bytes::from("k"), Bytes::from("l")], ..GetKeys::default() }),
        Read::Scan(ScanPage {
            start: Bytes::from("a"),
            end: Bytes::from("z"),
            limit: 5,
            ..ScanPage::default()
        }),
        Read::Blob(ReadBlob { key: Bytes::from("k"), upload_id: upload_id(1), ..ReadBlob::default() }),
    ];
    let request = |read| ReadRequest { shard_id: SHARD.0, read: Some(read), ..ReadRequest::default() };
    reads.into_iter().map(|read| request(read).encode_to_vec()).collect()
}

/// One of `messages`, with some bytes replaced, and perhaps cut.
fn garbled(messages: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let harm = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (prop::sample::select(messages), harm, prop::option::of(any::<prop::sample::Index>())).prop_map(
        |(mut bytes, harm, cut)| {
            for (at, byte) in harm {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn whatever_operation_decodes_is_applied_or_refused(
        encoded in prop::collection::vec(garbled(operations()), 1..8),
        owned in any::<bool>(),
    ) {
        let replica = Driven::open(Arc::new(MemoryEngine::new()), REPLICA).unwrap();
        if owned {
            replica.apply(0, own_all());
        }
        let operations: Vec<Operation> =
            encoded.iter().filter_map(|bytes| Operation::decode(bytes.as_slice()).ok()).collect();
        let mut log_time_ms = 1;
        for operation in operations {
            // What does not pass here is never proposed; an older leader may know less, so it is applied all the same.
            let passed = validate(&operation).is_ok();
            log_time_ms += 600_000;
            let index = replica.applied().map_or(0, |applied| applied + 1);
            if replica.round(&[proposal(index, log_time_ms, vec![operation])]).is_err() {
                // It has stopped, and says why: an answer too, to what nobody proposes.
                prop_assert!(!passed, "every replica of the group would stop");
                return Ok(());
            }
        }
    }

    #[test]
    fn whatever_question_decodes_is_answered_or_refused(encoded in garbled(questions())) {
        let replica = Driven::open(Arc::new(MemoryEngine::new()), REPLICA).unwrap();
        replica.apply(0, own_all());
        replica.apply(1, operation(Kind::Put(put("k", b"value"))));
        if let Ok(request) = ReadRequest::decode(encoded.as_slice()) {
            let _ = with_view(replica.engine.as_ref(), |view| Reader::new(view, REPLICA, SHARD)?.read(&request));
        }
    }
}
