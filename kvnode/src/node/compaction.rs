//! Decides when a replica's log is cut: openraft purges it after a snapshot, and a snapshot is only a statement of
//! what is on disk.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use super::{replicas::LocalReplicas, space::Disk};

/// How often the logs are looked at. A log grows past its limit by what is written meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Bytes of log that a replica has.
pub trait LogSize: Send + Sync + 'static {
    /// Of the replica with this id; `None` when it has no log here.
    fn log_bytes(&self, replica: kv_topology::ReplicaId) -> Option<u64>;
}

/// The logs of all replicas of a node keep at most this share of its volume.
const VOLUME_DIVISOR: u64 = 10;

/// Log that each replica keeps behind what is compacted, bytes: `configured`, and less where the logs of all
/// `replicas` would keep more than a tenth of the volume. A volume of unknown size (0) bounds nothing.
pub const fn retained(configured: u64, volume_bytes: u64, replicas: usize) -> u64 {
    let replicas = if replicas == 0 { 1 } else { replicas as u64 };
    let share = volume_bytes / VOLUME_DIVISOR / replicas;
    if volume_bytes > 0 && share < configured { share } else { configured }
}

/// What [`retained`] says of a node, each time anew: replicas come and go, and volumes grow.
#[derive(Clone)]
pub struct Retention(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Retention {
    /// Of these replicas on this disk.
    pub fn on_disk(configured: u64, disk: Arc<Disk>, replicas: Arc<LocalReplicas>) -> Self {
        let volume = move || disk.space().map_or(0, |space| space.total.get());
        Self(Arc::new(move || retained(configured, volume(), replicas.all().len())))
    }

    /// For each replica, bytes.
    pub fn bytes(&self) -> u64 {
        (self.0)()
    }
}

impl From<u64> for Retention {
    fn from(bytes: u64) -> Self {
        Self(Arc::new(move || bytes))
    }
}

/// Whether a log is due: it exceeds what is kept by a quarter, so that each cut is worth it.
pub const fn due(log_bytes: u64, retained_bytes: u64) -> bool {
    log_bytes > retained_bytes.saturating_add(retained_bytes / 4)
}

/// Looks at all logs for ever, and starts compaction where it is due.
pub async fn run(
    replicas: Arc<LocalReplicas>,
    sizes: Arc<dyn LogSize>,
    retention: impl Into<Retention> + Send,
) {
    let retention = retention.into();
    let mut ticks = interval(LOOK_EVERY.min(period(retention.bytes())));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let retained_bytes = retention.bytes();
        for replica in replicas.all() {
            if sizes.log_bytes(replica.id).is_some_and(|bytes| due(bytes, retained_bytes)) {
                replica.control.compact().await;
            }
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
        assert!(!due(100, 100));
        assert!(!due(125, 100));
        assert!(due(126, 100));
        assert!(!due(u64::MAX, u64::MAX));
    }
}
