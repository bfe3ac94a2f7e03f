//! Pinned moments as a download uses them: the read of the key pins, the chunks come from the pinned moment.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test fails by panicking, and its name says what it shows"
)]

mod state_support;

use std::{io, sync::Arc};

use bytes::Bytes;
use futures::stream;
use kv_proto::{
    disk::v1::operation::Kind,
    peer::v1::{GetKeys, Pin, ReadBlob, ReadRequest, Unpin, read_request, read_response},
};
use kvnode::{
    group::type_config::{Proposal, TokioConfig},
    log::codec,
    state::{
        StateEngine,
        flush::FlushPolicy,
        hub::{Hooks, MachineOptions, ReplicaReader, StateHub},
        memory::MemoryEngine,
        options::MemoryBudget,
        rocks::RocksEngine,
        workers::Workers,
    },
    state_machine::{
        Payload, ReadyEntry,
        raft::{AlwaysDurable, StateMachine},
    },
};
use openraft::{
    Entry, EntryPayload,
    storage::{EntryResponder, RaftStateMachine},
};
use state_support::*;

const CHUNK: usize = 256 << 10;

/// One replica with an uploaded value of three chunks under `k`.
struct World {
    hub: StateHub,
    machine: StateMachine<AlwaysDurable>,
    next: u64,
}

impl World {
    async fn start(engine: Arc<dyn StateEngine>, workers: Workers) -> Self {
        let hooks = Hooks {
            fatal: Arc::new(|error| panic!("{error}")),
            damaged: Arc::new(|damage| panic!("{damage:?}")),
            metrics: Default::default(),
        };
        let hub = StateHub::with_engine(engine, FlushPolicy::default(), hooks, workers).unwrap();
        let options =
            MachineOptions { durability: AlwaysDurable, retention: Arc::new(|| None), meta_observer: None };
        let machine = hub.machine(REPLICA, SHARD, options).unwrap();
        let mut world = Self { hub, machine, next: 0 };
        let mut operations = vec![own_all(), operation(Kind::UploadBegin(begin("k", 1)))];
        for number in 0..3 {
            operations.push(operation(Kind::UploadChunk(chunk("k", 1, number, &old(number)))));
        }
        operations.push(operation(Kind::UploadCommit(commit("k", 1, 3, 3 * CHUNK as u64))));
        for operation in operations {
            world.apply(operation).await;
        }
        world
    }

    async fn apply(&mut self, operation: kv_proto::disk::v1::Operation) {
        let ReadyEntry { id, payload } = proposal(self.next, 0, vec![operation]);
        self.next += 1;
        let Payload::Proposal(bytes) = payload else { unreachable!() };
        let payload = EntryPayload::Normal(Proposal(bytes));
        let entry = Entry { log_id: codec::log_id_from_disk(&id), payload };
        let entry: Result<EntryResponder<TokioConfig>, io::Error> = Ok((entry, None));
        RaftStateMachine::<TokioConfig>::apply(&mut self.machine, stream::iter([entry])).await.unwrap();
    }

    fn reader(&self) -> ReplicaReader {
        self.hub.reader(REPLICA).unwrap()
    }

