//! Writes segments: one frame for each batch, and what of an old segment is still needed.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::log::{
    device::{DeviceError, LogDevice, Visitor, Write},
    keys::{self, Key},
    lock,
    segments::{
        file::{self, Segment, failed},
        format::{Frame, FrameBuilder, HEADER_BYTES, Header, Record},
        index::{Found, Index, Location},
        load::Loaded,
        reclaim::{self, Reclaim, Usage},
        spare::{Ready, Spares},
    },
    synced::SyncedFile,
};

/// Sizes of a log's files, bytes.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Of a segment; one with a larger batch has that alone.
    pub segment: u64,
}

impl Default for Sizes {
    /// Small enough that a small volume holds several, large enough that a new name, which costs a commit of the file system's
    /// journal, is rare.
    fn default() -> Self {
        Self { segment: 16 << 20 }
    }
}

impl Sizes {
    /// A file that is new gets its blocks in steps of this, ahead of what is written.
    fn fill(self) -> u64 {
        self.segment / 16
    }

    /// Where a segment is when the next one is made ready.
    fn make_next_at(self) -> u64 {
        self.segment / 2
    }

    /// What is written again between two batches: about as much as a batch waits for on a busy log.
    fn moved(self) -> usize {
        usize::try_from(self.segment / 64).unwrap_or(usize::MAX)
    }
}

/// Records that a visit looks up under one lock, at most.
const VISIT_RECORDS: usize = 1_024;

/// An open log of segments. [`crate::log::recovery`] opens it.
pub struct SegmentDevice {
    /// Of the committer, which is the only writer.
    writer: Mutex<Writer>,
    /// Of everybody, never held while a disk is waited for.
    records: Mutex<Records>,
}

/// What can be read.
struct Records {
    index: Index,
    segments: Segments,
}

/// The segments in the order of their numbers; the last one is written.
struct Segments {
    folder: PathBuf,
    /// Old ones are opened when they are read, if there are many.
    listed: VecDeque<(u32, Option<Arc<File>>)>,
    open_max: usize,
}

impl Segments {
    fn push(&mut self, segment: &Segment) {
        self.listed.push_back((segment.number, Some(segment.file.clone())));
        self.close_old();
    }

    fn close_old(&mut self) {
        let old = self.listed.len().saturating_sub(self.open_max);
        if let Some((_, file)) = old.checked_sub(1).and_then(|last| self.listed.get_mut(last)) {
            *file = None;
        }
    }

    /// One of them, open.
    fn get(&self, number: u32) -> Result<Segment, DeviceError> {
        let place = self.listed.binary_search_by_key(&number, |(number, _)| *number);
        match place.ok().and_then(|place| self.listed.get(place)) {
            Some((_, Some(file))) => Ok(Segment { number, file: file.clone() }),
            Some((_, None)) => {
                Segment::open(&self.folder, number).map_err(|error| failed("opening a segment", &error))
            }
            None => Err(DeviceError::Damaged { reason: format!("there is no segment {number}") }),
        }
    }
}

struct Writer {
    sizes: Sizes,
    current: Segment,
    /// Where the next frame begins in it.
    end: u64,
    /// Up to where its file has blocks.
    filled: u64,
    /// Sequence of the last frame, and of the last one that is on disk.
    sequence: u64,
    synced: u64,
    frame: FrameBuilder,
    spares: Spares,
    moving: Option<Moving>,
    side_file: SyncedFile,
}

/// The oldest segment, while what is needed of it is written again.
struct Moving {
    bytes: Vec<u8>,
    at: usize,
}

/// Where a frame was written.
#[derive(Clone, Copy)]
struct Place {
    segment: u32,
    begin: u32,
}

impl Place {
    /// The place of a value that begins there in the frame.
    fn value(self, at: u32, length: usize) -> Location {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        Location { segment: self.segment, at: self.begin.saturating_add(at), length }
    }
}

/// A record that is written again.
struct Moved {
    key: Key,
    /// Where its value begins in the frame.
    at: u32,
    length: usize,
    /// Empty if the index does not keep it.
    small: Bytes,
}

