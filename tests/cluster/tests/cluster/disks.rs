//! Disks fill up, or are slow.
//!
//! A machine that stands still for longer than an election costs leaders, full disk or not. So what must not happen is
//! watched for over a stretch of time that is begun anew when it happened, and what must happen is waited for.

use std::{
    cell::RefCell,
    fmt::Debug,
    time::{Duration, Instant},
};

use bytes::Bytes;
use kv_cluster_tests::{
    Cluster, DEADLINE, Load, LoadPlan, Plan,
    api::{Read, reason},
    metrics::scrape,
    seed, wait_until,
};
use kv_proto::{
    admin::v1::{DiskLevel, GetNodeStatusRequest, NodeStatus, Role},
    kv::v1::key_value::Value,
};
use rand::RngExt;
use tonic::{Code, Status};

const MIB: u64 = 1 << 20;

/// Of each node's volume, while there is room.
const ROOMY: u64 = 4096 * MIB;
/// Free space in the middle of each level: the databases of an idle node move less than half of their distance.
const AT_SOFT: u64 = 192 * MIB;
const AT_HARD: u64 = 64 * MIB;

/// How often something is tried that a machine that stands still can spoil.
const ATTEMPTS: usize = 4;

fn plan() -> Plan {
    let plan = Plan::nodes(3).with_volumes(ROOMY);
    plan.with_flag("--disk-soft-limit", "256Mi").with_flag("--disk-hard-limit", "128Mi")
}

/// Waits until the node says that its disk is at this level, and gives its status.
async fn wait_level(cluster: &Cluster, node: usize, level: DiskLevel) -> NodeStatus {
    cluster.wait_status(node, &format!("{level:?}"), |status| status.disk_level() == level).await
}

fn led(status: &NodeStatus) -> usize {
    status.replicas.iter().filter(|replica| replica.role() == Role::Leader).count()
}

async fn newest(cluster: &Cluster, node: usize) -> u64 {
    cluster.status(node).await.replicas.iter().map(|replica| replica.last_log_index).sum()
}

/// Waits until the key is there or is not, asked at a node that may lack the newest entries: linearizable if it can, else
/// as it is.
async fn wait_read(cluster: &Cluster, node: usize, key: &str, is_there: bool) {
    let read = wait_until(format!("{key} at node {node}, there: {is_there}"), DEADLINE, || async {
        let mut last = None;
        for how in [Read::Linearizable, Read::Stale] {
            match cluster.api(node).get(key, how).await {
                Ok(read) if read.kv.is_some() == is_there => return Ok(()),
                Ok(read) => return Err(format!("{how:?}: {:?}", read.kv)),
                Err(status) => last = Some(status),
            }
        }
        Err(format!("{last:?}"))
    });
    read.await.unwrap_or_else(|error| panic!("{error}"));
}

/// Whether a request was refused for want of space. A leader that was elected a moment ago may take a few before it looks.
fn refused_for_space<T: Debug>(what: &str, result: Result<T, Status>) -> Result<(), String> {
    let status = match result {
        Ok(reply) => return Err(format!("{what} was taken without room: {reply:?}")),
        Err(status) => status,
    };
    if reason(&status).as_deref() != Some("DISK_FULL") {
        return Err(status.to_string());
    }
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("disk"), "{status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_gives_its_leaderships_away_serves_reads_and_comes_back() {
    let mut random = seed::generator("a_full_node_gives_its_leaderships_away_serves_reads_and_comes_back");
    let Some(mut cluster) = Cluster::start(plan()).await else { return };
    cluster.put(0, "before", "there was room").await;
    let shard = cluster.shard_of("load/0").await;
    let load = Load::start(LoadPlan::default(), cluster.addresses(), &mut random);
    load.must_progress(200).await;
    let full = cluster.wait_leader(shard, &[0, 1, 2]).await;
    for attempt in 1.. {
        let refused = load.errors_named("DISK_FULL");
        hands_over(&mut cluster, full, &load).await;
        let refused = load.errors_named("DISK_FULL") - refused;
        if refused == 0 {
            break;
        }
        assert!(attempt < ATTEMPTS, "{refused} writes were refused while two nodes had room");
        comes_back(&mut cluster, full).await;
    }
    let got = cluster.get(full, "before", Read::AtThisNode).await;
    assert!(got.kv.is_some(), "it takes entries, so its own reads are linearizable");

    cluster.nodes[full].volume().leave_free(AT_HARD).expect("resized");
    wait_level(&cluster, full, DiskLevel::DiskHard).await;
    takes_no_entries(&cluster, full, &load).await;
    cluster.wait_status(full, "readiness", |status| status.ready).await;
    wait_read(&cluster, full, "before", true).await;

    comes_back(&mut cluster, full).await;
    load.finish().await;
    cluster.wait_caught_up().await;
}

