//! The memory that the tails of all replicas of a node may take together.
//!
//! Over the budget, the replica that takes most gives up entries until the rest fits: bulk of all replicas first,
//! then the oldest of the others. Entries that are not durable stay, so that the budget can be exceeded by what is
//! queued for the device, which has a bound of its own ([`LogBudget::queue_bytes`]).

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use kv_topology::ReplicaId;

use crate::log::{
    lock,
    tail::{Leaving, Usage},
};

/// What the logs of a node may hold in memory beside their store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogBudget {
    /// Decoded tails, in bytes: some seconds of full write load, so that followers that lag by a hiccup never make the leader
    /// read its disk.
    pub tail_bytes: usize,
    /// Bytes that may wait for the device, of all replicas. More would only make latency, not throughput.
    pub queue_bytes: usize,
}

impl Default for LogBudget {
    /// As much as brings anything.
    fn default() -> Self {
        Self { tail_bytes: 64 << 20, queue_bytes: 64 << 20 }
    }
}

/// Bytes that may wait for the device, of one replica: a group that is flooded must not stop the others.
pub const REPLICA_QUEUE_BYTES: usize = 8 << 20;

/// What an operation counts in these bounds beside its bytes, so that they also bound the number of operations
/// (131,072 a node with the default, 16,384 a replica).
pub const OPERATION_OVERHEAD_BYTES: usize = 512;

/// A tail that can give up entries.
pub trait Holder: Send + Sync {
    /// What it takes now.
    fn usage(&self) -> Usage;

    /// Gives up entries until `bytes` are free; returns how many it freed.
    fn release(&self, leaving: Leaving, bytes: usize) -> usize;
}

/// The budget and who shares it.
pub struct TailBudget {
    limit: usize,
    used: AtomicUsize,
    holders: Mutex<BTreeMap<ReplicaId, Weak<dyn Holder>>>,
}

impl TailBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, used: AtomicUsize::new(0), holders: Mutex::default() }
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Adds a replica.
    pub fn join(&self, replica: ReplicaId, holder: Weak<dyn Holder>) {
        lock(&self.holders).insert(replica, holder);
    }

    /// Counts a change of a holder's usage. The holder calls it with its own lock held, so that the sum is exact.
    pub fn changed(&self, before: usize, after: usize) {
        if after >= before {
            self.used.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.used.fetch_sub(before - after, Ordering::Relaxed);
        }
    }

    /// Makes the tails fit. Called without any holder's lock.
    pub fn enforce(&self) {
        if self.used() <= self.limit {
            return;
        }
        let mut holders: Vec<(ReplicaId, Arc<dyn Holder>)> = Vec::new();
        lock(&self.holders).retain(|replica, holder| {
            let holder = holder.upgrade();
            holders.extend(holder.clone().map(|holder| (*replica, holder)));
            holder.is_some()
        });
        self.shrink(&mut holders, Leaving::Bulk, |usage| usage.bulk);
        self.shrink(&mut holders, Leaving::Oldest, Usage::total);
    }

    fn shrink(
        &self,
        holders: &mut [(ReplicaId, Arc<dyn Holder>)],
        leaving: Leaving,
        weight: impl Fn(Usage) -> usize,
    ) {
        holders.sort_by_key(|(replica, holder)| (Reverse(weight(holder.usage())), *replica));
        for (_, holder) in holders {
            let excess = self.used().saturating_sub(self.limit);
            if excess == 0 {
                return;
            }
            holder.release(leaving, excess);
        }
    }
}
