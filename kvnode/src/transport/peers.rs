//! What this node knows of the others from talking to them: when they were heard, how far they are, what was sent.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use kv_proto::peer::v1::{DiskLevel, FrameBatch};
use kv_topology::NodeId;
use prometheus_client::metrics::{counter::Counter, family::Family};
use prost::Message;
use tokio::time::Instant;

use super::{conduit::Lane, held::Wishes};
use crate::metrics::{LinkMetrics, Stream, StreamLabels};

/// All nodes that were ever talked to.
#[derive(Debug, Default)]
pub(super) struct Peers {
    all: Mutex<BTreeMap<NodeId, Arc<Peer>>>,
    /// What every batch says of this node's own disk.
    own_disk: Arc<AtomicI32>,
    /// What every batch says of recoveries of meta.
    own_recoveries: Arc<AtomicU64>,
    meter: Arc<Meter>,
}

/// The metrics of both lanes, each handle taken once.
#[derive(Debug, Default)]
struct Meter {
    frames: [Counter; 2],
    bytes: [Counter; 2],
    resets: [Counter; 2],
    refused: Counter,
}

impl Meter {
    fn new(metrics: &LinkMetrics) -> Self {
        let of = |family: &Family<StreamLabels, Counter>| {
            [Stream::raft, Stream::bulk].map(|stream| family.get_or_create_owned(&StreamLabels { stream }))
        };
        let streams = &metrics.transport;
        Self {
            frames: of(&streams.sent_frames),
            bytes: of(&streams.sent_bytes),
            resets: of(&streams.resets),
            refused: metrics.outbox.refused.clone(),
        }
    }
}

/// The place of a lane's handle.
const fn place(lane: Lane) -> usize {
    match lane {
        Lane::Raft => 0,
        Lane::Bulk => 1,
    }
}

impl Peers {
    /// Nobody was talked to yet.
    pub(super) fn measured(metrics: &LinkMetrics) -> Self {
        Self { meter: Arc::new(Meter::new(metrics)), ..Self::default() }
    }

    /// The record of a node, made on the first call.
    pub(super) fn peer(&self, node: NodeId) -> Arc<Peer> {
        let new = || {
            let (own_disk, own_recoveries) = (self.own_disk.clone(), self.own_recoveries.clone());
            Arc::new(Peer { own_disk, own_recoveries, meter: self.meter.clone(), ..Peer::default() })
        };
        self.all().entry(node).or_insert_with(new).clone()
    }

    /// The record of a node that was talked to.
    pub(super) fn known(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.all().get(&node).cloned()
    }

    pub(super) fn list(&self) -> Vec<(NodeId, Arc<Peer>)> {
        self.all().iter().map(|(node, peer)| (*node, peer.clone())).collect()
    }

    pub(super) fn set_own_disk(&self, level: DiskLevel) {
        self.own_disk.store(level.into(), Relaxed);
    }

    pub(super) fn set_own_recoveries(&self, recoveries: u64) {
        self.own_recoveries.store(recoveries, Relaxed);
    }

    /// A node that knows of a recovery of meta of which this node has not heard.
    pub(super) fn ahead(&self) -> Option<NodeId> {
        let own = self.own_recoveries.load(Relaxed);
        self.all().iter().find(|(_, peer)| peer.recoveries.load(Relaxed) > own).map(|(node, _)| *node)
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Peer>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One other node.
#[derive(Debug, Default)]
pub(super) struct Peer {
    contact: Mutex<Contact>,
    /// Of the streams to it.
    pub(super) wishes: Wishes,
    pub(super) batches_sent: AtomicU64,
    pub(super) frames_sent: AtomicU64,
    pub(super) batches_received: AtomicU64,
    pub(super) frames_received: AtomicU64,
    pub(super) connects: AtomicU64,
    pub(super) breaks: AtomicU64,
    pub(super) queue_overflows: AtomicU64,
    pub(super) inbox_overflows: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) removed_answers: AtomicU64,
    disk: AtomicI32,
    own_disk: Arc<AtomicI32>,
    recoveries: AtomicU64,
    own_recoveries: Arc<AtomicU64>,
    meter: Arc<Meter>,
}

#[derive(Debug, Default)]
struct Contact {
    heard: Option<Instant>,
    round_trip: Option<RoundTrip>,
}

/// How long a question and its answer take, on the `raft` lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundTrip {
    /// The newest.
    pub last: Duration,
    /// Smoothed: each new one counts an eighth (RFC 6298).
    pub smoothed: Duration,
}

