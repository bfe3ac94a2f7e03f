//! The data folder of a node: who it belongs to, and that only one process uses it.
//!
//! [`DataDir::open`] is the first thing that a starting node does on disk: it creates the folder, takes the lock,
//! finishes a setting aside that a crash cut short, then reads `IDENTITY` or writes it with a fresh disk UUID, and
//! counts the start. What it returns keeps the lock until it is dropped.
//!
//! ```text
//! LOCK         held while a process uses the folder; says which
//! IDENTITY     format stamp, disk UUID, node name, boot counter, cluster and node id
//! CLUSTER      the last registry and map, and which replicas live here: what a lost database does not take along
//! raftlog/     Raft logs of all replicas       state/      their data
//! snapshots/   staging of received snapshots   ballast     space that is freed when the disk is full
//! SET_ASIDE    an order to move all that into set-aside-N/ at the next start
//! ```
//!
//! Small files are replaced durably by [`small_file::replace`] and carry a checksum; nothing here knows what the
//! databases hold. A folder that it does not understand is refused and left as it is.

mod ballast;
pub mod database;
mod identity;
mod lock;
mod set_aside;
pub mod small_file;
mod space;

#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use kv_proto::disk::v1::Founding;
use rand::Rng;
use thiserror::Error;

pub use self::{
    ballast::Ballast,
    identity::Identity,
    set_aside::Scope,
    space::{Level, Space, SpaceLimits, SpaceWatch, space_of, watch_space},
};
use self::{lock::Lock, small_file::SmallFileError};
use crate::config::NodeName;

const LOCK: &str = "LOCK";
const IDENTITY: &str = "IDENTITY";
const RAFTLOG: &str = "raftlog";
const STATE: &str = "state";
const CLUSTER: &str = "CLUSTER";
const SNAPSHOTS: &str = "snapshots";
/// The name of the ballast file.
pub(crate) const BALLAST: &str = "ballast";
/// What `mkfs.ext4` puts into a new volume.
const LOST_AND_FOUND: &str = "lost+found";

/// Why a data folder cannot be used. Nothing in it was changed, but for the file `LOCK`.
#[derive(Debug, Error)]
pub enum DataDirError {
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
    /// Another process has the folder.
    #[error("data folder {} is in use by {holder}; two nodes never share one", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
        /// What the holder wrote into the lock file.
        holder: String,
    },
    /// Written by another version of kvnode.
    #[error(
        "data folder {} has format {found}, and this version knows format {} only; use the version that wrote it",
        path.display(),
        identity::FORMAT
    )]
    OtherFormat {
        /// The folder.
        path: PathBuf,
        /// Its format stamp.
        found: u32,
    },
    /// Of a node with another name.
    #[error(
        "data folder {} belongs to node {found}, not to {wanted}; give --node-name {found} or another --data-dir",
        path.display()
    )]
    AnotherNode {
        /// The folder.
        path: PathBuf,
        /// Its node.
        found: String,
        /// The configured node.
        wanted: NodeName,
    },
    /// Of another cluster than the one that the node was told to join.
    #[error(
        "data folder {} belongs to cluster {found}, not to {wanted}; give another --data-dir, or set this one aside",
        path.display()
    )]
    AnotherCluster {
        /// The folder.
        path: PathBuf,
        /// Its cluster.
        found: String,
        /// The cluster met.
        wanted: String,
    },
    /// The cluster knows this disk under another node id than the folder does.
    #[error("data folder {} belongs to node id {found}, and the cluster calls it {wanted}", path.display())]
    AnotherNodeId {
        /// The folder.
        path: PathBuf,
        /// Its node id.
        found: u64,
        /// What the cluster said.
        wanted: u64,
    },
    /// A small file is damaged.
    #[error("{} is damaged: {reason}; restore the folder, or start with an empty one and let the cluster rebuild it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Data without the file that says whose they are.
    #[error(
        "data folder {} holds {entry} but no IDENTITY, so it is not known whose data it is; restore IDENTITY, or give an empty folder",
        path.display()
    )]
    NoIdentity {
        /// The folder.
        path: PathBuf,
        /// What was found.
        entry: String,
    },
    /// Something else lives there.
    #[error("{} is no data folder of kvnode: it holds {entry}; give an empty or a new one", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// What was found.
        entry: String,
    },
}

impl DataDirError {
    fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }

    fn small_file(error: SmallFileError) -> Self {
        match error {
            SmallFileError::Io { operation, path, source } => Self::Io { operation, path, source },
            SmallFileError::Damaged { path, reason } => Self::Damaged { path, reason },
        }
    }
}

/// An open data folder. Dropping it gives the lock back.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    identity: Identity,
    _lock: Lock,
}

impl DataDir {
    /// Opens the folder for the node called `name`, creates it when absent, and counts the start durably. `rng`
    /// gives the disk UUID of a new folder.
    ///
    /// # Errors
    /// When the folder is in use, of another node, of another format, damaged or not a data folder.
    pub fn open(path: &Path, name: &NodeName, rng: &mut impl Rng) -> Result<Self, DataDirError> {
        create_durably(path)?;
        let path = fs::canonicalize(path).map_err(DataDirError::io("resolve", path))?;
        let lock = Lock::take(&path, name)?;
        set_aside::finish(&path)?;
        let mut identity = match Identity::read(&path)? {
            Some(identity) => identity,
            None => {
                refuse_unknown_content(&path)?;
                Identity::new(name, rng)
            }
        };
        identity.check_name(&path, name)?;
        identity.boot_counter += 1;
        identity.write(&path)?;
        make_folders(&path)?;
        Ok(Self { path, identity, _lock: lock })
    }

