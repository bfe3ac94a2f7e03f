//! Power loss with unsynced writes really lost.
//!
//! SIGKILL alone proves little: what a process wrote stays in the page cache. [`PowerLoss`] runs a process under a
//! preloaded shim (`shim/powerloss.c`, which tells how it works) that keeps a shadow of the data folder with only
//! what was synced: bytes as of each file's last sync, names as of each directory's last sync. After the process
//! was killed, [`PowerLoss::lose_unsynced`] puts the shadow in the folder's place.
//!
//! A real disk may keep more than it promised. [`Tail`] says how much of the bytes that were appended and not synced
//! survive, and whether as garbage. Names never survive unsynced here, and unsynced overwrites within the synced
//! length are always lost.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File, Metadata},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::UNIX_EPOCH,
};

use rand::{RngExt, rngs::SmallRng};

/// The library to preload, compiled by the build script.
const SHIM: &str = env!("KV_POWERLOSS_SHIM");

/// What survives of bytes that were appended to a file and not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Nothing.
    Lost,
    /// A random prefix, of each file for itself.
    Prefix,
    /// A random prefix, then garbage (random bytes or zeros), in files whose name ends so; other files lose all.
    Garbage {
        /// The end of the name, such as `.log`; empty for all files.
        suffix: &'static str,
    },
}

/// What a power loss took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CutReport {
    /// Files that were there before and are not there now.
    pub lost_files: usize,
    /// Appended bytes that are gone, in files that are still there.
    pub lost_bytes: u64,
    /// Appended bytes that survived though they were not synced.
    pub kept_bytes: u64,
    /// Bytes of garbage in their place.
    pub garbage_bytes: u64,
}