/// Fills a disk to its soft limit: the node gives all leaderships away and gets none back.
async fn hands_over(cluster: &mut Cluster, full: usize, load: &Load) {
    /// Longer than the controller waits before it takes the same step again.
    const WATCHED: Duration = Duration::from_secs(8);
    cluster.nodes[full].volume().leave_free(AT_SOFT).expect("resized");
    let said = wait_level(cluster, full, DiskLevel::DiskSoft).await;
    assert!(said.message.contains("nearly full") && said.ready, "{said:?}");
    let without = wait_until(format!("{WATCHED:?} without leaderships"), DEADLINE, || async {
        let begin = Instant::now();
        while begin.elapsed() < WATCHED {
            let status = cluster.status(full).await;
            if led(&status) > 0 {
                return Err(format!("it led {} after {:?}", led(&status), begin.elapsed()));
            }
            load.must_progress(20).await;
        }
        Ok(())
    });
    without.await.unwrap_or_else(|error| panic!("{error}"));
}

/// Waits until the log of a node stands still while the others go on.
async fn takes_no_entries(cluster: &Cluster, full: usize, load: &Load) {
    const WRITES: u64 = 300;
    let stopped = wait_until("a node that takes no entries", DEADLINE, || async {
        // What was under way when the level was measured may still come, and an election makes an entry of its own.
        let before = newest(cluster, full).await;
        load.must_progress(WRITES).await;
        let now = newest(cluster, full).await;
        if now == before { Ok(()) } else { Err(format!("it went from entry {before} to {now}")) }
    });
    stopped.await.unwrap_or_else(|error| panic!("{error}"));
}

