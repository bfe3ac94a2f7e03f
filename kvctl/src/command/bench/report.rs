//! What a measurement found, in a table for people and in JSON for programs.
//!
//! JSON: `parameters` is all that it takes to do it again; `elapsed_ms`; `operations`, `reads` and `writes` that succeeded,
//! and `operations_per_second` of them; `latency_us` of them by quantile; `client_cpu_us_per_operation`, the time that this
//! process has spent on its processors, the kernel's part included, by operation (null where the system does not tell);
//! `errors` by reason.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value as Json, json};

use super::{Bench, reach::Way, worker::Tally};
use crate::{
    context::Context,
    output::{self, Format},
};

/// What was measured.
pub struct Report<'r> {
    pub bench: &'r Bench,
    pub way: Way,
    pub total: Tally,
    pub elapsed: Duration,
    /// Of this process, meanwhile.
    pub cpu: Option<Duration>,
}

impl Report<'_> {
    /// Prints it.
    pub fn tell(&self, context: &Context) -> Result<()> {
        let Self { total, elapsed, .. } = self;
        let latency = &total.latencies_us;
        let cpu_us = self.cpu.and_then(|cpu| per_operation(cpu, latency.len()));
        let per_second = throughput(latency.len(), *elapsed);
        match context.format {
            Format::Json => output::json(&json!({
                "parameters": self.parameters(context),
                "elapsed_ms": u64::try_from(elapsed.as_millis())?,
                "operations": latency.len(),
                "reads": total.reads,
                "writes": total.writes,
                "operations_per_second": per_second,
                "latency_us": {
                    "p50": latency.value_at_quantile(0.5),
                    "p90": latency.value_at_quantile(0.9),
                    "p99": latency.value_at_quantile(0.99),
                    "p99.9": latency.value_at_quantile(0.999),
                    "max": latency.max(),
                },
                "client_cpu_us_per_operation": cpu_us,
                "errors": total.errors,
            })),
            Format::Table => {
                let ms = |quantile: f64| milliseconds(latency.value_at_quantile(quantile));
                let row = [
                    self.bench.workload.name(),
                    self.bench.clients.to_string(),
                    latency.len().to_string(),
                    format!("{per_second:.0}"),
                    ms(0.5),
                    ms(0.9),
                    ms(0.99),
                    ms(0.999),
                    milliseconds(latency.max()),
                    cpu_us.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.1}")),
                    total.errors.values().sum::<u64>().to_string(),
                ];
                let header = [
                    "WORKLOAD",
                    "CLIENTS",
                    "OPS",
                    "OPS/S",
                    "P50 ms",
                    "P90 ms",
                    "P99 ms",
                    "P99.9 ms",
                    "MAX ms",
                    "CPU us/OP",
                    "ERRORS",
                ];
                output::table(header, vec![row])?;
                output::line(&format!("{}, {}", self.way.words(), self.bench.words()))?;
                for (reason, count) in &total.errors {
                    output::line(&format!("{count} x {reason}"))?;
                }
                Ok(())
            }
        }
    }

    /// Everything that it takes to do it again.
    fn parameters(&self, context: &Context) -> Json {
        let bench = self.bench;
        json!({
            "workload": bench.workload.name(),
            "addresses": context.client.addresses().iter().map(ToString::to_string).collect::<Vec<_>>(),
            "direct": self.way == Way::Direct,
            "streamed": !bench.unary,
            "sessions": !bench.no_sessions,
            "clients": bench.clients,
            "connections": bench.connections.min(bench.clients),
            "seconds": bench.seconds,
            "operations": bench.operations,
            "warm_up_seconds": bench.warm_up_seconds,
            "value_size_bytes": bench.value_size,
            "keys": bench.keys,
            "read_percent": bench.read_percent,
            "stale": bench.stale,
            "seed": bench.seed,
            "version": env!("CARGO_PKG_VERSION"),
        })
    }
}

/// In microseconds.
#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
fn per_operation(cpu: Duration, operations: u64) -> Option<f64> {
    (operations > 0).then(|| cpu.as_secs_f64() * 1e6 / operations as f64)
}

#[allow(clippy::cast_precision_loss, reason = "a rate for people")]
fn throughput(operations: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 { operations as f64 / seconds } else { 0.0 }
}

#[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
fn milliseconds(micros: u64) -> String {
    format!("{:.2}", micros as f64 / 1000.0)
}
