//! Which part of the node feeds which metrics, and the gauges that are read when somebody looks.

use kv_proto::disk::v1::{MetaRecord, NodeState};

use super::{core::Core, memory::MemoryPlan, readiness, tolerance::tolerance};
use crate::{
    api::measure::ApiMetrics,
    group::{proposer::ADMITTED_BYTES_MAX, read_gate::READS_WAITING_MAX, replica::Replica},
    meta::machine::open_permit,
    metrics::{
        Counts, GroupMetrics, LinkMetrics, LogMetrics, Metrics, Queue, QueueMetric, ShardLabels,
        StorageMetrics,
    },
    router::Maps as _,
    runtime::{open_files, process::Usage},
    state::{pins::PINS_MAX, read_pool::READS_QUEUED_MAX},
    state_machine::worker::JOBS_MAX,
    transport::Limits,
};

/// The handles of each part of a node.
#[derive(Clone, Debug)]
pub struct Meters {
    /// The client port.
    pub api: ApiMetrics,
    /// The replicas.
    pub groups: GroupMetrics,
    /// The log.
    pub log: LogMetrics,
    /// The transport.
    pub links: LinkMetrics,
    log_commits: QueueMetric,
    applies: QueueMetric,
    pins: QueueMetric,
    disk_reads: QueueMetric,
    /// Writes of other nodes.
    pub forwarded_bytes: QueueMetric,
}

impl Meters {
    /// Takes the handles from the node's metrics, with the bounds of the queues.
    pub fn of(metrics: &Metrics, limits: &Limits, memory: &MemoryPlan) -> Self {
        let queues = &metrics.queues;
        let api = ApiMetrics {
            requests: metrics.requests.clone(),
            limits: metrics.limits.clone(),
            batch: metrics.batch.clone(),
            ..ApiMetrics::default()
        };
        let groups = GroupMetrics {
            raft: metrics.raft.clone(),
            proposals: queues.of(Queue::proposals, ADMITTED_BYTES_MAX),
            reads: queues.of(Queue::read_index, READS_WAITING_MAX),
        };
        let disk_reads = queues.of(Queue::disk_reads, READS_QUEUED_MAX);
        let storage = StorageMetrics { reads: disk_reads.clone(), ..metrics.storage.clone() };
        let log = LogMetrics { storage, elections: metrics.raft.elections.clone() };
        let links = LinkMetrics {
            transport: metrics.transport.clone(),
            inbox: queues.of(Queue::replica_inbox, limits.inbox_frames),
            outbox: queues.of(Queue::peer_outbox, limits.queued_frames),
            requests: queues.of(Queue::forwarded, limits.requests_in_hand),
        };
        let (log_commits, applies) =
            (queues.of(Queue::log_commits, memory.log_queue), queues.of(Queue::applies, JOBS_MAX));
        let pins = queues.of(Queue::pins, PINS_MAX);
        let forwarded_bytes = queues.of(Queue::forwarded_bytes, memory.forwarded);
        Self { api, groups, log, links, log_commits, applies, pins, disk_reads, forwarded_bytes }
    }
}

