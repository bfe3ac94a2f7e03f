//! A session as its shard keeps it: when it was used last, and what became of its writes.
//!
//! Pure. Outcomes lie in the order of their sequences; those that the client has acknowledged are forgotten at once. On
//! disk they lie in blocks of [`BLOCK_SEQUENCES`], so that a write changes a record or two; the block of the lowest
//! outstanding sequence tells of the session itself. What lies on disk is decided by what the session is, and not by how it
//! came to that: in whatever batches the entries came.

use std::{collections::VecDeque, mem};

use kv_proto::disk::v1::{SessionRecord, StoredOutcome};
use kv_topology::ShardId;

use super::limits::SESSION_IDLE_MS;

/// Sequences in one record. A disk format.
pub const BLOCK_SEQUENCES: u64 = 128;
/// Bits of a session's id that number the sessions of its shard; the shard's id stands above them.
const NUMBER_BITS: u32 = 48;

/// The id of the session `number` of a shard. `None`: there are no more.
pub fn id_of(shard: ShardId, number: u64) -> Option<u64> {
    let fits = shard.0 < 1 << (u64::BITS - NUMBER_BITS) && number < 1 << NUMBER_BITS;
    fits.then(|| u64::from(shard.0) << NUMBER_BITS | number)
}

/// The shard of a session.
pub fn shard_of(session_id: u64) -> ShardId {
    // 16 bits are left.
    ShardId(u32::try_from(session_id >> NUMBER_BITS).unwrap_or(u32::MAX))
}

/// The block that keeps the outcome of a sequence.
pub const fn block_of(sequence: u64) -> u64 {
    sequence / BLOCK_SEQUENCES
}

/// One session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// Time to live, ms of log time.
    ttl_ms: u32,
    /// Log time of its last use.
    touched_ms: u64,
    /// Outcomes below are acknowledged and forgotten.
    lowest_outstanding: u64,
    /// In the order of their sequences.
    outcomes: VecDeque<StoredOutcome>,
}

impl Session {
    /// Just opened.
    pub(super) fn new(ttl_ms: u32, now_ms: u64) -> Self {
        Self { ttl_ms, touched_ms: now_ms, lowest_outstanding: 1, outcomes: VecDeque::new() }
    }

    /// Whether it was not used for its time to live.
    pub(super) fn is_expired(&self, now_ms: u64) -> bool {
        now_ms > self.touched_ms.saturating_add(u64::from(self.ttl_ms))
    }

    /// From which log time on it may give way to a new one, ms: when it has expired, or is idle and keeps nothing. It never
    /// comes earlier than it was said to.
    pub(super) fn gives_way_at_ms(&self) -> u64 {
        let expired = self.touched_ms.saturating_add(u64::from(self.ttl_ms)).saturating_add(1);
        if self.outcomes.is_empty() {
            expired.min(self.touched_ms.saturating_add(SESSION_IDLE_MS))
        } else {
            expired
        }
    }

    /// Log time of its last use, ms.
    pub(super) fn touched_ms(&self) -> u64 {
        self.touched_ms
    }

    /// Outcomes below are acknowledged and forgotten.
    pub(super) fn lowest_outstanding(&self) -> u64 {
        self.lowest_outstanding
    }

    /// How many outcomes it keeps.
    pub(super) fn kept(&self) -> usize {
        self.outcomes.len()
    }

    /// How many outcomes are forgotten when those below `lowest` are acknowledged.
    pub(super) fn kept_below(&self, lowest: u64) -> usize {
        // Nearly always the first few.
        self.outcomes.iter().take_while(|outcome| outcome.sequence < lowest).count()
    }

    /// What became of the write `sequence`.
    pub(super) fn outcome(&self, sequence: u64) -> Option<StoredOutcome> {
        // Nearly always above all others.
        if self.outcomes.back().is_none_or(|last| last.sequence < sequence) {
            return None;
        }
        let at = self.outcomes.binary_search_by_key(&sequence, |outcome| outcome.sequence).ok()?;
        self.outcomes.get(at).copied()
    }

