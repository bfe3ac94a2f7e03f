//! One segment: its file, and reads of values in it.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use crate::log::{
    device::DeviceError,
    segments::{
        format::{self, VALUE_HEAD_BYTES},
        index::Location,
    },
};

/// The ending of the name of each segment.
const ENDING: &str = ".seg";
/// Digits of its number in the name: enough for all, so that names sort as numbers do.
const DIGITS: usize = 10;

/// A file that has the number of a segment.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Its number.
    pub number: u32,
    /// Its file, open for reading and writing. Whoever has it reads what was there.
    pub file: Arc<File>,
}

impl Segment {
    /// Makes a new file. Its name is durable when its folder was synced.
    ///
    /// # Errors
    /// When it is there, or cannot be made.
    pub fn create(folder: &Path, number: u32) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path(folder, number))?;
        Ok(Self { number, file: Arc::new(file) })
    }

    /// Opens a file that is there.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(folder: &Path, number: u32) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path(folder, number))?;
        Ok(Self { number, file: Arc::new(file) })
    }

    /// Gives the file another number. The name is durable when its folder was synced.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn renumber(self, folder: &Path, number: u32) -> io::Result<Self> {
        std::fs::rename(path(folder, self.number), path(folder, number))?;
        Ok(Self { number, ..self })
    }

    /// The value at this place, checked.
    ///
    /// # Errors
    /// When it cannot be read, or is not what was written.
    pub fn value(&self, location: Location) -> Result<Bytes, DeviceError> {
        let length = usize::try_from(location.length).unwrap_or(usize::MAX);
        let mut read = vec![0; VALUE_HEAD_BYTES + length];
        let begin = u64::from(location.at).saturating_sub(VALUE_HEAD_BYTES as u64);
        match self.file.read_exact_at(&mut read, begin) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(self.damaged(location)),
            Err(error) => return Err(failed("reading a segment", &error)),
        }
        if format::checked_value(&read).is_none() {
            return Err(self.damaged(location));
        }
        let mut value = Bytes::from(read);
        Ok(value.split_off(VALUE_HEAD_BYTES))
    }

    fn damaged(&self, location: Location) -> DeviceError {
        let reason =
            format!("segment {}: the value at byte {} is not what was written", self.number, location.at);
        DeviceError::Damaged { reason }
    }
}

/// Where the file of a segment is.
pub fn path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:0DIGITS$}{ENDING}"))
}

/// Numbers of the segments in a folder, ascending. What else is there is none of ours.
///
/// # Errors
/// When the folder cannot be read.
pub fn numbers(folder: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for item in std::fs::read_dir(folder)? {
        let name = item?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(ENDING)?.parse().ok());
        // A name that we would write otherwise is another file.
        numbers
            .extend(number.filter(|number| *number > 0 && path(folder, *number).file_name() == Some(&name)));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// What the device says when the system refuses.
pub fn failed(operation: &'static str, error: &io::Error) -> DeviceError {
    DeviceError::Failed {
        operation,
        reason: error.to_string(),
        out_of_space: error.kind() == io::ErrorKind::StorageFull,
    }
}
