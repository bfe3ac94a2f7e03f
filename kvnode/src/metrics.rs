//! Every metric of a node, in one place.
//!
//! A node has a registry of its own: several nodes of one process do not mix. Names begin with `kv_`, then the part
//! of the node, but for those of the process, which are Prometheus' own; units are base units and end the name. Labels are few and bounded: a method, a status, a queue, a
//! shard; never a key, an address or an id that grows.
//!
//! Handles are cheap to clone and to update; a part of the node is given its own group, such as [`RaftMetrics`]. A
//! family looks its labels up under a lock: on a hot path, take the handle once with `get_or_create_owned`.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Metric, Registry},
};

use crate::runtime::process::Usage;

mod meta;
mod sessions;

pub use meta::{Counts, MetaMetrics};
pub use sessions::SessionMetrics;

/// A metric that counts up to more than an i64 of bytes would.
pub type BytesGauge = Gauge<u64, AtomicU64>;

/// All metrics of one node.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// The node as a whole.
    pub node: NodeMetrics,
    /// The client API.
    pub requests: RequestMetrics,
    /// What clients hold.
    pub limits: LimitMetrics,
    /// Batch streams.
    pub batch: BatchMetrics,
    /// The Raft groups.
    pub raft: RaftMetrics,
    /// The cluster.
    pub meta: MetaMetrics,
    /// Log and state stores.
    pub storage: StorageMetrics,
    /// Streams to other nodes.
    pub transport: TransportMetrics,
    /// Bounded queues.
    pub queues: QueueMetrics,
    /// The process.
    pub process: ProcessMetrics,
}

/// The node as a whole.
#[derive(Clone, Debug, Default)]
pub struct NodeMetrics {
    /// 1: clients should be sent here.
    pub ready: Gauge,
    /// Epoch of the shard map that the node knows.
    pub map_epoch: BytesGauge,
    /// Groups that are led here.
    pub leaderships: Gauge,
    /// Replicas that live here.
    pub replicas: Gauge,
    /// Replicas with damaged bytes, which never vote or serve again.
    pub quarantined_replicas: Gauge,
    /// Free bytes of the volume of the data folder.
    pub disk_free_bytes: BytesGauge,
    /// Size of that volume.
    pub disk_total_bytes: BytesGauge,
    /// 0: enough; 1: below the soft limit; 2: below the hard limit.
    pub disk_level: Gauge,
}

/// The client API.
#[derive(Clone, Debug)]
pub struct RequestMetrics {
    /// Ended requests by method and gRPC status.
    pub handled: Family<RequestLabels, Counter>,
    /// From the first byte of a request to the last of its reply, by method.
    pub seconds: Family<MethodLabels, Histogram>,
    /// Requests in progress.
    pub in_progress: Gauge,
}

/// The limits of the client API: what clients hold, what they may, how often they wanted more.
#[derive(Clone, Debug, Default)]
pub struct LimitMetrics {
    in_use: Family<LimitLabels, Gauge>,
    max: Family<LimitLabels, Gauge>,
    refused: Family<LimitLabels, Counter>,
    /// Addresses of clients with a connection.
    pub addresses: Gauge,
}

/// The metrics of one limit of the client API.
#[derive(Clone, Debug)]
pub struct LimitMetric {
    /// What clients hold.
    pub in_use: Gauge,
    /// What they hold at most.
    pub max: Gauge,
    /// What was refused to one of them.
    pub refused: Counter,
}

impl LimitMetrics {
    /// The metrics of the limit `limit`.
    pub fn of(&self, limit: &'static str) -> LimitMetric {
        let labels = LimitLabels { limit };
        LimitMetric {
            in_use: self.in_use.get_or_create_owned(&labels),
            max: self.max.get_or_create_owned(&labels),
            refused: self.refused.get_or_create_owned(&labels),
        }
    }

    fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Self { in_use, max, refused, addresses } = metrics.clone();
        registry.register("kv_api_in_use", "What clients hold of a limit of the API", in_use);
        registry.register("kv_api_limit", "What they hold of it at most, all together", max);
        registry.register(
            "kv_api_refused",
            "What was refused because a connection, an address or all of them held too much",
            refused,
        );
        registry.register("kv_api_addresses", "Addresses of clients with a connection", addresses);
        metrics
    }
}