    /// Pins the moment of `key`; the upload that it names.
    async fn pin(&self, key: &'static str, pin: u8) -> Bytes {
        let keys = vec![Bytes::from_static(key.as_bytes())];
        let get = GetKeys { keys, pin_id: upload_id(pin), ..GetKeys::default() };
        match self.reader().answer(request(read_request::Read::Get(get))).await.read.unwrap() {
            read_response::Read::Get(got) => got.results[0].upload_id.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// A chunk as the pin shows it, or the reason why it is not shown.
    async fn chunk(&self, pin: u8, number: u32) -> Result<Bytes, String> {
        let pin = Some(Pin { id: upload_id(pin), node_id: 1 });
        let key = Bytes::from_static(b"k");
        let blob = ReadBlob { key, upload_id: upload_id(1), first_chunk: number, chunks: 1, pin };
        let asked = request(read_request::Read::Blob(blob));
        let answer = match self.reader().pinned(&asked) {
            Some(pinned) => pinned.await,
            None => self.reader().answer(asked).await,
        };
        match answer.read.unwrap() {
            read_response::Read::Blob(blob) => Ok(blob.chunks[0].data.clone()),
            read_response::Read::Refusal(refused) => Err(refused.reason),
            other => panic!("{other:?}"),
        }
    }

    async fn unpin(&self, pin: u8) {
        let pin = Some(Pin { id: upload_id(pin), node_id: 1 });
        let asked = request(read_request::Read::Unpin(Unpin { pin }));
        let answer = self.reader().pinned(&asked).expect("always answered").await;
        assert!(matches!(answer.read, Some(read_response::Read::Done(_))));
    }
}

fn old(number: u32) -> Vec<u8> {
    vec![u8::try_from(number).unwrap(); CHUNK]
}

fn request(read: read_request::Read) -> ReadRequest {
    ReadRequest { shard_id: SHARD.0, read: Some(read), ..ReadRequest::default() }
}

async fn pinned_value_survives(engine: Arc<dyn StateEngine>, workers: Workers) {
    let mut world = World::start(engine.clone(), workers).await;
    assert_eq!(world.pin("k", 9).await, upload_id(1));
    assert_eq!(world.chunk(9, 0).await.unwrap(), old(0));
    world.apply(operation(Kind::Put(put("k", b"new")))).await;
    assert_eq!(world.chunk(9, 1).await.unwrap(), old(1), "overwritten");
    assert!(world.pin("k", 9).await.is_empty());
    assert_eq!(world.chunk(9, 1).await.unwrap(), old(1), "a read that opened it came twice");
    world.apply(operation(Kind::Delete(delete("k")))).await;
    world.hub.flush().await.unwrap();
    assert_eq!(world.chunk(9, 2).await.unwrap(), old(2), "deleted");
    assert_eq!(world.chunk(8, 2).await.unwrap_err(), "VALUE_REPLACED", "another pin");
    assert_eq!(world.hub.pins().kept(), 1);
    world.unpin(9).await;
    assert_eq!(world.chunk(9, 2).await.unwrap_err(), "VALUE_REPLACED", "given up");
    world.unpin(9).await;
    drop(world.machine);
    world.hub.close().await.unwrap();
}

#[tokio::test]
async fn a_pinned_value_is_read_whole_although_its_key_is_overwritten_and_deleted() {
    pinned_value_survives(Arc::new(MemoryEngine::new()), simulated()).await;
    let folder = tempfile::tempdir().unwrap();
    let rocks = RocksEngine::open(folder.path(), MemoryBudget::of(64 << 20)).unwrap();
    pinned_value_survives(Arc::new(rocks), threads()).await;
}

#[tokio::test]
async fn only_an_uploaded_value_is_worth_a_pin() {
    let mut world = World::start(Arc::new(MemoryEngine::new()), simulated()).await;
    world.apply(operation(Kind::Put(put("small", b"value")))).await;
    assert!(world.pin("small", 1).await.is_empty());
    assert!(world.pin("absent", 2).await.is_empty());
    assert_eq!(world.hub.pins().kept(), 0);
    world.pin("k", 3).await;
    world.pin("k", 3).await;
    assert_eq!(world.hub.pins().kept(), 1, "a moment has one id");
}

#[tokio::test]
async fn without_a_place_for_a_pin_the_value_is_read_as_long_as_the_key_has_it() {
    let mut world = World::start(Arc::new(MemoryEngine::new()), simulated()).await;
    world.hub.pins().set_room(false);
    assert_eq!(world.pin("k", 1).await, upload_id(1));
    assert_eq!(world.chunk(1, 0).await.unwrap(), old(0));
    world.apply(operation(Kind::Put(put("k", b"new")))).await;
    assert_eq!(world.chunk(1, 1).await.unwrap_err(), "VALUE_REPLACED");
}

#[tokio::test]
async fn pins_of_a_replica_end_with_it() {
    let world = World::start(Arc::new(MemoryEngine::new()), simulated()).await;
    world.pin("k", 1).await;
    drop(world.machine);
    world.hub.remove_replicas(vec![REPLICA]).await.unwrap();
    assert_eq!(world.hub.pins().kept(), 0);
}
