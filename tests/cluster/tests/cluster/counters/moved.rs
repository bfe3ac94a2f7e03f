//! Replicas move while clients write in sessions: what sessions know goes with them.

use kv_client::Address;
use kv_cluster_tests::{Cluster, Plan, metrics::scrape, seed};
use rand::{SeedableRng, rngs::SmallRng, seq::SliceRandom};

use super::{
    Writers, client_of, counted,
    once::{Visitor, judge},
    wait_purged,
};

/// Of each client: few enough that two cores have time for moves.
const WRITERS: usize = 2;

#[tokio::test(flavor = "multi_thread")]
async fn increments_are_counted_exactly_while_replicas_move() {
    let mut random = seed::generator("increments_are_counted_exactly_while_replicas_move");
    // So little log is kept that new replicas are filled by snapshots.
    let plan = Plan::nodes(4).with_flag("--log-retention-bytes", "64Ki").with_flag("--flush-interval", "1s");
    let Some(cluster) = Cluster::start(plan).await else { return };
    let nodes: Vec<Address> =
        cluster.addresses().iter().map(|node| node.to_string().parse().expect("an address")).collect();
    let writers = Writers::start(&nodes, WRITERS, true, &mut random);
    let mut visitor = |name| Visitor {
        name,
        addresses: nodes.clone(),
        random: SmallRng::from_rng(&mut random),
        stopped: writers.stopped.clone(),
    };
    let restarted = tokio::spawn(visitor("restarted").restart());
    let napping = tokio::spawn(visitor("napping").nap());
    wait_purged(&cluster, 0).await;
    let mut order = [0, 1, 2, 3];
    order.shuffle(&mut random);
    for node in order {
        writers.progress().await;
        let via = (node + 1) % order.len();
        cluster.drain_to_the_end(via, node).await;
        writers.progress().await;
        cluster.undrain(via, node).await;
    }
    cluster.wait_settled(0).await;
    assert!(snapshot_bytes(&cluster) > 0.0, "no replica was filled by a snapshot");
    let written = writers.finish().await;
    let client = client_of(&cluster);
    assert_eq!(counted(&client).await, written);
    for visitor in [restarted, napping] {
        let attempts = visitor.await.expect("a visitor does not panic");
        assert!(judge(&client, &attempts).await > 0, "{} attempts", attempts.len());
    }
}

/// That all nodes have received.
fn snapshot_bytes(cluster: &Cluster) -> f64 {
    let of = |node: &kv_cluster_tests::Node| {
        let series = scrape(node.ports.http_address()).expect("it serves");
        series.get("kv_transport_snapshot_received_bytes_total").copied().unwrap_or_default()
    };
    cluster.nodes.iter().map(of).sum()
}