/// Batch streams. Counted in one go for many operations.
#[derive(Clone, Debug)]
pub struct BatchMetrics {
    /// Streams that are open.
    pub streams: Gauge,
    /// Operations in a message of a client.
    pub message_operations: Histogram,
    /// Answered operations by kind and status.
    pub operations: Family<BatchLabels, Counter>,
    /// From a message to the answer of one shard, counted once for all operations that it asked of the shard.
    pub seconds: Family<BatchKindLabels, Histogram>,
    /// Operations that did not fit into the window of their stream.
    pub window_refused: Counter,
}

/// The Raft groups.
#[derive(Clone, Debug)]
pub struct RaftMetrics {
    /// From the proposal of an entry to its application, at the leader.
    pub commit_seconds: Histogram,
    /// Operations in a proposal.
    pub proposal_operations: Histogram,
    /// From a read to its confirmed read index.
    pub read_index_seconds: Histogram,
    /// Elections that this node began.
    pub elections: Counter,
    /// Of each shard here.
    pub term: Family<ShardLabels, BytesGauge>,
    /// Entries that are committed and not yet applied here, of each shard.
    pub apply_lag_entries: Family<ShardLabels, BytesGauge>,
    /// 1: the replica here knows who leads, of each shard.
    pub leader_known: Family<ShardLabels, Gauge>,
    /// Voters that may fail, of each shard that is led here.
    pub fault_tolerance: Family<ShardLabels, Gauge>,
}

/// Log and state stores.
#[derive(Clone, Debug)]
pub struct StorageMetrics {
    /// One synced write of the committer.
    pub log_sync_seconds: Histogram,
    /// Records in one synced write: entries, and what goes with them.
    pub log_batch_entries: Histogram,
    /// Bytes written to the log.
    pub log_written_bytes: Counter,
    /// Decoded entries kept in memory.
    pub log_tail_bytes: BytesGauge,
    /// Revisions of the newest writes.
    pub heads_bytes: BytesGauge,
    /// One batch of the apply thread.
    pub apply_seconds: Histogram,
    /// One flush of the state.
    pub flush_seconds: Histogram,
    /// Checksum mismatches found in stored bytes.
    pub corruptions: Counter,
    /// Reads that wait for a thread.
    pub reads: QueueMetric,
    /// Sessions of clients.
    pub sessions: SessionMetrics,
}

/// Streams to other nodes.
#[derive(Clone, Debug, Default)]
pub struct TransportMetrics {
    /// Nodes to which a stream is open.
    pub connected_nodes: Gauge,
    /// Frames sent, by stream.
    pub sent_frames: Family<StreamLabels, Counter>,
    /// Bytes sent, by stream.
    pub sent_bytes: Family<StreamLabels, Counter>,
    /// Streams that were ended and dialled again, by stream.
    pub resets: Family<StreamLabels, Counter>,
    /// Bytes of snapshots received.
    pub snapshot_received_bytes: Counter,
    /// Bytes of snapshots sent.
    pub snapshot_sent_bytes: Counter,
}

/// The process, under the names that Prometheus gives them: tools know them.
#[derive(Clone, Debug, Default)]
pub struct ProcessMetrics {
    resident_bytes: BytesGauge,
    virtual_bytes: BytesGauge,
    open_files: BytesGauge,
    open_files_max: BytesGauge,
    started_at: Gauge<f64, AtomicU64>,
    cpu_seconds: Counter<f64, AtomicU64>,
}

/// Bounded queues: how full, how large, how often something was refused.
#[derive(Clone, Debug, Default)]
pub struct QueueMetrics {
    length: Family<QueueLabels, Gauge>,
    limit: Family<QueueLabels, Gauge>,
    refused: Family<QueueLabels, Counter>,
}

/// The metrics of one bounded queue, or of several alike: their lengths add up, the limit is that of one.
#[derive(Clone, Debug, Default)]
pub struct QueueMetric {
    /// What waits.
    pub length: Gauge,
    /// What was refused or dropped because the queue was full.
    pub refused: Counter,
}

impl QueueMetrics {
    /// The metrics of the queue `queue`, which holds at most `limit`.
    pub fn of(&self, queue: Queue, limit: usize) -> QueueMetric {
        let labels = QueueLabels { queue };
        self.limit.get_or_create(&labels).set(i64::try_from(limit).unwrap_or(i64::MAX));
        QueueMetric {
            length: self.length.get_or_create_owned(&labels),
            refused: self.refused.get_or_create_owned(&labels),
        }
    }
}

