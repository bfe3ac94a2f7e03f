//! A node that founds a cluster, cut off at any step; who may take a name.

use std::{path::Path, sync::Arc, time::Duration};

use clap::Parser;
use kv_proto::{
    admin::v1::{BootstrapRequest, NodeInfo, Phase},
    disk::v1::{Founding, ReplicaDescriptor},
    peer::v1::{
        ControlRequest, CreateReplica, ReadIndexRequest, ReadRequest, ScanPage, WriteRequest,
        control_request, frame::Body, read_request,
    },
};
use kv_topology::{NodeId, ReplicaId};
use rand::{SeedableRng, rngs::StdRng};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    time::{Instant, sleep, timeout},
};

use super::{
    Fatal, Node, admin::NAME_HELD_FOR, core::lock, kept::Kept, memory::MemoryPlan, points,
    requests::Hosting as _, stores::Stores, sweep::Sweep,
};
use crate::{
    api::admin::Node as _,
    config::{ByteCount, Config, Flags, validate},
    data_dir::{DataDir, small_file},
    refusal,
    router::Router,
    runtime::{GridRuntime, Tasks},
};

/// For anything that a node does by itself, on a busy machine.
const LONG: Duration = Duration::from_secs(30);

fn fatal() -> Fatal {
    Arc::new(|reason| panic!("{reason}"))
}

async fn config(folder: &Path, flags: &[&str]) -> Config {
    let mut line = vec!["kvnode".to_owned(), "--node-name".to_owned(), "n1".to_owned()];
    line.extend(["--ballast", "0", "--data-dir"].map(str::to_owned));
    line.push(folder.display().to_string());
    for flag in ["--client-listen", "--peer-listen", "--http-listen"] {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        line.extend([flag.to_owned(), free.local_addr().expect("bound").to_string()]);
    }
    line.extend(flags.iter().map(|flag| (*flag).to_owned()));
    if !flags.contains(&"--shards") {
        line.extend(["--shards", "1"].map(str::to_owned));
    }
    validate(&Flags::parse_from(line), ByteCount(1 << 30)).expect("a valid configuration")
}

async fn start(folder: &Path, flags: &[&str]) -> Node {
    start_with(7, folder, flags).await
}

/// Its disk and its cluster get ids by the seed.
async fn start_with(seed: u64, folder: &Path, flags: &[&str]) -> Node {
    let config = config(folder, flags).await;
    let started = timeout(LONG, async {
        loop {
            let node = Node::start(config.clone(), StdRng::seed_from_u64(seed), fatal()).await;
            match node {
                // The stores that were open here before close with the last of their readers, which nobody waits for.
                Err(error) if format!("{error:#}").contains("lock hold by current process") => {
                    sleep(Duration::from_millis(10)).await;
                }
                started => return started,
            }
        }
    });
    started.await.expect("started in time").expect("started")
}

async fn wait_ready(node: &Node) {
    let ready = timeout(LONG, async {
        while !node.core.node_status().ready {
            sleep(Duration::from_millis(10)).await;
        }
    });
    ready.await.unwrap_or_else(|_| panic!("waited {LONG:?} for readiness: {:?}", node.core.node_status()));
}

fn founding(cluster_id: &str) -> Founding {
    Founding { cluster_id: cluster_id.to_owned(), token: "t".to_owned(), shards: 1, replication_factor: 1 }
}