impl SegmentDevice {
    /// Makes what was loaded ready to be written. Whatever follows the last frame is overwritten: parts of unsynced frames
    /// must never be taken for what comes after the next ones. Of the files, so many stay open.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn open(
        folder: &Path,
        loaded: Loaded,
        mut side_file: SyncedFile,
        sizes: Sizes,
        open_max: usize,
    ) -> io::Result<Self> {
        for number in &loaded.idle {
            fs::remove_file(file::path(folder, *number))?;
        }
        let mut segments = Segments { folder: folder.to_owned(), listed: VecDeque::new(), open_max };
        let (old, (current, end)) = match loaded.segments.split_last() {
            Some((last, old)) => (old, (Segment::open(folder, *last)?, loaded.end as u64)),
            None => (&[][..], (Segment::create(folder, 1)?, 0)),
        };
        for number in old {
            segments.push(&Segment::open(folder, *number)?);
        }
        segments.push(&current);
        file::sync_folder(folder)?;
        let filled = current.file.metadata()?.len().max(end);
        fill(&current, end, filled)?;
        // All of it: what a process that was killed had not synced is part of the log now.
        current.file.sync_all()?;
        side_file.reached(loaded.sequence);
        let writer = Writer {
            sizes,
            current,
            end,
            filled,
            sequence: loaded.sequence,
            synced: loaded.sequence,
            frame: FrameBuilder::default(),
            spares: Spares::new(folder, sizes),
            moving: None,
            side_file,
        };
        let records = Records { index: loaded.index, segments };
        Ok(Self { writer: Mutex::new(writer), records: Mutex::new(records) })
    }

    /// Writes the frame that the writer has put together.
    fn append(&self, writer: &mut Writer) -> Result<Place, DeviceError> {
        if writer.end > 0 && writer.end + writer.frame.len() as u64 > writer.sizes.segment {
            self.next_segment(writer)?;
        }
        let begin = writer.append().map_err(|error| failed("writing a batch", &error))?;
        Ok(Place { segment: writer.current.number, begin: u32::try_from(begin).unwrap_or(u32::MAX) })
    }

    /// Frames that are not on disk are in one segment only: so whatever is found in the next one is there with all before it.
    fn next_segment(&self, writer: &mut Writer) -> Result<(), DeviceError> {
        writer.sync()?;
        let next = writer.current.number + 1;
        let Ready { segment, filled } =
            writer.spares.take(next).map_err(|error| failed("making a segment", &error))?;
        lock(&self.records).segments.push(&segment);
        (writer.current, writer.end, writer.filled) = (segment, 0, filled);
        Ok(())
    }

    /// Takes one step towards giving the oldest segment back. Whether there is more to do.
    fn reclaim(&self, writer: &mut Writer) -> Result<bool, DeviceError> {
        let (decided, oldest) = {
            let Records { index, segments } = &*lock(&self.records);
            // The one that is written is never given back.
            let Some((oldest, _)) = segments.listed.front().filter(|_| segments.listed.len() > 1) else {
                return Ok(false);
            };
            let usage = Usage {
                segment: writer.sizes.segment,
                written: (segments.listed.len() - 1) as u64 * writer.sizes.segment,
                live: index.live(),
                live_of_oldest: index.live_of(*oldest),
            };
            (reclaim::decide(usage, writer.moving.is_some()), *oldest)
        };
        match decided {
            Reclaim::Nothing => return Ok(false),
            Reclaim::Move if !self.move_some(writer, oldest)? => return Ok(true),
            Reclaim::Move => {}
            Reclaim::GiveBack => {
                writer.frame.begin();
                writer.frame.not_needed(oldest);
                self.append(writer)?;
                writer.sync()?;
            }
        }
        writer.moving = None;
        let file = lock(&self.records).segments.listed.pop_front().and_then(|(_, file)| file);
        writer.spares.give_back(oldest, file).map_err(|error| failed("giving a segment back", &error))?;
        Ok(true)
    }

    /// Writes some of what is needed of the oldest segment again, to the disk. Whether that was the last of it.
    fn move_some(&self, writer: &mut Writer, oldest: u32) -> Result<bool, DeviceError> {
        let mut moving = match writer.moving.take() {
            Some(moving) => moving,
            None => {
                let segment = lock(&self.records).segments.get(oldest)?;
                Moving::begin(&segment).map_err(|error| failed("reading a segment", &error))?
            }
        };
        writer.frame.begin();
        let mut moved = Vec::new();
        let mut last = true;
        while let Some(frame) = Frame::read(&moving.bytes, moving.at, oldest) {
            if writer.frame.len() >= writer.sizes.moved() {
                last = false;
                break;
            }
            moving.at = frame.end();
            self.copy_needed(oldest, &frame, &mut writer.frame, &mut moved)?;
        }
        if last {
            writer.frame.not_needed(oldest);
        }
        let place = self.append(writer)?;
        writer.sync()?;
        writer.moving = Some(moving);
        let index = &mut lock(&self.records).index;
        for Moved { key, at, length, small } in moved {
            index.put(&key, place.value(at, length), || small)?;
        }
        if last && index.live_of(oldest) > 0 {
            let reason = format!("segment {oldest} ends before what is needed of it");
            return Err(DeviceError::Damaged { reason });
        }
        Ok(last)
    }

    /// Puts those records of a frame that are needed into another one.
    fn copy_needed(
        &self,
        segment: u32,
        frame: &Frame<'_>,
        into: &mut FrameBuilder,
        moved: &mut Vec<Moved>,
    ) -> Result<(), DeviceError> {
        let index = &lock(&self.records).index;
        for record in frame.records() {
            let record = record.map_err(|error| DeviceError::Damaged { reason: error.to_string() })?;
            let Record::Put { key, value, at } = record else { continue };
            let (replica, place) = keys::decode(key)?;
            let here = Place { segment, begin: 0 }.value(u32::try_from(at).unwrap_or(u32::MAX), value.len());
            if index.is_at(key, here) {
                let small = matches!(place, keys::Place::Entry(_));
                let small = if small { Bytes::new() } else { Bytes::copy_from_slice(value) };
                let key = keys::encode(replica, place);
                moved.push(Moved { key, at: into.put(&key, value), length: value.len(), small });
            }
        }
        Ok(())
    }

    /// The next records of a range, as of one moment: keys, and what is needed to read their values.
    fn look_up(&self, from: &[u8], to: &[u8], most: usize) -> Result<Vec<(Key, Value)>, DeviceError> {
        let Records { index, segments } = &*lock(&self.records);
        // Neighbours are often in one segment.
        let mut last: Option<Segment> = None;
        let mut value = |found| -> Result<Value, DeviceError> {
            let location = match found {
                Found::Value(value) => return Ok(Value::Here(value)),
                Found::At(location) => location,
            };
            let same = last.take().filter(|segment| segment.number == location.segment);
            let segment = same.map_or_else(|| segments.get(location.segment), Ok)?;
            last = Some(segment.clone());
            Ok(Value::In(segment, location))
        };
        let found = index.range(from, to, most).into_iter();
        found.map(|(key, found)| Ok((key, value(found)?))).collect()
    }
}

