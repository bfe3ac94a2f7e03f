//! The segments of an open log, and which of their files stay open.

use std::{
    collections::VecDeque,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::log::{
    device::DeviceError,
    segments::file::{Segment, failed},
};

/// The segments in the order of their numbers; the last one is written.
pub struct Segments {
    folder: PathBuf,
    /// Old ones are opened when they are read, if there are many.
    listed: VecDeque<(u32, Option<Arc<File>>)>,
    open_max: usize,
}

impl Segments {
    /// None yet, in this folder.
    pub fn new(folder: &Path, open_max: usize) -> Self {
        Self { folder: folder.to_owned(), listed: VecDeque::new(), open_max }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.listed.len()
    }

    /// Number of the oldest one, unless it is the one that is written.
    pub fn oldest(&self) -> Option<u32> {
        self.listed.front().filter(|_| self.listed.len() > 1).map(|(number, _)| *number)
    }

    /// Takes the oldest one away: its file, if it is open.
    pub fn pop_oldest(&mut self) -> Option<Arc<File>> {
        self.listed.pop_front().and_then(|(_, file)| file)
    }

    /// Adds the next one, which is written from now on.
    pub fn push(&mut self, segment: &Segment) {
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
    ///
    /// # Errors
    /// When there is none, or it cannot be opened.
    pub fn get(&self, number: u32) -> Result<Segment, DeviceError> {
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
