//! What persons and the operator ask of the cluster, over the wire: checks, answers, refusals, watches.

use std::{future::Future, sync::Arc, time::Duration};

use kv_proto::{
    admin::v1::{
        ClusterEvent, DrainNodeRequest, GetJournalRequest, HandOverRequest, Phase, ReleasePermitRequest,
        RemoveNodeRequest, RequestPermitRequest, SetNodeLabelsRequest, SetPolicyRequest,
        TransferLeaderRequest, UndrainNodeRequest, WatchClusterRequest, admin_client::AdminClient,
    },
    peer::v1::{Refusal, refusal::Kind},
};
use kvnode::api::{
    admission::Call,
    batch_stream::BatchTerms,
    limits::{Limit, STREAMED_REPLIES_PER_CONNECTION_MAX},
    server::Options,
};
use tonic::{Code, Response, Status, Streaming, transport::Channel};
use tonic_types::StatusExt;

use crate::{
    fake::refusal,
    node::TOKEN,
    support::{Harness, field, told, until, within},
};

fn drain(node: &str) -> DrainNodeRequest {
    DrainNodeRequest { node: node.to_owned(), actor: "kvctl".to_owned(), reason: "old disk".to_owned() }
}

/// What a call answers, or panics.
async fn ok<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> T {
    within("an answer", call).await.expect("carried out").into_inner()
}

async fn refused<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Status {
    match within("a refusal", call).await {
        Ok(_) => panic!("it was carried out"),
        Err(status) => status,
    }
}

#[tokio::test]
async fn each_operation_reaches_the_node_and_its_answer_the_caller() {
    let harness = Harness::start().await;
    let mut admin = harness.admin().await;
    let drained = ok(admin.drain_node(drain("n3"))).await;
    assert_eq!((drained.node_id, drained.state().as_str_name()), (3, "NODE_STATE_DRAINING"));
    let undrain = UndrainNodeRequest { node: "3".to_owned(), ..Default::default() };
    assert_eq!(ok(admin.undrain_node(undrain)).await.state().as_str_name(), "NODE_STATE_ACTIVE");
    let remove = RemoveNodeRequest { node: "n3".to_owned(), lost: true, ..Default::default() };
    assert_eq!(ok(admin.remove_node(remove)).await.node_id, 3);
    let transfer = TransferLeaderRequest { shard_id: 5, to_node: "n3".to_owned(), ..Default::default() };
    assert_eq!(ok(admin.transfer_leader(transfer)).await.leader_node_id, 3);
    let permit = RequestPermitRequest { node: "n3".to_owned(), ttl_ms: 5_000, ..Default::default() };
    let permit = ok(admin.request_permit(permit)).await;
    assert_eq!((permit.granted, permit.token.as_str(), permit.ttl_ms), (true, TOKEN, 5_000));
    let over = HandOverRequest { node: "n3".to_owned(), permit_token: permit.token.clone() };
    ok(admin.hand_over(over)).await;
    ok(admin.release_permit(ReleasePermitRequest { token: permit.token, actor: String::new() })).await;
    let label =
        SetNodeLabelsRequest { node: "n3".to_owned(), zone: Some(String::new()), actor: String::new() };
    assert_eq!(ok(admin.set_node_labels(label)).await.node_id, 3);
    let policy = SetPolicyRequest { replication_factor: Some(5), ..Default::default() };
    let policy = ok(admin.set_policy(policy)).await.policy.expect("told");
    assert_eq!(policy.replication_factor, 5);
    let journal = GetJournalRequest { shard_id: Some(0), limit: 7, before: 40, ..Default::default() };
    let journal = ok(admin.get_journal(journal)).await;
    assert_eq!((journal.entries[0].event.as_str(), journal.next_before), ("scripted", 9));
    let asked = [
        "drain n3 by kvctl: old disk",
        "undrain 3",
        "remove n3 lost",
        "transfer 5 to n3",
        "permit n3",
        "hand over n3 with secret",
        "release secret",
        "label n3 Some(\"\")",
        "factor Some(5)",
        "journal of Some(0) \"\" 7 40",
    ];
    assert_eq!(harness.node.asked(), asked);
}

