//! How records of the state store are named, and therefore how they lie on disk. A disk format.
//!
//! ```text
//! replica id 8 B · generation 8 B · keyspace 4 B · kind 1 B · key          all numbers big endian
//!
//! r · 0 · 0 · REPLICA                        ReplicaRecord: current generation, applied id, membership
//! r · g · 0 · GROUP                          GroupRecord: revision, log time, slots
//! r · g · 0 · META                           MetaRecord, in the meta group only
//! r · g · 0 · JOURNAL · sequence 8 B         JournalEntry, in the meta group only
//! r · g · 0 · UPLOAD  · upload id 16 B       UploadRecord
//! r · g · 0 · SESSION · session id 8 B · block 8 B   SessionRecord
//! r · g · k · KEY     · the key's bytes      KeyRecord
//! r · g · k · CHUNK   · upload id 16 B · number 4 B   ChunkRecord
//! ```
//!
//! Why this order. The replica id comes first, so that a replica's whole state is one range: it is scanned for a
//! snapshot, deleted when the replica goes, and never met by a second replica of the same group on this node. The
//! generation comes next, so that a snapshot is installed beside the state that it replaces and the switch is one
//! record; that record lies at generation 0, before every generation, and no data ever do. The keyspace comes
//! before the kind, so that a keyspace is dropped by one range. Keys of a shard lie in their own byte order without
//! chunks between them: a scan reads what it returns. Chunks lie apart, in upload and number order: a download
//! reads one run, and an overwritten value goes with one range. The slot is not in the key: a scan would have to
//! merge 4,096 runs; a slot that moves is found by a filter over the shard instead.
//!
//! Uploads are of the group and not of a keyspace, because the sweep visits all of them; their records name the
//! keyspace. Kinds have gaps between them for what comes later, and a number is never used again.

use kv_topology::{Generation, KeyspaceId, ReplicaId};

use super::engine::Span;

/// Bytes before the keyspace: replica id and generation.
pub const SCOPE_BYTES: usize = 16;
/// Bytes before the key: scope, keyspace and kind.
pub const PREFIX_BYTES: usize = SCOPE_BYTES + 5;
/// Length of an upload's id.
pub const UPLOAD_ID_BYTES: usize = 16;

/// Chosen at random by the node that receives an upload.
pub type UploadId = [u8; UPLOAD_ID_BYTES];

/// What a record is. The numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// The replica's own record, at generation 0.
    Replica = 0x01,
    /// The group's revision, log time and slots.
    Group = 0x10,
    /// The meta group's state.
    Meta = 0x11,
    /// What the meta group did: an entry of its journal.
    Journal = 0x12,
    /// An upload that goes on.
    Upload = 0x20,
    /// A block of a session.
    Session = 0x28,
    /// A key of a client.
    Key = 0x30,
    /// A piece of an uploaded value.
    Chunk = 0x40,
}

impl Kind {
    const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0x01 => Self::Replica,
            0x10 => Self::Group,
            0x11 => Self::Meta,
            0x12 => Self::Journal,
            0x20 => Self::Upload,
            0x28 => Self::Session,
            0x30 => Self::Key,
            0x40 => Self::Chunk,
            _ => return None,
        })
    }
}

/// The keyspace field of records that belong to the group as a whole.
const OF_THE_GROUP: KeyspaceId = KeyspaceId(0);

/// One life of a replica's state. Names every record in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope {
    /// The replica.
    pub replica: ReplicaId,
    /// From 1 on.
    pub generation: Generation,
}

impl Scope {
    /// The life of `replica` that has this generation.
    pub const fn new(replica: ReplicaId, generation: Generation) -> Self {
        Self { replica, generation }
    }

    /// Everything in it.
    pub fn span(self) -> Span {
        generations(self.replica, self.generation, Generation(self.generation.0.saturating_add(1)))
    }

    /// The group's record.
    pub fn group(self) -> Vec<u8> {
        self.name(OF_THE_GROUP, Kind::Group, &[])
    }

    /// The meta group's state.
    pub fn meta(self) -> Vec<u8> {
        self.name(OF_THE_GROUP, Kind::Meta, &[])
    }

    /// An entry of the journal.
    pub fn journal(self, sequence: u64) -> Vec<u8> {
        self.name(OF_THE_GROUP, Kind::Journal, &sequence.to_be_bytes())
    }

    /// The entries of the journal before `before`, in the order of their sequences; 0: all of them.
    pub fn journal_before(self, before: u64) -> Span {
        let mut span = self.kind(OF_THE_GROUP, Kind::Journal);
        if before != 0 {
            span.end = self.journal(before);
        }
        span
    }

    /// An upload.
    pub fn upload(self, id: &UploadId) -> Vec<u8> {
        self.name(OF_THE_GROUP, Kind::Upload, id)
    }

    /// All uploads.
    pub fn uploads(self) -> Span {
        self.kind(OF_THE_GROUP, Kind::Upload)
    }

    /// A block of a session.
    pub fn session(self, session_id: u64, block: u64) -> Vec<u8> {
        let mut name = self.name(OF_THE_GROUP, Kind::Session, &session_id.to_be_bytes());
        name.extend_from_slice(&block.to_be_bytes());
        name
    }

