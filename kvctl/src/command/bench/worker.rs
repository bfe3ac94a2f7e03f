//! One client of a measurement: one call after the other, and what it saw.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use hdrhistogram::Histogram;
use kv_client::{Client, Error, GetOptions, ReadOptions, code_name};
use rand::{RngExt as _, rngs::SmallRng};
use tokio::time::Instant;

use super::{Bench, Workload, key};

/// From 1 µs to the longest deadline, with three digits.
const LONGEST_US: u64 = 60_000_000;
/// What one client saw.
pub struct Tally {
    pub latencies_us: Histogram<u64>,
    pub reads: u64,
    pub writes: u64,
    pub errors: BTreeMap<String, u64>,
}

impl Tally {
    pub fn new() -> Result<Self> {
        let latencies_us = Histogram::new_with_bounds(1, LONGEST_US, 3).context("cannot make a histogram")?;
        Ok(Self { latencies_us, reads: 0, writes: 0, errors: BTreeMap::new() })
    }

    pub fn add(&mut self, other: &Self) -> Result<()> {
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
pub struct Worker {
    pub bench: Arc<Bench>,
    pub client: Client,
    pub value: Bytes,
    pub rng: SmallRng,
    /// Calls that all clients together may still count.
    pub left: Arc<AtomicU64>,
    pub counts_from: Instant,
    pub ends_at: Instant,
}

impl Worker {
    pub async fn run(mut self) -> Result<Tally> {
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

/// The reason, or what comes closest.
fn name_of(error: &Error) -> String {
    match error.failure() {
        Some(failure) => failure.reason.clone().unwrap_or_else(|| code_name(failure.code).to_owned()),
        None => error.to_string(),
    }
}
