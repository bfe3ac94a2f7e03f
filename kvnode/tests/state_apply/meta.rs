//! The meta group: its record, its journal, and what expires in its log time.

use std::sync::Arc;

use kv_proto::{
    disk::v1::{
        JournalEntry, MetaCommand, MetaRecord, NodeRecord, NodeState, Operation,
        meta_command::{Bootstrap, Command, GrantPermit, Note, RegisterNode, SetNodeState},
        operation::Kind,
    },
    peer::v1::{JournalEntries, JournalPage, ReadMeta, outcome, read_request, read_response},
};
use kv_topology::{ReplicaId, ShardId};
use kvnode::{
    meta::{journal, machine::FEATURE_LEVEL},
    state::{
        Batch,
        keys::{Kind as RecordKind, Name, Scope},
        memory::MemoryEngine,
    },
    state_machine::validate,
};
use prost::Message;

use super::{reason, state_support::*};

/// Entries of the journal that are kept.
const KEPT: usize = 10_000;

fn meta() -> Driven {
    Driven::of_shard(Arc::new(MemoryEngine::new()), REPLICA, ShardId::META).unwrap()
}

fn asked(command: Command) -> Operation {
    operation(Kind::Meta(MetaCommand {
        command: Some(command),
        actor: "a test".to_owned(),
        reason: "to see".to_owned(),
        unix_ms: 7,
    }))
}

fn node(number: u8) -> NodeRecord {
    NodeRecord {
        name: format!("n{number}"),
        disk_uuid: vec![number; 16].into(),
        client_address: format!("host-{number}:50051"),
        peer_address: format!("host-{number}:50061"),
        ..NodeRecord::default()
    }
}

fn bootstrap() -> Operation {
    asked(Command::Bootstrap(Bootstrap {
        cluster_id: "c".to_owned(),
        token: "t".to_owned(),
        shards: 2,
        replication_factor: 1,
        node: Some(node(1)),
    }))
}

fn register(number: u8) -> Operation {
    asked(Command::RegisterNode(RegisterNode { node: Some(node(number)), name_holder_alive: false }))
}

pub fn note(shard_id: Option<u32>, node_id: u64, event: &str) -> Operation {
    asked(Command::Note(Note { shard_id, node_id, event: event.to_owned() }))
}

fn permit(token: &str, node_id: u64, expected_epoch: u64) -> Operation {
    let (token, outage_shard_ids) = (token.to_owned(), vec![]);
    asked(Command::GrantPermit(GrantPermit {
        token,
        node_id,
        ttl_ms: 60_000,
        outage_shard_ids,
        expected_epoch,
    }))
}

/// A cluster of two nodes.
fn founded() -> Driven {
    let driven = meta();
    driven.apply(1_000, bootstrap());
    driven.apply(1_000, register(2));
    driven
}

fn record(driven: &Driven) -> MetaRecord {
    match driven.read(read_request::Read::Meta(ReadMeta {})) {
        read_response::Read::Meta(record) => record,
        other => panic!("{other:?}"),
    }
}

fn page(driven: &Driven, page: JournalPage) -> JournalEntries {
    match driven.read(read_request::Read::Journal(page)) {
        read_response::Read::Journal(entries) => entries,
        other => panic!("{other:?}"),
    }
}

fn sequences(page: &JournalEntries) -> Vec<u64> {
    page.entries.iter().map(|entry| entry.sequence).collect()
}

fn events(entries: &[JournalEntry]) -> Vec<String> {
    entries.iter().map(|entry| journal::entry(entry).event).collect()
}

#[test]
fn the_record_is_read_as_the_commands_left_it() {
    let driven = meta();
    assert_eq!(record(&driven), MetaRecord::default());
    driven.apply(0, bootstrap());
    driven.apply(0, register(2));
    let read = record(&driven);
    assert_eq!((read.epoch, read.nodes.len()), (2, 2));
    assert_eq!(&read, driven.replica.lock().unwrap().meta().unwrap().as_ref());
}

