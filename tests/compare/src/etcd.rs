//! Three etcd with their defaults, loaded by etcd's own benchmark.
//!
//! That one counts calls and not time, so a short run finds the rate, and the counted one is as long as that rate
//! says. Its `range` reads one and the same key, which is therefore written first. It has no mix of reads and writes of
//! single keys (`txn-mixed` reads ranges of all keys), so that row stays empty for etcd.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use kv_cluster_tests::process::Process;
use tempfile::TempDir;

use crate::{
    Options, connections, plan,
    summary::{Figure, System, Workload},
};

/// A cluster that does not answer by then will not.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const START_POLL: Duration = Duration::from_millis(100);
/// Calls of the run that finds the rate, for each client.
const PROBE_CALLS_PER_CLIENT: u32 = 40;
const PROBE_CALLS_MIN: u32 = 2_000;
/// The key that is read.
const READ_KEY: &str = "bench/00000001";
/// Bytes of a key, as `kvctl bench` has them.
const KEY_SIZE: usize = READ_KEY.len();

/// Three etcd. Dropping it ends them and removes their data.
struct Etcd<'a> {
    programs: &'a Path,
    endpoints: String,
    // In this order: the folder goes after the processes.
    _nodes: Vec<Process>,
    _folder: TempDir,
}

/// Starts a cluster, loads it, and ends it.
pub fn measure(options: &Options) -> Result<Vec<Figure>> {
    let etcd = Etcd::start(&options.etcd)?;
    etcd.put_read_key(options.value_size)?;
    plan(options)
        .into_iter()
        .filter(|(workload, _)| *workload != Workload::Mixed)
        .map(|(workload, clients)| {
            let probe =
                etcd.run(options, workload, clients, PROBE_CALLS_MIN.max(clients * PROBE_CALLS_PER_CLIENT))?;
            let calls = calls_in(probe.per_second, options.seconds);
            etcd.run(options, workload, clients, calls)
        })
        .collect()
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "an estimate"
)]
fn calls_in(per_second: f64, seconds: u64) -> u32 {
    (per_second * seconds as f64).max(1.0) as u32
}

impl<'a> Etcd<'a> {
    fn start(programs: &'a Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("etcd-compare-").tempdir()?;
        let names = ["e1", "e2", "e3"];
        let ports = free_ports(names.len() * 2)?;
        let url = |port: &u16| format!("http://127.0.0.1:{port}");
        let (clients, peers) = ports.split_at(names.len());
        let members: Vec<String> =
            names.iter().zip(peers).map(|(name, port)| format!("{name}={}", url(port))).collect();
        let mut nodes = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let mut command = Command::new(programs.join("etcd"));
            command.args(["--name", name, "--log-level", "warn", "--initial-cluster", &members.join(",")]);
            command.arg("--data-dir").arg(folder.path().join(name));
            for flag in ["--listen-client-urls", "--advertise-client-urls"] {
                command.args([flag, &url(&clients[index])]);
            }
            for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
                command.args([flag, &url(&peers[index])]);
            }
            nodes.push(Process::start(command, &folder.path().join(format!("{name}.log")))?);
        }
        let endpoints = clients.iter().map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>().join(",");
        let etcd = Self { programs, endpoints, _nodes: nodes, _folder: folder };
        etcd.wait_healthy()?;
        Ok(etcd)
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.args(["--endpoints", &self.endpoints]);
        command
    }

    fn wait_healthy(&self) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let output = self.program("etcdctl").args(["endpoint", "health"]).output().context("etcdctl")?;
            if output.status.success() {
                return Ok(());
            }
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(Instant::now() < deadline, "etcd is not healthy after {START_TIMEOUT:?}: {said}");
            thread::sleep(START_POLL);
        }
    }

    fn put_read_key(&self, value_size: u32) -> Result<()> {
        let value = "v".repeat(usize::try_from(value_size)?);
        let output = self.program("etcdctl").args(["put", READ_KEY, &value]).output().context("etcdctl")?;
        ensure!(output.status.success(), "etcdctl put: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn run(&self, options: &Options, workload: Workload, clients: u32, calls: u32) -> Result<Figure> {
        let mut command = self.program("etcd-benchmark");
        let connections = connections(options, clients);
        command.args(["--clients", &clients.to_string(), "--conns", &connections.to_string()]);
        command.arg("--precise");
        let (keys, value) = (options.keys.to_string(), options.value_size.to_string());
        let key = KEY_SIZE.to_string();
        let writes = ["--key-space-size", &keys, "--key-size", &key, "--val-size", &value];
        match workload {
            Workload::Put => command.arg("put").args(writes),
            Workload::Get => command.args(["range", READ_KEY, "--consistency", "l"]),
            Workload::Mixed => bail!("etcd's benchmark has no such load"),
        };
        let output = command.args(["--total", &calls.to_string()]).output().context("etcd-benchmark")?;
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("etcd-benchmark: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        figure(&said, workload, clients).with_context(|| format!("what etcd-benchmark printed: {said}"))
    }
}

/// Reads what the benchmark prints.
fn figure(said: &str, workload: Workload, clients: u32) -> Result<Figure> {
    let number = |before: &str, after: &str| {
        let mut lines = said.lines().map(str::trim);
        let value = lines.find_map(|line| {
            line.strip_prefix(before)?.trim().strip_suffix(after)?.trim().parse::<f64>().ok()
        });
        value.with_context(|| format!("no {before}"))
    };
    let errors =
        said.lines().filter_map(|line| line.trim().strip_prefix('[')?.split_once(']')?.0.parse::<u64>().ok());
    let counted = if said.contains("Error distribution:") { errors.sum() } else { 0 };
    Ok(Figure {
        system: System::Etcd,
        workload,
        clients,
        per_second: number("Requests/sec:", "")?,
        p50_ms: number("50% in", "secs.")? * 1000.0,
        p99_ms: number("99% in", "secs.")? * 1000.0,
        errors: counted,
    })
}

fn free_ports(count: usize) -> Result<Vec<u16>> {
    // All at once, so that none is given out twice.
    let listeners: Result<Vec<_>, _> =
        (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect();
    Ok(listeners?
        .iter()
        .map(TcpListener::local_addr)
        .map(|at| at.map(|at| at.port()))
        .collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "
Summary:
  Total:\t2.0000 secs.
  Slowest:\t0.0300 secs.
  Requests/sec:\t12345.5000
Latency distribution:
  50% in 0.0040 secs.
  99% in 0.0210 secs.
  99.9% in 0.0300 secs.
";

    #[test]
    fn what_the_benchmark_prints_is_read() {
        let figure = figure(SAID, Workload::Put, 64).expect("a report");
        assert_eq!((figure.per_second, figure.p50_ms, figure.p99_ms, figure.errors), (12345.5, 4.0, 21.0, 0));
    }

    #[test]
    fn errors_are_counted_and_silence_is_no_figure() {
        let failed = format!("{SAID}\nError distribution:\n  [7]\tdeadline exceeded.\n");
        assert_eq!(figure(&failed, Workload::Put, 64).expect("a report").errors, 7);
        assert!(figure("nothing", Workload::Put, 64).is_err());
    }
}
