//! What the nodes say of themselves, and the questions that tests ask of it. Pure.

use kv_proto::admin::v1::{NodeStatus, Phase, ReplicaStatus, Role};

/// The replica of `shard` on a node.
pub fn replica(status: &NodeStatus, shard: u32) -> Option<&ReplicaStatus> {
    status.replicas.iter().find(|replica| replica.shard_id == shard)
}

/// The position in `statuses` of the node that leads `shard`: of several that think so, the one with the greatest
/// term. `None` entries are nodes that did not answer.
pub fn leader(statuses: &[Option<NodeStatus>], shard: u32) -> Option<usize> {
    leading(statuses, shard).max_by_key(|(_, replica)| replica.term).map(|(index, _)| index)
}

fn leading(statuses: &[Option<NodeStatus>], shard: u32) -> impl Iterator<Item = (usize, &ReplicaStatus)> {
    statuses.iter().enumerate().filter_map(move |(index, status)| {
        let replica = replica(status.as_ref()?, shard)?;
        (replica.role() == Role::Leader).then_some((index, replica))
    })
}

/// All shards that any node knows of, meta included.
pub fn shards(statuses: &[Option<NodeStatus>]) -> Vec<u32> {
    let mut shards: Vec<u32> = statuses
        .iter()
        .flatten()
        .flat_map(|status| &status.replicas)
        .map(|replica| replica.shard_id)
        .collect();
    shards.sort_unstable();
    shards.dedup();
    shards
}

/// Says what keeps the answering nodes from being a cluster that serves everything: each running and ready, every
/// shard led with at least `voters` voters.
///
/// # Errors
/// The first thing that is missing.
pub fn is_whole(statuses: &[Option<NodeStatus>], data_shards: usize, voters: usize) -> Result<(), String> {
    for (index, status) in statuses.iter().enumerate() {
        let status = status.as_ref().ok_or_else(|| format!("node {index} does not answer"))?;
        if status.phase() != Phase::Running || !status.ready {
            return Err(format!(
                "node {index} is {:?}, ready {}: {}",
                status.phase(),
                status.ready,
                status.message
            ));
        }
    }
    let shards = shards(statuses);
    if shards.len() < data_shards + 1 {
        return Err(format!("only the shards {shards:?} exist"));
    }
    for shard in shards {
        let Some((_, replica)) = leading(statuses, shard).max_by_key(|(_, replica)| replica.term) else {
            return Err(format!("shard {shard} has no leader"));
        };
        if replica.voter_node_ids.len() < voters {
            return Err(format!("shard {shard} has the voters {:?}, not {voters}", replica.voter_node_ids));
        }
    }
    Ok(())
}

/// Says which replica has not applied what its shard's leader has committed.
///
/// # Errors
/// The first replica that lags, and by how much.
pub fn is_caught_up(statuses: &[Option<NodeStatus>]) -> Result<(), String> {
    for shard in shards(statuses) {
        let Some((_, leader)) = leading(statuses, shard).max_by_key(|(_, replica)| replica.term) else {
            return Err(format!("shard {shard} has no leader"));
        };
        for (index, status) in statuses.iter().enumerate() {
            let Some(replica) = status.as_ref().and_then(|status| replica(status, shard)) else { continue };
            if replica.applied_index < leader.committed_index {
                return Err(format!(
                    "shard {shard} on node {index} has applied {} of {}",
                    replica.applied_index, leader.committed_index
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(replicas: &[(u32, Role, u64, u64)]) -> Option<NodeStatus> {
        let replicas = replicas
            .iter()
            .map(|(shard, role, term, applied)| ReplicaStatus {
                shard_id: *shard,
                role: (*role).into(),
                term: *term,
                applied_index: *applied,
                committed_index: *applied,
                voter_node_ids: vec![1, 2, 3],
                ..Default::default()
            })
            .collect();
        Some(NodeStatus { phase: Phase::Running.into(), ready: true, replicas, ..Default::default() })
    }

    #[test]
    fn leader_of_the_greatest_term_wins() {
        let statuses = [node(&[(1, Role::Leader, 3, 0)]), None, node(&[(1, Role::Leader, 5, 0)])];
        assert_eq!(leader(&statuses, 1), Some(2));
        assert_eq!(leader(&statuses, 2), None);
    }

    #[test]
    fn cluster_without_a_leader_or_with_a_silent_node_is_not_whole() {
        let led = node(&[(0, Role::Leader, 1, 0), (1, Role::Leader, 1, 0)]);
        let follows = node(&[(0, Role::Follower, 1, 0), (1, Role::Follower, 1, 0)]);
        assert_eq!(is_whole(&[led.clone(), follows.clone()], 1, 3), Ok(()));
        assert!(is_whole(&[led.clone(), None], 1, 3).is_err());
        assert!(is_whole(&[follows.clone(), follows.clone()], 1, 3).is_err());
        assert!(is_whole(&[led.clone(), follows.clone()], 2, 3).is_err());
        assert!(is_whole(&[led, follows], 1, 5).is_err());
    }

    #[test]
    fn follower_behind_the_commit_is_not_caught_up() {
        let leads = node(&[(1, Role::Leader, 1, 9)]);
        assert_eq!(is_caught_up(&[leads.clone(), node(&[(1, Role::Follower, 1, 9)])]), Ok(()));
        assert!(is_caught_up(&[leads, node(&[(1, Role::Follower, 1, 8)])]).is_err());
    }
}
