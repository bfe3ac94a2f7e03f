//! What is queued for the device, and which of it goes into the next batch. Plain data: no thread, no clock, no I/O.
//!
//! Operations of all replicas queue up while a sync is in progress; the next batch takes as much of them as its
//! limits allow. The operations of one replica keep their order whatever happens: when one does not fit, all later
//! ones of that replica wait too. Bulk (large pieces of appends) has a share of its own, so that a small write never
//! waits for megabytes of an upload. A batch is taken, written, synced and only then completed, one at a time, so
//! completions of a replica are in order and never early.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use kv_topology::ReplicaId;
use tokio::sync::OwnedSemaphorePermit;

use crate::log::{
    device::{DeviceError, Write},
    tail::BULK_ENTRY_BYTES,
};

/// Bulk bytes in one batch, at most (or one operation, if that alone is larger): the sync of this much takes about
/// 1 ms on a slow SSD, and that is what a small write behind it waits.
pub const BATCH_BULK_BYTES: usize = 512 << 10;

/// All bytes of one batch, at most (or one operation): a batch is copied whole.
pub const BATCH_BYTES: usize = 4 << 20;

/// An append is split into pieces of at most this many bytes (or one entry), so that bulk can share batches.
pub const PIECE_BYTES: usize = 256 << 10;

/// Hears how far a replica's operations are on disk.
pub trait Watermark: Send + Sync {
    /// All operations up to and including this one are on disk.
    fn reached(&self, operation: u64);

    /// The device failed: nothing more will be reached.
    fn failed(&self);
}

/// Told once, when the operation is on disk or the device has failed.
pub type Notify = Box<dyn FnOnce(Result<(), DeviceError>) + Send>;

/// Why an operation is there. Planted bugs look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A vote.
    Vote,
    /// Anything else.
    Other,
}

/// The unit of the queue: writes that belong together.
pub struct Operation {
    /// Whose it is.
    pub replica: ReplicaId,
    /// Why it is there.
    pub purpose: Purpose,
    /// Goes into one batch whole.
    pub writes: Vec<Write>,
    /// Who is told.
    pub completion: Completion,
}

/// Who is told that an operation is on disk. Dropping it frees its room in the queue.
#[derive(Default)]
pub struct Completion {
    /// The replica, and the number that it gave to the operation.
    pub watermark: Option<(Arc<dyn Watermark>, u64)>,
    /// Who waits for it.
    pub notify: Option<Notify>,
    /// Its share of the bounded queue.
    pub room: Vec<OwnedSemaphorePermit>,
}

impl Completion {
    /// Tells everybody.
    pub fn complete(self, result: &Result<(), DeviceError>) {
        if let Some((watermark, operation)) = self.watermark {
            match result {
                Ok(()) => watermark.reached(operation),
                Err(_) => watermark.failed(),
            }
        }
        if let Some(notify) = self.notify {
            notify(result.clone());
        }
    }
}

/// A batch on its way: to be written and synced, then completed.
#[derive(Default)]
pub struct Commit {
    /// What is written, in order.
    pub writes: Vec<Write>,
    /// Who is told afterwards, in order.
    pub completions: Vec<Completion>,
}

impl Commit {
    /// Tells everybody, in order.
    pub fn complete(self, result: &Result<(), DeviceError>) {
        for completion in self.completions {
            completion.complete(result);
        }
    }
}

/// Operations that wait for a batch, in the order in which they came.
#[derive(Default)]
pub struct Queue {
    operations: VecDeque<(Operation, usize)>,
}

impl Queue {
    /// Adds an operation.
    pub fn push(&mut self, operation: Operation) {
        let bytes = operation.writes.iter().map(Write::bytes).sum();
        self.operations.push_back((operation, bytes));
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// The next batch; `None` if nothing waits. Takes at least one operation.
    pub fn take(&mut self) -> Option<Commit> {
        if self.operations.is_empty() {
            return None;
        }
        let mut commit = Commit::default();
        let mut share = Share::default();
        let mut held = BTreeSet::new();
        let mut waiting = VecDeque::new();
        while let Some((operation, bytes)) = self.operations.pop_front() {
            if share.is_full() {
                waiting.push_back((operation, bytes));
                break;
            }
            if held.contains(&operation.replica) || !share.admit(bytes) {
                held.insert(operation.replica);
                waiting.push_back((operation, bytes));
                continue;
            }
            commit.writes.extend(operation.writes);
            commit.completions.push(operation.completion);
        }
        waiting.append(&mut self.operations);
        self.operations = waiting;
        Some(commit)
    }

    /// Everything, to be failed.
    pub fn drain(&mut self) -> Vec<Completion> {
        self.operations.drain(..).map(|(operation, _)| operation.completion).collect()
    }
}

/// What a batch holds so far.
#[derive(Default)]
struct Share {
    bulk: usize,
    all: usize,
}

impl Share {
    fn is_full(&self) -> bool {
        self.all >= BATCH_BYTES
    }

