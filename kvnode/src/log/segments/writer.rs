//! The end of the log: the segment that is written, and what it takes to write it.

use std::{
    fs, io,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    data_dir::small_file::sync_folder,
    log::{
        device::DeviceError,
        segments::{
            file::{self, Segment, failed},
            format::{FrameBuilder, HEADER_BYTES, Header, Place, Seed},
            index::Location,
            load::Loaded,
            spare::{Ready, Spares},
        },
        synced::SyncedFile,
    },
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
    pub fn moved(self) -> usize {
        usize::try_from(self.segment / 64).unwrap_or(usize::MAX)
    }
}

/// What the system keeps of a file in memory is pages of this, bytes.
const PAGE_BYTES: u64 = 4096;
/// What is written or read at once, bytes.
const PIECE_BYTES: usize = 64 << 10;

/// Writes the log. There is one.
pub struct Writer {
    /// Of what it makes.
    pub sizes: Sizes,
    /// Of this log.
    pub seed: Seed,
    /// The segment that is written.
    pub current: Segment,
    /// Where the next frame begins in it; 0 when it has none yet.
    end: u64,
    /// Up to where its file has blocks.
    filled: u64,
    /// Sequence of the last frame, and of the last one that is on disk.
    sequence: u64,
    synced: u64,
    /// The next frame.
    pub frame: FrameBuilder,
    /// What the next segments are made of.
    pub spares: Spares,
    side_file: SyncedFile,
}

/// Where a frame was written.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    segment: u32,
    begin: usize,
}

impl Written {
    /// The place of a value that begins there in the frame.
    pub fn value(self, at: u32, length: usize) -> Location {
        Location::new(self.segment, self.begin.saturating_add(at as usize), length)
    }
}

impl Writer {
    /// Goes on where the log ends. Whatever follows its last frame is overwritten: parts of unsynced frames must never be taken for
    /// what comes after the next ones.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn open(
        folder: &Path,
        loaded: &Loaded,
        seed: Seed,
        mut side_file: SyncedFile,
        sizes: Sizes,
    ) -> io::Result<Self> {
        let last = loaded.segments.last().map(|last| Segment::open(folder, *last)).transpose()?;
        let end = last.as_ref().map_or(0, |_| loaded.end as u64);
        if let Some(last) = &last {
            // What a process that was killed had not synced is part of the log from now on. All of it is written anew: after a sync
            // that failed, the system takes pages for written that are not.
            write_again(last, end)?;
            fill(last, end, last.file.metadata()?.len())?;
            last.file.sync_all()?;
        }
        // Not before: what says that they are not needed may have been unsynced itself.
        for number in &loaded.idle {
            fs::remove_file(file::path(folder, *number))?;
        }
        let current = last.map_or_else(|| Segment::create(folder, 1), Ok)?;
        sync_folder(folder)?;
        let filled = current.file.metadata()?.len();
        side_file.reached(loaded.sequence);
        let (sequence, synced) = (loaded.sequence, loaded.sequence);
        let (frame, spares) = (FrameBuilder::default(), Spares::new(folder, sizes));
        Ok(Self { sizes, seed, current, end, filled, sequence, synced, frame, spares, side_file })
    }

    /// Whether the frame goes into the next segment.
    pub fn is_full(&self) -> bool {
        self.end > 0 && self.end + self.frame.len() as u64 > self.sizes.segment
    }

    /// Goes on to the next segment. Frames that are not on disk are in one segment only: so whatever is found in the next one is there
    /// with all before it.
    ///
    /// # Errors
    /// When there is no next one, or this one may not be on disk.
    pub fn next_segment(&mut self) -> Result<(), DeviceError> {
        self.sync()?;
        let next = self.spares.take(self.current.number.saturating_add(1));
        let Ready { segment, filled } = next.map_err(|error| failed("making a segment", &error))?;
        (self.current, self.end, self.filled) = (segment, 0, filled);
        Ok(())
    }

    /// Writes the frame.
    ///
    /// # Errors
    /// When it may not be there.
    pub fn append(&mut self) -> Result<Written, DeviceError> {
        let begin = self.write().map_err(|error| failed("writing a batch", &error))?;
        Ok(Written { segment: self.current.number, begin: usize::try_from(begin).unwrap_or(usize::MAX) })
    }

    fn write(&mut self) -> io::Result<u64> {
        let header = Header { segment: self.current.number, first: self.sequence + 1 };
        let begin = self.end.max(HEADER_BYTES as u64);
        let end = begin + self.frame.len() as u64;
        if end > self.filled {
            let filled = end.next_multiple_of(self.sizes.fill());
            fill(&self.current, self.filled, filled)?;
            self.filled = filled;
        }
        let place = Place { segment: header.segment, begin, sequence: header.first };
        // A page that is written in part, and is not in memory, would be read first.
        let padded =
            if begin / PAGE_BYTES == end / PAGE_BYTES { end } else { end.next_multiple_of(PAGE_BYTES) };
        let frame = self.frame.finish(self.seed, place, self.synced, padded.min(self.filled));
        self.current.file.write_all_at(frame, begin)?;
        if self.end == 0 {
            self.current.file.write_all_at(&header.encode(), 0)?;
        }
        self.end = end;
        self.sequence += 1;
        if end > self.sizes.make_next_at() {
            self.spares.make(self.current.number.saturating_add(1));
        }
        Ok(begin)
    }

    /// Returns when all frames are on disk.
    ///
    /// # Errors
    /// When they may not be.
    pub fn sync(&mut self) -> Result<(), DeviceError> {
        if self.synced < self.sequence {
            self.current.file.sync_data().map_err(|error| failed("syncing a segment", &error))?;
            self.synced = self.sequence;
            self.side_file.reached(self.synced);
        }
        Ok(())
    }

    /// Notes how far the log is on disk, if it is time for that. When it wants to be asked again.
    ///
    /// # Errors
    /// When that may not be noted.
    pub fn note_synced(&mut self, last: bool) -> Result<Option<Duration>, DeviceError> {
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

#[cfg(test)]
impl Writer {
    /// The segment that is written, and where the last frame ends in it.
    pub fn place(&self) -> (u32, u64) {
        (self.current.number, self.end)
    }

    /// Sequences of the last frame and of the last one that is on disk.
    pub fn sequences(&self) -> (u64, u64) {
        (self.sequence, self.synced)
    }
}

/// Writes what is there once more, up to `end`.
fn write_again(segment: &Segment, end: u64) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = 0;
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(usize::MAX).min(PIECE_BYTES);
        segment.file.read_exact_at(&mut piece[..length], at)?;
        segment.file.write_all_at(&piece[..length], at)?;
        at += length as u64;
    }
    Ok(())
}

/// Writes zeros: the blocks are there afterwards, and nothing that was written before.
fn fill(segment: &Segment, from: u64, to: u64) -> io::Result<()> {
    static ZEROS: [u8; PIECE_BYTES] = [0; PIECE_BYTES];
    let mut at = from;
    while at < to {
        let zeros = usize::try_from(to - at).unwrap_or(usize::MAX).min(ZEROS.len());
        segment.file.write_all_at(&ZEROS[..zeros], at)?;
        at += zeros as u64;
    }
    Ok(())
}
