//! The bytes of a segment. Pure.
//!
//! ```text
//! segment = header · frame · frame · … · whatever the file held before
//! header  = "KVLOG" 0 0 version (1) · segment (8) · first sequence (8) · checksum (4) · 0 (4)
//! frame   = seal (8) · length of the records (4) · checksum of the records (4) · sequence (8) · synced (8)
//!           · records · 0 up to a multiple of 8
//! record  = 1 · length (1) · key · length (4) · checksum (4) · value          a put
//!         | 2 · length (1) · first key · length (1) · key after the last      a removed range
//!         | 3 · segment (8)                                                   this segment and all before it are not needed
//! ```
//!
//! Numbers are little-endian, keys are those of [`crate::log::keys`], checksums are CRC32C. A frame is one batch. Sequences count
//! frames over all segments, from 1 and without a gap. `synced` is the last sequence that was known to be on disk when the
//! frame was written: it tells a torn end from damage.
//!
//! The seal is the XXH3 of the rest of the frame's head, of its place and of the number of its segment, with a [`Seed`] that each log has
//! for itself and keeps to itself. Files are used again and hold values of clients: nothing that was there before, and nothing that a
//! client writes, is a frame here. A value has a checksum of its own, for whoever reads it alone.

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bytes before the first frame.
pub const HEADER_BYTES: usize = 32;
/// Bytes of a frame before its records.
pub const FRAME_HEAD_BYTES: usize = 32;
/// Frames begin at multiples of this.
const ALIGNMENT: usize = 8;
/// Length and checksum, right before a value.
pub const VALUE_HEAD_BYTES: usize = 8;

const MAGIC: [u8; 7] = *b"KVLOG\0\0";
const VERSION: u8 = 1;

const PUT: u8 = 1;
const DELETE_RANGE: u8 = 2;
const NOT_NEEDED: u8 = 3;

/// A secret of one log. Without it nobody makes a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub u64);

impl Seed {
    /// The seal of a frame whose head, but for the seal, is this.
    fn seal(self, segment: u32, begin: u64, head: &[u8]) -> u64 {
        let mut sealed = [0; 12 + FRAME_HEAD_BYTES];
        sealed[..4].copy_from_slice(&segment.to_le_bytes());
        sealed[4..12].copy_from_slice(&begin.to_le_bytes());
        sealed[12..12 + head.len()].copy_from_slice(head);
        xxh3_64_with_seed(&sealed, self.0)
    }
}

/// What a segment begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Number of the segment, from 1.
    pub segment: u32,
    /// Sequence of its first frame.
    pub first: u64,
}

/// What the first bytes of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// A segment that was written.
    Header(Header),
    /// One of a version that is not known here.
    Version(u8),
    /// Not a segment of this number: nothing was written to it yet.
    Unwritten,
}

impl Header {
    /// Its bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..7].copy_from_slice(&MAGIC);
        bytes[7] = VERSION;
        bytes[8..16].copy_from_slice(&u64::from(self.segment).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[..24]);
        bytes[24..28].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads the begin of the file of this segment.
    pub fn decode(bytes: &[u8], segment: u32) -> Begin {
        let Some(head) = bytes.get(..HEADER_BYTES) else { return Begin::Unwritten };
        let whole = head[..7] == MAGIC && u32_at(head, 24) == Some(crc32c::crc32c(&head[..24]));
        if !whole || u64_at(head, 8) != Some(u64::from(segment)) {
            return Begin::Unwritten;
        }
        match (head[7], u64_at(head, 16)) {
            (VERSION, Some(first)) => Begin::Header(Self { segment, first }),
            (version, _) => Begin::Version(version),
        }
    }
}

/// Puts a frame together. The buffer is used again for the next one.
#[derive(Debug, Default)]
pub struct FrameBuilder {
    bytes: Vec<u8>,
}

impl FrameBuilder {
    /// Begins a frame.
    pub fn begin(&mut self) {
        self.bytes.clear();
        self.bytes.resize(FRAME_HEAD_BYTES, 0);
    }

