//! Decides when a replica's log is cut: openraft purges it after a snapshot, and a snapshot is only a statement of
//! what is on disk.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use super::replicas::LocalReplicas;

/// How often the logs are looked at. A log grows past its limit by what is written meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Bytes of log that a replica has.
pub trait LogSize: Send + Sync + 'static {
    /// Of the replica with this id; `None` when it has no log here.
    fn log_bytes(&self, replica: kv_topology::ReplicaId) -> Option<u64>;
}

/// Whether a log is due: it exceeds what is kept by a quarter, so that each cut is worth it.
pub const fn due(log_bytes: u64, retained_bytes: u64) -> bool {
    log_bytes > retained_bytes.saturating_add(retained_bytes / 4)
}

/// Looks at all logs for ever, and starts compaction where it is due.
pub async fn run(replicas: Arc<LocalReplicas>, sizes: Arc<dyn LogSize>, retained_bytes: u64) {
    let mut ticks = interval(LOOK_EVERY.min(period(retained_bytes)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
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
    fn a_log_is_cut_when_it_exceeds_what_is_kept_by_a_quarter() {
        assert!(!due(100, 100));
        assert!(!due(125, 100));
        assert!(due(126, 100));
        assert!(!due(u64::MAX, u64::MAX));
    }
}
