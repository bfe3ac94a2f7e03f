//! Drains that are refused, cancelled, and begun while other things happen.

use kv_client::{Client, Routing};
use kv_cluster_tests::{
    Cluster, DEADLINE, Load, LoadPlan, Plan,
    admin::Admin,
    journal::{self, Told},
    metrics::scrape,
    patient::repeat,
    seed,
    settled::placed_at,
};
use kv_proto::admin::v1::{ClusterEvent, NodeState};
use rand::RngExt;
use tokio::{task::JoinHandle, time::timeout};
use tonic::{Status, Streaming};

/// Each shard is half a megabyte and more.
const FILLING: (u64, usize) = (48, 32 << 10);
/// Enough that each shard has some.
const KEYS: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_is_cancelled_half_way_stops_and_leaves_a_whole_cluster() {
    let mut random = seed::generator("a_drain_that_is_cancelled_half_way_stops_and_leaves_a_whole_cluster");
    // A move takes a second.
    let plan = Plan::nodes(3)
        .with_flag("--log-retention-bytes", "64Ki")
        .with_flag("--flush-interval", "1s")
        .with_flag("--snapshot-rate", "512Ki");
    let Some(mut cluster) = Cluster::start(plan).await else { return };
    let drain = async |admin: Admin| admin.drain("n2", "").await;
    let refused = cluster.wait_refused(0, "TOO_FEW_NODES", "a drain of one of three", drain).await;
    assert!(refused.contains('3'), "it says how many there must be: {refused}");

    cluster.fill(0, FILLING.0, FILLING.1).await;
    cluster.wait_cut_logs().await;
    let load = Load::start(LoadPlan::of_programs(), cluster.addresses(), &mut random);
    let added = cluster.add_node();
    cluster.wait_active(0, &[added]).await;
    let before = cluster.wait_settled(0).await;
    let leaving = random.random_range(0..4);
    let via = (leaving + 1) % 4;
    // Each node holds two data replicas and more: moved at the same time they would leave at the same time.
    cluster.order(via, "moves one by one", async |admin: Admin| admin.set_moves_at_once(1).await).await;
    let id = cluster.node_id(leaving).await;
    let held = placed_at(&before, id).len();
    cluster.drain(via, leaving).await;
    let half = cluster.wait_cluster(via, "half a drain", |cluster| {
        let left = placed_at(cluster, id).len();
        if left > 0 && left < held { Ok(()) } else { Err(format!("{left} of {held} replicas are left")) }
    });
    half.await;
    cluster.undrain(via, leaving).await;
    cluster.wait_settled(via).await;
    // Again: done already is done.
    cluster.undrain(via, leaving).await;
    load.must_progress(100).await;
    load.finish().await.without_errors();

    let journal = cluster.order(via, "the journal", async |admin: Admin| admin.journal().await).await;
    let told: Vec<Told> = journal::of_node(&journal, id).into_iter().map(|(told, _)| told).collect();
    let is = |told: &Told, state: &str| matches!(told, Told::State { now } if now == state);
    let begin = told.iter().position(|told| is(told, "draining")).expect("it drained");
    let end = begin + told[begin..].iter().position(|told| is(told, "active")).expect("it was cancelled");
    let drains =
        |told: &[Told]| told.iter().any(|told| matches!(told, Told::MoveBegun { why } if why == "drain"));
    assert!(drains(&told[begin..end]) && !drains(&told[end..]), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn drains_joins_and_restarts_at_once_end_in_a_whole_cluster() {
    let mut random = seed::generator("drains_joins_and_restarts_at_once_end_in_a_whole_cluster");
    let Some(mut cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    cluster.wait_settled(2).await;
    cluster.wait_even_leaders(2).await;
    let first = cluster.node_id(0).await;
    let client = StaleClient::of(&cluster, 0).await;
    let events = cluster.order(2, "a watch", async |admin: Admin| admin.watch().await).await;
    let watched = watch(events, first);
    let load = Load::start(LoadPlan::for_minutes(), cluster.addresses(), &mut random);
    load.must_progress(100).await;

    // During a join: it is refused until enough nodes stay.
    let fourth = cluster.add_node();
    cluster.drain(2, 0).await;
    // A join during a restart.
    cluster.nodes[1].terminate();
    let fifth = cluster.add_node();
    cluster.nodes[1].ended(DEADLINE).await.unwrap_or_else(|error| panic!("{error}"));
    cluster.nodes[1].start();
    cluster.wait_active(2, &[1, 2, fourth, fifth]).await;
    // Another one while the first may be under way still. A third would leave too few.
    cluster.drain(2, 1).await;
    let drain = async |admin: Admin| admin.drain("n3", "").await;
    cluster.wait_refused(2, "TOO_FEW_NODES", "a third drain of five nodes", drain).await;
    let second = cluster.node_id(1).await;
    for id in [first, second] {
        cluster.wait_state(2, id, NodeState::Drained).await;
    }
    cluster.wait_settled(2).await;
    load.must_progress(100).await;
    load.finish().await;
    let states = timeout(DEADLINE, watched).await.expect("it drained").expect("the watch does not panic");
    assert_eq!(states, [NodeState::Active, NodeState::Draining, NodeState::Drained]);

    client.is_corrected_by_one_reply(&cluster, 0).await;
    for node in [0, 1] {
        cluster.undrain(2, node).await;
    }
    cluster.wait_settled(2).await;
    cluster.wait_even_leaders(2).await;
}

/// The states of a node that a stream of events tells, up to the last one of a drain.
fn watch(mut events: Streaming<ClusterEvent>, node_id: u64) -> JoinHandle<Vec<NodeState>> {
    tokio::spawn(async move {
        let (mut states, mut epoch) = (Vec::new(), 0);
        while states.last() != Some(&NodeState::Drained) {
            let event = events.message().await.expect("a watch goes on").expect("a watch does not end");
            assert!(event.epoch > epoch, "epoch {} after {epoch}", event.epoch);
            epoch = event.epoch;
            let known = event.nodes.iter().find(|node| node.node_id == node_id);
            states.extend(known.map(|node| node.state()));
            states.dedup();
        }
        states
    })
}

/// A client that routes by the map, and was not used since it learned the map.
struct StaleClient {
    client: Client,
    key: String,
    epoch: u64,
}

impl StaleClient {
    /// Its key is one of a shard that this node leads, as it must.
    async fn of(cluster: &Cluster, leads: usize) -> Self {
        let key = key_led_by(cluster, leads).await;
        cluster.put(0, &key, "there").await;
        let nodes: Vec<String> = cluster.addresses().iter().map(ToString::to_string).collect();
        let addresses = nodes.iter().map(|node| node.parse().expect("an address"));
        // Without streams, each request is counted by the node that it went to.
        let builder = Client::builder(addresses).routing(Routing::Direct).streams(false);
        let client = builder.build().expect("there are addresses");
        client.get(&key).await.expect("a whole cluster");
        let epoch = client.get(&key).await.expect("a whole cluster").header.map_epoch;
        Self { client, key, epoch }
    }

    /// The first read goes where the shard was, and is answered; the next one goes where it is. `was` holds nothing any more.
    async fn is_corrected_by_one_reply(&self, cluster: &Cluster, was: usize) {
        let before = reads(cluster).await;
        let first = self.client.get(&self.key).await.expect("it was forwarded");
        assert!(first.kv.is_some() && first.header.map_epoch > self.epoch, "{first:?}");
        let between = reads(cluster).await;
        let grown = |now: &[f64], before: &[f64]| -> Vec<f64> {
            now.iter().zip(before).map(|(now, before)| now - before).collect()
        };
        let mut asked = vec![0.0; cluster.nodes.len()];
        asked[was] = 1.0;
        assert_eq!(grown(&between, &before), asked, "its map was not the old one, or it asked twice");
        self.client.get(&self.key).await.expect("a whole cluster");
        let asked = grown(&reads(cluster).await, &between);
        assert_eq!((asked.iter().sum::<f64>(), asked[was]), (1.0, 0.0), "{asked:?}: it was not corrected");
    }
}

async fn key_led_by(cluster: &Cluster, leads: usize) -> String {
    let all = cluster.all_but(&[]);
    for key in (0..KEYS).map(|number| format!("stale/{number}")) {
        if cluster.wait_leader(cluster.shard_of(&key).await, &all).await == leads {
            return key;
        }
    }
    panic!("none of {KEYS} keys is in a shard that node {leads} leads")
}

/// Reads that clients have asked of each node so far, by calls.
async fn reads(cluster: &Cluster) -> Vec<f64> {
    const SERIES: &str = r#"kv_requests_total{method="kv.v1.Kv/Get",status="OK"}"#;
    let mut counts = Vec::new();
    for node in &cluster.nodes {
        let address = node.ports.http_address();
        let shown = async || scrape(address).map_err(|error| Status::unavailable(error.to_string()));
        let series = repeat("the metrics of a node".to_owned(), shown).await;
        counts.push(series.get(SERIES).copied().unwrap_or_default());
    }
    counts
}