/// What all others apply and this replica does not know would make its record another one.
#[test]
fn a_command_of_a_newer_version_stops_the_replica_and_is_not_proposed() {
    let driven = founded();
    let before = driven.dump();
    // As prost decodes a kind of command that it does not know.
    let unknown = operation(Kind::Meta(MetaCommand { actor: "newer".to_owned(), ..MetaCommand::default() }));
    assert!(validate(&unknown).is_err());
    let stopped = driven.round(&[proposal(2, 2_000, vec![unknown])]).unwrap_err();
    assert!(stopped.contains("this version does not know"), "{stopped}");
    assert_eq!(driven.dump(), before);
}

#[test]
fn at_a_higher_feature_level_nothing_is_applied() {
    let driven = founded();
    let higher = MetaRecord { feature_level: FEATURE_LEVEL + 1, ..record(&driven) };
    let mut batch = Batch::default();
    batch.put(Scope::new(REPLICA, kv_topology::Generation(1)).meta(), higher.encode_to_vec());
    driven.engine.write(batch).unwrap();
    let again = Driven::of_shard(driven.engine.clone(), REPLICA, ShardId::META).unwrap();
    let stopped = again.round(&[proposal(2, 2_000, vec![register(3)])]).unwrap_err();
    assert!(stopped.contains("this version does not know"), "{stopped}");
    assert_eq!(record(&again), higher);
}

#[test]
fn commands_that_change_something_are_journaled_and_others_are_not() {
    let driven = founded();
    let stored = || driven.dump().len();
    let before = stored();
    driven.apply(2_000, register(2));
    assert_eq!(stored(), before, "nothing changed");
    let drain = SetNodeState { node_id: 9, from: NodeState::Active.into(), to: NodeState::Draining.into() };
    assert_eq!(reason(driven.apply(2_000, asked(Command::SetNodeState(drain)))).0, "NODE_UNKNOWN");
    assert_eq!(stored(), before, "refused");
    driven.apply(2_000, note(None, 2, "restarted"));
    let all = page(&driven, JournalPage::default());
    assert_eq!((sequences(&all), all.next_before), (vec![3, 2, 1], 0), "the newest first");
    assert_eq!(
        events(&all.entries),
        [
            "restarted",
            "#2 (n2) registers at host-2:50051, start 0, version ",
            "n1 founds cluster c: 2 shards, replication factor 1",
        ]
    );
    let registered = &all.entries[1];
    assert_eq!((registered.epoch, registered.log_time_ms, registered.node_id), (2, 1_000, 2));
    let command = registered.command.clone().unwrap();
    assert_eq!((command.actor.as_str(), command.reason.as_str(), command.unix_ms), ("a test", "to see", 7));
    assert_eq!(record(&driven).epoch, 2, "a note raises no epoch");
}

#[test]
fn pages_make_up_the_journal_without_gaps() {
    let driven = founded();
    for number in 0..10_u64 {
        driven.apply(0, note(Some(u32::try_from(number % 2).unwrap()), number % 3, "x"));
    }
    let mut found = Vec::new();
    let mut before = 0;
    loop {
        let got = page(&driven, JournalPage { before, limit: 5, ..JournalPage::default() });
        assert!(got.entries.len() <= 5);
        found.extend(sequences(&got));
        before = got.next_before;
        if before == 0 {
            break;
        }
    }
    assert_eq!(found, (1..=12).rev().collect::<Vec<u64>>());
    let of_shard = JournalPage { shard_id: Some(1), limit: 5, ..JournalPage::default() };
    let got = page(&driven, of_shard);
    assert_eq!((sequences(&got), got.next_before), (vec![12, 10, 8, 6, 4], 0), "no page follows in vain");
    let of_both = JournalPage { shard_id: Some(1), node_id: Some(2), ..JournalPage::default() };
    assert_eq!(sequences(&page(&driven, of_both)), [8]);
    let of_node = JournalPage { node_id: Some(2), ..JournalPage::default() };
    assert_eq!(sequences(&page(&driven, of_node)), [11, 8, 5, 2], "an id that a command minted counts");
}

