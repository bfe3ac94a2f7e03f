//! The device of the log: one batch with one entry.

use std::sync::atomic::{AtomicU64, Ordering};

use divan::{Bencher, counter::BytesCount};
use kvnode::log::{
    LogDevice,
    device::Write,
    keys::{Place, encode},
    recovery,
};

use crate::REPLICA;

/// Of an entry: one put, 64 puts, and the most that one entry holds.
const ENTRIES: [usize; 3] = [300, 20_000, 256 << 10];

fn append(bencher: Bencher<'_, '_>, bytes: usize, sync: bool) {
    let folder = tempfile::tempdir().unwrap();
    let device = recovery::open(folder.path()).unwrap().device;
    let (index, payload) = (AtomicU64::new(0), bytes::Bytes::from(vec![7; bytes]));
    bencher
        .counter(BytesCount::new(bytes))
        .with_inputs(|| {
            let place = Place::Entry(index.fetch_add(1, Ordering::Relaxed));
            [Write::Put(encode(REPLICA, place), payload.clone())]
        })
        .bench_local_refs(|batch| device.write(batch, sync).unwrap());
}

/// What an append costs the committer's processor.
#[divan::bench(args = ENTRIES)]
fn append_without_sync(bencher: Bencher<'_, '_>, bytes: usize) {
    append(bencher, bytes, false);
}

/// What it takes until the entry is on the disk.
#[divan::bench(args = ENTRIES)]
fn append_with_sync(bencher: Bencher<'_, '_>, bytes: usize) {
    append(bencher, bytes, true);
}
