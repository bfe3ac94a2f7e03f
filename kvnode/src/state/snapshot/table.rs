//! A table: sorted records outside the store, on their way into one.
//!
//! On RocksDB it is an SST file below the staging folder, deleted when the value is dropped; in memory it is the
//! records one after another. Bytes of a table go over the wire as they are: sender and receiver use the same
//! engine.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use crate::state::error::StateError;

/// Takes the records of a table, in ascending order of their names.
pub trait TableSink {
    /// Adds a record.
    ///
    /// # Errors
    /// When the device refuses, or the name is not above the one before.
    fn put(&mut self, name: &[u8], value: &[u8]) -> Result<(), StateError>;

    /// Bytes so far; for a file, those already written out.
    fn bytes(&self) -> u64;
}

/// Sorted records outside the store.
#[derive(Debug)]
pub enum Table {
    /// An SST file.
    File(StagedFile),
    /// Records as [`crate::state::memory`] writes them.
    Memory(Vec<u8>),
}

/// A file that goes when nobody needs it any more.
#[derive(Debug)]
pub struct StagedFile {
    path: PathBuf,
}

impl StagedFile {
    /// Takes over the file at `path`, whether or not it is there already.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        // An ingested file was moved away. What is left behind is removed at the next start.
        fs::remove_file(&self.path).ok();
    }
}

fn failed(operation: &'static str) -> impl Fn(std::io::Error) -> StateError {
    move |error| StateError::engine(operation, error)
}

impl Table {
    /// Length in bytes.
    ///
    /// # Errors
    /// When the file cannot be looked at.
    pub fn len(&self) -> Result<u64, StateError> {
        match self {
            Self::File(file) => Ok(fs::metadata(file.path()).map_err(failed("length of a table"))?.len()),
            Self::Memory(bytes) => Ok(bytes.len() as u64),
        }
    }

    /// Whether it holds nothing, not even an empty list of records.
    ///
    /// # Errors
    /// As for [`Table::len`].
    pub fn is_empty(&self) -> Result<bool, StateError> {
        Ok(self.len()? == 0)
    }

    /// Shows the table to `take`, in pieces of at most `piece_bytes`, until it answers false. The last piece is
    /// marked.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read_pieces(
        &self,
        piece_bytes: usize,
        take: &mut dyn FnMut(u64, Vec<u8>, bool) -> bool,
    ) -> Result<(), StateError> {
        let length = self.len()?;
        let mut offset = 0;
        let mut file = match self {
            Self::File(file) => Some(File::open(file.path()).map_err(failed("open a table"))?),
            Self::Memory(_) => None,
        };
        while offset < length {
            let wanted = usize::try_from(length - offset).unwrap_or(usize::MAX).min(piece_bytes);
            let mut piece = vec![0; wanted];
            match (&mut file, self) {
                (Some(file), _) => file.read_exact(&mut piece).map_err(failed("read a table"))?,
                (None, Self::Memory(bytes)) => {
                    let start = usize::try_from(offset).unwrap_or(usize::MAX);
                    piece.copy_from_slice(&bytes[start..start + wanted]);
                }
                (None, Self::File(_)) => {
                    return Err(StateError::engine("read a table", "the file is not open"));
                }
            }
            offset += wanted as u64;
            if !take(offset - wanted as u64, piece, offset == length) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Adds a received piece at the end.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn append(&mut self, piece: &[u8]) -> Result<(), StateError> {
        match self {
            Self::Memory(bytes) => bytes.extend_from_slice(piece),
            Self::File(file) => {
                let mut file = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(file.path())
                    .map_err(failed("open a received table"))?;
                file.seek(SeekFrom::End(0)).map_err(failed("seek in a received table"))?;
                file.write_all(piece).map_err(failed("write a received table"))?;
            }
        }
        Ok(())
    }

    /// Makes a received table durable.
    ///
    /// # Errors
    /// When the device refuses; it is not retried.
    pub fn sync(&self) -> Result<(), StateError> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::File(file) => File::open(file.path())
                .and_then(|file| file.sync_all())
                .map_err(failed("sync a received table")),
        }
    }
}
