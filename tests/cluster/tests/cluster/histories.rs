//! Concurrent histories under everything at once: kills, pauses, partitions, slow links.

use std::time::Duration;

use kv_cluster_tests::{Cluster, Load, LoadPlan, Plan, seed};
use kv_faults::proxy::Link;
use rand::{RngExt, rngs::SmallRng};

/// A fault lasts until the load has made this much progress in spite of it, or this long.
const FAULT_WRITES: u64 = 60;
/// See [`FAULT_WRITES`].
const FAULT_TIME: Duration = Duration::from_secs(3);

/// Faults between two comparisons: longer histories of one key are slower to check and harder to read.
const FAULTS_PER_LOAD: usize = 5;
/// Each write that a fault leaves unknown doubles what the checker must consider for its key: so there are many keys.
const KEYS: u32 = 96;

#[tokio::test(flavor = "multi_thread")]
async fn histories_under_kills_pauses_and_partitions_are_linearizable() {
    let mut random = seed::generator("histories_under_kills_pauses_and_partitions_are_linearizable");
    let rounds = seed::rounds(30);
    let Some(mut cluster) = Cluster::start(Plan::nodes(3).with_network()).await else { return };
    for load_number in 0..rounds.div_ceil(FAULTS_PER_LOAD) {
        // In turns: single requests, and the client library with its sessions, streams and repetitions.
        let exactly_once = load_number % 2 == 1;
        let prefix = format!("load{load_number}/");
        let plan = LoadPlan { prefix, keys: KEYS, exactly_once, ..LoadPlan::of_all_kinds() };
        let load = Load::start(plan, cluster.addresses(), &mut random);
        for _ in 0..FAULTS_PER_LOAD {
            let fault = Fault::choose(&mut random);
            eprintln!("{fault:?}");
            fault.begin(&mut cluster);
            // Under some faults nothing can be acknowledged: then the time runs out, and that is fine.
            let _ = load.progress(FAULT_WRITES, FAULT_TIME).await;
            fault.end(&mut cluster);
            if random.random_bool(0.3) {
                cluster.wait_whole().await;
            }
        }
        cluster.wait_whole().await;
        load.must_progress(50).await;
        load.finish().await;
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill(usize),
    KillAll,
    Pause(usize),
    CutOff(usize, Link),
    OneWay(usize, usize),
    Slow(usize, Duration),
    Stop(usize),
}

impl Fault {
    fn choose(random: &mut SmallRng) -> Self {
        let node = random.random_range(0..3);
        let other = (node + random.random_range(1..3)) % 3;
        match random.random_range(0..9) {
            0 | 1 => Self::Kill(node),
            2 => Self::KillAll,
            3 => Self::Pause(node),
            4 => Self::CutOff(node, Link::Silent),
            5 => Self::CutOff(node, [Link::Reset, Link::Stalled][random.random_range(0..2)]),
            6 => Self::OneWay(node, other),
            7 => Self::Slow(node, Duration::from_millis(random.random_range(1..200))),
            _ => Self::Stop(node),
        }
    }

    fn begin(self, cluster: &mut Cluster) {
        match self {
            Self::Kill(node) => cluster.nodes[node].kill(),
            Self::KillAll => cluster.kill_all(),
            Self::Pause(node) => cluster.nodes[node].pause(),
            Self::CutOff(node, link) => cluster.network.cut_off(&[node], link),
            Self::OneWay(from, to) => cluster.network.one_way(from, to, Link::Silent),
            Self::Slow(node, delay) => cluster.network.cut_off(&[node], Link::Delayed(delay)),
            Self::Stop(node) => cluster.nodes[node].terminate(),
        }
    }

    fn end(self, cluster: &mut Cluster) {
        match self {
            Self::Kill(node) => cluster.nodes[node].start(),
            Self::KillAll => cluster.start_all(),
            Self::Pause(node) => cluster.nodes[node].resume(),
            Self::CutOff(..) | Self::OneWay(..) | Self::Slow(..) => cluster.network.heal(),
            Self::Stop(node) => {
                // It had its time; whatever it has not handed over by now, it loses.
                cluster.nodes[node].kill();
                cluster.nodes[node].start();
            }
        }
    }
}