/// Gives a node room again, and waits until it leads again.
async fn comes_back(cluster: &mut Cluster, full: usize) {
    cluster.nodes[full].volume().resize(ROOMY).expect("resized");
    wait_level(cluster, full, DiskLevel::DiskEnough).await;
    cluster.wait_status(full, "leaderships, with room again,", |status| led(status) > 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disks_of_all_nodes_refuse_values_and_go_on_with_deletes_and_reads() {
    let Some(mut cluster) = Cluster::start(plan()).await else { return };
    let keys: Vec<String> = (0..30).map(|number| format!("key{number}")).collect();
    for key in &keys {
        cluster.put(0, key, key.clone()).await;
    }
    for node in &mut cluster.nodes {
        node.volume().leave_free(AT_SOFT).expect("resized");
    }
    wait_refused(&cluster).await;
    for (index, key) in keys.iter().enumerate() {
        let refused = wait_until(format!("the refusal of {key}"), DEADLINE, || async {
            refused_for_space(key, cluster.api(index % 3).put(key, "more".into(), None).await)
        });
        refused.await.unwrap_or_else(|error| panic!("{error}"));
        let read = cluster.get(index % 3, key, Read::Linearizable).await;
        assert!(read.kv.is_some(), "{key} was acknowledged");
    }
    for key in &keys[..10] {
        cluster.delete(1, key).await;
    }

    for node in &mut cluster.nodes {
        node.volume().leave_free(AT_HARD).expect("resized");
    }
    for node in 0..3 {
        wait_level(&cluster, node, DiskLevel::DiskHard).await;
    }
    let refused = wait_until("a refused delete", DEADLINE, || async {
        match cluster.api(2).delete("key20").await {
            Ok(_) => Err("it was taken".to_owned()),
            Err(status) if reason(&status).as_deref() == Some("DISK_FULL") => Ok(()),
            Err(status) => Err(status.to_string()),
        }
    });
    refused.await.unwrap_or_else(|error| panic!("{error}"));
    // Some delete of key20 was taken before the disks were full, and may wait for its quorum still.
    for (index, key) in keys.iter().enumerate().filter(|(index, _)| *index != 20) {
        wait_read(&cluster, index % 3, key, index >= 10).await;
    }

    for node in &mut cluster.nodes {
        node.volume().resize(ROOMY).expect("resized");
    }
    cluster.put(0, "key20", "again").await;
    cluster.wait_whole().await;
}

/// Values that no compression makes smaller, each of the largest size that a put takes.
const VALUES: u64 = 240;
const VALUE_BYTES: usize = 1 << 20;
/// So many of them are not deleted.
const KEPT: u64 = 8;

#[tokio::test(flavor = "multi_thread")]
async fn what_deletes_make_free_is_given_back_and_writes_are_taken_again() {
    let mut random = seed::generator("what_deletes_make_free_is_given_back_and_writes_are_taken_again");
    let plan = Plan::nodes(3).with_shards(1).with_volumes(ROOMY).with_flag("--disk-soft-limit", "512Mi");
    let Some(mut cluster) = Cluster::start(plan.with_flag("--disk-hard-limit", "128Mi")).await else {
        return;
    };
    let mut values: Vec<Bytes> = Vec::new();
    for number in 0..VALUES {
        let value: Bytes = (0..VALUE_BYTES).map(|_| random.random::<u8>()).collect::<Vec<u8>>().into();
        // Kept: what is compared in the end.
        values.extend((number < KEPT).then(|| value.clone()));
        let written = wait_until(format!("value {number}"), DEADLINE, || async {
            let put = cluster.api(0).put(&value_key(number), value.clone(), None).await;
            put.map_err(|status| status.to_string())
        });
        written.await.unwrap_or_else(|error| panic!("{error}"));
    }
    cluster.wait_caught_up().await;
    for node in &mut cluster.nodes {
        // Below the soft limit by less than the deletes give back beyond the quarter above it.
        node.volume().leave_free(500 * MIB).expect("resized");
    }
    wait_refused(&cluster).await;
    for number in KEPT..VALUES {
        let deleted = wait_until(format!("the delete of value {number}"), DEADLINE, || async {
            cluster.api(0).delete(&value_key(number)).await.map_err(|status| status.to_string())
        });
        deleted.await.unwrap_or_else(|error| panic!("{error}"));
    }
    for node in 0..3 {
        wait_level(&cluster, node, DiskLevel::DiskEnough).await;
    }
    let taken = wait_until("a write where values were deleted", DEADLINE, || async {
        cluster.api(1).put("again", "there is room".into(), None).await.map_err(|status| status.to_string())
    });
    taken.await.unwrap_or_else(|error| panic!("{error}"));
    for (number, value) in (0..KEPT).zip(&values) {
        let read = cluster.api(2).get(&value_key(number), Read::Linearizable).await.expect("a whole cluster");
        let found = read.kv.and_then(|kv| kv.value);
        assert!(found == Some(Value::Inline(value.clone())), "value {number} was not deleted");
    }
    cluster.wait_whole().await;
}

fn value_key(number: u64) -> String {
    format!("value/{number:04}")
}

/// Waits until writes of new keys are refused in every shard, whichever node is asked.
async fn wait_refused(cluster: &Cluster) {
    let refused = wait_until("every shard refusing values", DEADLINE, || async {
        for number in 0..20 {
            match cluster.api(number % 3).put(&format!("more{number}"), "value".into(), None).await {
                Err(status) if reason(&status).as_deref() == Some("DISK_FULL") => {}
                other => return Err(format!("{other:?}")),
            }
        }
        Ok(())
    });
    refused.await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_met_a_full_disk_starts_with_its_ballast_and_stays() {
    let mut random = seed::generator("a_node_that_met_a_full_disk_starts_with_its_ballast_and_stays");
    let plan = plan().with_flag("--ballast", "64Mi");
    let Some(mut cluster) = Cluster::start(plan).await else { return };
    let load = Load::start(LoadPlan::default(), cluster.addresses(), &mut random);
    load.must_progress(200).await;
    for full in 0..2 {
        meets_a_full_disk(&mut cluster, full, &load).await;
        load.must_progress(100).await;
        for _ in 0..2 {
            cluster.nodes[full].start();
            let said = wait_level(&cluster, full, DiskLevel::DiskHard).await;
            assert!(!cluster.nodes[full].data_dir.join("ballast").exists(), "{said:?}");
            load.must_progress(300).await;
            assert!(cluster.nodes[full].is_running(), "{}", cluster.nodes[full].log_tail(20));
            cluster.get(full, "load/0", Read::Linearizable).await;
            cluster.nodes[full].kill();
        }
        cluster.nodes[full].volume().resize(ROOMY).expect("resized");
        cluster.nodes[full].start();
        cluster.wait_whole().await;
    }
    load.finish().await;
    cluster.wait_caught_up().await;
}

/// Takes the last byte from a node, and ends when the node has ended because its log could not be written. When it measures
/// its disk before it writes, which a machine that stands still brings about, it gets room and is tried again.
async fn meets_a_full_disk(cluster: &mut Cluster, full: usize, load: &Load) {
    for _ in 0..ATTEMPTS {
        wait_level(cluster, full, DiskLevel::DiskEnough).await;
        load.must_progress(50).await;
        cluster.nodes[full].volume().leave_free(0).expect("resized");
        let nodes = RefCell::new(&mut cluster.nodes);
        let met = wait_until("the end of the node whose log could not be written", DEADLINE, || {
            let runs = nodes.borrow_mut()[full].is_running();
            let mut api = nodes.borrow()[full].api();
            async move {
                if !runs {
                    return Ok(true);
                }
                let status = api.admin.get_node_status(GetNodeStatusRequest {}).await?.into_inner();
                if status.disk_level() == DiskLevel::DiskEnough {
                    return Err(Status::unknown("it runs"));
                }
                Ok(false)
            }
        });
        let met = met.await.unwrap_or_else(|error| panic!("{error}"));
        if met || !cluster.nodes[full].is_running() {
            // Its end may have made room.
            cluster.nodes[full].volume().leave_free(0).expect("resized");
            return;
        }
        cluster.nodes[full].volume().resize(ROOMY).expect("resized");
    }
    panic!("the node measured its disk before it wrote, {ATTEMPTS} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_disk_costs_neither_the_cluster_nor_the_leaders() {
    let mut random = seed::generator("a_slow_disk_costs_neither_the_cluster_nor_the_leaders");
    let Some(mut cluster) = Cluster::start(Plan::nodes(3).with_volumes(ROOMY)).await else { return };
    let load = Load::start(LoadPlan::default(), cluster.addresses(), &mut random);
    load.must_progress(200).await;
    for slow in 0..3 {
        for attempt in 1.. {
            let before = terms(&cluster).await;
            be_slow(&mut cluster, slow, &load).await;
            let after = terms(&cluster).await;
            // Each of the four groups may lose a leader that waits for its own disk, once.
            if after <= before + 4 {
                break;
            }
            let grew = format!("terms grew from {before} to {after} while node {slow} was slow");
            assert!(attempt < ATTEMPTS, "each of {ATTEMPTS} times {grew}");
        }
    }
    load.finish().await;
}

/// Makes the syncs of a node slow for a while. The cluster must go on meanwhile.
async fn be_slow(cluster: &mut Cluster, slow: usize, load: &Load) {
    /// Longer than any election time-out: whatever waits for a sync before it says that it is alive is taken for dead.
    const SYNC_DELAY: Duration = Duration::from_secs(1);
    const SYNCS: f64 = 6.0;
    cluster.nodes[slow].volume().delay_syncs(SYNC_DELAY).expect("slowed");
    let (count, seconds) = wait_syncs(cluster, slow, 1.0).await;
    load.must_progress(100).await;
    let (now, seconds_now) = wait_syncs(cluster, slow, count + SYNCS).await;
    let each = (seconds_now - seconds) / (now - count);
    assert!(each >= SYNC_DELAY.as_secs_f64() * 0.8, "a sync took {each} s: the disk was not slow");
    cluster.nodes[slow].volume().delay_syncs(Duration::ZERO).expect("fast again");
    cluster.wait_whole().await;
}

/// Waits until a node has synced its log so often, and gives how often it did, and for how many seconds.
async fn wait_syncs(cluster: &Cluster, node: usize, syncs: f64) -> (f64, f64) {
    let synced = wait_until(format!("{syncs} syncs of node {node}"), DEADLINE, || async {
        let series = scrape(cluster.nodes[node].ports.http_address()).map_err(|error| error.to_string())?;
        let of = |name: &str| series.get(name).copied().ok_or_else(|| format!("{name} is not shown"));
        let now = of("kv_storage_log_sync_seconds_count")?;
        let seconds = of("kv_storage_log_sync_seconds_sum")?;
        if now >= syncs { Ok((now, seconds)) } else { Err(format!("{now} so far")) }
    });
    synced.await.unwrap_or_else(|error| panic!("{error}"))
}

/// The sum of the terms of all groups.
async fn terms(cluster: &Cluster) -> u64 {
    let mut statuses = Vec::new();
    for node in 0..3 {
        statuses.push(cluster.status(node).await);
    }
    let term = |shard: u32| {
        let replicas = statuses.iter().flat_map(|status| &status.replicas);
        replicas.filter(|replica| replica.shard_id == shard).map(|replica| replica.term).max().unwrap_or(0)
    };
    (0..4).map(term).sum()
}