/// Every bounded queue of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "they are label values")]
pub enum Queue {
    /// Bytes of writes between their arrival at a leader and their answer.
    proposals,
    /// Bytes that wait for the log committer.
    log_commits,
    /// Batches of entries that wait for the apply thread.
    applies,
    /// Frames that wait for a replica.
    replica_inbox,
    /// Frames that wait for a stream to another node.
    peer_outbox,
    /// Requests of other nodes that are handled here.
    forwarded,
    /// Bytes of writes of other nodes that are not answered.
    forwarded_bytes,
    /// Reads that wait for a read index.
    read_index,
    /// Moments of replicas that are kept for downloads.
    pins,
    /// Reads that wait for a thread, since they may wait for the disk.
    disk_reads,
}

/// Labels of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// Such as `kv.v1.Kv/Put`.
    pub method: &'static str,
    /// Such as `OK`.
    pub status: &'static str,
}

/// Labels of a request's duration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MethodLabels {
    /// Such as `kv.v1.Kv/Put`.
    pub method: &'static str,
}

/// Labels of an operation on a stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BatchLabels {
    /// Such as `put`.
    pub kind: &'static str,
    /// Such as `OK`.
    pub status: &'static str,
}

/// Labels of what a stream asks of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BatchKindLabels {
    /// `read` or `write`.
    pub kind: &'static str,
}

/// Labels of what belongs to a shard: at most 257 of them, meta included.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ShardLabels {
    /// 0: meta.
    pub shard: u32,
}

/// Labels of a stream between nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StreamLabels {
    /// Which of the two.
    pub stream: Stream,
}

/// The two streams between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "they are label values")]
pub enum Stream {
    /// Votes, appends, small requests.
    raft,
    /// Snapshots, scans, transfers.
    bulk,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    limit: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    queue: Queue,
}

/// 20 µs to 10 s: from a fraction of an fsync to the longest deadline that is given by default.
fn latency() -> Histogram {
    Histogram::new(exponential_buckets(0.000_02, 2.0, 20))
}

/// 1 to 1,024 of a batch.
fn batch_size() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 11))
}

impl Metrics {
    /// All metrics of a node, at zero.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        register_build(&mut registry);
        Self {
            node: NodeMetrics::register(&mut registry),
            requests: RequestMetrics::register(&mut registry),
            limits: LimitMetrics::register(&mut registry),
            batch: BatchMetrics::register(&mut registry),
            raft: RaftMetrics::register(&mut registry),
            meta: MetaMetrics::register(&mut registry),
            storage: StorageMetrics::register(&mut registry),
            transport: TransportMetrics::register(&mut registry),
            queues: QueueMetrics::register(&mut registry),
            process: ProcessMetrics::register(&mut registry),
            registry,
        }
    }

    /// All of them in the text format of OpenMetrics.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Only a failing writer makes it fail, and a string never does.
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(_) => String::new(),
        }
    }
}

/// What the replicas of a node feed.
#[derive(Clone, Debug, Default)]
pub struct GroupMetrics {
    /// Proposals and reads.
    pub raft: RaftMetrics,
    /// What was refused of writes.
    pub proposals: QueueMetric,
    /// What was refused of reads.
    pub reads: QueueMetric,
}

/// What the log of a node feeds.
#[derive(Clone, Debug, Default)]
pub struct LogMetrics {
    /// Its writes.
    pub storage: StorageMetrics,
    /// A vote for itself begins an election.
    pub elections: Counter,
}

/// What the transport of a node feeds.
#[derive(Clone, Debug, Default)]
pub struct LinkMetrics {
    /// Streams.
    pub transport: TransportMetrics,
    /// Frames that wait for a replica.
    pub inbox: QueueMetric,
    /// Frames that wait for a stream.
    pub outbox: QueueMetric,
    /// Requests of other nodes.
    pub requests: QueueMetric,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        Self::register(&mut Registry::default())
    }
}

impl Default for BatchMetrics {
    fn default() -> Self {
        Self::register(&mut Registry::default())
    }
}

impl Default for RaftMetrics {
    fn default() -> Self {
        Self::register(&mut Registry::default())
    }
}

