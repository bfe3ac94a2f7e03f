//! The device itself: who writes and who reads, and what they share.

use std::{io, path::Path, sync::Mutex, time::Duration};

use bytes::Bytes;

use crate::log::{
    device::{DeviceError, LogDevice, Visitor, Write},
    keys::Key,
    lock,
    segments::{
        file::{Segment, failed},
        format::{FrameBuilder, Seed},
        index::{Found, Index, Location},
        listed::Segments,
        load::Loaded,
        moving::{Moved, Moving},
        reclaim::{self, Reclaim, Usage},
        writer::{Sizes, Writer, Written},
    },
    synced::SyncedFile,
};

/// Records that a visit looks up under one lock, at most.
const VISIT_RECORDS: usize = 1_024;

/// An open log of segments. [`crate::log::recovery`] opens it.
pub struct SegmentDevice {
    /// Of the committer, which is the only writer.
    end: Mutex<End>,
    /// Of everybody, never held while something is written or read; only an old segment is opened under it, which keeps
    /// its name so long.
    records: Mutex<Records>,
}

/// What can be read.
struct Records {
    index: Index,
    segments: Segments,
}

/// What the committer works at.
struct End {
    writer: Writer,
    /// The oldest segment, while what is needed of it is written again.
    moving: Option<Moving>,
}

impl SegmentDevice {
    /// Makes what was loaded ready to be written. Of the files, so many stay open.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn open(
        folder: &Path,
        loaded: Loaded,
        seed: Seed,
        side_file: SyncedFile,
        sizes: Sizes,
        open_max: usize,
    ) -> io::Result<Self> {
        let mut segments = Segments::new(folder, open_max);
        if let Some((_, old)) = loaded.segments.split_last() {
            for number in old {
                let segment = Segment::open(folder, *number)?;
                // They are, unless somebody has copied the folder a moment ago.
                segment.file.sync_all()?;
                segments.push(&segment);
            }
        }
        let writer = Writer::open(folder, &loaded, seed, side_file, sizes)?;
        segments.push(&writer.current);
        let end = End { writer, moving: None };
        let records = Records { index: loaded.index, segments };
        Ok(Self { end: Mutex::new(end), records: Mutex::new(records) })
    }

    /// Writes the frame that the writer has put together.
    fn append(&self, writer: &mut Writer) -> Result<Written, DeviceError> {
        if writer.is_full() {
            writer.next_segment()?;
            lock(&self.records).segments.push(&writer.current);
        }
        writer.append()
    }

    /// Takes one step towards giving the oldest segment back. Whether there is more to do.
    fn reclaim(&self, end: &mut End) -> Result<bool, DeviceError> {
        let (decided, oldest) = {
            let Records { index, segments } = &*lock(&self.records);
            let Some(oldest) = segments.oldest() else { return Ok(false) };
            let usage = Usage {
                segment: end.writer.sizes.segment,
                written: (segments.len() - 1) as u64 * end.writer.sizes.segment,
                live: index.live(),
                live_of_oldest: index.live_of(oldest),
            };
            (reclaim::decide(usage, end.moving.is_some()), oldest)
        };
        match decided {
            Reclaim::Nothing => return Ok(false),
            Reclaim::Move if !self.move_some(end, oldest)? => return Ok(true),
            Reclaim::Move => {}
            Reclaim::GiveBack => {
                end.writer.frame.begin();
                end.writer.frame.not_needed(oldest);
                self.append(&mut end.writer)?;
            }
        }
        // Before its file is anything else.
        end.writer.sync()?;
        end.moving = None;
        let file = lock(&self.records).segments.pop_oldest();
        end.writer.spares.give_back(oldest, file).map_err(|error| failed("giving a segment back", &error))?;
        Ok(true)
    }

    /// Writes some of what is needed of the oldest segment again. Whether that was the last of it.
    fn move_some(&self, End { writer, moving }: &mut End, oldest: u32) -> Result<bool, DeviceError> {
        let moving = match moving {
            Some(moving) => moving,
            None => {
                let segment = lock(&self.records).segments.get(oldest)?;
                let begun = Moving::begin(&segment, writer.seed);
                moving.insert(begun.map_err(|error| failed("reading a segment", &error))?)
            }
        };
        writer.frame.begin();
        let most = writer.sizes.moved();
        let (moved, last) = moving.next(&lock(&self.records).index, &mut writer.frame, most)?;
        if writer.frame.is_empty() {
            return Ok(last);
        }
        let written = self.append(writer)?;
        writer.sync()?;
        let index = &mut lock(&self.records).index;
        for Moved { key, at, length, small, .. } in moved {
            index.put(&key, written.value(at, length), || small)?;
        }
        Ok(last)
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
    pub(super) fn place(&self) -> (u32, u64) {
        lock(&self.end).writer.place()
    }

    pub(super) fn sequences(&self) -> (u64, u64) {
        lock(&self.end).writer.sequences()
    }

    /// Number of the oldest segment.
    pub(super) fn first_segment(&self) -> u32 {
        // In the order in which the locks are taken elsewhere.
        let (current, _) = self.place();
        lock(&self.records).segments.oldest().unwrap_or(current)
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

/// Puts a step into a frame, and says where its value begins.
fn put(write: &Write, frame: &mut FrameBuilder) -> u32 {
    match write {
        Write::Put(key, value) => frame.put(key, value),
        Write::DeleteRange(range) => {
            frame.delete_range(range);
            0
        }
    }
}

impl LogDevice for SegmentDevice {
    fn write(&self, batch: &[Write], sync: bool) -> Result<(), DeviceError> {
        let writer = &mut lock(&self.end).writer;
        if !batch.is_empty() {
            let frame = &mut writer.frame;
            frame.begin();
            let places: Vec<u32> = batch.iter().map(|write| put(write, frame)).collect();
            let written = self.append(writer)?;
            let index = &mut lock(&self.records).index;
            for (write, at) in batch.iter().zip(places) {
                match write {
                    Write::Put(key, value) => {
                        index.put(key, written.value(at, value.len()), || value.clone())?;
                    }
                    Write::DeleteRange(range) => index.delete_range(&range.start, &range.end),
                }
            }
        }
        if sync { writer.sync() } else { Ok(()) }
    }

    fn sync(&self) -> Result<(), DeviceError> {
        lock(&self.end).writer.sync()
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
        let end = &mut *lock(&self.end);
        let more = !last && self.reclaim(end)?;
        let due = end.writer.note_synced(last)?;
        Ok(if more { Some(Duration::ZERO) } else { due })
    }
}