    /// Sets a record, and says where in the frame its value begins.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> u32 {
        self.bytes.push(PUT);
        self.key(key);
        self.bytes.extend_from_slice(&length(value.len()).to_le_bytes());
        self.bytes.extend_from_slice(&crc32c::crc32c(value).to_le_bytes());
        let begin = length(self.bytes.len());
        self.bytes.extend_from_slice(value);
        begin
    }

    /// Removes a range.
    pub fn delete_range(&mut self, range: &Range<impl AsRef<[u8]>>) {
        self.bytes.push(DELETE_RANGE);
        self.key(range.start.as_ref());
        self.key(range.end.as_ref());
    }

    /// Says that this segment and all before it are not needed.
    pub fn not_needed(&mut self, segment: u32) {
        self.bytes.push(NOT_NEEDED);
        self.bytes.extend_from_slice(&u64::from(segment).to_le_bytes());
    }

    fn key(&mut self, key: &[u8]) {
        // Ours have 17 bytes at most.
        self.bytes.push(u8::try_from(key.len()).unwrap_or(u8::MAX));
        self.bytes.extend_from_slice(key);
    }

    /// Whether it has no record.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() <= FRAME_HEAD_BYTES
    }

    /// Bytes of the whole frame.
    pub fn len(&self) -> usize {
        self.bytes.len().next_multiple_of(ALIGNMENT)
    }

    /// The frame for this place, with zeros behind it up to `padded` bytes of the segment.
    pub fn finish(&mut self, seed: Seed, place: Place, synced: u64, padded: u64) -> &[u8] {
        let records = &self.bytes[FRAME_HEAD_BYTES..];
        let (length, checksum) = (length(records.len()), crc32c::crc32c(records));
        self.bytes[8..12].copy_from_slice(&length.to_le_bytes());
        self.bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        self.bytes[16..24].copy_from_slice(&place.sequence.to_le_bytes());
        self.bytes[24..32].copy_from_slice(&synced.to_le_bytes());
        let seal = seed.seal(place.segment, place.begin, &self.bytes[8..FRAME_HEAD_BYTES]);
        self.bytes[..8].copy_from_slice(&seal.to_le_bytes());
        let padded = usize::try_from(padded.saturating_sub(place.begin)).unwrap_or(0);
        self.bytes.resize(self.len().max(padded), 0);
        &self.bytes
    }
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// In which segment.
    pub segment: u32,
    /// Where it begins there.
    pub begin: u64,
    /// Its number among all.
    pub sequence: u64,
}

/// A batch never comes near 4 GiB: the queue bounds it.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// A frame of this log.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Its number among all.
    pub sequence: u64,
    /// Its encoded records.
    records: &'a [u8],
    /// Where it begins in its segment.
    begin: usize,
}

impl<'a> Frame<'a> {
    /// The frame that begins here in a segment, whichever it is; `None` when there is no whole one.
    pub fn read(bytes: &'a [u8], begin: usize, segment: u32, seed: Seed) -> Option<Self> {
        let head = Head::read(bytes, begin, segment, seed)?;
        let first = begin + FRAME_HEAD_BYTES;
        let records = bytes.get(first..first.checked_add(usize::try_from(head.length).ok()?)?)?;
        let whole = crc32c::crc32c(records) == head.checksum;
        whole.then_some(Self { sequence: head.sequence, records, begin })
    }

    /// The place of the next whole frame from here on.
    pub fn find(bytes: &'a [u8], from: usize, segment: u32, seed: Seed) -> Option<Self> {
        places(bytes, from).find_map(|begin| Self::read(bytes, begin, segment, seed))
    }

    /// Where the next frame begins.
    pub fn end(&self) -> usize {
        (self.begin + FRAME_HEAD_BYTES + self.records.len()).next_multiple_of(ALIGNMENT)
    }

    /// Its records, in order.
    pub fn records(&self) -> Records<'a> {
        Records { bytes: self.records, begin: self.begin + FRAME_HEAD_BYTES, at: 0 }
    }
}

/// The head of a frame whose records may be torn.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// Its number among all.
    pub sequence: u64,
    synced: u64,
    length: u32,
    checksum: u32,
}

impl Head {
    fn read(bytes: &[u8], begin: usize, segment: u32, seed: Seed) -> Option<Self> {
        let head = bytes.get(begin..begin.checked_add(FRAME_HEAD_BYTES)?)?;
        let (length, checksum) = (u32_at(head, 8)?, u32_at(head, 12)?);
        let (sequence, synced) = (u64_at(head, 16)?, u64_at(head, 24)?);
        let plausible = length > 0 && sequence > synced && sequence < u64::MAX;
        let sealed = || u64_at(head, 0) == Some(seed.seal(segment, begin as u64, &head[8..]));
        (plausible && sealed()).then_some(Self { sequence, synced, length, checksum })
    }

    /// A frame behind a place where none can be read, that was written after that one was on disk: so that one is damaged.
    pub fn written_after(bytes: &[u8], from: usize, segment: u32, seed: Seed, lost: u64) -> Option<Self> {
        let mut heads = places(bytes, from).filter_map(|begin| Self::read(bytes, begin, segment, seed));
        heads.find(|head| head.synced >= lost)
    }
}

