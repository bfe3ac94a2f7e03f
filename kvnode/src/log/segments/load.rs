//! Reads all segments when the log is opened, and tells a torn end from damage.
//!
//! A frame is written after the one before it was synced. So what cannot be read is a torn end if nothing was written after it,
//! and damage if a later frame is there, if the next segment begins after frames that are missing, or if the log ends before what
//! is known to have been synced ([`crate::log::synced`]).

use std::{fs, io, path::Path};

use bytes::Bytes;
use thiserror::Error;

use crate::log::{
    device::DeviceError,
    segments::{
        file,
        format::{Begin, Frame, HEADER_BYTES, Header, Record},
        index::{Index, Location},
    },
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

impl From<DeviceError> for LoadError {
    fn from(error: DeviceError) -> Self {
        Self::Damaged(error.to_string())
    }
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
}

/// Loads the segments of a folder, of which everything up to `synced` was on disk. Reads every byte, and changes none.
///
/// # Errors
/// When that is not there, or cannot be read.
pub fn load(folder: &Path, synced: u64) -> Result<Loaded, LoadError> {
    let mut loaded = Loaded::default();
    for number in file::numbers(folder)? {
        let bytes = fs::read(file::path(folder, number))?;
        match Header::decode(&bytes, number) {
            Begin::Header(header) => loaded.take(header, &bytes)?,
            Begin::Version(version) => return Err(LoadError::Version { segment: number, version }),
            Begin::Unwritten => loaded.unwritten(number, &bytes)?,
        }
    }
    loaded.finish(folder, synced)
}

/// The values of all records that can be read, damaged or not: for what can be learned of a log that is lost.
pub fn salvage(folder: &Path, visitor: &mut dyn FnMut(&[u8], Bytes)) {
    for number in file::numbers(folder).unwrap_or_default() {
        let Ok(bytes) = fs::read(file::path(folder, number)) else { continue };
        let mut at = HEADER_BYTES;
        // Whatever cannot be read is passed over.
        while let Some(frame) =
            Frame::read(&bytes, at, number).or_else(|| Frame::written_after(&bytes, at, number, 0))
        {
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
    fn take(&mut self, header: Header, bytes: &[u8]) -> Result<(), LoadError> {
        let Header { segment, first } = header;
        if let Some(unwritten) = self.unwritten {
            return Err(LoadError::Damaged(format!(
                "segment {unwritten} was not written, but {segment} was"
            )));
        }
        if first != self.sequence + 1 {
            // What is before a gap must not be needed: that is seen at the end.
            self.idle.append(&mut self.segments);
            self.index = Index::default();
        }
        self.sequence = first.saturating_sub(1);
        self.end = HEADER_BYTES;
        while let Some(frame) = Frame::read(bytes, self.end, segment) {
            // A frame of a former life of this number: overwritten ones lie behind the end.
            if frame.sequence != self.sequence + 1 {
                break;
            }
            self.apply(segment, &frame)?;
            self.sequence = frame.sequence;
            self.end = frame.end();
        }
        self.segments.push(segment);
        self.check_end(segment, bytes, self.end)
    }

    fn unwritten(&mut self, segment: u32, bytes: &[u8]) -> Result<(), LoadError> {
        self.unwritten = self.unwritten.or(Some(segment));
        self.idle.push(segment);
        self.check_end(segment, bytes, 0)
    }

    /// Nothing was written after the end, if that is the end.
    fn check_end(&self, segment: u32, bytes: &[u8], end: usize) -> Result<(), LoadError> {
        let lost = self.sequence + 1;
        match Frame::written_after(bytes, end, segment, lost) {
            None => Ok(()),
            Some(later) => Err(LoadError::Damaged(format!(
                "segment {segment}: frame {lost} cannot be read, and {} was written after it",
                later.sequence
            ))),
        }
    }

    fn apply(&mut self, segment: u32, frame: &Frame<'_>) -> Result<(), LoadError> {
        for record in frame.records() {
            let record = record.map_err(|no_record| {
                LoadError::Damaged(format!("segment {segment}, frame {}: {no_record}", frame.sequence))
            })?;
            match record {
                Record::Put { key, value, at } => {
                    let location = Location::new(segment, at, value.len());
                    self.index.put(key, location, || Bytes::copy_from_slice(value))?;
                }
                Record::DeleteRange(from, to) => self.index.delete_range(from, to),
                Record::NotNeeded(segment) => self.not_needed = self.not_needed.max(segment),
            }
        }
        Ok(())
    }

    fn finish(mut self, folder: &Path, synced: u64) -> Result<Self, LoadError> {
        let sequence = self.sequence;
        if sequence < synced {
            let reason = format!("readable up to frame {sequence}, but {synced} was synced");
            return Err(LoadError::Damaged(reason));
        }
        let first = self.segments.first().copied().unwrap_or(1);
        if first > self.not_needed + 1 {
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
        if self.segments.is_empty() && self.sequence > 0 {
            return Err(LoadError::Damaged(format!("no segment in {}", folder.display())));
        }
        Ok(self)
    }
}
