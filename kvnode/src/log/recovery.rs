//! Opening `raftlog`: the folder as a whole, and what happens when it is damaged.
//!
//! The folder holds `segments/` (see [`crate::log::segments`]), `SYNCED` (see [`crate::log::synced`]), and `SEED`: eight random bytes
//! without which nothing is a frame of this log. A power loss can leave
//! garbage in the end that was not synced, and that must not cost a replica; damage to what was synced must not pass for such an
//! end. [`load`](mod@crate::log::segments::load) tells them apart.
//!
//! A damaged folder is set aside as `<folder>.damaged-N`, and a new empty one is opened. The caller quarantines the
//! replicas, and then settles the damage; until then every opening reports it again.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use kv_proto::disk::v1::ReplicaDescriptor;
use thiserror::Error;
use tracing::error;

use crate::{
    data_dir::small_file::{self, SmallFileError, sync_folder},
    log::{
        codec,
        keys::{self, Place},
        segments::{
            Seed, SegmentDevice, Sizes,
            load::{self, LoadError},
        },
        synced::SyncedFile,
    },
    runtime::open_files::OpenFiles,
};

const SEGMENTS: &str = "segments";
const SIDE_FILE: &str = "SYNCED";
const SEED_FILE: &str = "SEED";
/// In a folder that was set aside: why.
const REASON_FILE: &str = "DAMAGE";
/// In a folder that was set aside: its replicas are quarantined, nobody need hear of it again.
const SETTLED_FILE: &str = "SETTLED";

/// Why `raftlog` cannot be opened. None of these is damage.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A file or folder.
    #[error("raftlog: {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A later release wrote it.
    #[error("raftlog: segment {segment} has format {version}, which this release does not know")]
    Version {
        /// Which segment.
        segment: u32,
        /// Its format.
        version: u8,
    },
}

/// An opened log, and what was lost before.
pub struct Opened {
    /// The log; empty if it was found damaged just now.
    pub device: SegmentDevice,
    /// Folders that are set aside and not settled: of this opening, or of earlier ones that did not get to it.
    pub damages: Vec<Damage>,
}

/// A log that was found damaged and set aside.
#[derive(Debug)]
pub struct Damage {
    /// Where it is now.
    pub folder: PathBuf,
    /// What is wrong with it.
    pub reason: String,
    /// The replicas that it was the log of, as far as they can be read; those of the state store are more surely
    /// all of them.
    pub replicas: Vec<ReplicaDescriptor>,
}

impl Damage {
    /// Notes that the replicas are quarantined durably, so that this damage is not reported again.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn settle(self) -> Result<(), OpenError> {
        let path = self.folder.join(SETTLED_FILE);
        let write = || File::create(&path)?.sync_all().and_then(|()| sync_folder(&self.folder));
        write().map_err(|source| OpenError::File { path: path.clone(), source })
    }
}

/// Opens the log in `folder`, creating it if it is not there.
///
/// # Errors
/// When it cannot be opened for a reason that is not damage. Damage is part of the result.
pub fn open(folder: &Path) -> Result<Opened, OpenError> {
    match open_folder(folder)? {
        Found::Sound(device) => Ok(Opened { device: *device, damages: unsettled(folder)? }),
        Found::Damaged(reason) => replace(folder, &reason),
    }
}

/// Sets a log aside that opened and turned out to be damaged, and opens a new one. The device must be closed.
///
/// # Errors
/// As [`open`].
pub fn replace(folder: &Path, reason: &str) -> Result<Opened, OpenError> {
    error!(reason, folder = %folder.display(), "the Raft log is damaged, setting it aside");
    set_aside(folder, reason)?;
    match open_folder(folder)? {
        Found::Sound(device) => Ok(Opened { device: *device, damages: unsettled(folder)? }),
        Found::Damaged(reason) => {
            let source = io::Error::other(format!("a new log is damaged: {reason}"));
            Err(OpenError::File { path: folder.to_owned(), source })
        }
    }
}

enum Found {
    Sound(Box<SegmentDevice>),
    Damaged(String),
}

/// What the system said of this file or folder.
fn file(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::File { path, source }
}