#[cfg(test)]
impl SegmentDevice {
    /// The segment that is written, and where the next frame begins in it.
    pub(super) fn place(&self) -> (u32, u64) {
        let writer = lock(&self.writer);
        (writer.current.number, writer.end)
    }

    /// Whether all frames are on disk.
    pub(super) fn is_synced(&self) -> bool {
        let writer = lock(&self.writer);
        writer.synced == writer.sequence
    }

    /// The oldest segment.
    pub(super) fn first_segment(&self) -> u32 {
        lock(&self.records).segments.listed.front().map_or(0, |(number, _)| *number)
    }
}

/// A value that was looked up.
enum Value {
    Here(Bytes),
    In(Segment, Location),
}

impl Value {
    fn read(self) -> Result<Bytes, DeviceError> {
        match self {
            Self::Here(value) => Ok(value),
            Self::In(segment, location) => segment.value(location),
        }
    }
}

impl Moving {
    fn begin(segment: &Segment) -> io::Result<Self> {
        let mut bytes = vec![0; usize::try_from(segment.file.metadata()?.len()).unwrap_or(usize::MAX)];
        segment.file.read_exact_at(&mut bytes, 0)?;
        Ok(Self { bytes, at: HEADER_BYTES })
    }
}

impl Writer {
    /// Writes the frame, and says where it begins.
    fn append(&mut self) -> io::Result<u64> {
        let header = Header { segment: self.current.number, first: self.sequence + 1 };
        let begin = self.end.max(HEADER_BYTES as u64);
        let end = begin + self.frame.len() as u64;
        if end > self.filled {
            let filled = end.next_multiple_of(self.sizes.fill());
            fill(&self.current, self.filled, filled)?;
            self.filled = filled;
        }
        let frame = self.frame.finish(header.segment, self.sequence + 1, self.synced);
        self.current.file.write_all_at(frame, begin)?;
        if self.end == 0 {
            self.current.file.write_all_at(&header.encode(), 0)?;
        }
        self.end = end;
        self.sequence += 1;
        if end > self.sizes.make_next_at() {
            self.spares.make(self.current.number + 1);
        }
        Ok(begin)
    }

