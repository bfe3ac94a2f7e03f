//! What the steps of a write and the routing of a key cost by themselves, in time and in allocations: for finding out what
//! a change does to one step. What a cluster does is measured by `make bench`. `make bench-micro` runs this; words choose
//! some of it, as in: `scripts/bench-micro apply`.
//!
//! Values of 256 B under keys of 16 B, as in `make bench`; times are of a whole batch, and rates of its operations.

#![allow(missing_docs, clippy::unwrap_used, reason = "a measurement that cannot be made ends by panicking")]

mod apply;
mod encode;
mod log;
mod routing;

use bytes::Bytes;
use divan::AllocProfiler;
use kv_proto::disk::v1::{Operation, Put, operation::Kind};
use kv_topology::ReplicaId;
use tikv_jemallocator::Jemalloc;

/// As kvnode's, counted.
#[global_allocator]
static ALLOCATOR: AllocProfiler<Jemalloc> = AllocProfiler::new(Jemalloc);

/// Operations that go together: of one client, of 64, and a full entry.
const BATCHES: [usize; 3] = [1, 64, 512];
/// Different keys.
const KEYS: usize = 100_000;
const VALUE_BYTES: usize = 256;
const REPLICA: ReplicaId = ReplicaId(7);

fn main() {
    divan::main();
}

/// The key with this number, in no order.
fn key(number: usize) -> Bytes {
    // A prime, so that every key comes once before one comes again.
    format!("bench/{:010}", number.wrapping_mul(7_919) % KEYS).into()
}

fn value() -> Bytes {
    vec![7; VALUE_BYTES].into()
}

/// Puts of so many keys, from the key with this number on.
fn puts(first: usize, count: usize) -> Vec<Operation> {
    let value = value();
    let value_crc32c = crc32c::crc32c(&value);
    let put = |number| {
        let put = Put { key: key(number), value: value.clone(), value_crc32c, ..Put::default() };
        Operation { kind: Some(Kind::Put(put)), ..Operation::default() }
    };
    (first..first + count).map(put).collect()
}