#[tokio::test]
async fn bad_input_names_its_field_and_reaches_no_node() {
    let harness = Harness::start().await;
    let mut admin = harness.admin().await;
    let named = || "n3".to_owned();
    assert_eq!(field(&refused(admin.drain_node(drain(""))).await), "node");
    let long = DrainNodeRequest { reason: "r".repeat(1_001), ..drain("n3") };
    assert_eq!(field(&refused(admin.drain_node(long)).await), "reason");
    let undrain = UndrainNodeRequest { node: named(), actor: "a".repeat(254), ..Default::default() };
    assert_eq!(field(&refused(admin.undrain_node(undrain)).await), "actor");
    let remove = RemoveNodeRequest { node: named(), accept_data_loss: true, ..Default::default() };
    assert_eq!(field(&refused(admin.remove_node(remove)).await), "accept_data_loss");
    let transfer = TransferLeaderRequest::default();
    assert_eq!(field(&refused(admin.transfer_leader(transfer)).await), "to_node");
    let permit = RequestPermitRequest { node: named(), ttl_ms: 999, ..Default::default() };
    assert_eq!(field(&refused(admin.request_permit(permit)).await), "ttl_ms");
    assert_eq!(field(&refused(admin.release_permit(ReleasePermitRequest::default())).await), "token");
    let over = HandOverRequest { node: named(), ..Default::default() };
    assert_eq!(field(&refused(admin.hand_over(over)).await), "permit_token");
    let label = SetNodeLabelsRequest { node: named(), zone: Some("z".repeat(254)), ..Default::default() };
    assert_eq!(field(&refused(admin.set_node_labels(label)).await), "zone");
    let policy = SetPolicyRequest { replication_factor: Some(2), ..Default::default() };
    assert_eq!(field(&refused(admin.set_policy(policy)).await), "replication_factor");
    let journal = GetJournalRequest { limit: 1_001, ..Default::default() };
    assert_eq!(field(&refused(admin.get_journal(journal)).await), "limit");
    assert!(harness.node.asked().is_empty());
}

#[tokio::test]
async fn what_the_cluster_refuses_comes_back_with_its_reason() {
    let harness = Harness::start().await;
    let mut admin = harness.admin().await;
    harness.node.refuse(refusal(Kind::FailedPrecondition, "TOO_FEW_NODES"));
    let status = refused(admin.drain_node(drain("n3"))).await;
    assert_eq!(told(&status), (Code::FailedPrecondition, "TOO_FEW_NODES".to_owned()));
    let unknown = Refusal { field: "node".to_owned(), ..refusal(Kind::NotFound, "NODE_UNKNOWN") };
    harness.node.refuse(unknown);
    let status = refused(admin.drain_node(drain("n9"))).await;
    assert_eq!(told(&status), (Code::NotFound, "NODE_UNKNOWN".to_owned()));
    let details = status.get_error_details();
    assert_eq!(details.bad_request().expect("its field").field_violations[0].field, "node");
    harness.node.refuse(refusal(Kind::NotApplied, "NOT_APPLIED_NO_LEADER"));
    let status = refused(admin.drain_node(drain("n3"))).await;
    assert_eq!(told(&status), (Code::Unavailable, "NOT_APPLIED_NO_LEADER".to_owned()));
    assert!(status.get_error_details().retry_info().is_some(), "it may be asked again");
}

#[tokio::test]
async fn a_refused_permit_is_an_answer() {
    let harness = Harness::start().await;
    let permit = RequestPermitRequest { node: "risky".to_owned(), ..Default::default() };
    let answer = ok(harness.admin().await.request_permit(permit)).await;
    assert_eq!((answer.granted, answer.token.as_str()), (false, ""));
    let objection = &answer.objections[0];
    assert_eq!((objection.shard_id, objection.reason.as_str()), (Some(5), "QUORUM_AT_RISK"));
}

#[tokio::test]
async fn who_may_not_call_it_changes_nothing() {
    let authorize = |call: Call<'_>| match call.method {
        "/admin.v1.Admin/ListNodes" => Ok(()),
        method => Err(Status::permission_denied(method.to_owned())),
    };
    let harness = Harness::with(Options { authorize: Arc::new(authorize), ..Options::default() }).await;
    let mut admin = harness.admin().await;
    let status = refused(admin.drain_node(drain("n3"))).await;
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "/admin.v1.Admin/DrainNode"));
    let status = refused(admin.watch_cluster(WatchClusterRequest::default())).await;
    assert_eq!(status.code(), Code::PermissionDenied);
    ok(admin.list_nodes(kv_proto::admin::v1::ListNodesRequest {})).await;
    assert!(harness.node.asked().is_empty());
}

async fn watch(admin: &mut AdminClient<Channel>, newer_than_epoch: u64) -> Streaming<ClusterEvent> {
    ok(admin.watch_cluster(WatchClusterRequest { newer_than_epoch })).await
}

async fn next(events: &mut Streaming<ClusterEvent>) -> u64 {
    within("an event", events.message()).await.expect("no error").expect("an event").epoch
}

async fn end(events: &mut Streaming<ClusterEvent>) -> (Code, String) {
    told(&within("the end", events.message()).await.expect_err("an end with a reason"))
}

