//! How a node divides the memory that it may use (`--memory`). Pure.
//!
//! What the process itself takes comes off first: its program, its stacks, what an allocator cannot give back. The rest is
//! shared out in parts of a hundred, each up to a size beyond which it brings nothing; what that leaves over goes to the
//! state store, where every byte saves a read from the disk.

use crate::{
    api::limits::{BATCH_REPLY_BYTES, MESSAGE_BYTES_MAX, STREAMED_REPLIES_MAX},
    config::ByteCount,
};

const MIB: usize = 1 << 20;

/// Off the top, bytes.
const PROCESS_BYTES: usize = 64 * MIB;

/// What a part gets of the rest, in percent, and at most, bytes.
struct Part {
    percent: usize,
    bytes_max: usize,
}

/// Where the entries of the Raft logs are.
const LOG_INDEX: Part = Part { percent: 4, bytes_max: 32 * MIB };
/// Decoded ends of the Raft logs, for followers that lag by a hiccup.
const LOG_TAILS: Part = Part { percent: 6, bytes_max: 64 * MIB };
/// Entries that wait for the log device.
const LOG_QUEUE: Part = Part { percent: 6, bytes_max: 64 * MIB };
/// Requests of clients that were received and not yet answered.
const REQUESTS: Part = Part { percent: 14, bytes_max: 256 * MIB };
/// Writes that other nodes forward, until they are answered.
const FORWARDED: Part = Part { percent: 6, bytes_max: 128 * MIB };
/// Replies of up to [`MESSAGE_BYTES_MAX`] that are being made or not yet sent.
const LARGE_REPLIES: Part = Part { percent: 10, bytes_max: 128 * MIB };

/// What was read for clients and has not been taken by them: small replies, scans and downloads, and as much again on Batch
/// streams.
const REPLIES: Part = Part { percent: 10, bytes_max: 1024 * MIB };

/// What waits for other nodes to take it, and what they sent and waits for the log. A queue holds the largest message even where
/// this is less (`transport/limits.rs`): only one that is full does.
const PEERS: Part = Part { percent: 5, bytes_max: 128 * MIB };

/// Requests and replies are served even where a share has no room for two of the largest.
const TWO_MESSAGES: usize = 2 * MESSAGE_BYTES_MAX;

/// The least that waits on all Batch streams together, of half of the replies.
const BATCH_REPLIES_LEAST: usize = 3 * STREAMED_REPLIES_MAX * *BATCH_REPLY_BYTES.start();

/// The state store gets no more of all, percent: its allocations are of all sizes and lives, and leave gaps.
const STATE_PERCENT_MAX: usize = 60;

/// Who may use how much, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Memtables, block cache and revisions of the state store.
    pub state: usize,
    /// Where the entries of the logs are.
    pub log_index: usize,
    /// Decoded ends of all logs.
    pub log_tails: usize,
    /// Entries that wait for the log device.
    pub log_queue: usize,
    /// Requests of clients.
    pub requests: usize,
    /// Writes of other nodes.
    pub forwarded: usize,
    /// Large replies to clients.
    pub large_replies: usize,
    /// Other replies to clients.
    pub replies: usize,
    /// Frames from and to other nodes.
    pub peers: usize,
}

impl MemoryPlan {
    /// Of so many bytes. Of less than the process takes, everything gets as if there were a little.
    pub fn of(bytes: ByteCount) -> Self {
        let bytes = usize::try_from(bytes.0).unwrap_or(usize::MAX);
        let rest = bytes.saturating_sub(PROCESS_BYTES).max(PROCESS_BYTES);
        // Not of the product: `bytes` may be all that a machine can address.
        let share = |part: &Part| (rest / 100 * part.percent).min(part.bytes_max);
        let log_index = share(&LOG_INDEX);
        let log_tails = share(&LOG_TAILS);
        let log_queue = share(&LOG_QUEUE);
        let requests = share(&REQUESTS).max(TWO_MESSAGES);
        let forwarded = share(&FORWARDED).max(TWO_MESSAGES);
        let large_replies = share(&LARGE_REPLIES).max(TWO_MESSAGES);
        let replies = share(&REPLIES).max(2 * BATCH_REPLIES_LEAST);
        let peers = share(&PEERS);
        let clients = requests + forwarded + large_replies + replies;
        let left = rest - log_index - log_tails - log_queue - clients - peers;
        let state = left.min((bytes / 100 * STATE_PERCENT_MAX).max(PROCESS_BYTES / 4));
        Self { state, log_index, log_tails, log_queue, requests, forwarded, large_replies, replies, peers }
    }

    /// All of it.
    pub fn total(&self) -> usize {
        PROCESS_BYTES + self.parts().iter().sum::<usize>()
    }

    /// Who gets how much beside the process itself.
    fn parts(&self) -> [usize; 9] {
        let Self {
            state,
            log_index,
            log_tails,
            log_queue,
            requests,
            forwarded,
            large_replies,
            replies,
            peers,
        } = *self;
        [state, log_index, log_tails, log_queue, requests, forwarded, large_replies, replies, peers]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::options::MEMORY_BUDGET_MIN_BYTES;

    #[test]
    fn everything_together_is_what_was_given() {
        for mebibytes in [192_usize, 200, 256, 512, 1024, 6000, 100_000] {
            let plan = MemoryPlan::of(ByteCount(mebibytes as u64 * MIB as u64));
            assert!(plan.total() <= mebibytes * MIB, "{mebibytes}: {plan:?}");
            assert!(plan.state * 100 <= mebibytes * MIB * STATE_PERCENT_MAX, "{mebibytes}: {plan:?}");
            assert!(plan.state >= MEMORY_BUDGET_MIN_BYTES, "{mebibytes}: {plan:?}");
        }
    }

    #[test]
    fn more_memory_makes_no_part_smaller() {
        let parts = |mebibytes: usize| MemoryPlan::of(ByteCount(mebibytes as u64 * MIB as u64)).parts();
        for mebibytes in (0..4096).step_by(16) {
            let (less, more) = (parts(mebibytes), parts(mebibytes + 16));
            assert!(
                less.iter().zip(more).all(|(less, more)| *less <= more),
                "{mebibytes}: {less:?} {more:?}"
            );
        }
    }

    #[test]
    fn the_ends_of_the_scale_are_no_trouble() {
        assert!(MemoryPlan::of(ByteCount(0)).state > 0);
        let most = MemoryPlan::of(ByteCount(u64::MAX));
        assert_eq!((most.log_index, most.requests), (32 * MIB, 256 * MIB));
    }
}