/// A data folder as a founding leaves it that ends after so many of its steps.
async fn founded_up_to(steps: usize) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path(), &[]).await;
    let mut dir = DataDir::open(folder.path(), &config.node_name, &mut StdRng::seed_from_u64(1))
        .expect("a data folder");
    let tasks = Tasks::new("founder");
    let stores = Stores::open(
        &dir,
        &config,
        &MemoryPlan::of(config.memory),
        &tasks.spawner(),
        fatal(),
        &crate::metrics::LogMetrics::default(),
    )
    .await
    .expect("opened");
    let meta = ReplicaDescriptor { replica_id: 1, ..ReplicaDescriptor::default() };
    if steps >= 1 {
        dir.note_founding(Some(founding("c1"))).expect("written");
    }
    if steps >= 2 {
        stores.log.put_descriptor(meta.clone()).await.expect("written");
    }
    if steps >= 3 {
        stores.kept.keep_hosted(&meta).expect("written");
    }
    if steps >= 4 {
        dir.belong_to("c1", 1).expect("written");
    }
    stores.close().await.expect("closed");
    drop(stores);
    tasks.shutdown().await;
    folder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founding_that_was_cut_off_is_finished_or_begun_anew() {
    for steps in 0..=4 {
        let folder = founded_up_to(steps).await;
        let node = start(folder.path(), &["--bootstrap", "--replication-factor", "1"]).await;
        wait_ready(&node).await;
        let status = node.core.node_status();
        assert_eq!(status.cluster_id == "c1", steps == 4, "after step {steps}: {status:?}");
        assert_eq!(node.core.meta().cluster_id, status.cluster_id, "after step {steps}");
        assert_eq!(node.core.founding(), None, "after step {steps}");
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founding_whose_end_was_not_noted_is_not_repeated() {
    let folder = founded_up_to(4).await;
    let flags = ["--bootstrap", "--replication-factor", "1"];
    let node = start(folder.path(), &flags).await;
    wait_ready(&node).await;
    let meta = node.core.meta();
    let before = (meta.nodes.len(), meta.next_node_id, meta.next_replica_id);
    lock(&node.core.dir).note_founding(Some(founding("c1"))).expect("written");
    node.stop().await;
    let node = start(folder.path(), &flags).await;
    wait_ready(&node).await;
    assert_eq!(node.core.founding(), None);
    let meta = node.core.meta();
    let ids = (meta.nodes.len(), meta.next_node_id, meta.next_replica_id);
    assert_eq!((meta.cluster_id.as_str(), meta.shards.len(), ids), ("c1", 2, before));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bootstrap_that_is_given_up_goes_on_and_its_retry_gets_the_result() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = start(folder.path(), &[]).await;
    let request =
        |token: &str| BootstrapRequest { token: token.to_owned(), shards: 1, replication_factor: 1 };
    let cut_off = node.core.bootstrap(request("a"), Instant::now()).await.expect_err("no time at all");
    assert_eq!(cut_off.reason, refusal::OUTCOME_UNKNOWN);
    let founded = node.core.bootstrap(request("a"), Instant::now() + LONG).await.expect("founded");
    let again = node.core.bootstrap(request("a"), Instant::now() + LONG).await.expect("the same");
    assert_eq!(founded, again);
    assert_eq!(founded.cluster_id, node.core.meta().cluster_id);
    let other = node.core.bootstrap(request("b"), Instant::now() + LONG).await.expect_err("another token");
    assert_eq!(other.reason, "ALREADY_IN_A_CLUSTER");
    assert_eq!(node.core.phase().0, Phase::Running);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_log_knows_the_others_and_says_what_it_lost() {
    let folder = founded_up_to(4).await;
    let flags = ["--bootstrap", "--replication-factor", "1"];
    let node = start(folder.path(), &flags).await;
    // What the file has by then is kept; a map that came later may still be on its way to it.
    let kept = || Kept::open(&folder.path().join("CLUSTER")).expect("readable").0;
    let placed = timeout(LONG, async {
        while kept().hosted().len() < 2 || kept().meta().shards.len() < 2 {
            sleep(Duration::from_millis(10)).await;
        }
    });
    placed.await.expect("the only data shard is placed");
    let epoch = kept().meta().epoch;
    node.stop().await;
    let segment = folder.path().join("raftlog/segments/0000000001.seg");
    small_file::replace(&segment, b"garbage").expect("written");
    let node = start(folder.path(), &flags).await;
    let told = timeout(LONG, async {
        while node.core.phase().0 != Phase::Running {
            sleep(Duration::from_millis(10)).await;
        }
    });
    told.await.expect("a node that lost its log runs");
    let status = node.core.node_status();
    assert!(!status.ready && status.message.starts_with("all 2 replicas quarantined"), "{status:?}");
    assert!(node.core.meta().epoch >= epoch, "the kept map is not lost with the log");
    node.stop().await;
}

/// A node that is alive and that the one which is asked never heard of, as after the restart of that one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_not_taken_from_a_node_that_lives_and_was_never_heard_of() {
    let (folder, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let asked = start(folder.path(), &["--bootstrap", "--replication-factor", "1"]).await;
    wait_ready(&asked).await;
    // It says who it is and is in no cluster, so that the other one hears nothing of it.
    let silent = start_with(8, other.path(), &[]).await;
    let holder = NodeInfo { name: "n2".to_owned(), ..silent.core.own_info() };
    let join = |node: NodeInfo| asked.core.join(node, String::new(), Instant::now() + LONG);
    let held = join(holder.clone()).await.expect("the first of this name");
    // Until then anybody may be alive.
    tokio::time::sleep_until(asked.core.started + NAME_HELD_FOR + Duration::from_millis(1)).await;

    let claimant = NodeInfo { disk_uuid: uuid::Uuid::from_u128(7).to_string(), ..holder };
    let refused = join(claimant.clone()).await.expect_err("its name is held");
    assert_eq!(refused.reason, "NODE_NAME_IN_USE");
    silent.stop().await;
    let taken = join(claimant).await.expect("nobody is there any more");
    assert_ne!(taken, held, "a new disk is a new node");
    asked.stop().await;
}

/// A node that runs alone, and one replica more here than its cluster knows of.
async fn node_with_another_replica(folder: &Path, replica_id: u64) -> Node {
    let node = start(folder, &["--bootstrap", "--replication-factor", "1"]).await;
    wait_ready(&node).await;
    let host = node.core.member.get().expect("a member").host.clone();
    host.create(CreateReplica { shard_id: 9, group_id: 9, replica_id }).await.expect("created");
    node
}

fn sweep(node: &Node) -> Sweep<GridRuntime, Router> {
    let (core, member) = (&node.core, node.core.member.get().expect("a member"));
    Sweep {
        points: points::nobody(),
        stores: core.stores.clone(),
        host: member.host.clone(),
        transport: member.transport.clone(),
        maps: core.maps.clone(),
        store: member.router.clone(),
        disk: core.disk.clone(),
        spawner: core.spawner.clone(),
    }
}

fn runs(node: &Node, replica: ReplicaId) -> bool {
    node.core.member.get().expect("a member").replicas.all().iter().any(|running| running.id == replica)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_stops_and_erases_what_is_condemned_and_nothing_that_the_cluster_may_need() {
    let folder = tempfile::tempdir().expect("a folder");
    let other = ReplicaId(77);
    let node = node_with_another_replica(folder.path(), other.get()).await;
    let (core, before) = (node.core.clone(), node.core.stores.log.descriptors().len());
    let round = async || sweep(&node).round(&core.maps.registry.view()).await;
    assert!(round().await, "nothing is left to do");
    assert!(runs(&node, other), "an id that meta has not minted yet, as far as this node knows");

    assert!(core.stores.condemn(other).await.expect("noted"));
    // The node sweeps too when a new map comes.
    let swept = timeout(LONG, async {
        while !round().await {
            sleep(Duration::from_millis(10)).await;
        }
    });
    swept.await.expect("it is removed");
    assert!(!runs(&node, other));
    assert_eq!(core.stores.log.descriptors().len(), before - 1);
    assert!(!core.stores.kept.hosted().iter().any(|hosted| hosted.replica_id == other.get()));
    assert!(!core.stores.state.replicas_on_disk().expect("readable").contains(&other));
    wait_ready(&node).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_condemned_replica_does_not_start_and_goes_at_the_next_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let other = ReplicaId(77);
    let node = node_with_another_replica(folder.path(), other.get()).await;
    assert!(node.core.stores.condemn(other).await.expect("noted"));
    node.stop().await;
    let node = start(folder.path(), &["--bootstrap", "--replication-factor", "1"]).await;
    let gone = timeout(LONG, async {
        while node.core.stores.log.descriptor(other).is_some() || node.core.member.get().is_none() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    gone.await.expect("it is removed after the start");
    assert!(!runs(&node, other));
    wait_ready(&node).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_known_to_be_placed_nowhere_is_not_created() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = start(folder.path(), &["--bootstrap", "--replication-factor", "1"]).await;
    wait_ready(&node).await;
    // As if the ids after those of its replicas had been minted and dropped.
    let mut record = (*node.core.meta()).clone();
    let dropped = record.next_replica_id;
    record.next_replica_id += 10;
    record.epoch += 100;
    for shard in &mut record.shards {
        shard.observed.get_or_insert_default();
    }
    node.core.maps.offer(record.clone());
    assert_eq!(*node.core.meta(), record, "it is the newest");
    let create = CreateReplica { shard_id: 1, group_id: 1, replica_id: dropped };
    let request = ControlRequest { request: Some(control_request::Request::CreateReplica(create)) };
    let member = node.core.member.get().expect("a member");
    let refused = member.control(member.identity.node, request, Instant::now() + LONG).await;
    assert_eq!(refused.expect_err("it was removed").reason, refusal::REPLICA_UNKNOWN);
    assert!(!runs(&node, ReplicaId(dropped)));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_replica_of_a_group_that_was_given_up_is_created() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = start(folder.path(), &["--bootstrap", "--replication-factor", "1"]).await;
    wait_ready(&node).await;
    let mut record = (*node.core.meta()).clone();
    let minted = record.next_replica_id;
    record.epoch += 100;
    for shard in record.shards.iter_mut().filter(|shard| shard.shard_id == 1) {
        shard.group_id += 1;
    }
    node.core.maps.offer(record);
    let create = CreateReplica { shard_id: 1, group_id: 1, replica_id: minted };
    let request = ControlRequest { request: Some(control_request::Request::CreateReplica(create)) };
    let member = node.core.member.get().expect("a member");
    let refused = member.control(member.identity.node, request, Instant::now() + LONG).await;
    assert_eq!(refused.expect_err("its group is over").reason, refusal::GROUP_REPLACED);
    assert!(!runs(&node, ReplicaId(minted)));
    node.stop().await;
}

/// A node that comes back with what was given up is asked by one that has heard of it, before it has heard of it itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_of_an_earlier_group_answers_nobody_who_knows_a_later_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = start(folder.path(), &["--bootstrap", "--replication-factor", "1", "--shards", "2"]).await;
    wait_ready(&node).await;
    let member = node.core.member.get().expect("a member");
    // Meta's, and those of the two shards.
    let all = async {
        while member.replicas.all().len() < 3 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, all).await.expect("all replicas start");
    let group = member.replicas.all().iter().find(|own| own.shard.get() == 1).map(|own| own.group.get());
    let group = group.expect("a replica of the shard");
    let read = Some(read_request::Read::Scan(ScanPage { limit: 1, max_bytes: 1, ..ScanPage::default() }));
    let read = |group_id| ReadRequest {
        shard_id: 1,
        deadline_ms: 10_000,
        group_id,
        read: read.clone(),
        ..ReadRequest::default()
    };
    let write =
        |group_id| WriteRequest { shard_id: 1, deadline_ms: 10_000, group_id, ..WriteRequest::default() };
    for body in [Body::ReadRequest(read(group + 1)), Body::WriteRequest(write(group + 1))] {
        match member.answer(NodeId(9), body).await {
            Body::Refusal(refused) => assert_eq!(refused.reason, refusal::STARTING, "{refused:?}"),
            other => panic!("{other:?}"),
        }
    }
    // A replica that has just started waits for its election.
    let led = async |from: NodeId, body: Body| loop {
        match member.answer(from, body.clone()).await {
            Body::Refusal(refused) if refused.reason == refusal::NO_LEADER => {
                sleep(Duration::from_millis(10)).await;
            }
            answered => return answered,
        }
    };
    for known in [0, group] {
        let answered = timeout(LONG, led(NodeId(9), Body::ReadRequest(read(known)))).await.expect("led");
        assert!(matches!(answered, Body::ReadResponse(_)), "{answered:?}");
    }
    // Only of the very group that asks: what a later one has acknowledged is not in an earlier one's log.
    let own = member.replicas.all().into_iter().max_by_key(|own| own.group).expect("replicas");
    let index = async |group_id: u64| {
        let request = ReadIndexRequest { shard_id: own.shard.get(), group_id };
        match timeout(LONG, led(own.node, Body::ReadIndexRequest(request))).await.expect("led") {
            Body::ReadIndexResponse(_) => String::new(),
            Body::Refusal(refused) => refused.reason,
            other => panic!("{other:?}"),
        }
    };
    let group = own.group.get();
    let heard = [index(group - 1).await, index(group).await, index(group + 1).await];
    assert_eq!(heard, [refusal::NO_REPLICA, "", refusal::STARTING]);
    node.stop().await;
}
