//! Permits over a cluster of pretence: what is granted, what speaks against it, and what happens in between.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use kv_proto::{
    disk::v1::{Permit, VoterChange},
    peer::v1::{NodeDescription, Progress, control_request::Request, control_response::Response},
};

use super::*;
use crate::{
    node::operations::model::{LONG, Model, description},
    refusal,
};

fn request_of(node: &str) -> RequestPermitRequest {
    RequestPermitRequest {
        node: node.to_owned(),
        actor: "operator".to_owned(),
        reason: "a new image".to_owned(),
        ..RequestPermitRequest::default()
    }
}

async fn ask(model: &Model, asked: RequestPermitRequest) -> RequestPermitResponse {
    request(model, asked, Instant::now() + LONG).await.expect("an answer")
}

/// All groups have voters on n1, n2 and n3, the first of which leads both; the others were heard of so long ago.
fn whole(heard_ms_ago: u64) -> Model {
    let mut model = Model::of(3);
    model.answers = Box::new(move |node, request| answer(node, request, heard_ms_ago));
    model
}

fn answer(node: NodeId, request: &Request, heard_ms_ago: u64) -> Result<Response, Refusal> {
    match request {
        Request::DescribeGroup(group) if node == NodeId(1) => {
            let replicas: Vec<u64> = (1..=3).map(|number| group.group_id * 100 + number).collect();
            let progress = |replica: &u64| Progress {
                replica_id: *replica,
                matching_index: 1_000,
                heard_ms_ago: Some(heard_ms_ago),
                lag_bytes: Some(0),
            };
            let mut described = description(1, &replicas);
            described.committed_index = 1_000;
            described.last_log_index = 1_000;
            described.progress = replicas.iter().map(progress).collect();
            Ok(Response::Group(described))
        }
        Request::DescribeNode(_) => Ok(Response::Node(NodeDescription::default())),
        _ => Err(refusal::not_applied(refusal::NOT_LEADER, "not here")),
    }
}

/// Reasons, each with its shard.
fn reasons(answer: &RequestPermitResponse) -> Vec<(Option<u32>, &str)> {
    assert_eq!((answer.granted, answer.token.as_str()), (false, ""), "{answer:?}");
    answer.objections.iter().map(|one| (one.shard_id, one.reason.as_str())).collect()
}

fn permit_of(node_id: u64, overdue: bool) -> Permit {
    Permit { token: "other".to_owned(), node_id, ttl_ms: 5_000, overdue, ..Permit::default() }
}

#[tokio::test(start_paused = true)]
async fn a_node_of_a_whole_cluster_is_let_go_and_nobody_else_until_it_is_back() {
    let model = whole(100);
    let granted = ask(&model, request_of("n2")).await;
    assert!(granted.granted && granted.objections.is_empty(), "{granted:?}");
    assert_eq!((granted.token.as_str(), granted.node_id, granted.ttl_ms), ("secret", 2, 60_000));
    let kept = model.record_now().permits;
    assert_eq!((kept.len(), kept[0].node_id, kept[0].ttl_ms), (1, 2, 60_000));
    // Who has it is told no more than others.
    for node in ["n3", "n2"] {
        assert_eq!(reasons(&ask(&model, request_of(node)).await), [(None, "PERMIT_OPEN")]);
    }
    for open in [true, false] {
        let back = ReleasePermitRequest { token: granted.token.clone(), actor: String::new() };
        let answer = release(&model, back, Instant::now() + LONG).await.expect("done already is done");
        assert_eq!(answer.released, open);
    }
    assert!(ask(&model, request_of("n3")).await.granted);
    let wrong = ReleasePermitRequest { token: "wrong".to_owned(), actor: String::new() };
    let answer = release(&model, wrong, Instant::now() + LONG).await.expect("nobody has it");
    assert!(!answer.released, "which it says");
    assert_eq!(model.record_now().permits.len(), 1, "and it ended no other");
}