/// Counters since the node started, of one other node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounters {
    /// Batches written, answers included.
    pub batches_sent: u64,
    /// Frames in them.
    pub frames_sent: u64,
    /// Batches that arrived.
    pub batches_received: u64,
    /// Frames in them.
    pub frames_received: u64,
    /// Streams that came up.
    pub connects: u64,
    /// Streams that broke after that.
    pub breaks: u64,
    /// Requests refused because their queue was full.
    pub queue_overflows: u64,
    /// Append streams of that node reset because the replica's inbox was full.
    pub inbox_overflows: u64,
    /// Requests without an answer in time.
    pub expired: u64,
    /// Answers that the addressed replica is not there.
    pub removed_answers: u64,
}

impl Peer {
    /// Something arrived from this node.
    pub(super) fn hear(&self, now: Instant, frames: usize) {
        self.contact().heard = Some(now);
        self.batches_received.fetch_add(1, Relaxed);
        self.frames_received.fetch_add(frames as u64, Relaxed);
    }

    /// Notes what a batch of this node says of its disk, and of recoveries of meta.
    pub(super) fn told(&self, batch: &FrameBatch) {
        self.disk.store(batch.disk_level, Relaxed);
        self.recoveries.store(batch.recoveries, Relaxed);
    }

    /// Says in a batch to this node how full our own disk is, and of how many recoveries of meta we know.
    pub(super) fn stamp(&self, batch: FrameBatch) -> FrameBatch {
        FrameBatch {
            disk_level: self.own_disk.load(Relaxed),
            recoveries: self.own_recoveries.load(Relaxed),
            ..batch
        }
    }

    /// Whether this node has not heard of a recovery of meta of which we know: what it wishes as a controller is the wish of
    /// a meta group that was given up.
    pub(super) fn is_behind(&self) -> bool {
        self.recoveries.load(Relaxed) < self.own_recoveries.load(Relaxed)
    }

    /// Whether this node knows of a recovery of meta of which we have not heard: what runs here may be of groups that were given
    /// up, and is no answer to it.
    pub(super) fn is_ahead(&self) -> bool {
        self.recoveries.load(Relaxed) > self.own_recoveries.load(Relaxed)
    }

    /// How full the disk of this node was when it was last heard. A level of a newer version counts as full.
    pub(super) fn disk(&self) -> DiskLevel {
        DiskLevel::try_from(self.disk.load(Relaxed)).unwrap_or(DiskLevel::DiskHard)
    }

    /// Whether our own disk takes no more entries.
    pub(super) fn own_disk_is_full(&self) -> bool {
        self.own_disk.load(Relaxed) == i32::from(DiskLevel::DiskHard)
    }

    /// Counts a batch that goes out in a lane, and gives it the last it needs.
    pub(super) fn sends(&self, lane: Lane, batch: FrameBatch) -> FrameBatch {
        let frames = batch.frames.len() as u64;
        self.batches_sent.fetch_add(1, Relaxed);
        self.frames_sent.fetch_add(frames, Relaxed);
        self.meter.frames[place(lane)].inc_by(frames);
        self.meter.bytes[place(lane)].inc_by(batch.encoded_len() as u64);
        self.stamp(batch)
    }

    /// A stream to this node broke.
    pub(super) fn broke(&self, lane: Lane) {
        self.breaks.fetch_add(1, Relaxed);
        self.meter.resets[place(lane)].inc();
    }

    /// A request to this node found its queue full.
    pub(super) fn refused(&self) {
        self.queue_overflows.fetch_add(1, Relaxed);
        self.meter.refused.inc();
    }

    pub(super) fn measured(&self, sample: Duration) {
        let mut contact = self.contact();
        let smoothed = contact.round_trip.map_or(sample, |before| (before.smoothed * 7 + sample) / 8);
        contact.round_trip = Some(RoundTrip { last: sample, smoothed });
    }

    pub(super) fn heard(&self) -> Option<Instant> {
        self.contact().heard
    }

    pub(super) fn round_trip(&self) -> Option<RoundTrip> {
        self.contact().round_trip
    }

    pub(super) fn counters(&self) -> PeerCounters {
        PeerCounters {
            batches_sent: self.batches_sent.load(Relaxed),
            frames_sent: self.frames_sent.load(Relaxed),
            batches_received: self.batches_received.load(Relaxed),
            frames_received: self.frames_received.load(Relaxed),
            connects: self.connects.load(Relaxed),
            breaks: self.breaks.load(Relaxed),
            queue_overflows: self.queue_overflows.load(Relaxed),
            inbox_overflows: self.inbox_overflows.load(Relaxed),
            expired: self.expired.load(Relaxed),
            removed_answers: self.removed_answers.load(Relaxed),
        }
    }

    fn contact(&self) -> MutexGuard<'_, Contact> {
        self.contact.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
