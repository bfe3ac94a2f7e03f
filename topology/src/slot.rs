//! Hash slots: which part of a key is hashed, into which of the 4,096 slots it falls.

use xxhash_rust::xxh3::Xxh3;

use crate::KeyspaceId;

/// Number of slots of a keyspace. A disk and wire constant.
pub const SLOT_COUNT: u16 = 4096;

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
        let mut hasher = Xxh3::new();
        hasher.update(&keyspace.0.to_be_bytes());
        hasher.update(routing_part(key));
        #[allow(clippy::cast_possible_truncation, reason = "the remainder is below 4,096")]
        Self((hasher.digest() % u64::from(SLOT_COUNT)) as u16)
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
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
}
