//! A disk that survived its cluster: a node under `--recovery` shows and rewrites it, and goes on alone from it; what was given
//! up with its group never starts. In one process, with the disks of the others never made.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test fails by panicking, and its name says what it shows"
)]

use std::{fs, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use clap::Parser;
use kv_proto::{
    admin::v1::{
        FenceReplica, GetNodeStatusRequest, InspectRequest, InspectResponse, LogPosition, NodeStatus, Phase,
        ReplaceGroupRequest, ReplaceShardGroup, ReplicaOnDisk, RewriteMeta, RewriteReplica, RewriteRequest,
        RewriteResponse, Role, admin_client::AdminClient, recovery_client::RecoveryClient,
    },
    disk::v1::{
        LogEntry, LogId, Member, Membership, MetaCommand, MetaRecord, NodeRecord, NodeState, Operation,
        OwnSlots, Proposal, Put, ReplicaDescriptor, ReplicaPlacement, ShardRecord, SlotRange,
        StoredMembership, Vote, VoterSet,
        log_entry::Payload,
        meta_command::{Bootstrap, Command, CreateShards, ObserveMembership, RegisterNode, SetNodeState},
        operation::Kind,
    },
    kv::v1::{GetRequest, key_value::Value, kv_client::KvClient},
};
use kvnode::{
    config::{ByteCount, Config, Flags, validate},
    data_dir::DataDir,
    log::hub::rewrite::Rewrite,
    meta::machine,
    node::{Fatal, Node, memory::MemoryPlan, stores::Stores},
    runtime::Tasks,
};
use prost::Message;
use rand::{SeedableRng, rngs::StdRng};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tonic::{Code, transport::Channel};

#[path = "recovery/deciding.rs"]
mod deciding;

/// For anything that a node does by itself, on a busy machine.
const LONG: Duration = Duration::from_secs(30);
const CLUSTER: &str = "c1";
/// Of meta's replica and of that of shard 1 on this disk; those of the other two nodes come after each.
const META: u64 = 1;
const DATA: u64 = 4;

fn fatal() -> Fatal {
    Arc::new(|reason| panic!("{reason}"))
}

async fn config(folder: &Path, flags: &[&str]) -> Config {
    let mut line = vec!["kvnode".to_owned(), "--node-name".to_owned(), "n1".to_owned()];
    line.extend(["--ballast", "0", "--data-dir"].map(str::to_owned));
    line.push(folder.display().to_string());
    for flag in ["--client-listen", "--peer-listen", "--http-listen"] {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        line.extend([flag.to_owned(), free.local_addr().unwrap().to_string()]);
    }
    line.extend(flags.iter().map(|flag| (*flag).to_owned()));
    validate(&Flags::parse_from(line), ByteCount(1 << 30)).unwrap()
}

/// A node and a connection to it.
struct Running {
    node: Node,
    /// Of clients.
    address: String,
    channel: Channel,
}

impl Running {
    async fn start(folder: &Path, flags: &[&str]) -> Self {
        let config = config(folder, flags).await;
        let started = timeout(LONG, async {
            loop {
                let node = Node::start(config.clone(), StdRng::seed_from_u64(7), fatal()).await;
                match node {
                    // The stores that were open here before close with the last of their readers, which nobody waits for.
                    Err(error) if format!("{error:#}").contains("lock hold by current process") => {
                        sleep(Duration::from_millis(10)).await;
                    }
                    started => return started,
                }
            }
        });
        let node = started.await.unwrap().unwrap();
        let address = config.listen.client.to_string();
        let channel = Channel::from_shared(format!("http://{address}")).unwrap();
        Self { node, address, channel: channel.connect_lazy() }
    }

    async fn status(&self) -> NodeStatus {
        AdminClient::new(self.channel.clone())
            .get_node_status(GetNodeStatusRequest {})
            .await
            .unwrap()
            .into_inner()
    }

    async fn wait(&self, what: &str, is_so: impl Fn(&NodeStatus) -> bool) -> NodeStatus {
        let waited = timeout(LONG, async {
            loop {
                let status = self.status().await;
                if is_so(&status) {
                    return status;
                }
                sleep(Duration::from_millis(10)).await;
            }
        });
        match waited.await {
            Ok(status) => status,
            Err(_) => panic!("waited {LONG:?} for {what}: {:?}", self.status().await),
        }
    }

    async fn inspect(&self) -> InspectResponse {
        RecoveryClient::new(self.channel.clone()).inspect(InspectRequest {}).await.unwrap().into_inner()
    }

    async fn rewrite(&self, request: RewriteRequest) -> Result<RewriteResponse, tonic::Status> {
        let answer = RecoveryClient::new(self.channel.clone()).rewrite(request).await;
        answer.map(tonic::Response::into_inner)
    }

    /// The new group.
    async fn replace_group(&self, request: ReplaceGroupRequest) -> Result<u64, tonic::Status> {
        let answer = RecoveryClient::new(self.channel.clone()).replace_group(request).await;
        answer.map(|answer| answer.into_inner().group_id)
    }

    async fn get(&self, key: &'static str) -> Result<Option<Bytes>, tonic::Status> {
        let request = GetRequest { key: Bytes::from_static(key.as_bytes()), ..GetRequest::default() };
        let got = KvClient::new(self.channel.clone()).get(request).await?.into_inner();
        Ok(got.kv.and_then(|kv| match kv.value {
            Some(Value::Inline(bytes)) => Some(bytes),
            _ => None,
        }))
    }
}

fn command(command: Command) -> MetaCommand {
    MetaCommand { command: Some(command), ..MetaCommand::default() }
}

fn members(first: u64) -> Membership {
    let ids: Vec<u64> = (first..first + 3).collect();
    Membership {
        members: ids.iter().zip(1..).map(|(id, node_id)| Member { replica_id: *id, node_id }).collect(),
        voters: vec![VoterSet { replica_ids: ids }],
    }
}

fn node_record(number: u8, disk_uuid: Vec<u8>) -> NodeRecord {
    NodeRecord {
        name: format!("n{number}"),
        disk_uuid: disk_uuid.into(),
        // Nobody listens there.
        client_address: format!("127.0.0.1:{number}"),
        peer_address: format!("127.0.0.1:{}", number + 10),
        ..NodeRecord::default()
    }
}

/// A cluster of three with one shard, and what its commands come to.
fn history(disk_uuid: &[u8]) -> (Vec<MetaCommand>, MetaRecord) {
    let (mut commands, mut record) = (Vec::new(), MetaRecord::default());
    let mut add = |next: &dyn Fn(&MetaRecord) -> Command| {
        let next = command(next(&record));
        machine::apply(&mut record, &next, 0).unwrap();
        commands.push(next);
    };
    add(&|_| {
        Command::Bootstrap(Bootstrap {
            cluster_id: CLUSTER.to_owned(),
            token: String::new(),
            shards: 1,
            replication_factor: 3,
            node: Some(node_record(1, disk_uuid.to_vec())),
        })
    });
    for number in 2..=3 {
        let node = Some(node_record(number, vec![number; 16]));
        add(&|_| Command::RegisterNode(RegisterNode { node: node.clone(), name_holder_alive: false }));
        let (from, to) = (NodeState::Joining.into(), NodeState::Active.into());
        add(&|_| Command::SetNodeState(SetNodeState { node_id: number.into(), from, to }));
    }
    let log_id = Some(LogId { term: 1, replica_id: META, index: 0 });
    add(&|_| {
        let membership = Some(StoredMembership { log_id, membership: Some(members(META)) });
        Command::ObserveMembership(ObserveMembership { shard_id: 0, group_id: 0, membership })
    });
    add(&|record| {
        let shard = ShardRecord {
            shard_id: 1,
            slots: vec![SlotRange { first: 0, last: 4095 }],
            replicas: (1..=3).map(|node_id| ReplicaPlacement { replica_id: 0, node_id }).collect(),
            preferred_leader_node_id: 1,
            initializer_node_id: 1,
            ..ShardRecord::default()
        };
        Command::CreateShards(CreateShards { shards: vec![shard], expected_epoch: record.epoch })
    });
    let ids: Vec<u64> = record.shards[1].replicas.iter().map(|placement| placement.replica_id).collect();
    assert_eq!(ids, [DATA, DATA + 1, DATA + 2], "as the tests have it");
    (commands, record)
}

/// A log of a group of three that this replica followed: its membership, and these operations, an entry each.
fn seeded(descriptor: ReplicaDescriptor, operations: Vec<Vec<Operation>>) -> Rewrite {
    let first = descriptor.replica_id;
    let entry = |leader: (u64, u64), index: u64, payload| LogEntry {
        log_id: Some(LogId { term: leader.0, replica_id: leader.1, index }),
        payload: Some(payload),
    };
    let mut entries = vec![entry((1, first), 0, Payload::Membership(members(first)))];
    for (operations, index) in operations.into_iter().zip(1..) {
        let proposal = Proposal { log_time_ms: 0, operations };
        entries.push(entry((3, first + 1), index, Payload::Proposal(proposal.encode_to_vec().into())));
    }
    let vote = Some(Vote { term: 4, replica_id: first + 2, committed: true });
    Rewrite { descriptor, vote, purged: None, entries }
}

fn descriptor(replica_id: u64, shard_id: u32, group_id: u64) -> ReplicaDescriptor {
    ReplicaDescriptor { replica_id, shard_id, group_id, ..ReplicaDescriptor::default() }
}

fn put(key: &'static str, value: &'static str) -> Operation {
    let value = Bytes::from_static(value.as_bytes());
    let put = Put {
        key: Bytes::from_static(key.as_bytes()),
        value_crc32c: crc32c::crc32c(&value),
        value,
        ..Put::default()
    };
    Operation { kind: Some(Kind::Put(put)), ..Operation::default() }
}

/// The disk of n1 as a crash left it: all is in the logs, and nothing of it in the state yet. `change` makes it another one.
async fn disk(change: impl FnOnce(&mut MetaRecord)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), &[]).await;
    let mut dir = DataDir::open(folder.path(), &config.node_name, &mut StdRng::seed_from_u64(1)).unwrap();
    let tasks = Tasks::new("filling");
    let memory = MemoryPlan::of(config.memory);
    let metrics = kvnode::metrics::LogMetrics::default();
    let stores = Stores::open(&dir, &config, &memory, &tasks.spawner(), fatal(), &metrics).await.unwrap();
    let (commands, mut record) = history(dir.identity().disk_uuid.as_bytes());
    let meta = commands
        .into_iter()
        .map(|command| Operation { kind: Some(Kind::Meta(command)), ..Operation::default() });
    let slots = OwnSlots { shard_id: 1, slots: vec![SlotRange { first: 0, last: 4095 }] };
    let slots = Operation { kind: Some(Kind::OwnSlots(slots)), ..Operation::default() };
    let data = vec![vec![slots], vec![put("k", "v")], vec![put("k2", "never acknowledged, perhaps")]];
    let logs = [seeded(descriptor(META, 0, 0), vec![meta.collect()]), seeded(descriptor(DATA, 1, 1), data)];
    for log in &logs {
        stores.host(log.descriptor.clone()).await.unwrap();
    }
    stores.log.rewrite(logs.to_vec()).await.unwrap();
    change(&mut record);
    stores.kept.keep_meta(record).unwrap();
    dir.belong_to(CLUSTER, 1).unwrap();
    stores.close().await.unwrap();
    drop(stores);
    tasks.shutdown().await;
    folder
}

