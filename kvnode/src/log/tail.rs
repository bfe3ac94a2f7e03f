//! The newest entries of one replica's log, decoded, in memory.
//!
//! Replication and apply read from here; the device is read only after a restart or for a follower that is far
//! behind. Entries whose payload is bulk (chunks of uploads) leave first, because few of them displace very many
//! small ones; so there may be gaps, which the reader fills from the device. What is not yet durable never leaves:
//! the device may not have it, or may still have what was there before a truncation.

use std::collections::VecDeque;

use crate::log::codec::Entry;

/// An entry of at least this many encoded bytes is bulk. A chunk of an upload has 256 KiB, a proposal batch of small
/// operations seldom a quarter of that.
pub const BULK_ENTRY_BYTES: usize = 64 << 10;

/// What an entry costs beside its encoded bytes: the struct, its place in the queue, the head of its allocation.
const ENTRY_OVERHEAD_BYTES: usize = 160;

/// Memory that a tail takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of bulk entries.
    pub bulk: usize,
    /// Of all others.
    pub small: usize,
}

impl Usage {
    /// Of all entries.
    pub fn total(self) -> usize {
        self.bulk + self.small
    }
}

/// Which entries leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// Bulk entries, oldest first.
    Bulk,
    /// Any entries, oldest first.
    Oldest,
}

/// The decoded tail of a log.
#[derive(Debug, Default)]
pub struct Tail {
    /// Index of the first slot. The first slot is never empty.
    first: u64,
    slots: VecDeque<Option<Slot>>,
    /// Indexes of the bulk entries that are here, ascending.
    bulk: VecDeque<u64>,
    usage: Usage,
}

#[derive(Debug)]
struct Slot {
    entry: Entry,
    bytes: usize,
}

impl Slot {
    fn is_bulk(&self) -> bool {
        self.bytes >= BULK_ENTRY_BYTES + ENTRY_OVERHEAD_BYTES
    }
}

impl Tail {
    /// The memory it takes.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// The entry at an index, if it is here.
    pub fn get(&self, index: u64) -> Option<&Entry> {
        let offset = usize::try_from(index.checked_sub(self.first)?).ok()?;
        self.slots.get(offset)?.as_ref().map(|slot| &slot.entry)
    }

    /// Adds the entry after the last one. `encoded` is its size on the device.
    pub fn push(&mut self, entry: Entry, encoded: usize) {
        let index = entry.log_id.index;
        let slot = Slot { entry, bytes: encoded + ENTRY_OVERHEAD_BYTES };
        if self.slots.is_empty() {
            self.first = index;
        }
        debug_assert_eq!(index, self.end(), "entries are contiguous");
        if slot.is_bulk() {
            self.bulk.push_back(index);
            self.usage.bulk += slot.bytes;
        } else {
            self.usage.small += slot.bytes;
        }
        self.slots.push_back(Some(slot));
    }

    /// Removes the entries from an index on.
    pub fn truncate(&mut self, from: u64) {
        while self.end() > from.max(self.first)
            && let Some(slot) = self.slots.pop_back()
        {
            self.forget(slot.as_ref());
        }
        while self.bulk.back().is_some_and(|index| *index >= from) {
            self.bulk.pop_back();
        }
    }

    /// Removes the entries up to and including an index.
    pub fn purge(&mut self, upto: u64) {
        while self.first <= upto && self.pop_front().is_some() {}
        self.skip_gaps();
    }

    /// Lets entries below `durable_end` leave until `bytes` are free; returns how many it freed.
    pub fn release(&mut self, leaving: Leaving, bytes: usize, durable_end: u64) -> usize {
        let before = self.usage.total();
        let freed = |tail: &Self| before - tail.usage.total();
        match leaving {
            Leaving::Bulk => {
                while freed(self) < bytes
                    && let Some(index) = self.bulk.front().copied().filter(|index| *index < durable_end)
                {
                    self.drop_bulk(index);
                }
            }
            Leaving::Oldest => {
                while freed(self) < bytes && self.first < durable_end && self.pop_front().is_some() {
                    self.skip_gaps();
                }
            }
        }
        freed(self)
    }

    fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    fn drop_bulk(&mut self, index: u64) {
        self.bulk.pop_front();
        let offset = usize::try_from(index - self.first).ok();
        let slot = offset.and_then(|offset| self.slots.get_mut(offset)).and_then(Option::take);
        self.forget(slot.as_ref());
        self.skip_gaps();
    }

    fn pop_front(&mut self) -> Option<()> {
        let slot = self.slots.pop_front()?;
        if self.bulk.front() == Some(&self.first) {
            self.bulk.pop_front();
        }
        self.first += 1;
        self.forget(slot.as_ref());
        Some(())
    }

    fn skip_gaps(&mut self) {
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.first += 1;
        }
    }

    fn forget(&mut self, slot: Option<&Slot>) {
        let Some(slot) = slot else { return };
        if slot.is_bulk() {
            self.usage.bulk -= slot.bytes;
        } else {
            self.usage.small -= slot.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        group::type_config::Proposal,
        log::codec::{LeaderId, LogId, Payload},
    };

    fn push(tail: &mut Tail, index: u64, bytes: usize) {
        let id = LogId::new(LeaderId { term: 1, node_id: 1 }, index);
        let payload = Payload::Normal(Proposal(Bytes::from(vec![0; bytes])));
        tail.push(Entry { log_id: id, payload }, bytes);
    }

    fn present(tail: &Tail, indexes: std::ops::Range<u64>) -> Vec<u64> {
        indexes.filter(|index| tail.get(*index).is_some()).collect()
    }

    #[test]
    fn bulk_entries_leave_first_and_small_ones_stay() {
        let mut tail = Tail::default();
        for index in 1..=6 {
            push(&mut tail, index, if index % 2 == 0 { BULK_ENTRY_BYTES } else { 10 });
        }
        assert_eq!(tail.release(Leaving::Bulk, usize::MAX, 5), 2 * (BULK_ENTRY_BYTES + ENTRY_OVERHEAD_BYTES));
        assert_eq!(present(&tail, 0..9), [1, 3, 5, 6], "6 is not durable");
        assert_eq!(tail.usage().bulk, BULK_ENTRY_BYTES + ENTRY_OVERHEAD_BYTES);
    }

    #[test]
    fn what_is_not_durable_never_leaves() {
        let mut tail = Tail::default();
        for index in 1..=6 {
            push(&mut tail, index, 10);
        }
        tail.release(Leaving::Oldest, usize::MAX, 4);
        assert_eq!(present(&tail, 0..9), [4, 5, 6]);
        assert_eq!(tail.release(Leaving::Oldest, usize::MAX, 4), 0);
    }

    #[test]
    fn usage_is_zero_when_all_is_gone() {
        for gone in [Tail::truncate as fn(&mut Tail, u64), |tail, _| tail.purge(9)] {
            let mut tail = Tail::default();
            for index in 1..=6 {
                push(&mut tail, index, if index == 3 { BULK_ENTRY_BYTES } else { 10 });
            }
            tail.release(Leaving::Bulk, 1, u64::MAX);
            gone(&mut tail, 0);
            assert_eq!(tail.usage(), Usage::default());
            assert!(tail.bulk.is_empty());
            push(&mut tail, 20, 10);
            assert_eq!(present(&tail, 0..30), [20]);
        }
    }

    #[test]
    fn truncated_indexes_are_taken_anew() {
        let mut tail = Tail::default();
        for index in 1..=6 {
            push(&mut tail, index, BULK_ENTRY_BYTES);
        }
        tail.truncate(4);
        push(&mut tail, 4, 10);
        assert_eq!(present(&tail, 0..9), [1, 2, 3, 4]);
        tail.release(Leaving::Bulk, usize::MAX, u64::MAX);
        assert_eq!(present(&tail, 0..9), [4]);
    }
}
