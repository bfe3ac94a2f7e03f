//! One operation of a client: what it asked, when, and what it heard.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A moment in nanoseconds of one monotonic clock, real or simulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nanos(pub u64);

/// A client, which has one operation in flight at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientId(pub u32);

/// The position of an operation in its history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationId(pub u32);

/// What a write wrote. Unique within its key; the recorder maps it to bytes and back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ValueId(pub u64);

/// A mod revision. 0 stands for "absent" where a compare-and-swap expects it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// What a compare-and-swap expects of an absent key.
    pub const ABSENT: Self = Self(0);
}

/// What a client asked of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// A linearizable read.
    Get,
    /// An unconditional write.
    Put {
        /// The new value.
        value: ValueId,
    },
    /// An unconditional removal.
    Delete,
    /// A write that happens only if the key's mod revision is the expected one.
    Cas {
        /// [`Revision::ABSENT`]: only if the key is absent.
        expected: Revision,
        /// The new value.
        value: ValueId,
    },
}

impl Call {
    /// The value that this call writes if it takes effect.
    pub const fn written(&self) -> Option<ValueId> {
        match self {
            Self::Put { value } | Self::Cas { value, .. } => Some(*value),
            Self::Get | Self::Delete => None,
        }
    }
}

/// A key's content as a reply showed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// The value.
    pub value: ValueId,
    /// Its mod revision, where the store has one.
    pub revision: Option<Revision>,
}

/// What a client heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To a get; `None`: the key is absent.
    Got(Option<Observed>),
    /// To a put; the mod revision that it made, where the store has one.
    Put(Option<Revision>),
    /// To a delete; false: the key was absent.
    Deleted(bool),
    /// To a delete that does not say whether the key was there, such as the delete of a range.
    Cleared,
    /// To a compare-and-swap that took effect.
    Swapped(Option<Revision>),
    /// To a compare-and-swap whose condition did not hold; the mod revision found, `None` where the key was absent
    /// or the store does not say.
    NotSwapped(Option<Revision>),
}

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nobody knows: it may take effect at any time after its invocation, once, or never. Also the outcome of an
    /// operation still in flight.
    Unknown,
    /// It surely has no effect.
    Failed,
    /// It took effect between invocation and return.
    Returned {
        /// When the client had the reply.
        at: Nanos,
        /// What it heard.
        reply: Reply,
    },
}

/// One operation of a client on a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Its position in the history.
    pub id: OperationId,
    /// Who asked.
    pub client: ClientId,
    /// The key.
    pub key: String,
    /// What was asked.
    pub call: Call,
    /// When the client began to ask.
    pub invoked_at: Nanos,
    /// What became of it.
    pub outcome: Outcome,
}

impl Operation {
    /// When it had ended; the end of time for an unknown outcome.
    pub const fn ended_at(&self) -> Nanos {
        match self.outcome {
            Outcome::Returned { at, .. } => at,
            Outcome::Unknown | Outcome::Failed => Nanos(u64::MAX),
        }
    }

    /// What the client heard, if it heard anything.
    pub const fn reply(&self) -> Option<Reply> {
        match self.outcome {
            Outcome::Returned { reply, .. } => Some(reply),
            Outcome::Unknown | Outcome::Failed => None,
        }
    }

    /// The mod revision that the key had when this operation took effect, as far as the reply tells.
    pub const fn seen_revision(&self) -> Option<Revision> {
        match self.reply() {
            Some(Reply::Got(Some(observed))) => observed.revision,
            Some(Reply::Put(revision) | Reply::Swapped(revision) | Reply::NotSwapped(revision)) => revision,
            Some(Reply::Got(None) | Reply::Deleted(_) | Reply::Cleared) | None => None,
        }
    }

    /// Whether it ended before `other` began, so that every order must keep it before.
    pub fn precedes(&self, other: &Self) -> bool {
        self.ended_at() < other.invoked_at
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "#{} client {}: ", self.id.0, self.client.0)?;
        match self.call {
            Call::Get => formatter.write_str("get")?,
            Call::Put { value } => write!(formatter, "put v{}", value.0)?,
            Call::Delete => formatter.write_str("delete")?,
            Call::Cas { expected: Revision::ABSENT, value } => {
                write!(formatter, "put v{} if absent", value.0)?;
            }
            Call::Cas { expected, value } => {
                write!(formatter, "put v{} if at revision {}", value.0, expected.0)?;
            }
        }
        match self.outcome {
            Outcome::Unknown => formatter.write_str(" -> outcome unknown"),
            Outcome::Failed => formatter.write_str(" -> refused, surely not applied"),
            Outcome::Returned { reply, .. } => write!(formatter, " -> {reply}"),
        }
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let revision = match self {
            Self::Got(None) => return formatter.write_str("absent"),
            Self::Deleted(true) => return formatter.write_str("deleted"),
            Self::Deleted(false) => return formatter.write_str("was absent"),
            Self::Cleared => return formatter.write_str("absent now"),
            Self::Got(Some(observed)) => {
                write!(formatter, "v{}", observed.value.0)?;
                observed.revision
            }
            Self::Put(revision) | Self::Swapped(revision) => {
                formatter.write_str("done")?;
                *revision
            }
            Self::NotSwapped(revision) => {
                formatter.write_str("condition did not hold")?;
                *revision
            }
        };
        match revision {
            Some(revision) => write!(formatter, " at revision {}", revision.0),
            None => Ok(()),
        }
    }
}
