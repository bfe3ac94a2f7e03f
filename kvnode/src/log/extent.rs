//! Which entries a replica's log holds: their indexes, sizes and leaders, without their payloads.
//!
//! Four bytes an entry buy exact answers without I/O: how large the log is, where to cut it to keep N bytes, which
//! log id an index has, and where leaders changed.

use std::{collections::VecDeque, ops::RangeInclusive};

use crate::log::codec::{LeaderId, LogId};

/// How large a log is, or may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSize {
    /// Encoded bytes of its entries.
    pub bytes: u64,
    /// Their number: each takes memory, however small it is.
    pub entries: u64,
}

impl LogSize {
    /// So many bytes, in however many entries.
    pub const fn of_bytes(bytes: u64) -> Self {
        Self { bytes, entries: u64::MAX }
    }
}

/// The entries of a log, seen from outside. Indexes are contiguous.
#[derive(Clone, Debug, Default)]
pub struct Extent {
    /// Index of the first entry; without meaning while empty.
    first: u64,
    /// Encoded bytes of each.
    sizes: VecDeque<u32>,
    /// Where each leader's entries begin, ascending. The first may begin before `first`.
    leaders: VecDeque<(u64, LeaderId)>,
    bytes: u64,
}

impl Extent {
    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.sizes.is_empty()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.sizes.len()
    }

    /// Encoded bytes of all entries.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Indexes of the first entry and of the one after the last.
    pub fn indexes(&self) -> std::ops::Range<u64> {
        self.first..self.first + self.sizes.len() as u64
    }

    /// The last entry.
    pub fn last(&self) -> Option<LogId> {
        self.indexes().end.checked_sub(1).and_then(|index| self.log_id(index))
    }

    /// The log id of an entry; `None` if there is no such entry.
    pub fn log_id(&self, index: u64) -> Option<LogId> {
        if !self.indexes().contains(&index) {
            return None;
        }
        let after = self.leaders.partition_point(|(begin, _)| *begin <= index);
        let (_, leader) = self.leaders.get(after.checked_sub(1)?)?;
        Some(LogId::new(*leader, index))
    }

    /// Encoded bytes of an entry.
    pub fn size(&self, index: u64) -> Option<u32> {
        let offset = usize::try_from(index.checked_sub(self.first)?).ok()?;
        self.sizes.get(offset).copied()
    }

    /// Encoded bytes of the entries after index `after`, up to and including `upto`. `None`: some of them are not here, or
    /// there are more than `most` of them.
    pub fn bytes_between(&self, after: u64, upto: u64, most: u64) -> Option<u64> {
        if after >= upto {
            return Some(0);
        }
        let wanted = after + 1..=upto;
        let here = self.indexes();
        if *wanted.start() < here.start || *wanted.end() >= here.end || upto - after > most {
            return None;
        }
        let offset = |index: u64| usize::try_from(index - self.first).ok();
        let sizes = self.sizes.range(offset(*wanted.start())?..=offset(*wanted.end())?);
        Some(sizes.map(|size| u64::from(*size)).sum())
    }

    /// The last log id of each leader in the range, in order: what openraft calls key log ids.
    pub fn last_of_each_leader(&self, range: &RangeInclusive<LogId>) -> Vec<LogId> {
        let (start, end) = (range.start().index, range.end().index);
        let ends = self.leaders.iter().skip(1).map(|(begin, _)| begin - 1).chain([end]);
        let lasts =
            self.leaders.iter().zip(ends).filter(|((begin, _), last)| *begin <= end && *last >= start);
        lasts.map(|((_, leader), last)| LogId::new(*leader, last.min(end))).collect()
    }

    /// The lowest index such that the entries after it are no more than `keep`; `None` if all entries together are no more,
    /// so that nothing need go.
    pub fn cut_keeping(&self, keep: LogSize) -> Option<u64> {
        let surplus = (self.len() as u64).checked_sub(keep.entries).filter(|surplus| *surplus > 0);
        let by_number = surplus.map(|surplus| self.first + surplus - 1);
        by_number.max(self.cut_keeping_bytes(keep.bytes))
    }

    fn cut_keeping_bytes(&self, keep: u64) -> Option<u64> {
        let mut excess = self.bytes.checked_sub(keep).filter(|excess| *excess > 0)?;
        for (size, index) in self.sizes.iter().zip(self.first..) {
            let size = u64::from(*size);
            if size >= excess {
                return Some(index);
            }
            excess -= size;
        }
        None
    }

    /// Adds the next entry. The caller has checked that it follows the last one.
    pub fn push(&mut self, id: &LogId, size: u32) {
        if self.sizes.is_empty() {
            self.first = id.index;
            self.leaders.clear();
        }
        debug_assert_eq!(id.index, self.indexes().end, "entries are contiguous");
        if self.leaders.back().is_none_or(|(_, leader)| *leader != id.leader_id) {
            self.leaders.push_back((id.index, id.leader_id));
        }
        self.sizes.push_back(size);
        self.bytes += u64::from(size);
    }

    /// Removes the entries from an index on.
    pub fn truncate(&mut self, from: u64) {
        while self.indexes().end > from.max(self.first)
            && let Some(size) = self.sizes.pop_back()
        {
            self.bytes -= u64::from(size);
        }
        while self.leaders.back().is_some_and(|(begin, _)| *begin >= from) {
            self.leaders.pop_back();
        }
    }

    /// Removes the entries up to and including an index.
    pub fn purge(&mut self, upto: u64) {
        while self.first <= upto
            && let Some(size) = self.sizes.pop_front()
        {
            self.first += 1;
            self.bytes -= u64::from(size);
        }
        while self.leaders.get(1).is_some_and(|(begin, _)| *begin <= self.first) {
            self.leaders.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(LeaderId { term, node_id: 1 }, index)
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push { new_term: bool, size: u32 },
        Truncate(u64),
        Purge(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (any::<bool>(), 0u32..100).prop_map(|(new_term, size)| Step::Push { new_term, size }),
            1 => (0u64..60).prop_map(Step::Truncate),
            1 => (0u64..60).prop_map(Step::Purge),
        ];
        prop::collection::vec(step, 0..80)
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_plain_list(
            steps in steps(), keep in (0u64..3000, 0u64..40), between in (0u64..70, 0u64..70)
        ) {
            let (mut extent, mut list, mut term, mut next) = (Extent::default(), Vec::<(LogId, u32)>::new(), 1, 0);
            for step in steps {
                match step {
                    Step::Push { new_term, size } => {
                        term += u64::from(new_term);
                        extent.push(&id(term, next), size);
                        list.push((id(term, next), size));
                        next += 1;
                    }
                    Step::Truncate(from) => {
                        let from = from.max(list.first().map_or(next, |(id, _)| id.index)).min(next);
                        extent.truncate(from);
                        list.retain(|(id, _)| id.index < from);
                        next = from;
                    }
                    Step::Purge(upto) if upto < next => {
                        extent.purge(upto);
                        list.retain(|(id, _)| id.index > upto);
                    }
                    Step::Purge(_) => {}
                }
                prop_assert_eq!(extent.len(), list.len());
                prop_assert_eq!(extent.last(), list.last().map(|(id, _)| *id));
                prop_assert_eq!(extent.bytes(), list.iter().map(|(_, size)| u64::from(*size)).sum::<u64>());
                for (id, size) in &list {
                    prop_assert_eq!(extent.log_id(id.index), Some(*id));
                    prop_assert_eq!(extent.size(id.index), Some(*size));
                }
            }
            if let (Some((first, _)), Some((last, _))) = (list.first(), list.last()) {
                let mut expected: Vec<LogId> = list.iter().map(|(id, _)| *id).collect();
                expected.reverse();
                expected.dedup_by_key(|id| id.leader_id);
                expected.reverse();
                prop_assert_eq!(extent.last_of_each_leader(&(*first..=*last)), expected);
            }
            let (after, upto) = (between.0.min(between.1), between.0.max(between.1));
            let wanted: Vec<u64> = list
                .iter()
                .filter(|(id, _)| id.index > after && id.index <= upto)
                .map(|(_, size)| u64::from(*size))
                .collect();
            let sum = (wanted.len() as u64 == upto - after).then(|| wanted.iter().sum());
            prop_assert_eq!(extent.bytes_between(after, upto, u64::MAX), sum);
            if upto > after {
                prop_assert_eq!(extent.bytes_between(after, upto, upto - after - 1), None, "too many");
            }
            let keep = LogSize { bytes: keep.0, entries: keep.1 };
            let fits = |first: u64| {
                let after: Vec<u64> =
                    list.iter().filter(|(id, _)| id.index >= first).map(|(_, size)| u64::from(*size)).collect();
                after.iter().sum::<u64>() <= keep.bytes && after.len() as u64 <= keep.entries
            };
            match extent.cut_keeping(keep) {
                None => prop_assert!(fits(0)),
                Some(cut) => prop_assert!(fits(cut + 1) && !fits(cut), "{cut}"),
            }
        }
    }
}
