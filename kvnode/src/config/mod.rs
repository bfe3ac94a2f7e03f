//! What a node was told: command line and environment, made into one checked value.
//!
//! [`Flags`] holds the words as they were given, each optional. [`validate`] turns them into a [`Config`] or into
//! [`Problems`], all of them at once, each with its flag. It is pure: what it needs to know of the machine comes in
//! as an argument. Nothing behind it ever looks at a flag or at the environment again.
//!
//! [`Listeners`] binds the three ports, and names every one that is taken.

mod address;
mod flags;
mod listeners;
mod machine;
mod name;
mod problem;
mod quantity;
mod validate;

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::assert_written_down;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use clap::Parser;

pub use self::{
    address::HostPort,
    flags::Flags,
    listeners::Listeners,
    machine::memory_of_this_machine,
    name::NodeName,
    problem::{Problem, Problems},
    quantity::ByteCount,
    validate::validate,
};
use crate::telemetry::LogConfig;

/// Everything that a node was told. A plain value: two nodes of one process have two of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The node's name in its cluster.
    pub node_name: NodeName,
    /// The data folder. Created when absent.
    pub data_dir: PathBuf,
    /// Where this node listens.
    pub listen: Listen,
    /// Where others reach this node.
    pub advertise: Advertise,
    /// How this node comes to belong to a cluster when its data folder is empty.
    pub formation: Formation,
    /// Number of data shards that a bootstrap here creates: 1 to 256.
    pub shards: u32,
    /// Voters of a data shard that a bootstrap here asks for: 1, 3, 5 or 7.
    pub replication_factor: u32,
    /// Where the node runs, for the spread of replicas. Empty: unknown.
    pub zone: String,
    /// Addresses at which this node dials the peer port of others, instead of the advertised ones.
    pub peer_address_overrides: BTreeMap<NodeName, HostPort>,
    /// What the process may use in all; caches and buffers are cut from it.
    pub memory: ByteCount,
    /// Timing of Raft.
    pub raft: RaftTiming,
    /// What is kept when logs are compacted.
    pub compaction: Compaction,
    /// Bytes a second of all snapshots that this node sends, and so of the replicas that move away from it; zero: no limit.
    pub snapshot_rate: ByteCount,
    /// The disk is only looked at, and rewritten when it is asked to be.
    pub recovery: bool,
    /// Limits of the volume; `None`: computed from its size.
    pub disk: DiskLimits,
    /// What is logged, and how.
    pub log: LogConfig,
}

/// Addresses to bind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Clients and administration.
    pub client: HostPort,
    /// Other nodes.
    pub peer: HostPort,
    /// Metrics and health.
    pub http: HostPort,
}

/// Addresses that others dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertise {
    /// Of the client port.
    pub client: HostPort,
    /// Of the peer port.
    pub peer: HostPort,
}

/// How an empty node comes to belong to a cluster. A node that belongs to one ignores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Formation {
    /// By nothing it does itself: it waits for `admin.Bootstrap`.
    Wait,
    /// A static start: the first of the list bootstraps once all the others answer and all are empty.
    InitialNodes(Vec<InitialNode>),
    /// It makes a cluster of its own, unless one of `ask` already has one: then it joins that.
    Bootstrap {
        /// Client addresses to ask first. May be empty.
        ask: Vec<HostPort>,
    },
    /// It joins through one of these client addresses. Not empty.
    Join(Vec<HostPort>),
}

/// One entry of `--initial-nodes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialNode {
    /// Its name.
    pub name: NodeName,
    /// Its client address; the peer address is learned from its reply.
    pub client: HostPort,
}

/// Timing of Raft. Equal on all nodes of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftTiming {
    /// Between two heartbeats of a leader.
    pub heartbeat: Duration,
    /// The shortest silence after which a follower campaigns.
    pub election_min: Duration,
    /// The longest one.
    pub election_max: Duration,
}

/// When state is flushed and how much of the log outlives that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// Log kept for each shard behind the compacted part, so that a follower that was away needs no snapshot.
    pub log_retention: ByteCount,
    /// State is flushed at least this often; the log can be compacted up to what was flushed.
    pub flush_interval: Duration,
}

/// Limits of free space on the volume of the data folder; see [`crate::data_dir::SpaceLimits`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskLimits {
    /// With less free space than this the node takes no proposals.
    pub soft: Option<ByteCount>,
    /// With less than this it takes no entries of other leaders either.
    pub hard: Option<ByteCount>,
    /// Size of the ballast file; zero: none.
    pub ballast: Option<ByteCount>,
}

impl Config {
    /// The configuration of this process. `--help`, `--version` and unknown flags end the process here.
    ///
    /// # Errors
    /// When a value is malformed or two contradict each other: all problems together.
    pub fn of_this_process() -> Result<Self, Problems> {
        validate(&Flags::parse(), memory_of_this_machine())
    }
}
