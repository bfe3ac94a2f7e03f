//! The harness itself, with a shell script in the place of kvnode.

use std::{fs, path::Path, time::Duration};

use kv_cluster_tests::{
    Cluster, Plan,
    api::{self, Fate},
    ports::PortBlock,
    wait_until,
};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

const DEADLINE: Duration = Duration::from_secs(20);

/// A file of the repository: one that was just written may still be open for writing in a process that another test is
/// about to start, and could not be executed.
/// Tests run in the folder of their package.
const FAKE_NODE: &str = "tests/fake-node.sh";

async fn launch(plan: Plan) -> Cluster {
    Cluster::launch(Path::new(FAKE_NODE), plan).await
}

/// Waits until the log of `node` has `text` so many times.
async fn logs(cluster: &Cluster, node: usize, text: &str, times: usize) -> String {
    let logged =
        wait_until(format!("{times} times {text:?} in the log of node {node}"), DEADLINE, || async {
            let log = cluster.nodes[node].log_tail(100);
            if log.matches(text).count() >= times { Ok(log) } else { Err(log) }
        });
    logged.await.unwrap_or_else(|error| panic!("{error}"))
}

/// The state letter of a process in /proc; `None`: it is gone.
fn state(id: &str) -> Option<char> {
    let status = fs::read_to_string(Path::new("/proc").join(id).join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("State:")?.trim().chars().next())
}

async fn has_state(id: &str, wanted: Option<char>) {
    let reached = wait_until(format!("state {wanted:?} of process {id}"), DEADLINE, || async {
        let now = state(id);
        if now == wanted { Ok(()) } else { Err(format!("it is {now:?}")) }
    });
    reached.await.unwrap_or_else(|error| panic!("{error}"));
}

