//! What administrators ask for: what is repeated, what is not, and the watch that goes on.

use std::time::Duration;

use futures::StreamExt as _;
use kv_client::{Error, admin};

use crate::{
    builder, client,
    fake::{
        FakeCluster,
        script::{Fault, lost, no_leader, refusal},
    },
    goes_on,
};

fn drain(node: &str) -> admin::DrainNodeRequest {
    admin::DrainNodeRequest { node: node.to_owned(), ..Default::default() }
}

fn permit(dry_run: bool) -> admin::RequestPermitRequest {
    admin::RequestPermitRequest { node: "n1".to_owned(), dry_run, ..Default::default() }
}

#[tokio::test]
async fn what_is_done_already_when_it_is_done_is_asked_of_another_node() {
    let cluster = FakeCluster::start(4).await;
    cluster.script(1, [Fault::Lose(lost())]);
    cluster.script(2, [Fault::Refuse(no_leader())]);
    let reply = client(&cluster).drain_node(drain("n3")).await.unwrap();
    assert_eq!((reply.node_id, reply.state()), (3, admin::NodeState::Draining));
    assert_eq!(cluster.asked("DrainNode")[..2], [1, 2]);
    assert_eq!(cluster.state().membership.state(3), admin::NodeState::Draining);
}

#[tokio::test]
async fn a_node_that_hangs_is_passed_over_by_what_may_be_repeated() {
    let cluster = FakeCluster::start(2).await;
    cluster.script(1, [Fault::Hang]);
    let client = client(&cluster).with_timeout(Duration::from_secs(2));
    let request = admin::SetPolicyRequest { moves_at_once: Some(2), ..Default::default() };
    assert_eq!(client.set_policy(request).await.unwrap().policy.unwrap().moves_at_once, 2);
    assert_eq!(cluster.asked("SetPolicy"), [1, 2]);
}

#[tokio::test]
async fn a_refusal_is_told_with_its_reason_at_once() {
    let cluster = FakeCluster::start(3).await;
    let error = client(&cluster).drain_node(drain("3")).await.unwrap_err();
    assert!(matches!(&error, Error::Refused(_)) && error.reason() == Some("TOO_FEW_NODES"), "{error}");
    let request =
        admin::TransferLeaderRequest { shard_id: 1, to_node: "n2".to_owned(), ..Default::default() };
    cluster.change(|membership| {
        membership.gone.insert((1, 2));
    });
    let error = client(&cluster).transfer_leader(request).await.unwrap_err();
    assert!(matches!(&error, Error::Refused(_)), "{error}");
    assert_eq!((cluster.count("DrainNode"), cluster.count("TransferLeader")), (1, 1));
}

#[tokio::test]
async fn a_change_that_nobody_answers_ends_unknown_at_the_deadline() {
    let cluster = FakeCluster::start(1).await;
    cluster.script(1, std::iter::repeat_n(Fault::Hang, 100));
    let client = client(&cluster).with_timeout(Duration::from_millis(100));
    let request = admin::UndrainNodeRequest { node: "1".to_owned(), ..Default::default() };
    let error = client.undrain_node(request).await.unwrap_err();
    assert!(matches!(&error, Error::OutcomeUnknown(_)) && error.may_have_happened(), "{error}");
}

#[tokio::test]
async fn a_permit_whose_answer_is_lost_is_not_asked_for_again() {
    let cluster = FakeCluster::start(3).await;
    cluster.script(1, [Fault::Lose(lost())]);
    let client = client(&cluster);
    let error = client.request_permit(permit(false)).await.unwrap_err();
    assert!(matches!(&error, Error::OutcomeUnknown(_)) && error.may_have_happened(), "{error}");
    assert_eq!(cluster.count("RequestPermit"), 1);
    assert_eq!(cluster.state().membership.permits.len(), 1, "it is open, and nobody knows its token");
}

