//! Tables and JSON of the cluster's state, compared with files. `UPDATE_GOLDEN=1` writes them.

use std::{fs, path::PathBuf};

use kv_proto::admin::v1::{Move, NodeState, Permit};
use serde_json::Value as Json;

use crate::{
    against,
    fake::{FakeCluster, membership::UNIX_MS},
};

/// Compares with a golden file, ports replaced.
fn golden(cluster: &FakeCluster, name: &str, text: &str) {
    let mut text = text.to_owned();
    for node in 1..=cluster.shared.nodes() {
        text = text.replace(&cluster.address(node), &format!("127.0.0.1:PORT{node}"));
    }
    let path = PathBuf::from("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{} differs; UPDATE_GOLDEN=1 writes it", path.display());
}

async fn cluster() -> FakeCluster {
    let cluster = FakeCluster::start(3).await;
    cluster.state().leaders = [2, 3];
    cluster
}

#[tokio::test]
async fn tables_are_as_agreed() {
    let cluster = cluster().await;
    for (name, arguments) in [
        ("status.txt", &["status"][..]),
        ("shard_list.txt", &["shard", "list"]),
        ("node_list.txt", &["node", "list"]),
        ("status.json", &["status", "-o", "json"]),
        ("shard_list.json", &["shard", "list", "-o", "json"]),
        ("node_list.json", &["node", "list", "-o", "json"]),
    ] {
        golden(&cluster, name, &against(&cluster, arguments).expect(0));
    }
}

/// Two replicas move, a third node drains, a fourth was let go for too long.
async fn busy() -> FakeCluster {
    let cluster = FakeCluster::start(4).await;
    let moved = |shard_id, lag_entries| Move {
        shard_id,
        from_node_id: 3,
        to_node_id: 4,
        from_replica_id: u64::from(shard_id) * 10 + 3,
        to_replica_id: 40 + u64::from(shard_id),
        reason: "drain".to_owned(),
        begun_unix_ms: UNIX_MS + 61_000,
        lag_entries,
    };
    let permit = |node_id, overdue| Permit {
        node_id,
        ttl_ms: 60_000,
        granted_unix_ms: UNIX_MS,
        overdue,
        ..Permit::default()
    };
    cluster.change(|membership| {
        membership.holds_drains = true;
        membership.states.insert(3, NodeState::Draining);
        membership.reasons.insert(3, "kvctl ada@desk: new disk".to_owned());
        membership.gone.insert((0, 3));
        membership.moves = vec![moved(1, Some(1_203)), moved(2, None)];
        membership.permits = vec![permit(2, false), permit(4, true)];
    });
    cluster
}

#[tokio::test]
async fn what_is_under_way_is_shown_with_its_reasons() {
    let cluster = busy().await;
    for (name, arguments) in [
        ("busy_status.txt", &["status"][..]),
        ("busy_shard_list.txt", &["shard", "list"]),
        ("busy_status.json", &["status", "-o", "json"]),
    ] {
        golden(&cluster, name, &against(&cluster, arguments).expect(0));
    }
}

#[tokio::test]
async fn a_bench_tells_its_parameters_and_counts() {
    let cluster = cluster().await;
    let small =
        ["--clients", "2", "--seconds", "5", "--operations", "50", "--keys", "10", "--warm-up-seconds", "0"];
    for workload in ["put", "get", "mixed"] {
        let run = against(&cluster, &[&["-o", "json", "bench", workload], &small[..]].concat());
        let report: Json = serde_json::from_str(&run.expect(0)).unwrap();
        assert_eq!(report["operations"], 50, "{report}");
        assert_eq!(report["parameters"]["workload"], workload);
        assert_eq!(report["parameters"]["keys"], 10);
        for percentile in ["p50", "p90", "p99", "p99.9", "max"] {
            assert!(report["latency_us"][percentile].as_u64().unwrap() > 0, "{report}");
        }
        assert_eq!(report["errors"], serde_json::json!({}));
    }
    let table = against(&cluster, &[&["bench", "put"], &small[..]].concat()).expect(0);
    assert!(table.contains("OPS/S") && table.contains("P99.9"), "{table}");
    against(&cluster, &["bench", "put", "--stale"]).expect(2);
}