impl Default for StorageMetrics {
    fn default() -> Self {
        Self::register(&mut Registry::default())
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Adds `metric`, with a help text without its full stop, and gives it back.
fn add<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

fn register_build(registry: &mut Registry) {
    let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("kv_build", "Version of kvnode", version);
}

impl NodeMetrics {
    fn register(registry: &mut Registry) -> Self {
        let mut gauge = |name, help| add(registry, name, help, Gauge::default());
        let ready = gauge("kv_node_ready", "1: clients should be sent here");
        let leaderships = gauge("kv_node_leaderships", "Groups that are led here");
        let replicas = gauge("kv_node_replicas", "Replicas that live here");
        let quarantined_replicas = gauge(
            "kv_node_quarantined_replicas",
            "Replicas with damaged bytes, which never vote or serve again",
        );
        let disk_level = gauge(
            "kv_node_disk_level",
            "0: enough free space; 1: below the soft limit; 2: below the hard limit",
        );
        let mut gauge = |name, help| add(registry, name, help, BytesGauge::default());
        Self {
            ready,
            leaderships,
            replicas,
            quarantined_replicas,
            disk_level,
            map_epoch: gauge("kv_node_map_epoch", "Epoch of the shard map that the node knows"),
            disk_free_bytes: gauge("kv_node_disk_free_bytes", "Free bytes of the volume of the data folder"),
            disk_total_bytes: gauge("kv_node_disk_total_bytes", "Size of the volume of the data folder"),
        }
    }
}

impl RequestMetrics {
    fn register(registry: &mut Registry) -> Self {
        let seconds = Family::<MethodLabels, Histogram>::new_with_constructor(latency);
        Self {
            handled: add(
                registry,
                "kv_requests",
                "Ended requests by method and gRPC status",
                Family::default(),
            ),
            seconds: add(
                registry,
                "kv_request_seconds",
                "From the first byte of a request to the last of its reply",
                seconds,
            ),
            in_progress: add(registry, "kv_requests_in_progress", "Requests in progress", Gauge::default()),
        }
    }
}

impl BatchMetrics {
    fn register(registry: &mut Registry) -> Self {
        let seconds = Family::<BatchKindLabels, Histogram>::new_with_constructor(latency);
        Self {
            streams: add(registry, "kv_batch_streams", "Batch streams that are open", Gauge::default()),
            message_operations: add(
                registry,
                "kv_batch_message_operations",
                "Operations in a message on a Batch stream",
                batch_size(),
            ),
            operations: add(
                registry,
                "kv_batch_operations",
                "Answered operations on Batch streams by kind and gRPC status",
                Family::default(),
            ),
            seconds: add(
                registry,
                "kv_batch_seconds",
                "From a message to the answer of a shard, once for all that the message asks of the shard",
                seconds,
            ),
            window_refused: add(
                registry,
                "kv_batch_window_refused",
                "Operations that did not fit into the window of their Batch stream",
                Counter::default(),
            ),
        }
    }
}

impl RaftMetrics {
    fn register(registry: &mut Registry) -> Self {
        Self {
            commit_seconds: add(
                registry,
                "kv_raft_commit_seconds",
                "From the proposal of an entry to its application, at the leader",
                latency(),
            ),
            proposal_operations: add(
                registry,
                "kv_raft_proposal_operations",
                "Operations in a proposal",
                batch_size(),
            ),
            read_index_seconds: add(
                registry,
                "kv_raft_read_index_seconds",
                "From a read to its confirmed read index",
                latency(),
            ),
            elections: add(
                registry,
                "kv_raft_elections",
                "Elections that this node began",
                Counter::default(),
            ),
            term: add(registry, "kv_raft_term", "Term of each shard's group", Family::default()),
            apply_lag_entries: add(
                registry,
                "kv_raft_apply_lag_entries",
                "Entries that are committed and not yet applied here",
                Family::default(),
            ),
            leader_known: add(
                registry,
                "kv_raft_leader_known",
                "1: the replica here knows who leads the shard",
                Family::default(),
            ),
            fault_tolerance: add(
                registry,
                "kv_raft_fault_tolerance",
                "Shown where the shard is led: voters that may fail and the rest still decides; -1: no quorum. \
                 The least of all nodes is the cluster's; a shard that none shows has no leader",
                Family::default(),
            ),
        }
    }
}

impl StorageMetrics {
    fn register(registry: &mut Registry) -> Self {
        Self {
            log_sync_seconds: add(
                registry,
                "kv_storage_log_sync_seconds",
                "One synced write of the committer",
                latency(),
            ),
            log_batch_entries: add(
                registry,
                "kv_storage_log_batch_entries",
                "Records in one synced write: entries, and what goes with them",
                batch_size(),
            ),
            log_written_bytes: add(
                registry,
                "kv_storage_log_written_bytes",
                "Bytes written to the log",
                Counter::default(),
            ),
            log_tail_bytes: add(
                registry,
                "kv_storage_log_tail_bytes",
                "Decoded entries kept in memory",
                BytesGauge::default(),
            ),
            heads_bytes: add(
                registry,
                "kv_storage_heads_bytes",
                "Revisions of the newest writes kept in memory",
                BytesGauge::default(),
            ),
            apply_seconds: add(
                registry,
                "kv_storage_apply_seconds",
                "One batch of the apply thread",
                latency(),
            ),
            flush_seconds: add(registry, "kv_storage_flush_seconds", "One flush of the state", latency()),
            corruptions: add(
                registry,
                "kv_storage_corruptions",
                "Checksum mismatches found in stored bytes",
                Counter::default(),
            ),
            reads: QueueMetric::default(),
            sessions: SessionMetrics::register(registry),
        }
    }
}

impl TransportMetrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Self {
            connected_nodes,
            sent_frames,
            sent_bytes,
            resets,
            snapshot_received_bytes,
            snapshot_sent_bytes,
        } = metrics.clone();
        registry.register("kv_transport_connected_nodes", "Nodes to which a stream is open", connected_nodes);
        registry.register("kv_transport_sent_frames", "Frames sent to other nodes", sent_frames);
        registry.register("kv_transport_sent_bytes", "Bytes sent to other nodes", sent_bytes);
        registry.register("kv_transport_resets", "Streams that were ended and dialled again", resets);
        registry.register(
            "kv_transport_snapshot_received_bytes",
            "Bytes of snapshots received",
            snapshot_received_bytes,
        );
        registry.register("kv_transport_snapshot_sent_bytes", "Bytes of snapshots sent", snapshot_sent_bytes);
        metrics
    }
}