    /// Counts an operation in, if it fits.
    fn admit(&mut self, bytes: usize) -> bool {
        if bytes >= BULK_ENTRY_BYTES {
            if self.bulk > 0 && self.bulk + bytes > BATCH_BULK_BYTES {
                return false;
            }
            self.bulk += bytes;
        }
        self.all += bytes;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::log::{
        keys::{self, Place},
        lock,
    };

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, u64)>>);

    struct Of(u64, Arc<Recorder>);

    impl Watermark for Of {
        fn reached(&self, operation: u64) {
            lock(&self.1.0).push((self.0, operation));
        }
        fn failed(&self) {}
    }

    fn operation(replica: u64, number: u64, bytes: usize, recorder: &Arc<Recorder>) -> Operation {
        let key = keys::encode(ReplicaId(replica), Place::Entry(number));
        Operation {
            replica: ReplicaId(replica),
            purpose: Purpose::Other,
            writes: vec![Write::Put(key, Bytes::from(vec![0; bytes]))],
            completion: Completion {
                watermark: Some((Arc::new(Of(replica, recorder.clone())), number)),
                ..Completion::default()
            },
        }
    }

    fn sizes(commit: &Commit) -> (usize, usize) {
        let bytes = commit.writes.iter().map(Write::bytes);
        (bytes.clone().sum(), bytes.filter(|bytes| *bytes >= BULK_ENTRY_BYTES).sum())
    }

    proptest! {
        #[test]
        fn completions_of_a_replica_are_in_order_and_batches_keep_their_limits(
            arrivals in prop::collection::vec((0u64..4, prop_oneof![0usize..2000, 60_000usize..300_000], 0u8..4), 1..120),
        ) {
            let recorder = Arc::new(Recorder::default());
            let mut queue = Queue::default();
            let mut numbers = [0u64; 4];
            let mut written = Vec::new();
            let mut step = |queue: &mut Queue| -> Result<(), TestCaseError> {
                let Some(commit) = queue.take() else { return Ok(()) };
                let (all, bulk) = sizes(&commit);
                prop_assert!(bulk <= BATCH_BULK_BYTES && all <= BATCH_BYTES + 300_000);
                written.extend(commit.writes.iter().map(|write| match write {
                    Write::Put(key, _) => keys::decode(key).expect("our key"),
                    Write::DeleteRange(_) => unreachable!("none was queued"),
                }));
                commit.complete(&Ok(()));
                Ok(())
            };
            for (replica, bytes, then) in &arrivals {
                let number = &mut numbers[usize::try_from(*replica).expect("small")];
                *number += 1;
                queue.push(operation(*replica, *number, *bytes, &recorder));
                if *then == 0 {
                    step(&mut queue)?;
                }
            }
            while !queue.is_empty() {
                step(&mut queue)?;
            }
            let completed = lock(&recorder.0).clone();
            prop_assert_eq!(completed.len(), arrivals.len());
            let as_written: Vec<_> = written.iter().map(|(replica, place)| match place {
                Place::Entry(index) => (replica.get(), *index),
                other => unreachable!("{other:?}"),
            }).collect();
            prop_assert_eq!(&completed, &as_written);
            for replica in 0..4 {
                let own: Vec<u64> = completed.iter().filter(|(of, _)| *of == replica).map(|(_, n)| *n).collect();
                prop_assert!(own.windows(2).all(|pair| pair[0] + 1 == pair[1]), "replica {}: {:?}", replica, own);
            }
        }
    }

    #[test]
    fn a_small_write_does_not_wait_for_the_bulk_of_another_replica() {
        let recorder = Arc::new(Recorder::default());
        let mut queue = Queue::default();
        for number in 1..=20 {
            queue.push(operation(1, number, PIECE_BYTES - 17, &recorder));
        }
        queue.push(operation(2, 1, 100, &recorder));
        queue.take().expect("work").complete(&Ok(()));
        assert_eq!(*lock(&recorder.0), [(1, 1), (1, 2), (2, 1)]);
    }

    #[test]
    fn an_operation_larger_than_the_bulk_share_goes_alone_with_small_ones() {
        let recorder = Arc::new(Recorder::default());
        let mut queue = Queue::default();
        queue.push(operation(1, 1, 2 << 20, &recorder));
        queue.push(operation(1, 2, 2 << 20, &recorder));
        queue.push(operation(2, 1, 100, &recorder));
        queue.take().expect("work").complete(&Ok(()));
        assert_eq!(*lock(&recorder.0), [(1, 1), (2, 1)]);
    }
}
