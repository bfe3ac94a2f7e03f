//! From a key to its shard.

use divan::{Bencher, black_box, counter::ItemsCount};
use kv_topology::{
    ClusterMap, GroupId, KeyspaceId, ShardId, Slot,
    map::{ShardEntry, SlotTable},
    slot::contiguous_runs,
};

use crate::key;

const KEYSPACE: KeyspaceId = KeyspaceId(1);
const SHARDS: u16 = 64;
/// Of one message.
const KEYS: usize = 512;

/// A map of 64 shards.
fn map() -> ClusterMap {
    let mut map = ClusterMap::default();
    for (number, slots) in (1..).zip(contiguous_runs(SHARDS)) {
        let shard = ShardEntry {
            group: GroupId(number),
            slots: vec![slots],
            replicas: Vec::new(),
            preferred_leader: None,
        };
        map.shards.insert(ShardId(u32::try_from(number).unwrap()), shard);
    }
    map
}

/// The slots of 512 keys.
#[divan::bench]
fn slots(bencher: Bencher<'_, '_>) {
    let keys: Vec<_> = (0..KEYS).map(key).collect();
    bencher.counter(ItemsCount::new(KEYS)).bench_local(|| {
        for key in &keys {
            black_box(Slot::of(KEYSPACE, black_box(key)));
        }
    });
}

/// The shards of 512 keys.
#[divan::bench]
fn shards(bencher: Bencher<'_, '_>) {
    let (table, keys): (_, Vec<_>) = (SlotTable::of(&map()), (0..KEYS).map(key).collect());
    bencher.counter(ItemsCount::new(KEYS)).bench_local(|| {
        for key in &keys {
            black_box(table.shard_of(Slot::of(KEYSPACE, black_box(key))).unwrap());
        }
    });
}

/// The table that a stream makes of each new map.
#[divan::bench]
fn slot_table(bencher: Bencher<'_, '_>) {
    let map = map();
    bencher.bench_local(|| SlotTable::of(black_box(&map)));
}