impl QueueMetrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Self { length, limit, refused } = metrics.clone();
        registry.register("kv_queue_length", "What waits in a bounded queue", length);
        registry.register("kv_queue_limit", "What such a queue holds at most", limit);
        registry.register(
            "kv_queue_refused",
            "What was refused or dropped because a queue was full",
            refused,
        );
        metrics
    }
}

impl ProcessMetrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Self { resident_bytes, virtual_bytes, open_files, open_files_max, started_at, cpu_seconds } =
            metrics.clone();
        registry.register("process_resident_memory_bytes", "Memory in use", resident_bytes);
        registry.register("process_virtual_memory_bytes", "Address space", virtual_bytes);
        registry.register("process_open_fds", "Open files and sockets", open_files);
        registry.register("process_max_fds", "Files and sockets that may be open", open_files_max);
        registry.register("process_start_time_seconds", "When it started, since the epoch", started_at);
        registry.register("process_cpu_seconds", "Processor time, of user and system", cpu_seconds);
        metrics
    }

    /// Shows a measurement; what it does not know stays as it was. `open_files_max` may be open.
    pub fn show(&self, usage: &Usage, open_files_max: u64) {
        let known = [
            (&self.resident_bytes, usage.resident_bytes),
            (&self.virtual_bytes, usage.virtual_bytes),
            (&self.open_files, usage.open_files),
            (&self.open_files_max, Some(open_files_max)),
        ];
        for (gauge, value) in known {
            gauge.set(value.unwrap_or_else(|| gauge.get()));
        }
        self.started_at.set(usage.started_at.unwrap_or_else(|| self.started_at.get()));
        // It only grows; two that look at the same time may count a moment twice.
        let grown = usage.cpu_seconds.unwrap_or(0.0) - self.cpu_seconds.get();
        self.cpu_seconds.inc_by(grown.max(0.0));
    }
}

#[cfg(test)]
mod tests {
    use crate::state_machine::sessions::Tally;

    use super::{
        BatchKindLabels, BatchLabels, Counts, MethodLabels, Metrics, Queue, RequestLabels, ShardLabels,
        Stream, StreamLabels,
    };

