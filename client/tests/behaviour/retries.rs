//! What is repeated, where, and what is not.

use std::time::{Duration, Instant};

use kv_client::{
    Address, Client, Code, Compare, Error, GetOptions, Precondition, ReadOptions, Txn, TxnOperation,
    TxnResult, Value, WriteOptions,
};

use crate::{
    builder, client, direct,
    fake::{
        FakeCluster,
        script::{Fault, bad_field, lost, no_leader, refusal},
    },
    goes_on, until,
};

#[tokio::test]
async fn a_write_is_read_back_with_its_history() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster);
    assert!(client.put("greeting", "hello").await.unwrap().applied);
    let put = client.put("greeting", "hi").await.unwrap();
    let kv = client.get("greeting").await.unwrap().kv.unwrap();
    assert_eq!((kv.value, kv.version, kv.mod_revision), (Value::Inline("hi".into()), 2, put.mod_revision));
    assert!(client.delete("greeting").await.unwrap().applied);
    assert!(!client.delete("greeting").await.unwrap().applied);
    assert_eq!(client.get("greeting").await.unwrap().kv, None);
}

#[tokio::test]
async fn a_precondition_that_does_not_hold_is_a_reply() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster);
    client.put("k", "1").await.unwrap();
    let reply = client.put_with("k", "2", Precondition::Absent.into()).await.unwrap();
    assert!(!reply.applied);
    assert_eq!(reply.previous.unwrap().value, Value::Omitted);
    let options = WriteOptions { precondition: Some(Precondition::Version(1)), return_previous: true };
    let reply = client.delete_with("k", options).await.unwrap();
    assert_eq!(reply.previous.unwrap().value, Value::Inline("1".into()));
}

#[tokio::test]
async fn a_write_without_a_session_whose_reply_is_lost_is_not_repeated() {
    let cluster = FakeCluster::start(3).await;
    for status in [lost(), tonic::Status::cancelled("x"), tonic::Status::deadline_exceeded("x")] {
        cluster.script(1, [Fault::Lose(status)]);
        let client = builder(&cluster).sessions(false).build().unwrap();
        let error = client.put("k", "v").await.unwrap_err();
        assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
        assert!(error.may_have_happened() && !error.may_retry());
    }
    assert_eq!(cluster.count("Put"), 3);
    assert_eq!(cluster.state().store.revision, 4, "each was applied once");
}

#[tokio::test]
async fn a_write_that_nobody_answers_ends_unknown_at_the_deadline() {
    let cluster = FakeCluster::start(2).await;
    cluster.script(1, [Fault::Hang]);
    let client = client(&cluster).with_timeout(Duration::from_millis(200));
    let error = client.put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
    assert_eq!(cluster.count("Put"), 1);
}

#[tokio::test]
async fn a_write_that_was_surely_not_applied_is_repeated() {
    let cluster = FakeCluster::start(1).await;
    cluster.script(1, [Fault::Refuse(no_leader()), Fault::Refuse(no_leader()), Fault::None]);
    assert!(client(&cluster).put("k", "v").await.unwrap().applied);
    assert_eq!(cluster.count("Put"), 3);
}

#[tokio::test]
async fn a_write_that_was_never_applied_ends_unavailable_and_may_be_retried() {
    let cluster = FakeCluster::start(1).await;
    cluster.script(1, std::iter::repeat_n(Fault::Refuse(no_leader()), 1000));
    let error = client(&cluster).with_timeout(Duration::from_millis(300)).put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    assert!(error.may_retry() && !error.may_have_happened());
    assert_eq!(error.reason(), Some("NOT_APPLIED_NO_LEADER"));
    assert!(cluster.count("Put") < 50, "with pauses");
}

#[tokio::test]
async fn the_hinted_leader_is_asked_next() {
    let cluster = FakeCluster::start(3).await;
    {
        let mut state = cluster.state();
        state.strict = true;
        state.leaders = [3, 3];
    }
    // Calls of their own carry the leader's address.
    let client = builder(&cluster).streams(false).build().unwrap();
    assert!(client.put("k", "v").await.unwrap().applied);
    assert_eq!(cluster.asked("Put"), [1, 3]);
}

