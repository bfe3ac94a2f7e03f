//! Metrics of the sessions of clients.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::{BytesGauge, ShardLabels, add};
use crate::state_machine::sessions::Tally;

/// Sessions of clients. Gauges are the same at each replica of a shard; counts are made at its leader.
#[derive(Clone, Debug, Default)]
pub struct SessionMetrics {
    /// Sessions of each shard here.
    pub open: Family<ShardLabels, BytesGauge>,
    /// Outcomes that they keep.
    pub outcomes: Family<ShardLabels, BytesGauge>,
    replayed: Counter,
    expired: Counter,
    evicted: Counter,
    refused: Family<ReasonLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    /// One of a few.
    reason: String,
}

impl SessionMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self {
            open: add(registry, "kv_sessions_open", "Sessions of each shard here", Family::default()),
            outcomes: add(
                registry,
                "kv_sessions_outcomes",
                "Outcomes of writes that the sessions of a shard keep until they are acknowledged",
                Family::default(),
            ),
            replayed: add(
                registry,
                "kv_sessions_replayed",
                "Writes that came again and were answered with their stored outcome, counted at the leader",
                Counter::default(),
            ),
            expired: add(
                registry,
                "kv_sessions_expired",
                "Sessions that were not used for their time to live, counted at the leader",
                Counter::default(),
            ),
            evicted: add(
                registry,
                "kv_sessions_evicted",
                "Idle sessions that gave way to new ones, counted at the leader",
                Counter::default(),
            ),
            refused: add(
                registry,
                "kv_sessions_refused",
                "Writes in sessions, and new sessions, that were refused, counted at the leader",
                Family::default(),
            ),
        }
    }

    /// Counts what happened.
    pub fn count(&self, tally: &Tally) {
        let Tally { replayed, expired, evicted, refused } = tally;
        for (counter, count) in
            [(&self.replayed, replayed), (&self.expired, expired), (&self.evicted, evicted)]
        {
            if *count > 0 {
                counter.inc_by(*count);
            }
        }
        for (reason, count) in refused {
            self.refused.get_or_create(&ReasonLabels { reason: reason.clone() }).inc_by(*count);
        }
    }
}