#[tokio::test(start_paused = true)]
async fn each_shard_that_would_suffer_is_named_with_the_reason() {
    // Nobody but the leader was heard of lately.
    let refused = ask(&whole(5_000), request_of("n2")).await;
    assert_eq!(reasons(&refused), [(Some(0), "QUORUM_AT_RISK"), (Some(1), "QUORUM_AT_RISK")]);
    assert!(refused.objections[1].message.starts_with("without #2 shard 1 keeps 1 of the 2 voters"));
    // No leader answers at all.
    let refused = ask(&Model::of(3), request_of("n2")).await;
    assert_eq!(reasons(&refused), [(Some(0), "NO_LEADER"), (Some(1), "NO_LEADER")]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_overdue_or_stopping_counts_as_down() {
    let model = whole(100);
    model.change(|record| record.permits.push(permit_of(3, true)));
    let at_risk = [(Some(0), "QUORUM_AT_RISK"), (Some(1), "QUORUM_AT_RISK")];
    assert_eq!(reasons(&ask(&model, request_of("n2")).await), at_risk);
    assert!(ask(&model, request_of("n3")).await.granted, "the overdue one itself may go again");

    let mut model = whole(100);
    model.answers = Box::new(|node, request| match request {
        Request::DescribeNode(_) => {
            Ok(Response::Node(NodeDescription { stopping: node == NodeId(3), ..NodeDescription::default() }))
        }
        _ => answer(node, request, 100),
    });
    assert_eq!(reasons(&ask(&model, request_of("n2")).await), at_risk);

    // It may have stopped a moment ago, when its leader had just heard of it.
    model.answers = Box::new(|node, request| match request {
        Request::DescribeNode(_) if node == NodeId(3) => {
            Err(refusal::not_applied(refusal::UNREACHABLE, "it does not answer"))
        }
        _ => answer(node, request, 100),
    });
    assert_eq!(reasons(&ask(&model, request_of("n2")).await), at_risk);
    assert!(ask(&model, request_of("n3")).await.granted, "the one that does not answer may go");
}

#[tokio::test(start_paused = true)]
async fn what_the_record_says_is_told_once_beside_what_the_leaders_say() {
    let model = whole(5_000);
    model.change(|record| record.shards[1].change = Some(VoterChange::default()));
    let expected = [(Some(1), "CHANGE_UNDER_WAY"), (Some(0), "QUORUM_AT_RISK"), (Some(1), "QUORUM_AT_RISK")];
    assert_eq!(reasons(&ask(&model, request_of("n2")).await), expected);
    let model = whole(100);
    model.change(|record| record.shards[1].change = Some(VoterChange::default()));
    assert_eq!(reasons(&ask(&model, request_of("n2")).await), [(Some(1), "CHANGE_UNDER_WAY")]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_gone_needs_no_permit() {
    let model = whole(100);
    for state in [NodeState::Lost, NodeState::Removed] {
        model.change(|record| record.nodes[1].state = state.into());
        assert_eq!(reasons(&ask(&model, request_of("2")).await), [(None, "NODE_IS_GONE")], "{state:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_says_the_same_and_proposes_nothing() {
    let model = whole(100);
    let dry = RequestPermitRequest { dry_run: true, ttl_ms: 5_000, ..request_of("n2") };
    let granted = ask(&model, dry.clone()).await;
    assert_eq!((granted.granted, granted.token.as_str(), granted.ttl_ms), (true, "", 5_000));
    assert_eq!((model.proposed(), model.record_now().permits.len()), (0, 0));
    assert_eq!(reasons(&ask(&whole(5_000), dry).await).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn all_is_asked_again_when_the_record_has_moved_on() {
    let model = whole(100);
    for _ in 0..ATTEMPTS - 1 {
        model.before_next_proposal(|_| {});
    }
    assert!(ask(&model, request_of("n2")).await.granted);
    let model = whole(100);
    for _ in 0..ATTEMPTS {
        model.before_next_proposal(|_| {});
    }
    let refused = request(&model, request_of("n2"), Instant::now() + LONG).await.expect_err("too restless");
    let told = (refused.kind(), refused.reason.as_str());
    assert_eq!(told, (Kind::NotApplied, EPOCH_MOVED_ON), "the caller may repeat it");
}

#[tokio::test(start_paused = true)]
async fn who_was_faster_is_an_answer() {
    let model = whole(100);
    model.before_next_proposal(|record| record.permits.push(permit_of(3, false)));
    assert_eq!(reasons(&ask(&model, request_of("n2")).await), [(None, "PERMIT_OPEN")]);
}

#[tokio::test(start_paused = true)]
async fn a_grant_whose_answer_was_lost_is_found_again() {
    let mut model = whole(100);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    model.answers = Box::new(move |node, request| {
        count.fetch_add(1, Ordering::Relaxed);
        answer(node, request, 100)
    });
    model.lose_answers(1);
    let granted = ask(&model, request_of("n2")).await;
    assert_eq!((granted.granted, granted.token.as_str()), (true, "secret"));
    assert_eq!(model.record_now().permits.len(), 1);
    // The leader of both groups, which is asked first, and the two other nodes: once.
    assert_eq!(asked.load(Ordering::Relaxed), 4, "what was granted is not judged again");
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_nobody_hears_of_is_taken_back() {
    let model = whole(100);
    model.lose_answers(1);
    // What became of it cannot be found out.
    model.refuse_reads_after(1);
    let failed = request(&model, request_of("n2"), Instant::now() + LONG).await.expect_err("no answer");
    assert_eq!(failed.kind(), Kind::OutcomeUnknown, "it was granted for a moment: {failed:?}");
    assert_eq!(model.record_now().permits, []);
    assert_eq!(model.proposed(), 2);

    let model = whole(100);
    model.refuse_reads_after(0);
    let failed = request(&model, request_of("n2"), Instant::now() + LONG).await.expect_err("no answer");
    assert_eq!((failed.kind(), model.proposed()), (Kind::NotApplied, 0), "nothing was in doubt");
}
