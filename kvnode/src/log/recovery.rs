//! Opening `raftlog`: what is a torn end, what is damage, and what happens then.
//!
//! The folder holds `db/` (RocksDB) and `SYNCED` (see [`crate::log::synced`]). RocksDB's default recovery silently
//! drops everything after a flipped bit, acknowledged entries included. So the database is opened strictly first:
//! that takes a log whose end is missing, and refuses any wrong checksum. But a power loss can leave garbage in the
//! end that was not synced, and that must not cost a replica. So when the strict opening is refused, it is found out
//! (without writing) how far the log reads before the first bad record: if that is at least as far as `SYNCED` says,
//! the rest is garbage, and the database is opened up to there. If not, synced records are lost: damage. The same
//! holds when a database opens without complaint and does not reach `SYNCED`: files are missing.
//!
//! A damaged folder is set aside as `<folder>.damaged-N`, and a new empty one is opened. The caller quarantines the
//! replicas, and then settles the damage; until then every opening reports it again.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use kv_proto::disk::v1::ReplicaDescriptor;
use rocksdb::DB;
use thiserror::Error;
use tracing::{error, warn};

use crate::{
    data_dir::database,
    log::{
        codec,
        keys::{self, Place},
        options::{self, LogMemory, Recovery},
        rocks::RocksDevice,
        synced::SyncedFile,
    },
};

const DATABASE: &str = "db";
const SIDE_FILE: &str = "SYNCED";
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
    /// The database: no space, no permission, in use by another process.
    #[error("raftlog: {path}: {source}")]
    Database {
        /// Its folder.
        path: PathBuf,
        /// What RocksDB said.
        source: rocksdb::Error,
    },
}

/// An opened log, and what was lost before.
pub struct Opened {
    /// The log; empty if it was found damaged just now.
    pub device: RocksDevice,
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
pub fn open(folder: &Path, memory: &LogMemory) -> Result<Opened, OpenError> {
    match open_folder(folder, memory)? {
        Found::Sound(device) => Ok(Opened { device, damages: unsettled(folder, memory)? }),
        Found::Damaged(reason) => replace(folder, memory, &reason),
    }
}

/// Sets a log aside that opened and turned out to be damaged, and opens a new one. The device must be closed.
///
/// # Errors
/// As [`open`].
pub fn replace(folder: &Path, memory: &LogMemory, reason: &str) -> Result<Opened, OpenError> {
    error!(reason, folder = %folder.display(), "the Raft log is damaged, setting it aside");
    set_aside(folder, reason)?;
    match open_folder(folder, memory)? {
        Found::Sound(device) => Ok(Opened { device, damages: unsettled(folder, memory)? }),
        Found::Damaged(reason) => {
            let source = io::Error::other(format!("a new database is damaged: {reason}"));
            Err(OpenError::File { path: folder.to_owned(), source })
        }
    }
}

enum Found {
    Sound(RocksDevice),
    Damaged(String),
}

fn open_folder(folder: &Path, memory: &LogMemory) -> Result<Found, OpenError> {
    let known = database::known_damage(folder, DATABASE);
    if let Some(reason) = known.map_err(|source| OpenError::File { path: folder.to_owned(), source })? {
        return Ok(Found::Damaged(reason));
    }
    let path = folder.join(SIDE_FILE);
    // RocksDB syncs what is in its folder, and nobody but we the name of that folder.
    let synced = make_durably(&folder.join(DATABASE)).and_then(|()| SyncedFile::open(&path));
    let synced = synced.map_err(|source| OpenError::File { path, source })?;
    let path = folder.join(DATABASE);
    let strict = DB::open(&options::raftlog(Recovery::Strict, memory), &path);
    let refused = match strict {
        Ok(opened) => return Ok(judge(opened, synced)),
        Err(refused) if database::is_damage(&refused) => refused,
        Err(source) => return Err(OpenError::Database { path, source }),
    };
    let lenient = options::raftlog(Recovery::PointInTime, memory);
    // Looked at without writing first: what is damaged is set aside as it was found.
    let readable = match DB::open_for_read_only(&lenient, &path, false) {
        Ok(opened) => opened.latest_sequence_number(),
        Err(error) if database::is_damage(&error) => return Ok(Found::Damaged(error.to_string())),
        Err(source) => return Err(OpenError::Database { path, source }),
    };
    if readable < synced.recorded() {
        return Ok(Found::Damaged(format!("{refused}; {}", falls_short(readable, &synced))));
    }
    warn!(reason = %refused, "the unsynced end of the Raft log is garbage, opening what is before it");
    let opened =
        DB::open(&lenient, &path).map_err(|source| OpenError::Database { path: path.clone(), source })?;
    Ok(judge(opened, synced))
}

fn judge(opened: DB, synced: SyncedFile) -> Found {
    let sequence = opened.latest_sequence_number();
    if sequence < synced.recorded() {
        return Found::Damaged(falls_short(sequence, &synced));
    }
    Found::Sound(RocksDevice::new(opened, synced))
}

fn falls_short(sequence: u64, synced: &SyncedFile) -> String {
    format!("readable up to sequence {sequence}, but {} was synced", synced.recorded())
}

/// Renames the folder, which is one step: it is either there or set aside, with everything in it.
fn set_aside(folder: &Path, reason: &str) -> Result<(), OpenError> {
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::File { path, source }
    };
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

fn unsettled(folder: &Path, memory: &LogMemory) -> Result<Vec<Damage>, OpenError> {
    let mut damages = Vec::new();
    for (_, aside) in set_aside_folders(folder)? {
        if aside.join(SETTLED_FILE).exists() {
            continue;
        }
        let reason = fs::read_to_string(aside.join(REASON_FILE)).unwrap_or_else(|error| error.to_string());
        let replicas = readable_descriptors(&aside.join(DATABASE), memory);
        damages.push(Damage { folder: aside, reason, replicas });
    }
    Ok(damages)
}

/// Best effort: what can no longer be read is not there.
fn readable_descriptors(path: &Path, memory: &LogMemory) -> Vec<ReplicaDescriptor> {
    let options = options::raftlog(Recovery::PointInTime, memory);
    let Ok(database) = DB::open_for_read_only(&options, path, false) else { return Vec::new() };
    let mut descriptors = Vec::new();
    let mut iterator = database.raw_iterator();
    iterator.seek_to_first();
    while let Some((key, value)) = iterator.item() {
        match keys::decode(key) {
            Ok((replica, Place::Descriptor)) => {
                descriptors.extend(codec::from_bytes::<ReplicaDescriptor>("ReplicaDescriptor", value));
                iterator.seek(keys::end(replica));
            }
            Ok((replica, _)) => iterator.seek(keys::end(replica)),
            Err(_) => iterator.next(),
        }
    }
    descriptors
}

fn numbered_prefix(folder: &Path) -> String {
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{name}.damaged-")
}

fn numbered(folder: &Path, number: u64) -> PathBuf {
    folder.with_file_name(format!("{}{number}", numbered_prefix(folder)))
}

/// Makes a folder and those above it, and all their names durable as far up as the data folder.
fn make_durably(database: &Path) -> io::Result<()> {
    fs::create_dir_all(database)?;
    database.ancestors().skip(1).take(2).try_for_each(sync_folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
