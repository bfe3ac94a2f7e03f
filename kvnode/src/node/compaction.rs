//! Decides when a replica's log is cut: openraft purges it after a snapshot, and a snapshot is only a statement of
//! what is on disk.
//!
//! Logs are bounded in bytes, for the disk, and in entries, for memory: where each entry is must be known, however small it
//! is. Where entries come faster than the state is flushed by itself, it is flushed for them.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use kv_topology::ReplicaId;
use tokio::time::{MissedTickBehavior, interval};

use super::{replicas::LocalReplicas, space::Disk};
use crate::log::extent::LogSize;

/// How often the logs are looked at. A log grows past its limit by what is written meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The logs of a node's replicas, and the states that they lead to.
pub trait Logs: Send + Sync + 'static {
    /// How large the log of the replica with this id is; `None` when it has no log here.
    fn size(&self, replica: ReplicaId) -> Option<LogSize>;

    /// Makes all states durable as they are now, so that the logs may be cut up to there.
    fn flush(&self) -> BoxFuture<'static, ()>;
}

/// Memory that knowing where an entry is takes, bytes: its place, its size, and what growing collections leave free.
const ENTRY_INDEX_BYTES: u64 = 32;

/// However many replicas there are, each keeps so many entries: a follower may lag so far without a snapshot.
const ENTRIES_KEPT_MIN: u64 = 2_000;

/// The logs of all replicas of a node keep at most this share of its volume.
const VOLUME_DIVISOR: u64 = 10;

/// Log that each replica keeps behind what is compacted, bytes: `configured`, and less where the logs of all
/// `replicas` would keep more than a tenth of the volume. A volume of unknown size (0) bounds nothing.
pub const fn retained(configured: u64, volume_bytes: u64, replicas: usize) -> u64 {
    let replicas = if replicas == 0 { 1 } else { replicas as u64 };
    let share = volume_bytes / VOLUME_DIVISOR / replicas;
    if volume_bytes > 0 && share < configured { share } else { configured }
}

/// Entries that the logs of a node may have in all, for so much memory.
pub const fn entries_max(index_bytes: usize) -> u64 {
    index_bytes as u64 / ENTRY_INDEX_BYTES
}

/// Entries that each of `replicas` keeps behind what is compacted: half of what all may have, since as many may wait for the
/// state to be flushed.
pub const fn entries_retained(entries_max: u64, replicas: usize) -> u64 {
    let replicas = if replicas == 0 { 1 } else { replicas as u64 };
    let share = entries_max / 2 / replicas;
    if share < ENTRIES_KEPT_MIN { ENTRIES_KEPT_MIN } else { share }
}

/// What [`retained`] and [`entries_retained`] say of a node, each time anew: replicas come and go, and volumes grow.
#[derive(Clone)]
pub struct Retention {
    each: Arc<dyn Fn() -> LogSize + Send + Sync>,
    entries_max: u64,
}

impl Retention {
    /// Of these replicas on this disk, with so much memory for where their entries are.
    pub fn of_node(
        configured: u64,
        index_bytes: usize,
        disk: Arc<Disk>,
        replicas: Arc<LocalReplicas>,
    ) -> Self {
        let entries_max = entries_max(index_bytes);
        let volume = move || disk.space().map_or(0, |space| space.total.get());
        let each = move || {
            let count = replicas.all().len();
            let bytes = retained(configured, volume(), count);
            LogSize { bytes, entries: entries_retained(entries_max, count) }
        };
        Self { each: Arc::new(each), entries_max }
    }

    /// For each replica.
    pub fn each(&self) -> LogSize {
        (self.each)()
    }

    /// Whether logs with so many entries in all are about to take more memory than they may.
    fn is_short_of_memory(&self, entries: u64) -> bool {
        entries > self.entries_max / 4 * 3
    }
}

impl From<u64> for Retention {
    fn from(bytes: u64) -> Self {
        Self { each: Arc::new(move || LogSize::of_bytes(bytes)), entries_max: u64::MAX }
    }
}

/// Whether a log is due: it exceeds what is kept by a quarter, so that each cut is worth it.
pub const fn due(log: LogSize, kept: LogSize) -> bool {
    exceeds(log.bytes, kept.bytes) || exceeds(log.entries, kept.entries)
}

const fn exceeds(size: u64, kept: u64) -> bool {
    size > kept.saturating_add(kept / 4)
}

/// Looks at all logs for ever, and starts compaction where it is due.
pub async fn run(replicas: Arc<LocalReplicas>, logs: Arc<dyn Logs>, retention: impl Into<Retention> + Send) {
    let retention = retention.into();
    let mut ticks = interval(period(retention.each().bytes));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let kept = retention.each();
        let mut entries = 0;
        for replica in replicas.all() {
            let Some(size) = logs.size(replica.id) else { continue };
            entries += size.entries;
            if due(size, kept) {
                replica.control.compact().await;
            }
        }
        if retention.is_short_of_memory(entries) {
            logs.flush().await;
        }
    }
}

/// Small logs, as in tests, are looked at more often.
fn period(retained_bytes: u64) -> Duration {
    if retained_bytes < 1 << 20 { Duration::from_millis(200) } else { LOOK_EVERY }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logs_of_a_node_keep_at_most_a_tenth_of_its_volume() {
        const MIB: u64 = 1 << 20;
        let configured = 64 * MIB;
        for (volume, replicas, expected) in [
            (0, 9, configured),
            (100_000 * MIB, 9, configured),
            (10 * 64 * MIB * 9, 9, configured),
            (10 * 64 * MIB * 9, 10, 64 * MIB * 9 / 10),
            (1_000 * MIB, 10, 10 * MIB),
            (1_000 * MIB, 0, configured),
            (100 * MIB, 0, 10 * MIB),
        ] {
            assert_eq!(retained(configured, volume, replicas), expected, "{replicas} on {volume} B");
        }
        assert_eq!(retained(0, 1_000 * MIB, 1), 0);
    }

    #[test]
    fn a_log_is_cut_when_it_exceeds_what_is_kept_by_a_quarter() {
        let size = |bytes, entries| LogSize { bytes, entries };
        let kept = size(100, 1_000);
        assert!(!due(size(100, 10), kept));
        assert!(!due(size(125, 1_250), kept));
        assert!(due(size(126, 10), kept));
        assert!(due(size(10, 1_251), kept));
        assert!(!due(size(u64::MAX, u64::MAX), LogSize::of_bytes(u64::MAX)));
    }

    #[test]
    fn however_small_entries_are_their_logs_keep_to_their_memory() {
        let most = entries_max(32 << 20);
        assert_eq!(most, 1 << 20);
        for replicas in [0, 1, 9, 65, 250] {
            let all = entries_retained(most, replicas) * replicas.max(1) as u64;
            assert!(all + all / 4 < most / 4 * 3, "{replicas} replicas keep {all} until each is due");
        }
        assert_eq!(entries_retained(most, 10_000), ENTRIES_KEPT_MIN);
        assert_eq!(entries_retained(0, 1), ENTRIES_KEPT_MIN);
        let limited = Retention { entries_max: most, ..Retention::from(0) };
        assert!(limited.is_short_of_memory(most) && !limited.is_short_of_memory(most / 2));
        assert!(!Retention::from(0).is_short_of_memory(u64::MAX / 2));
    }
}
