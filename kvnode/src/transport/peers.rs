//! What this node knows of the others from talking to them: when they were heard, how far they are, what was sent.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use kv_topology::NodeId;
use tokio::time::Instant;

/// All nodes that were ever talked to.
#[derive(Debug, Default)]
pub(super) struct Peers(Mutex<BTreeMap<NodeId, Arc<Peer>>>);

impl Peers {
    /// The record of a node, made on the first call.
    pub(super) fn peer(&self, node: NodeId) -> Arc<Peer> {
        self.all().entry(node).or_default().clone()
    }

    /// The record of a node that was talked to.
    pub(super) fn known(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.all().get(&node).cloned()
    }

    pub(super) fn list(&self) -> Vec<(NodeId, Arc<Peer>)> {
        self.all().iter().map(|(node, peer)| (*node, peer.clone())).collect()
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Peer>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One other node.
#[derive(Debug, Default)]
pub(super) struct Peer {
    contact: Mutex<Contact>,
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

    pub(super) fn wrote(&self, frames: usize) {
        self.batches_sent.fetch_add(1, Relaxed);
        self.frames_sent.fetch_add(frames as u64, Relaxed);
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
