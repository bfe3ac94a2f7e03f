//! Concurrent histories of nodes in network namespaces: packets are lost, and nobody is told.

use std::time::Duration;

use kv_cluster_tests::{Cluster, Load, LoadPlan, Plan, namespaces, seed, status, wait_until};
use rand::{RngExt, rngs::SmallRng};

/// A fault lasts until others lead and the load has made this much progress in spite of it, or twice this long.
const FAULT_WRITES: u64 = 150;
/// See [`FAULT_WRITES`]. Longer than the transport's patience with a silent connection.
const FAULT_TIME: Duration = Duration::from_secs(4);
/// Each write that a fault leaves unknown doubles what the checker must consider for its key: so there are many keys.
const KEYS: u32 = 96;

#[tokio::test(flavor = "multi_thread")]
async fn histories_in_network_namespaces_are_linearizable() {
    if !namespaces::available() {
        return;
    }
    let mut random = seed::generator("histories_in_network_namespaces_are_linearizable");
    let Some(mut cluster) = Cluster::start(Plan::nodes(3).with_namespaces()).await else { return };
    let plan = LoadPlan { keys: KEYS, ..LoadPlan::of_all_kinds() };
    let load = Load::start(plan, cluster.addresses(), &mut random);
    for _ in 0..seed::rounds(6) {
        let fault = Fault::choose(&mut random);
        eprintln!("{fault:?}");
        fault.begin(&mut cluster);
        // Without a quorum nobody is elected and nothing acknowledged: then the time runs out, and that is fine.
        let _ =
            wait_until("leaders elsewhere", FAULT_TIME, || fault.has_cost_its_leaderships(&cluster)).await;
        let _ = load.progress(FAULT_WRITES, FAULT_TIME).await;
        cluster.namespaces.as_ref().expect("planned").heal();
        cluster.start_all();
        cluster.wait_whole().await;
        load.must_progress(50).await;
    }
    load.finish().await;
}

/// Cuts the first node from the others.
type Cut<'a> = &'a dyn Fn(usize, &[usize]);

/// The cuts cut: otherwise nobody would replace a leader that lives.
#[tokio::test(flavor = "multi_thread")]
async fn leader_that_is_cut_off_in_its_namespace_is_replaced() {
    if !namespaces::available() {
        return;
    }
    let Some(cluster) = Cluster::start(Plan::nodes(3).with_namespaces().with_shards(1)).await else { return };
    let network = cluster.namespaces.as_ref().expect("planned");
    let silence = |leader: usize, others: &[usize]| {
        others.iter().for_each(|other| network.cut_one_way(leader, *other));
    };
    let deafen = |leader: usize, others: &[usize]| {
        others.iter().for_each(|other| network.cut_one_way(*other, leader));
    };
    let cut_off = |leader: usize, _: &[usize]| network.cut_off(leader);
    let unplug = |leader: usize, _: &[usize]| network.unplug(leader);
    let cuts: [Cut<'_>; 4] = [&silence, &deafen, &cut_off, &unplug];
    let shard = cluster.shard_of("k").await;
    for cut in cuts {
        let leader = cluster.wait_leader(shard, &[0, 1, 2]).await;
        let others: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
        cut(leader, &others);
        cluster.wait_leader(shard, &others).await;
        network.heal();
        cluster.wait_whole().await;
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    OneWay(usize, usize),
    /// From all other nodes; clients still reach it.
    CutOff(usize),
    Unplug(usize),
    UnplugTwo(usize, usize),
    KillUnplugged(usize),
}

impl Fault {
    fn choose(random: &mut SmallRng) -> Self {
        let node = random.random_range(0..3);
        let other = (node + random.random_range(1..3)) % 3;
        match random.random_range(0..7) {
            0 | 1 => Self::OneWay(node, other),
            2 | 3 => Self::CutOff(node),
            4 => Self::Unplug(node),
            5 => Self::UnplugTwo(node, other),
            _ => Self::KillUnplugged(node),
        }
    }

    /// Whether others lead all shards: only then can the nodes that are cut off be asked for what is old.
    async fn has_cost_its_leaderships(self, cluster: &Cluster) -> Result<(), String> {
        let cut_off = match self {
            // Pre-votes keep such a leader, and it may keep its lead.
            Self::OneWay(..) => return Ok(()),
            Self::CutOff(node) | Self::Unplug(node) | Self::KillUnplugged(node) => vec![node],
            Self::UnplugTwo(one, other) => vec![one, other],
        };
        let statuses = cluster.statuses().await;
        for shard in status::shards(&statuses) {
            let leader = status::leader(&statuses, shard).filter(|leader| !cut_off.contains(leader));
            leader.ok_or_else(|| format!("shard {shard} has no other leader"))?;
        }
        Ok(())
    }

    fn begin(self, cluster: &mut Cluster) {
        let network = cluster.namespaces.as_ref().expect("planned");
        match self {
            Self::OneWay(from, to) => network.cut_one_way(from, to),
            Self::CutOff(node) => network.cut_off(node),
            Self::Unplug(node) => network.unplug(node),
            Self::UnplugTwo(one, other) => {
                network.unplug(one);
                network.unplug(other);
            }
            Self::KillUnplugged(node) => {
                network.unplug(node);
                cluster.nodes[node].kill();
            }
        }
    }
}
