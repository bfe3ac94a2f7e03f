//! What commands that write have in common: preconditions, and how a reply is told.

use clap::Args;
use kv_client::{KeyValue, Precondition, WriteOptions};

use crate::text;

/// What must hold for the write to happen.
#[derive(Clone, Copy, Debug, Default, Args)]
#[group(multiple = false)]
pub struct Conditions {
    /// Only if the key does not exist
    #[arg(long)]
    if_absent: bool,
    /// Only if the key exists
    #[arg(long)]
    if_present: bool,
    /// Only if the key was last written at this revision
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<u64>,
    /// Only if the key has this version
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
}

impl Conditions {
    /// The one that was given.
    pub fn precondition(self) -> Option<Precondition> {
        match self {
            Self { if_absent: true, .. } => Some(Precondition::Absent),
            Self { if_present: true, .. } => Some(Precondition::Present),
            Self { if_revision: Some(revision), .. } => Some(Precondition::ModRevision(revision)),
            Self { if_version: Some(version), .. } => Some(Precondition::Version(version)),
            Self { if_absent: false, if_present: false, if_revision: None, if_version: None } => None,
        }
    }

    /// The same as options of a write.
    pub fn options(self, return_previous: bool) -> WriteOptions {
        WriteOptions { precondition: self.precondition(), return_previous }
    }
}

/// Says on standard error what a key is instead of what was demanded. Of an outcome that was replayed, that is not known.
pub fn explain(key: &[u8], current: Option<&KeyValue>, is_replayed: bool) {
    let key = text::show(key);
    match current {
        None if is_replayed => eprintln!("precondition failed for {key}; nothing was written"),
        Some(kv) => eprintln!(
            "precondition failed: {key} is at revision {}, version {}; nothing was written",
            kv.mod_revision, kv.version
        ),
        None => eprintln!("precondition failed: {key} is absent; nothing was written"),
    }
}