    fn sync(&mut self) -> Result<(), DeviceError> {
        if self.synced < self.sequence {
            self.current.file.sync_data().map_err(|error| failed("syncing a segment", &error))?;
            self.synced = self.sequence;
            self.side_file.reached(self.synced);
        }
        Ok(())
    }

    /// Notes how far the log is on disk, if it is time for that. When it wants to be asked again.
    fn note_synced(&mut self, last: bool) -> Result<Option<Duration>, DeviceError> {
        let now = Instant::now();
        match self.side_file.due_in(now) {
            None => return Ok(None),
            Some(due) if !due.is_zero() && !last => return Ok(Some(due)),
            Some(_) => {}
        }
        self.side_file.record(now).map_err(|error| failed("writing SYNCED", &error))?;
        Ok(None)
    }
}

/// Writes zeros: the blocks are there afterwards, and nothing that was written before.
fn fill(segment: &Segment, from: u64, to: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut at = from;
    while at < to {
        let zeros = usize::try_from(to - at).unwrap_or(usize::MAX).min(ZEROS.len());
        segment.file.write_all_at(&ZEROS[..zeros], at)?;
        at += zeros as u64;
    }
    Ok(())
}

impl LogDevice for SegmentDevice {
    fn write(&self, batch: &[Write], sync: bool) -> Result<(), DeviceError> {
        let writer = &mut *lock(&self.writer);
        if !batch.is_empty() {
            let frame = &mut writer.frame;
            frame.begin();
            let put = |write: &Write| match write {
                Write::Put(key, value) => frame.put(key, value),
                Write::DeleteRange(range) => {
                    frame.delete_range(range);
                    0
                }
            };
            let places: Vec<u32> = batch.iter().map(put).collect();
            let place = self.append(writer)?;
            let index = &mut lock(&self.records).index;
            for (write, at) in batch.iter().zip(places) {
                match write {
                    Write::Put(key, value) => index.put(key, place.value(at, value.len()), || value.clone())?,
                    Write::DeleteRange(range) => index.delete_range(&range.start, &range.end),
                }
            }
        }
        if sync { writer.sync() } else { Ok(()) }
    }

    fn sync(&self) -> Result<(), DeviceError> {
        lock(&self.writer).sync()
    }

    fn visit(&self, from: &[u8], to: &[u8], visitor: &mut Visitor<'_>) -> Result<(), DeviceError> {
        let (mut from, mut most) = (from.to_vec(), 1);
        loop {
            let found = self.look_up(&from, to, most)?;
            let Some((last, _)) = found.last() else { return Ok(()) };
            // The least key after it.
            from = [&**last, &[0]].concat();
            for (key, value) in found {
                if visitor(&key, &value.read()?).is_break() {
                    return Ok(());
                }
            }
            // Some want one record only.
            most = (most * 8).min(VISIT_RECORDS);
        }
    }

    fn reads_block(&self) -> bool {
        true
    }

    fn rest(&self, last: bool) -> Result<Option<Duration>, DeviceError> {
        let writer = &mut *lock(&self.writer);
        let more = !last && self.reclaim(writer)?;
        let due = writer.note_synced(last)?;
        Ok(if more { Some(Duration::ZERO) } else { due })
    }
}
