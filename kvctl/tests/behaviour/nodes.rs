//! What is wished of nodes, and of the cluster: drains, removals, permits, labels, policy, the journal.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use kv_client::{Code, admin::NodeState};
use kv_proto::admin::v1::{JournalEntry, Objection, Permit};
use serde_json::{Value as Json, json};
use tokio::time::sleep;

use crate::{
    Run, against,
    fake::{
        FakeCluster,
        membership::UNIX_MS,
        script::{Fault, lost, refusal},
    },
    kvctl, run,
};

fn parsed(text: &str) -> Json {
    serde_json::from_str(text).unwrap()
}

/// The documents of a text, one a line.
fn lines(text: &str) -> Vec<Json> {
    text.lines().map(parsed).collect()
}

/// Waits for it.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited until {what}");
        sleep(Duration::from_millis(1)).await;
    }
}

/// It looks at the cluster again and again.
async fn until_it_looked_twice(cluster: &FakeCluster) {
    until("it had looked twice", || cluster.count("GetClusterStatus") >= 2).await;
}

/// Runs kvctl with an input that does not end, and presses Ctrl-C when it is time.
async fn interrupted(
    cluster: &FakeCluster,
    arguments: &[&str],
    input: &str,
    is_time: impl Fn() -> bool,
) -> Run {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvctl"))
        .args(["--addr", &cluster.addresses(), "--timeout", "60s"])
        .args(arguments)
        .env_remove("KVCTL_ADDR")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    until("it was time for Ctrl-C", is_time).await;
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    until("it had ended", || child.try_wait().unwrap().is_some()).await;
    let output = child.wait_with_output().unwrap();
    Run {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[tokio::test]
async fn a_drain_returns_at_once_and_says_how_to_go_on() {
    let cluster = FakeCluster::start(4).await;
    let run = against(&cluster, &["node", "drain", "n3", "--reason", "new disk"]);
    assert!(run.err.contains("node drain n3 --wait") && run.err.contains("node undrain n3"), "{run:?}");
    assert_eq!(run.expect(0), "n3 (#3) is draining\n");
    let asked = cluster.state().membership.asked.clone();
    assert!(
        matches!(&asked[..], [("DrainNode", actor, reason)] if actor.starts_with("kvctl") && reason == "new disk")
    );
    assert_eq!(
        parsed(&against(&cluster, &["-o", "json", "node", "drain", "3"]).expect(0))["state"],
        "draining"
    );
    assert_eq!(against(&cluster, &["node", "undrain", "3"]).expect(0), "node #3 is active\n");
    assert_eq!(cluster.state().membership.state(3), NodeState::Active);
}

#[tokio::test]
async fn a_drain_is_waited_for_and_shows_what_is_left() {
    let cluster = FakeCluster::start(4).await;
    let run = against(&cluster, &["--timeout", "2s", "node", "drain", "n3", "--wait"]);
    for line in [
        "n3 (#3): 3 replicas (3.0 GiB) of 3 left",
        "n3 (#3): 1 replica (1.0 GiB) of 3 left, none moves at the moment, about",
    ] {
        assert!(run.err.contains(line), "{run:?}");
    }
    assert!(run.err.contains("kvctl node remove n3"), "{run:?}");
    assert_eq!(run.expect(0), "n3 (#3) is drained: it holds nothing any more\n");
    let out = against(&cluster, &["node", "drain", "3", "--wait"]).expect(0);
    assert_eq!(out, "node #3 is drained: it holds nothing any more\n");
}

#[tokio::test]
async fn a_drain_that_is_waited_for_is_told_to_programs_line_by_line() {
    let cluster = FakeCluster::start(4).await;
    let told = lines(&against(&cluster, &["-o", "json", "node", "drain", "n2", "--wait"]).expect(0));
    let left: Vec<_> = told.iter().map(|line| line["replicas_left"].as_u64()).collect();
    assert_eq!(left, [Some(3), Some(2), Some(1), Some(0), None]);
    assert_eq!((&told[0]["replicas_total"], &told[0]["bytes_left"]), (&json!(3), &json!(3_u64 << 30)));
    assert_eq!(told[4], json!({ "node": 2, "state": "drained" }));
}

#[tokio::test]
async fn ctrl_c_ends_the_waiting_and_not_the_drain() {
    let cluster = FakeCluster::start(4).await;
    cluster.change(|membership| {
        membership.holds_drains = true;
        membership.permits = vec![Permit { node_id: 2, ..Permit::default() }];
    });
    let has_looked = || cluster.count("GetClusterStatus") >= 2;
    let run = interrupted(&cluster, &["node", "drain", "n3", "--wait"], "", has_looked).await;
    assert!(run.err.contains("goes on") && run.err.contains("kvctl node undrain n3"), "{run:?}");
    assert!(run.err.contains("none leaves while #2 has a permit"), "{run:?}");
    run.expect(130);
    assert_eq!(cluster.state().membership.state(3), NodeState::Draining);
}

#[tokio::test]
async fn ctrl_c_before_the_answer_says_that_the_drain_may_have_begun() {
    let cluster = FakeCluster::start(4).await;
    (1..=4).for_each(|node| cluster.script(node, [Fault::Hang, Fault::Hang]));
    let is_asked = || cluster.count("DrainNode") >= 1;
    let run = interrupted(&cluster, &["node", "drain", "#3", "--wait"], "", is_asked).await;
    assert!(run.err.contains("whether the drain of node #3 was begun"), "{run:?}");
    run.expect(130);
}

#[tokio::test]
async fn ctrl_c_ends_the_lines_of_a_shell_and_not_the_drain_that_one_of_them_waited_for() {
    let cluster = FakeCluster::start(4).await;
    cluster.change(|membership| membership.holds_drains = true);
    let has_looked = || cluster.count("GetClusterStatus") >= 2;
    let lines = "node drain n3 --wait\nput k v\n";
    let run = interrupted(&cluster, &["shell"], lines, has_looked).await;
    assert!(run.err.contains("goes on") && !run.err.contains("interrupted"), "{run:?}");
    run.expect(130);
    assert_eq!((cluster.count("Put"), cluster.state().membership.state(3)), (0, NodeState::Draining));
}

#[tokio::test]
async fn ctrl_c_ends_a_shell_also_after_a_drain_that_was_waited_for() {
    for hangs in [true, false] {
        let cluster = FakeCluster::start(4).await;
        if hangs {
            // The first call is that for the drain.
            cluster.script(1, [Fault::None]);
            (1..=4).for_each(|node| cluster.script(node, [Fault::Hang, Fault::Hang]));
        }
        let is_asked = || cluster.count("Get") >= 1;
        let run = interrupted(&cluster, &["shell"], "node drain n3 --wait\nget k\n", is_asked).await;
        assert!(run.out.contains("n3 (#3) is drained"), "{run:?}");
        run.expect(130);
    }
}

#[tokio::test]
async fn a_node_is_called_by_its_id_as_texts_write_it_and_advice_can_be_pasted() {
    let cluster = FakeCluster::start(4).await;
    let run = against(&cluster, &["node", "drain", "#3"]);
    assert!(run.err.contains("kvctl node drain 3 --wait") && !run.err.contains("drain #3"), "{run:?}");
    assert_eq!(run.expect(0), "node #3 is draining\n");
    let run = against(&cluster, &["node", "permit", "#2"]);
    assert!(
        run.err.contains("node #2 may be restarted") && run.err.contains("permit 2 --release"),
        "{run:?}"
    );
    assert_eq!(
        against(&cluster, &["shard", "transfer", "1", "--to", "#2"]).expect(0),
        "node #2 leads shard 1\n"
    );
}

#[tokio::test]
async fn a_drain_that_somebody_cancels_is_an_error() {
    let cluster = FakeCluster::start(4).await;
    cluster.change(|membership| membership.holds_drains = true);
    let addresses = cluster.addresses();
    let waiting = tokio::task::spawn_blocking(move || {
        kvctl(&["--addr", &addresses, "node", "drain", "n3", "--wait"], b"")
    });
    until_it_looked_twice(&cluster).await;
    against(&cluster, &["node", "undrain", "n3"]).expect(0);
    let run = waiting.await.unwrap();
    assert!(run.err.contains("was cancelled") && run.err.contains("kvctl why --node 3"), "{run:?}");
    run.expect(1);
}

#[tokio::test]
async fn the_waiting_outlives_nodes_that_do_not_answer() {
    let mut cluster = FakeCluster::start(4).await;
    cluster.change(|membership| membership.holds_drains = true);
    let address = cluster.address(1);
    let waiting = tokio::task::spawn_blocking(move || {
        kvctl(&["--addr", &address, "--timeout", "100ms", "node", "drain", "n3", "--wait"], b"")
    });
    until_it_looked_twice(&cluster).await;
    cluster.kill(1).await;
    let back_at = Instant::now() + Duration::from_millis(500);
    while Instant::now() < back_at {
        assert!(!waiting.is_finished(), "it has given up");
        sleep(Duration::from_millis(10)).await;
    }
    cluster.revive(1);
    cluster.change(|membership| membership.holds_drains = false);
    let run = waiting.await.unwrap();
    assert!(run.err.contains("the drain goes on all the same"), "{run:?}");
    run.expect(0);
}

#[tokio::test]
async fn refusals_are_told_with_what_to_do() {
    let cluster = FakeCluster::start(3).await;
    for (arguments, reason, advice) in [
        (&["node", "drain", "n1"][..], "TOO_FEW_NODES", "kvctl cluster policy --replication-factor"),
        (&["node", "remove", "n1"], "NODE_NOT_EMPTY", "kvctl node drain"),
        (&["node", "remove", "n1", "--lost"], "NODE_IS_ALIVE", "will not come back"),
        (&["node", "remove", "n3", "--lost"], "DATA_LOSS_NOT_ACCEPTED", "--accept-data-loss"),
        (&["node", "drain", "n9"], "NODE_UNKNOWN", "kvctl node list"),
        (&["shard", "transfer", "9", "--to", "n1"], "SHARD_UNKNOWN", "kvctl shard list"),
        (&["node", "hand-over", "n1", "--permit", "x"], "PERMIT_UNKNOWN", "ask for another one"),
    ] {
        let run = against(&cluster, arguments);
        assert!(run.err.contains(reason) && run.err.contains(advice), "{run:?}");
        run.expect(1);
    }
    against(&cluster, &["node", "remove", "n3", "--accept-data-loss"]).expect(2);
    let out = against(&cluster, &["node", "remove", "n3", "--lost", "--accept-data-loss"]).expect(0);
    assert_eq!(out, "n3 (#3) is removed\n");
}

#[tokio::test]
async fn a_change_whose_outcome_is_unknown_may_be_asked_for_again() {
    let cluster = FakeCluster::start(1).await;
    cluster.script(1, std::iter::repeat_n(Fault::Lose(lost()), 1000));
    let run = against(&cluster, &["--timeout", "200ms", "node", "undrain", "n1"]);
    assert!(run.err.contains("run it again, what is done already stays done"), "{run:?}");
    run.expect(5);
    let cluster = FakeCluster::start(1).await;
    cluster.script(1, [Fault::Refuse(tonic::Status::unimplemented(""))]);
    let run = against(&cluster, &["node", "undrain", "n1"]);
    assert!(run.err.contains("of a version that does not know this yet"), "{run:?}");
    run.expect(1);
}

#[tokio::test]
async fn a_permit_is_a_token_for_scripts_and_words_for_people() {
    let cluster = FakeCluster::start(2).await;
    let run = against(&cluster, &["node", "permit", "n2", "--for", "90s"]);
    let token = run.out.trim_end().to_owned();
    assert!(!token.is_empty() && !token.contains(char::is_whitespace), "{run:?}");
    assert!(run.err.contains("within 90s") && run.err.contains(&format!("--release {token}")), "{run:?}");
    run.expect(0);
    assert_eq!(cluster.state().membership.permits[0].ttl_ms, 90_000);
    let run = against(&cluster, &["node", "permit", "n1"]);
    assert!(
        run.err.contains("PERMIT_OPEN n1 has one") && run.err.contains("hint: `kvctl status`"),
        "{run:?}"
    );
    assert_eq!(run.expect(7), "", "nothing that could be taken for a token");
    cluster.state().leaders = [2, 2];
    let out = against(&cluster, &["node", "hand-over", "n2", "--permit", &token]).expect(0);
    assert_eq!(out, "n2 leads nothing any more: restart it now\n");
    assert_eq!(cluster.state().leaders, [1, 1]);
    for shown in ["the permit is given back", "no permit with this token is open: "] {
        let out = against(&cluster, &["node", "permit", "n2", "--release", &token]).expect(0);
        assert!(out.starts_with(shown), "{out}");
    }
    assert!(cluster.state().membership.permits.is_empty());
    against(&cluster, &["node", "permit", "--release", &token]).expect(0);
    against(&cluster, &["node", "permit"]).expect(2);
    against(&cluster, &["node", "permit", "n2", "--for", "2h"]).expect(2);
    against(&cluster, &["node", "permit", "n2", "--release", &token, "--dry-run"]).expect(2);
}

#[tokio::test]
async fn a_refused_permit_names_each_shard_that_would_suffer() {
    let cluster = FakeCluster::start(3).await;
    let objection = |shard_id, reason: &str| Objection {
        shard_id,
        reason: reason.to_owned(),
        message: "2 of 3 voters would stay, r7 lags by 5,000 entries".to_owned(),
    };
    cluster.change(|membership| {
        membership.objections =
            vec![objection(Some(5), "QUORUM_AT_RISK"), objection(Some(0), "QUORUM_AT_RISK")];
    });
    let run = against(&cluster, &["node", "permit", "n2", "--dry-run"]);
    assert!(
        run.err.contains("shard 5: QUORUM_AT_RISK 2 of 3 voters") && run.err.contains("  meta: "),
        "{run:?}"
    );
    assert_eq!(run.err.matches("hint: ").count(), 1, "{run:?}");
    run.expect(7);
    let run = against(&cluster, &["-o", "json", "node", "permit", "n2"]);
    assert_eq!(run.code, 7);
    let told = parsed(&run.out);
    assert_eq!((&told["granted"], &told["token"]), (&json!(false), &Json::Null));
    assert_eq!((&told["objections"][0]["shard"], &told["objections"][1]["shard"]), (&json!(5), &json!(0)));
    cluster.change(|membership| membership.objections.clear());
    let out = against(&cluster, &["node", "permit", "n2", "--dry-run"]).expect(0);
    assert_eq!(out, "n2 (#2) may be restarted now\n");
    assert!(cluster.state().membership.permits.is_empty());
    let restless = Fault::Refuse(refusal(Code::Unavailable, "EPOCH_MOVED_ON", &[], None));
    cluster.script(1, [restless.clone()]);
    against(&cluster, &["node", "permit", "n2"]).expect(0);
    cluster.script(1, std::iter::repeat_n(restless, 100));
    let address = cluster.address(1);
    kvctl(&["--addr", &address, "--timeout", "200ms", "node", "permit", "n2"], b"").expect(7);
}

#[tokio::test]
async fn a_permit_whose_answer_is_lost_is_said_to_end_by_itself() {
    let cluster = FakeCluster::start(1).await;
    cluster.script(1, [Fault::Lose(lost())]);
    let run = against(&cluster, &["node", "permit", "n1", "--for", "2m"]);
    assert!(run.err.contains("ends by itself 2m after it was granted"), "{run:?}");
    run.expect(5);
    assert_eq!(cluster.count("RequestPermit"), 1);
}

#[tokio::test]
async fn labels_are_set_and_taken_away() {
    let cluster = FakeCluster::start(1).await;
    assert_eq!(against(&cluster, &["node", "label", "n1", "zone=b"]).expect(0), "n1 (#1) is in zone b\n");
    let listed = parsed(&against(&cluster, &["-o", "json", "node", "list"]).expect(0));
    assert_eq!((&listed[0]["zone"], &listed[0]["zone_labelled"]), (&json!("b"), &json!(true)));
    let told = parsed(&against(&cluster, &["-o", "json", "node", "label", "n1", "zone-"]).expect(0));
    assert_eq!(told, json!({ "node": 1, "zone_label": null }));
    assert!(cluster.state().membership.zones.is_empty());
    against(&cluster, &["node", "label", "n1", "zone="]).expect(0);
    assert_eq!(cluster.state().membership.zones[&1], "");
    against(&cluster, &["node", "label", "n1", "rack=7"]).expect(2);
}

#[tokio::test]
async fn a_leader_is_transferred_to_a_node_that_can_lead() {
    let cluster = FakeCluster::start(3).await;
    assert_eq!(
        against(&cluster, &["shard", "transfer", "2", "--to", "n2"]).expect(0),
        "n2 (#2) leads shard 2\n"
    );
    assert_eq!(cluster.state().leaders, [1, 2]);
    assert_eq!(
        against(&cluster, &["shard", "transfer", "meta", "--to", "1"]).expect(0),
        "node #1 leads meta\n"
    );
    cluster.change(|membership| {
        membership.gone.insert((1, 3));
    });
    let run = against(&cluster, &["shard", "transfer", "1", "--to", "n3"]);
    assert!(run.err.contains("TARGET_NOT_READY") && run.err.contains("choose another node"), "{run:?}");
    run.expect(1);
}

#[tokio::test]
async fn the_policy_is_shown_and_changed() {
    let cluster = FakeCluster::start(1).await;
    let shown = against(&cluster, &["cluster", "policy"]).expect(0);
    assert_eq!(shown, "replication factor  3\nlost node grace     10m\nmoves at once       4\n");
    let arguments = ["cluster", "policy", "--replication-factor", "5", "--lost-node-grace", "90s"];
    let run = against(&cluster, &arguments);
    assert!(run.err.contains("kvctl shard list"), "{run:?}");
    assert_eq!(run.expect(0), "replication factor  5\nlost node grace     90s\nmoves at once       4\n");
    let shown = parsed(&against(&cluster, &["-o", "json", "cluster", "policy"]).expect(0));
    let expected = json!({ "replication_factor": 5, "lost_node_grace_ms": 90_000, "moves_at_once": 4 });
    assert_eq!(shown, expected);
    for wrong in [["--replication-factor", "2"], ["--moves-at-once", "65"], ["--reason", "x"]] {
        against(&cluster, &[&["cluster", "policy"], &wrong[..]].concat()).expect(2);
    }
    assert_eq!(cluster.count("SetPolicy"), 1);
}

fn entry(sequence: u64) -> JournalEntry {
    JournalEntry {
        sequence,
        unix_ms: UNIX_MS + sequence * 1_000,
        epoch: 10 + sequence,
        actor: "controller at n1".to_owned(),
        event: format!("move {sequence} is done"),
        reason: "it has\ncaught up".to_owned(),
        shard_id: Some(u32::try_from(sequence % 3).unwrap()),
        node_ids: vec![sequence % 2 + 1],
    }
}

#[tokio::test]
async fn the_journal_ends_with_the_newest() {
    let cluster = FakeCluster::start(2).await;
    cluster.change(|membership| membership.journal = (1..=8).map(entry).collect());
    let sequences = |arguments: &[&str]| -> Vec<u64> {
        let told = parsed(&against(&cluster, &[&["-o", "json", "why"], arguments].concat()).expect(0));
        told.as_array().unwrap().iter().map(|entry| entry["sequence"].as_u64().unwrap()).collect()
    };
    assert_eq!(sequences(&[]), [1, 2, 3, 4, 5, 6, 7, 8], "over several pages");
    assert_eq!(sequences(&["--limit", "4"]), [5, 6, 7, 8]);
    assert_eq!(sequences(&["--limit", "0", "--node", "n1"]), [2, 4, 6, 8]);
    assert_eq!(sequences(&["--shard", "2"]), [2, 5, 8]);
    assert_eq!(sequences(&["--shard", "meta", "--limit", "1"]), [6]);
    let run = against(&cluster, &["why", "--limit", "1"]);
    assert_eq!(run.err, "#1 is n1\n");
    let table = run.expect(0);
    let line = "2026-11-22 16:54:36Z   controller at n1   move 8 is done   it has\\ncaught up";
    assert_eq!(table.lines().map(str::trim_end).next_back(), Some(line), "{table}");
    against(&cluster, &["why", "--shard", "1", "--node", "n1"]).expect(2);
    let run = against(&cluster, &["why", "--node", "n9"]);
    assert!(run.err.contains("NODE_UNKNOWN") && run.err.contains("one that was removed"), "{run:?}");
    run.expect(1);
}

#[tokio::test]
async fn who_asks_is_told_to_the_journal() {
    let cluster = FakeCluster::start(1).await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvctl"));
    command.args(["--addr", &cluster.addresses(), "node", "undrain", "n1"]).env("USER", "ada");
    run(&mut command, b"").expect(0);
    let asked = cluster.state().membership.asked.clone();
    assert!(asked[0].1.starts_with("kvctl ada"), "{asked:?}");
}