#[tokio::test]
async fn direct_asks_the_leader_of_the_shard_at_once() {
    let cluster = FakeCluster::start(3).await;
    {
        let mut state = cluster.state();
        state.strict = true;
        state.leaders = [2, 3];
    }
    let client = direct(&cluster);
    client.put(FakeCluster::key_of_shard(1), "v").await.unwrap();
    client.put(FakeCluster::key_of_shard(2), "v").await.unwrap();
    assert_eq!(cluster.asked("Put"), [2, 3]);
    // The leader moves without a new epoch: one hint, and it is remembered from then on.
    cluster.state().leaders = [1, 3];
    client.put(FakeCluster::key_of_shard(1), "v").await.unwrap();
    client.put(FakeCluster::key_of_shard(1), "v").await.unwrap();
    assert_eq!(cluster.asked("Put")[2..], [2, 1, 1]);
    assert_eq!(cluster.count("GetShardMap"), 1);
}

#[tokio::test]
async fn a_wrong_shard_refreshes_the_map() {
    let cluster = FakeCluster::start(3).await;
    let client = direct(&cluster);
    client.put(FakeCluster::key_of_shard(1), "v").await.unwrap();
    {
        let mut state = cluster.state();
        state.epoch = 2;
        state.leaders = [3, 3];
    }
    let wrong = refusal(Code::Unavailable, "WRONG_SHARD", &[("map_epoch", "2")], None);
    // The first answer's epoch is the map's, so only the refusal can cause the refresh.
    cluster.script(1, std::iter::repeat_n(Fault::Refuse(wrong), 20));
    assert!(client.put(FakeCluster::key_of_shard(1), "v").await.unwrap().applied);
    assert_eq!(cluster.asked("Put").last(), Some(&3));
    assert_eq!(cluster.count("GetShardMap"), 2);
}

#[tokio::test]
async fn a_newer_epoch_in_a_header_refreshes_the_map() {
    let cluster = FakeCluster::start(2).await;
    let client = direct(&cluster);
    let key = FakeCluster::key_of_shard(2);
    client.put(&key, "v").await.unwrap();
    {
        let mut state = cluster.state();
        state.epoch = 2;
        state.leaders = [2, 2];
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while cluster.asked("Put").last() != Some(&2) {
        assert!(Instant::now() < deadline, "waited for the new map to be used");
        client.put(&key, "v").await.unwrap();
    }
    assert_eq!(cluster.count("GetShardMap"), 2);
}

#[tokio::test]
async fn reads_are_repeated_elsewhere() {
    let cluster = FakeCluster::start(3).await;
    let client = client(&cluster);
    client.put("k", "v").await.unwrap();
    let damaged = refusal(Code::DataLoss, "DATA_LOSS", &[], None);
    for fault in [Fault::Lose(lost()), Fault::Refuse(damaged), Fault::Hang] {
        cluster.script(1, [fault]);
        let client = client.with_timeout(Duration::from_secs(2));
        assert!(client.get("k").await.unwrap().kv.is_some());
    }
    assert_eq!(cluster.asked("Get"), [1, 2, 1, 2, 1, 2]);
}

#[tokio::test]
async fn damaged_bytes_are_asked_for_once_of_each_node() {
    let cluster = FakeCluster::start(3).await;
    let quarantined = || Fault::Refuse(refusal(Code::DataLoss, "REPLICA_QUARANTINED", &[], None));
    for node in 1..=3 {
        cluster.script(node, [quarantined(), quarantined()]);
    }
    let error = client(&cluster).get("k").await.unwrap_err();
    assert!(matches!(error, Error::DataLoss(_)), "{error}");
    assert_eq!(cluster.asked("Get"), [1, 2, 3]);

    let read = ReadOptions { serve_at_node: true, ..ReadOptions::default() };
    let at_node = client(&cluster).at(cluster.address(3).parse().unwrap());
    let error = at_node.get_with("k", GetOptions { read, metadata_only: false }).await.unwrap_err();
    assert!(matches!(error, Error::DataLoss(_)), "{error}");
    assert_eq!(error.reason(), Some("REPLICA_QUARANTINED"));
    assert_eq!(cluster.asked("Get"), [1, 2, 3, 3], "nobody else may answer");
}

#[tokio::test]
async fn a_read_at_a_node_without_a_replica_fails_after_one_more_attempt() {
    let cluster = FakeCluster::start(2).await;
    let absent = Fault::Refuse(refusal(Code::Unavailable, "NOT_APPLIED_NO_REPLICA", &[], None));
    cluster.script(2, std::iter::repeat_n(absent, 100));
    let read = ReadOptions { serve_at_node: true, ..ReadOptions::default() };
    let at_node = client(&cluster).at(cluster.address(2).parse().unwrap());
    let error = at_node.get_with("k", GetOptions { read, metadata_only: false }).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    assert_eq!(cluster.asked("Get"), [2, 2]);
}

#[tokio::test]
async fn a_dead_node_gives_way_to_the_next() {
    let mut cluster = FakeCluster::start(2).await;
    let client = client(&cluster);
    client.put("k", "v").await.unwrap();
    cluster.kill(1).await;
    assert!(client.get("k").await.unwrap().kv.is_some());
    assert!(client.put("k", "w").await.unwrap().applied);
    assert_eq!(cluster.asked("Put"), [1, 2]);
}

#[tokio::test]
async fn nobody_there_is_told_at_once_when_asked_to_fail_fast() {
    let mut cluster = FakeCluster::start(2).await;
    cluster.kill(1).await;
    cluster.kill(2).await;
    let client = builder(&cluster).fail_fast(true).timeout(Duration::from_secs(60)).build().unwrap();
    let begun = Instant::now();
    let error = client.put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)), "{error}");
    assert!(!error.may_have_happened() && error.may_retry());
    assert!(begun.elapsed() < Duration::from_secs(10));
    // Without that wish, until the deadline.
    let client = self::client(&cluster).with_timeout(Duration::from_millis(300));
    assert!(matches!(client.get("k").await.unwrap_err(), Error::Unreachable(_)));
}

