//! Whether clients should be sent to this node: its replicas have caught up with what they know to be committed.
//!
//! With hysteresis, so that a node under load does not flap; a shard without a leader keeps the last verdict, and a
//! learner that is still being filled does not count.

use std::collections::BTreeMap;

use kv_proto::admin::v1::{NodeStatus, ReplicaStatus, Role};

use crate::{http::Verdict, metrics::Metrics};

/// A replica that lags more than this has fallen behind, entries.
const BEHIND_FROM: u64 = 10_000;
/// A replica that was behind has caught up when it lags no more than this, entries.
const CAUGHT_UP_AT: u64 = 100;

/// The last verdict of each replica.
#[derive(Debug, Default)]
pub struct Readiness {
    caught_up: BTreeMap<u64, bool>,
}

impl Readiness {
    /// The verdict after another look at the replicas.
    pub fn observe(&mut self, replicas: &[ReplicaStatus]) -> Verdict {
        for replica in replicas {
            let (lag, known) =
                (replica.committed_index.saturating_sub(replica.applied_index), replica.leader_node_id != 0);
            let before = self.caught_up.get(&replica.replica_id).copied();
            let now = match (replica.role(), before) {
                (Role::Learner | Role::Quarantined, _) => true,
                // A replica that has just started and has heard of no leader knows nothing of its lag.
                (_, before) if !known => before.unwrap_or(false),
                (_, Some(true)) => lag <= BEHIND_FROM,
                (_, Some(false) | None) => lag <= CAUGHT_UP_AT,
            };
            self.caught_up.insert(replica.replica_id, now);
        }
        self.caught_up.retain(|id, _| replicas.iter().any(|replica| replica.replica_id == *id));
        let behind = replicas.iter().find(|replica| !self.caught_up[&replica.replica_id]);
        behind.map_or(Verdict::Ok, |replica| {
            Verdict::No(format!("the replica of shard {} has not caught up", replica.shard_id))
        })
    }
}

/// Fills the gauges that are read from the status.
pub fn measure(metrics: &Metrics, status: &NodeStatus) {
    let count = |role: Role| status.replicas.iter().filter(|replica| replica.role() == role).count();
    metrics.node.ready.set(i64::from(status.ready));
    metrics.node.map_epoch.set(status.map_epoch);
    metrics.node.leaderships.set(i64::try_from(count(Role::Leader)).unwrap_or(i64::MAX));
    metrics.node.replicas.set(i64::try_from(status.replicas.len()).unwrap_or(i64::MAX));
    metrics.node.quarantined_replicas.set(i64::try_from(count(Role::Quarantined)).unwrap_or(i64::MAX));
    metrics.node.disk_level.set(i64::from(status.disk_level));
    metrics.node.disk_total_bytes.set(status.disk_total_bytes);
    metrics.node.disk_free_bytes.set(status.disk_total_bytes.saturating_sub(status.disk_used_bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(role: Role, leader: u64, lag: u64) -> ReplicaStatus {
        ReplicaStatus {
            replica_id: 7,
            shard_id: 1,
            role: role.into(),
            leader_node_id: leader,
            committed_index: 50_000,
            applied_index: 50_000 - lag,
            ..ReplicaStatus::default()
        }
    }

    #[test]
    fn a_node_is_ready_once_it_has_caught_up_and_stays_so_under_a_small_lag() {
        let mut readiness = Readiness::default();
        assert_ne!(readiness.observe(&[replica(Role::Follower, 2, 5_000)]), Verdict::Ok);
        assert_eq!(readiness.observe(&[replica(Role::Follower, 2, 10)]), Verdict::Ok);
        assert_eq!(readiness.observe(&[replica(Role::Follower, 2, 5_000)]), Verdict::Ok);
        assert_ne!(readiness.observe(&[replica(Role::Follower, 2, 20_000)]), Verdict::Ok);
    }

    #[test]
    fn a_shard_without_a_leader_keeps_the_last_verdict() {
        let mut readiness = Readiness::default();
        assert_ne!(readiness.observe(&[replica(Role::Follower, 0, 0)]), Verdict::Ok);
        assert_eq!(readiness.observe(&[replica(Role::Leader, 1, 0)]), Verdict::Ok);
        assert_eq!(readiness.observe(&[replica(Role::Candidate, 0, 0)]), Verdict::Ok);
    }

    #[test]
    fn a_learner_that_is_being_filled_does_not_count() {
        assert_eq!(Readiness::default().observe(&[replica(Role::Learner, 2, 50_000)]), Verdict::Ok);
    }
}
