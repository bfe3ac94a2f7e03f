//! One process a folder.
//!
//! The operating system's lock on the file `LOCK` decides, and vanishes with its process; the content of the file
//! only tells a person who holds it.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::Path,
    process,
};

use super::{DataDirError, LOCK};
use crate::config::NodeName;

/// What is read of the holder's words: never more, whatever the file holds.
const MAX_HOLDER_BYTES: u64 = 200;

/// The lock, held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the folder.
    pub fn take(folder: &Path, name: &NodeName) -> Result<Self, DataDirError> {
        let path = folder.join(LOCK);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(DataDirError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(DataDirError::InUse { path: folder.to_owned(), holder: holder(&mut file) });
            }
            Err(TryLockError::Error(error)) => return Err(DataDirError::io("lock", &path)(error)),
        }
        // For people only: not synced, and of no meaning once the lock is free. On a full disk it stays empty.
        let _unwritten_on_a_full_disk = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(format!("process {} (node {name})", process::id()).as_bytes()));
        Ok(Self { _file: file })
    }
}

fn holder(file: &mut File) -> String {
    let mut text = Vec::new();
    let read = file.take(MAX_HOLDER_BYTES).read_to_end(&mut text);
    match String::from_utf8_lossy(&text).trim() {
        words if read.is_ok() && !words.is_empty() => words.to_owned(),
        _ => "another process".to_owned(),
    }
}
