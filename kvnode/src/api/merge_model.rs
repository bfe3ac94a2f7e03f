//! The walk against a sorted map.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::api::range::successor;

type Keys = BTreeSet<Vec<u8>>;

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![Just(0u8), Just(7), Just(255)], 1..4)
}

/// A shard's answer, as the store gives it: at most `limit` keys, perhaps none although more follow, and none behind one that
/// is left out. Nodes of an older version leave nothing out.
fn page(keys: &Keys, wanted: &Wanted, reverse: bool, limit: usize, is_old: bool) -> ScannedPage {
    let range = &wanted.range;
    let mut inside: Vec<_> = keys.iter().filter(|key| range.contains(key)).cloned().collect();
    if reverse {
        inside.reverse();
    }
    let may_be_large = usize::from(wanted.first_whole);
    let large =
        inside.iter().skip(may_be_large).position(|key| is_large(key)).map(|large| large + may_be_large);
    let large = large.filter(|large| *large <= limit && !is_old);
    let limit = large.unwrap_or(limit);
    let next_key = match inside.get(limit) {
        None => Bytes::new(),
        // Downwards, all that is left lies before the last key that was given; with none given, before its successor.
        Some(next) if reverse => successor(next),
        Some(next) => next.clone().into(),
    };
    let kvs = inside.into_iter().take(limit).map(|key| KeyValue { key: key.into(), ..KeyValue::default() });
    ScannedPage { kvs: kvs.collect(), next_key, next_is_large: large.is_some(), ..ScannedPage::default() }
}

/// Whose value no page takes with others.
fn is_large(key: &[u8]) -> bool {
    key.last() == Some(&255)
}

/// Walks until the end, or until `stop` keys were given.
/// Lets go of all pages after each `patience` keys.
fn walk(
    shards: &[Keys],
    range: &Range,
    reverse: bool,
    limits: &[usize],
    stop: usize,
    patience: usize,
    old: &BTreeSet<u32>,
) -> Vec<Vec<u8>> {
    let ids = (1..).map(ShardId);
    let mut merge = Merge::new(ids.take(shards.len()), range, reverse);
    let mut limits = limits.iter().copied().cycle();
    let mut seen = Vec::new();
    while !merge.is_done() && seen.len() < stop {
        let wanted = merge.wanted();
        let large = wanted.iter().filter(|wanted| wanted.first_whole).count();
        assert!(large <= 1, "large values are read one at a time");
        for wanted in wanted {
            let (shard, number) = (wanted.shard, wanted.shard.get());
            let keys = &shards[number as usize - 1];
            // An empty page that does not advance is refused; the store gives one key at least.
            let limit = limits.next().unwrap_or(1).max(1);
            let page = page(keys, &wanted, reverse, limit, old.contains(&number));
            merge.supply(shard, page).expect("a proper page");
        }
        while seen.len() < stop
            && let Some(kv) = merge.pop()
        {
            seen.push(kv.key.to_vec());
            if seen.len().is_multiple_of(patience) {
                merge.let_go();
            }
        }
    }
    seen
}

proptest! {
    #[test]
    fn the_walk_gives_every_key_once_in_order_and_goes_on_anywhere(
        shards in prop::collection::vec(prop::collection::btree_set(key(), 0..12), 1..6),
        start in key(), end in prop_oneof![Just(Vec::new()), key()],
        limits in prop::collection::vec(0usize..5, 1..6),
        reverse: bool, stop in 0usize..20, patience in 1usize..20,
        old in prop::collection::btree_set(1u32..6, 0..4),
    ) {
        // A key lives in one shard only.
        let mut taken = Keys::new();
        let shards: Vec<Keys> =
            shards.into_iter().map(|keys| keys.into_iter().filter(|key| taken.insert(key.clone())).collect()).collect();
        let range = Range { start: start.into(), end: end.into() };
        let mut model: Vec<_> = taken.into_iter().filter(|key| range.contains(key)).collect();
        if reverse {
            model.reverse();
        }
        prop_assert_eq!(&walk(&shards, &range, reverse, &limits, usize::MAX, patience, &old), &model);

        let mut seen = walk(&shards, &range, reverse, &limits, stop, patience, &old);
        prop_assert_eq!(&seen[..], &model[..stop.min(model.len())]);
        let rest = match seen.last() {
            None => range,
            Some(last) if reverse => Range { end: last.clone().into(), ..range },
            Some(last) => Range { start: successor(last), ..range },
        };
        seen.extend(walk(&shards, &rest, reverse, &limits, usize::MAX, patience, &old));
        prop_assert_eq!(seen, model);
    }
}

