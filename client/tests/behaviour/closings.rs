//! Sessions that are closed without being asked for.

use std::time::Duration;

use kv_client::Client;
use tokio::time::{advance, pause, resume, timeout};

use crate::{client, fake::FakeCluster, until};

/// Longer than from one look of the client at its sessions to the next.
const LOOK: Duration = Duration::from_secs(11);

/// Lets time pass for the client, whose connection is used meanwhile.
async fn time_passes(client: &Client, key: &str) {
    pause();
    advance(LOOK).await;
    resume();
    client.get(key).await.unwrap();
}

#[tokio::test]
async fn sessions_are_closed_when_the_last_clone_of_their_client_is_dropped() {
    let cluster = FakeCluster::start(2).await;
    let first = client(&cluster);
    let second = first.with_timeout(Duration::from_secs(60));
    let keys = [1, 2].map(FakeCluster::key_of_shard);
    for key in &keys {
        first.put(key, "v").await.unwrap();
    }
    drop(first);
    second.put(&keys[0], "v").await.unwrap();

    // A write that is under way holds a clone.
    cluster.state().streams.slow_shard = Some(1);
    let key = keys[0].clone();
    let (writer, other) = (second.clone(), second);
    let write = tokio::spawn(async move { writer.put(key, "w").await });
    until("the write is under way", || cluster.held() == 1).await;
    // On a thread that knows no runtime.
    std::thread::spawn(move || drop(other)).join().unwrap();
    tokio::task::yield_now().await;
    assert_eq!((cluster.count("CloseSession"), cluster.state().sessions.count()), (0, 2));

    cluster.release();
    assert!(write.await.unwrap().unwrap().applied);
    // At once, and not with the next look.
    let closed = until("the sessions are closed", || cluster.state().sessions.count() == 0);
    timeout(LOOK / 2, closed).await.unwrap();
    assert_eq!((cluster.count("OpenSession"), cluster.count("CloseSession")), (2, 2));
}

#[tokio::test]
async fn a_session_that_is_idle_is_closed_and_the_next_write_opens_another_one() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster);
    for round in 1..=2 {
        client.put("k", "v").await.unwrap();
        time_passes(&client, "k").await;
        client.put("k", "v").await.unwrap();
        time_passes(&client, "k").await;
        assert_eq!(cluster.count("CloseSession"), round - 1, "it was used since");
        time_passes(&client, "k").await;
        until("the session is closed", || cluster.state().sessions.count() == 0).await;
        assert_eq!((cluster.count("OpenSession"), cluster.count("CloseSession")), (round, round));
    }
}

#[tokio::test]
async fn a_session_is_not_closed_while_a_write_is_under_way() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster).with_timeout(Duration::from_secs(600));
    let (slow, fast) = (FakeCluster::key_of_shard(1), FakeCluster::key_of_shard(2));
    client.put(&slow, "v").await.unwrap();
    client.put(&fast, "v").await.unwrap();
    cluster.state().streams.slow_shard = Some(1);
    let writer = client.clone();
    let key = slow.clone();
    let write = tokio::spawn(async move { writer.put(key, "w").await });
    until("the write is under way", || cluster.held() == 1).await;
    for _ in 0..4 {
        time_passes(&client, &fast).await;
    }
    until("the other session is closed", || cluster.count("CloseSession") == 1).await;
    assert_eq!(cluster.state().sessions.count(), 1);
    cluster.release();
    let reply = write.await.unwrap().unwrap();
    assert!(reply.applied && !reply.replayed);
    assert_eq!(cluster.count("OpenSession"), 2);
    for _ in 0..4 {
        time_passes(&client, &fast).await;
    }
    until("nothing is left", || cluster.state().sessions.count() == 0).await;
}