    /// Whose folder this is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Notes durably that this node belongs to a cluster. Repeating it changes nothing.
    ///
    /// # Errors
    /// When the folder belongs to another cluster or node id already, or cannot be written.
    pub fn belong_to(&mut self, cluster_id: &str, node_id: u64) -> Result<(), DataDirError> {
        match &self.identity.membership {
            Some(own) if own.cluster_id != cluster_id => Err(DataDirError::AnotherCluster {
                path: self.path.clone(),
                found: own.cluster_id.clone(),
                wanted: cluster_id.to_owned(),
            }),
            Some(own) if own.node_id != node_id => Err(DataDirError::AnotherNodeId {
                path: self.path.clone(),
                found: own.node_id,
                wanted: node_id,
            }),
            Some(_) => Ok(()),
            None => {
                let membership = identity::Membership { cluster_id: cluster_id.to_owned(), node_id };
                self.change(Identity { membership: Some(membership), ..self.identity.clone() })
            }
        }
    }

    /// Notes durably that a cluster is being founded here, before the first step of it is taken. `None`: its first
    /// record is committed, or it is given up.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note_founding(&mut self, founding: Option<Founding>) -> Result<(), DataDirError> {
        self.change(Identity { founding, ..self.identity.clone() })
    }

    /// Notes durably that the cluster goes on without this folder: no replica in it may ever start again.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn fence(&mut self, reason: &str) -> Result<(), DataDirError> {
        self.change(Identity { fenced: Some(reason.to_owned()), ..self.identity.clone() })
    }

    fn change(&mut self, identity: Identity) -> Result<(), DataDirError> {
        identity.write(&self.path)?;
        self.identity = identity;
        Ok(())
    }

    /// Moves what `scope` names into a folder set-aside-N at once, and leaves empty folders behind. Only before
    /// anything in it was opened. A move that is cut short is finished by the next start.
    ///
    /// # Errors
    /// When something cannot be moved.
    pub fn set_aside_now(&self, scope: Scope, reason: &str) -> Result<(), DataDirError> {
        set_aside::order(&self.path, scope, reason)?;
        set_aside::finish(&self.path)?;
        make_folders(&self.path)
    }

    /// Orders durably that the next start moves what `scope` names into a folder set-aside-N, and begins anew.
    /// Now it would pull files away from under open databases: stop the node after it.
    ///
    /// # Errors
    /// When the order cannot be written.
    pub fn set_aside_at_next_start(&self, scope: Scope, reason: &str) -> Result<(), DataDirError> {
        set_aside::order(&self.path, scope, reason)
    }

    /// The folder itself, with links resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file of what the node knows of its cluster.
    pub fn cluster(&self) -> PathBuf {
        self.path.join(CLUSTER)
    }

    /// The folder of the Raft log database.
    pub fn raftlog(&self) -> PathBuf {
        self.path.join(RAFTLOG)
    }

    /// The folder of the state database.
    pub fn state(&self) -> PathBuf {
        self.path.join(STATE)
    }

    /// The folder in which received snapshots are staged. On the volume of the state, so that files are moved.
    pub fn snapshots(&self) -> PathBuf {
        self.path.join(SNAPSHOTS)
    }

    /// The file that is given up when the disk is full.
    pub fn ballast(&self) -> PathBuf {
        self.path.join(BALLAST)
    }
}

fn make_folders(path: &Path) -> Result<(), DataDirError> {
    [RAFTLOG, STATE, SNAPSHOTS].iter().try_for_each(|folder| create_durably(&path.join(folder)))
}

/// Creates a folder and those above it, each durable in the one that holds it.
fn create_durably(path: &Path) -> Result<(), DataDirError> {
    let mut missing = Vec::new();
    let mut next = Some(path);
    while let Some(folder) = next
        && !folder.as_os_str().is_empty()
        && !folder.exists()
    {
        missing.push(folder);
        next = folder.parent();
    }
    for folder in missing.into_iter().rev() {
        match fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(DataDirError::io("create folder", folder)(error));
            }
            Ok(()) | Err(_) => small_file::sync_parent(folder).map_err(DataDirError::small_file)?,
        }
    }
    Ok(())
}

/// Whether a node has been started in this folder before.
pub fn has_identity(path: &Path) -> bool {
    path.join(IDENTITY).exists()
}

/// A folder without `IDENTITY` must hold nothing that a first start did not leave behind when it was cut short.
fn refuse_unknown_content(path: &Path) -> Result<(), DataDirError> {
    let mut entries: Vec<String> = fs::read_dir(path)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(DataDirError::io("list", path))?
        .into_iter()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    entries.sort();
    for entry in entries {
        match entry.as_str() {
            LOCK | LOST_AND_FOUND | BALLAST => {}
            _ if entry.starts_with(set_aside::FOLDER_PREFIX) || entry.ends_with(small_file::UNFINISHED) => {}
            CLUSTER | RAFTLOG | STATE | SNAPSHOTS => {
                return Err(DataDirError::NoIdentity { path: path.to_owned(), entry });
            }
            _ => return Err(DataDirError::Foreign { path: path.to_owned(), entry }),
        }
    }
    Ok(())
}
