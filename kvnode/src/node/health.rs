//! What a node says of replicas that are out of service. Pure.

use kv_proto::admin::v1::{ReplicaStatus, Role};

/// One sentence about the replicas that are quarantined or have stopped; empty when all run.
pub fn summary(replicas: &[ReplicaStatus]) -> String {
    let (quarantined, stopped) = (of(replicas, Role::Quarantined), of(replicas, Role::Stopped));
    let parts = [("quarantined", &quarantined), ("stopped", &stopped)].map(|(state, affected)| {
        let first = affected.first()?;
        let (count, all) = (affected.len(), replicas.len());
        let count = if count == all { format!("all {all}") } else { format!("{count} of {all}") };
        Some(format!("{count} replicas {state}; shard {}: {}", first.shard_id, first.message))
    });
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// Why clients must not be sent here: a replica has stopped, or all are quarantined. A node that has lost some of its
/// replicas for good serves with the others, and forwards.
pub fn unfit(replicas: &[ReplicaStatus]) -> Option<String> {
    let lost = of(replicas, Role::Quarantined).len();
    let all_lost = lost > 0 && lost == replicas.len();
    let unfit = all_lost || !of(replicas, Role::Stopped).is_empty();
    unfit.then(|| summary(replicas))
}

fn of(replicas: &[ReplicaStatus], role: Role) -> Vec<&ReplicaStatus> {
    replicas.iter().filter(|replica| replica.role() == role).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(shard_id: u32, role: Role) -> ReplicaStatus {
        let message = if role == Role::Follower { String::new() } else { format!("why {shard_id}") };
        ReplicaStatus { shard_id, role: role.into(), message, ..ReplicaStatus::default() }
    }

    #[test]
    fn replicas_that_run_need_no_words() {
        assert_eq!(summary(&[]), "");
        assert_eq!(summary(&[replica(1, Role::Follower)]), "");
        assert_eq!(unfit(&[]), None);
    }

    #[test]
    fn a_node_that_lost_one_replica_says_so_and_serves() {
        let replicas = [replica(1, Role::Follower), replica(2, Role::Quarantined)];
        assert_eq!(summary(&replicas), "1 of 2 replicas quarantined; shard 2: why 2");
        assert_eq!(unfit(&replicas), None);
    }

    #[test]
    fn a_node_that_lost_all_replicas_or_has_a_stopped_one_is_unfit() {
        let lost = [replica(0, Role::Quarantined), replica(2, Role::Quarantined)];
        assert_eq!(unfit(&lost).as_deref(), Some("all 2 replicas quarantined; shard 0: why 0"));
        let stopped = [replica(0, Role::Follower), replica(2, Role::Stopped)];
        assert_eq!(unfit(&stopped).as_deref(), Some("1 of 2 replicas stopped; shard 2: why 2"));
    }
}
