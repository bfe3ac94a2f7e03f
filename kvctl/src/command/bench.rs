//! `kvctl bench`: throughput and latency of unary calls, as many clients see them.
//!
//! Each client is a task that sends one call after the other. A warm-up comes first and is not counted. Latencies go
//! into a histogram of each client, which are added up at the end; failures are counted by reason and not timed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use kv_client::{Client, Error, GetOptions, ReadOptions, code_name};
use rand::{RngExt as _, SeedableRng, rngs::SmallRng};
use serde_json::{Value as Json, json};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    context::Context,
    exit::{Exit, usage},
    output::{self, Format},
};

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Writes of random keys
    Put,
    /// Reads of random keys, which are written before
    Get,
    /// Both; see --read-percent
    Mixed,
}

/// Measures throughput and latency. Writes keys that begin with `bench/`.
#[derive(Clone, Debug, Args)]
pub struct Bench {
    /// What the clients do
    #[arg(value_enum)]
    workload: Workload,
    /// Clients at the same time, each with one call under way
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Ends after this time
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Ends after this many calls, or after the time, whichever comes first; 0: by time only
    #[arg(long, default_value_t = 0)]
    operations: u64,
    /// Calls before counting begins, in seconds
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=600))]
    warm_up_seconds: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    value_size: u32,
    /// Number of different keys
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    keys: u64,
    /// Share of reads in the mixed workload
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=100))]
    read_percent: u32,
    /// Connections that the clients share
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    connections: u32,
    /// Any replica may answer reads with what it has
    #[arg(long)]
    stale: bool,
    /// Chooses keys; the same seed makes the same calls
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// From 1 µs to the longest deadline, with three digits.
const LONGEST_US: u64 = 60_000_000;
/// Keys written at a time before reads are measured.
const FILL_KEYS: u64 = 1000;

/// What one client saw.
struct Tally {
    latencies_us: Histogram<u64>,
    reads: u64,
    writes: u64,
    errors: BTreeMap<String, u64>,
}

impl Tally {
    fn new() -> Result<Self> {
        let latencies_us = Histogram::new_with_bounds(1, LONGEST_US, 3).context("cannot make a histogram")?;
        Ok(Self { latencies_us, reads: 0, writes: 0, errors: BTreeMap::new() })
    }

    fn add(&mut self, other: &Self) -> Result<()> {
        self.latencies_us.add(&other.latencies_us).context("cannot add up histograms")?;
        self.reads += other.reads;
        self.writes += other.writes;
        for (reason, count) in &other.errors {
            *self.errors.entry(reason.clone()).or_default() += count;
        }
        Ok(())
    }
}

/// What one client needs.
struct Worker {
    bench: Bench,
    client: Client,
    value: Bytes,
    rng: SmallRng,
    /// Calls that all clients together may still count.
    left: Arc<AtomicU64>,
    counts_from: Instant,
    ends_at: Instant,
}

