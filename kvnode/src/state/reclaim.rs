//! Which part of a store to compact next, so that deleted records give their space back. Pure.
//!
//! A delete writes a record more; what it deletes goes when both come together in the lowest level. RocksDB brings them
//! there when it has other reasons to. A full disk cannot wait for those, but compaction writes before it deletes: so
//! the store is gone through in pieces, each no larger than the space that is left allows for.

use std::collections::BTreeSet;

use super::engine::Span;

/// Most that the compaction of a piece may write before it frees anything, bytes, if there are such pieces: at the pace
/// that compaction has, the disk is looked at again after seconds.
const PIECE_BYTES_MAX: u64 = 1 << 30;

/// A table of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// 0: the newest, whose tables overlap. The greatest: the oldest.
    pub level: u32,
    /// The first name in it.
    pub first: Vec<u8>,
    /// The last name in it.
    pub last: Vec<u8>,
    /// Its size.
    pub bytes: u64,
    /// Deletes of records, and of ranges, in it; not 0 when nobody counted.
    pub deletes: u64,
}

/// A part of the store, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The first name.
    pub first: Vec<u8>,
    /// The last name.
    pub last: Vec<u8>,
    /// Whether there is room for its compaction; else it must be passed over.
    pub fits: bool,
}

impl Piece {
    /// The least name after it.
    pub fn after(&self) -> Vec<u8> {
        let mut next = self.last.clone();
        next.push(0);
        next
    }
}

impl TableInfo {
    fn overlaps(&self, first: &[u8], last: &[u8]) -> bool {
        self.first.as_slice() <= last && first <= self.last.as_slice()
    }
}

/// The next piece at or after `from` with deletes in it, as large as `spare_bytes` allow. `None`: there are no more.
pub fn next_piece(tables: &[TableInfo], from: &[u8], spare_bytes: u64) -> Option<Piece> {
    let with_deletes = tables.iter().filter(|table| table.deletes > 0 && table.last.as_slice() >= from);
    let first = with_deletes.map(|table| table.first.as_slice().max(from)).min()?;
    // Where a table ends, a piece may end: half of a table cannot be compacted.
    let ends: BTreeSet<&[u8]> =
        tables.iter().map(|table| table.last.as_slice()).filter(|last| *last >= first).collect();
    let fitting = |most| ends.iter().take_while(|last| needed_bytes(tables, first, last) <= most).last();
    let (last, fits) = match fitting(spare_bytes.min(PIECE_BYTES_MAX)).or_else(|| fitting(spare_bytes)) {
        Some(last) => (last, true),
        None => (ends.first()?, false),
    };
    Some(Piece { first: first.to_vec(), last: last.to_vec(), fits })
}

/// Most that the compaction of a piece writes before it frees anything. It goes down level by level: each time the
/// tables of one level, with what came down before, are written anew together with those below that they overlap. What
/// came down may be a single table that reaches as far as all that went into it.
fn needed_bytes(tables: &[TableInfo], first: &[u8], last: &[u8]) -> u64 {
    let levels: BTreeSet<u32> = tables.iter().map(|table| table.level).collect();
    let mut reach = Span { start: first.to_vec(), end: last.to_vec() };
    let mut bytes = 0_u64;
    for level in levels {
        let touched;
        (touched, reach) = inputs(tables, level, reach);
        bytes = bytes.saturating_add(touched);
    }
    bytes
}

