//! kvnodes with their defaults, loaded by `kvctl bench`.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use kv_cluster_tests::{Cluster, Plan};
use kv_compare::{kvctl::Kvctl, usage};
use serde::Deserialize;

use crate::{
    Memory, Options, Step, connections, microseconds,
    summary::{Figure, System, Workload},
};

/// A run before the counted one: connections, caches, sessions.
const WARM_UP_SECONDS: u64 = 1;

/// What `kvctl bench -o json` says.
#[derive(Debug, Deserialize)]
struct Report {
    operations: u64,
    operations_per_second: f64,
    latency_us: Latency,
    client_cpu_us_per_operation: Option<f64>,
    errors: BTreeMap<String, u64>,
}

#[derive(Debug, Deserialize)]
struct Latency {
    p50: f64,
    p99: f64,
}

/// A running cluster and what loads it.
struct Subject<'o> {
    options: &'o Options,
    kvctl: Kvctl,
    nodes: Vec<u32>,
}

/// Starts a cluster, loads it, and ends it.
pub async fn measure(options: &Options, steps: &[Step]) -> Result<(Vec<Figure>, Memory)> {
    let plan = Plan::nodes(options.nodes).with_shards(options.shards);
    let cluster = Cluster::start(plan).await.context("kvnode was not built")?;
    let nodes = cluster.nodes.iter().filter_map(kv_cluster_tests::Node::process_id).collect();
    let subject = Subject { options, kvctl: Kvctl::of(&cluster)?, nodes };
    // All keys, once. The time that it takes is no figure of ours.
    subject.run(System::Streamed, Step { workload: Workload::Get, clients: 1 }, 1, true)?;
    let mut figures = Vec::new();
    for step in steps {
        for system in [System::Unary, System::Streamed] {
            figures.push(subject.figure(system, *step)?);
        }
    }
    let memory = Memory { system: "KvCluster", node_bytes: usage::memory(&subject.nodes) };
    Ok((figures, memory))
}

impl Subject<'_> {
    fn figure(&self, system: System, step: Step) -> Result<Figure> {
        self.run(system, step, WARM_UP_SECONDS, false)?;
        let before = usage::cpu(&self.nodes);
        let report = self.run(system, step, self.options.seconds, false)?;
        let nodes = usage::cpu(&self.nodes).saturating_sub(before);
        ensure!(report.operations > 0, "no call succeeded: {:?}", report.errors);
        let client = report.client_cpu_us_per_operation.unwrap_or_default();
        Ok(Figure {
            system,
            workload: step.workload,
            clients: step.clients,
            per_second: report.operations_per_second,
            p50_ms: Some(report.latency_us.p50 / 1000.0),
            p99_ms: Some(report.latency_us.p99 / 1000.0),
            cpu_us: microseconds(nodes, report.operations) + client,
            errors: report.errors.values().sum(),
        })
    }

    fn run(&self, system: System, step: Step, seconds: u64, fill: bool) -> Result<Report> {
        let Step { workload, clients } = step;
        let switches: Vec<&str> = [(system == System::Unary, "--unary"), (!fill, "--no-fill")]
            .iter()
            .filter_map(|(is_set, switch)| is_set.then_some(*switch))
            .collect();
        let options = self.options;
        // A client of KvCluster has a connection to each node: no more sockets than etcd's clients have.
        let sockets = u64::from(connections(options, clients));
        let connections = (sockets / options.nodes as u64).max(1);
        let values = [
            ("--clients", u64::from(clients)),
            ("--connections", connections),
            ("--seconds", seconds),
            ("--warm-up-seconds", 0),
            ("--keys", options.keys),
            ("--value-size", u64::from(options.value_size)),
        ];
        self.kvctl.bench(workload.name(), &switches, &values)
    }
}