impl Bench {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        if self.stale && self.workload == Workload::Put {
            return Err(usage("--stale is for reads"));
        }
        let clients = self.connect(context)?;
        if self.workload != Workload::Put {
            self.fill(&clients[0]).await?;
        }
        let counts_from = Instant::now() + Duration::from_secs(self.warm_up_seconds);
        let ends_at = counts_from + Duration::from_secs(self.seconds);
        let left = Arc::new(AtomicU64::new(if self.operations == 0 { u64::MAX } else { self.operations }));
        let mut workers = JoinSet::new();
        for number in 0..self.clients {
            let worker = Worker {
                bench: self.clone(),
                client: clients[number as usize % clients.len()].clone(),
                value: self.value(),
                rng: SmallRng::seed_from_u64(self.seed.wrapping_add(number.into())),
                left: left.clone(),
                counts_from,
                ends_at,
            };
            workers.spawn(worker.run());
        }
        let mut total = Tally::new()?;
        while let Some(tally) = workers.join_next().await {
            total.add(&tally.context("a client panicked")??)?;
        }
        let elapsed = Instant::now().saturating_duration_since(counts_from);
        self.tell(context, &total, elapsed)?;
        Ok(if total.latencies_us.is_empty() { Exit::Unavailable } else { Exit::Ok })
    }

    /// Several clients: each has its own connection, and the nodes take turns.
    fn connect(&self, context: &Context) -> Result<Vec<Client>> {
        let connections = 0..self.connections.min(self.clients) as usize;
        connections.map(|number| Ok(context.another_client(number)?)).collect()
    }

    fn value(&self) -> Bytes {
        let mut value = vec![0; self.value_size as usize];
        SmallRng::seed_from_u64(self.seed).fill(&mut value[..]);
        value.into()
    }

    async fn fill(&self, client: &Client) -> Result<()> {
        let value = self.value();
        for first in (0..self.keys).step_by(usize::try_from(FILL_KEYS)?) {
            let keys = first..self.keys.min(first + FILL_KEYS);
            let puts = keys
                .map(|number| kv_client::BulkOperation::put(key(number), value.clone(), Default::default()));
            for outcome in client.bulk_write(puts).await {
                if let kv_client::BulkOutcome::Failed(error) = outcome {
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    fn tell(&self, context: &Context, total: &Tally, elapsed: Duration) -> Result<()> {
        let latency = &total.latencies_us;
        let per_second = throughput(latency.len(), elapsed);
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
                "errors": total.errors,
            })),
            Format::Table => {
                let ms = |quantile: f64| milliseconds(latency.value_at_quantile(quantile));
                let row = [
                    format!("{:?}", self.workload).to_lowercase(),
                    self.clients.to_string(),
                    latency.len().to_string(),
                    format!("{per_second:.0}"),
                    ms(0.5),
                    ms(0.9),
                    ms(0.99),
                    ms(0.999),
                    milliseconds(latency.max()),
                    total.errors.values().sum::<u64>().to_string(),
                ];
                let header = [
                    "WORKLOAD", "CLIENTS", "OPS", "OPS/S", "P50 ms", "P90 ms", "P99 ms", "P99.9 ms",
                    "MAX ms", "ERRORS",
                ];
                output::table(header, vec![row])?;
                for (reason, count) in &total.errors {
                    output::line(&format!("{count} x {reason}"))?;
                }
                Ok(())
            }
        }
    }

    /// Everything that it takes to do it again.
    fn parameters(&self, context: &Context) -> Json {
        json!({
            "workload": format!("{:?}", self.workload).to_lowercase(),
            "addresses": context.client.addresses().iter().map(ToString::to_string).collect::<Vec<_>>(),
            "direct": context.direct,
            "clients": self.clients,
            "connections": self.connections.min(self.clients),
            "seconds": self.seconds,
            "operations": self.operations,
            "warm_up_seconds": self.warm_up_seconds,
            "value_size_bytes": self.value_size,
            "keys": self.keys,
            "read_percent": self.read_percent,
            "stale": self.stale,
            "seed": self.seed,
            "version": env!("CARGO_PKG_VERSION"),
        })
    }
}

impl Worker {
    async fn run(mut self) -> Result<Tally> {
        let mut tally = Tally::new()?;
        while Instant::now() < self.ends_at {
            let number = self.rng.random_range(0..self.bench.keys);
            let reads = match self.bench.workload {
                Workload::Put => false,
                Workload::Get => true,
                Workload::Mixed => self.rng.random_range(0..100) < self.bench.read_percent,
            };
            let begun = Instant::now();
            let counts = begun >= self.counts_from;
            if counts && !self.take() {
                break;
            }
            let result = self.call(number, reads).await;
            if !counts {
                continue;
            }
            match result {
                Ok(()) => {
                    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(LONGEST_US);
                    tally.latencies_us.saturating_record(micros.max(1));
                    if reads { tally.reads += 1 } else { tally.writes += 1 }
                }
                Err(error) => *tally.errors.entry(name_of(&error)).or_default() += 1,
            }
        }
        Ok(tally)
    }

    /// Takes one of the calls that are left.
    fn take(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    async fn call(&self, number: u64, reads: bool) -> Result<(), Error> {
        if reads {
            let read = if self.bench.stale { ReadOptions::STALE } else { ReadOptions::default() };
            let options = GetOptions { read, metadata_only: false };
            return self.client.get_with(key(number), options).await.map(drop);
        }
        self.client.put(key(number), self.value.clone()).await.map(drop)
    }
}

fn key(number: u64) -> String {
    format!("bench/{number:08}")
}

/// The reason, or what comes closest.
fn name_of(error: &Error) -> String {
    match error.failure() {
        Some(failure) => failure.reason.clone().unwrap_or_else(|| code_name(failure.code).to_owned()),
        None => error.to_string(),
    }
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