/// Bytes of the tables of a level that are touched, and how far they reach together with what touches them. In level 0,
/// where tables overlap, also those that these touch.
fn inputs(tables: &[TableInfo], level: u32, mut reach: Span) -> (u64, Span) {
    loop {
        let of_level = tables.iter().filter(|table| table.level == level);
        let touched: Vec<_> = of_level.filter(|table| table.overlaps(&reach.start, &reach.end)).collect();
        let wider = touched.iter().fold(reach.clone(), |reach, table| Span {
            start: reach.start.min(table.first.clone()),
            end: reach.end.max(table.last.clone()),
        });
        if level > 0 || wider == reach {
            return (touched.iter().map(|table| table.bytes).sum(), wider);
        }
        reach = wider;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn table(level: u32, names: (u8, u8), mib: u64, deletes: u64) -> TableInfo {
        TableInfo { level, first: vec![names.0], last: vec![names.1], bytes: mib * MIB, deletes }
    }

    fn piece(first: u8, last: u8, fits: bool) -> Option<Piece> {
        Some(Piece { first: vec![first], last: vec![last], fits })
    }

    #[test]
    fn without_deletes_nothing_is_compacted() {
        assert_eq!(next_piece(&[], &[], u64::MAX), None);
        assert_eq!(next_piece(&[table(6, (0, 9), 64, 0)], &[], u64::MAX), None);
    }

    #[test]
    fn a_piece_reaches_as_far_as_there_is_room() {
        let lowest = (0..4).map(|number| table(6, (number * 10, number * 10 + 9), 64, 0));
        let middle = [table(5, (0, 19), 20, 3), table(5, (20, 39), 20, 3)];
        let tables: Vec<_> = lowest.chain(middle).collect();
        assert_eq!(next_piece(&tables, &[], 1000 * MIB), piece(0, 39, true));
        // The first table of the middle and the two below it; less than the whole table is not compacted.
        assert_eq!(next_piece(&tables, &[], 148 * MIB), piece(0, 19, true));
        assert_eq!(next_piece(&tables, &[], 147 * MIB), piece(0, 9, false), "it writes before it deletes");
        assert_eq!(next_piece(&tables, &[19, 0], 148 * MIB), piece(20, 39, true));
        assert_eq!(next_piece(&tables, &[39, 0], 148 * MIB), None);
    }

    #[test]
    fn tables_that_overlap_in_the_newest_level_go_down_together() {
        let tables = [
            table(0, (0, 20), 10, 1),
            table(0, (15, 40), 10, 0),
            table(6, (0, 30), 64, 0),
            table(6, (31, 60), 64, 0),
        ];
        assert_eq!(needed_bytes(&tables, &[0], &[9]), (20 + 128) * MIB);
        assert_eq!(next_piece(&tables, &[], 100 * MIB).map(|piece| piece.fits), Some(false));
    }

    #[test]
    fn what_comes_down_is_taken_for_as_wide_as_all_that_went_into_it() {
        let tables = [
            table(0, (0, 200), 10, 1),
            table(5, (0, 9), 1, 0),
            table(5, (190, 200), 1, 0),
            table(6, (0, 99), 64, 0),
            table(6, (100, 200), 64, 0),
        ];
        assert_eq!(needed_bytes(&tables, &[0], &[9]), 140 * MIB);
    }

    #[test]
    fn what_is_larger_than_a_piece_should_be_is_one_when_there_is_room() {
        let tables = [table(0, (0, 99), 1, 1), table(6, (0, 49), 800, 0), table(6, (50, 99), 800, 0)];
        assert_eq!(next_piece(&tables, &[], 1_601 * MIB), piece(0, 99, true));
        assert_eq!(next_piece(&tables, &[], 1_600 * MIB), piece(0, 49, false));
    }

    proptest! {
        #[test]
        fn a_round_ends_and_passes_each_delete_once(
            tables in prop::collection::vec((0..4_u32, any::<u8>(), any::<u8>(), 0..200_u64, 0..3_u64), 0..20),
            spare_mib in 0..1_500_u64,
        ) {
            let tables: Vec<TableInfo> = tables
                .into_iter()
                .map(|(level, one, other, mib, deletes)| {
                    table(level, (one.min(other), one.max(other)), mib, deletes)
                })
                .collect();
            let (mut from, mut pieces) = (Vec::new(), Vec::new());
            while let Some(next) = next_piece(&tables, &from, spare_mib * MIB) {
                prop_assert!(next.first >= from && next.first <= next.last);
                let needed = needed_bytes(&tables, &next.first, &next.last);
                prop_assert_eq!(next.fits, needed <= spare_mib * MIB);
                from = next.after();
                pieces.push(next);
                prop_assert!(pieces.len() <= tables.len(), "{pieces:?}");
            }
            for table in tables.iter().filter(|table| table.deletes > 0) {
                for name in [&table.first, &table.last] {
                    let holds = |piece: &&Piece| &piece.first <= name && name <= &piece.last;
                    prop_assert_eq!(pieces.iter().filter(holds).count(), 1, "{:?}", name);
                }
            }
        }
    }
}
