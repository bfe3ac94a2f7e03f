//! Where each record is: built when the log is opened, kept up with what is written. Pure.
//!
//! Twelve bytes an entry, 128 of them together. The few small records of a replica are here themselves.

use std::{collections::BTreeMap, ops::Range};

use bytes::Bytes;
use kv_topology::ReplicaId;

use crate::log::keys::{self, Key, Place, UnknownKey};

/// What a record counts beside its value, bytes: its key and lengths.
const RECORD_BYTES: u64 = 32;
/// Entries whose places are kept together.
const CHUNK: u64 = 128;

/// Where a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// In which segment.
    pub segment: u32,
    /// Where it begins there.
    pub at: u32,
    /// Bytes.
    pub length: u32,
}

impl Location {
    /// No segment has this number.
    const NONE: Self = Self { segment: 0, at: 0, length: 0 };

    /// A value of so many bytes that begins there. No segment has 4 GiB.
    pub fn new(segment: u32, at: usize, length: usize) -> Self {
        let number = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        Self { segment, at: number(at), length: number(length) }
    }

    /// What it counts as needed of its segment, bytes.
    pub fn cost(&self) -> u64 {
        u64::from(self.length) + RECORD_BYTES
    }
}

/// A record that a visit finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The value itself.
    Value(Bytes),
    /// Where it is.
    At(Location),
}

/// Where all records of all replicas are.
#[derive(Debug, Default)]
pub struct Index {
    replicas: BTreeMap<ReplicaId, Records>,
    live: Live,
}

/// Bytes of each segment that are needed.
#[derive(Debug, Default)]
struct Live {
    segments: BTreeMap<u32, u64>,
    bytes: u64,
}

impl Live {
    fn add(&mut self, location: &Location) {
        self.bytes += location.cost();
        *self.segments.entry(location.segment).or_default() += location.cost();
    }

    fn remove(&mut self, location: &Location) {
        let Some(bytes) = self.segments.get_mut(&location.segment) else { return };
        self.bytes -= location.cost();
        *bytes -= location.cost();
        if *bytes == 0 {
            self.segments.remove(&location.segment);
        }
    }
}

#[derive(Debug, Default)]
struct Records {
    small: BTreeMap<Place, (Location, Bytes)>,
    /// Those with equal `index / CHUNK`.
    entries: BTreeMap<u64, Chunk>,
}

/// Places of neighbouring entries. [`Location::NONE`]: there is none.
#[derive(Debug)]
struct Chunk {
    places: Box<[Location]>,
    used: usize,
}

impl Default for Chunk {
    fn default() -> Self {
        Self { places: vec![Location::NONE; slot_of(u64::MAX) + 1].into(), used: 0 }
    }
}

/// Its place in a chunk.
fn slot_of(index: u64) -> usize {
    usize::try_from(index % CHUNK).unwrap_or(0)
}

impl Chunk {
    /// What was there before.
    fn set(&mut self, index: u64, place: Location) -> Location {
        let slot = &mut self.places[slot_of(index)];
        let before = std::mem::replace(slot, place);
        self.used += usize::from(place != Location::NONE);
        self.used -= usize::from(before != Location::NONE);
        before
    }
}

impl Index {
    /// A record was written. Its value is asked for if it is a small one.
    ///
    /// # Errors
    /// When the key is none of ours.
    pub fn put(
        &mut self,
        key: &[u8],
        location: Location,
        value: impl FnOnce() -> Bytes,
    ) -> Result<(), UnknownKey> {
        let (replica, place) = keys::decode(key)?;
        let records = self.replicas.entry(replica).or_default();
        let before = match place {
            Place::Entry(index) => records.entries.entry(index / CHUNK).or_default().set(index, location),
            Place::Descriptor | Place::Vote | Place::Purged | Place::Committed => {
                let before = records.small.insert(place, (location, value()));
                before.map_or(Location::NONE, |(location, _)| location)
            }
        };
        self.live.remove(&before);
        self.live.add(&location);
        Ok(())
    }

    /// A range was removed.
    pub fn delete_range(&mut self, from: &[u8], to: &[u8]) {
        let mut empty = Vec::new();
        for (replica, records) in self.replicas.range_mut(replica_of(from)..) {
            if *keys::all_of(*replica).start >= *to {
                break;
            }
            records.remove_range(*replica, from, to, &mut self.live);
            if records.is_empty() {
                empty.push(*replica);
            }
        }
        for replica in empty {
            self.replicas.remove(&replica);
        }
    }

