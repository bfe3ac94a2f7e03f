//! The state store on RocksDB and through openraft's interface: crashes, damage, snapshots.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test fails by panicking, and its name says what it shows"
)]

mod state_support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures::stream;
use kv_proto::{
    disk::v1::{
        BlobReference, ChunkRecord, GroupRecord, InlineValue, KeyRecord, LogId, MetaCommand, NodeRecord,
        OpenSession, Operation, ReplicaRecord, SessionRecord, SlotRange, StoredOutcome, UploadRecord,
        key_record, meta_command, operation::Kind,
    },
    peer::v1::{GetKeys, JournalPage, ReadRequest, SnapshotChunk, read_request, read_response},
};
use kv_topology::{Generation, KeyspaceId, ReplicaId, ShardId};
use kvnode::{
    group::type_config::{Member, Proposal, TokioConfig},
    log::codec,
    state::{
        Batch, Damage, StateEngine, StateError, View,
        flush::FlushPolicy,
        hub::{Hooks, MachineOptions, StateHub},
        keys::{self, Scope},
        memory::MemoryEngine,
        options::MemoryBudget,
        rocks::{OpenError, RocksEngine},
        snapshot::SnapshotData,
        workers::Workers,
    },
    state_machine::{
        Payload, ReadyEntry,
        raft::{AlwaysDurable, StateMachine},
        record, session,
    },
};
use openraft::{
    Entry, EntryPayload, RaftSnapshotBuilder,
    alias::EntryOf,
    storage::{EntryResponder, RaftStateMachine},
};
use prost::Message;
use state_support::*;
use tokio::sync::mpsc;

const BUDGET: usize = 64 << 20;

fn rocks(path: &Path) -> Result<RocksEngine, OpenError> {
    RocksEngine::open(path, MemoryBudget::of(BUDGET))
}

/// The folder as a SIGKILL at this moment would leave it.
fn crash_image(from: &Path) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }
    let image = tempfile::tempdir().unwrap();
    copy(from, image.path());
    image
}

/// A hub that remembers what it told the node.
struct Node {
    hub: StateHub,
    damaged: Arc<Mutex<Vec<Damage>>>,
}

fn node(engine: Arc<dyn StateEngine>, workers: Workers) -> Node {
    let damaged = Arc::new(Mutex::new(Vec::new()));
    let told = damaged.clone();
    let hooks = Hooks {
        fatal: Arc::new(|error| panic!("{error}")),
        damaged: Arc::new(move |damage| told.lock().unwrap().push(damage)),
        metrics: Default::default(),
    };
    Node { hub: StateHub::with_engine(engine, FlushPolicy::default(), hooks, workers).unwrap(), damaged }
}

fn machine(node: &Node, replica: ReplicaId, retention: Option<LogId>) -> StateMachine<AlwaysDurable> {
    machine_of(node, replica, SHARD, retention)
}

fn machine_of(
    node: &Node,
    replica: ReplicaId,
    shard: ShardId,
    retention: Option<LogId>,
) -> StateMachine<AlwaysDurable> {
    let options = MachineOptions {
        durability: AlwaysDurable,
        retention: Arc::new(move || retention),
        meta_observer: None,
    };
    node.hub.machine(replica, shard, options).unwrap()
}

fn entry(ready: &ReadyEntry) -> EntryOf<TokioConfig> {
    let payload = match &ready.payload {
        Payload::Blank => EntryPayload::Blank,
        Payload::Proposal(bytes) => EntryPayload::Normal(Proposal(bytes.clone())),
        Payload::Membership(membership) => {
            EntryPayload::Membership(codec::membership_from_disk(membership).unwrap())
        }
    };
    Entry { log_id: codec::log_id_from_disk(&ready.id), payload }
}

async fn apply(machine: &mut StateMachine<AlwaysDurable>, entries: &[ReadyEntry]) -> io::Result<()> {
    let entries: Vec<Result<EntryResponder<TokioConfig>, io::Error>> =
        entries.iter().map(|ready| Ok((entry(ready), None))).collect();
    RaftStateMachine::<TokioConfig>::apply(machine, stream::iter(entries)).await
}

fn membership(index: u64, voters: &[u64]) -> ReadyEntry {
    let members: BTreeMap<u64, Member> = voters.iter().map(|id| (*id, Member { node: *id })).collect();
    let voters = BTreeSet::from_iter(voters.iter().copied());
    let membership = codec::Membership::new(vec![voters], members).unwrap();
    ReadyEntry { id: log_id(index), payload: Payload::Membership(codec::membership_to_disk(&membership)) }
}

fn filled(keys: u64, bytes: usize) -> Vec<ReadyEntry> {
    let mut entries = vec![membership(0, &[7, 8]), proposal(1, 0, vec![own_all()])];
    for number in 0..keys {
        // Bytes that lz4 cannot make small.
        let mut random = number.wrapping_add(1);
        let value: Vec<u8> = (0..bytes)
            .map(|_| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random.to_le_bytes()[0]
            })
            .collect();
        let put = operation(Kind::Put(put(&format!("key{number:05}"), &value)));
        entries.push(proposal(number + 2, 0, vec![put]));
    }
    entries
}