/// Where frames may begin.
fn places(bytes: &[u8], from: usize) -> impl Iterator<Item = usize> {
    (from.next_multiple_of(ALIGNMENT)..bytes.len()).step_by(ALIGNMENT)
}

/// One step of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// Sets a record.
    Put {
        /// Its key.
        key: &'a [u8],
        /// Its value.
        value: &'a [u8],
        /// Where the value begins in the segment.
        at: usize,
    },
    /// Removes a range.
    DeleteRange(&'a [u8], &'a [u8]),
    /// This segment and all before it are not needed.
    NotNeeded(u32),
}

/// Records of a frame. Bytes that are none, which a right checksum makes a bug, end it with an error.
#[derive(Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
    begin: usize,
    at: usize,
}

/// A frame of this version cannot hold this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no record at byte {0}")]
pub struct NoRecord(pub usize);

impl<'a> Records<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(bytes)?)?;
        self.at += bytes;
        Some(taken)
    }

    fn key(&mut self) -> Option<&'a [u8]> {
        let &[length] = self.take(1)? else { return None };
        self.take(usize::from(length))
    }

    fn record(&mut self) -> Option<Record<'a>> {
        let &[kind] = self.take(1)? else { return None };
        match kind {
            PUT => {
                let key = self.key()?;
                let length = u32_at(self.take(VALUE_HEAD_BYTES)?, 0)?;
                let at = self.begin + self.at;
                Some(Record::Put { key, value: self.take(usize::try_from(length).ok()?)?, at })
            }
            DELETE_RANGE => Some(Record::DeleteRange(self.key()?, self.key()?)),
            NOT_NEEDED => Some(Record::NotNeeded(u32::try_from(u64_at(self.take(8)?, 0)?).ok()?)),
            _ => None,
        }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, NoRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let begin = self.at;
        let record = self.record().ok_or(NoRecord(self.begin + begin));
        if record.is_err() {
            self.at = self.bytes.len();
        }
        Some(record)
    }
}

