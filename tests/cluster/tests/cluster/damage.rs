//! Damaged disks, copied disks, lost disks: the node says so, the others go on, nothing wrong is served, and what was lost is
//! replaced on the same node.
//!
//! Replaced so fast that nobody could look at the damage. So where a test looks, it holds a permit for the node meanwhile:
//! no voters change then, and what is quarantined stays.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use kv_cluster_tests::{Cluster, DEADLINE, Plan, api::Read, settled, wait_until};
use kv_proto::{
    admin::v1::{ListNodesRequest, NodeStatus, Phase, Role},
    kv::v1::{KeyValue, key_value::Value},
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::time::interval;
use tonic::Code;

/// The node whose disk suffers.
const VICTIM: usize = 2;
const KEYS: usize = 300;
const VALUE_BYTES: usize = 4_000;
/// Several flush intervals: a flush would have begun.
const SETTLED: Duration = Duration::from_secs(4);

/// The state is on disk soon, and little log is kept behind it.
fn cut_logs() -> Plan {
    Plan::nodes(3)
        .with_shards(1)
        .with_flag("--log-retention-bytes", "64Ki")
        .with_flag("--flush-interval", "1s")
}

fn key(number: usize) -> String {
    format!("key/{number:04}")
}

/// Such as no compression makes smaller.
fn value(number: usize) -> Bytes {
    let mut random = SmallRng::seed_from_u64(number as u64);
    (0..VALUE_BYTES).map(|_| random.random::<u8>()).collect::<Vec<u8>>().into()
}

async fn fill(cluster: &Cluster) {
    for number in 0..KEYS {
        put(cluster, 0, number).await;
    }
}

async fn put(cluster: &Cluster, node: usize, number: usize) {
    cluster.put(node, &key(number), value(number)).await;
}

/// All that was written is there, whichever of these nodes is asked, and all of them take writes.
async fn serves_everything(cluster: &Cluster, nodes: &[usize]) {
    for node in nodes {
        for number in (0..KEYS).step_by(7) {
            let got = cluster.get(*node, &key(number), Read::Linearizable).await;
            assert!(is_value(got.kv, number), "{} at node {node} is another value", key(number));
        }
        put(cluster, *node, KEYS + node).await;
    }
}

/// How often a node that may end is looked after.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// For the test to look at what was lost.
const HOLD: Duration = Duration::from_secs(600);

/// Holds the replacement of what the victim is about to lose. Gives what lets go of it.
async fn hold_replacement(cluster: &Cluster) -> String {
    cluster.wait_permit(0, VICTIM, HOLD).await.token
}

/// Lets the replicas that the victim lost be replaced: on the same node, under new ids, without a person.
async fn replaces(cluster: &mut Cluster, hold: &str) {
    let lost = victim(cluster, "what it lost", |status| !quarantined(status).is_empty()).await;
    cluster.release(0, hold).await;
    start_again_if_it_ends(cluster).await;
    cluster.wait_settled(0).await;
    let now = cluster.status(VICTIM).await;
    assert_eq!(node_of(&now), node_of(&lost), "it is the same node");
    let ids = |status: &NodeStatus, shard: u32| -> Vec<u64> {
        let of_shard = status.replicas.iter().filter(|replica| replica.shard_id == shard);
        of_shard.map(|replica| replica.replica_id).collect()
    };
    for replica in lost.replicas.iter().filter(|replica| replica.role() == Role::Quarantined) {
        let (shard, id) = (replica.shard_id, replica.replica_id);
        assert!(ids(&now, shard).len() == 1 && !ids(&now, shard).contains(&id), "r{id}: {now:?}");
    }
    serves_everything(cluster, &[VICTIM]).await;
    for number in (0..KEYS).step_by(7) {
        let got = cluster.get(VICTIM, &key(number), Read::AtThisNode).await;
        assert!(is_value(got.kv, number), "{} of the new replica is another value", key(number));
    }
}

/// What is written for the new replica may let compaction meet the damage of the old one: that ends the node once, and whoever
/// looks after its process starts it again.
async fn start_again_if_it_ends(cluster: &mut Cluster) {
    let wanted = cluster.wanted();
    let (begun, mut looks) = (Instant::now(), interval(LOOK_EVERY));
    while begun.elapsed() < DEADLINE {
        looks.tick().await;
        let status = cluster.cluster_status(0).await;
        if !cluster.nodes[VICTIM].is_running() {
            cluster.nodes[VICTIM].start();
            return;
        }
        if settled::is_settled(&status, wanted).is_ok() {
            return;
        }
    }
}

fn node_of(status: &NodeStatus) -> u64 {
    status.node.as_ref().map_or(0, |node| node.node_id)
}

fn is_value(found: Option<KeyValue>, number: usize) -> bool {
    found.and_then(|kv| kv.value) == Some(Value::Inline(value(number)))
}

/// Waits until the victim's status is as asked for, and returns it.
async fn victim(cluster: &Cluster, what: &str, is_so: impl Fn(&NodeStatus) -> bool) -> NodeStatus {
    cluster.wait_status(VICTIM, what, is_so).await
}

fn quarantined(status: &NodeStatus) -> Vec<u32> {
    let lost = status.replicas.iter().filter(|replica| replica.role() == Role::Quarantined);
    lost.map(|replica| replica.shard_id).collect()
}

async fn nobody_else_lost_anything(cluster: &Cluster) {
    for node in (0..cluster.nodes.len()).filter(|node| *node != VICTIM) {
        let status = cluster.wait_status(node, "readiness", |status| status.ready).await;
        assert!(quarantined(&status).is_empty(), "node {node}: {status:?}");
    }
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).into_iter().flatten().map(|file| file.expect("an entry").path());
    let mut files: Vec<_> = files.filter(|path| path.to_string_lossy().ends_with(ending)).collect();
    files.sort();
    files
}

