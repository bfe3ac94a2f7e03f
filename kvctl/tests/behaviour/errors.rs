//! How kvctl exits, and what it advises.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use kv_client::{Code, admin::NodeState};
use tokio::{task::spawn_blocking, time::sleep};
use tonic::Status;

use crate::{
    against,
    fake::{
        FakeCluster,
        script::{Fault, bad_field, lost, no_leader, refusal},
    },
    kvctl,
};

#[test]
fn help_documents_the_exit_codes() {
    let help = kvctl(&["--help"], b"").expect(0);
    for line in [
        "3  the key is absent",
        "4  a precondition",
        "5  the outcome",
        "6  unavailable",
        "7  no permit",
        "130  Ctrl-C",
    ] {
        assert!(help.contains(line), "{line} is missing in\n{help}");
    }
}

#[tokio::test]
async fn nobody_there_says_how_to_start_a_cluster() {
    let mut cluster = FakeCluster::start(1).await;
    cluster.kill(1).await;
    let run = against(&cluster, &["get", "k"]);
    assert!(run.err.contains("kvctl dev") && run.err.contains(&cluster.address(1)), "{run:?}");
    run.expect(6);
}

#[tokio::test]
async fn a_write_whose_reply_is_lost_is_sent_again_and_its_session_closed() {
    let cluster = FakeCluster::start(2).await;
    cluster.script(1, [Fault::Lose(lost())]);
    let run = against(&cluster, &["put", "counter", "1", "--if-absent"]);
    assert!(run.out.contains("ok, revision 2, version 1"), "{run:?}");
    run.expect(0);
    assert_eq!(cluster.asked("Put"), [1, 2]);
    assert_eq!(cluster.state().store.revision, 2, "it was applied once");
    assert_eq!((cluster.count("OpenSession"), cluster.count("CloseSession")), (1, 1));
}

#[tokio::test]
async fn a_write_whose_reply_is_lost_outlives_the_restart_of_the_only_node() {
    let mut cluster = FakeCluster::start(1).await;
    // The reply is lost, and the node goes away while it is asked again.
    cluster.script(1, [Fault::Lose(lost()), Fault::Hang]);
    let addresses = cluster.addresses();
    let put =
        spawn_blocking(move || kvctl(&["--addr", &addresses, "put", "counter", "1", "--if-absent"], b""));
    while cluster.count("Put") < 2 {
        assert!(!put.is_finished(), "waited until it was sent twice");
        sleep(Duration::from_millis(1)).await;
    }
    cluster.kill(1).await;
    let back_at = Instant::now() + Duration::from_millis(300);
    while Instant::now() < back_at {
        assert!(!put.is_finished(), "it has given up");
        sleep(Duration::from_millis(10)).await;
    }
    cluster.revive(1);
    let run = put.await.unwrap();
    assert!(run.out.contains("ok, revision 2, version 1"), "{run:?}");
    run.expect(0);
    assert_eq!(cluster.state().store.revision, 2, "it was applied once");
    assert_eq!((cluster.count("OpenSession"), cluster.count("CloseSession")), (1, 1));
}

#[tokio::test]
async fn an_unknown_outcome_has_an_exit_code() {
    let cluster = FakeCluster::start(1).await;
    cluster.script(1, [Fault::Lose(lost())]);
    cluster.script(1, std::iter::repeat_n(Fault::Refuse(no_leader()), 100));
    let run = against(&cluster, &["--timeout", "500ms", "put", "k", "v"]);
    assert!(run.err.contains("may have been applied"), "{run:?}");
    run.expect(5);
}

#[tokio::test]
async fn not_applied_has_an_exit_code() {
    let cluster = FakeCluster::start(1).await;
    cluster.script(1, std::iter::repeat_n(Fault::Refuse(no_leader()), 100));
    let run = against(&cluster, &["--timeout", "200ms", "put", "k", "v"]);
    assert!(run.err.contains("NOT_APPLIED_NO_LEADER") && run.err.contains("safe to try again"), "{run:?}");
    run.expect(6);
}

#[tokio::test]
async fn a_read_that_fails_says_nothing_of_writes() {
    let cluster = FakeCluster::start(1).await;
    cluster.script(1, std::iter::repeat_n(Fault::Refuse(no_leader()), 100));
    let run = against(&cluster, &["--timeout", "200ms", "get", "k"]);
    assert!(run.err.contains("safe to try again") && !run.err.contains("written"), "{run:?}");
    run.expect(6);
}

