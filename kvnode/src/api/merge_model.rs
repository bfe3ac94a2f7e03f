//! The walk against a sorted map.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::api::range::successor;

type Keys = BTreeSet<Vec<u8>>;

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![Just(0u8), Just(7), Just(255)], 1..4)
}

/// A shard's answer, as the store gives it: at most `limit` keys, perhaps none although more follow.
fn page(keys: &Keys, range: &Range, reverse: bool, limit: usize) -> ScannedPage {
    let mut inside: Vec<_> = keys.iter().filter(|key| range.contains(key)).cloned().collect();
    if reverse {
        inside.reverse();
    }
    let next_key = match inside.get(limit) {
        None => Bytes::new(),
        // Downwards, all that is left lies before the last key that was given; with none given, before its successor.
        Some(next) if reverse => successor(next),
        Some(next) => next.clone().into(),
    };
    let kvs = inside.into_iter().take(limit).map(|key| KeyValue { key: key.into(), ..KeyValue::default() });
    ScannedPage { kvs: kvs.collect(), count: 0, next_key }
}

/// Walks until the end, or until `stop` keys were given.
fn walk(shards: &[Keys], range: &Range, reverse: bool, limits: &[usize], stop: usize) -> Vec<Vec<u8>> {
    let ids = (1..).map(ShardId);
    let mut merge = Merge::new(ids.take(shards.len()), range, reverse);
    let mut limits = limits.iter().copied().cycle();
    let mut seen = Vec::new();
    while !merge.is_done() && seen.len() < stop {
        for (shard, rest) in merge.wanted() {
            let keys = &shards[shard.get() as usize - 1];
            let limit = limits.next().unwrap_or(1);
            let answer = page(keys, &rest, reverse, limit);
            // An empty page that does not advance is refused; ours would, so give it one key.
            let answer =
                if answer.kvs.is_empty() { page(keys, &rest, reverse, limit.max(1)) } else { answer };
            merge.supply(shard, answer).expect("a proper page");
        }
        while seen.len() < stop
            && let Some(kv) = merge.pop()
        {
            seen.push(kv.key.to_vec());
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
        reverse: bool, stop in 0usize..20,
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
        prop_assert_eq!(&walk(&shards, &range, reverse, &limits, usize::MAX), &model);

        let mut seen = walk(&shards, &range, reverse, &limits, stop);
        prop_assert_eq!(&seen[..], &model[..stop.min(model.len())]);
        let rest = match seen.last() {
            None => range,
            Some(last) if reverse => Range { end: last.clone().into(), ..range },
            Some(last) => Range { start: successor(last), ..range },
        };
        seen.extend(walk(&shards, &rest, reverse, &limits, usize::MAX));
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
        let page = ScannedPage { kvs: kvs(keys), count: 0, next_key: next_key.into() };
        assert_eq!(merge.supply(ShardId(1), page), Err(OutOfOrder(ShardId(1))), "{what}");
    }
    let mut merge = Merge::new([ShardId(1)], &range, false);
    assert_eq!(merge.supply(ShardId(2), ScannedPage::default()), Err(OutOfOrder(ShardId(2))));
    assert_eq!(merge.supply(ShardId(1), ScannedPage::default()), Ok(()));
    assert_eq!(merge.supply(ShardId(1), ScannedPage::default()), Err(OutOfOrder(ShardId(1))), "not wanted");
}

#[test]
fn a_shard_without_a_page_holds_back_all_others() {
    let mut merge = Merge::new([ShardId(1), ShardId(2)], &Range::default(), false);
    let page =
        |keys, next_key: &'static str| ScannedPage { kvs: kvs(keys), count: 0, next_key: next_key.into() };
    merge.supply(ShardId(1), page(&["b", "d"], "")).expect("a proper page");
    assert!(merge.peek().is_none());
    merge.supply(ShardId(2), page(&["c"], "e")).expect("a proper page");
    assert_eq!(merge.pop().map(|kv| kv.key), Some("b".into()));
    assert_eq!(merge.pop().map(|kv| kv.key), Some("c".into()));
    assert!(merge.pop().is_none(), "the next key of shard 2 may come before d");
    assert_eq!(merge.wanted(), [(ShardId(2), Range { start: "e".into(), end: Bytes::new() })]);
}
