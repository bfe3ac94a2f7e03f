//! Space held back for the day on which the disk is full.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
};

use rustix::fs::FallocateFlags;

use super::DataDirError;
use crate::config::ByteCount;

/// A file whose blocks are reserved and never written. Not data: deleting it by hand harms nobody.
#[derive(Clone, Debug)]
pub struct Ballast {
    path: PathBuf,
}

impl Ballast {
    /// The ballast file with this path. Nothing is touched yet.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Reserves `size` bytes, unless the file has them; zero removes it. A file system that cannot reserve blocks
    /// goes without.
    ///
    /// # Errors
    /// When the file cannot be created, or the space is not there; then no file is left.
    pub fn ensure(&self, size: ByteCount) -> Result<(), DataDirError> {
        if size.get() == 0 {
            return self.release();
        }
        if fs::metadata(&self.path).is_ok_and(|file| file.len() == size.get()) {
            return Ok(());
        }
        let file = File::create(&self.path).map_err(DataDirError::io("create", &self.path))?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size.get()) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP) => self.release(),
            Err(error) => {
                self.release()?;
                Err(DataDirError::io("reserve space in", &self.path)(error.into()))
            }
        }
    }

    /// Gives the space back.
    ///
    /// # Errors
    /// When the file is there and cannot be removed.
    pub fn release(&self) -> Result<(), DataDirError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(DataDirError::io("remove", &self.path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::{Ballast, ByteCount};

    #[test]
    fn ballast_takes_blocks_and_gives_them_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ballast");
        let ballast = Ballast::at(path.clone());
        ballast.release().expect("nothing to release");
        ballast.ensure(ByteCount::mebi(1)).expect("reserved");
        // A file system without reservations leaves no file; where there is one, its blocks are real.
        if let Ok(file) = fs::metadata(&path) {
            assert_eq!((file.len(), file.blocks() * 512 >= file.len()), (ByteCount::MEBI, true));
        }
        ballast.ensure(ByteCount::mebi(1)).expect("still there");
        ballast.ensure(ByteCount(0)).expect("removed");
        assert!(!path.exists());
    }

    #[test]
    fn ballast_that_does_not_fit_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ballast");
        let more_than_any_disk = ByteCount(1 << 60);
        // An error, or a file system that cannot reserve: in neither case a file.
        let _refused = Ballast::at(path.clone()).ensure(more_than_any_disk);
        assert!(!path.exists());
    }
}
