//! Disks fill up, or are slow.

use std::time::Duration;

use bytes::Bytes;
use kv_cluster_tests::{
    Cluster, DEADLINE, Load, LoadPlan, Plan,
    api::{Api, Read, reason},
    seed, wait_until,
};
use kv_proto::{
    admin::v1::{DiskLevel, NodeStatus, Role},
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

fn plan() -> Plan {
    let plan = Plan::nodes(3).with_volumes(ROOMY);
    plan.with_flag("--disk-soft-limit", "256Mi").with_flag("--disk-hard-limit", "128Mi")
}

/// Waits until the node says that its disk is at this level, and gives its status.
async fn wait_level(cluster: &Cluster, node: usize, level: DiskLevel) -> NodeStatus {
    let reached = wait_until(format!("node {node} at {level:?}"), DEADLINE, || async {
        let status = cluster.statuses().await.swap_remove(node).ok_or("it does not answer")?;
        if status.disk_level() == level { Ok(status) } else { Err("it is at another level") }
    });
    reached.await.unwrap_or_else(|error| panic!("{error}"))
}

fn led(status: &NodeStatus) -> usize {
    status.replicas.iter().filter(|replica| replica.role() == Role::Leader).count()
}

fn newest(status: &NodeStatus) -> u64 {
    status.replicas.iter().map(|replica| replica.last_log_index).sum()
}

async fn status(cluster: &Cluster, node: usize) -> NodeStatus {
    cluster.statuses().await.swap_remove(node).expect("the node answers")
}

/// Whether the key is there, asked at a node that may lack the newest entries: linearizable if it can, else as it is.
async fn must_read(cluster: &Cluster, node: usize, key: &str) -> bool {
    let mut last = None;
    for how in [Read::Linearizable, Read::Stale] {
        match cluster.api(node).get(key, how).await {
            Ok(read) => return read.kv.is_some(),
            Err(status) => last = Some(status),
        }
    }
    panic!("node {node} does not read {key}: {last:?}");
}

fn is_refused_for_space<T: std::fmt::Debug>(result: Result<T, Status>) {
    let status = result.expect_err("there is no room");
    assert_eq!((status.code(), reason(&status).as_deref()), (Code::ResourceExhausted, Some("DISK_FULL")));
    assert!(status.message().contains("disk"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_gives_its_leaderships_away_serves_reads_and_comes_back() {
    let mut random = seed::generator("a_full_node_gives_its_leaderships_away_serves_reads_and_comes_back");
    let Some(mut cluster) = Cluster::start(plan()).await else { return };
    cluster.api(0).put("before", "there was room".into(), None).await.expect("there is room");
    let shard = cluster.shard_of("load/0").await;
    let load = Load::start(LoadPlan::default(), cluster.addresses(), &mut random);
    load.must_progress(200).await;
    let full = cluster.wait_leader(shard, &[0, 1, 2]).await;

    cluster.nodes[full].volume().leave_free(AT_SOFT).expect("resized");
    let said = wait_level(&cluster, full, DiskLevel::DiskSoft).await;
    assert!(said.message.contains("nearly full") && said.ready, "{said:?}");
    let handed = wait_until("a node without leaderships", DEADLINE, || async {
        let status = status(&cluster, full).await;
        if led(&status) == 0 { Ok(()) } else { Err(format!("it leads {}", led(&status))) }
    });
    handed.await.unwrap_or_else(|error| panic!("{error}"));
    // Longer than the controller takes to wish leaderships back.
    for _ in 0..20 {
        load.must_progress(100).await;
        assert_eq!(led(&status(&cluster, full).await), 0, "it leads again");
    }
    let read = cluster.api(full).get("before", Read::AtThisNode).await;
    assert!(read.expect("it takes entries, so its reads are linearizable").kv.is_some());

    cluster.nodes[full].volume().leave_free(AT_HARD).expect("resized");
    wait_level(&cluster, full, DiskLevel::DiskHard).await;
    // What was under way when the level was measured may still come.
    let stopped = wait_until("a node that takes no entries", DEADLINE, || async {
        let before = newest(&status(&cluster, full).await);
        load.must_progress(100).await;
        let now = newest(&status(&cluster, full).await);
        if now == before { Ok(now) } else { Err(format!("it went from entry {before} to {now}")) }
    });
    let kept = stopped.await.unwrap_or_else(|error| panic!("{error}"));
    load.must_progress(300).await;
    let status_now = status(&cluster, full).await;
    assert_eq!(newest(&status_now), kept, "a node without room took entries");
    assert!(status_now.ready, "{}", status_now.message);
    assert!(must_read(&cluster, full, "before").await, "it was acknowledged");

    cluster.nodes[full].volume().resize(ROOMY).expect("resized");
    wait_level(&cluster, full, DiskLevel::DiskEnough).await;
    let back = wait_until("leaderships of the node with room again", DEADLINE, || async {
        if led(&status(&cluster, full).await) > 0 { Ok(()) } else { Err("it leads nothing") }
    });
    back.await.unwrap_or_else(|error| panic!("{error}"));
    let errors = load.finish().await.errors;
    assert!(!errors.contains_key("DISK_FULL"), "others had room all the time: {errors:?}");
    cluster.wait_caught_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disks_of_all_nodes_refuse_values_and_go_on_with_deletes_and_reads() {
    let Some(mut cluster) = Cluster::start(plan()).await else { return };
    let keys: Vec<String> = (0..30).map(|number| format!("key{number}")).collect();
    for key in &keys {
        cluster.api(0).put(key, key.clone().into(), None).await.expect("there is room");
    }
    for node in &mut cluster.nodes {
        node.volume().leave_free(AT_SOFT).expect("resized");
    }
    wait_refused(&cluster, "more").await;
    for (index, key) in keys.iter().enumerate() {
        let mut api = cluster.api(index % 3);
        is_refused_for_space(api.put(key, "more".into(), None).await);
        let read = api.get(key, Read::Linearizable).await.expect("reads go on").kv;
        assert!(read.is_some(), "{key} was acknowledged");
    }
    for key in &keys[..10] {
        cluster.api(1).delete(key).await.expect("deletes make room");
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
    for (index, key) in keys.iter().enumerate() {
        // Some delete of key20 was taken before the disks were full, and may wait for its quorum still.
        let is_there = must_read(&cluster, index % 3, key).await;
        assert!(index == 20 || is_there == (index >= 10), "{key}, at node {}", index % 3);
    }

    for node in &mut cluster.nodes {
        node.volume().resize(ROOMY).expect("resized");
    }
    let taken = wait_until("a write after there is room", DEADLINE, || async {
        cluster.api(0).put("key20", "again".into(), None).await.map_err(|status| status.to_string())
    });
    taken.await.unwrap_or_else(|error| panic!("{error}"));
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
    wait_refused(&cluster, "more").await;
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
async fn wait_refused(cluster: &Cluster, key: &str) {
    let apis: Vec<Api> = (0..3).map(|node| cluster.api(node)).collect();
    let refused = wait_until("every shard refusing values", DEADLINE, || {
        let mut apis = apis.clone();
        async move {
            for shard in 0..20 {
                let api = &mut apis[shard % 3];
                match api.put(&format!("{key}{shard}"), "value".into(), None).await {
                    Err(status) if reason(&status).as_deref() == Some("DISK_FULL") => {}
                    other => return Err(format!("{other:?}")),
                }
            }
            Ok(())
        }
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
    for round in 0..2 {
        let full = round % 3;
        // Not a byte is left, before the node has measured it.
        cluster.nodes[full].volume().leave_free(0).expect("resized");
        let nodes = std::cell::RefCell::new(&mut cluster.nodes);
        let ended = wait_until("the end of the node whose log could not be written", DEADLINE, || {
            let running = nodes.borrow_mut()[full].is_running();
            async move { if running { Err("it runs") } else { Ok(()) } }
        });
        ended.await.unwrap_or_else(|error| panic!("{error}"));
        load.must_progress(100).await;
        for _ in 0..2 {
            cluster.nodes[full].start();
            let said = wait_level(&cluster, full, DiskLevel::DiskHard).await;
            assert!(!cluster.nodes[full].data_dir.join("ballast").exists(), "{said:?}");
            load.must_progress(300).await;
            assert!(cluster.nodes[full].is_running(), "{}", cluster.nodes[full].log_tail(20));
            must_read(&cluster, full, "load/0").await;
            cluster.nodes[full].kill();
        }
        cluster.nodes[full].volume().resize(ROOMY).expect("resized");
        cluster.nodes[full].start();
        cluster.wait_whole().await;
    }
    load.finish().await;
    cluster.wait_caught_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_disk_costs_neither_the_cluster_nor_the_leaders() {
    const SYNC_DELAY: Duration = Duration::from_millis(200);
    let mut random = seed::generator("a_slow_disk_costs_neither_the_cluster_nor_the_leaders");
    let Some(mut cluster) = Cluster::start(Plan::nodes(3).with_volumes(ROOMY)).await else { return };
    let load = Load::start(LoadPlan::default(), cluster.addresses(), &mut random);
    load.must_progress(200).await;
    for slow in 0..3 {
        let before = terms(&cluster).await;
        cluster.nodes[slow].volume().delay_syncs(SYNC_DELAY).expect("slowed");
        load.must_progress(400).await;
        let after = terms(&cluster).await;
        // Each of the four groups may lose a leader that waits for its own disk, once.
        assert!(after <= before + 4, "terms grew from {before} to {after} while node {slow} was slow");
        cluster.nodes[slow].volume().delay_syncs(Duration::ZERO).expect("fast again");
        cluster.wait_whole().await;
    }
    load.finish().await;
}

/// The sum of the terms of all groups.
async fn terms(cluster: &Cluster) -> u64 {
    let statuses = cluster.statuses().await;
    let term = |shard: u32| {
        let replicas = statuses.iter().flatten().flat_map(|status| &status.replicas);
        replicas.filter(|replica| replica.shard_id == shard).map(|replica| replica.term).max().unwrap_or(0)
    };
    (0..4).map(term).sum()
}