/// A power loss could not be played.
#[derive(Debug, thiserror::Error)]
pub enum PowerError {
    /// A file or folder of the data or of the shadow.
    #[error("power loss: {} {}", .doing, .path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An inode with no birth time, or a kind of file that the shadow has no place for.
    #[error("power loss: {} cannot be shadowed: {}", .path.display(), .why)]
    Unsupported {
        /// Which one.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

type Result<T> = std::result::Result<T, PowerError>;

/// A data folder whose power can be lost.
#[derive(Debug)]
pub struct PowerLoss {
    root: PathBuf,
    shadow: PathBuf,
}

impl PowerLoss {
    /// Prepares `root`, which is created when absent; what it holds counts as synced. `shadow` is a folder of our
    /// own on the same volume, emptied here.
    ///
    /// # Errors
    /// When a folder cannot be made or read.
    pub fn new(root: &Path, shadow: &Path) -> Result<Self> {
        fs::create_dir_all(root).map_err(failed("creating", root))?;
        fs::create_dir_all(shadow).map_err(failed("creating", shadow))?;
        let root = root.canonicalize().map_err(failed("resolving", root))?;
        let shadow = shadow.canonicalize().map_err(failed("resolving", shadow))?;
        let power = Self { root, shadow };
        power.import()?;
        Ok(power)
    }

    /// Makes `command` run under the shim.
    pub fn arm(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", SHIM)
            .env("KV_POWERLOSS_ROOT", &self.root)
            .env("KV_POWERLOSS_SHADOW", &self.shadow);
    }

    /// Whether the process with this id loaded the shim: a statically linked one never does.
    pub fn was_attached(&self, process_id: u32) -> bool {
        self.shadow.join(format!("attached.{process_id}")).exists()
    }

    /// SIGKILL, then [`lose_unsynced`](Self::lose_unsynced).
    ///
    /// # Errors
    /// When the process cannot be killed, did not run under the shim, or the folder cannot be replaced.
    pub fn cut(&mut self, child: &mut Child, tail: Tail, random: &mut SmallRng) -> Result<CutReport> {
        child.kill().map_err(failed("killing the process over", &self.root))?;
        child.wait().map_err(failed("waiting for the process over", &self.root))?;
        if !self.was_attached(child.id()) {
            let why = "the process did not load the shim".to_owned();
            return Err(PowerError::Unsupported { path: self.root.clone(), why });
        }
        self.lose_unsynced(tail, random)
    }

    /// Replaces the folder by what was synced. No process may run in it.
    ///
    /// # Errors
    /// When a file cannot be read or written; the folder is then of no use.
    pub fn lose_unsynced(&mut self, tail: Tail, random: &mut SmallRng) -> Result<CutReport> {
        let image = self.shadow.join("image");
        let live = live_files(&self.root)?;
        let mut restore = Restore {
            live: &live,
            ids: shadow_ids(&self.shadow.join("files"))?,
            tail,
            random,
            report: CutReport::default(),
            files: 0,
        };
        restore.folder(&self.shadow.join("dirs").join(inode_id(&self.root)?), &image)?;
        let mut report = restore.report;
        report.lost_files = live.len().saturating_sub(restore.files);

        empty(&self.root)?;
        for entry in entries(&image)? {
            let target = self.root.join(entry.file_name().unwrap_or_default());
            fs::rename(&entry, &target).map_err(failed("putting back", &target))?;
        }
        self.import()?;
        Ok(report)
    }

    /// Makes the shadow say that everything below the root is synced.
    fn import(&self) -> Result<()> {
        empty(&self.shadow)?;
        for folder in ["files", "dirs", "tmp"] {
            let folder = self.shadow.join(folder);
            fs::create_dir(&folder).map_err(failed("creating", &folder))?;
        }
        self.import_folder(&self.root)
    }

    fn import_folder(&self, live: &Path) -> Result<()> {
        let shadow = self.shadow.join("dirs").join(inode_id(live)?);
        fs::create_dir(&shadow).map_err(failed("creating", &shadow))?;
        for entry in entries(live)? {
            let name = shadow.join(entry.file_name().unwrap_or_default());
            let id = inode_id(&entry)?;
            if metadata(&entry)?.is_dir() {
                self.import_folder(&entry)?;
                std::os::unix::fs::symlink(Path::new("..").join(id), &name)
                    .map_err(failed("linking", &name))?;
            } else {
                let file = self.shadow.join("files").join(id);
                if !file.exists() {
                    fs::copy(&entry, &file).map_err(failed("copying", &entry))?;
                }
                fs::hard_link(&file, &name).map_err(failed("linking", &name))?;
            }
        }
        Ok(())
    }
}

/// The making of a folder from a shadow.
struct Restore<'r> {
    /// Path of each live file, by id.
    live: &'r BTreeMap<String, PathBuf>,
    /// Id of each synced file, by the number of its inode in the shadow.
    ids: BTreeMap<u64, String>,
    tail: Tail,
    random: &'r mut SmallRng,
    report: CutReport,
    /// Files restored that are still live.
    files: usize,
}

impl Restore<'_> {
    fn folder(&mut self, synced: &Path, into: &Path) -> Result<()> {
        fs::create_dir(into).map_err(failed("creating", into))?;
        // A folder whose name is durable and that was never synced itself is empty.
        if !synced.exists() {
            return Ok(());
        }
        for entry in entries(synced)? {
            let target = into.join(entry.file_name().unwrap_or_default());
            if metadata(&entry)?.is_symlink() {
                let link = fs::read_link(&entry).map_err(failed("reading", &entry))?;
                let folder = synced.with_file_name(link.file_name().unwrap_or_default());
                self.folder(&folder, &target)?;
            } else {
                self.file(&entry, &target)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, synced: &Path, into: &Path) -> Result<()> {
        fs::copy(synced, into).map_err(failed("restoring", into))?;
        let status = metadata(synced)?;
        let Some(live) = self.ids.get(&status.ino()).and_then(|id| self.live.get(id)) else { return Ok(()) };
        self.files += 1;
        let unsynced = metadata(live)?.len().saturating_sub(status.len());
        let (kept, garbage) = self.survives(into.file_name().unwrap_or_default(), unsynced);
        self.report.kept_bytes += kept;
        self.report.garbage_bytes += garbage;
        self.report.lost_bytes += unsynced - kept;
        let mut tail = read_range(live, status.len(), kept)?;
        let zeros = self.random.random::<bool>();
        tail.extend((0..garbage).map(|_| if zeros { 0 } else { self.random.random::<u8>() }));
        let mut file = File::options().append(true).open(into).map_err(failed("opening", into))?;
        file.write_all(&tail).map_err(failed("writing", into))
    }

    /// How many of `unsynced` appended bytes survive, and how many bytes of garbage follow.
    fn survives(&mut self, name: &OsStr, unsynced: u64) -> (u64, u64) {
        let length = self.random.random_range(0..=unsynced);
        let good = self.random.random_range(0..=length);
        match self.tail {
            Tail::Lost => (0, 0),
            Tail::Prefix => (length, 0),
            Tail::Garbage { suffix } if name.to_string_lossy().ends_with(suffix) => (good, length - good),
            Tail::Garbage { .. } => (0, 0),
        }
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PowerError {
    let path = path.to_owned();
    move |source| PowerError::File { doing, path, source }
}

/// Of the entry itself, not of what a link points at.
fn metadata(path: &Path) -> Result<Metadata> {
    fs::symlink_metadata(path).map_err(failed("looking at", path))
}

/// The id of an inode in the shadow: number and birth time, as the shim writes it.
fn inode_id(path: &Path) -> Result<String> {
    let status = metadata(path)?;
    if !status.is_dir() && !status.is_file() {
        let why = "it is neither a file nor a folder".to_owned();
        return Err(PowerError::Unsupported { path: path.to_owned(), why });
    }
    let born = status.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
    let Some(born) = born else {
        let why = "the file system tells no birth times".to_owned();
        return Err(PowerError::Unsupported { path: path.to_owned(), why });
    };
    Ok(format!("{}-{}", status.ino(), born.as_nanos()))
}

/// Paths in a folder, in order of names.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut paths: Vec<PathBuf> =
        read.map_err(failed("listing", folder))?.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

fn empty(folder: &Path) -> Result<()> {
    for entry in entries(folder)? {
        let removed =
            if metadata(&entry)?.is_dir() { fs::remove_dir_all(&entry) } else { fs::remove_file(&entry) };
        removed.map_err(failed("removing", &entry))?;
    }
    Ok(())
}

/// All files below `folder`, by id.
fn live_files(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    for entry in entries(folder)? {
        if metadata(&entry)?.is_dir() {
            files.append(&mut live_files(&entry)?);
        } else {
            files.insert(inode_id(&entry)?, entry);
        }
    }
    Ok(files)
}

fn shadow_ids(files: &Path) -> Result<BTreeMap<u64, String>> {
    entries(files)?
        .into_iter()
        .map(|path| {
            Ok((metadata(&path)?.ino(), path.file_name().unwrap_or_default().to_string_lossy().into_owned()))
        })
        .collect()
}

fn read_range(path: &Path, offset: u64, length: u64) -> Result<Vec<u8>> {
    let read = || {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(length).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(failed("reading", path))
}
