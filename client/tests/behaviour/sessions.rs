//! Writes in sessions: once, however often they must be sent.

use std::time::Duration;

use futures::future::join_all;
use kv_client::{BulkOperation, BulkOutcome, Client, Code, Compare, Error, Precondition, Txn, WriteOptions};

use crate::{
    builder, client, direct,
    fake::{
        FakeCluster,
        script::{Fault, bad_field, lost, no_leader, refusal, unknown},
    },
    until,
};

#[tokio::test]
async fn a_write_whose_reply_is_lost_is_sent_again_and_applied_once() {
    for streams in [true, false] {
        let cluster = FakeCluster::start(3).await;
        let client = builder(&cluster).streams(streams).build().unwrap();
        for status in [lost(), tonic::Status::cancelled("x"), unknown()] {
            let before = cluster.state().store.revision;
            cluster.script(1, [Fault::Lose(status)]);
            let reply = client.put_with("k", "v", WriteOptions::default()).await.unwrap();
            assert!(reply.applied && reply.replayed);
            assert_eq!(cluster.state().store.revision, before + 1, "streams: {streams}");
        }
        let reply = client.put("k", "v").await.unwrap();
        assert_eq!((reply.version, reply.replayed), (4, false));
        assert_eq!(cluster.state().sessions.replays, 3);
        assert_eq!(cluster.count("OpenSession"), 1);
    }
}

#[tokio::test]
async fn a_condition_that_held_is_not_tested_again_by_a_retry() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster);
    cluster.script(1, [Fault::Lose(lost())]);
    let reply = client.put_with("counter", "1", Precondition::Absent.into()).await.unwrap();
    assert!(reply.applied, "the key was absent when the first attempt came");

    cluster.script(1, [Fault::Lose(lost())]);
    let txn = Txn::new().when(Compare::value("counter", "1")).then_put("counter", "2");
    let reply = client.txn(txn).await.unwrap();
    assert!(reply.succeeded && reply.replayed && reply.results.is_empty());

    cluster.script(1, [Fault::Lose(lost())]);
    let reply = client.delete("counter").await.unwrap();
    assert!(reply.applied && reply.replayed, "it was there");
}

#[tokio::test]
async fn a_write_that_nobody_answers_is_sent_again_within_its_deadline() {
    let cluster = FakeCluster::start(2).await;
    cluster.script(1, [Fault::Hang]);
    let client = client(&cluster).with_timeout(Duration::from_secs(2));
    assert!(client.put("k", "v").await.unwrap().applied);
    assert_eq!(cluster.asked("Put"), [1, 2]);
}

#[tokio::test]
async fn concurrent_first_writes_open_one_session_for_each_shard() {
    for client in [client, direct] {
        let cluster = FakeCluster::start(1).await;
        let client = client(&cluster);
        let puts = (0..200).map(|number| client.put(format!("key-{number}"), "v"));
        for reply in join_all(puts).await {
            assert!(reply.unwrap().applied);
        }
        assert_eq!(cluster.count("OpenSession"), 2);
        assert_eq!(cluster.state().sessions.count(), 2);
        client.close().await;
        assert_eq!(cluster.state().sessions.count(), 0);
        assert!(client.put("later", "v").await.unwrap().applied, "another session is opened");
    }
}

#[tokio::test]
async fn outcomes_are_acknowledged_with_later_writes() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster);
    for _ in 0..3 {
        client.put("k", "v").await.unwrap();
    }
    let stamps: Vec<(u64, u64)> =
        cluster.state().sessions.stamps.iter().map(|(_, sequence, lowest)| (*sequence, *lowest)).collect();
    assert_eq!(stamps, [(1, 1), (2, 2), (3, 3)]);
}

#[tokio::test]
async fn a_write_that_its_caller_gave_up_is_acknowledged_and_its_late_copy_refused() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster);
    client.put("k", "v").await.unwrap();
    let shard = cluster.shard_of("k");
    cluster.state().streams.slow_shard = Some(shard);
    {
        let given_up = client.put("k", "late");
        let given_up = tokio::time::timeout(Duration::from_millis(100), given_up).await;
        assert!(given_up.is_err());
    }
    assert_eq!(cluster.held(), 1);
    cluster.state().streams.slow_shard = None;
    assert!(client.put("k", "new").await.unwrap().applied);
    let before = cluster.state().store.revision;
    cluster.release();
    assert_eq!(
        cluster.state().store.revision,
        before,
        "the late one is below the lowest outstanding sequence"
    );
    let stamps = cluster.state().sessions.stamps.clone();
    assert_eq!(stamps.last().map(|(_, sequence, _)| *sequence), Some(2), "it did come: {stamps:?}");
}

#[tokio::test]
async fn an_expired_session_gives_way_to_a_new_one_silently() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster);
    client.put("k", "v").await.unwrap();
    cluster.state().sessions.expire_all();
    let replies = join_all((0..20).map(|_| client.put("k", "w"))).await;
    assert!(replies.into_iter().all(|reply| reply.unwrap().applied));
    assert_eq!(cluster.count("OpenSession"), 2);
    assert_eq!(cluster.state().store.revision, 22);
}

