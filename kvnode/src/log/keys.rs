//! Keys of `raftlog`: replica id (8 bytes, big-endian) · kind (1 byte) · for entries the index (8 bytes, big-endian).
//!
//! All records of a replica are neighbours, so that removing a replica is one range; its entries are in the order
//! of the log, so that purging and truncating are one range each. Replica id 0 is never minted. A kind that a released
//! version wrote is never reused for something else.

use std::ops::{Deref, Range};

use kv_topology::ReplicaId;
use thiserror::Error;

const DESCRIPTOR: u8 = 1;
const VOTE: u8 = 2;
const PURGED: u8 = 3;
const COMMITTED: u8 = 4;
const ENTRY: u8 = 16;
/// Sorts after every kind; no record has it.
const END: u8 = 0xff;

const RECORD_LEN: usize = 9;
const ENTRY_LEN: usize = 17;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// `disk.v1.ReplicaDescriptor`: that this node hosts the replica.
    Descriptor,
    /// `disk.v1.Vote`.
    Vote,
    /// `disk.v1.LogId` of the last purged entry.
    Purged,
    /// `disk.v1.LogId` of the last entry known to be committed.
    Committed,
    /// `disk.v1.LogEntry` at this index.
    Entry(u64),
}

/// An encoded key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    bytes: [u8; ENTRY_LEN],
    len: usize,
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// Bytes in `raftlog` that are no key of ours.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("unknown key in raftlog: {0:02x?}")]
pub struct UnknownKey(pub Vec<u8>);

/// The key of a record.
pub fn encode(replica: ReplicaId, place: Place) -> Key {
    match place {
        Place::Descriptor => key(replica, DESCRIPTOR, None),
        Place::Vote => key(replica, VOTE, None),
        Place::Purged => key(replica, PURGED, None),
        Place::Committed => key(replica, COMMITTED, None),
        Place::Entry(index) => key(replica, ENTRY, Some(index)),
    }
}

/// Whose record it is, and which.
///
/// # Errors
/// When the bytes are no key that this version writes.
pub fn decode(bytes: &[u8]) -> Result<(ReplicaId, Place), UnknownKey> {
    let unknown = || UnknownKey(bytes.to_vec());
    let (replica, rest) = bytes.split_first_chunk::<8>().ok_or_else(unknown)?;
    let (kind, index) = rest.split_first().ok_or_else(unknown)?;
    let place = match (*kind, index) {
        (DESCRIPTOR, []) => Place::Descriptor,
        (VOTE, []) => Place::Vote,
        (PURGED, []) => Place::Purged,
        (COMMITTED, []) => Place::Committed,
        (ENTRY, index) => Place::Entry(u64::from_be_bytes(index.try_into().map_err(|_| unknown())?)),
        _ => return Err(unknown()),
    };
    Ok((ReplicaId(u64::from_be_bytes(*replica)), place))
}

/// The range of entries with these indexes.
pub fn entries(replica: ReplicaId, indexes: Range<u64>) -> Range<Key> {
    encode(replica, Place::Entry(indexes.start))..encode(replica, Place::Entry(indexes.end))
}

/// The range of all entries from an index on.
pub fn entries_from(replica: ReplicaId, index: u64) -> Range<Key> {
    encode(replica, Place::Entry(index))..end(replica)
}

/// The range of everything that belongs to a replica.
pub fn all_of(replica: ReplicaId) -> Range<Key> {
    encode(replica, Place::Descriptor)..end(replica)
}

/// Greater than every key of the replica, less than every key of the next one.
pub fn end(replica: ReplicaId) -> Key {
    key(replica, END, None)
}

fn key(replica: ReplicaId, kind: u8, index: Option<u64>) -> Key {
    let mut bytes = [0; ENTRY_LEN];
    bytes[..8].copy_from_slice(&replica.get().to_be_bytes());
    bytes[8] = kind;
    let Some(index) = index else { return Key { bytes, len: RECORD_LEN } };
    bytes[RECORD_LEN..].copy_from_slice(&index.to_be_bytes());
    Key { bytes, len: ENTRY_LEN }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn places() -> impl Strategy<Value = Place> {
        prop_oneof![
            Just(Place::Descriptor),
            Just(Place::Vote),
            Just(Place::Purged),
            Just(Place::Committed),
            any::<u64>().prop_map(Place::Entry),
        ]
    }

    proptest! {
        #[test]
        fn every_key_reads_back(replica: u64, place in places()) {
            let key = encode(ReplicaId(replica), place);
            prop_assert_eq!(decode(&key), Ok((ReplicaId(replica), place)));
        }

        #[test]
        fn keys_sort_by_replica_then_place(a: u64, b: u64, x in places(), y in places()) {
            let (left, right) = (encode(ReplicaId(a), x), encode(ReplicaId(b), y));
            prop_assert_eq!((a, x).cmp(&(b, y)), left.cmp(&right));
        }

        #[test]
        fn the_range_of_a_replica_holds_its_keys_and_no_other(replica: u64, other: u64, place in places()) {
            let range = all_of(ReplicaId(replica));
            let key = encode(ReplicaId(other), place);
            prop_assert_eq!(*range.start <= *key && *key < *range.end, other == replica);
        }

        #[test]
        fn any_bytes_decode_or_fail_without_panic(bytes: Vec<u8>) {
            if let Ok((replica, place)) = decode(&bytes) {
                prop_assert_eq!(&*encode(replica, place), &bytes[..]);
            }
        }
    }

    #[test]
    fn keys_on_disk_keep_their_bytes() {
        let replica = ReplicaId(0x0102_0304_0506_0708);
        let golden: [(Place, &[u8]); 5] = [
            (Place::Descriptor, &[1, 2, 3, 4, 5, 6, 7, 8, 1]),
            (Place::Vote, &[1, 2, 3, 4, 5, 6, 7, 8, 2]),
            (Place::Purged, &[1, 2, 3, 4, 5, 6, 7, 8, 3]),
            (Place::Committed, &[1, 2, 3, 4, 5, 6, 7, 8, 4]),
            (Place::Entry(9), &[1, 2, 3, 4, 5, 6, 7, 8, 16, 0, 0, 0, 0, 0, 0, 0, 9]),
        ];
        for (place, bytes) in golden {
            assert_eq!(&*encode(replica, place), bytes, "{place:?}");
        }
    }
}
