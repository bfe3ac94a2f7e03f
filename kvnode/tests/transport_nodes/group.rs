//! A group of three replicas over the loopback, in simulated time.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use kvnode::{
    runtime::Tasks,
    transport::{Limits, loopback::Loopback},
};
use openraft::async_runtime::WatchReceiver;
use tokio::time::sleep;

use crate::{
    cluster::{Cluster, eventually, within, write},
    memory::Transfers,
    weather::{Distance, Storm},
};

fn near() -> Distance {
    Distance(Duration::from_millis(2))
}

#[tokio::test(start_paused = true)]
async fn a_group_elects_and_replicates() {
    let tasks = Tasks::new("network");
    let network = Loopback::new(tasks.spawner(), near());
    let cluster = Cluster::over(&network, 3, &Limits::default()).await;
    let leader = cluster.leader().await;
    let writes = (0..500).map(|number| write(&leader.raft, number.to_string()));
    assert!(futures::future::join_all(writes).await.into_iter().all(|written| written));
    assert_eq!(cluster.agree(500).await.len(), 500);
    for node in &cluster.nodes {
        assert!(node.transport.counters().iter().all(|(_, counters)| counters.breaks == 0));
    }
}

#[tokio::test(start_paused = true)]
async fn entries_larger_than_a_frame_replicate() {
    let tasks = Tasks::new("network");
    let network = Loopback::new(tasks.spawner(), near());
    let limits = Limits { frame_bytes: 1000, batch_bytes: 5000, ..Limits::default() };
    let cluster = Cluster::over(&network, 3, &limits).await;
    let leader = cluster.leader().await;
    let writes = (0..40_u8).map(|number| write(&leader.raft, vec![number; usize::from(number) * 100]));
    assert!(futures::future::join_all(writes).await.into_iter().all(|written| written));
    assert_eq!(cluster.agree(40).await.len(), 40);
}

/// Simulated time stands still while anything spins: a leader that asks a dead peer without a pause would hang this.
#[tokio::test(start_paused = true)]
async fn a_cut_off_leader_is_replaced_and_catches_up() {
    let tasks = Tasks::new("network");
    let network = Loopback::new(tasks.spawner(), near());
    let cluster = Cluster::over(&network, 3, &Limits::default()).await;
    let first = cluster.leader().await;
    assert!(write(&first.raft, "before").await);
    network.isolate(first.node);
    let second = cluster.leader_among(&cluster.others(first.id)).await;
    assert!(write(&second.raft, "during").await);
    assert!(!write(&first.raft, "lost").await);
    network.heal();
    assert!(write(&cluster.leader().await.raft, "after").await);
    assert_eq!(cluster.agree(3).await, ["before", "during", "after"].map(Bytes::from));
}

#[tokio::test(start_paused = true)]
async fn a_one_way_cut_and_broken_streams_heal() {
    let tasks = Tasks::new("network");
    let network = Loopback::new(tasks.spawner(), near());
    let cluster = Cluster::over(&network, 3, &Limits::default()).await;
    let leader = cluster.leader().await;
    let follower = cluster.at(cluster.others(leader.id)[0]);
    network.cut(follower.node, leader.node);
    assert!(write(&leader.raft, "one follower is enough").await);
    network.heal();
    network.sever(|_| true);
    let leader = cluster.leader().await;
    assert!(within(20, "a write after the streams broke", write(&leader.raft, "again")).await);
    cluster.agree(2).await;
}

/// Frames lost, repeated and overtaking each other, streams that break: nothing acknowledged is lost, and all
/// replicas apply the same. 12 seeds of 30 simulated seconds.
#[tokio::test(start_paused = true)]
async fn a_storm_does_no_harm() {
    for seed in 0..12 {
        println!("seed {seed}");
        let rages = Arc::new(AtomicBool::new(true));
        let tasks = Tasks::new("network");
        let network = Loopback::new(tasks.spawner(), Storm::new(seed, rages.clone()));
        let cluster = Cluster::over(&network, 3, &Limits::default()).await;
        let mut acknowledged = BTreeSet::new();
        for round in 0..60_u64 {
            if round % 9 == seed % 9 {
                network.sever(|way| (way.from.0 + way.to.0 + round) % 2 == 0);
            }
            let value = Bytes::from(format!("{seed}-{round}"));
            let leader = cluster.replicas.iter().find(|replica| replica.raft.is_leader());
            if let Some(leader) = leader
                && write(&leader.raft, value.clone()).await
            {
                acknowledged.insert(value);
            }
            sleep(Duration::from_millis(500)).await;
        }
        rages.store(false, Relaxed);
        let leader = cluster.leader().await;
        assert!(write(&leader.raft, "calm").await, "seed {seed}");
        let agreed: BTreeSet<Bytes> = cluster.agree(1).await.into_iter().collect();
        assert!(acknowledged.len() > 10, "seed {seed}: only {} writes", acknowledged.len());
        assert!(acknowledged.is_subset(&agreed), "seed {seed}: acknowledged writes were lost");
        for replica in &cluster.replicas {
            replica.raft.shutdown().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn leadership_is_transferred() {
    let tasks = Tasks::new("network");
    let network = Loopback::new(tasks.spawner(), near());
    let cluster = Cluster::over(&network, 3, &Limits::default()).await;
    let first = cluster.leader().await;
    let next = cluster.others(first.id)[0];
    assert!(write(&first.raft, "before").await);
    cluster.agree(1).await;
    first.raft.trigger().transfer_leader(next.0).await.unwrap();
    eventually("the chosen replica leads", || cluster.at(next).raft.is_leader().then_some(())).await;
}

/// The log that a cut-off follower needs is gone: it gets a snapshot, in several files and chunks, although the stream
/// breaks in the middle of the first attempt.
#[tokio::test(start_paused = true)]
async fn a_follower_that_was_away_for_long_gets_a_snapshot() {
    let tasks = Tasks::new("network");
    let network = Loopback::new(tasks.spawner(), Distance(Duration::from_millis(10)));
    let limits = Limits { snapshot_bytes_per_second: 4 << 20, ..Limits::default() };
    let cluster = Cluster::over(&network, 3, &limits).await;
    let leader = cluster.leader().await;
    let away = cluster.at(cluster.others(leader.id)[0]);
    assert!(write(&leader.raft, "before").await);
    network.isolate(away.node);
    for number in 0..20_u8 {
        assert!(write(&leader.raft, vec![number; 100_000]).await);
    }
    leader.raft.trigger().snapshot().await.unwrap();
    let purged = || leader.raft.metrics().borrow_watched().purged.filter(|id| id.index > 15);
    eventually("the log is purged", purged).await;
    network.heal();
    eventually("a transfer begins", || (away.snapshots.transfers().opened > 0).then_some(())).await;
    network.sever(|way| way.to == away.node);
    let agreed = cluster.agree(21).await;
    assert_eq!((agreed.len(), agreed[20].len()), (21, 100_000));
    let Transfers { opened, finished, discarded } = away.snapshots.transfers();
    assert!(
        finished >= 1 && discarded >= 1 && opened == finished + discarded,
        "{opened} {finished} {discarded}"
    );
}
