//! Reads all segments when the log is opened, and tells a torn end from damage.
//!
//! A frame is written after the one before it was synced. So what cannot be read is a torn end if nothing was written after it,
//! and damage if a later frame is there, if the next segment begins after frames that are missing, or if the log ends before what
//! is known to have been synced ([`crate::log::synced`]). What happened to segments that are not needed any more is no damage.

use std::{fs, io, path::Path};

use bytes::Bytes;
use thiserror::Error;

use crate::log::segments::{
    file,
    format::{Begin, Frame, HEADER_BYTES, Head, Header, Record, Seed},
    index::{Index, Location},
};

/// Why segments cannot be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The system refuses.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What was synced is not there.
    #[error("{0}")]
    Damaged(String),
    /// It was written by a later release.
    #[error("segment {segment} has format {version}, which this release does not know")]
    Version {
        /// Which segment.
        segment: u32,
        /// Its format.
        version: u8,
    },
}

/// All that was found.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Where the records are.
    pub(super) index: Index,
    /// The segments, ascending. The last one is written on.
    pub(super) segments: Vec<u32>,
    /// Files of segments that are not needed or were never written.
    pub(super) idle: Vec<u32>,
    /// Where the last frame of the last segment ends.
    pub(super) end: usize,
    /// Sequence of the last frame; 0 if there is none.
    pub sequence: u64,
    /// Segments up to this one are not needed.
    not_needed: u32,
    /// The first segment that was never written.
    unwritten: Option<u32>,
    /// The last segment that is not what was written, and why.
    harmed: Option<(u32, String)>,
}

/// Loads the segments of a folder, of which everything up to `synced` was on disk. Reads every byte, and changes none.
///
/// # Errors
/// When that is not there, or cannot be read.
pub fn load(folder: &Path, seed: Seed, synced: u64) -> Result<Loaded, LoadError> {
    let mut loaded = Loaded::default();
    for number in file::numbers(folder)? {
        let bytes = fs::read(file::path(folder, number))?;
        let read = match Header::decode(&bytes, number) {
            Begin::Header(header) => loaded.take(header, &bytes, seed),
            Begin::Version(version) => return Err(LoadError::Version { segment: number, version }),
            Begin::Unwritten => loaded.unwritten(number, &bytes, seed),
        };
        match read {
            Ok(()) => {}
            Err(LoadError::Damaged(reason)) => loaded.harmed(number, reason),
            Err(error) => return Err(error),
        }
    }
    loaded.finish(synced)
}

/// The values of all records that can be read, also of those that were removed: for what can be learned of a log that is lost.
pub fn salvage(folder: &Path, seed: Seed, visitor: &mut dyn FnMut(&[u8], Bytes)) {
    for number in file::numbers(folder).unwrap_or_default() {
        let Ok(bytes) = fs::read(file::path(folder, number)) else { continue };
        let mut at = HEADER_BYTES;
        while let Some(frame) = Frame::find(&bytes, at, number, seed) {
            for record in frame.records().flatten() {
                if let Record::Put { key, value, .. } = record {
                    visitor(key, Bytes::copy_from_slice(value));
                }
            }
            at = frame.end();
        }
    }
}

impl Loaded {
    fn take(&mut self, header: Header, bytes: &[u8], seed: Seed) -> Result<(), LoadError> {
        let Header { segment, first } = header;
        if let Some(unwritten) = self.unwritten.take() {
            self.harmed(unwritten, format!("it was not written, but segment {segment} was"));
        }
        if first != self.sequence.saturating_add(1) {
            self.forget();
        }
        self.sequence = first.saturating_sub(1);
        self.end = HEADER_BYTES;
        self.segments.push(segment);
        while let Some(frame) = Frame::read(bytes, self.end, segment, seed) {
            if Some(frame.sequence) != self.sequence.checked_add(1) {
                break;
            }
            self.apply(segment, &frame)?;
            self.sequence = frame.sequence;
            self.end = frame.end();
        }
        self.check_end(segment, bytes, self.end, seed)
    }

    fn unwritten(&mut self, segment: u32, bytes: &[u8], seed: Seed) -> Result<(), LoadError> {
        self.unwritten = self.unwritten.or(Some(segment));
        self.idle.push(segment);
        self.check_end(segment, bytes, 0, seed)
    }

    /// A segment is not what was written. Neither it nor what is before it must be needed: that is seen at the end.
    fn harmed(&mut self, segment: u32, reason: String) {
        self.harmed = Some((segment, reason));
        self.forget();
    }

    /// What was found so far is of segments that must not be needed: that is seen at the end.
    fn forget(&mut self) {
        self.idle.append(&mut self.segments);
        self.index = Index::default();
    }

    /// Nothing was written after the end, if that is the end.
    fn check_end(&self, segment: u32, bytes: &[u8], end: usize, seed: Seed) -> Result<(), LoadError> {
        let lost = self.sequence.saturating_add(1);
        match Head::written_after(bytes, end, segment, seed, lost) {
            None => Ok(()),
            Some(later) => Err(LoadError::Damaged(format!(
                "frame {lost} cannot be read, and {} was written after it",
                later.sequence
            ))),
        }
    }

    fn apply(&mut self, segment: u32, frame: &Frame<'_>) -> Result<(), LoadError> {
        for record in frame.records() {
            let wrong = |what: String| LoadError::Damaged(format!("frame {}: {what}", frame.sequence));
            let record = record.map_err(|no_record| wrong(no_record.to_string()))?;
            match record {
                Record::Put { key, value, at } => {
                    let location = Location::new(segment, at, value.len());
                    let put = self.index.put(key, location, || Bytes::copy_from_slice(value));
                    put.map_err(|unknown| wrong(unknown.to_string()))?;
                }
                Record::DeleteRange(from, to) => self.index.delete_range(from, to),
                Record::NotNeeded(segment) => self.not_needed = self.not_needed.max(segment),
            }
        }
        Ok(())
    }

    fn finish(mut self, synced: u64) -> Result<Self, LoadError> {
        if let Some((segment, reason)) = self.harmed.take()
            && segment > self.not_needed
        {
            return Err(LoadError::Damaged(format!("segment {segment}: {reason}")));
        }
        let sequence = self.sequence;
        if sequence < synced {
            let reason = format!("readable up to frame {sequence}, but {synced} was synced");
            return Err(LoadError::Damaged(reason));
        }
        let first = self.segments.first().copied().unwrap_or(1);
        if first > self.not_needed.saturating_add(1) {
            let reason = format!(
                "segment {first} is the first, and only those up to {} may be missing",
                self.not_needed
            );
            return Err(LoadError::Damaged(reason));
        }
        let needed = self.segments.partition_point(|segment| *segment <= self.not_needed);
        for segment in self.segments.drain(..needed) {
            if self.index.live_of(segment) > 0 {
                return Err(LoadError::Damaged(format!("segment {segment} has records that are needed")));
            }
            self.idle.push(segment);
        }
        if self.segments.is_empty() && self.not_needed > 0 {
            return Err(LoadError::Damaged("the last segment is missing".to_owned()));
        }
        Ok(self)
    }
}
