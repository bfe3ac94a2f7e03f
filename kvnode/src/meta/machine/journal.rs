//! What the journal keeps of a command: the command, cut to a bounded length, and what came of it.

use kv_proto::{
    disk::v1::{
        JournalEntry, MetaCommand, MetaRecord, ShardRecord,
        meta_command::{Command, CreateShards, Note},
    },
    peer::v1::Refusal,
};

use super::{
    Found, Told,
    check::{MAX_TEXT_BYTES, invalid},
};

/// Length of a reason or of a noted event at most, bytes: what is longer is cut.
const MAX_REASON_BYTES: usize = 1_024;

/// Who did what no command asked for.
const ACTOR: &str = "meta";

/// The entry about `command`, numbered.
pub(super) fn entry(
    record: &mut MetaRecord,
    command: &MetaCommand,
    found: Found,
    told: Told<'_>,
) -> JournalEntry {
    let sequence = record.next_journal_sequence.max(1);
    record.next_journal_sequence = sequence + 1;
    let Found { node_id, replica_id, other_node_id } = found;
    JournalEntry {
        sequence,
        epoch: record.epoch,
        log_time_ms: told.log_time_ms,
        command: Some(kept(command)),
        node_id,
        replica_id,
        other_node_id,
    }
}

/// The entry about a permit that has become overdue. Its time is that of the clock by which it was granted.
pub(super) fn overdue(record: &mut MetaRecord, permit: usize, log_time_ms: u64) -> JournalEntry {
    let permit = &record.permits[permit];
    let passed_ms = log_time_ms.saturating_sub(permit.granted_log_ms);
    let node_id = permit.node_id;
    let told = Told {
        reason: &format!("it was granted for {} ms and not given back", permit.ttl_ms),
        unix_ms: permit.granted_unix_ms.saturating_add(passed_ms),
        log_time_ms,
    };
    let note = Note { shard_id: None, node_id, event: format!("permit of #{node_id} is overdue") };
    let command = MetaCommand {
        command: Some(Command::Note(note)),
        actor: ACTOR.to_owned(),
        reason: told.reason.to_owned(),
        unix_ms: told.unix_ms,
    };
    entry(record, &command, Found::node(node_id), told)
}

pub(super) fn check_note(note: &Note) -> Result<Found, Refusal> {
    if note.event.is_empty() {
        return Err(invalid("event", "EVENT_MISSING", "a note without an event says nothing"));
    }
    Ok(Found::node(note.node_id))
}

/// Placements of all shards are in the record; here their numbers are enough.
fn kept(command: &MetaCommand) -> MetaCommand {
    let kept = command.command.as_ref().map(|asked| match asked {
        Command::CreateShards(CreateShards { shards, expected_epoch }) => {
            let numbered =
                |shard: &ShardRecord| ShardRecord { shard_id: shard.shard_id, ..ShardRecord::default() };
            let shards = shards.iter().map(numbered).collect();
            Command::CreateShards(CreateShards { shards, expected_epoch: *expected_epoch })
        }
        Command::Note(note) => {
            Command::Note(Note { event: cut(&note.event, MAX_REASON_BYTES), ..note.clone() })
        }
        Command::Bootstrap(_)
        | Command::RegisterNode(_)
        | Command::AddReplica(_)
        | Command::ObserveMembership(_)
        | Command::PreferLeaders(_)
        | Command::SetNodeState(_)
        | Command::BeginMove(_)
        | Command::EndMove(_)
        | Command::BeginChange(_)
        | Command::EndChange(_)
        | Command::DropReplica(_)
        | Command::RemoveNode(_)
        | Command::SetZone(_)
        | Command::SetPolicy(_)
        | Command::GrantPermit(_)
        | Command::EndPermit(_)
        | Command::ReplaceGroup(_) => asked.clone(),
    });
    MetaCommand {
        command: kept,
        actor: cut(&command.actor, MAX_TEXT_BYTES),
        reason: cut(&command.reason, MAX_REASON_BYTES),
        unix_ms: command.unix_ms,
    }
}

/// The first bytes of a text, whole characters only.
fn cut(text: &str, bytes: usize) -> String {
    text[..text.floor_char_boundary(bytes)].to_owned()
}

/// A reason as the record keeps it, which is to stay small.
pub(super) fn reason(told: Told<'_>) -> String {
    cut(told.reason, MAX_TEXT_BYTES)
}
