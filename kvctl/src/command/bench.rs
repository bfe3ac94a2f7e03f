//! `kvctl bench`: throughput and latency as many clients see them.
//!
//! Each client is a task that makes one operation after the other; many of them share a connection, as the tasks of a
//! program do. Operations travel on streams, or each as a call of its own (`--unary`). A warm-up comes first and is not
//! counted. Latencies go into a histogram of each client, which are added up at the end; failures are counted by reason and
//! not timed. The document of the result is described in [`report`].

mod compare;
mod cpu;
mod reach;
mod report;
mod worker;

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use kv_client::{BulkOperation, BulkOutcome, Client, Routing};
use rand::{RngExt as _, SeedableRng, rngs::SmallRng};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::{
    context::Context,
    exit::{Exit, usage},
};
use compare::{Given, Peer};
use reach::{Way, way};
use report::Report;
use worker::{Tally, Worker};

/// Keys written at a time before reads are measured.
const FILL_KEYS: u64 = 1000;

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
    /// Stands first: what the other fields read is gone then.
    #[command(flatten)]
    given: Given,
    /// What the clients do
    #[arg(value_enum, default_value = "put")]
    workload: Workload,
    /// Measure new clusters of KvCluster and of this system in one run instead, and print one table. Workload, clients, seconds,
    /// keys and value size hold where they are given, other flags are refused; the words after `--` go to kv-compare (`-- --help`)
    #[arg(long, value_enum)]
    compare: Option<Peer>,
    /// For kv-compare
    #[arg(last = true, requires = "compare")]
    words: Vec<std::ffi::OsString>,
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
    /// The keys are there already: reads begin without writing them
    #[arg(long)]
    no_fill: bool,
    /// Any replica may answer reads with what it has
    #[arg(long)]
    stale: bool,
    /// Each operation is a call of its own, instead of many in a message of a stream
    #[arg(long)]
    unary: bool,
    /// Writes are in no session: one whose answer is lost is not sent again
    #[arg(long)]
    no_sessions: bool,
    /// Send everything through the given nodes, also when all nodes can be reached; otherwise the leaders are asked
    #[arg(long, conflicts_with = "direct")]
    through_nodes: bool,
    /// Chooses keys; the same seed makes the same calls
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Bench {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        if let Some(peer) = self.compare {
            return compare::compare(peer, self.given, self.words);
        }
        if self.stale && self.workload == Workload::Put {
            return Err(usage("--stale is for reads"));
        }
        let way = self.way(context).await;
        let clients = self.connect(context, way)?;
        if self.workload != Workload::Put && !self.no_fill {
            self.fill(&clients[0]).await?;
        }
        let counts_from = Instant::now() + Duration::from_secs(self.warm_up_seconds);
        let bench = Arc::new(self);
        let mut workers = bench.clone().start(&clients, counts_from);
        sleep_until(counts_from).await;
        let cpu_before = cpu::time();
        let mut total = Tally::new()?;
        while let Some(tally) = workers.join_next().await {
            total.add(&tally.context("a client panicked")??)?;
        }
        let elapsed = Instant::now().saturating_duration_since(counts_from);
        let cpu = cpu::time().zip(cpu_before).map(|(after, before)| after.saturating_sub(before));
        let found = !total.latencies_us.is_empty();
        Report { bench: &bench, way, total, elapsed, cpu }.tell(context)?;
        for client in clients {
            client.close().await;
        }
        Ok(if found { Exit::Ok } else { Exit::Unavailable })
    }

    async fn way(&self, context: &Context) -> Way {
        if self.through_nodes {
            return Way::ThroughNodes;
        }
        if context.direct { Way::Direct } else { way(&context.client).await }
    }

    fn start(self: Arc<Self>, clients: &[Client], counts_from: Instant) -> JoinSet<Result<Tally>> {
        let left = Arc::new(AtomicU64::new(if self.operations == 0 { u64::MAX } else { self.operations }));
        let value = self.value();
        let mut workers = JoinSet::new();
        for number in 0..self.clients {
            let worker = Worker {
                bench: self.clone(),
                client: clients[number as usize % clients.len()].clone(),
                value: value.clone(),
                rng: SmallRng::seed_from_u64(self.seed.wrapping_add(number.into())),
                left: left.clone(),
                counts_from,
                ends_at: counts_from + Duration::from_secs(self.seconds),
            };
            workers.spawn(worker.run());
        }
        workers
    }

    /// Several clients: each has its own connections, and the nodes take turns.
    fn connect(&self, context: &Context, way: Way) -> Result<Vec<Client>> {
        let routing = match way {
            Way::Direct => Routing::Direct,
            Way::ThroughNodes => Routing::ThroughOneNode,
        };
        let connections = 0..self.connections.min(self.clients) as usize;
        connections
            .map(|number| {
                let builder = context.another_client(number).routing(routing);
                Ok(builder.streams(!self.unary).sessions(!self.no_sessions).build()?)
            })
            .collect()
    }

    /// How operations travel, for people.
    fn words(&self) -> &'static str {
        match (self.unary, self.no_sessions) {
            (false, false) => "streamed, in sessions",
            (false, true) => "streamed, without sessions",
            (true, false) => "unary, in sessions",
            (true, true) => "unary, without sessions",
        }
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
            let puts = keys.map(|number| BulkOperation::put(key(number), value.clone(), Default::default()));
            for outcome in client.bulk_write(puts).await {
                if let BulkOutcome::Failed(error) = outcome {
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }
}

impl Workload {
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

fn key(number: u64) -> String {
    // 16 B, with all numbers that there may be.
    format!("bench/{number:010}")
}