    /// All sessions, in the order of their ids and blocks.
    pub fn sessions(self) -> Span {
        self.kind(OF_THE_GROUP, Kind::Session)
    }

    /// A key of a client.
    pub fn key(self, keyspace: KeyspaceId, key: &[u8]) -> Vec<u8> {
        self.name(keyspace, Kind::Key, key)
    }

    /// The keys from `start` to before `end`; empty: unbounded.
    pub fn keys(self, keyspace: KeyspaceId, start: &[u8], end: &[u8]) -> Span {
        let mut span = self.kind(keyspace, Kind::Key);
        span.start.extend_from_slice(start);
        if !end.is_empty() {
            span.end = self.key(keyspace, end);
        }
        span
    }

    /// A piece of an uploaded value.
    pub fn chunk(self, keyspace: KeyspaceId, upload: &UploadId, number: u32) -> Vec<u8> {
        let mut name = self.name(keyspace, Kind::Chunk, upload);
        name.extend_from_slice(&number.to_be_bytes());
        name
    }

    /// The pieces of an uploaded value from number `first` on.
    pub fn chunks(self, keyspace: KeyspaceId, upload: &UploadId, first: u32) -> Span {
        let mut end = self.chunk(keyspace, upload, u32::MAX);
        end.push(0);
        Span { start: self.chunk(keyspace, upload, first), end }
    }

    fn kind(self, keyspace: KeyspaceId, kind: Kind) -> Span {
        let start = self.name(keyspace, kind, &[]);
        let mut end = start.clone();
        // No kind is 0xff.
        end[PREFIX_BYTES - 1] += 1;
        Span { start, end }
    }

    fn name(self, keyspace: KeyspaceId, kind: Kind, key: &[u8]) -> Vec<u8> {
        let mut name = Vec::with_capacity(PREFIX_BYTES + key.len() + 8);
        name.extend_from_slice(&self.replica.0.to_be_bytes());
        name.extend_from_slice(&self.generation.0.to_be_bytes());
        name.extend_from_slice(&keyspace.0.to_be_bytes());
        name.push(kind as u8);
        name.extend_from_slice(key);
        name
    }
}

/// The replica's record.
pub fn replica_record(replica: ReplicaId) -> Vec<u8> {
    Scope::new(replica, Generation(0)).name(OF_THE_GROUP, Kind::Replica, &[])
}

/// All that a replica has, in all generations, its record included.
pub fn replica(replica: ReplicaId) -> Span {
    Span {
        start: replica.0.to_be_bytes().to_vec(),
        // No replica has the greatest id: ids are counted from 1.
        end: replica.0.saturating_add(1).to_be_bytes().to_vec(),
    }
}

/// The generations of a replica from `first` to before `end`.
pub fn generations(replica: ReplicaId, first: Generation, end: Generation) -> Span {
    let at = |generation: Generation| {
        let mut name = replica.0.to_be_bytes().to_vec();
        name.extend_from_slice(&generation.0.to_be_bytes());
        name
    };
    Span { start: at(first), end: at(end) }
}

/// Whose record it is. `None`: shorter than any name.
pub fn owner(name: &[u8]) -> Option<ReplicaId> {
    name.first_chunk::<8>().map(|id| ReplicaId(u64::from_be_bytes(*id)))
}

/// The same record in another life: of the replica that receives a snapshot. `None`: shorter than any name.
pub fn moved_to(scope: Scope, name: &[u8]) -> Option<Vec<u8>> {
    let rest = name.get(SCOPE_BYTES..)?;
    let mut moved = Vec::with_capacity(name.len());
    moved.extend_from_slice(&scope.replica.0.to_be_bytes());
    moved.extend_from_slice(&scope.generation.0.to_be_bytes());
    moved.extend_from_slice(rest);
    Some(moved)
}

/// A record's name, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a> {
    /// Whose it is, in which life; generation 0 for the replica's record.
    pub scope: Scope,
    /// 0 for records of the group.
    pub keyspace: KeyspaceId,
    /// What it is.
    pub kind: Kind,
    /// What comes after the kind.
    pub key: &'a [u8],
}

impl<'a> Name<'a> {
    /// Takes a name apart. `None`: no version of this program wrote it.
    pub fn parse(name: &'a [u8]) -> Option<Self> {
        let (replica, rest) = name.split_first_chunk::<8>()?;
        let (generation, rest) = rest.split_first_chunk::<8>()?;
        let (keyspace, rest) = rest.split_first_chunk::<4>()?;
        let (kind, key) = rest.split_first()?;
        Some(Self {
            scope: Scope::new(
                ReplicaId(u64::from_be_bytes(*replica)),
                Generation(u64::from_be_bytes(*generation)),
            ),
            keyspace: KeyspaceId(u32::from_be_bytes(*keyspace)),
            kind: Kind::from_byte(*kind)?,
            key,
        })
    }

