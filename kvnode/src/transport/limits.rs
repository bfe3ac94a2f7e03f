//! The bounds of the transport, each with its unit and its reason.

use std::time::Duration;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Bounds that a node runs with. Tests make them small.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long one attempt to connect may take, the name's resolution and the hello included.
    pub connect: Duration,
    /// Every so often the dialling side asks whether the other one is alive.
    pub keep_alive: Duration,
    /// A `raft` stream on which nothing was heard for so long is failed: a few elections, not more.
    pub raft_idle: Duration,
    /// The same for `bulk`, where a keep-alive can wait behind a window full of data.
    pub bulk_idle: Duration,
    /// The first pause between attempts to connect; doubles, with jitter.
    pub backoff_first: Duration,
    /// The longest pause: what a restarted peer costs at most.
    pub backoff_longest: Duration,
    /// Frames that may wait for one peer, in each lane and class.
    pub queued_frames: usize,
    /// Bytes that may wait for one peer, in each lane and class.
    pub queued_bytes: usize,
    /// A batch takes what is ready up to so many bytes, and at least one frame.
    pub batch_bytes: usize,
    /// Entries of one append frame, unless a single entry is larger: votes wait for one frame at most.
    pub frame_bytes: usize,
    /// The greatest message that is decoded; a frame must fit with its envelope.
    pub message_bytes: usize,
    /// HTTP/2 flow-control window of a stream and of its connection.
    pub window_bytes: u32,
    /// Append requests of one stream that may wait for their answers.
    pub append_window_frames: usize,
    /// Their bytes. Below `inbox_bytes`, so that an honest sender never overflows an inbox: also one with more memory, since no
    /// node has a larger window than the default.
    pub append_window_bytes: usize,
    /// An append stream whose oldest request is not answered for so long is failed.
    pub append_idle: Duration,
    /// Append requests that may wait for one local replica, for each sender.
    pub inbox_frames: usize,
    /// Their bytes.
    pub inbox_bytes: usize,
    /// Votes and heartbeats that one connection may have in hand at once.
    pub urgent_in_hand: usize,
    /// Forwarded requests and control that one connection may have in hand at once.
    pub requests_in_hand: usize,
    /// Sockets accepted on the peer port: two of each of a hundred nodes, twice while they reconnect, and strangers.
    pub sockets: usize,
    /// Read-index questions that one connection may have in hand at once, whatever else waits: a group asks one at a
    /// time, so this is a bound on groups.
    pub questions_in_hand: usize,
    /// Accepted connections that have not said who they are.
    pub strangers: usize,
    /// Snapshots that a node sends at once.
    pub snapshots_out: usize,
    /// Snapshots that a node receives at once.
    pub snapshots_in: usize,
    /// Bytes a second of all snapshots that a node sends; 0: no limit.
    pub snapshot_bytes_per_second: u64,
    /// Chunks of a snapshot that may wait for their acknowledgement.
    pub snapshot_window: usize,
    /// A transfer that makes no progress for so long is given up.
    pub snapshot_idle: Duration,
    /// How long verifying, syncing and ingesting a received snapshot may take.
    pub snapshot_install: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            keep_alive: Duration::from_secs(1),
            raft_idle: Duration::from_secs(3),
            bulk_idle: Duration::from_secs(10),
            backoff_first: Duration::from_millis(50),
            backoff_longest: Duration::from_secs(1),
            queued_frames: 8192,
            queued_bytes: 32 * MIB,
            batch_bytes: MIB,
            frame_bytes: 256 * KIB,
            message_bytes: 8 * MIB,
            window_bytes: 4 * 1024 * 1024,
            append_window_frames: 64,
            append_window_bytes: 4 * MIB,
            append_idle: Duration::from_secs(3),
            inbox_frames: 256,
            inbox_bytes: 16 * MIB,
            urgent_in_hand: 1024,
            requests_in_hand: 1024,
            sockets: 512,
            questions_in_hand: 512,
            strangers: 64,
            snapshots_out: 2,
            snapshots_in: 2,
            snapshot_bytes_per_second: 64 * 1024 * 1024,
            snapshot_window: 8,
            snapshot_idle: Duration::from_secs(10),
            snapshot_install: Duration::from_secs(300),
        }
    }
}

impl Limits {
    /// Of a node that has so many bytes for what waits for other nodes and what came from them, as far as work can go on: four
    /// queues of two nodes are full at the same time, or sixteen groups whose log stands still.
    #[must_use]
    pub fn within(self, bytes: usize) -> Self {
        let queued_bytes = (bytes / 4).clamp(self.message_bytes, self.queued_bytes);
        let append_window_bytes = (bytes / 16).clamp(2 * self.frame_bytes, self.append_window_bytes);
        Self { queued_bytes, append_window_bytes, ..self }
    }

    /// The greatest frame: what a message holds, less its envelope.
    pub(super) fn largest_frame(&self) -> usize {
        /// Cluster id, node ids and tags of a batch, generously.
        const ENVELOPE_BYTES: usize = 1024;
        self.message_bytes.saturating_sub(ENVELOPE_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_memory_the_largest_frame_fits_and_no_honest_sender_overflows() {
        for bytes in [0, MIB, 12 * MIB, 64 * MIB, usize::MAX] {
            let limits = Limits::default().within(bytes);
            assert!(limits.queued_bytes >= limits.message_bytes, "{bytes}: {limits:?}");
            assert!(
                limits.inbox_bytes >= limits.append_window_bytes + limits.message_bytes,
                "{bytes}: {limits:?}"
            );
        }
        let (much, usual) = (Limits::default().within(usize::MAX), Limits::default());
        let of = |limits: &Limits| (limits.queued_bytes, limits.append_window_bytes);
        assert_eq!(of(&much), of(&usual));
    }
}
