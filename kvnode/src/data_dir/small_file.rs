//! Small files that are either the old or the new one after any crash, and whose damage is noticed.
//!
//! [`replace`] is the only way in which such a file is written: temporary file, fsync, rename, fsync of the folder.
//! [`write_checked`] and [`read_checked`] add a frame around it: a mark, the CRC32C of the content, its length.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use thiserror::Error;

/// The ending of a file that is being written. What a crash leaves behind is overwritten by the next attempt.
pub const UNFINISHED: &str = ".new";

/// First bytes of a checked file. The last one is the version of this frame.
const MARK: [u8; 4] = *b"KVF\x01";
/// Mark, checksum (4 bytes LE), length of the content (4 bytes LE).
const FRAME_LENGTH: usize = 12;

/// Why a small file could not be written or read.
#[derive(Debug, Error)]
pub enum SmallFileError {
    /// The operating system refused.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The bytes are not those that were written.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How it was noticed.
        reason: String,
    },
}

impl SmallFileError {
    fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }

    fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), reason: reason.into() }
    }
}

/// Replaces the whole content of `path`, durably when it returns. After a crash the file is the old or the new one.
///
/// # Errors
/// When a step fails; then the old file is untouched, or, if only the last fsync failed, either may be found after
/// a power loss.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), SmallFileError> {
    let mut unfinished = OsString::from(path);
    unfinished.push(UNFINISHED);
    let unfinished = PathBuf::from(unfinished);
    let mut file = File::create(&unfinished).map_err(SmallFileError::io("create", &unfinished))?;
    file.write_all(content).map_err(SmallFileError::io("write", &unfinished))?;
    file.sync_all().map_err(SmallFileError::io("fsync", &unfinished))?;
    fs::rename(&unfinished, path).map_err(SmallFileError::io("rename to", path))?;
    sync_parent(path)
}

/// Makes the entry of `path` in its folder durable.
///
/// # Errors
/// When the folder cannot be opened or synced.
pub fn sync_parent(path: &Path) -> Result<(), SmallFileError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync_folder(parent).map_err(SmallFileError::io("fsync folder", parent))
}

/// Makes the names in a folder durable.
///
/// # Errors
/// When the folder cannot be opened or synced.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// [`replace`], with a frame by which [`read_checked`] notices damage.
///
/// # Errors
/// As [`replace`], and for content of 4 GiB or more.
pub fn write_checked(path: &Path, content: &[u8]) -> Result<(), SmallFileError> {
    let length = u32::try_from(content.len())
        .map_err(|_| SmallFileError::io("write", path)(io::ErrorKind::FileTooLarge.into()))?;
    let mut framed = Vec::with_capacity(FRAME_LENGTH + content.len());
    framed.extend(MARK);
    framed.extend(crc32c::crc32c(content).to_le_bytes());
    framed.extend(length.to_le_bytes());
    framed.extend(content);
    replace(path, &framed)
}

/// What [`write_checked`] wrote; `None` when there is no such file.
///
/// # Errors
/// When the file cannot be read or is damaged: no mark, truncated, too long, or another checksum.
pub fn read_checked(path: &Path) -> Result<Option<Vec<u8>>, SmallFileError> {
    let framed = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(SmallFileError::io("read", path))?,
    };
    unframe(&framed)
        .map(|content| Some(content.to_vec()))
        .map_err(|reason| SmallFileError::damaged(path, reason))
}

fn unframe(framed: &[u8]) -> Result<&[u8], String> {
    let Some((mark, rest)) = framed.split_first_chunk::<4>() else {
        return Err(format!("it has {} bytes", framed.len()));
    };
    if *mark != MARK {
        return Err("it does not begin with its mark".to_owned());
    }
    let Some((checksum, rest)) = rest.split_first_chunk::<4>() else {
        return Err(format!("it has {} bytes", framed.len()));
    };
    let Some((length, content)) = rest.split_first_chunk::<4>() else {
        return Err(format!("it has {} bytes", framed.len()));
    };
    let length = u32::from_le_bytes(*length) as usize;
    if content.len() != length {
        return Err(format!("it holds {} bytes of {length}", content.len()));
    }
    if crc32c::crc32c(content) != u32::from_le_bytes(*checksum) {
        return Err("its checksum does not match".to_owned());
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{SmallFileError, UNFINISHED, read_checked, replace, write_checked};

    #[test]
    fn a_replaced_file_has_the_new_content_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        replace(&path, b"a longer first content").expect("written");
        fs::write(folder.path().join(format!("file{UNFINISHED}")), b"left by a crash").expect("written");
        replace(&path, b"second").expect("replaced");
        assert_eq!(fs::read(&path).expect("readable"), b"second");
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1);
    }

    #[test]
    fn content_survives_a_round_trip() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        assert!(read_checked(&path).expect("readable").is_none());
        for content in [b"".as_slice(), b"x", &[0; 5000]] {
            write_checked(&path, content).expect("written");
            assert_eq!(read_checked(&path).expect("readable").as_deref(), Some(content));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        write_checked(&path, b"some content").expect("written");
        let good = fs::read(&path).expect("readable");
        let is_damaged = |bytes: &[u8]| {
            fs::write(&path, bytes).expect("written");
            matches!(read_checked(&path), Err(SmallFileError::Damaged { .. }))
        };
        for length in 0..good.len() {
            assert!(is_damaged(&good[..length]), "truncated to {length}");
        }
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(is_damaged(&bytes), "bit {bit}");
        }
        assert!(is_damaged(&[good.as_slice(), b"x"].concat()), "longer");
    }
}