#[tokio::test]
async fn a_permit_that_was_surely_not_granted_is_asked_for_again() {
    let cluster = FakeCluster::start(2).await;
    cluster.script(1, [Fault::Refuse(no_leader())]);
    let client = client(&cluster);
    let answer = client.request_permit(permit(false)).await.unwrap();
    assert!(answer.granted && !answer.token.is_empty(), "{answer:?}");
    assert_eq!(cluster.count("RequestPermit"), 2);
    let refused = client.request_permit(permit(false)).await.unwrap();
    assert_eq!(refused.objections[0].reason, "PERMIT_OPEN");
    for _ in 0..2 {
        let request = admin::ReleasePermitRequest { token: answer.token.clone(), ..Default::default() };
        client.release_permit(request).await.unwrap();
    }
    assert!(cluster.state().membership.permits.is_empty());
}

#[tokio::test]
async fn whether_a_permit_would_be_granted_is_a_question_like_others() {
    let cluster = FakeCluster::start(2).await;
    cluster.script(1, [Fault::Lose(lost())]);
    assert!(client(&cluster).request_permit(permit(true)).await.unwrap().granted);
    assert_eq!(cluster.asked("RequestPermit"), [1, 2]);
    assert!(cluster.state().membership.permits.is_empty());
}

#[tokio::test]
async fn a_watch_tells_the_state_at_once_and_after_each_change() {
    let cluster = FakeCluster::start(1).await;
    let mut watch = client(&cluster).watch_cluster(0);
    let first = watch.next().await.unwrap();
    assert_eq!((first.epoch, watch.epoch()), (1, 1));
    cluster.change(|membership| membership.policy.moves_at_once = 9);
    assert_eq!(watch.next().await.unwrap().policy.unwrap().moves_at_once, 9);
    assert_eq!(cluster.count("WatchCluster"), 1);
}

#[tokio::test]
async fn a_watch_outlives_its_time_limit_while_nothing_changes() {
    let cluster = FakeCluster::start(1).await;
    let mut watch = client(&cluster).with_timeout(Duration::from_millis(50)).watch_cluster(1);
    let pending = tokio::spawn(async move { watch.next().await });
    goes_on(&pending).await;
    cluster.change(|_| {});
    assert_eq!(pending.await.unwrap().unwrap().epoch, 2);
    assert_eq!(cluster.count("WatchCluster"), 1);
}

#[tokio::test]
async fn a_broken_watch_goes_on_elsewhere_without_gaps_or_repeats() {
    let mut cluster = FakeCluster::start(3).await;
    let ended = refusal(tonic::Code::Unavailable, "NOT_APPLIED_STREAM_ENDED", &[], None);
    cluster.script(1, [Fault::BreakAfter(1, lost()), Fault::EndAfter(0)]);
    cluster.script(2, [Fault::BreakAfter(1, ended)]);
    let mut events = Box::pin(client(&cluster).watch_cluster(0).into_stream());
    for epoch in 1..=4 {
        assert_eq!(events.next().await.unwrap().unwrap().epoch, epoch);
        if epoch == 3 {
            let of_watch = *cluster.asked("WatchCluster").last().unwrap();
            cluster.kill(of_watch).await;
        }
        cluster.change(|_| {});
    }
}

#[tokio::test]
async fn a_watch_that_nobody_takes_fails_and_can_go_on() {
    let mut cluster = FakeCluster::start(1).await;
    let client = builder(&cluster).timeout(Duration::from_millis(200)).build().unwrap();
    let mut watch = client.watch_cluster(0);
    watch.next().await.unwrap();
    cluster.kill(1).await;
    let error = watch.next().await.unwrap_err();
    assert!(matches!(&error, Error::Unreachable(_)) && error.may_retry(), "{error}");
    cluster.revive(1);
    cluster.change(|_| {});
    assert_eq!(watch.next().await.unwrap().epoch, 2);
}

#[tokio::test]
async fn a_watch_whose_streams_all_break_at_once_fails_at_the_deadline() {
    let cluster = FakeCluster::start(1).await;
    cluster.script(1, std::iter::repeat_n(Fault::EndAfter(0), 1000));
    let error =
        client(&cluster).with_timeout(Duration::from_millis(200)).watch_cluster(0).next().await.unwrap_err();
    assert!(matches!(&error, Error::TimedOut(_)), "{error}");
    assert!(cluster.count("WatchCluster") < 20, "it pauses between attempts");
}