#[tokio::test]
async fn a_watch_tells_the_state_at_once_and_again_after_each_change() {
    let harness = Harness::start().await;
    let mut admin = harness.admin().await;
    let mut events = watch(&mut admin, 0).await;
    let mut newer = watch(&mut admin, 4).await;
    assert_eq!(next(&mut events).await, 4);
    harness.node.reach(5);
    assert_eq!((next(&mut events).await, next(&mut newer).await), (5, 5), "what is known is not told again");
    harness.node.reach(9);
    assert_eq!((next(&mut events).await, next(&mut newer).await), (9, 9));
    assert_eq!(harness.taken(Limit::Streams), 2);
    drop((events, newer));
    until("the places of the watches", || harness.taken(Limit::Streams) == 0).await;
}

#[tokio::test]
async fn a_watch_that_nobody_reads_misses_states_but_never_the_newest_and_none_comes_twice() {
    let harness = Harness::start().await;
    let mut admin = harness.admin().await;
    let mut events = watch(&mut admin, 0).await;
    // What another node has told may be ahead of this one.
    let mut ahead = watch(&mut admin, 30).await;
    let mut last = next(&mut events).await;
    for epoch in 5..=40 {
        harness.node.reach(epoch);
    }
    while last < 40 {
        let epoch = next(&mut events).await;
        assert!(epoch > last, "{epoch} after {last}");
        last = epoch;
    }
    assert_eq!(last, 40);
    assert!(next(&mut ahead).await > 30, "what is known is not told again");
    // Late, older news change nothing.
    harness.node.reach(39);
    harness.node.reach(41);
    assert_eq!(next(&mut events).await, 41);
}

#[tokio::test]
async fn a_node_that_is_out_of_its_cluster_sends_those_who_watch_elsewhere() {
    let harness = Harness::start().await;
    let mut admin = harness.admin().await;
    let mut events = watch(&mut admin, 0).await;
    assert_eq!(next(&mut events).await, 4);
    harness.node.enter(Phase::Failed);
    harness.node.reach(5);
    let elsewhere = (Code::Unavailable, "NOT_APPLIED_STREAM_ENDED".to_owned());
    let ended = loop {
        match within("the end", events.message()).await {
            Ok(event) => assert_eq!(event.expect("an end with a reason").epoch, 5, "it had heard of it"),
            Err(status) => break told(&status),
        }
    };
    assert_eq!(ended, elsewhere);
    // It would hear of no later state.
    assert_eq!(end(&mut watch(&mut admin, 5).await).await, elsewhere);
    harness.node.enter(Phase::Running);
    assert_eq!(next(&mut watch(&mut admin, 0).await).await, 5);
}

#[tokio::test]
async fn watches_have_places_like_other_streams() {
    let harness = Harness::start().await;
    let mut admin = harness.admin().await;
    let mut held = Vec::new();
    for _ in 0..STREAMED_REPLIES_PER_CONNECTION_MAX {
        held.push(watch(&mut admin, 0).await);
    }
    let status = refused(admin.watch_cluster(WatchClusterRequest::default())).await;
    assert_eq!(told(&status), (Code::ResourceExhausted, "STREAMS".to_owned()));
    drop(held);
    until("their places", || harness.taken(Limit::Streams) == 0).await;
    assert_eq!(next(&mut watch(&mut admin, 0).await).await, 4);
}

#[tokio::test]
async fn a_watch_ends_with_its_node_and_does_not_hold_it_up() {
    let options = Options {
        stop_notice: Duration::ZERO,
        // Nobody waits for so long.
        stop_grace: Duration::from_secs(3_600),
        ..Options::default()
    };
    let mut harness = Harness::with(options).await;
    let mut admin = harness.admin().await;
    let mut events = watch(&mut admin, 0).await;
    next(&mut events).await;
    harness.stop();
    assert_eq!(end(&mut events).await, (Code::Unavailable, "NOT_APPLIED_STREAM_ENDED".to_owned()));
    harness.ended().await;
}

#[tokio::test]
async fn a_watch_ends_soon_after_its_connection_is_old_and_with_its_callers_time() {
    let batch = BatchTerms { age_notice: Duration::from_millis(50), ..BatchTerms::default() };
    let options = Options { connection_age_max: Duration::from_millis(100), batch, ..Options::default() };
    let harness = Harness::with(options).await;
    let mut admin = harness.admin().await;
    let mut events = watch(&mut admin, 0).await;
    next(&mut events).await;
    assert_eq!(end(&mut events).await, (Code::Unavailable, "NOT_APPLIED_STREAM_ENDED".to_owned()));

    let harness = Harness::start().await;
    let mut request = tonic::Request::new(WatchClusterRequest { newer_than_epoch: 4 });
    request.set_timeout(Duration::from_millis(100));
    let mut admin = harness.admin().await;
    let ended = within("an answer", admin.watch_cluster(request)).await;
    let status = match ended {
        Ok(events) => within("the end", events.into_inner().message()).await.expect_err("the deadline"),
        Err(status) => status,
    };
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
    until("its place", || harness.taken(Limit::Streams) == 0).await;
}
