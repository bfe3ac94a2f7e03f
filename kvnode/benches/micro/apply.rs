//! The state machine over RocksDB: a round of the apply thread with one entry, from its bytes to the answer.

use std::{
    cell::RefCell,
    sync::{Arc, Mutex},
};

use divan::{Bencher, counter::ItemsCount};
use kv_proto::disk::v1::{self, Operation, OwnSlots, Proposal, SlotRange, operation::Kind};
use kv_topology::ShardId;
use kvnode::{
    state::{engine::with_view, options::MemoryBudget, rocks::RocksEngine},
    state_machine::{
        ApplyError, Payload, ReadyEntry, Replica,
        heads::HeadBudget,
        progress::Progress,
        worker::{Job, step},
    },
};
use prost::Message;
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::{BATCHES, KEYS, REPLICA, puts};

const SHARD: ShardId = ShardId(1);
/// Of the store, bytes: all keys are in memory.
const STORE_BYTES: usize = 256 << 20;
/// Operations of an entry that fills the store.
const FILL: usize = 1_000;

/// A replica and what keeps it.
struct Bench {
    engine: RocksEngine,
    replica: Arc<Mutex<Replica>>,
    next_index: u64,
    next_key: usize,
    _folder: TempDir,
}

impl Bench {
    /// With all keys; of their revisions as many are remembered as so many bytes hold.
    fn filled(head_bytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let engine = RocksEngine::open(folder.path(), MemoryBudget::of(STORE_BYTES)).unwrap();
        let replica = with_view(&engine, |view| Replica::load(view, REPLICA, SHARD)).unwrap();
        let replica = Arc::new(Mutex::new(replica.with_heads(HeadBudget::new(head_bytes))));
        let mut bench = Self { engine, replica, next_index: 0, next_key: 0, _folder: folder };
        let slots = vec![SlotRange { first: 0, last: 4_095 }];
        let own = OwnSlots { shard_id: SHARD.0, slots };
        let entry = bench.entry(vec![Operation { kind: Some(Kind::OwnSlots(own)), ..Operation::default() }]);
        bench.apply(entry);
        for _ in 0..KEYS / FILL {
            let entry = bench.entry_of_puts(FILL);
            bench.apply(entry);
        }
        bench
    }

    fn entry(&mut self, operations: Vec<Operation>) -> ReadyEntry {
        let proposal = Proposal { log_time_ms: 1, operations };
        let id = v1::LogId { term: 1, replica_id: REPLICA.0, index: self.next_index };
        self.next_index += 1;
        ReadyEntry { id, payload: Payload::Proposal(proposal.encode_to_vec().into()) }
    }

    fn entry_of_puts(&mut self, count: usize) -> ReadyEntry {
        let operations = puts(self.next_key, count);
        self.next_key += count;
        self.entry(operations)
    }

    fn job(&self, entry: ReadyEntry) -> (Job, oneshot::Receiver<Result<(), ApplyError>>) {
        let (done, result) = oneshot::channel();
        let job = Job {
            replica: self.replica.clone(),
            id: REPLICA,
            entries: vec![(entry, Some(Box::new(drop)))],
            observer: None,
            progress: Arc::new(Progress::new(None)),
            done,
        };
        (job, result)
    }

    fn apply(&self, entry: ReadyEntry) {
        let (job, mut result) = self.job(entry);
        step(&self.engine, vec![job]).unwrap();
        result.try_recv().unwrap().unwrap();
    }
}

fn overwrites(bencher: Bencher<'_, '_>, operations: usize, head_bytes: usize) {
    let bench = RefCell::new(Bench::filled(head_bytes));
    bencher
        .counter(ItemsCount::new(operations))
        .with_inputs(|| {
            let entry = bench.borrow_mut().entry_of_puts(operations);
            bench.borrow().job(entry)
        })
        .bench_local_values(|(job, mut result)| {
            step(&bench.borrow().engine, vec![job]).unwrap();
            result.try_recv().unwrap().unwrap();
        });
}

/// Puts of keys whose revisions are remembered.
#[divan::bench(args = BATCHES)]
fn puts_with_heads(bencher: Bencher<'_, '_>, operations: usize) {
    overwrites(bencher, operations, STORE_BYTES / 8);
}

/// Puts of keys that are read first.
#[divan::bench(args = BATCHES)]
fn puts_without_heads(bencher: Bencher<'_, '_>, operations: usize) {
    overwrites(bencher, operations, 0);
}