fn of(disk: &InspectResponse, replica: u64) -> &ReplicaOnDisk {
    disk.replicas.iter().find(|known| known.replica_id == replica).unwrap()
}

/// Everything goes on here, as it was inspected.
fn order(disk: &InspectResponse) -> RewriteRequest {
    let last = |replica: u64| of(disk, replica).last;
    let data = ReplaceShardGroup {
        shard_id: 1,
        expected_group_id: 1,
        replica_id: DATA,
        node_id: 1,
        last: last(DATA),
    };
    RewriteRequest {
        cluster_id: CLUSTER.to_owned(),
        meta: Some(RewriteMeta {
            replica_id: META,
            group_id: 0,
            last: last(META),
            replace: vec![data],
            seen: Vec::new(),
        }),
        replicas: vec![RewriteReplica {
            shard_id: 1,
            replica_id: DATA,
            group_id: 1,
            new_group_id: 0,
            last: last(DATA),
        }],
        fences: Vec::new(),
        actor: "test".to_owned(),
        reason: "two disks are gone".to_owned(),
    }
}

fn groups(reply: &RewriteResponse) -> Vec<(u32, u64)> {
    reply.groups.iter().map(|group| (group.shard_id, group.group_id)).collect()
}

fn role_of(status: &NodeStatus, replica: u64) -> Option<Role> {
    let found = status.replicas.iter().find(|known| known.replica_id == replica);
    found.map(|replica| replica.role())
}

