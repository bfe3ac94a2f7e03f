use kv_proto::disk::v1::meta_command::{Command, Note};

use super::*;

fn note(event: &str) -> Command {
    Command::Note(Note { shard_id: Some(1), node_id: 2, event: event.to_owned() })
}

#[test]
fn a_note_is_journaled_and_changes_nothing_else() {
    let mut cluster = Cluster::formed();
    let before = cluster.record.clone();
    let applied = apply(&mut cluster.record, &envelope(note("leader moved")), 5_000).unwrap();
    let entry = applied.journal.unwrap();
    assert_eq!((entry.sequence, entry.epoch), (before.next_journal_sequence, before.epoch));
    assert_eq!((entry.log_time_ms, entry.node_id), (5_000, 2));
    assert_eq!(entry.command, Some(envelope(note("leader moved"))));
    cluster.record.next_journal_sequence = before.next_journal_sequence;
    assert_eq!(cluster.record, before);
    assert_eq!(cluster.refused(note("")), "EVENT_MISSING");
}

#[test]
fn entries_are_numbered_without_gaps_also_in_a_record_of_an_older_version() {
    let mut cluster = Cluster::of(1, 1);
    cluster.record.next_journal_sequence = 0;
    for expected in 1..4 {
        let applied = apply(&mut cluster.record, &envelope(note("x")), 0).unwrap();
        assert_eq!(applied.journal.unwrap().sequence, expected);
    }
}

#[test]
fn the_journal_keeps_no_more_than_it_needs() {
    let mut cluster = Cluster::of(3, 3);
    let long = MetaCommand {
        command: Some(Command::CreateShards(shards(cluster.record.epoch))),
        actor: "ä".repeat(1_000),
        reason: "ö".repeat(1_000),
        unix_ms: 1,
    };
    let entry = apply(&mut cluster.record, &long, 0).unwrap().journal.unwrap();
    let kept = entry.command.unwrap();
    assert_eq!((kept.actor.len(), kept.reason.len()), (260, 1_024), "whole characters");
    let Some(Command::CreateShards(create)) = kept.command else { panic!("another command") };
    let numbers = |shard_id| ShardRecord { shard_id, ..ShardRecord::default() };
    assert_eq!(create.shards, [numbers(1), numbers(2)], "their places are in the record");
    let noted = envelope(note(&"x".repeat(5_000)));
    let entry = apply(&mut cluster.record, &noted, 0).unwrap().journal.unwrap();
    assert_eq!(entry.command.unwrap().command, Some(note(&"x".repeat(1_024))));
}

#[test]
fn an_entry_says_what_was_minted_and_found() {
    let mut cluster = Cluster::of(2, 1);
    let new_disk = NodeRecord { disk_uuid: vec![22; 16].into(), ..node(2) };
    let register = Command::RegisterNode(RegisterNode { node: Some(new_disk), name_holder_alive: false });
    let entry = apply(&mut cluster.record, &envelope(register), 0).unwrap().journal.unwrap();
    assert_eq!((entry.node_id, entry.other_node_id), (3, 2), "whose name it took");
}