    /// The first block of its records, which it always has: the one that tells of the session itself.
    fn anchor(&self) -> u64 {
        block_of(self.lowest_outstanding)
    }

    /// Is used at `now_ms`, and forgets what is acknowledged. Calls `changed` with each block that is another now.
    pub(super) fn touch(&mut self, now_ms: u64, lowest: u64, mut changed: impl FnMut(u64)) {
        if lowest > self.lowest_outstanding {
            changed(self.anchor());
            self.lowest_outstanding = lowest;
            while let Some(first) = self.outcomes.pop_front_if(|first| first.sequence < lowest) {
                let block = block_of(first.sequence);
                if self.outcomes.front().is_none_or(|next| block_of(next.sequence) != block) {
                    changed(block);
                }
            }
        }
        self.touched_ms = self.touched_ms.max(now_ms);
        changed(self.anchor());
    }

    /// Keeps an outcome whose sequence is not there yet.
    pub(super) fn keep(&mut self, outcome: StoredOutcome) {
        if self.outcomes.back().is_none_or(|last| last.sequence < outcome.sequence) {
            self.outcomes.push_back(outcome);
            return;
        }
        let at = self.outcomes.partition_point(|other| other.sequence < outcome.sequence);
        self.outcomes.insert(at, outcome);
    }

    /// The blocks that are on disk, in order.
    pub(super) fn blocks(&self) -> impl Iterator<Item = u64> {
        let anchor = self.anchor();
        let mut last = anchor;
        let kept = self.outcomes.iter().map(|outcome| block_of(outcome.sequence));
        std::iter::once(anchor).chain(kept.filter(move |block| mem::replace(&mut last, *block) != *block))
    }

    /// The record of a block. `None`: there is none, since it keeps nothing.
    pub(super) fn record(&self, block: u64) -> Option<SessionRecord> {
        let start = self.outcomes.partition_point(|outcome| block_of(outcome.sequence) < block);
        let inside = self.outcomes.range(start..).take_while(|outcome| block_of(outcome.sequence) == block);
        let outcomes: Vec<_> = inside.copied().collect();
        if block == self.anchor() {
            let Self { ttl_ms, touched_ms, lowest_outstanding, .. } = *self;
            return Some(SessionRecord { ttl_ms, touched_ms, lowest_outstanding, outcomes });
        }
        (!outcomes.is_empty()).then(|| SessionRecord { outcomes, ..SessionRecord::default() })
    }

    /// A session from its first block on disk.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read_first(block: u64, record: SessionRecord) -> Result<Self, &'static str> {
        let SessionRecord { ttl_ms, touched_ms, lowest_outstanding, outcomes } = record;
        let mut session = Self { ttl_ms, touched_ms, lowest_outstanding, outcomes: VecDeque::new() };
        if ttl_ms == 0 || lowest_outstanding == 0 || session.anchor() != block {
            return Err("the first block of a session does not tell of it");
        }
        session.read_outcomes(block, outcomes)?;
        Ok(session)
    }

    /// Adds another block that was read from disk; blocks come in order.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read_next(&mut self, block: u64, record: SessionRecord) -> Result<(), &'static str> {
        let SessionRecord { ttl_ms, touched_ms, lowest_outstanding, outcomes } = record;
        if (ttl_ms, touched_ms, lowest_outstanding) != (0, 0, 0) || outcomes.is_empty() {
            return Err("a later block of a session is not of outcomes alone");
        }
        self.read_outcomes(block, outcomes)
    }

    fn read_outcomes(&mut self, block: u64, outcomes: Vec<StoredOutcome>) -> Result<(), &'static str> {
        for outcome in outcomes {
            if block_of(outcome.sequence) != block || outcome.sequence < self.lowest_outstanding {
                return Err("an outcome lies in the block of others");
            }
            if self.outcomes.back().is_some_and(|last| last.sequence >= outcome.sequence) {
                return Err("outcomes are not in order");
            }
            self.outcomes.push_back(outcome);
        }
        Ok(())
    }
}
