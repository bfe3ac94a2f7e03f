//! Operations on streams.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::join_all;
use kv_client::{Client, Error, GetOptions, Precondition, PutReply};
use tokio::task::JoinHandle;

use crate::{
    builder, client, direct,
    fake::{
        FakeCluster,
        script::{Fault, lost},
    },
    until,
};

#[tokio::test]
async fn what_queues_up_travels_together() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster);
    client.put("k", "v").await.unwrap();
    let before = cluster.state().streams.messages;
    let tasks: Vec<_> = (0..1000)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move { client.put(format!("key-{number}"), "v").await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let messages = cluster.state().streams.messages - before;
    assert!(messages < 50, "{messages} messages for 1000 puts");
    assert!(cluster.state().streams.largest_message <= 512);
    assert_eq!(cluster.state().streams.opened, 1);
}

#[tokio::test]
async fn a_reply_on_a_stream_is_as_complete_as_any() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster);
    client.put("k", "v").await.unwrap();
    let reply = client.get("k").await.unwrap();
    assert_eq!(reply.header.cluster_id, "fake");
    assert_eq!(reply.header.revision, 2);
    assert_eq!(reply.kv.unwrap().inline().unwrap(), "v");
}

#[tokio::test]
async fn the_window_of_the_node_is_kept() {
    let cluster = FakeCluster::start(1).await;
    cluster.state().streams.window = (10, 4000);
    let client = client(&cluster);
    client.put("k", "v").await.unwrap();
    let puts = (0..500).map(|number| client.put(format!("key-{number}"), vec![0; 300]));
    for reply in join_all(puts).await {
        reply.unwrap();
    }
    assert_eq!(cluster.state().streams.exceeded, 0);
}

#[tokio::test]
async fn a_slow_shard_does_not_hold_back_the_others() {
    let cluster = FakeCluster::start(1).await;
    cluster.state().streams.window = (20, 1 << 20);
    let client = client(&cluster);
    let (slow, fast) = (FakeCluster::key_of_shard(1), FakeCluster::key_of_shard(2));
    client.put(&slow, "v").await.unwrap();
    client.put(&fast, "v").await.unwrap();
    cluster.state().streams.slow_shard = Some(1);
    let held: Vec<_> = (0..100)
        .map(|_| {
            let (client, key) = (client.clone(), slow.clone());
            tokio::spawn(async move { client.put(key, "v").await })
        })
        .collect();
    until("the slow shard has its share", || cluster.held() == 10).await;
    for _ in 0..200 {
        client.put(&fast, "v").await.unwrap();
    }
    assert_eq!((cluster.held(), cluster.state().streams.exceeded), (10, 0));
    cluster.release();
    for put in held {
        put.await.unwrap().unwrap();
    }
    assert_eq!(cluster.state().streams.exceeded, 0);
}

/// Puts a MiB each, of which more than 64 may not wait.
fn large_puts(client: &Client, key: &str, count: usize) -> Vec<JoinHandle<Result<PutReply, Error>>> {
    let value = Bytes::from(vec![7; 1_000_000]);
    let put = |_| {
        let (client, key, value) = (client.clone(), key.to_owned(), value.clone());
        tokio::spawn(async move { client.put(key, value).await })
    };
    (0..count).map(put).collect()
}

#[tokio::test]
async fn more_than_may_wait_stands_in_line_and_is_all_written() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster).with_timeout(Duration::from_secs(60));
    client.put("k", "v").await.unwrap();
    for put in large_puts(&client, "k", 300) {
        assert!(put.await.unwrap().unwrap().applied);
    }
    assert_eq!((cluster.count("Put"), cluster.state().streams.exceeded), (301, 0));
}

#[tokio::test]
async fn who_stands_in_line_ends_at_its_deadline_unsent_and_holds_back_no_other_shard() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster).with_timeout(Duration::from_secs(60));
    let (slow, fast) = (FakeCluster::key_of_shard(1), FakeCluster::key_of_shard(2));
    client.put(&slow, "v").await.unwrap();
    client.put(&fast, "v").await.unwrap();
    cluster.state().streams.slow_shard = Some(1);
    let mut puts = large_puts(&client, &slow, 120);
    until("the slow shard has its share", || cluster.held() == 4).await;

    let in_time = tokio::time::timeout(Duration::from_secs(2), client.put(&fast, "v")).await;
    assert!(in_time.expect("another shard has a line of its own, or none").unwrap().applied);
    let late = client.with_timeout(Duration::from_millis(100)).put(&slow, "v").await.unwrap_err();
    assert!(matches!(late, Error::Unavailable(_)), "{late}");
    // Some that wait and some that stand in line, the first one among them, give up.
    for given_up in puts.drain(40..80) {
        given_up.abort();
    }
    cluster.release();
    for put in puts {
        assert!(put.await.unwrap().unwrap().applied);
    }
    assert_eq!((cluster.count("Put"), cluster.state().streams.exceeded), (83, 0));
}

#[tokio::test]
async fn an_operation_ends_at_its_own_deadline() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster);
    client.put("k", "v").await.unwrap();
    cluster.script(1, [Fault::Hang]);
    let impatient = client.with_timeout(Duration::from_millis(200));
    let (late, fine) = tokio::join!(impatient.get("k"), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        client.get("k").await
    });
    let late = late.unwrap_err();
    assert!(matches!(late, Error::TimedOut(_)), "{late}");
    assert!(fine.unwrap().kv.is_some());
}