// ---- The engine ----------------------------------------------------------------------------------------------

#[test]
fn after_a_kill_data_and_applied_id_agree() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Arc::new(rocks(folder.path()).unwrap());
    let driven = Driven::open(engine.clone(), REPLICA).unwrap();
    let entries = filled(200, 100);
    for (number, entry) in entries.iter().enumerate() {
        driven.round(std::slice::from_ref(entry)).unwrap();
        if number == 120 {
            engine.flush().unwrap();
        }
    }
    let expected = driven.dump();
    let image = crash_image(folder.path());
    let reborn = Driven::open(Arc::new(rocks(image.path()).unwrap()), REPLICA).unwrap();
    assert_eq!(reborn.applied(), Some(120), "what was not flushed is gone");
    for number in 0..200_u64 {
        assert_eq!(reborn.get(&format!("key{number:05}")).is_some(), number + 2 <= 120);
    }
    reborn.round(&entries[121..]).unwrap();
    assert_eq!(reborn.dump(), expected);
}

#[test]
fn what_is_persisted_is_what_was_flushed() {
    let folder = tempfile::tempdir().unwrap();
    let engine = rocks(folder.path()).unwrap();
    let write = |value: &'static [u8]| {
        let mut batch = Batch::default();
        batch.put(b"name".to_vec(), value);
        engine.write(batch).unwrap();
    };
    write(b"old");
    engine.flush().unwrap();
    write(b"new");
    assert_eq!(engine.get(b"name").unwrap().unwrap(), "new");
    assert_eq!(engine.get_persisted(b"name").unwrap().unwrap(), "old");
    engine.check_health().unwrap();
}

#[test]
fn a_second_process_on_the_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _first = rocks(folder.path()).unwrap();
    assert!(rocks(folder.path()).is_err());
}

