//! Three kvnodes with their defaults, loaded by `kvctl bench`.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use kv_cluster_tests::{
    Cluster, Plan,
    binary::{self, Binary},
};
use serde::Deserialize;

use crate::{
    Options, connections, plan,
    summary::{Figure, System, Workload},
};

/// As `kvnode --shards` is by default.
const SHARDS: usize = 8;

/// What `kvctl bench -o json` says.
#[derive(Debug, Deserialize)]
struct Report {
    operations_per_second: f64,
    latency_us: Latency,
    errors: std::collections::BTreeMap<String, u64>,
}

#[derive(Debug, Deserialize)]
struct Latency {
    p50: f64,
    p99: f64,
}

/// Starts a cluster, loads it, and ends it.
pub async fn measure(options: &Options) -> Result<Vec<Figure>> {
    let kvctl = binary::find(Binary::Kvctl).context("kvctl was not built")?;
    let cluster = Cluster::start(Plan::nodes(3).with_shards(SHARDS)).await.context("kvnode was not built")?;
    let addresses: Vec<String> = cluster.addresses().iter().map(ToString::to_string).collect();
    plan(options)
        .into_iter()
        .map(|(workload, clients)| run(options, &kvctl, &addresses.join(","), workload, clients))
        .collect()
}

fn run(
    options: &Options,
    kvctl: &PathBuf,
    addresses: &str,
    workload: Workload,
    clients: u32,
) -> Result<Figure> {
    let output = Command::new(kvctl)
        .args(["--addr", addresses, "-o", "json", "bench", workload.name(), "--unary"])
        .args([
            "--clients",
            &clients.to_string(),
            "--connections",
            &connections(options, clients).to_string(),
        ])
        .args(["--seconds", &options.seconds.to_string(), "--warm-up-seconds", "1"])
        .args(["--keys", &options.keys.to_string(), "--value-size", &options.value_size.to_string()])
        .output()
        .context("kvctl bench")?;
    if !output.status.success() {
        bail!("kvctl bench: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let report: Report = serde_json::from_slice(&output.stdout).context("what kvctl bench printed")?;
    ensure!(report.operations_per_second > 0.0, "no call succeeded: {:?}", report.errors);
    Ok(Figure {
        system: System::KvCluster,
        workload,
        clients,
        per_second: report.operations_per_second,
        p50_ms: report.latency_us.p50 / 1000.0,
        p99_ms: report.latency_us.p99 / 1000.0,
        errors: report.errors.values().sum(),
    })
}
