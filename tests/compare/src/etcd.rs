//! etcd with its defaults, loaded by etcd's own benchmark.
//!
//! That one counts calls and not time, so a short run finds the rate, and the counted one is as long as that rate says. Its
//! `range` reads one and the same key. It has no mix of single reads and writes (`txn-mixed` reads ranges of all keys):
//! two of them run at the same time for that, each with half of the clients, and there are no latencies of both together.

use std::{
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use kv_compare::{etcd_cluster::Etcd, usage};

use crate::{
    Memory, Options, Step, connections, microseconds,
    summary::{Figure, System, Workload},
};

/// A cluster that does not answer by then will not.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Calls of the run that finds the rate, for each client.
const PROBE_CALLS_PER_CLIENT: u64 = 40;
const PROBE_CALLS_MIN: u64 = 2_000;
/// The key that is read.
const READ_KEY: &str = "bench/0000000001";

/// A running cluster and what loads it.
struct Subject<'o> {
    options: &'o Options,
    etcd: Etcd,
}

/// What the benchmark prints.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Said {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    errors: u64,
}

/// Starts a cluster, loads it, and ends it.
pub fn measure(options: &Options, steps: &[Step]) -> Result<(Vec<Figure>, Memory)> {
    let etcd = Etcd::start(&options.etcd, options.nodes, START_TIMEOUT)?;
    etcd.fill(options.keys, options.value_size)?;
    let subject = Subject { options, etcd };
    subject.put_read_key()?;
    // One client cannot do two things at a time.
    let steps = steps.iter().filter(|step| step.workload != Workload::Mixed || step.clients > 1);
    let figures = steps.map(|step| subject.figure(*step)).collect::<Result<_>>()?;
    let memory = Memory { system: "etcd", node_bytes: usage::memory(&subject.etcd.processes()) };
    Ok((figures, memory))
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "an estimate"
)]
fn calls_in(per_second: f64, seconds: u64) -> u64 {
    (per_second * seconds as f64).max(1.0) as u64
}

impl Subject<'_> {
    fn put_read_key(&self) -> Result<()> {
        let value = "v".repeat(usize::try_from(self.options.value_size)?);
        let output =
            self.etcd.program("etcdctl").args(["put", READ_KEY, &value]).output().context("etcdctl")?;
        ensure!(output.status.success(), "etcdctl put: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn figure(&self, step: Step) -> Result<Figure> {
        let parts = parts(step);
        let probe = PROBE_CALLS_MIN.max(u64::from(step.clients) * PROBE_CALLS_PER_CLIENT);
        let rates = self.run(&parts, &vec![probe; parts.len()])?;
        let calls: Vec<u64> =
            rates.iter().map(|said| calls_in(said.per_second, self.options.seconds)).collect();
        let before = usage::cpu(&self.etcd.processes()) + usage::cpu_of_children();
        let said = self.run(&parts, &calls)?;
        let cpu = (usage::cpu(&self.etcd.processes()) + usage::cpu_of_children()).saturating_sub(before);
        let lone = match said.as_slice() {
            [lone] => Some(*lone),
            _ => None,
        };
        Ok(Figure {
            system: System::Etcd,
            workload: step.workload,
            clients: step.clients,
            per_second: said.iter().map(|said| said.per_second).sum(),
            p50_ms: lone.map(|said| said.p50_ms),
            p99_ms: lone.map(|said| said.p99_ms),
            cpu_us: microseconds(cpu, calls.iter().sum()),
            errors: said.iter().map(|said| said.errors).sum(),
        })
    }

    /// All parts at the same time.
    fn run(&self, parts: &[Step], calls: &[u64]) -> Result<Vec<Said>> {
        let begun: Result<Vec<Child>> =
            parts.iter().zip(calls).map(|(part, calls)| self.begin(*part, *calls)).collect();
        begun?.into_iter().map(|child| self.wait(child)).collect()
    }

    fn begin(&self, part: Step, calls: u64) -> Result<Child> {
        let mut command = match part.workload {
            Workload::Get => {
                let mut command = self.etcd.program("etcd-benchmark");
                command.args(["range", READ_KEY, "--consistency", "l"]);
                command
            }
            Workload::Put | Workload::Mixed => {
                self.etcd.put_benchmark(self.options.keys, self.options.value_size)
            }
        };
        let connections = connections(self.options, part.clients);
        command.args(["--clients", &part.clients.to_string(), "--conns", &connections.to_string()]);
        command.args(["--precise", "--total", &calls.to_string()]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("etcd-benchmark")
    }

    fn wait(&self, child: Child) -> Result<Said> {
        let output = child.wait_with_output().context("etcd-benchmark")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "etcd-benchmark: {}: {complaint}", output.status);
        Said::read(&said).with_context(|| format!("what etcd-benchmark printed: {said}"))
    }
}

/// What one program does each.
fn parts(step: Step) -> Vec<Step> {
    let half = |workload| Step { workload, clients: step.clients / 2 };
    match step.workload {
        Workload::Put | Workload::Get => vec![step],
        Workload::Mixed => vec![half(Workload::Put), half(Workload::Get)],
    }
}

impl Said {
    fn read(said: &str) -> Result<Self> {
        let number = |before: &str, after: &str| {
            let mut lines = said.lines().map(str::trim);
            let value = lines.find_map(|line| {
                line.strip_prefix(before)?.trim().strip_suffix(after)?.trim().parse::<f64>().ok()
            });
            value.with_context(|| format!("no {before}"))
        };
        let errors = said
            .lines()
            .filter_map(|line| line.trim().strip_prefix('[')?.split_once(']')?.0.parse::<u64>().ok());
        let counted = if said.contains("Error distribution:") { errors.sum() } else { 0 };
        Ok(Self {
            per_second: number("Requests/sec:", "")?,
            p50_ms: number("50% in", "secs.")? * 1000.0,
            p99_ms: number("99% in", "secs.")? * 1000.0,
            errors: counted,
        })
    }
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
        let said = Said::read(SAID).expect("a report");
        assert_eq!(said, Said { per_second: 12345.5, p50_ms: 4.0, p99_ms: 21.0, errors: 0 });
    }

    #[test]
    fn errors_are_counted_and_silence_is_no_figure() {
        let failed = format!("{SAID}\nError distribution:\n  [7]\tdeadline exceeded.\n");
        assert_eq!(Said::read(&failed).expect("a report").errors, 7);
        assert!(Said::read("nothing").is_err());
    }
}