    /// The first records of a range, in order, at most so many.
    pub fn range(&self, from: &[u8], to: &[u8], most: usize) -> Vec<(Key, Found)> {
        let mut found = Vec::new();
        for (replica, records) in self.replicas.range(replica_of(from)..) {
            if *keys::all_of(*replica).start >= *to || found.len() >= most {
                break;
            }
            let small = records
                .small
                .iter()
                .map(|(place, (_, value))| (keys::encode(*replica, *place), Found::Value(value.clone())));
            let small = small.filter(|(key, _)| **key >= *from && **key < *to);
            found.extend(small.take(most - found.len()));
            let indexes = first_at(*replica, from)..first_at(*replica, to);
            let entries = records.entries(indexes);
            let entries = entries
                .map(|(index, location)| (keys::encode(*replica, Place::Entry(index)), Found::At(location)));
            found.extend(entries.take(most - found.len()));
        }
        found
    }

    /// Whether this is where the record of a key is now.
    pub fn is_at(&self, key: &[u8], location: Location) -> bool {
        let Ok((replica, place)) = keys::decode(key) else { return false };
        let Some(records) = self.replicas.get(&replica) else { return false };
        let now = match place {
            Place::Entry(index) => records.entry(index),
            Place::Descriptor | Place::Vote | Place::Purged | Place::Committed => {
                records.small.get(&place).map(|(location, _)| *location)
            }
        };
        now == Some(location)
    }

    /// Bytes of a segment that are needed.
    pub fn live_of(&self, segment: u32) -> u64 {
        self.live.segments.get(&segment).copied().unwrap_or(0)
    }

    /// Bytes of all segments that are needed.
    pub fn live(&self) -> u64 {
        self.live.bytes
    }
}

impl Records {
    fn is_empty(&self) -> bool {
        self.small.is_empty() && self.entries.is_empty()
    }

    fn entry(&self, index: u64) -> Option<Location> {
        let place = self.entries.get(&(index / CHUNK))?.places[slot_of(index)];
        (place != Location::NONE).then_some(place)
    }

    /// Entries with these indexes.
    fn entries(&self, indexes: Range<u64>) -> impl Iterator<Item = (u64, Location)> + '_ {
        let chunks = self.entries.range(chunks_of(&indexes));
        let all = chunks.flat_map(|(number, chunk)| indexes_in(*number).zip(chunk.places.iter().copied()));
        all.filter(move |(index, place)| *place != Location::NONE && indexes.contains(index))
    }

    fn remove_range(&mut self, replica: ReplicaId, from: &[u8], to: &[u8], live: &mut Live) {
        self.small.retain(|place, (location, _)| {
            let key = keys::encode(replica, *place);
            let gone = *key >= *from && *key < *to;
            if gone {
                live.remove(location);
            }
            !gone
        });
        let indexes = first_at(replica, from)..first_at(replica, to);
        let mut empty = Vec::new();
        for (number, chunk) in self.entries.range_mut(chunks_of(&indexes)) {
            for index in indexes_in(*number).filter(|index| indexes.contains(index)) {
                live.remove(&chunk.set(index, Location::NONE));
            }
            if chunk.used == 0 {
                empty.push(*number);
            }
        }
        for number in empty {
            self.entries.remove(&number);
        }
    }
}

/// The entries of a chunk, there or not.
fn indexes_in(number: u64) -> impl Iterator<Item = u64> {
    (0..CHUNK).map(move |slot| number * CHUNK + slot)
}

/// The chunks that entries with these indexes are in; none of no indexes.
fn chunks_of(indexes: &Range<u64>) -> Range<u64> {
    let first = indexes.start / CHUNK;
    first..indexes.end.div_ceil(CHUNK).max(first)
}

/// The replica that a key belongs to, or the first one after it.
fn replica_of(key: &[u8]) -> ReplicaId {
    let mut id = [0; 8];
    let length = key.len().min(8);
    id[..length].copy_from_slice(&key[..length]);
    ReplicaId(u64::from_be_bytes(id))
}