const RECOVERY: &[&str] = &["--recovery"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_under_recovery_shows_its_disk_and_starts_nothing() {
    let folder = disk(|_| {}).await;
    let running = Running::start(folder.path(), RECOVERY).await;
    let status = running.status().await;
    assert_eq!(
        (status.phase(), status.ready, status.replicas.len()),
        (Phase::Recovering, false, 0),
        "{status:?}"
    );
    assert!(status.message.contains("--recovery"), "{}", status.message);
    assert_eq!(running.get("k").await.unwrap_err().code(), Code::Unavailable);

    let disk = running.inspect().await;
    assert_eq!((disk.node_id, disk.cluster_id.as_str(), disk.recovering), (1, CLUSTER, true));
    let at = |index| Some(LogPosition { term: 3, replica_id: DATA + 1, index });
    let data = of(&disk, DATA);
    assert_eq!((data.shard_id, data.group_id, data.vote_term, data.last), (1, 1, 4, at(3)));
    let voters: Vec<_> =
        data.membership.iter().flat_map(|told| &told.voters).map(|set| set.replica_ids.clone()).collect();
    assert_eq!(voters, [[DATA, DATA + 1, DATA + 2]]);
    let record = disk.record.unwrap();
    assert!(record.of_replica, "what its log comes to, though nothing of it is applied");
    assert_eq!((record.nodes.len(), record.shards.len()), (3, 2));
    running.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_goes_on_alone_with_everything_that_was_in_its_log() {
    let folder = disk(|_| {}).await;
    let running = Running::start(folder.path(), RECOVERY).await;
    let before = running.inspect().await;
    let reply = running.rewrite(order(&before)).await.unwrap();
    let (meta, data) = (1 + machine::ID_GAP, 2 + machine::ID_GAP);
    let new = [(0, meta + 1), (1, data + 1)];
    assert_eq!(groups(&reply), new);
    assert!(reply.epoch > machine::EPOCH_GAP);
    running.node.stop().await;

    let running = Running::start(folder.path(), &[]).await;
    let leads = |status: &NodeStatus, replica| role_of(status, replica) == Some(Role::Leader);
    let status =
        running.wait("leaders of both groups", |status| leads(status, META) && leads(status, DATA)).await;
    let served: Vec<_> = status.replicas.iter().map(|replica| (replica.shard_id, replica.group_id)).collect();
    assert_eq!(served, new);
    running.wait("readiness", |status| status.ready).await;
    assert_eq!(running.get("k").await.unwrap(), Some(Bytes::from_static(b"v")));
    assert!(running.get("k2").await.unwrap().is_some(), "what nobody knew to be committed happens now");
    let status = running
        .wait("the revision", |status| status.replicas.iter().any(|replica| replica.revision > 1_000_000));
    assert!(status.await.map_epoch >= reply.epoch);
    running.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewriting_that_comes_again_writes_nothing() {
    let folder = disk(|_| {}).await;
    let running = Running::start(folder.path(), RECOVERY).await;
    let order = order(&running.inspect().await);
    let first = running.rewrite(order.clone()).await.unwrap();
    let after = running.inspect().await;
    assert_eq!(running.rewrite(order.clone()).await.unwrap(), first);
    assert_eq!(running.inspect().await, after);
    running.node.stop().await;
    // Nor after the node was killed between the write and the answer.
    let running = Running::start(folder.path(), RECOVERY).await;
    assert_eq!(running.rewrite(order).await.unwrap(), first);
    assert_eq!(running.inspect().await.replicas, after.replicas);
    running.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_as_it_was_seen_is_not_rewritten() {
    let folder = disk(|_| {}).await;
    let running = Running::start(folder.path(), RECOVERY).await;
    let before = running.inspect().await;
    let good = order(&before);
    let (mut of_another, mut moved_on, mut unknown) = (good.clone(), good.clone(), good.clone());
    of_another.cluster_id = "c2".to_owned();
    moved_on.replicas[0].last = Some(LogPosition { term: 3, replica_id: DATA + 1, index: 2 });
    unknown.replicas[0].replica_id = DATA + 1;
    for (wrong, expected) in [
        (of_another, "is of cluster c1, not of c2"),
        (moved_on, "inspect it again"),
        (unknown, "has no replica 5"),
    ] {
        let refused = running.rewrite(wrong).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains(expected), "{}", refused.message());
    }
    assert_eq!(running.inspect().await, before, "not even the sound part of a request is written");
    running.node.stop().await;

    let running = Running::start(folder.path(), &[]).await;
    running.wait("a node that runs", |status| status.phase() == Phase::Running).await;
    let refused = running.rewrite(good).await.unwrap_err();
    assert!(refused.message().contains("start it with --recovery"), "{}", refused.message());
    running.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_of_a_group_that_was_given_up_never_starts() {
    let news = |record: &mut MetaRecord| {
        record.epoch += machine::EPOCH_GAP;
        for shard in &mut record.shards {
            shard.group_id += machine::ID_GAP;
            shard.replicas.clear();
        }
    };
    let folder = disk(news).await;
    // As often as it is started.
    for _ in 0..2 {
        let running = Running::start(folder.path(), &[]).await;
        let status = running.wait("a node that runs", |status| status.phase() == Phase::Running).await;
        assert_eq!(role_of(&status, META), Some(Role::Quarantined), "{status:?}");
        assert_eq!(role_of(&status, DATA), Some(Role::Quarantined), "{status:?}");
        assert!(status.replicas.iter().any(|replica| replica.message.contains("was given up")), "{status:?}");
        running.node.stop().await;
    }
    // It is marked on the disk itself: the map may be lost.
    fs::remove_file(folder.path().join("CLUSTER")).unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let status = running.wait("a node that runs", |status| status.phase() == Phase::Running).await;
    assert_eq!(role_of(&status, META), Some(Role::Quarantined), "{status:?}");
    running.node.stop().await;
}

/// The process died after the one write, before it kept the new map.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_starts_though_its_node_knows_only_the_map_of_before() {
    let folder = disk(|_| {}).await;
    let kept = folder.path().join("CLUSTER");
    let running = Running::start(folder.path(), RECOVERY).await;
    let of_before = fs::read(&kept).unwrap();
    running.rewrite(order(&running.inspect().await)).await.unwrap();
    running.node.stop().await;
    fs::write(&kept, of_before).unwrap();
    let running = Running::start(folder.path(), &[]).await;
    running.wait("readiness", |status| status.ready).await;
    assert_eq!(running.get("k").await.unwrap(), Some(Bytes::from_static(b"v")));
    running.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_that_was_not_chosen_is_closed_out_and_keeps_what_it_has() {
    let folder = disk(|_| {}).await;
    let running = Running::start(folder.path(), RECOVERY).await;
    let before = running.inspect().await;
    let fence = FenceReplica { shard_id: 1, replica_id: DATA, group_id: 1, new_group_id: 12 };
    let request = RewriteRequest { meta: None, replicas: Vec::new(), fences: vec![fence], ..order(&before) };
    assert_eq!(groups(&running.rewrite(request).await.unwrap()), [(1, 12)]);
    let after = running.inspect().await;
    let (was, is) = (of(&before, DATA), of(&after, DATA));
    assert_eq!((is.replaced_by_group_id, is.last), (12, was.last), "it can be looked at");
    running.node.stop().await;
    let running = Running::start(folder.path(), &[]).await;
    let status = running.wait("a node that runs", |status| status.phase() == Phase::Running).await;
    assert_eq!(role_of(&status, DATA), Some(Role::Quarantined), "{status:?}");
    running.node.stop().await;
}

#[tokio::test]
async fn a_folder_without_a_cluster_has_nothing_to_recover_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), RECOVERY).await;
    let refused = Node::start(config, StdRng::seed_from_u64(7), fatal()).await.map(drop).unwrap_err();
    assert!(format!("{refused:#}").contains("it holds no IDENTITY"), "{refused:#}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
