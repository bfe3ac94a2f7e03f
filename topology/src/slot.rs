//! Hash slots: which part of a key is hashed, into which of the 4,096 slots it falls.

use std::fmt;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::KeyspaceId;

/// Number of slots of a keyspace. A disk and wire constant.
pub const SLOT_COUNT: u16 = 4096;

/// Keyspace and routing part up to this length, bytes, are hashed in one go.
const SHORT_BYTES: usize = 68;

/// A hash slot, below [`SLOT_COUNT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// The slot with this number; `None` when there is no such slot.
    pub const fn new(number: u16) -> Option<Self> {
        if number < SLOT_COUNT { Some(Self(number)) } else { None }
    }

    /// The slot that `key` falls into: xxh3_64(keyspace id as 4 bytes BE, routing part) mod 4096.
    pub fn of(keyspace: KeyspaceId, key: &[u8]) -> Self {
        let (keyspace, part) = (keyspace.0.to_be_bytes(), routing_part(key));
        let mut short = [0; SHORT_BYTES];
        let hash = match short.get_mut(..keyspace.len() + part.len()) {
            // In one go: the state of a hash in pieces costs several times as much as a short key.
            Some(whole) => {
                let (first, rest) = whole.split_at_mut(keyspace.len());
                first.copy_from_slice(&keyspace);
                rest.copy_from_slice(part);
                xxh3_64(whole)
            }
            None => {
                let mut hasher = Xxh3::new();
                hasher.update(&keyspace);
                hasher.update(part);
                hasher.digest()
            }
        };
        #[allow(clippy::cast_possible_truncation, reason = "the remainder is below 4,096")]
        Self((hash % u64::from(SLOT_COUNT)) as u16)
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

/// The text inside the first `{…}` of the key if it is not empty, else the whole key.
pub fn routing_part(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|byte| *byte == b'{') else { return key };
    let tagged = &key[open + 1..];
    match tagged.iter().position(|byte| *byte == b'}') {
        None | Some(0) => key,
        Some(close) => &tagged[..close],
    }
}

/// Slots from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotRange {
    /// Not after `last`.
    pub first: Slot,
    /// Included.
    pub last: Slot,
}

impl SlotRange {
    /// The range; `None` when it is empty or a number is no slot.
    pub fn new(first: u16, last: u16) -> Option<Self> {
        let (first, last) = (Slot::new(first)?, Slot::new(last)?);
        (first <= last).then_some(Self { first, last })
    }

    /// Whether `slot` is inside.
    pub fn contains(&self, slot: Slot) -> bool {
        self.first <= slot && slot <= self.last
    }

    /// How many slots; at least one.
    pub const fn count(&self) -> u16 {
        self.last.0 - self.first.0 + 1
    }

    /// Every slot of the range, in order.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + use<> {
        (self.first.0..=self.last.0).map(Slot)
    }
}

impl fmt::Display for SlotRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.first.0, self.last.0)
    }
}

/// Cuts all slots into `shards` contiguous runs in order, whose lengths differ by at most one (longer ones first).
///
/// More shards than slots get no run each: the answer never holds an empty range. 0 shards: no runs.
pub fn contiguous_runs(shards: u16) -> Vec<SlotRange> {
    let shards = shards.min(SLOT_COUNT);
    let Some(length) = SLOT_COUNT.checked_div(shards) else { return Vec::new() };
    let longer = SLOT_COUNT % shards;
    let mut first = 0;
    (0..shards)
        .map(|index| {
            let last = first + length - u16::from(index >= longer);
            let range = SlotRange { first: Slot(first), last: Slot(last) };
            first = last + 1;
            range
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Frozen: a change of one of these numbers loses every key of every existing cluster.
    const GOLDEN: [(u32, &[u8], u16); 12] = [
        (0, b"greeting", 241),
        (0, b"hello", 3746),
        (0, b"a", 2313),
        (0, b"b", 472),
        (0, b"user:1", 3811),
        (0, b"user:2", 2246),
        (0, b"{user:1}:name", 3811),
        (0, b"{}empty-tag", 3855),
        (0, b"open{brace", 3603),
        (0, b"\x00\xff\xfe", 2653),
        (1, b"greeting", 3070),
        (u32::MAX, b"greeting", 636),
    ];

    #[test]
    fn known_keys_keep_their_slots() {
        let slots: Vec<(u32, &[u8], u16)> = GOLDEN
            .iter()
            .map(|(keyspace, key, _)| (*keyspace, *key, Slot::of(KeyspaceId(*keyspace), key).get()))
            .collect();
        assert_eq!(slots, GOLDEN);
    }

    #[test]
    fn routing_part_is_the_first_tag_that_is_not_empty_or_the_whole_key() {
        for (key, part) in [
            ("plain", "plain"),
            ("{tag}rest", "tag"),
            ("before{tag}after", "tag"),
            ("{a}{b}", "a"),
            ("{}{b}", "{}{b}"),
            ("{open", "{open"),
            ("close}", "close}"),
            ("}{a}", "a"),
            ("{{a}}", "{a"),
            ("", ""),
        ] {
            assert_eq!(routing_part(key.as_bytes()), part.as_bytes(), "key {key:?}");
        }
    }

    #[test]
    fn numbers_beyond_the_last_slot_are_refused() {
        assert_eq!(Slot::new(SLOT_COUNT), None);
        assert_eq!(SlotRange::new(3, 2), None);
        assert_eq!(SlotRange::new(0, SLOT_COUNT), None);
        assert_eq!(SlotRange::new(0, SLOT_COUNT - 1).map(|range| range.count()), Some(SLOT_COUNT));
    }

    #[test]
    fn keys_fall_evenly_into_slots() {
        let mut counts = [0_u32; SLOT_COUNT as usize];
        for number in 0..409_600_u32 {
            counts[usize::from(Slot::of(KeyspaceId(0), format!("key-{number}").as_bytes()).get())] += 1;
        }
        // Mean 100, standard deviation 10: six of them either way.
        assert!(counts.iter().all(|count| (40..=160).contains(count)), "{counts:?}");
    }

    proptest! {
        #[test]
        fn keys_of_one_tag_share_a_slot(tag in "[^{}]{1,20}", before in "[^{}]{0,9}", after in ".{0,9}") {
            let key = format!("{before}{{{tag}}}{after}");
            prop_assert_eq!(Slot::of(KeyspaceId(0), key.as_bytes()), Slot::of(KeyspaceId(0), tag.as_bytes()));
        }

        #[test]
        fn the_slot_is_the_hash_of_keyspace_and_routing_part(keyspace: u32, key: Vec<u8>) {
            let hashed = [&keyspace.to_be_bytes()[..], routing_part(&key)].concat();
            prop_assert_eq!(u64::from(Slot::of(KeyspaceId(keyspace), &key).get()), xxh3_64(&hashed) % 4096);
        }

        #[test]
        fn runs_cover_every_slot_once_and_differ_by_at_most_one(shards in 0_u16..5000) {
            let runs = contiguous_runs(shards);
            prop_assert_eq!(runs.len(), usize::from(shards.min(SLOT_COUNT)));
            if let (Some(longest), Some(shortest)) = (
                runs.iter().map(SlotRange::count).max(),
                runs.iter().map(SlotRange::count).min(),
            ) {
                prop_assert!(longest - shortest <= 1);
                let covered: Vec<u16> = runs.iter().flat_map(SlotRange::slots).map(Slot::get).collect();
                prop_assert_eq!(covered, (0..SLOT_COUNT).collect::<Vec<_>>());
            }
        }
    }
}