fn open_folder(folder: &Path) -> Result<Found, OpenError> {
    let (segments, side_file) = (folder.join(SEGMENTS), folder.join(SIDE_FILE));
    make_durably(&segments).map_err(file(&segments))?;
    let synced = SyncedFile::open(&side_file).map_err(file(&side_file))?;
    let seed = match seed(&folder.join(SEED_FILE), synced.recorded() == 0) {
        Ok(seed) => seed,
        Err(SmallFileError::Io { path, source, .. }) => return Err(OpenError::File { path, source }),
        Err(damaged) => return Ok(Found::Damaged(damaged.to_string())),
    };
    match load::load(&segments, seed, synced.recorded()) {
        Ok(loaded) => {
            let open_max = OpenFiles::of_this_process().log_segments;
            let device = SegmentDevice::open(&segments, loaded, seed, synced, Sizes::default(), open_max);
            device.map(|device| Found::Sound(Box::new(device))).map_err(file(&segments))
        }
        Err(LoadError::Damaged(reason)) => Ok(Found::Damaged(reason)),
        Err(LoadError::Io(source)) => Err(OpenError::File { path: segments, source }),
        Err(LoadError::Version { segment, version }) => Err(OpenError::Version { segment, version }),
    }
}

/// The seed of the log; made when there is none, which is right only for a new log.
fn seed(path: &Path, is_new: bool) -> Result<Seed, SmallFileError> {
    let damaged = |reason: &str| SmallFileError::Damaged { path: path.to_owned(), reason: reason.to_owned() };
    match small_file::read_checked(path)? {
        Some(bytes) => {
            let bytes = bytes.try_into().map_err(|_| damaged("it has not eight bytes"))?;
            Ok(Seed(u64::from_le_bytes(bytes)))
        }
        None if is_new => {
            let seed: u64 = rand::random();
            small_file::write_checked(path, &seed.to_le_bytes())?;
            Ok(Seed(seed))
        }
        None => Err(damaged("it is missing")),
    }
}

/// Renames the folder, which is one step: it is either there or set aside, with everything in it.
fn set_aside(folder: &Path, reason: &str) -> Result<(), OpenError> {
    fs::write(folder.join(REASON_FILE), reason).map_err(file(folder))?;
    let taken = set_aside_folders(folder)?.last().map_or(0, |(number, _)| *number);
    let aside = numbered(folder, taken + 1);
    fs::rename(folder, &aside).map_err(file(&aside))?;
    let parent = folder.parent().unwrap_or(folder);
    sync_folder(parent).map_err(file(parent))
}

/// Folders that were set aside, by number.
fn set_aside_folders(folder: &Path) -> Result<Vec<(u64, PathBuf)>, OpenError> {
    let parent = folder.parent().unwrap_or(folder);
    let prefix = numbered_prefix(folder);
    let list = || -> io::Result<Vec<(u64, PathBuf)>> {
        let mut found = Vec::new();
        for item in fs::read_dir(parent)? {
            let item = item?;
            let number = item.file_name().to_str().and_then(|name| name.strip_prefix(&prefix)?.parse().ok());
            found.extend(number.map(|number| (number, item.path())));
        }
        found.sort();
        Ok(found)
    };
    list().map_err(|source| OpenError::File { path: parent.to_owned(), source })
}

fn unsettled(folder: &Path) -> Result<Vec<Damage>, OpenError> {
    let mut damages = Vec::new();
    for (_, aside) in set_aside_folders(folder)? {
        if aside.join(SETTLED_FILE).exists() {
            continue;
        }
        let reason = fs::read_to_string(aside.join(REASON_FILE)).unwrap_or_else(|error| error.to_string());
        let replicas = readable_descriptors(&aside);
        damages.push(Damage { folder: aside, reason, replicas });
    }
    Ok(damages)
}

/// Best effort: what can no longer be read is not there.
fn readable_descriptors(folder: &Path) -> Vec<ReplicaDescriptor> {
    let Ok(seed) = seed(&folder.join(SEED_FILE), false) else { return Vec::new() };
    let mut descriptors = BTreeMap::new();
    load::salvage(&folder.join(SEGMENTS), seed, &mut |key, value| {
        if let Ok((replica, Place::Descriptor)) = keys::decode(key)
            && let Ok(descriptor) = codec::from_bytes::<ReplicaDescriptor>("ReplicaDescriptor", value)
        {
            descriptors.insert(replica, descriptor);
        }
    });
    descriptors.into_values().collect()
}

fn numbered_prefix(folder: &Path) -> String {
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{name}.damaged-")
}

fn numbered(folder: &Path, number: u64) -> PathBuf {
    folder.with_file_name(format!("{}{number}", numbered_prefix(folder)))
}

/// Makes a folder and those above it, and all their names durable as far up as the data folder.
fn make_durably(segments: &Path) -> io::Result<()> {
    fs::create_dir_all(segments)?;
    segments.ancestors().skip(1).take(2).try_for_each(sync_folder)
}