/// Index of the first entry of a replica whose key is not less than this one.
fn first_at(replica: ReplicaId, key: &[u8]) -> u64 {
    let first = keys::encode(replica, Place::Entry(0));
    let (kind, zeros) = first.split_at(first.len() - 8);
    match key.strip_prefix(kind) {
        Some(index) => {
            let mut bytes = [0; 8];
            let length = index.len().min(bytes.len());
            bytes[..length].copy_from_slice(&index[..length]);
            // A longer key sorts behind the entry that it begins with.
            let longer = u64::from(index.len() > zeros.len());
            u64::from_be_bytes(bytes).saturating_add(longer)
        }
        None if key < kind => 0,
        None => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Put(u64, Place, Location),
        Remove(u64, Range<u64>),
        RemoveFrom(u64, u64),
        RemoveReplica(u64),
    }

    fn places() -> impl Strategy<Value = Place> {
        prop_oneof![
            Just(Place::Descriptor),
            Just(Place::Vote),
            Just(Place::Purged),
            Just(Place::Committed),
            (0u64..30).prop_map(Place::Entry),
            (0u64..30).prop_map(Place::Entry),
        ]
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let location =
            (1u32..5, 0u32..9, 0u32..100).prop_map(|(segment, at, length)| Location { segment, at, length });
        let step = prop_oneof![
            8 => (1u64..4, places(), location).prop_map(|(replica, place, at)| Step::Put(replica, place, at)),
            2 => (1u64..4, 0u64..30, 0u64..30).prop_map(|(replica, from, to)| Step::Remove(replica, from..to)),
            1 => (1u64..4, 0u64..30).prop_map(|(replica, from)| Step::RemoveFrom(replica, from)),
            1 => (1u64..4).prop_map(Step::RemoveReplica),
        ];
        prop::collection::vec(step, 0..80)
    }

    type Model = BTreeMap<Vec<u8>, Location>;

    fn remove(model: &mut Model, index: &mut Index, range: &Range<Key>) {
        index.delete_range(&range.start, &range.end);
        model.retain(|key, _| **key < *range.start || **key >= *range.end);
    }

    /// The range of keys, and how many of it are asked for.
    fn check(model: &Model, index: &Index, from: &[u8], to: &[u8], most: usize) -> Result<(), TestCaseError> {
        let expected = model.iter().filter(|(key, _)| ***key >= *from && ***key < *to);
        let expected: Vec<_> = expected.take(most).collect();
        let found = index.range(from, to, most);
        prop_assert_eq!(found.len(), expected.len());
        for ((key, found), (expected, location)) in found.iter().zip(expected) {
            prop_assert_eq!(&**key, &**expected);
            match found {
                Found::At(at) => prop_assert_eq!(at, location),
                Found::Value(value) => prop_assert_eq!(&value[..], &location.at.to_le_bytes()),
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_map_of_keys(
            steps in steps(),
            from in (0u64..5, places()),
            to in (0u64..5, places()),
            most in 0usize..40,
        ) {
            let (mut index, mut model) = (Index::default(), Model::new());
            for step in steps {
                match step {
                    Step::Put(replica, place, location) => {
                        let key = keys::encode(ReplicaId(replica), place);
                        let value = Bytes::copy_from_slice(&location.at.to_le_bytes());
                        index.put(&key, location, || value).expect("near");
                        model.insert(key.to_vec(), location);
                        let elsewhere = Location { segment: 9, ..location };
                        prop_assert!(index.is_at(&key, location) && !index.is_at(&key, elsewhere));
                    }
                    Step::Remove(replica, range) if range.start <= range.end => {
                        remove(&mut model, &mut index, &keys::entries(ReplicaId(replica), range));
                    }
                    Step::Remove(..) => {}
                    Step::RemoveFrom(replica, from) => {
                        remove(&mut model, &mut index, &keys::entries_from(ReplicaId(replica), from));
                    }
                    Step::RemoveReplica(replica) => {
                        remove(&mut model, &mut index, &keys::all_of(ReplicaId(replica)));
                    }
                }
                let costs = |segment: Option<u32>| -> u64 {
                    let of = model.values().filter(|at| segment.is_none_or(|segment| at.segment == segment));
                    of.map(Location::cost).sum()
                };
                prop_assert_eq!(index.live(), costs(None));
                for segment in 1..5 {
                    prop_assert_eq!(index.live_of(segment), costs(Some(segment)));
                }
            }
            check(&model, &index, &[], &[0xff; 9], usize::MAX)?;
            let key = |(replica, place): (u64, Place)| keys::encode(ReplicaId(replica), place);
            check(&model, &index, &key(from), &key(to), most)?;
            check(&model, &index, &key(from), &keys::end(ReplicaId(from.0)), most)?;
        }
    }

    #[test]
    fn entries_far_from_each_other_are_found() {
        let mut index = Index::default();
        let all = [0, 1 << 40, (1 << 40) + 1_300_001, u64::MAX - 1];
        for (entry, segment) in all.into_iter().zip(1..) {
            let key = keys::encode(ReplicaId(1), Place::Entry(entry));
            index.put(&key, Location { segment, at: 0, length: 1 }, Bytes::new).expect("a key");
        }
        let (from, to) = (keys::all_of(ReplicaId(1)).start, keys::end(ReplicaId(1)));
        let found = index.range(&from, &to, usize::MAX);
        let found: Vec<_> = found.iter().map(|(key, _)| keys::decode(key).expect("a key").1).collect();
        assert_eq!(found, all.map(Place::Entry));
        index.delete_range(&keys::entries(ReplicaId(1), 0..u64::MAX).start, &to);
        assert_eq!(index.live(), 0);
    }
}