fn largest(folder: &Path, ending: &str) -> Option<PathBuf> {
    files(folder, ending).into_iter().max_by_key(|path| size_of(path))
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("within the file");
    file.write_all_at(&[byte[0] ^ 0x10], offset).expect("writable");
}

/// Waits until the log notes that it has synced what was written: damage within its newest second would be taken for a
/// tail that a power loss tore off.
async fn wait_older_than_a_second(cluster: &Cluster, raftlog: &Path) {
    let noted = || fs::read(raftlog.join("SYNCED")).expect("the log notes how far it has synced");
    let before = noted();
    let older = wait_until("a log that has noted its last sync", DEADLINE, || async {
        put(cluster, 0, KEYS + 10).await;
        if noted() == before { Err("nothing was noted yet") } else { Ok(()) }
    });
    older.await.unwrap_or_else(|error| panic!("{error}"));
}

/// Waits until what was written is in tables of the victim, and nothing flushes or compacts them any more.
async fn wait_tables(cluster: &Cluster) {
    let folder = cluster.nodes[VICTIM].data_dir.join("state/db");
    let mut seen = (Vec::new(), Instant::now());
    let settled = wait_until("tables that stay as they are", DEADLINE, || {
        let tables: Vec<_> =
            files(&folder, ".sst").into_iter().map(|table| (size_of(&table), table)).collect();
        if tables != seen.0 {
            seen = (tables.clone(), Instant::now());
        }
        let written: u64 = tables.iter().map(|(size, _)| size).sum();
        let rest = seen.1.elapsed();
        async move {
            if written > (KEYS * VALUE_BYTES) as u64 && rest > SETTLED {
                Ok(())
            } else {
                Err(format!("{tables:?}"))
            }
        }
    });
    settled.await.unwrap_or_else(|error| panic!("{error}"));
}

fn size_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