    /// Session and block of a session's record.
    pub fn session_block(&self) -> Option<(u64, u64)> {
        let (id, block) = self.key.split_first_chunk::<8>()?;
        let block = <[u8; 8]>::try_from(block).ok()?;
        (self.kind == Kind::Session).then(|| (u64::from_be_bytes(*id), u64::from_be_bytes(block)))
    }

    /// The upload that an upload record or a chunk belongs to.
    pub fn upload_id(&self) -> Option<UploadId> {
        match self.kind {
            Kind::Upload | Kind::Chunk => self.key.first_chunk().copied(),
            Kind::Replica | Kind::Group | Kind::Meta | Kind::Journal | Kind::Session | Kind::Key => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn names_on_disk_do_not_change() {
        let scope = Scope::new(ReplicaId(0x0102), Generation(3));
        let upload = [0xab; 16];
        let golden = [
            (replica_record(ReplicaId(0x0102)), "0000000000000102000000000000000000000000".to_owned() + "01"),
            (scope.group(), "0000000000000102000000000000000300000000".to_owned() + "10"),
            (scope.meta(), "0000000000000102000000000000000300000000".to_owned() + "11"),
            (
                scope.journal(0x0405),
                "0000000000000102000000000000000300000000".to_owned() + "12" + "0000000000000405",
            ),
            (
                scope.upload(&upload),
                "0000000000000102000000000000000300000000".to_owned() + "20" + &"ab".repeat(16),
            ),
            (
                scope.session(0x0001_0000_0000_0002, 3),
                "0000000000000102000000000000000300000000".to_owned()
                    + "28"
                    + "0001000000000002"
                    + "0000000000000003",
            ),
            (scope.key(KeyspaceId(7), b"k"), "0000000000000102000000000000000300000007".to_owned() + "306b"),
            (
                scope.chunk(KeyspaceId(7), &upload, 5),
                "0000000000000102000000000000000300000007".to_owned() + "40" + &"ab".repeat(16) + "00000005",
            ),
        ];
        for (name, expected) in golden {
            assert_eq!(hex(&name), expected);
        }
    }

    prop_compose! {
        fn scope()(replica in 1..u64::MAX, generation in 1..u64::MAX) -> Scope {
            Scope::new(ReplicaId(replica), Generation(generation))
        }
    }

    proptest! {
        #[test]
        fn a_name_is_taken_apart_into_what_it_was_made_of(
            scope in scope(), keyspace: u32, key: Vec<u8>, upload: [u8; 16], number: u32,
        ) {
            let keyspace = KeyspaceId(keyspace);
            let name = scope.key(keyspace, &key);
            prop_assert_eq!(Name::parse(&name), Some(Name { scope, keyspace, kind: Kind::Key, key: &key }));
            let name = scope.chunk(keyspace, &upload, number);
            prop_assert_eq!(Name::parse(&name).and_then(|name| name.upload_id()), Some(upload));
            prop_assert_eq!(owner(&name), Some(scope.replica));
        }

        #[test]
        fn keys_of_a_keyspace_lie_in_their_own_order(scope in scope(), one: Vec<u8>, other: Vec<u8>) {
            let keyspace = KeyspaceId(1);
            prop_assert_eq!(
                scope.key(keyspace, &one).cmp(&scope.key(keyspace, &other)),
                one.cmp(&other)
            );
        }

        #[test]
        fn spans_hold_their_own_records_only(
            one in scope(), other in scope(), keyspace: u32, key: Vec<u8>, upload: [u8; 16], number: u32,
        ) {
            let name = one.key(KeyspaceId(keyspace), &key);
            prop_assert!(one.span().contains(&name));
            prop_assert!(one.keys(KeyspaceId(keyspace), &[], &[]).contains(&name));
            prop_assert!(replica(one.replica).contains(&name));
            prop_assert!(!one.span().contains(&replica_record(one.replica)));
            prop_assert_eq!(other.span().contains(&name), one == other);
            prop_assert_eq!(replica(other.replica).contains(&name), one.replica == other.replica);
            let chunk = one.chunk(KeyspaceId(keyspace), &upload, number);
            prop_assert!(one.chunks(KeyspaceId(keyspace), &upload, 0).contains(&chunk));
            prop_assert!(!one.keys(KeyspaceId(keyspace), &[], &[]).contains(&chunk));
        }

        #[test]
        fn the_journal_lies_in_the_order_of_its_sequences(scope in scope(), one: u64, other in 1..u64::MAX) {
            let name = scope.journal(one);
            prop_assert_eq!(name.cmp(&scope.journal(other)), one.cmp(&other));
            prop_assert!(scope.journal_before(0).contains(&name) && scope.span().contains(&name));
            prop_assert_eq!(scope.journal_before(other).contains(&name), one < other);
            prop_assert!(!scope.journal_before(0).contains(&scope.meta()));
        }

        #[test]
        fn a_moved_record_keeps_what_it_is(from in scope(), to in scope(), key: Vec<u8>) {
            let moved = moved_to(to, &from.key(KeyspaceId(2), &key));
            prop_assert_eq!(moved, Some(to.key(KeyspaceId(2), &key)));
        }
    }
}