#[test]
fn the_last_ten_thousand_entries_are_kept() {
    let driven = founded();
    let notes: Vec<Operation> = (0..1_000).map(|_| note(None, 0, "x")).collect();
    for index in 2..12 {
        driven.round(&[proposal(index, 0, notes.clone())]).unwrap();
    }
    let kept: Vec<u64> = driven
        .dump()
        .iter()
        .filter(|(name, _)| Name::parse(name).unwrap().kind == RecordKind::Journal)
        .map(|(_, bytes)| JournalEntry::decode(bytes.as_slice()).unwrap().sequence)
        .collect();
    assert_eq!((kept.len(), kept.first(), kept.last()), (KEPT, Some(&3), Some(&10_002)));
    let newest = page(&driven, JournalPage { limit: u32::MAX, ..JournalPage::default() });
    assert_eq!((newest.entries.len(), newest.next_before), (1_000, 9_003));
}

#[test]
fn a_permit_expires_with_any_entry_of_a_later_log_time() {
    let driven = founded();
    driven.apply(1_000, permit("a", 2, 2));
    driven.apply(60_999, tick());
    assert!(!record(&driven).permits[0].overdue);
    driven.apply(61_000, tick());
    let expired = record(&driven);
    assert!(expired.permits[0].overdue);
    assert_eq!(expired.epoch, 4);
    let newest = page(&driven, JournalPage { limit: 1, ..JournalPage::default() });
    assert_eq!(events(&newest.entries), ["permit of #2 is overdue"]);
    assert_eq!((newest.entries[0].epoch, newest.entries[0].log_time_ms), (4, 61_000));
    assert_eq!(newest.entries[0].command.as_ref().unwrap().actor, "meta");
}

#[test]
fn what_expires_does_so_before_the_commands_of_the_same_entry() {
    let driven = founded();
    driven.apply(1_000, permit("a", 2, 2));
    let granted = driven.apply(61_000, permit("b", 1, 4));
    assert!(matches!(granted, outcome::Result::Meta(_)), "{granted:?}");
    assert_eq!(record(&driven).permits.len(), 2);
}

#[test]
fn the_same_entries_give_the_same_bytes_in_whatever_batches_they_come() {
    let entries = [
        proposal(0, 1_000, vec![bootstrap(), register(2), register(2)]),
        proposal(1, 1_500, vec![permit("a", 2, 2), note(Some(1), 0, "x")]),
        proposal(2, 70_000, vec![tick(), register(3)]),
        proposal(3, 71_000, vec![permit("b", 1, 5)]),
    ];
    let (one, each) = (meta(), meta());
    one.round(&entries).unwrap();
    for entry in &entries {
        each.round(std::slice::from_ref(entry)).unwrap();
    }
    assert_eq!(one.dump(), each.dump());
    let again = Driven::of_shard(each.engine.clone(), REPLICA, ShardId::META).unwrap();
    assert_eq!(record(&again).next_journal_sequence, 8);
    let scope = Scope::new(REPLICA, kv_topology::Generation(1));
    assert!(each.dump().contains_key(&scope.journal(7)));
}

#[test]
fn data_groups_have_neither_record_nor_journal() {
    let data = Driven::open(Arc::new(MemoryEngine::new()), ReplicaId(3)).unwrap();
    let journal = read_request::Read::Journal(JournalPage::default());
    for read in [read_request::Read::Meta(ReadMeta {}), journal] {
        match data.read(read) {
            read_response::Read::Refusal(refusal) => assert_eq!(refusal.reason, "WRONG_SHARD"),
            other => panic!("{other:?}"),
        }
    }
}