#[tokio::test]
async fn a_write_whose_reply_is_lost_outlives_the_restart_of_the_only_node() {
    for (streams, pinned) in [(true, false), (false, false), (true, true)] {
        let mut cluster = FakeCluster::start(1).await;
        let client = builder(&cluster).fail_fast(true).streams(streams).build().unwrap();
        let client = if pinned { client.at(cluster.address(1).parse().unwrap()) } else { client };
        // The reply is lost, and the node goes away while it is asked again.
        cluster.script(1, [Fault::Lose(lost()), Fault::Hang]);
        let put =
            tokio::spawn(async move { client.put_with("counter", "1", Precondition::Absent.into()).await });
        until("it was sent twice", || cluster.count("Put") == 2).await;
        cluster.kill(1).await;
        goes_on(&put).await;
        cluster.revive(1);
        let reply = put.await.unwrap().unwrap();
        assert!(reply.applied && reply.mod_revision == 2, "{reply:?}");
        assert_eq!(cluster.state().store.revision, 2, "it was applied once");
        assert_eq!(cluster.count("OpenSession"), 1);
    }
}

#[tokio::test]
async fn a_node_that_has_answered_is_waited_for_in_haste_too() {
    let mut cluster = FakeCluster::start(1).await;
    let client = builder(&cluster).fail_fast(true).build().unwrap();
    client.nodes().await.unwrap();
    cluster.kill(1).await;
    let put = tokio::spawn(async move { client.put("k", "v").await });
    goes_on(&put).await;
    cluster.revive(1);
    assert!(put.await.unwrap().unwrap().applied);
}