#[tokio::test]
async fn a_broken_stream_is_invisible_but_for_writes_without_sessions() {
    for end in [Fault::EndAfter(0), Fault::Lose(lost())] {
        let cluster = FakeCluster::start(1).await;
        let client = client(&cluster);
        client.put("k", "v").await.unwrap();
        for round in 0..10 {
            cluster.script(1, [Fault::None, Fault::None, Fault::None, end.clone()]);
            let puts =
                join_all((0..20).map(|number| {
                    let client = client.clone();
                    async move {
                        client.put_with(format!("{round}/{number}"), "v", Precondition::Absent.into()).await
                    }
                }));
            let gets = join_all((0..20).map(|_| client.get("k")));
            let (puts, gets) = tokio::join!(puts, gets);
            assert!(puts.into_iter().all(|put| put.unwrap().applied));
            assert!(gets.into_iter().all(|get| get.unwrap().kv.is_some()));
        }
        assert_eq!(cluster.state().store.revision, 202);
        assert!(cluster.state().streams.opened > 5);

        let client = builder(&cluster).sessions(false).build().unwrap();
        client.get("k").await.unwrap();
        cluster.script(1, [end]);
        let error = client.put("k", "w").await.unwrap_err();
        assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
    }
}

#[tokio::test]
async fn connections_that_are_sent_away_are_replaced_invisibly() {
    let age = Duration::from_millis(60);
    let cluster = FakeCluster::with_connections_of_age(2, Some(age)).await;
    for streams in [true, false] {
        let client = builder(&cluster).streams(streams).build().unwrap();
        let before = cluster.state().connections;
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut written = 0;
        while cluster.state().connections < before + 10 {
            assert!(Instant::now() < deadline, "waited until nine connections were replaced");
            assert!(client.put(format!("{streams}/{written}"), "v").await.unwrap().applied);
            client.get("k").await.unwrap();
            written += 1;
        }
    }
    let (revision, keys) = {
        let state = cluster.state();
        (state.store.revision, state.store.records.len() as u64)
    };
    assert_eq!(revision, keys + 1, "each was applied once");
}

#[tokio::test]
async fn a_node_that_dies_gives_way_to_the_next_under_load() {
    let mut cluster = FakeCluster::start(2).await;
    let client = Arc::new(client(&cluster));
    client.put("k", "v").await.unwrap();
    let writers: Vec<_> = (0..20)
        .map(|writer| {
            let client = client.clone();
            tokio::spawn(async move {
                for number in 0..50 {
                    let reply =
                        client.put_with(format!("{writer}/{number}"), "v", Precondition::Absent.into()).await;
                    assert!(reply.unwrap().applied);
                }
            })
        })
        .collect();
    until("some were written", || cluster.count("Put") > 100).await;
    cluster.kill(1).await;
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(cluster.state().store.revision, 1002);
}

#[tokio::test]
async fn a_node_without_streams_gets_calls() {
    let cluster = FakeCluster::start(1).await;
    cluster.state().streams.absent = true;
    let client = client(&cluster);
    let replies = join_all((0..20).map(|number| client.put(format!("key-{number}"), "v"))).await;
    assert!(replies.into_iter().all(|reply| reply.unwrap().applied));
    // Later writes do not ask again.
    cluster.state().streams.absent = false;
    client.put("k", "v").await.unwrap();
    assert_eq!((cluster.count("Put"), cluster.state().streams.opened), (21, 0));
}

#[tokio::test]
async fn calls_of_their_own_can_be_had() {
    let cluster = FakeCluster::start(1).await;
    let client = builder(&cluster).streams(false).sessions(false).build().unwrap();
    client.put("k", "v").await.unwrap();
    client.get_with("k", GetOptions::default()).await.unwrap();
    assert_eq!((cluster.count("OpenSession"), cluster.state().streams.opened), (0, 0));
}

#[tokio::test]
async fn each_leader_has_a_stream_of_its_own() {
    let cluster = FakeCluster::start(3).await;
    {
        let mut state = cluster.state();
        state.strict = true;
        state.leaders = [2, 3];
    }
    let client = direct(&cluster);
    // Has the map fetched: who comes meanwhile asks any node.
    client.get("k").await.unwrap();
    let puts = (0..100).map(|number| client.put(format!("key-{number}"), "v"));
    for reply in join_all(puts).await {
        reply.unwrap();
    }
    let asked = cluster.asked("Put");
    assert!(asked.len() == 100 && asked.contains(&2) && asked.contains(&3) && !asked.contains(&1));
    // The leader moves: its hint is followed.
    cluster.state().leaders = [1, 3];
    client.put(FakeCluster::key_of_shard(1), "v").await.unwrap();
    assert_eq!(cluster.asked("Put")[100..], [2, 1]);
}

#[tokio::test]
async fn what_nobody_waits_for_is_not_sent() {
    let cluster = FakeCluster::start(1).await;
    cluster.state().streams.window = (2, 1 << 20);
    let client = client(&cluster);
    client.put("k", "v").await.unwrap();
    let shard = cluster.shard_of("k");
    cluster.state().streams.slow_shard = Some(shard);
    let first = {
        let client = client.clone();
        tokio::spawn(async move { client.get("k").await })
    };
    until("the share is full", || cluster.held() == 1).await;
    let given_up = tokio::time::timeout(Duration::from_millis(50), client.put("k", "w")).await;
    assert!(given_up.is_err());
    cluster.release();
    first.await.unwrap().unwrap();
    client.get("k").await.unwrap();
    assert_eq!(cluster.count("Put"), 1);
}