#[tokio::test]
async fn a_session_that_expired_between_attempts_leaves_the_outcome_unknown() {
    for streams in [true, false] {
        let cluster = FakeCluster::start(1).await;
        let client = builder(&cluster).streams(streams).build().unwrap();
        client.put("k", "v").await.unwrap();
        let expired = refusal(Code::FailedPrecondition, "SESSION_EXPIRED", &[], None);
        cluster.script(1, [Fault::Lose(unknown()), Fault::Refuse(expired)]);
        let error = client.put("k", "w").await.unwrap_err();
        assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
        assert_eq!(error.reason(), Some("SESSION_EXPIRED"));
        assert!(error.to_string().contains("the session is gone"), "{error}");
        assert_eq!(cluster.count("Put"), 3, "not in another session");
        assert!(client.put("k", "x").await.unwrap().applied);
    }
}

#[tokio::test]
async fn a_session_of_another_shard_is_left_when_nothing_happened_yet() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster);
    client.put("k", "v").await.unwrap();
    cluster.script(1, [Fault::Refuse(bad_field("session_id", "is one of another shard"))]);
    assert!(client.put("k", "w").await.unwrap().applied);
    cluster.script(
        1,
        [Fault::Lose(unknown()), Fault::Refuse(bad_field("put.session_id", "is one of another shard"))],
    );
    let error = client.put("k", "x").await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
}

#[tokio::test]
async fn doubt_about_an_earlier_attempt_is_never_forgotten() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster).with_timeout(Duration::from_millis(500));
    client.put("k", "v").await.unwrap();
    // The last failure says that it surely did not happen, which is true of that attempt only.
    cluster.script(1, [Fault::Lose(unknown())]);
    cluster.script(1, std::iter::repeat_n(Fault::Refuse(no_leader()), 1000));
    let error = client.put("k", "w").await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
    assert!(error.may_have_happened());
}

#[tokio::test]
async fn a_write_waits_for_the_window_of_its_session() {
    let cluster = FakeCluster::start(1).await;
    cluster.state().sessions.window = 4;
    let client = client(&cluster);
    client.put("k", "v").await.unwrap();
    let shard = cluster.shard_of("k");
    cluster.state().streams.slow_shard = Some(shard);
    let puts: Vec<_> = (0..20)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.put("k", "v").await })
        })
        .collect();
    until("the window is full", || cluster.held() == 4).await;
    let late = client.with_timeout(Duration::from_millis(100)).put("k", "v").await.unwrap_err();
    assert!(matches!(late, Error::Overloaded(_)), "{late}");
    assert_eq!(cluster.held(), 4);
    cluster.release();
    for put in puts {
        assert!(put.await.unwrap().unwrap().applied);
    }
    assert_eq!(cluster.state().store.revision, 22);
}

#[tokio::test]
async fn no_session_can_be_had() {
    let cluster = FakeCluster::start(1).await;
    let full = || refusal(Code::ResourceExhausted, "SESSIONS_FULL", &[], None);
    cluster.state().sessions.refuse_openings = vec![full()];
    let error = client(&cluster).put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Overloaded(_)), "{error}");
    assert_eq!(error.reason(), Some("SESSIONS_FULL"));
    assert_eq!(cluster.count("Put"), 0);
    // Without a leader it is tried again.
    cluster.state().sessions.refuse_openings = vec![no_leader(), no_leader()];
    assert!(client(&cluster).put("k", "v").await.unwrap().applied);
}

#[tokio::test]
async fn a_bulk_whose_reply_is_lost_is_applied_once() {
    let cluster = FakeCluster::start(2).await;
    let client = client(&cluster);
    cluster.script(1, [Fault::Lose(lost())]);
    let puts =
        (0..50).map(|number| BulkOperation::put(format!("key-{number}"), "v", Precondition::Absent.into()));
    for outcome in client.bulk_write(puts).await {
        let BulkOutcome::Put(reply) = outcome else { panic!("{outcome:?}") };
        assert!(reply.applied && reply.replayed);
    }
    assert_eq!(cluster.state().store.revision, 51);
    assert_eq!((cluster.count("BulkWrite"), cluster.count("OpenSession")), (2, 2));
}

#[tokio::test]
async fn bulks_larger_than_the_window_go_in_pieces_and_survive_expiry() {
    let cluster = FakeCluster::start(1).await;
    cluster.state().sessions.window = 10;
    let client = client(&cluster);
    let bulk = |number| {
        let client = client.clone();
        async move {
            let puts =
                (0..40).map(|key| BulkOperation::put(format!("{number}-{key}"), "v", Default::default()));
            client.bulk_write(puts).await
        }
    };
    let written = join_all((0..5).map(bulk)).await;
    assert!(written.iter().flatten().all(|outcome| matches!(outcome, BulkOutcome::Put(_))));
    cluster.state().sessions.expire_all();
    assert!(bulk(9).await.iter().all(|outcome| matches!(outcome, BulkOutcome::Put(_))));
    assert_eq!(cluster.state().store.revision, 241);
}

