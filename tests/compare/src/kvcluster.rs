//! kvnodes with their defaults, loaded by `kvctl bench`.

use std::{collections::BTreeMap, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use kv_cluster_tests::{
    Cluster, Plan,
    binary::{self, Binary},
};
use serde::Deserialize;

use crate::{
    Memory, Options, Step, connections, microseconds,
    summary::{Figure, System, Workload},
    usage,
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
    kvctl: PathBuf,
    addresses: String,
    nodes: Vec<u32>,
}

/// Starts a cluster, loads it, and ends it.
pub async fn measure(options: &Options, steps: &[Step]) -> Result<(Vec<Figure>, Memory)> {
    let kvctl = binary::find(Binary::Kvctl).context("kvctl was not built")?;
    let plan = Plan::nodes(options.nodes).with_shards(options.shards);
    let cluster = Cluster::start(plan).await.context("kvnode was not built")?;
    let addresses: Vec<String> = cluster.addresses().iter().map(ToString::to_string).collect();
    let nodes = cluster.nodes.iter().filter_map(kv_cluster_tests::Node::process_id).collect();
    let subject = Subject { options, kvctl, addresses: addresses.join(","), nodes };
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
        let mut command = Command::new(&self.kvctl);
        command.args(["--addr", &self.addresses, "-o", "json", "bench", workload.name()]);
        if system == System::Unary {
            command.arg("--unary");
        }
        if !fill {
            command.arg("--no-fill");
        }
        let options = self.options;
        // A client of KvCluster has a connection to each node: no more sockets than etcd's clients have.
        let sockets = u64::from(connections(options, clients));
        let connections = (sockets / options.nodes as u64).max(1);
        let numbers = [
            ("--clients", u64::from(clients)),
            ("--connections", connections),
            ("--seconds", seconds),
            ("--warm-up-seconds", 0),
            ("--keys", options.keys),
            ("--value-size", u64::from(options.value_size)),
        ];
        for (flag, number) in numbers {
            command.args([flag, &number.to_string()]);
        }
        let output = command.output().context("kvctl bench")?;
        if !output.status.success() {
            bail!("kvctl bench: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).context("what kvctl bench printed")
    }
}
