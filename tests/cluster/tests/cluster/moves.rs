//! Replicas and leaderships go where they should be while clients write: nobody notices, whoever dies meanwhile.

use std::time::Duration;

use kv_cluster_tests::{
    Cluster, DEADLINE, Load, LoadPlan, Plan,
    admin::{ACTOR, Admin, Removal},
    journal::{self, Told},
    metrics::scrape,
    seed,
};
use kv_proto::admin::v1::{JournalEntry, Move, NodeState};
use rand::{RngExt, rngs::SmallRng, seq::SliceRandom};

/// As many as there are nodes in the end: then each leads one of them.
const SHARDS: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn five_nodes_share_the_load_of_three_and_two_give_it_back_unnoticed() {
    let mut random = seed::generator("five_nodes_share_the_load_of_three_and_two_give_it_back_unnoticed");
    let Some(mut cluster) = Cluster::start(Plan::nodes(3).with_shards(SHARDS)).await else { return };
    let load = Load::start(LoadPlan::of_programs(), cluster.addresses(), &mut random);
    load.must_progress(200).await;
    let added = [cluster.add_node(), cluster.add_node()];
    cluster.wait_active(0, &added).await;
    cluster.wait_settled(0).await;
    cluster.wait_even_leaders(0).await;
    load.must_progress(200).await;

    // Whoever leads meta and another one leave, at once.
    let meta = cluster.wait_leader(0, &[0, 1, 2, 3, 4]).await;
    let leaving = [meta, (meta + random.random_range(1..5)) % 5];
    let staying = cluster.all_but(&leaving);
    let via = staying[0];
    let ids = cluster.wait_active(via, &leaving).await;
    eprintln!("{leaving:?} leave");
    for node in leaving {
        cluster.drain(via, node).await;
    }
    for (node, id) in leaving.into_iter().zip(&ids) {
        cluster.wait_state(via, *id, NodeState::Drained).await;
        cluster.wait_status(node, "readiness, although it is empty,", |status| status.ready).await;
    }
    cluster.wait_settled(via).await;
    load.must_progress(200).await;
    for (node, id) in leaving.into_iter().zip(&ids) {
        cluster.remove(via, *id, Removal::Empty).await;
        // It is told so.
        let over = cluster.nodes[node].wants_another_start(DEADLINE).await;
        over.unwrap_or_else(|error| panic!("{error}"));
    }
    cluster.wait_settled(via).await;
    cluster.wait_even_leaders(via).await;
    load.must_progress(200).await;
    load.finish_through(&cluster.addresses_of(&staying)).await.without_errors();

    let shown = scrape(cluster.nodes[via].ports.http_address()).expect("it serves");
    assert!(shown.get("kv_meta_moves_begun_total") > Some(&0.0), "no move was counted");
    let journal = cluster.order(via, "the journal", async |admin: Admin| admin.journal().await).await;
    journal::locked(&journal).unwrap_or_else(|error| panic!("{error}"));
    ids.iter().for_each(|id| tells_the_drain(&journal, *id));
}

/// Who asked for it and why, what moved, and that it came to its end.
fn tells_the_drain(journal: &[JournalEntry], node_id: u64) {
    let told = journal::of_node(journal, node_id);
    let state = |now: &str| {
        let is_so = |(told, _): &(Told, &JournalEntry)| matches!(told, Told::State { now: is } if is == now);
        told.iter().position(is_so).unwrap_or_else(|| panic!("#{node_id} is never {now}: {told:?}"))
    };
    let (begin, end) = (state("draining"), state("drained"));
    let (_, asked) = &told[begin];
    assert_eq!(asked.actor, ACTOR);
    assert!(!asked.reason.is_empty() && asked.unix_ms > 0, "{asked:?}");
    let between = &told[begin..end];
    let drained = |told: &Told| matches!(told, Told::MoveBegun { why } if why == "drain");
    let begun: Vec<_> = between.iter().filter(|(told, _)| drained(told)).collect();
    let done = between.iter().filter(|(told, _)| *told == Told::MoveDone).count();
    assert!(!begun.is_empty() && done > 0, "{between:?}");
    assert!(begun.iter().all(|(_, entry)| !entry.reason.is_empty() && entry.shard_id.is_some()), "{begun:?}");
}

/// Who is killed while replicas move.
#[derive(Clone, Copy, Debug)]
enum Victim {
    MetaLeader,
    /// Who fills the new replica.
    Source,
    Target,
    Draining,
}

/// Of the load, before and after a kill: it has writes as a clock.
const MOMENT: Duration = Duration::from_secs(1);
/// In that time at most.
const MOMENT_WRITES: u64 = 300;
/// Each shard is half a megabyte and more, so that a move takes a second.
const FILLING: (u64, usize) = (48, 32 << 10);

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_during_moves_they_come_to_their_end() {
    let mut random = seed::generator("whoever_dies_during_moves_they_come_to_their_end");
    let plan = Plan::nodes(4)
        .with_flag("--log-retention-bytes", "64Ki")
        .with_flag("--flush-interval", "1s")
        .with_flag("--snapshot-rate", "512Ki");
    let Some(mut cluster) = Cluster::start(plan).await else { return };
    cluster.fill(0, FILLING.0, FILLING.1).await;
    cluster.wait_cut_logs().await;
    let load = Load::start(LoadPlan::for_minutes(), cluster.addresses(), &mut random);
    let mut victims = [Victim::MetaLeader, Victim::Source, Victim::Target, Victim::Draining];
    victims.shuffle(&mut random);
    for victim in victims.into_iter().cycle().take(seed::rounds(victims.len())) {
        dies_during_a_drain(&mut cluster, victim, &load, &mut random).await;
    }
    load.must_progress(100).await;
    load.finish().await;
}

async fn dies_during_a_drain(cluster: &mut Cluster, victim: Victim, load: &Load, random: &mut SmallRng) {
    let all = cluster.all_but(&[]);
    let leaving = random.random_range(0..all.len());
    let via = (leaving + 1) % all.len();
    let ids = cluster.wait_active(via, &all).await;
    cluster.drain(via, leaving).await;
    let moving = wait_moving(cluster, via, ids[leaving]).await;
    // The wait may end before so much was written: what dies may be what writes wait for.
    let _ = load.progress(random.random_range(0..MOMENT_WRITES), MOMENT).await;
    let dead = match victim {
        Victim::MetaLeader => cluster.wait_leader(0, &all).await,
        Victim::Source => cluster.wait_leader(moving.shard_id, &all).await,
        Victim::Target => {
            ids.iter().position(|id| *id == moving.to_node_id).expect("moves go to nodes of the cluster")
        }
        Victim::Draining => leaving,
    };
    eprintln!("{victim:?}, node {dead}, dies while node {leaving} drains; at first: {moving:?}");
    cluster.nodes[dead].kill();
    let _ = load.progress(random.random_range(0..MOMENT_WRITES), MOMENT).await;
    cluster.nodes[dead].start();
    if random.random() {
        cluster.wait_state(via, ids[leaving], NodeState::Drained).await;
    }
    cluster.undrain(via, leaving).await;
    cluster.wait_settled(via).await;
    load.must_progress(50).await;
}

/// Waits until a replica of this node moves.
async fn wait_moving(cluster: &Cluster, via: usize, node_id: u64) -> Move {
    cluster
        .wait_cluster(via, "a replica that moves away from the draining node", |cluster| {
            let moving = cluster.moves.iter().find(|moving| moving.from_node_id == node_id);
            moving.cloned().ok_or_else(|| format!("{} moves", cluster.moves.len()))
        })
        .await
}