#[tokio::test]
async fn a_bulk_goes_in_pieces_when_its_next_session_has_a_smaller_window() {
    let cluster = FakeCluster::start(1).await;
    cluster.state().sessions.window = 20;
    let client = client(&cluster);
    let bulk = || {
        let puts = (0..40).map(|key| BulkOperation::put(format!("key-{key}"), "v", Default::default()));
        client.bulk_write(puts)
    };
    assert!(bulk().await.iter().all(|outcome| matches!(outcome, BulkOutcome::Put(_))));
    {
        let sessions = &mut cluster.state().sessions;
        sessions.window = 3;
        sessions.expire_all();
    }
    let written = bulk().await;
    assert!(written.iter().all(|outcome| matches!(outcome, BulkOutcome::Put(_))), "{written:?}");
    assert_eq!(cluster.state().store.revision, 81);
}

#[tokio::test]
async fn what_was_never_sent_did_not_happen_when_no_session_is_opened() {
    let cluster = FakeCluster::start(1).await;
    cluster.state().sessions.silent = true;
    let client = client(&cluster).with_timeout(Duration::from_secs(1));
    let puts = ["a", "b", "c"].map(|key| BulkOperation::put(key, "v", WriteOptions::default()));
    for outcome in client.bulk_write(puts).await {
        let BulkOutcome::Failed(error) = outcome else { panic!("{outcome:?}") };
        assert!(matches!(error, Error::TimedOut(_)) && !error.may_have_happened(), "{error}");
    }
    assert_eq!(cluster.count("BulkWrite"), 0);
}

/// A bulk of 20 writes in one session, of which the next session takes three at a time. The first attempt is refused, since
/// the session has expired.
async fn bulk_in_pieces(cluster: &FakeCluster, client: &Client) -> Vec<BulkOutcome> {
    client.put("{a}", "v").await.unwrap();
    {
        let sessions = &mut cluster.state().sessions;
        sessions.window = 3;
        sessions.expire_all();
    }
    let puts = (0..20).map(|key| BulkOperation::put(format!("{{a}}{key}"), "v", WriteOptions::default()));
    client.bulk_write(puts).await
}

#[tokio::test]
async fn only_what_was_sent_is_in_doubt_when_a_bulk_fails() {
    let cluster = FakeCluster::start(1).await;
    cluster.state().sessions.window = 100;
    let client = client(&cluster).with_timeout(Duration::from_millis(500));
    // Of the put, the refused attempt, and those after it.
    cluster.script(1, [Fault::None, Fault::None]);
    cluster.script(1, std::iter::repeat_n(Fault::Lose(unknown()), 1000));
    let outcomes = bulk_in_pieces(&cluster, &client).await;
    let in_doubt: Vec<bool> = outcomes
        .iter()
        .map(|outcome| match outcome {
            BulkOutcome::Failed(error) => error.may_have_happened(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(in_doubt[..3].iter().all(|in_doubt| *in_doubt), "{outcomes:?}");
    assert!(!in_doubt[3..].iter().any(|in_doubt| *in_doubt), "{outcomes:?}");
    assert_eq!(cluster.state().store.records.len(), 4, "the three were applied");
}

#[tokio::test]
async fn doubt_about_one_piece_of_a_bulk_is_none_about_the_next() {
    let cluster = FakeCluster::start(1).await;
    cluster.state().sessions.window = 100;
    let client = client(&cluster);
    // The put, 20 that are refused, three whose answer is lost, the same again. Then the session is gone once more.
    cluster.state().sessions.expire_after = Some(1 + 20 + 3 + 3);
    cluster.script(1, [Fault::None, Fault::None, Fault::Lose(unknown())]);
    let outcomes = bulk_in_pieces(&cluster, &client).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, BulkOutcome::Put(_))), "{outcomes:?}");
    assert_eq!((cluster.count("OpenSession"), cluster.state().store.revision), (3, 22));
}

#[tokio::test]
async fn a_bulk_whose_session_expired_between_attempts_is_unknown() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster);
    client.put("{a}", "v").await.unwrap();
    cluster.state().sessions.expire_after = Some(1 + 2);
    cluster.script(1, [Fault::Lose(unknown())]);
    let puts = ["{a}1", "{a}2"].map(|key| BulkOperation::put(key, "v", WriteOptions::default()));
    for outcome in client.bulk_write(puts).await {
        let BulkOutcome::Failed(error) = outcome else { panic!("{outcome:?}") };
        assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
        assert_eq!(error.reason(), Some("SESSION_EXPIRED"));
    }
    assert_eq!(cluster.count("BulkWrite"), 2, "not in another session");
}
