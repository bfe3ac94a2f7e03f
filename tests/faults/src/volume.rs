//! A volume that is small or slow.
//!
//! [`Volume`] runs a process under a preloaded shim (`shim/volume.c`, which tells how it works) that makes its data
//! folder look like a volume of its own: of a size that can be changed at any time, where a write without room fails
//! with ENOSPC, and whose syncs can be made to take long.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// The library to preload, compiled by the build script.
const SHIM: &str = env!("KV_VOLUME_SHIM");

/// The volume of one data folder.
#[derive(Debug)]
pub struct Volume {
    root: PathBuf,
    control: PathBuf,
    capacity_bytes: u64,
    sync_delay: Duration,
}

impl Volume {
    /// A volume of this size over `root`, which is created when absent. `control` is a file of its own, elsewhere.
    ///
    /// # Errors
    /// When the folder or the file cannot be made.
    pub fn new(root: &Path, control: &Path, capacity_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        let volume = Self {
            root: root.canonicalize()?,
            control: control.to_owned(),
            capacity_bytes,
            sync_delay: Duration::ZERO,
        };
        volume.write()?;
        Ok(volume)
    }

    /// Makes `command` run on the volume.
    pub fn arm(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", SHIM)
            .env("KV_VOLUME_ROOT", &self.root)
            .env("KV_VOLUME_CONTROL", &self.control);
    }

    /// Changes the size, at once.
    ///
    /// # Errors
    /// When the control file cannot be written.
    pub fn resize(&mut self, capacity_bytes: u64) -> io::Result<()> {
        self.capacity_bytes = capacity_bytes;
        self.write()
    }

    /// Changes the size so that so many bytes are free.
    ///
    /// # Errors
    /// When the folder cannot be read, or the control file cannot be written.
    pub fn leave_free(&mut self, free_bytes: u64) -> io::Result<()> {
        self.resize(occupied(&self.root)? + free_bytes)
    }

    /// Makes each sync take so much longer.
    ///
    /// # Errors
    /// When the control file cannot be written.
    pub fn delay_syncs(&mut self, delay: Duration) -> io::Result<()> {
        self.sync_delay = delay;
        self.write()
    }

    /// Replaces the control file: it is read at any time.
    fn write(&self) -> io::Result<()> {
        let fresh = self.control.with_extension("new");
        fs::write(&fresh, format!("{} {}\n", self.capacity_bytes, self.sync_delay.as_millis()))?;
        fs::rename(&fresh, &self.control)
    }
}

/// Bytes that the files below a folder occupy. Files may come and go meanwhile.
fn occupied(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(status) = fs::symlink_metadata(entry.path()) else { continue };
        bytes += status.blocks() * 512;
        if status.is_dir() {
            bytes += occupied(&entry.path()).unwrap_or(0);
        }
    }
    Ok(bytes)
}