async fn wait_purged(cluster: &Cluster) {
    victim(cluster, "a log that was cut", |status| {
        status.replicas.iter().any(|replica| replica.shard_id == 1 && replica.purged_index > 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_byte_in_a_log_costs_this_nodes_replicas_and_nothing_else() {
    let Some(mut cluster) = Cluster::start(Plan::nodes(3).with_shards(2)).await else { return };
    fill(&cluster).await;
    let raftlog = cluster.nodes[VICTIM].data_dir.join("raftlog");
    wait_older_than_a_second(&cluster, &raftlog).await;
    let hold = hold_replacement(&cluster).await;
    cluster.nodes[VICTIM].kill();
    flip(&largest(&raftlog.join("segments"), ".seg").expect("a segment"), 2_000);
    cluster.nodes[VICTIM].start();
    let status = victim(&cluster, "a node that says what it lost", |status| {
        status.phase() == Phase::Running && quarantined(status).len() == 3
    })
    .await;
    assert!(status.message.contains("replicas quarantined"), "{}", status.message);
    assert!(cluster.nodes[VICTIM].data_dir.join("raftlog.damaged-1/segments").exists());
    serves_everything(&cluster, &[0, 1, VICTIM]).await;
    nobody_else_lost_anything(&cluster).await;

    // For as long as they are there.
    cluster.nodes[VICTIM].kill();
    cluster.nodes[VICTIM].start();
    victim(&cluster, "the same at the next start", |status| quarantined(status).len() == 3).await;
    serves_everything(&cluster, &[0]).await;
    replaces(&mut cluster, &hold).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_table_of_the_state_costs_the_replicas_whose_log_was_cut() {
    let Some(mut cluster) = Cluster::start(cut_logs()).await else { return };
    fill(&cluster).await;
    wait_tables(&cluster).await;
    wait_purged(&cluster).await;
    let hold = hold_replacement(&cluster).await;
    cluster.nodes[VICTIM].kill();
    let table = largest(&cluster.nodes[VICTIM].data_dir.join("state/db"), ".sst").expect("a table");
    let file = OpenOptions::new().write(true).open(&table).expect("a table");
    file.set_len(file.metadata().expect("its size").len() / 2).expect("truncated");
    cluster.nodes[VICTIM].start();
    let status = victim(&cluster, "a quarantined replica of shard 1, and meta that runs", |status| {
        let meta = status.replicas.iter().find(|replica| replica.shard_id == 0);
        quarantined(status) == [1] && meta.is_some_and(|meta| meta.applied_index > 0)
    })
    .await;
    assert!(status.message.contains("its state was lost"), "{}", status.message);
    assert!(cluster.nodes[VICTIM].data_dir.join("set-aside-1/state/db").exists());
    serves_everything(&cluster, &[0, 1, VICTIM]).await;
    nobody_else_lost_anything(&cluster).await;
    replaces(&mut cluster, &hold).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_table_of_the_state_costs_nothing_while_the_log_is_whole() {
    let plan = Plan::nodes(3).with_shards(1).with_flag("--flush-interval", "1s");
    let Some(mut cluster) = Cluster::start(plan).await else { return };
    fill(&cluster).await;
    wait_tables(&cluster).await;
    cluster.nodes[VICTIM].kill();
    let table = largest(&cluster.nodes[VICTIM].data_dir.join("state/db"), ".sst").expect("a table");
    fs::write(table, "").expect("truncated");
    cluster.nodes[VICTIM].start();
    cluster.wait_whole().await;
    assert!(cluster.nodes[VICTIM].data_dir.join("set-aside-1/state/db").exists());
    serves_everything(&cluster, &[0, 1, VICTIM]).await;
    let at_this_node = cluster.get(VICTIM, &key(7), Read::AtThisNode).await;
    assert!(at_this_node.kv.is_some(), "it has everything again");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_a_read_meets_is_told_and_costs_this_replica_only() {
    let Some(mut cluster) = Cluster::start(cut_logs()).await else { return };
    fill(&cluster).await;
    wait_tables(&cluster).await;
    let hold = hold_replacement(&cluster).await;
    // Meta's records come first in every table, and keep out of harm.
    for table in files(&cluster.nodes[VICTIM].data_dir.join("state/db"), ".sst") {
        let size = size_of(&table);
        for offset in (size / 3..size * 9 / 10).step_by(1_000).filter(|_| size > 100_000) {
            flip(&table, offset);
        }
    }
    let refused = wait_until("a read that meets the damage", DEADLINE, || async {
        for number in 0..KEYS {
            match cluster.api(VICTIM).get(&key(number), Read::AtThisNode).await {
                Err(status) if status.code() == Code::DataLoss => return Ok(()),
                Err(status) => return Err(status.to_string()),
                Ok(_) => {}
            }
        }
        Err("all of it is read".to_owned())
    });
    refused.await.unwrap_or_else(|error| panic!("{error}"));
    let status = victim(&cluster, "a quarantined replica", |status| quarantined(status) == [1]).await;
    assert!(status.message.contains("replicas quarantined"), "{}", status.message);
    serves_nothing_of_the_damaged(&cluster).await;
    serves_everything(&cluster, &[VICTIM, 0, 1]).await;
    nobody_else_lost_anything(&cluster).await;

    // For as long as it is there: most of its blocks are sound, so nothing else would keep it from starting.
    cluster.nodes[VICTIM].kill();
    cluster.nodes[VICTIM].start();
    let again = |status: &NodeStatus| status.phase() == Phase::Running && quarantined(status) == [1];
    victim(&cluster, "the same at the next start", again).await;
    replaces(&mut cluster, &hold).await;
}

/// What the victim itself answers is DATA_LOSS, sound key or not, or comes from the replica that is to take the damaged one's
/// place: then it is right.
async fn serves_nothing_of_the_damaged(cluster: &Cluster) {
    for number in (0..KEYS).step_by(15) {
        if let Ok(read) = cluster.api(VICTIM).get(&key(number), Read::AtThisNode).await {
            assert!(is_value(read.kv, number), "{} is another value", key(number));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_of_a_disk_is_fenced_and_the_original_goes_on() {
    let Some(mut cluster) = Cluster::start(Plan::nodes(3).with_shards(1)).await else { return };
    fill(&cluster).await;
    cluster.nodes[VICTIM].kill();
    let original = cluster.nodes[VICTIM].data_dir.clone();
    let (copy, aside) = (original.with_extension("copy"), original.with_extension("original"));
    copy_folder(&original, &copy);
    cluster.nodes[VICTIM].start();
    cluster.wait_whole().await;
    let registered = wait_until("the second start in the registry", DEADLINE, || async {
        let listed = cluster.api(0).admin.list_nodes(ListNodesRequest {}).await;
        let nodes = listed.map_err(|status| status.to_string())?.into_inner().nodes;
        let named = nodes.into_iter().find(|node| node.name == cluster.nodes[VICTIM].name);
        named.filter(|node| node.boot_counter == 2).ok_or_else(|| "it is not there".to_owned())
    });
    let registered = registered.await.unwrap_or_else(|error| panic!("{error}"));
    cluster.nodes[VICTIM].kill();

    fs::rename(&original, &aside).expect("moved");
    fs::rename(&copy, &original).expect("moved");
    cluster.nodes[VICTIM].start();
    let fenced = |status: &NodeStatus| status.phase() == Phase::Failed && status.replicas.is_empty();
    let status = victim(&cluster, "a copy that is fenced", fenced).await;
    assert!(status.message.contains("is a clone or was restored"), "{}", status.message);
    serves_everything(&cluster, &[0, 1]).await;
    cluster.nodes[VICTIM].kill();
    // Its counter has grown beyond that of the original meanwhile: it is fenced all the same.
    for _ in 0..2 {
        cluster.nodes[VICTIM].start();
        victim(&cluster, "a copy that stays fenced", fenced).await;
        cluster.nodes[VICTIM].kill();
    }

    fs::rename(&original, &copy).expect("moved");
    fs::rename(&aside, &original).expect("moved");
    cluster.nodes[VICTIM].start();
    cluster.wait_whole().await;
    let again = cluster.status(VICTIM).await.node.expect("it is a member");
    assert_eq!((again.node_id, again.disk_uuid), (registered.node_id, registered.disk_uuid));
    serves_everything(&cluster, &[VICTIM]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_of_a_removed_node_is_set_aside_and_joins_as_new() {
    let Some(mut cluster) = Cluster::start(Plan::nodes(3).with_shards(1)).await else { return };
    fill(&cluster).await;
    let first = node_id(&cluster, |_| true).await;
    cluster.nodes[VICTIM].kill();
    let folder = cluster.nodes[VICTIM].data_dir.clone();
    fs::rename(&folder, folder.with_extension("old")).expect("moved");
    // A new disk under an old name: the old one is removed from the cluster, once it is silent for long enough.
    cluster.nodes[VICTIM].start();
    let second = node_id(&cluster, |id| id != first).await;
    cluster.nodes[VICTIM].kill();
    fs::rename(&folder, folder.with_extension("second")).expect("moved");
    fs::rename(folder.with_extension("old"), &folder).expect("moved");
    cluster.nodes[VICTIM].start();
    let over = cluster.nodes[VICTIM].wants_another_start(DEADLINE).await;
    over.unwrap_or_else(|error| panic!("{error}"));
    let said = cluster.nodes[VICTIM].log_tail(20);
    assert!(said.contains("was removed from the cluster") && said.contains("start it again"), "{said}");
    cluster.nodes[VICTIM].start();
    let third = node_id(&cluster, |id| id != first && id != second).await;
    assert!(folder.join("set-aside-1/IDENTITY").exists(), "node {third}");
    serves_everything(&cluster, &[0, 1, VICTIM]).await;
}

/// Waits until the victim has a node id like this.
async fn node_id(cluster: &Cluster, is_so: impl Fn(u64) -> bool) -> u64 {
    let id = |status: &NodeStatus| status.node.as_ref().map_or(0, |node| node.node_id);
    let member =
        |status: &NodeStatus| status.phase() == Phase::Running && id(status) != 0 && is_so(id(status));
    id(&victim(cluster, "another node id", member).await)
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("created");
    for entry in fs::read_dir(from).expect("listed") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}
