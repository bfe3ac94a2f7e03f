//! How an operation is to be done: preconditions, consistency, ranges.

use std::time::Duration;

use bytes::Bytes;
use kv_proto::kv::v1 as proto;

/// What must hold for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// The key does not exist.
    Absent,
    /// The key exists.
    Present,
    /// The key was last written at this revision.
    ModRevision(u64),
    /// The key has this version.
    Version(u64),
}

impl From<Precondition> for proto::Precondition {
    fn from(precondition: Precondition) -> Self {
        use proto::precondition::Condition;
        let condition = match precondition {
            Precondition::Absent => Condition::Absent(true),
            Precondition::Present => Condition::Present(true),
            Precondition::ModRevision(revision) => Condition::ModRevision(revision),
            Precondition::Version(version) => Condition::Version(version),
        };
        Self { condition: Some(condition) }
    }
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Reflects every write that was acknowledged before the read began, at whichever node.
    #[default]
    Linearizable,
    /// The state of one replica, which may be old.
    Stale {
        /// Refused when the replica last heard of a leader longer ago. `None`: the server's default, 10 s.
        max_staleness: Option<Duration>,
        /// Waits, within the deadline, until the shard's replica has reached this revision. 0: does not wait.
        min_revision: u64,
    },
}

impl Consistency {
    /// Stale, with the server's bound.
    pub const STALE: Self = Self::Stale { max_staleness: None, min_revision: 0 };
}

/// How to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// How fresh.
    pub consistency: Consistency,
    /// The asked node answers from its own replica; it fails when it has none. Best with [`crate::Client::at`].
    pub serve_at_node: bool,
}

impl ReadOptions {
    /// Stale, with the server's bound.
    pub const STALE: Self = Self { consistency: Consistency::STALE, serve_at_node: false };

    /// Whether any replica will do.
    pub(crate) fn any_replica(&self) -> bool {
        self.serve_at_node || matches!(self.consistency, Consistency::Stale { .. })
    }
}

impl From<ReadOptions> for proto::ReadOptions {
    fn from(options: ReadOptions) -> Self {
        let mut message = Self { serve_at_node: options.serve_at_node, ..Self::default() };
        match options.consistency {
            Consistency::Linearizable => message.set_consistency(proto::Consistency::Linearizable),
            Consistency::Stale { max_staleness, min_revision } => {
                message.set_consistency(proto::Consistency::Stale);
                message.min_revision = min_revision;
                // 0 asks for the default, so a shorter wish than 1 ms becomes 1 ms.
                message.max_staleness_ms = max_staleness
                    .map_or(0, |limit| u32::try_from(limit.as_millis()).unwrap_or(u32::MAX).max(1));
            }
        }
        message
    }
}

/// How to get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GetOptions {
    /// How to read.
    pub read: ReadOptions,
    /// Leaves the value out.
    pub metadata_only: bool,
}

/// How to put or delete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// What must hold.
    pub precondition: Option<Precondition>,
    /// The reply tells what was there before.
    pub return_previous: bool,
}

impl From<Precondition> for WriteOptions {
    fn from(precondition: Precondition) -> Self {
        Self { precondition: Some(precondition), return_previous: false }
    }
}

/// Keys from a start (inclusive) to an end (exclusive), or with a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRange {
    start: Bytes,
    end: Bytes,
    prefix: Bytes,
}

impl KeyRange {
    /// Every key.
    pub fn all() -> Self {
        Self::default()
    }

    /// Keys that begin with `prefix`; an empty one is every key.
    pub fn prefix(prefix: impl AsRef<[u8]>) -> Self {
        Self { prefix: Bytes::copy_from_slice(prefix.as_ref()), ..Self::default() }
    }

    /// `start` inclusive, `end` exclusive; an empty one is unbounded.
    pub fn between(start: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> Self {
        Self {
            start: Bytes::copy_from_slice(start.as_ref()),
            end: Bytes::copy_from_slice(end.as_ref()),
            prefix: Bytes::new(),
        }
    }

    /// Whether this is every key.
    pub fn is_unbounded(&self) -> bool {
        self.start.is_empty() && self.end.is_empty() && self.prefix.is_empty()
    }
}

impl From<KeyRange> for proto::KeyRange {
    fn from(range: KeyRange) -> Self {
        Self { start: range.start, end: range.end, prefix: range.prefix }
    }
}

/// What to scan, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanOptions {
    /// Which keys.
    pub range: KeyRange,
    /// At most this many keys; 0: all.
    pub limit: u64,
    /// Ends when about this many bytes came, after at least one key; 0: no bound.
    pub max_bytes: u64,
    /// Leaves values out.
    pub keys_only: bool,
    /// From the greatest key to the least.
    pub reverse: bool,
    /// Goes on after the page that carried this token; empty: from the beginning.
    pub page_token: Bytes,
    /// How to read.
    pub read: ReadOptions,
}

impl From<KeyRange> for ScanOptions {
    fn from(range: KeyRange) -> Self {
        Self { range, ..Self::default() }
    }
}