#[test]
fn a_flipped_byte_in_a_table_is_damage_of_the_replica_whose_it_is() {
    let folder = tempfile::tempdir().unwrap();
    {
        let engine = Arc::new(rocks(folder.path()).unwrap());
        Driven::open(engine.clone(), REPLICA).unwrap().round(&filled(20, 100_000)).unwrap();
        engine.flush().unwrap();
    }
    let tables: Vec<_> = fs::read_dir(folder.path().join("db"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sst"))
        .collect();
    assert_eq!(tables.len(), 1);
    let mut bytes = fs::read(&tables[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&tables[0], bytes).unwrap();

    let driven = Driven::open(Arc::new(rocks(folder.path()).unwrap()), REPLICA).unwrap();
    let damages: Vec<_> = (0..20)
        .filter_map(|number| {
            let keys = vec![Bytes::from(format!("key{number:05}"))];
            driven.try_read(read_request::Read::Get(GetKeys { keys, ..GetKeys::default() })).err()
        })
        .collect();
    assert!(!damages.is_empty(), "the flipped byte was served");
    for error in damages {
        assert!(matches!(&error, StateError::Damage(damage) if damage.replica == REPLICA), "{error}");
    }
    let everything =
        read_request::Read::Scan(kv_proto::peer::v1::ScanPage { count_only: true, ..Default::default() });
    assert!(matches!(driven.try_read(everything), Err(StateError::Damage(_))));
}

#[test]
fn records_on_disk_do_not_change() {
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let group = GroupRecord {
        shard_id: 1,
        revision: 5,
        log_time_ms: 300,
        slots: vec![SlotRange { first: 0, last: 4095 }],
        sessions_opened: 3,
    };
    assert_eq!(hex(group.encode_to_vec()), "0801100518ac02220310ff1f2803");
    let outcome = StoredOutcome { sequence: 2, fingerprint: 1, revision: 3, branch: true, version: 4 };
    let session =
        SessionRecord { ttl_ms: 1_000, touched_ms: 5, lowest_outstanding: 2, outcomes: vec![outcome] };
    let expected = "08e807100518022211".to_owned() + "0802" + "110100000000000000" + "180320012804";
    assert_eq!(hex(session.encode_to_vec()), expected);
    let applied = Some(LogId { term: 3, replica_id: 7, index: 9 });
    let replica = ReplicaRecord { generation: 2, applied, membership: None };
    assert_eq!(hex(replica.encode_to_vec()), "08021206080310071809");
    let inline = key_record::Value::Inline(InlineValue { data: Bytes::from_static(b"v"), crc32c: 5 });
    let mut key = KeyRecord { create_revision: 1, mod_revision: 2, version: 2, value: Some(inline) };
    assert_eq!(hex(key.encode_to_vec()), "08011002180222050a01761005");
    key.value = Some(key_record::Value::Blob(BlobReference {
        upload_id: Bytes::from_static(b"u"),
        size_bytes: 5,
        chunks: 1,
        sha256: Bytes::from_static(b"s"),
    }));
    assert_eq!(hex(key.encode_to_vec()), "0801100218022a0a0a017510051801220173");
    let upload = UploadRecord {
        key: Bytes::from_static(b"k"),
        chunks: 2,
        size_bytes: 9,
        touched_ms: 4,
        ..UploadRecord::default()
    };
    assert_eq!(hex(upload.encode_to_vec()), "0a016b200228093004");
    let chunk = ChunkRecord { data: Bytes::from_static(b"d"), crc32c: 6 };
    assert_eq!(hex(chunk.encode_to_vec()), "0a01641006");
}

/// Bytes that no compression makes smaller.
fn incompressible(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    };
    (0..bytes).map(|_| next()).collect()
}

/// A node with so many records of 1 MiB in each of these replicas, flushed.
fn node_with(folder: &Path, replicas: &[ReplicaId], records: u32) -> Node {
    let engine = Arc::new(rocks(folder).unwrap());
    for (replica, number) in
        replicas.iter().flat_map(|replica| (0..records).map(move |number| (replica, number)))
    {
        let scope = Scope::new(*replica, Generation(1)).span().start;
        let mut batch = Batch::default();
        let seed = replica.get() * 1_000 + u64::from(number);
        batch.put([scope, number.to_be_bytes().to_vec()].concat(), incompressible(seed, 1 << 20));
        engine.write(batch).unwrap();
    }
    engine.flush().unwrap();
    node(engine, threads())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_space_of_a_removed_replica_is_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let node = node_with(folder.path(), &[ReplicaId(1), ReplicaId(2), ReplicaId(3)], 8);
    let before = bytes_of_tables(folder.path());
    assert!(before > 20 << 20, "{before} B");
    node.hub.remove_replicas(vec![ReplicaId(2)]).await.unwrap();
    assert!(node.hub.give_back(vec![ReplicaId(2)], || 1 << 30).await.unwrap());
    // Files that nobody reads any more are removed in the background.
    let removed = tokio::time::timeout(std::time::Duration::from_secs(20), async {
        while bytes_of_tables(folder.path()) > 18 << 20 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    });
    removed.await.unwrap_or_else(|_| panic!("{} B are left", bytes_of_tables(folder.path())));
    let sizes = node.hub.sizes([1, 2, 3].map(ReplicaId).to_vec()).await.unwrap();
    assert!(sizes[&ReplicaId(1)] > 6 << 20 && sizes[&ReplicaId(3)] > 6 << 20, "{sizes:?}");
    // About: a record of 1 MiB of a neighbour may count.
    assert!(sizes[&ReplicaId(2)] < 2 << 20, "{sizes:?}");
}

fn bytes_of_tables(folder: &Path) -> u64 {
    let files = fs::read_dir(folder.join("db")).unwrap().filter_map(Result::ok);
    let tables = files.filter(|file| file.path().extension().is_some_and(|ending| ending == "sst"));
    tables.filter_map(|table| table.metadata().ok()).map(|table| table.len()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_space_of_deleted_records_is_given_back_when_there_is_room_for_it() {
    const RECORDS: u32 = 24;
    const MIB: usize = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    let engine = Arc::new(rocks(folder.path()).unwrap());
    let node = node(engine.clone(), threads());
    let name = |number: u32| {
        let scope = Scope::new(REPLICA, Generation(1)).span().start;
        [scope, number.to_be_bytes().to_vec()].concat()
    };
    for number in 0..RECORDS {
        let mut batch = Batch::default();
        batch.put(name(number), incompressible(u64::from(number) + 7, MIB));
        engine.write(batch).unwrap();
    }
    engine.flush().unwrap();
    let before = node.hub.deletes();
    let deletes = (2..RECORDS).map(|number| kvnode::state::Change::Delete { name: name(number) });
    engine.write(Batch { changes: deletes.collect() }).unwrap();
    assert_eq!(node.hub.deletes() - before, u64::from(RECORDS - 2));

    assert!(!node.hub.reclaim(|| 0).await.unwrap(), "there is no room for a flush");
    assert!(
        !node.hub.reclaim(|| 8 << 20).await.unwrap(),
        "all that is overlapped would be written anew first"
    );
    assert!(bytes_of_tables(folder.path()) > 20 << 20);
    assert!(node.hub.reclaim(|| 1 << 30).await.unwrap());
    // Files that nobody reads any more are removed in the background.
    let removed = tokio::time::timeout(std::time::Duration::from_secs(20), async {
        while bytes_of_tables(folder.path()) > 4 << 20 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    });
    removed.await.unwrap_or_else(|_| panic!("{} B are left", bytes_of_tables(folder.path())));
    for number in 0..RECORDS {
        let kept = (number < 2).then(|| Bytes::from(incompressible(u64::from(number) + 7, MIB)));
        assert!(engine.get(&name(number)).unwrap() == kept, "record {number}");
    }
}

// ---- The hub -------------------------------------------------------------------------------------------------

fn get(key: &str) -> ReadRequest {
    let keys = vec![Bytes::copy_from_slice(key.as_bytes())];
    let read = Some(read_request::Read::Get(GetKeys { keys, ..GetKeys::default() }));
    ReadRequest { shard_id: SHARD.0, read, ..ReadRequest::default() }
}

fn has(node: &Node, replica: ReplicaId, key: &str) -> bool {
    match node.hub.reader(replica).unwrap().read(&get(key)).read.unwrap() {
        read_response::Read::Get(got) => got.results[0].kv.is_some(),
        other => panic!("{other:?}"),
    }
}

/// A store with four tables of the same names, closed.
fn with_tables() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..4u8 {
        // Each flush makes a table, and fewer than four are not compacted.
        add_table(&rocks(folder.path()).unwrap(), round);
    }
    folder
}

fn add_table(engine: &RocksEngine, round: u8) {
    let mut batch = Batch::default();
    for number in 0..200u8 {
        let name = Scope::new(REPLICA, Generation(1)).key(KeyspaceId(0), &[number]);
        let noise = (0..400u16).map(|at| (at * 7 + u16::from(number ^ round) * 31).to_le_bytes()[0]);
        batch.put(name, noise.collect::<Vec<u8>>());
    }
    engine.write(batch).unwrap();
    engine.flush().unwrap();
}

fn files(folder: &Path, part: &str) -> Vec<std::path::PathBuf> {
    let files = fs::read_dir(folder.join("db")).unwrap().map(|file| file.unwrap().path());
    let mut found: Vec<_> = files.filter(|path| path.to_string_lossy().contains(part)).collect();
    found.sort();
    found
}

#[test]
fn a_store_that_is_damaged_as_a_whole_is_told_and_left_as_it_is() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 5] = [
        ("no root", |folder| fs::remove_file(folder.join("db/CURRENT")).unwrap()),
        ("a garbled root", |folder| fs::write(folder.join("db/CURRENT"), "MANI").unwrap()),
        ("no manifest", |folder| fs::remove_file(files(folder, "MANIFEST").pop().unwrap()).unwrap()),
        ("a garbled manifest", |folder| {
            let path = files(folder, "MANIFEST").pop().unwrap();
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x55;
            fs::write(path, bytes).unwrap();
        }),
        ("a truncated table", |folder| {
            let path = files(folder, ".sst").pop().unwrap();
            let bytes = fs::read(&path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        }),
    ];
    for (what, harm) in harms {
        let folder = with_tables();
        let tables = files(folder.path(), ".sst");
        harm(folder.path());
        match rocks(folder.path()) {
            Err(OpenError::Damaged(_)) => {}
            Err(OpenError::Failed(error)) => panic!("{what}: {error}"),
            Ok(_) => panic!("{what}: opened"),
        }
        assert_eq!(files(folder.path(), ".sst"), tables, "{what}");
    }
}

#[test]
fn damage_that_compaction_meets_ends_the_node_once_and_not_at_each_start() {
    let folder = with_tables();
    let table = files(folder.path(), ".sst").remove(0);
    let mut bytes = fs::read(&table).unwrap();
    bytes[1_000] ^= 1;
    fs::write(table, bytes).unwrap();
    let engine = rocks(folder.path()).unwrap();
    let mut round = 4;
    let failed = loop {
        if let Err(error) = engine.check_health() {
            break error;
        }
        assert!(round < 200, "compaction never met the damage");
        let mut batch = Batch::default();
        batch.put(Scope::new(REPLICA, Generation(1)).key(KeyspaceId(0), &[round]), vec![round; 100]);
        if let Err(error) = engine.write(batch).and_then(|()| engine.flush()) {
            break error;
        }
        round += 1;
    };
    assert!(failed.ends_node(), "{failed}");
    drop(engine);
    assert!(matches!(rocks(folder.path()), Err(OpenError::Damaged(_))), "{failed}");
}

#[tokio::test]
async fn damage_that_a_snapshot_meets_is_told() {
    let engine = Arc::new(MemoryEngine::new());
    let node = node(engine.clone(), simulated());
    let mut machine = machine(&node, REPLICA, None);
    apply(&mut machine, &filled(3, 10)).await.unwrap();
    node.hub.flush().await.unwrap();
    let offer = offered(&mut machine).await;
    let mut batch = Batch::default();
    batch.put(keys::replica_record(REPLICA), b"garbage".to_vec());
    engine.write(batch).unwrap();
    let mut chunks = offer.stream(ReplicaId(20), Generation(2)).unwrap();
    assert!(chunks.recv().await.unwrap().is_err());
    assert_eq!(node.damaged.lock().unwrap()[0].replica, REPLICA);
}

#[test]
fn the_replicas_of_a_store_are_found_without_being_told() {
    let engine = Arc::new(MemoryEngine::new());
    for id in [3, 700, u64::from(u32::MAX)] {
        let mut batch = Batch::default();
        batch.put(keys::replica_record(ReplicaId(id)), ReplicaRecord::default().encode_to_vec());
        batch.put(Scope::new(ReplicaId(id), Generation(1)).group(), Vec::new());
        engine.write(batch).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _entered = runtime.enter();
    let found = node(engine, simulated()).hub.replicas_on_disk().unwrap();
    assert_eq!(found, [3, 700, u64::from(u32::MAX)].map(ReplicaId));
}

#[tokio::test]
async fn a_value_that_does_not_match_its_checksum_is_not_served_and_the_node_is_told() {
    let engine = Arc::new(MemoryEngine::new());
    let node = node(engine.clone(), simulated());
    apply(&mut machine(&node, REPLICA, None), &filled(3, 10)).await.unwrap();
    let name = Scope::new(REPLICA, Generation(1)).key(KeyspaceId(0), b"key00001");
    let mut record = key_record(&engine.get(&name).unwrap().unwrap());
    let Some(key_record::Value::Inline(value)) = &mut record.value else { panic!() };
    value.crc32c ^= 1;
    let mut batch = Batch::default();
    batch.put(name, record.encode_to_vec());
    engine.write(batch).unwrap();
    let reader = node.hub.reader(REPLICA).unwrap();
    let Some(read_response::Read::Refusal(refusal)) = reader.read(&get("key00001")).read else { panic!() };
    assert_eq!(refusal.reason, "DATA_LOSS");
    assert_eq!(node.damaged.lock().unwrap()[0].replica, REPLICA);
    assert!(has(&node, REPLICA, "key00002"));
}

#[tokio::test]
async fn replicas_of_one_node_do_not_meet() {
    let engine = Arc::new(MemoryEngine::new());
    let node = node(engine.clone(), simulated());
    let (mut one, mut other) = (machine(&node, ReplicaId(1), None), machine(&node, ReplicaId(2), None));
    let (first, second) = (filled(5, 10), filled(2, 10));
    let (first, second) = tokio::join!(apply(&mut one, &first), apply(&mut other, &second));
    first.and(second).unwrap();
    node.hub.reader(ReplicaId(1)).unwrap().wait_applied(6).await;
    assert!(has(&node, ReplicaId(1), "key00004"));
    assert!(!has(&node, ReplicaId(2), "key00004"));
    drop((one, other));
    node.hub.remove_replicas(vec![ReplicaId(1)]).await.unwrap();
    assert!(dump(engine.as_ref()).keys().all(|name| keys::owner(name) == Some(ReplicaId(2))));
}

#[tokio::test]
async fn who_reads_a_replica_that_is_removed_is_not_told_that_it_is_empty() {
    let node = node(Arc::new(MemoryEngine::new()), simulated());
    let mut machine = machine(&node, REPLICA, None);
    apply(&mut machine, &filled(3, 10)).await.unwrap();
    let reader = node.hub.reader(REPLICA).unwrap();
    {
        let ended = node.hub.machine_ended(REPLICA);
        tokio::pin!(ended);
        assert!(futures::poll!(&mut ended).is_pending(), "it still applies");
        drop(machine);
        ended.await;
    }
    assert!(has(&node, REPLICA, "key00001"));
    node.hub.remove_replicas(vec![REPLICA]).await.unwrap();
    for answer in [reader.read(&get("key00001")), reader.answer(get("key00001")).await] {
        let Some(read_response::Read::Refusal(refused)) = answer.read else { panic!() };
        assert_eq!(refused.reason, kvnode::refusal::NO_REPLICA);
    }
    node.hub.machine_ended(REPLICA).await;
    node.hub.remove_replicas(vec![REPLICA]).await.unwrap();
}

#[tokio::test]
async fn an_unflushed_state_goes_on_from_the_flush_after_a_crash() {
    let engine = Arc::new(MemoryEngine::new());
    let entries = filled(10, 10);
    {
        let node = node(engine.clone(), simulated());
        let mut machine = machine(&node, REPLICA, None);
        apply(&mut machine, &entries[..5]).await.unwrap();
        node.hub.flush().await.unwrap();
        apply(&mut machine, &entries[5..]).await.unwrap();
    }
    engine.crash(0);
    let node = node(engine, simulated());
    let mut machine = machine(&node, REPLICA, None);
    let (applied, _) = RaftStateMachine::<TokioConfig>::applied_state(&mut machine).await.unwrap();
    assert_eq!(applied.unwrap().index, 4);
}

// ---- Snapshots -----------------------------------------------------------------------------------------------

async fn built(node: &Node, machine: &mut StateMachine<AlwaysDurable>) -> record::SnapshotMeta {
    let mut builder = RaftStateMachine::<TokioConfig>::get_snapshot_builder(machine).await;
    let build = RaftSnapshotBuilder::<TokioConfig>::build_snapshot(&mut builder);
    // The builder waits for a flush first: it is asked for after it began to wait.
    let (snapshot, flushed) = tokio::join!(biased; build, node.hub.flush());
    flushed.unwrap();
    snapshot.unwrap().meta
}

#[tokio::test]
async fn a_built_snapshot_reports_the_least_of_its_bounds_with_the_membership_of_that_entry() {
    let node = node(Arc::new(MemoryEngine::new()), simulated());
    let mut entries = filled(10, 10);
    entries.push(membership(12, &[7, 8, 9]));

    let mut free = machine(&node, ReplicaId(1), None);
    apply(&mut free, &entries).await.unwrap();
    let meta = built(&node, &mut free).await;
    assert_eq!(meta.last_log_id.unwrap().index, 12);
    assert_eq!(meta.last_membership.voter_ids().count(), 3);

    let mut retained = machine(&node, ReplicaId(2), Some(log_id(8)));
    apply(&mut retained, &entries).await.unwrap();
    let meta = built(&node, &mut retained).await;
    assert_eq!(meta.last_log_id.unwrap().index, 8);
    assert_eq!(meta.last_membership.voter_ids().count(), 2);

    let mut sending = machine(&node, ReplicaId(3), None);
    apply(&mut sending, &entries[..6]).await.unwrap();
    node.hub.flush().await.unwrap();
    let current = RaftStateMachine::<TokioConfig>::get_current_snapshot(&mut sending).await.unwrap().unwrap();
    apply(&mut sending, &entries[6..]).await.unwrap();
    assert_eq!(built(&node, &mut sending).await.last_log_id.unwrap().index, 5);
    drop(current);
    assert_eq!(built(&node, &mut sending).await.last_log_id.unwrap().index, 12);
}

#[tokio::test]
async fn a_replica_without_anything_on_disk_offers_no_snapshot() {
    let node = node(Arc::new(MemoryEngine::new()), simulated());
    let mut machine = machine(&node, REPLICA, None);
    apply(&mut machine, &filled(1, 10)).await.unwrap();
    assert!(RaftStateMachine::<TokioConfig>::get_current_snapshot(&mut machine).await.unwrap().is_none());
}

async fn offered(machine: &mut StateMachine<AlwaysDurable>) -> kvnode::state::snapshot::SnapshotSource {
    let snapshot = RaftStateMachine::<TokioConfig>::get_current_snapshot(machine).await.unwrap().unwrap();
    match snapshot.snapshot {
        SnapshotData::OnDemand(source) => source,
        SnapshotData::Staged(_) => panic!("a snapshot of our own is not staged"),
    }
}

/// Sends a snapshot while the source is written over, and installs it over other data.
async fn sends_and_installs(from: Arc<dyn StateEngine>, to: Arc<dyn StateEngine>, workers: Workers) {
    let (sender, receiver) = (node(from.clone(), workers.clone()), node(to.clone(), workers));
    let (source, target) = (ReplicaId(1), ReplicaId(20));
    let mut entries = filled(40, 50_000);
    let in_session = Operation {
        session_id: session::id_of(SHARD, 1).unwrap(),
        sequence: 1,
        lowest_outstanding: 1,
        ..operation(Kind::Put(put("in-session", b"value")))
    };
    let open = operation(Kind::OpenSession(OpenSession { ttl_ms: 1_000 }));
    entries[1] = proposal(1, 0, vec![own_all(), open, in_session.clone()]);
    let mut sending = machine(&sender, source, None);
    apply(&mut sending, &entries).await.unwrap();
    sender.hub.flush().await.unwrap();
    let expected = dump(from.as_ref());

    let mut receiving = machine(&receiver, target, None);
    let old = operation(Kind::Put(put("old", b"value")));
    apply(&mut receiving, &[proposal(0, 0, vec![own_all(), old])]).await.unwrap();
    assert!(has(&receiver, target, "old"));

    let mut stage = receiver.hub.stage_snapshot(target).unwrap();
    assert_eq!(stage.generation(), Generation(2));
    let offer = offered(&mut sending).await;
    let mut chunks = offer.stream(target, stage.generation()).unwrap();
    let first = chunks.recv().await.unwrap().unwrap();
    // The source goes on; the snapshot does not notice.
    let last = entries.last().unwrap().id.index;
    let deletes = operation(Kind::DeleteRange(delete_range("", "", 0)));
    apply(&mut sending, &[proposal(last + 1, 0, vec![deletes])]).await.unwrap();
    stage.accept(first).await.unwrap();
    let mut count = 1;
    while let Some(chunk) = chunks.recv().await {
        stage.accept(chunk.unwrap()).await.unwrap();
        count += 1;
    }
    assert!(count > 4, "{count} chunks");
    let staged = stage.finish().unwrap();
    assert_eq!(staged.end.last_log_id, Some(log_id(last)));
    assert!(has(&receiver, target, "old"), "nothing changes before the installation");

    let meta =
        record::snapshot_meta(staged.end.last_log_id.as_ref(), staged.end.membership.as_ref()).unwrap();
    RaftStateMachine::<TokioConfig>::install_snapshot(&mut receiving, &meta, SnapshotData::Staged(staged))
        .await
        .unwrap();
    assert!(!has(&receiver, target, "old"), "the old generation can still be read");
    assert!(has(&receiver, target, "key00039"));
    let scope = Scope::new(target, Generation(2));
    let record = keys::replica_record(source);
    let moved: BTreeMap<_, _> = expected
        .iter()
        .filter(|(name, _)| **name != record)
        .map(|(name, value)| (keys::moved_to(scope, name).unwrap(), value.clone()))
        .collect();
    let mut installed = dump(to.as_ref());
    let switch = installed.remove(&keys::replica_record(target)).unwrap();
    assert_eq!(ReplicaRecord::decode(switch.as_slice()).unwrap().applied, Some(log_id(last)));
    assert_eq!(installed, moved);
    // The receiver goes on from there, and knows which writes were applied already.
    let more = operation(Kind::Put(put("more", b"value")));
    apply(&mut receiving, &[proposal(last + 1, 0, vec![more, in_session])]).await.unwrap();
    assert!(has(&receiver, target, "more"));
    let reader = receiver.hub.reader(target).unwrap();
    assert_eq!(reader.sessions(), (1, 1));
    let one_per_key_and_more = 40 + 2;
    assert_eq!(reader.revision(), 1 + one_per_key_and_more);
}

#[tokio::test]
async fn a_snapshot_of_the_meta_group_carries_its_journal() {
    let (from, to): (Arc<dyn StateEngine>, Arc<dyn StateEngine>) =
        (Arc::new(MemoryEngine::new()), Arc::new(MemoryEngine::new()));
    let (sender, receiver) = (node(from, simulated()), node(to.clone(), simulated()));
    let (source, target) = (ReplicaId(1), ReplicaId(20));
    let machine = |node: &Node, replica| machine_of(node, replica, ShardId::META, None);
    let founded = founding(&["one", "two", "three"]);
    let mut sending = machine(&sender, source);
    apply(&mut sending, &[membership(0, &[7, 8]), proposal(1, 0, founded)]).await.unwrap();
    sender.hub.flush().await.unwrap();

    let mut receiving = machine(&receiver, target);
    apply(&mut receiving, &[proposal(0, 0, founding(&["old"; 9]))]).await.unwrap();
    let mut stage = receiver.hub.stage_snapshot(target).unwrap();
    let mut chunks = offered(&mut sending).await.stream(target, stage.generation()).unwrap();
    while let Some(chunk) = chunks.recv().await {
        stage.accept(chunk.unwrap()).await.unwrap();
    }
    let staged = stage.finish().unwrap();
    let meta =
        record::snapshot_meta(staged.end.last_log_id.as_ref(), staged.end.membership.as_ref()).unwrap();
    RaftStateMachine::<TokioConfig>::install_snapshot(&mut receiving, &meta, SnapshotData::Staged(staged))
        .await
        .unwrap();
    // The receiver goes on where the sender was.
    apply(&mut receiving, &[proposal(2, 0, vec![noted("four")])]).await.unwrap();
    let read = Some(read_request::Read::Journal(JournalPage::default()));
    let journal = ReadRequest { shard_id: ShardId::META.0, read, ..ReadRequest::default() };
    let read_response::Read::Journal(journal) =
        receiver.hub.reader(target).unwrap().read(&journal).read.unwrap()
    else {
        panic!("no journal");
    };
    let told: Vec<(u64, String)> = journal
        .entries
        .iter()
        .map(|entry| (entry.sequence, kvnode::meta::journal::entry(entry).event))
        .collect();
    let notes = ["four", "three", "two", "one"].map(str::to_owned);
    let founded = "n1 founds cluster c: 1 shards, replication factor 1".to_owned();
    let expected: Vec<(u64, String)> = (1..=5).rev().zip(notes.into_iter().chain([founded])).collect();
    assert_eq!(told, expected);
}

fn noted(event: &str) -> Operation {
    let note = meta_command::Note { event: event.to_owned(), ..meta_command::Note::default() };
    let command = Some(meta_command::Command::Note(note));
    operation(Kind::Meta(MetaCommand { command, ..MetaCommand::default() }))
}

/// The first command of a cluster, and notes.
fn founding(events: &[&str]) -> Vec<Operation> {
    let node = NodeRecord {
        name: "n1".to_owned(),
        disk_uuid: vec![1; 16].into(),
        client_address: "host:1".to_owned(),
        peer_address: "host:2".to_owned(),
        ..NodeRecord::default()
    };
    let bootstrap = meta_command::Bootstrap {
        cluster_id: "c".to_owned(),
        token: "t".to_owned(),
        shards: 1,
        replication_factor: 1,
        node: Some(node),
    };
    let command = Some(meta_command::Command::Bootstrap(bootstrap));
    let bootstrap = operation(Kind::Meta(MetaCommand { command, ..MetaCommand::default() }));
    [bootstrap].into_iter().chain(events.iter().map(|event| noted(event))).collect()
}

#[tokio::test]
async fn a_snapshot_goes_from_memory_to_memory() {
    sends_and_installs(Arc::new(MemoryEngine::new()), Arc::new(MemoryEngine::new()), simulated()).await;
}

#[tokio::test]
async fn a_snapshot_goes_from_disk_to_disk_and_is_durable_when_installed() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let engine = Arc::new(rocks(to.path()).unwrap());
    sends_and_installs(Arc::new(rocks(from.path()).unwrap()), engine.clone(), threads()).await;
    // No flush of ours since: what the installation left is what a kill leaves.
    let image = crash_image(to.path());
    let reborn = Driven::open(Arc::new(rocks(image.path()).unwrap()), ReplicaId(20)).unwrap();
    assert_eq!(reborn.applied(), Some(41));
    assert!(reborn.get("key00039").is_some());
    assert!(reborn.get("old").is_none());
    let staged = fs::read_dir(to.path().join("staging")).unwrap().count();
    assert_eq!(staged, 0, "files were left behind");
}

async fn received(mut stream: mpsc::Receiver<io::Result<SnapshotChunk>>) -> Vec<SnapshotChunk> {
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.recv().await {
        chunks.push(chunk.unwrap());
    }
    chunks
}

#[tokio::test]
async fn chunks_that_are_damaged_missing_or_repeated_are_refused() {
    let node = node(Arc::new(MemoryEngine::new()), simulated());
    let mut machine = machine(&node, REPLICA, None);
    apply(&mut machine, &filled(10, 100_000)).await.unwrap();
    node.hub.flush().await.unwrap();
    let offer = offered(&mut machine).await;
    let chunks = received(offer.stream(REPLICA, Generation(9)).unwrap()).await;
    assert!(chunks.len() > 2);

    let mut stage = node.hub.stage_snapshot(REPLICA).unwrap();
    let mut flipped = chunks[0].clone();
    flipped.crc32c ^= 1;
    assert!(matches!(stage.accept(flipped).await, Err(StateError::BadSnapshot(_))));
    assert!(matches!(stage.accept(chunks[1].clone()).await, Err(StateError::BadSnapshot(_))));
    stage.accept(chunks[0].clone()).await.unwrap();
    assert!(matches!(stage.accept(chunks[0].clone()).await, Err(StateError::BadSnapshot(_))));
    assert!(matches!(stage.finish(), Err(StateError::BadSnapshot(_))));
}

#[tokio::test]
async fn two_snapshots_come_in_at_a_time_each_with_a_generation_of_its_own() {
    let node = node(Arc::new(MemoryEngine::new()), simulated());
    let _machine = machine(&node, REPLICA, None);
    let one = node.hub.stage_snapshot(REPLICA).unwrap();
    let two = node.hub.stage_snapshot(REPLICA).unwrap();
    assert_ne!(one.generation(), two.generation());
    assert!(matches!(node.hub.stage_snapshot(REPLICA), Err(StateError::Busy { .. })));
    drop(one);
    let three = node.hub.stage_snapshot(REPLICA).unwrap();
    assert!(three.generation() > two.generation());
    assert!(matches!(node.hub.stage_snapshot(ReplicaId(99)), Err(StateError::BadSnapshot(_))));
}

/// A table with these names, as a sender would cut it into chunks.
fn table_of(engine: &dyn StateEngine, names: &[Vec<u8>]) -> Vec<SnapshotChunk> {
    let table = engine.build_table(&mut |sink| names.iter().try_for_each(|name| sink.put(name, b"value")));
    let mut chunks = Vec::new();
    table
        .unwrap()
        .unwrap()
        .read_pieces(64 << 10, &mut |offset, data, end_of_file| {
            let crc32c = crc32c::crc32c(&data);
            chunks.push(SnapshotChunk {
                offset,
                data: data.into(),
                crc32c,
                end_of_file,
                ..Default::default()
            });
            true
        })
        .unwrap();
    chunks
}

async fn refuses_foreign_records(from: Arc<dyn StateEngine>, to: Arc<dyn StateEngine>, workers: Workers) {
    let node = node(to.clone(), workers);
    let mut machine = machine(&node, REPLICA, None);
    apply(&mut machine, &filled(3, 100)).await.unwrap();
    let before = dump(to.as_ref());
    let in_scope = |replica: ReplicaId, generation: Generation, key: &str| {
        Scope::new(replica, generation).key(KeyspaceId(0), key.as_bytes())
    };
    let generation = node.hub.stage_snapshot(REPLICA).unwrap().generation();
    let next = |generation: Generation, add: u64| Generation(generation.0 + add);
    // Each stage gets the next generation; a table is right, or foreign at one of its ends.
    for (number, (first, last, is_right)) in [
        ((REPLICA, 0), (REPLICA, 0), true),
        ((REPLICA, 0), (ReplicaId(REPLICA.0 + 1), 0), false),
        ((ReplicaId(REPLICA.0 - 1), 0), (REPLICA, 0), false),
        ((REPLICA, 0), (REPLICA, 1), false),
    ]
    .into_iter()
    .enumerate()
    {
        let mut stage = node.hub.stage_snapshot(REPLICA).unwrap();
        assert_eq!(stage.generation(), next(generation, number as u64 + 1));
        let name =
            |(replica, add): (ReplicaId, u64), key| in_scope(replica, next(stage.generation(), add), key);
        let names = [name(first, "a"), name(last, "z")];
        let mut result = Ok(());
        for chunk in table_of(from.as_ref(), &names) {
            result = stage.accept(chunk).await;
        }
        match result {
            Ok(()) => assert!(is_right, "table {number} was taken"),
            Err(StateError::BadSnapshot(why)) => {
                assert!(!is_right && why.contains("another replica or generation"), "table {number}: {why}");
            }
            Err(error) => panic!("table {number}: {error}"),
        }
    }
    assert_eq!(dump(to.as_ref()), before, "nothing was taken in");
}

#[tokio::test]
async fn a_table_with_records_of_another_replica_or_generation_is_refused() {
    refuses_foreign_records(Arc::new(MemoryEngine::new()), Arc::new(MemoryEngine::new()), simulated()).await;
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (rocks(from.path()).unwrap(), rocks(to.path()).unwrap());
    refuses_foreign_records(Arc::new(from), Arc::new(to), threads()).await;
}
