//! Data that must not be used again, and may still be wanted by a person, is moved into a folder beside it.
//!
//! The order is a durable file; the next start carries it out before it looks at anything else, again and again
//! until it is done, whatever crash comes in between. Renaming the order itself into the folder is the last step.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{CLUSTER, DataDirError, IDENTITY, RAFTLOG, SNAPSHOTS, STATE, small_file};

pub const FOLDER_PREFIX: &str = "set-aside-";
const ORDER: &str = "SET_ASIDE";
/// First line of the order, then the folder's name, then what is moved; the rest is the reason.
const REASON_FILE: &str = "REASON";

/// What is set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything, the identity included: the node comes back as a new one with a new disk UUID.
    Everything,
    /// The databases: the node keeps its identity, and its replicas are lost.
    Databases,
    /// The state database: what of it is still in the Raft logs comes back from there.
    State,
}

impl Scope {
    const ALL: [Self; 3] = [Self::Everything, Self::Databases, Self::State];

    fn word(self) -> &'static str {
        match self {
            Self::Everything => "everything",
            Self::Databases => "databases",
            Self::State => "state",
        }
    }

    /// Whether it names this entry of the data folder.
    fn names(self, entry: &str) -> bool {
        // A damaged log or file was renamed beside its place.
        let of =
            |name: &str| entry == name || entry.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
        match self {
            Self::Everything => [IDENTITY, CLUSTER, RAFTLOG, STATE, SNAPSHOTS].into_iter().any(of),
            Self::Databases => [RAFTLOG, STATE, SNAPSHOTS].into_iter().any(of),
            Self::State => of(STATE),
        }
    }
}

/// Writes the order. One that is there already is carried out as it is.
pub fn order(folder: &Path, scope: Scope, reason: &str) -> Result<(), DataDirError> {
    let path = folder.join(ORDER);
    if path.exists() {
        return Ok(());
    }
    let target = free_name(folder);
    let content = format!("{target}\n{}\n{reason}\n", scope.word());
    small_file::write_checked(&path, content.as_bytes()).map_err(DataDirError::small_file)
}

/// Carries out an order, if there is one.
pub fn finish(folder: &Path) -> Result<(), DataDirError> {
    let path = folder.join(ORDER);
    let Some(content) = small_file::read_checked(&path).map_err(DataDirError::small_file)? else {
        return Ok(());
    };
    let (target, scope) = parse(&content)
        .ok_or_else(|| DataDirError::Damaged { path: path.clone(), reason: "it is no order".to_owned() })?;
    let target = folder.join(target);
    super::create_durably(&target)?;
    for entry in fs::read_dir(folder).map_err(DataDirError::io("list", folder))? {
        let name = entry.map_err(DataDirError::io("list", folder))?.file_name();
        if name.to_str().is_some_and(|name| scope.names(name)) {
            move_if_present(&folder.join(&name), &target.join(&name))?;
        }
    }
    // What moved must be durable in both folders before the order is gone.
    small_file::sync_parent(&target.join(ORDER)).map_err(DataDirError::small_file)?;
    small_file::sync_parent(&path).map_err(DataDirError::small_file)?;
    move_if_present(&path, &target.join(REASON_FILE))?;
    small_file::sync_parent(&path).map_err(DataDirError::small_file)
}

fn parse(content: &[u8]) -> Option<(&str, Scope)> {
    let mut lines = std::str::from_utf8(content).ok()?.lines();
    let target = lines.next()?;
    let word = lines.next()?;
    let number = target.strip_prefix(FOLDER_PREFIX)?;
    let is_ours = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let scope = Scope::ALL.into_iter().find(|scope| scope.word() == word)?;
    is_ours.then_some((target, scope))
}

fn free_name(folder: &Path) -> String {
    let mut number = 1_u64;
    loop {
        let name = format!("{FOLDER_PREFIX}{number}");
        if !folder.join(&name).exists() {
            return name;
        }
        number += 1;
    }
}

fn move_if_present(from: &Path, to: &PathBuf) -> Result<(), DataDirError> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(DataDirError::io("move away", from)),
    }
}
