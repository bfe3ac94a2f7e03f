//! A panic ends the node, and one in apply would end all nodes of a group: whatever operation or question decodes, the
//! state machine answers it.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test fails by panicking, and its name says what it shows"
)]

mod state_support;

use std::sync::Arc;

use bytes::Bytes;
use kv_proto::{
    disk::v1::{
        CloseSession, Get, Member, Membership, MetaCommand, MoveReason, NodeRecord, NodeState, OpenSession,
        Operation, ReplicaPlacement, ShardRecord, SlotRange, StoredMembership, Txn, TxnOperation, VoterSet,
        meta_command::{
            AddReplica, BeginChange, BeginMove, Bootstrap, Command, CreateShards, DropReplica, EndChange,
            EndMove, EndPermit, GrantPermit, Note, ObserveMembership, PreferLeaders, PreferredLeader,
            RegisterNode, RemoveNode, ReplaceGroup, SetNodeState, SetPolicy, SetZone,
        },
        operation::Kind,
        txn_operation,
    },
    kv::v1::precondition::Condition,
    peer::v1::{GetKeys, JournalPage, ReadBlob, ReadRequest, ScanPage, read_request::Read},
};
use kv_topology::ShardId;
use kvnode::{
    meta::view,
    state::{engine::with_view, memory::MemoryEngine},
    state_machine::{reads::Reader, validate},
};
use proptest::prelude::*;
use prost::Message;
use state_support::*;

