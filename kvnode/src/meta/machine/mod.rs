//! The state machine of the meta group: what a committed command does to the record.
//!
//! Deterministic: nothing but record, command and log time counts, and every replica of the meta group comes to the same
//! record. Whoever proposes decides (placement, who is alive); here it is only checked that the decision still holds. The
//! commands are in a file for each noun: `nodes`, `shards`, `moves`, `changes`, `permits`, `policy`, `recovery`.
//!
//! Invariants: the epoch grows with every change and only then, by one, but for the recovery of meta itself; node, group,
//! replica and move ids are never reused; a refused command leaves the record as it was; a command that is repeated changes
//! nothing the second time. A change is journaled; a note is nothing but journaled, so that its repetition is told twice, and
//! raises no epoch.

mod changes;
mod check;
mod journal;
mod moves;
mod nodes;
mod permits;
mod policy;
mod recovery;
mod shards;

use kv_proto::{
    disk::v1::{JournalEntry, MetaCommand, MetaRecord, meta_command::Command},
    peer::v1::{MetaOutcome, Refusal},
};

pub use permits::{expire, open_permit};
pub use policy::policy;
pub use recovery::{EPOCH_GAP, ID_GAP};

pub(super) use check::is_hosted;
use check::{failed, invalid};

/// The greatest [`MetaRecord::feature_level`] that this version knows. 1: all that version 0.1 writes.
pub const FEATURE_LEVEL: u32 = 1;

/// Nodes of a cluster at most, removed ones not counted.
pub const MAX_NODES: usize = 99;

/// Removed nodes that are remembered at most, but for those that a group still names.
pub const MAX_REMOVED_NODES: usize = 256;

/// Data shards of a cluster at most.
pub const MAX_SHARDS: u32 = 256;

/// What a command came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// For who proposed it.
    pub outcome: MetaOutcome,
    /// What the journal keeps of it; `None`: it changed nothing.
    pub journal: Option<JournalEntry>,
}

/// What a command minted or found; 0: nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    node_id: u64,
    replica_id: u64,
    /// See [`JournalEntry::other_node_id`].
    other_node_id: u64,
}

impl Found {
    fn node(node_id: u64) -> Self {
        Self { node_id, ..Self::default() }
    }
}

/// What comes with every command.
#[derive(Clone, Copy, Debug)]
struct Told<'a> {
    reason: &'a str,
    unix_ms: u64,
    log_time_ms: u64,
}

/// Applies `command` to `record`, at the group's log time.
///
/// # Errors
/// The refusal that the proposer gets; the record is unchanged.
pub fn apply(record: &mut MetaRecord, command: &MetaCommand, log_time_ms: u64) -> Result<Applied, Refusal> {
    let Some(asked) = &command.command else {
        return Err(invalid("command", "META_COMMAND_UNKNOWN", "the meta command is empty"));
    };
    let told = Told { reason: &command.reason, unix_ms: command.unix_ms, log_time_ms };
    let epoch = record.epoch;
    let found = decide(record, asked, told)?;
    let is_note = matches!(asked, Command::Note(_));
    let journal = (record.epoch != epoch || is_note).then(|| journal::entry(record, command, found, told));
    let Found { node_id, replica_id, other_node_id: _ } = found;
    Ok(Applied { outcome: MetaOutcome { epoch: record.epoch, node_id, replica_id }, journal })
}

fn decide(record: &mut MetaRecord, asked: &Command, told: Told<'_>) -> Result<Found, Refusal> {
    if record.cluster_id.is_empty() && !matches!(asked, Command::Bootstrap(_)) {
        return Err(failed("NOT_BOOTSTRAPPED", "there is no cluster yet"));
    }
    match asked {
        Command::Bootstrap(bootstrap) => nodes::bootstrap(record, bootstrap, told),
        Command::RegisterNode(register) => nodes::register(record, register, told),
        Command::SetNodeState(set) => nodes::set_state(record, *set, told),
        Command::RemoveNode(remove) => nodes::remove(record, *remove, told),
        Command::SetZone(set) => nodes::set_zone(record, set),
        Command::CreateShards(create) => shards::create(record, create),
        Command::AddReplica(add) => shards::add_replica(record, *add),
        Command::DropReplica(drop) => shards::drop_replica(record, *drop),
        Command::ObserveMembership(observe) => shards::observe_membership(record, observe, told),
        Command::PreferLeaders(prefer) => shards::prefer_leaders(record, prefer),
        Command::BeginMove(begin) => moves::begin(record, *begin, told),
        Command::EndMove(end) => moves::end(record, *end),
        Command::BeginChange(begin) => changes::begin(record, begin, told),
        Command::EndChange(end) => changes::end(record, *end),
        Command::SetPolicy(set) => policy::set(record, *set),
        Command::GrantPermit(grant) => permits::grant(record, grant, told),
        Command::EndPermit(end) => permits::end(record, end),
        Command::ReplaceGroup(replace) => recovery::replace_group(record, replace, told),
        Command::Note(note) => journal::check_note(note),
    }
}

#[cfg(test)]
mod tests;