fn kvs(keys: &[&'static str]) -> Vec<KeyValue> {
    keys.iter()
        .map(|key| KeyValue { key: Bytes::from_static(key.as_bytes()), ..KeyValue::default() })
        .collect()
}

#[test]
fn a_page_that_would_lose_repeat_or_disorder_keys_is_refused() {
    let range = Range { start: "b".into(), end: "m".into() };
    let table: [(&str, bool, &[&'static str], &'static str); 10] = [
        ("before the range", false, &["a"], ""),
        ("behind the range", false, &["m"], ""),
        ("downwards", false, &["d", "c"], ""),
        ("upwards", true, &["c", "d"], ""),
        ("twice", false, &["c", "c"], ""),
        ("goes on at a key that it gave", false, &["c", "d"], "d"),
        ("goes on before", false, &["c"], "a"),
        ("goes on behind", false, &["c"], "z"),
        ("goes on at a key that it gave, downwards", true, &["d", "c"], "d"),
        ("does not advance", false, &[], "b"),
    ];
    for (what, reverse, keys, next_key) in table {
        let mut merge = Merge::new([ShardId(1)], &range, reverse);
        let page = ScannedPage { kvs: kvs(keys), next_key: next_key.into(), ..ScannedPage::default() };
        assert_eq!(merge.supply(ShardId(1), page), Err(OutOfOrder(ShardId(1))), "{what}");
    }
    let mut merge = Merge::new([ShardId(1)], &range, false);
    assert_eq!(merge.supply(ShardId(2), ScannedPage::default()), Err(OutOfOrder(ShardId(2))));
    assert_eq!(merge.supply(ShardId(1), ScannedPage::default()), Ok(()));
    assert_eq!(merge.supply(ShardId(1), ScannedPage::default()), Err(OutOfOrder(ShardId(1))), "not wanted");
}

fn page_of(keys: &[&'static str], next_key: &'static str) -> ScannedPage {
    ScannedPage { kvs: kvs(keys), next_key: next_key.into(), ..ScannedPage::default() }
}

fn wanted(shard: u32, start: &'static str, first_whole: bool) -> Wanted {
    Wanted { shard: ShardId(shard), range: Range { start: start.into(), end: Bytes::new() }, first_whole }
}

#[test]
fn a_shard_without_a_page_holds_back_what_may_come_behind_its_keys() {
    let mut merge = Merge::new([ShardId(1), ShardId(2)], &Range::default(), false);
    merge.supply(ShardId(1), page_of(&["b", "d", "f"], "")).expect("a proper page");
    assert!(merge.peek().is_none());
    merge.supply(ShardId(2), page_of(&["c"], "e")).expect("a proper page");
    let keys: Vec<_> = std::iter::from_fn(|| merge.pop()).map(|kv| kv.key).collect();
    assert_eq!(keys, ["b", "c", "d"], "the next key of shard 2 may come before f, and not before d");
    assert_eq!(merge.wanted(), [wanted(2, "e", false)]);
}

#[test]
fn large_values_are_wanted_one_at_a_time_when_it_is_their_turn() {
    let mut merge = Merge::new([ShardId(1), ShardId(2), ShardId(3)], &Range::default(), false);
    let large = |key| ScannedPage { next_is_large: true, ..page_of(&[], key) };
    merge.supply(ShardId(1), large("d")).expect("a proper page");
    merge.supply(ShardId(2), large("b")).expect("a proper page");
    merge.supply(ShardId(3), page_of(&["a", "c"], "")).expect("a proper page");
    assert_eq!(merge.pop().map(|kv| kv.key), Some("a".into()));
    assert_eq!(merge.wanted(), [wanted(2, "b", true)]);
    merge.supply(ShardId(2), large("b")).expect_err("it was asked for");
    let mut merge = Merge::new([ShardId(1)], &Range { start: "d".into(), end: Bytes::new() }, false);
    merge.supply(ShardId(1), large("d")).expect("the first of all");
    assert_eq!(merge.wanted(), [wanted(1, "d", true)]);
}

#[test]
fn pages_that_were_let_go_are_wanted_again() {
    let mut merge = Merge::new([ShardId(1), ShardId(2)], &Range::default(), false);
    merge.supply(ShardId(1), page_of(&["b", "d"], "")).expect("a proper page");
    merge.supply(ShardId(2), page_of(&["c"], "")).expect("a proper page");
    let bytes = merge.bytes();
    let first = merge.pop().expect("b");
    assert_eq!(merge.bytes() + weight(&first), bytes);
    merge.let_go();
    assert_eq!((merge.bytes(), merge.is_done()), (0, false));
    assert_eq!(merge.wanted(), [wanted(1, "d", false), wanted(2, "c", false)]);
}