/// Well-formed messages of each kind, to be garbled: bytes at random hardly ever decode to anything.
fn operations() -> Vec<Vec<u8>> {
    let get = TxnOperation {
        operation: Some(txn_operation::Operation::Get(Get { key: Bytes::from("k"), metadata_only: false })),
    };
    let put_k = TxnOperation { operation: Some(txn_operation::Operation::Put(put("k", b"value"))) };
    let guarded =
        kv_proto::disk::v1::Delete { precondition: condition(Condition::ModRevision(3)), ..delete("k") };
    let node = NodeRecord { name: "n9".to_owned(), disk_uuid: vec![9; 16].into(), ..NodeRecord::default() };
    let register = RegisterNode { node: Some(node), name_holder_alive: false };
    let kinds = [
        Kind::Put(put("k", b"value")),
        Kind::Delete(guarded),
        Kind::DeleteRange(delete_range("a", "z", 10)),
        Kind::Txn(Txn { then: vec![put_k, get.clone()], r#else: vec![get], ..Txn::default() }),
        Kind::UploadBegin(begin("k", 1)),
        Kind::UploadChunk(chunk("k", 1, 0, b"chunk")),
        Kind::UploadCommit(commit("k", 1, 1, 5)),
        Kind::UploadAbort(abort("k", 1)),
        Kind::Meta(MetaCommand { command: Some(Command::RegisterNode(register)), ..MetaCommand::default() }),
    ];
    let in_session = Operation {
        session_id: 1 << 48 | 1,
        sequence: 1,
        lowest_outstanding: 1,
        ..operation(Kind::Put(put("k", b"value")))
    };
    let open = operation(Kind::OpenSession(OpenSession { ttl_ms: 1_000 }));
    let close = operation(Kind::CloseSession(CloseSession { session_id: 1 << 48 | 1 }));
    let fixed = [own_all(), tick(), open.clone(), open, in_session.clone(), in_session, close];
    kinds.into_iter().map(operation).chain(fixed).map(|operation| operation.encode_to_vec()).collect()
}

fn questions() -> Vec<Vec<u8>> {
    let reads = [
        Read::Get(GetKeys { keys: vec![Bytes::from("k"), Bytes::from("l")], ..GetKeys::default() }),
        Read::Scan(ScanPage {
            start: Bytes::from("a"),
            end: Bytes::from("z"),
            limit: 5,
            ..ScanPage::default()
        }),
        Read::Blob(ReadBlob { key: Bytes::from("k"), upload_id: upload_id(1), ..ReadBlob::default() }),
    ];
    let request = |read| ReadRequest { shard_id: SHARD.0, read: Some(read), ..ReadRequest::default() };
    reads.into_iter().map(|read| request(read).encode_to_vec()).collect()
}

/// One of `messages`, with some bytes replaced, and perhaps cut.
fn garbled(messages: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let harm = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (prop::sample::select(messages), harm, prop::option::of(any::<prop::sample::Index>())).prop_map(
        |(mut bytes, harm, cut)| {
            for (at, byte) in harm {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        },
    )
}

fn started(number: u8) -> NodeRecord {
    NodeRecord {
        name: format!("n{number}"),
        disk_uuid: vec![number; 16].into(),
        client_address: "host:1".to_owned(),
        peer_address: "host:2".to_owned(),
        ..NodeRecord::default()
    }
}

/// Commands about nodes, near to what could be decided on a cluster of two of them.
fn commands_about_nodes() -> Vec<Command> {
    let state = |from: NodeState, to: NodeState| {
        Command::SetNodeState(SetNodeState { node_id: 2, from: from.into(), to: to.into() })
    };
    let permit = GrantPermit {
        token: "t".to_owned(),
        node_id: 2,
        ttl_ms: 60_000,
        outage_shard_ids: vec![1],
        expected_epoch: 4,
    };
    vec![
        Command::RegisterNode(RegisterNode { node: Some(started(2)), name_holder_alive: false }),
        state(NodeState::Joining, NodeState::Active),
        state(NodeState::Active, NodeState::Draining),
        state(NodeState::Active, NodeState::Lost),
        Command::RemoveNode(RemoveNode { node_id: 2, lost: true, accept_data_loss: true, alive: false }),
        Command::SetZone(SetZone { node_id: 2, zone: Some("b".to_owned()) }),
        Command::SetPolicy(SetPolicy { replication_factor: Some(1), ..SetPolicy::default() }),
        Command::GrantPermit(permit),
        Command::EndPermit(EndPermit { token: "t".to_owned() }),
        Command::Note(Note { shard_id: Some(1), node_id: 2, event: "restarted".to_owned() }),
    ]
}

/// Commands about the one shard, which has replica 2 on the first node, and its life until it is recovered.
fn commands_about_shards() -> Vec<Command> {
    let shard = ShardRecord {
        shard_id: 1,
        slots: vec![SlotRange { first: 0, last: 4095 }],
        replicas: vec![ReplicaPlacement { replica_id: 0, node_id: 1 }],
        preferred_leader_node_id: 1,
        initializer_node_id: 1,
        ..ShardRecord::default()
    };
    let membership = Membership {
        voters: vec![VoterSet { replica_ids: vec![2] }],
        members: vec![Member { replica_id: 2, node_id: 1 }, Member { replica_id: 3, node_id: 2 }],
    };
    let expected_membership = Some(log_id(3));
    let membership = Some(StoredMembership { log_id: expected_membership, membership: Some(membership) });
    let (shard_id, group_id, expected_epoch) = (1, 1, 4);
    let leaders = vec![PreferredLeader { shard_id, node_id: 1 }];
    let (from_replica_id, to_node_id, reason) = (2, 2, MoveReason::Drain.into());
    let begin = BeginMove { shard_id, from_replica_id, to_node_id, reason, expected_epoch };
    let voter_replica_ids = vec![2, 3];
    let change = BeginChange { shard_id, group_id, voter_replica_ids, expected_membership };
    let (replica_id, node_id, last) = (2, 1, Some(log_id(4)));
    let replace = ReplaceGroup { shard_id, expected_group_id: 1, replica_id, node_id, last };
    vec![
        Command::CreateShards(CreateShards { shards: vec![shard], expected_epoch: 1 }),
        Command::ObserveMembership(ObserveMembership { shard_id, group_id, membership }),
        Command::AddReplica(AddReplica { shard_id, node_id: 2, expected_epoch }),
        Command::PreferLeaders(PreferLeaders { leaders, expected_epoch, chosen: true }),
        Command::BeginMove(begin),
        Command::EndMove(EndMove { shard_id, move_id: 1, abandoned: true }),
        Command::BeginChange(change),
        Command::EndChange(EndChange { shard_id, expected_membership }),
        Command::DropReplica(DropReplica { shard_id, replica_id: 3 }),
        Command::ReplaceGroup(replace),
        Command::ReplaceGroup(ReplaceGroup { shard_id: 0, expected_group_id: 0, ..replace }),
    ]
}

fn commanded(command: Command) -> Operation {
    operation(Kind::Meta(MetaCommand { command: Some(command), ..MetaCommand::default() }))
}

fn commands() -> Vec<Vec<u8>> {
    let all = commands_about_nodes().into_iter().chain(commands_about_shards());
    all.map(|command| commanded(command).encode_to_vec()).collect()
}

fn page() -> JournalPage {
    JournalPage { before: 9, limit: 3, shard_id: Some(1), node_id: Some(2) }
}

/// A cluster that was just founded.
fn meta() -> Driven {
    let meta = Driven::of_shard(Arc::new(MemoryEngine::new()), REPLICA, ShardId::META).unwrap();
    let bootstrap = Bootstrap {
        cluster_id: "c".to_owned(),
        token: "t".to_owned(),
        shards: 1,
        replication_factor: 1,
        node: Some(started(1)),
    };
    meta.apply(0, commanded(Command::Bootstrap(bootstrap)));
    meta
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn whatever_command_of_meta_decodes_leaves_a_record_that_is_a_map(
        encoded in prop::collection::vec(garbled(commands()), 1..24),
        page in garbled(vec![page().encode_to_vec()]),
    ) {
        let meta = meta();
        for operation in encoded.iter().filter_map(|bytes| Operation::decode(bytes.as_slice()).ok()) {
            let passed = validate(&operation).is_ok();
            let index = meta.applied().map_or(0, |applied| applied + 1);
            if meta.round(&[proposal(index, index * 10_000, vec![operation])]).is_err() {
                prop_assert!(!passed, "every replica of meta would stop");
                return Ok(());
            }
            let record = meta.replica.lock().unwrap().meta().cloned().unwrap();
            prop_assert!(view::cluster_map(&record).is_ok(), "{record:?}");
        }
        if let Ok(page) = JournalPage::decode(page.as_slice()) {
            prop_assert!(meta.try_read(Read::Journal(page)).is_ok());
        }
    }

    #[test]
    fn whatever_operation_decodes_is_applied_or_refused(
        encoded in prop::collection::vec(garbled(operations()), 1..8),
        owned in any::<bool>(),
    ) {
        let replica = Driven::open(Arc::new(MemoryEngine::new()), REPLICA).unwrap();
        if owned {
            replica.apply(0, own_all());
        }
        let operations: Vec<Operation> =
            encoded.iter().filter_map(|bytes| Operation::decode(bytes.as_slice()).ok()).collect();
        let mut log_time_ms = 1;
        for operation in operations {
            // What does not pass here is never proposed; an older leader may know less, so it is applied all the same.
            let passed = validate(&operation).is_ok();
            log_time_ms += 600_000;
            let index = replica.applied().map_or(0, |applied| applied + 1);
            if replica.round(&[proposal(index, log_time_ms, vec![operation])]).is_err() {
                // It has stopped, and says why: an answer too, to what nobody proposes.
                prop_assert!(!passed, "every replica of the group would stop");
                return Ok(());
            }
        }
    }

    #[test]
    fn whatever_question_decodes_is_answered_or_refused(encoded in garbled(questions())) {
        let replica = Driven::open(Arc::new(MemoryEngine::new()), REPLICA).unwrap();
        replica.apply(0, own_all());
        replica.apply(1, operation(Kind::Put(put("k", b"value"))));
        if let Ok(request) = ReadRequest::decode(encoded.as_slice()) {
            let _ = with_view(replica.engine.as_ref(), |view| Reader::new(view, REPLICA, SHARD)?.read(&request));
        }
    }
}
