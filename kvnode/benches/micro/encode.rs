//! Messages of clients, and entries of the log.

use bytes::Bytes;
use divan::{Bencher, black_box, counter::ItemsCount};
use kv_proto::{
    disk::v1::{LogEntry, Proposal},
    kv::v1::{BatchOperation, BatchRequest, PutRequest, batch_operation},
};
use kvnode::{
    group::{batch::Batch, type_config},
    log::codec::{self, Entry, LeaderId, LogId, Payload},
};
use prost::Message;

use crate::{BATCHES, key, puts, value};

fn request(operations: usize) -> BatchRequest {
    let value = value();
    let put = |number: usize| {
        let put = PutRequest { key: key(number), value: value.clone(), ..PutRequest::default() };
        let operation = Some(batch_operation::Operation::Put(put));
        BatchOperation { id: number as u64, operation, ..BatchOperation::default() }
    };
    BatchRequest { operations: (0..operations).map(put).collect() }
}

/// A message on a Batch stream, as the client makes it.
#[divan::bench(args = BATCHES)]
fn batch_message(bencher: Bencher<'_, '_>, operations: usize) {
    let request = request(operations);
    bencher.counter(ItemsCount::new(operations)).bench_local(|| black_box(&request).encode_to_vec());
}

/// The same as the node reads it: keys and values are slices of what came.
#[divan::bench(args = BATCHES)]
fn batch_message_decoded(bencher: Bencher<'_, '_>, operations: usize) {
    let bytes = Bytes::from(request(operations).encode_to_vec());
    bencher
        .counter(ItemsCount::new(operations))
        .bench_local(|| BatchRequest::decode(black_box(bytes.clone())).unwrap());
}

/// From admitted writes to the record of the log.
#[divan::bench(args = BATCHES)]
fn raft_entry(bencher: Bencher<'_, '_>, operations: usize) {
    bencher
        .counter(ItemsCount::new(operations))
        .with_inputs(|| Batch { operations: puts(0, operations), callers: vec![(operations, ())] })
        .bench_local_values(|batch| {
            let (proposal, _) = batch.into_proposal(1);
            let log_id = LogId::new(LeaderId { term: 1, node_id: 1 }, 1);
            let entry = Entry { log_id, payload: Payload::Normal(type_config::Proposal(proposal)) };
            codec::to_bytes(&codec::encode_entry(&entry))
        });
}

/// From a record of the log to the operations that are applied.
#[divan::bench(args = BATCHES)]
fn raft_entry_decoded(bencher: Bencher<'_, '_>, operations: usize) {
    let proposal = Proposal { log_time_ms: 1, operations: puts(0, operations) };
    let log_id = LogId::new(LeaderId { term: 1, node_id: 1 }, 1);
    let payload = Payload::Normal(type_config::Proposal(proposal.encode_to_vec().into()));
    let record = codec::to_bytes(&codec::encode_entry(&Entry { log_id, payload }));
    bencher.counter(ItemsCount::new(operations)).bench_local(|| {
        let entry: LogEntry = codec::from_bytes("LogEntry", black_box(record.clone())).unwrap();
        let Payload::Normal(proposal) = codec::decode_entry(entry).unwrap().payload else { unreachable!() };
        Proposal::decode(proposal.0).unwrap()
    });
}