#[tokio::test]
async fn a_node_that_cannot_answer_by_itself_says_so_at_once() {
    let cluster = FakeCluster::start(2).await;
    let refused = |code, reason| Fault::Refuse(refusal(code, reason, &[], None));
    let at_node = ["get", "k", "--node", "n2", "--serve-at-node"];
    let absent = || refused(Code::Unavailable, "NOT_APPLIED_NO_REPLICA");
    cluster.script(2, [absent(), absent()]);
    let run = against(&cluster, &at_node);
    assert!(run.err.contains("kvctl shard list") && run.err.contains("--serve-at-node"), "{run:?}");
    run.expect(6);
    cluster.script(2, [refused(Code::DataLoss, "REPLICA_QUARANTINED")]);
    let run = against(&cluster, &at_node);
    assert!(run.err.contains("REPLICA_QUARANTINED") && run.err.contains("--serve-at-node"), "{run:?}");
    run.expect(1);
    assert_eq!(cluster.asked("Get"), [2, 2, 2]);
}

#[tokio::test]
async fn a_port_that_is_not_for_clients_is_named() {
    let cluster = FakeCluster::start(1).await;
    cluster.script(1, [Fault::Refuse(Status::unimplemented(""))]);
    let run = against(&cluster, &["get", "k"]);
    assert!(run.err.contains(&format!("is {} the port for clients", cluster.address(1))), "{run:?}");
    run.expect(1);
    // Closes every connection, as an HTTP/1 server does when it sees HTTP/2.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    std::thread::spawn(move || while other.accept().is_ok() {});
    let run = kvctl(&["--addr", &address, "--timeout", "300ms", "get", "k"], b"");
    assert!(run.err.contains("hint: "), "{run:?}");
    run.expect(6);
}

#[tokio::test]
async fn malformed_requests_name_the_field() {
    let cluster = FakeCluster::start(1).await;
    cluster.script(1, [Fault::Refuse(bad_field("key", "is empty"))]);
    let run = against(&cluster, &["put", "", "v"]);
    assert!(run.err.contains("key: is empty"), "{run:?}");
    run.expect(2);
}

#[tokio::test]
async fn a_bug_is_an_error() {
    let cluster = FakeCluster::start(1).await;
    cluster.script(1, [Fault::Refuse(refusal(Code::Internal, "INTERNAL", &[], None))]);
    against(&cluster, &["get", "k"]).expect(1);
}

#[test]
fn malformed_command_lines_are_refused() {
    for arguments in [
        &["--addr", "ftp://x", "get", "k"][..],
        &["--addr", "localhost:0", "get", "k"],
        &["--timeout", "soon", "get", "k"],
        &["get"],
        &["put", "k"],
        &["put", "k", "v", "--stdin"],
        &["nonsense"],
        &[],
    ] {
        kvctl(arguments, b"").expect(2);
    }
}

#[tokio::test]
async fn a_scheme_and_the_environment_are_understood() {
    let cluster = FakeCluster::start(1).await;
    let address = format!("http://{}/", cluster.address(1));
    kvctl(&["--addr", &address, "put", "k", "v"], b"").expect(0);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_kvctl"))
        .args(["get", "k"])
        .env("KVCTL_ADDR", cluster.address(1))
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"v");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_kvctl"))
        .args(["put", "k"])
        .env("KVCTL_ADDR", "ftp://x")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("Usage: kvctl put <KEY> <VALUE>"), "{told}");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_kvctl"))
        .args(["get", "k"])
        .env("KVCTL_ADDR", "ftp://x")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("KVCTL_ADDR: `ftp://x` is no address"), "{told}");
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test]
async fn a_named_node_is_asked() {
    let cluster = FakeCluster::start(3).await;
    against(&cluster, &["put", "k", "v"]).expect(0);
    for (name, id) in [("n3", 3), ("2", 2), ("#1", 1)] {
        against(&cluster, &["get", "k", "--node", name, "--serve-at-node", "--stale"]).expect(0);
        assert_eq!(cluster.asked("Get").last(), Some(&id));
    }
    let run = against(&cluster, &["get", "k", "--node", "n9"]);
    assert!(run.err.contains("n1 (#1), n2 (#2), n3 (#3)"), "{run:?}");
    run.expect(2);
    cluster.change(|membership| {
        membership.states.insert(3, NodeState::Removed);
    });
    let run = against(&cluster, &["get", "k", "--node", "n3"]);
    assert!(run.err.contains("there are n1 (#1), n2 (#2)\n"), "one that was removed is not asked: {run:?}");
    run.expect(2);
}