/// Fills every gauge that is not kept all the time.
pub fn gauges(core: &Core) {
    let (metrics, meters) = (&core.metrics, &core.meters);
    let status = core.node_status();
    readiness::measure(metrics, &status);
    metrics.meta.show(&counts(&core.maps.meta()));
    // A shard that has left this node must not be shown as it was then.
    metrics.raft.term.clear();
    metrics.raft.apply_lag_entries.clear();
    metrics.raft.leader_known.clear();
    metrics.raft.fault_tolerance.clear();
    for replica in &status.replicas {
        let shard = ShardLabels { shard: replica.shard_id };
        metrics.raft.term.get_or_create(&shard).set(replica.term);
        let lag = replica.committed_index.saturating_sub(replica.applied_index);
        metrics.raft.apply_lag_entries.get_or_create(&shard).set(lag);
        let leader_known = metrics.raft.leader_known.get_or_create(&shard);
        // Beside one that is quarantined there may be its replacement.
        if replica.leader_node_id != 0 {
            leader_known.set(1);
        }
    }
    metrics.storage.log_tail_bytes.set(core.stores.log.tail_bytes() as u64);
    metrics.storage.heads_bytes.set(core.stores.state.heads_bytes() as u64);
    set(&meters.log_commits, core.stores.log.queued_bytes());
    set(&meters.applies, core.stores.state.queued_applies());
    let pins = core.stores.state.pins();
    set(&meters.pins, pins.kept());
    meters.pins.refused.inc_by(pins.take_refused());
    set(&meters.disk_reads, core.stores.state.reads_waiting());
    meters.api.measure();
    metrics.process.show(&Usage::now(), open_files::limit());
    let Some(member) = core.member.get() else { return };
    let replicas = member.replicas.all();
    set(&meters.groups.proposals, replicas.iter().map(|replica| replica.proposer.admitted_bytes()).sum());
    set(&meters.groups.reads, replicas.iter().map(|replica| replica.gate.waiting()).sum());
    member.transport.measure();
    measure_sessions(core, &replicas);
    for replica in &replicas {
        // Only leaders know.
        let Ok(group) = replica.control.describe() else { continue };
        let shard = ShardLabels { shard: replica.shard.get() };
        metrics.raft.fault_tolerance.get_or_create(&shard).set(tolerance(&group));
    }
}

/// What goes on in the cluster. Pure.
fn counts(record: &MetaRecord) -> Counts {
    let in_state = |state: NodeState| record.nodes.iter().filter(|node| node.state() == state).count();
    let states = [
        ("joining", NodeState::Joining),
        ("active", NodeState::Active),
        ("draining", NodeState::Draining),
        ("drained", NodeState::Drained),
        ("lost", NodeState::Lost),
        ("removed", NodeState::Removed),
    ];
    Counts {
        nodes: states.map(|(name, state)| (name, in_state(state))).to_vec(),
        moves: record.shards.iter().filter(|shard| shard.r#move.is_some()).count(),
        // The id of the next one, from 1 on.
        moves_begun: record.next_move_id.saturating_sub(1),
        permits_open: usize::from(open_permit(record).is_some()),
    }
}

/// Each replica of a shard has the same sessions.
fn measure_sessions(core: &Core, replicas: &[Replica]) {
    let metrics = &core.metrics.storage.sessions;
    metrics.open.clear();
    metrics.outcomes.clear();
    for replica in replicas.iter().filter(|replica| !replica.shard.is_meta()) {
        let shard = ShardLabels { shard: replica.shard.get() };
        let (open, outcomes) = replica.state.sessions();
        metrics.open.get_or_create(&shard).set(open as u64);
        metrics.outcomes.get_or_create(&shard).set(outcomes as u64);
    }
}

fn set(queue: &QueueMetric, length: usize) {
    queue.length.set(i64::try_from(length).unwrap_or(i64::MAX));
}

#[cfg(test)]
mod tests {
    use kv_proto::disk::v1::{Move, NodeRecord, Permit, ShardRecord};

    use super::*;

    #[test]
    fn nodes_count_in_their_states_and_only_what_goes_on_now() {
        let node = |state: NodeState| NodeRecord { state: state.into(), ..NodeRecord::default() };
        let record = MetaRecord {
            nodes: vec![node(NodeState::Active), node(NodeState::Active), node(NodeState::Lost)],
            shards: vec![
                ShardRecord::default(),
                ShardRecord { r#move: Some(Move::default()), ..ShardRecord::default() },
            ],
            permits: vec![Permit { overdue: true, ..Permit::default() }],
            next_move_id: 4,
            ..MetaRecord::default()
        };
        let Counts { nodes, moves, moves_begun, permits_open } = counts(&record);
        assert_eq!((moves, moves_begun, permits_open), (1, 3, 0));
        let counted: Vec<_> = nodes.into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [("active", 2), ("lost", 1)]);
        assert_eq!(counts(&MetaRecord::default()).moves_begun, 0);
    }
}
