//! Which replicas a node has lost when a database was lost. Pure.
//!
//! | lost | what becomes of the replicas |
//! |---|---|
//! | the log | all are quarantined: their votes are forgotten, and what they acknowledged may be |
//! | the state | those whose log is whole from its first entry on apply it again; the others are quarantined |
//! | both | all are quarantined |
//!
//! Which replicas there were is told by the file `CLUSTER`, by what can still be read of the lost log, and by the state:
//! each of them is believed. A replica that is quarantined needlessly is replaced; one that votes twice splits a group.

use std::collections::BTreeMap;

use kv_proto::disk::v1::{MetaRecord, ReplicaDescriptor};
use kv_topology::ReplicaId;

use crate::log::recovery;

/// What says which replicas were there.
pub struct Traces<'a> {
    /// Logs that were set aside.
    pub lost_logs: &'a [recovery::Damage],
    /// Replicas that this node was told to host.
    pub hosted: &'a [ReplicaDescriptor],
    /// Replicas that have a state.
    pub in_state: &'a [ReplicaId],
    /// The last registry and map.
    pub map: &'a MetaRecord,
}

/// The replicas that have no descriptor in the log and once had one, quarantined.
pub fn without_log(traces: &Traces<'_>, in_log: &[ReplicaDescriptor]) -> Vec<ReplicaDescriptor> {
    let mut lost: BTreeMap<u64, ReplicaDescriptor> = BTreeMap::new();
    for log in traces.lost_logs {
        for replica in &log.replicas {
            lost.entry(replica.replica_id).or_insert_with(|| replica.clone());
        }
    }
    for replica in traces.hosted {
        lost.entry(replica.replica_id).or_insert_with(|| replica.clone());
    }
    for replica in traces.in_state {
        lost.entry(replica.get()).or_insert_with(|| placed(traces.map, *replica));
    }
    let reason = match traces.lost_logs.last() {
        Some(log) => format!("its Raft log was damaged: {}", log.reason),
        None => "its Raft log is gone".to_owned(),
    };
    lost.retain(|id, _| in_log.iter().all(|known| known.replica_id != *id));
    // Its bytes were sound then.
    let gone = |replica| ReplicaDescriptor { replaced_by_group_id: 0, ..replica };
    let mut lost: Vec<_> = lost.into_values().map(gone).collect();
    for replica in lost.iter_mut().filter(|replica| replica.quarantine_reason.is_empty()) {
        replica.quarantine_reason.clone_from(&reason);
    }
    lost
}

/// A replica of which only the id is known.
fn placed(map: &MetaRecord, replica: ReplicaId) -> ReplicaDescriptor {
    let holds = |placement: &kv_proto::disk::v1::ReplicaPlacement| placement.replica_id == replica.get();
    let shard = map.shards.iter().find(|shard| shard.replicas.iter().any(holds));
    ReplicaDescriptor {
        replica_id: replica.get(),
        shard_id: shard.map_or(0, |shard| shard.shard_id),
        group_id: shard.map_or(0, |shard| shard.group_id),
        ..ReplicaDescriptor::default()
    }
}

#[cfg(test)]
mod tests {
    use kv_proto::disk::v1::{ReplicaPlacement, ShardRecord};

    use super::*;

    fn replica(replica_id: u64, reason: &str) -> ReplicaDescriptor {
        let quarantine_reason = reason.to_owned();
        ReplicaDescriptor { replica_id, shard_id: 2, group_id: 2, quarantine_reason, ..Default::default() }
    }

    fn lost_log(replicas: Vec<ReplicaDescriptor>) -> recovery::Damage {
        recovery::Damage { folder: "raftlog.damaged-1".into(), reason: "a bit".to_owned(), replicas }
    }

    const GONE: &str = "its Raft log is gone";
    const DAMAGED: &str = "its Raft log was damaged: a bit";

    #[test]
    fn nothing_is_lost_while_every_replica_has_its_descriptor() {
        let in_log = [replica(1, ""), replica(2, "before"), replica(3, "")];
        let traces = Traces {
            lost_logs: &[],
            hosted: &[replica(1, ""), replica(2, "")],
            in_state: &[ReplicaId(1), ReplicaId(3)],
            map: &MetaRecord::default(),
        };
        assert_eq!(without_log(&traces, &in_log), []);
    }

    #[test]
    fn everything_that_left_a_trace_is_lost_with_the_log() {
        let shard = ShardRecord {
            shard_id: 6,
            group_id: 7,
            replicas: vec![ReplicaPlacement { replica_id: 4, node_id: 1 }],
            ..ShardRecord::default()
        };
        let traces = Traces {
            lost_logs: &[lost_log(vec![replica(1, ""), replica(2, "before")])],
            hosted: &[replica(1, ""), replica(3, "")],
            in_state: &[ReplicaId(1), ReplicaId(4)],
            map: &MetaRecord { shards: vec![shard], ..MetaRecord::default() },
        };
        let only_in_state = ReplicaDescriptor { shard_id: 6, group_id: 7, ..replica(4, DAMAGED) };
        let lost = [replica(1, DAMAGED), replica(2, "before"), replica(3, DAMAGED), only_in_state];
        assert_eq!(without_log(&traces, &[]), lost);
        assert_eq!(without_log(&traces, &lost), [], "each is quarantined once");
    }

    #[test]
    fn a_log_that_vanished_is_noticed_without_a_word_of_it() {
        let traces =
            Traces { lost_logs: &[], hosted: &[replica(1, "")], in_state: &[], map: &MetaRecord::default() };
        assert_eq!(without_log(&traces, &[]), [replica(1, GONE)]);
    }
}