#[tokio::test]
async fn a_pinned_client_in_haste_waits_for_nobody() {
    let mut cluster = FakeCluster::start(2).await;
    let client = builder(&cluster).fail_fast(true).timeout(Duration::from_secs(60)).build().unwrap();
    client.put("k", "v").await.unwrap();
    cluster.kill(2).await;
    let begun = Instant::now();
    let error = client.at(cluster.address(2).parse().unwrap()).get("k").await.unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_refused_field_is_named() {
    let cluster = FakeCluster::start(1).await;
    cluster.script(1, [Fault::Refuse(bad_field("key", "is empty"))]);
    let error = client(&cluster).put("", "v").await.unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    let violation = &error.failure().unwrap().violations[0];
    assert_eq!((violation.field.as_str(), violation.description.as_str()), ("key", "is empty"));
    assert!(error.to_string().contains("key: is empty"), "{error}");
    assert!(error.to_string().contains(&cluster.address(1)), "{error}");
}

#[tokio::test]
async fn advice_to_come_later_is_followed() {
    let cluster = FakeCluster::start(1).await;
    let full = |advice| refusal(Code::ResourceExhausted, "PROPOSAL_QUEUE", &[], advice);
    cluster.script(1, [Fault::Refuse(full(Some(Duration::from_millis(300))))]);
    let begun = Instant::now();
    client(&cluster).put("k", "v").await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(300));
    cluster.script(1, [Fault::Refuse(full(None))]);
    let error = client(&cluster).put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Overloaded(_)), "{error}");
    assert_eq!(error.reason(), Some("PROPOSAL_QUEUE"));
}

#[tokio::test]
async fn a_request_over_the_message_limit_is_not_sent() {
    let cluster = FakeCluster::start(1).await;
    let error = client(&cluster).put("k", vec![0; 5 << 20]).await.unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    assert_eq!(cluster.count("Put"), 0);
}

#[tokio::test]
async fn a_pinned_client_asks_one_node_only() {
    let cluster = FakeCluster::start(3).await;
    let node: Address = cluster.address(3).parse().unwrap();
    let client = direct(&cluster).at(node);
    cluster.script(3, [Fault::Refuse(no_leader())]);
    client.put("k", "v").await.unwrap();
    let read = ReadOptions { serve_at_node: true, ..ReadOptions::default() };
    let reply = client.get_with("k", GetOptions { read, metadata_only: true }).await.unwrap();
    assert_eq!(reply.kv.unwrap().value, Value::Omitted);
    assert_eq!((cluster.asked("Put"), cluster.asked("Get")), (vec![3, 3], vec![3]));
}

#[tokio::test]
async fn stale_reads_are_spread_over_the_replicas() {
    let cluster = FakeCluster::start(3).await;
    let client = direct(&cluster);
    for _ in 0..3 {
        client.get_with("k", GetOptions { read: ReadOptions::STALE, ..Default::default() }).await.unwrap();
    }
    let mut asked = cluster.asked("Get");
    asked.sort_unstable();
    assert_eq!(asked, [1, 2, 3]);
}

#[tokio::test]
async fn a_transaction_takes_one_branch() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster);
    let create = Txn::new().when(Compare::absent("{o}/s")).then_put("{o}/s", "new").otherwise_get("{o}/s");
    let reply = client.txn(create.clone()).await.unwrap();
    assert!(reply.succeeded);
    let reply = client.txn(create).await.unwrap();
    assert!(!reply.succeeded);
    let [TxnResult::Get(get)] = &reply.results[..] else { panic!("{reply:?}") };
    assert_eq!(get.kv.as_ref().unwrap().inline().unwrap(), "new");
}

#[tokio::test]
async fn a_transaction_that_only_reads_is_repeated_like_a_read() {
    let cluster = FakeCluster::start(2).await;
    let client = builder(&cluster).sessions(false).build().unwrap();
    cluster.script(1, [Fault::Lose(lost())]);
    client.txn(Txn::new().then(TxnOperation::get("k"))).await.unwrap();
    cluster.script(1, [Fault::Lose(lost())]);
    let error = client.txn(Txn::new().then_put("k", "v")).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
    assert_eq!(cluster.asked("Txn"), [1, 2, 1]);
}

#[tokio::test]
async fn malformed_addresses_are_refused_before_anything_is_sent() {
    assert!(matches!(Client::connect("ftp://x"), Err(Error::Address(_))));
    assert!(Client::connect("").is_err());
}