/// Zombies of ours are reaped when they are killed; a sleeping shell is `S`, a stopped one `T`.
fn process_id(log: &str) -> String {
    log.rsplit_once("running as ").expect("it says its id").1.lines().next().expect("a line").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_get_their_flags_and_their_output_is_kept() {
    let plan = Plan::nodes(3).with_network().with_shards(2).with_flag("--log-retention-bytes", "4096");
    let cluster = launch(plan).await;
    let log = logs(&cluster, 1, "running as", 1).await;
    let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.ports.client).collect();
    assert!(log.contains(&format!("--node-name n2 --port {}", ports[1])), "{log}");
    let nodes = format!(
        "--initial-nodes n1=127.0.0.1:{},n2=127.0.0.1:{},n3=127.0.0.1:{}",
        ports[0], ports[1], ports[2]
    );
    assert!(log.contains(&nodes), "{log}");
    assert!(log.contains("--shards 2") && log.contains("--log-retention-bytes 4096"), "{log}");
    let to_first = cluster.network.address(1, 0).expect("a proxy");
    let to_third = cluster.network.address(1, 2).expect("a proxy");
    assert!(log.contains(&format!("--peer-address-override n1={to_first},n3={to_third}")), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_node_is_gone_and_keeps_its_data_and_log_over_a_restart() {
    let mut cluster = launch(Plan::nodes(1)).await;
    let id = process_id(&logs(&cluster, 0, "running as", 1).await);
    cluster.nodes[0].kill();
    assert_eq!(state(&id), None);
    assert!(!cluster.nodes[0].is_running());
    cluster.nodes[0].start();
    logs(&cluster, 0, "running as", 2).await;
    let starts = fs::read_to_string(cluster.nodes[0].data_dir.join("starts")).expect("its data");
    assert_eq!(starts, "start\nstart\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_node_stops_and_goes_on() {
    let mut cluster = launch(Plan::nodes(1)).await;
    let id = process_id(&logs(&cluster, 0, "running as", 1).await);
    cluster.nodes[0].pause();
    has_state(&id, Some('T')).await;
    assert!(cluster.nodes[0].is_running());
    cluster.nodes[0].resume();
    has_state(&id, Some('S')).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asked_to_stop_node_ends_in_order() {
    let mut cluster = launch(Plan::nodes(2)).await;
    for node in 0..2 {
        logs(&cluster, node, "running as", 1).await;
    }
    cluster.nodes[0].terminate();
    cluster.nodes[1].interrupt();
    for node in 0..2 {
        cluster.nodes[node].ended(DEADLINE).await.unwrap_or_else(|error| panic!("{error}"));
        logs(&cluster, node, "asked to stop", 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_cluster_leaves_no_process_and_no_data() {
    let mut cluster = launch(Plan::nodes(2)).await;
    let mut ids = Vec::new();
    for node in 0..2 {
        ids.push(process_id(&logs(&cluster, node, "running as", 1).await));
    }
    let data = cluster.nodes[0].data_dir.clone();
    // A paused process is killed too.
    cluster.nodes[1].pause();
    drop(cluster);
    assert_eq!(ids.iter().filter_map(|id| state(id)).collect::<Vec<_>>(), []);
    assert!(!data.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_node_is_told_whom_to_ask() {
    let mut cluster = launch(Plan::growing()).await;
    let first = logs(&cluster, 0, "running as", 1).await;
    assert!(first.contains("--bootstrap") && !first.contains("--join"), "{first}");
    let added = cluster.add_node();
    let log = logs(&cluster, added, "running as", 1).await;
    assert!(log.contains(&format!("--join {}", cluster.nodes[0].ports.client_address())), "{log}");
    assert!(!log.contains("--bootstrap"), "{log}");
}

#[test]
fn port_blocks_do_not_meet() {
    let blocks: Vec<PortBlock> = (0..30).map(|_| PortBlock::find().expect("free ports")).collect();
    let mut ports: Vec<u16> =
        blocks.iter().flat_map(|block| [block.client, block.client + 10, block.client + 20]).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 90);
}

#[tokio::test]
async fn wait_that_fails_says_what_it_waited_for_and_what_was_missing() {
    let never = wait_until("the impossible", Duration::from_millis(50), || async {
        Err::<(), _>("it did not happen")
    });
    let error = never.await.expect_err("it never happens");
    assert_eq!(error.to_string(), "waited 50ms for the impossible; at last: it did not happen");
    let stuck =
        wait_until("an answer", Duration::from_millis(50), std::future::pending::<Result<(), String>>);
    assert!(stuck.await.expect_err("it never comes").to_string().contains("for an answer"));
}

/// The table of errors: only a reason of ours proves that nothing happened.
#[test]
fn only_our_own_reasons_prove_that_a_write_did_not_happen() {
    let ours = |code, reason: &str| {
        Status::with_error_details(code, "", ErrorDetails::with_error_info(reason, api::ERROR_DOMAIN, []))
    };
    assert_eq!(api::fate(&ours(Code::Unavailable, "NOT_APPLIED_NO_LEADER")), Fate::NotApplied);
    assert_eq!(api::fate(&ours(Code::Unavailable, "WRONG_SHARD")), Fate::NotApplied);
    assert_eq!(api::fate(&ours(Code::ResourceExhausted, "QUEUE_FULL")), Fate::NotApplied);
    assert_eq!(api::fate(&ours(Code::Unknown, "OUTCOME_UNKNOWN")), Fate::Unknown);
    assert_eq!(api::fate(&ours(Code::DeadlineExceeded, "DEADLINE_EXCEEDED")), Fate::Unknown);
    assert_eq!(api::fate(&ours(Code::Internal, "BUG")), Fate::Unknown);
    assert_eq!(api::fate(&Status::unavailable("connection refused")), Fate::Unknown);
    assert_eq!(api::fate(&Status::resource_exhausted("a proxy's limit")), Fate::Unknown);
    let foreign = ErrorDetails::with_error_info("NOT_APPLIED_NO_LEADER", "example.com", []);
    assert_eq!(api::fate(&Status::with_error_details(Code::Unavailable, "", foreign)), Fate::Unknown);
}
