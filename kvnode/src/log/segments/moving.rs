//! Writing again what of an old segment is still needed.

use std::{io, os::unix::fs::FileExt};

use bytes::Bytes;

use crate::log::{
    device::DeviceError,
    keys::{self, Key, Place},
    segments::{
        file::Segment,
        format::{Frame, FrameBuilder, HEADER_BYTES, Record, Seed},
        index::{Index, Location},
    },
};

/// The oldest segment on its way into the one that is written.
pub struct Moving {
    segment: u32,
    bytes: Vec<u8>,
    at: usize,
    seed: Seed,
}

/// A record that goes into the next frame.
pub struct Moved {
    /// Its key.
    pub key: Key,
    /// Where its value begins in the frame.
    pub at: u32,
    /// Bytes of its value.
    pub length: usize,
    /// Its value, if the index keeps it.
    pub small: Bytes,
    /// Where it was.
    from: Location,
}

impl Moving {
    /// Reads the whole segment.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn begin(segment: &Segment, seed: Seed) -> io::Result<Self> {
        let mut bytes = vec![0; usize::try_from(segment.file.metadata()?.len()).unwrap_or(usize::MAX)];
        segment.file.read_exact_at(&mut bytes, 0)?;
        Ok(Self { segment: segment.number, bytes, at: HEADER_BYTES, seed })
    }

    /// Puts the next records that are needed into a frame, until that has about so many bytes or four times as many were
    /// looked through. With the last of them the segment is not needed any more, which goes into the frame too: then the
    /// second value is true.
    ///
    /// # Errors
    /// When the segment ends before that.
    pub fn next(
        &mut self,
        index: &Index,
        frame: &mut FrameBuilder,
        most: usize,
    ) -> Result<(Vec<Moved>, bool), DeviceError> {
        let (mut moved, began) = (Vec::new(), self.at);
        while let Some(old) = Frame::read(&self.bytes, self.at, self.segment, self.seed) {
            if frame.len() >= most || self.at - began >= 4 * most {
                return Ok((moved, false));
            }
            for record in old.records() {
                let record = record.map_err(|error| self.damaged(&error.to_string()))?;
                let Record::Put { key, value, at } = record else { continue };
                let from = Location::new(self.segment, at, value.len());
                if index.is_at(key, from) {
                    moved.push(Moved::put(key, value, from, frame)?);
                }
            }
            self.at = old.end();
        }
        let bytes: u64 = moved.iter().map(|moved| moved.from.cost()).sum();
        if index.live_of(self.segment) != bytes {
            return Err(self.damaged("it ends before what is needed of it"));
        }
        frame.not_needed(self.segment);
        Ok((moved, true))
    }

    fn damaged(&self, what: &str) -> DeviceError {
        DeviceError::Damaged { reason: format!("segment {}: {what}", self.segment) }
    }
}

impl Moved {
    fn put(key: &[u8], value: &[u8], from: Location, frame: &mut FrameBuilder) -> Result<Self, DeviceError> {
        let (replica, place) = keys::decode(key)?;
        let small = match place {
            Place::Entry(_) => Bytes::new(),
            Place::Descriptor | Place::Vote | Place::Purged | Place::Committed => {
                Bytes::copy_from_slice(value)
            }
        };
        let at = frame.put(key, value);
        Ok(Self { key: keys::encode(replica, place), at, length: value.len(), small, from })
    }
}