/// The value that was read together with the bytes right before it; `None` when they do not fit.
pub fn checked_value(read: &[u8]) -> Option<&[u8]> {
    let value = read.get(VALUE_HEAD_BYTES..)?;
    let sound =
        u32_at(read, 0) == Some(length(value.len())) && u32_at(read, 4) == Some(crc32c::crc32c(value));
    sound.then_some(value)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Put(Vec<u8>, Vec<u8>),
        DeleteRange(Vec<u8>, Vec<u8>),
        NotNeeded(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let key = || prop::collection::vec(any::<u8>(), 0..18);
        let step = prop_oneof![
            (key(), prop::collection::vec(any::<u8>(), 0..300))
                .prop_map(|(key, value)| Step::Put(key, value)),
            (key(), key()).prop_map(|(from, to)| Step::DeleteRange(from, to)),
            any::<u32>().prop_map(Step::NotNeeded),
        ];
        prop::collection::vec(step, 1..8)
    }

    fn built(builder: &mut FrameBuilder, steps: &[Step]) {
        builder.begin();
        for step in steps {
            match step {
                Step::Put(key, value) => drop(builder.put(key, value)),
                Step::DeleteRange(from, to) => builder.delete_range(&(from..to)),
                Step::NotNeeded(segment) => builder.not_needed(*segment),
            }
        }
    }

    fn same(record: Record<'_>, step: &Step) -> bool {
        match step {
            Step::Put(k, v) => matches!(record, Record::Put { key, value, .. } if key == k && value == v),
            Step::DeleteRange(from, to) => record == Record::DeleteRange(from, to),
            Step::NotNeeded(segment) => record == Record::NotNeeded(*segment),
        }
    }

    const SEED: Seed = Seed(77);

    /// A segment with these frames, the first with sequence 1.
    fn segment(number: u32, frames: &[Vec<Step>]) -> Vec<u8> {
        let mut bytes = Header { segment: number, first: 1 }.encode().to_vec();
        let mut builder = FrameBuilder::default();
        for (steps, sequence) in frames.iter().zip(1..) {
            built(&mut builder, steps);
            let place = Place { segment: number, begin: bytes.len() as u64, sequence };
            bytes.extend_from_slice(builder.finish(SEED, place, sequence - 1, 0));
        }
        bytes
    }

    proptest! {
        #[test]
        fn every_frame_reads_back(frames in prop::collection::vec(steps(), 1..6), number: u32) {
            let bytes = segment(number, &frames);
            prop_assert_eq!(Header::decode(&bytes, number), Begin::Header(Header { segment: number, first: 1 }));
            let mut at = HEADER_BYTES;
            for (steps, sequence) in frames.iter().zip(1..) {
                let frame = Frame::read(&bytes, at, number, SEED).expect("a frame");
                prop_assert_eq!(frame.sequence, sequence);
                let records: Vec<_> = frame.records().map(|record| record.expect("a record")).collect();
                prop_assert_eq!(records.len(), steps.len());
                for (record, step) in records.into_iter().zip(steps) {
                    prop_assert!(same(record, step));
                    if let Record::Put { value, at, .. } = record {
                        prop_assert_eq!(checked_value(&bytes[at - VALUE_HEAD_BYTES..at + value.len()]), Some(value));
                    }
                }
                at = frame.end();
            }
            prop_assert_eq!(at, bytes.len());
        }

        #[test]
        fn a_frame_of_another_segment_place_or_log_is_none(steps in steps(), one: u32, other: u32) {
            prop_assume!(one != other);
            let mut bytes = segment(one, &[steps]);
            prop_assert!(Frame::read(&bytes, HEADER_BYTES, other, SEED).is_none());
            prop_assert!(Frame::read(&bytes, HEADER_BYTES, one, Seed(78)).is_none());
            prop_assert_eq!(Header::decode(&bytes, other), Begin::Unwritten);
            bytes.splice(HEADER_BYTES..HEADER_BYTES, [0; 8]);
            prop_assert!(Frame::find(&bytes, HEADER_BYTES, one, SEED).is_none());
        }

        #[test]
        fn a_flipped_bit_is_found(steps in steps(), bit: prop::sample::Index) {
            let mut bytes = segment(1, &[steps]);
            let end = Frame::read(&bytes, HEADER_BYTES, 1, SEED).map(|frame| frame.begin + FRAME_HEAD_BYTES + frame.records.len());
            let bit = bit.index(end.expect("a frame") * 8);
            // The last bytes of the header mean nothing.
            prop_assume!(!(28 * 8..32 * 8).contains(&bit));
            bytes[bit / 8] ^= 1 << (bit % 8);
            let header = Header::decode(&bytes, 1) == Begin::Header(Header { segment: 1, first: 1 });
            prop_assert!(!header || Frame::read(&bytes, HEADER_BYTES, 1, SEED).is_none());
        }

        #[test]
        fn damage_is_told_from_a_torn_end(frames in prop::collection::vec(steps(), 2..6), harmed: prop::sample::Index) {
            let mut bytes = segment(1, &frames);
            let mut begins = vec![HEADER_BYTES];
            while let Some(frame) = Frame::read(&bytes, *begins.last().expect("one"), 1, SEED) {
                begins.push(frame.end());
            }
            let harmed = harmed.index(frames.len());
            bytes[begins[harmed] + FRAME_HEAD_BYTES] ^= 0x40;
            let lost = harmed as u64 + 1;
            let later = Head::written_after(&bytes, begins[harmed], 1, SEED, lost);
            prop_assert_eq!(later.map(|frame| frame.sequence), (harmed + 1 < frames.len()).then_some(lost + 1));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, begin in 0usize..40) {
            Header::decode(&bytes, 1);
            Frame::read(&bytes, begin, 1, SEED);
            Frame::find(&bytes, begin, 1, SEED);
            Head::written_after(&bytes, begin, 1, SEED, 1);
            checked_value(&bytes);
            let records = Records { bytes: &bytes, begin: 0, at: 0 };
            prop_assert!(records.count() <= bytes.len());
        }
    }

    #[test]
    fn segments_on_disk_keep_their_bytes() {
        let mut builder = FrameBuilder::default();
        builder.begin();
        builder.put(b"key", b"value");
        builder.delete_range(&(b"a"..b"b"));
        builder.not_needed(2);
        let place = Place { segment: 3, begin: 32, sequence: 9 };
        let bytes = [&Header { segment: 3, first: 9 }.encode(), builder.finish(SEED, place, 8, 0)].concat();
        let golden = concat!(
            "4b564c4f4700000103000000000000000900000000000000dea8020d00000000",
            "d94d47e534fb34ee2000000016f10df909000000000000000800000000000000",
            "01036b6579050000006303e0e176616c7565",
            "0201610162",
            "030200000000000000",
        );
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, golden);
    }

    #[test]
    fn a_newer_version_is_told() {
        let mut bytes = Header { segment: 1, first: 1 }.encode();
        bytes[7] = 2;
        let checksum = crc32c::crc32c(&bytes[..24]);
        bytes[24..28].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(Header::decode(&bytes, 1), Begin::Version(2));
    }
}