    /// All metrics with one value of each label: what has none yet is not shown.
    fn shown() -> String {
        let metrics = Metrics::new();
        let Metrics { requests, limits, batch, raft, meta, storage, transport, queues, .. } = &metrics;
        let (method, status) = ("kv.v1.Kv/Put", "OK");
        drop(requests.handled.get_or_create(&RequestLabels { method, status }));
        drop(requests.seconds.get_or_create(&MethodLabels { method }));
        limits.of("requests");
        drop(batch.operations.get_or_create(&BatchLabels { kind: "put", status }));
        drop(batch.seconds.get_or_create(&BatchKindLabels { kind: "write" }));
        drop(raft.term.get_or_create(&ShardLabels { shard: 1 }));
        drop(raft.apply_lag_entries.get_or_create(&ShardLabels { shard: 1 }));
        drop(raft.leader_known.get_or_create(&ShardLabels { shard: 1 }));
        drop(raft.fault_tolerance.get_or_create(&ShardLabels { shard: 1 }));
        meta.show(&Counts { nodes: vec![("active", 1)], ..Counts::default() });
        for family in [&transport.sent_frames, &transport.sent_bytes, &transport.resets] {
            drop(family.get_or_create(&StreamLabels { stream: Stream::raft }));
        }
        queues.of(Queue::proposals, 1);
        drop(storage.sessions.open.get_or_create(&ShardLabels { shard: 1 }));
        drop(storage.sessions.outcomes.get_or_create(&ShardLabels { shard: 1 }));
        let refused = [("SESSION_EXPIRED".to_owned(), 1)].into();
        storage.sessions.count(&Tally { refused, ..Tally::default() });
        metrics.encode()
    }

    /// Name, type, labels and help of each metric, as a table for people.
    fn reference() -> String {
        let text = shown();
        let described = |kind: &'static str| {
            text.lines().filter_map(move |line| line.strip_prefix(kind)?.split_once(' '))
        };
        let mut rows = String::new();
        for ((name, help), (_, kind)) in described("# HELP ").zip(described("# TYPE ")) {
            let series = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
            rows.push_str(&format!("| `{series}` | {kind} | {} | {help} |\n", labels_of(&text, name)));
        }
        format!(
            "# Metrics\n\n\
             Shown at `/metrics` of the HTTP port in the text format of OpenMetrics. Times are in seconds, sizes in \
             bytes. `make fix` writes this file.\n\n\
             | Name | Type | Labels | What it tells |\n|---|---|---|---|\n{rows}"
        )
    }

    fn labels_of(text: &str, name: &str) -> String {
        let sample =
            text.lines().find(|line| line.starts_with(name) && line.contains('{')).unwrap_or_default();
        let inside = sample.split_once('{').and_then(|(_, rest)| rest.split_once('}')).unwrap_or_default().0;
        let names = inside.split(',').filter_map(|label| label.split_once('=')).map(|(label, _)| label);
        names.filter(|label| *label != "le").map(|label| format!("`{label}`")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_reference_of_metrics_is_written_down() {
        crate::config::assert_written_down("docs/metrics.md", &reference());
    }

    #[test]
    fn two_nodes_of_a_process_do_not_share_metrics() {
        let (one, other) = (Metrics::new(), Metrics::new());
        one.node.replicas.set(9);
        assert!(one.encode().contains("\nkv_node_replicas 9\n"));
        assert!(other.encode().contains("\nkv_node_replicas 0\n"));
    }

    #[test]
    fn a_queue_shows_its_length_its_bound_and_its_refusals() {
        let metrics = Metrics::new();
        let queue = metrics.queues.of(Queue::log_commits, 4096);
        queue.length.inc();
        queue.refused.inc();
        let text = metrics.encode();
        for line in [
            "kv_queue_length{queue=\"log_commits\"} 1",
            "kv_queue_limit{queue=\"log_commits\"} 4096",
            "kv_queue_refused_total{queue=\"log_commits\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn labels_are_written_as_they_are_named() {
        let metrics = Metrics::new();
        let (method, status) = ("kv.v1.Kv/Put", "OK");
        metrics.requests.handled.get_or_create(&RequestLabels { method, status }).inc();
        metrics.requests.seconds.get_or_create(&MethodLabels { method }).observe(0.000_3);
        metrics.transport.sent_frames.get_or_create(&StreamLabels { stream: Stream::bulk }).inc_by(2);
        let text = metrics.encode();
        for line in [
            "kv_requests_total{method=\"kv.v1.Kv/Put\",status=\"OK\"} 1",
            "kv_request_seconds_count{method=\"kv.v1.Kv/Put\"} 1",
            "kv_transport_sent_frames_total{stream=\"bulk\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn names_follow_one_pattern_and_are_used_once() {
        let text = shown();
        let names: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        assert!(names.len() > 30, "{names:?}");
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), names.len());
        for name in names {
            let in_pattern = name.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase());
            let ours_or_known = name.starts_with("kv_") || name.starts_with("process_");
            assert!(ours_or_known && in_pattern && !name.ends_with("_total"), "{name}");
            assert!(!name.contains("_ms") && !name.contains("_millis") && !name.contains("_kb"), "{name}");
        }
    }
}
