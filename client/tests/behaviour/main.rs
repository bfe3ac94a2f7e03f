//! The client against a cluster of pretence.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::cast_possible_truncation,
    clippy::too_many_lines,
    reason = "a test fails by panicking; the cluster of pretence takes messages as they come"
)]

#[path = "../fake/mod.rs"]
mod fake;

mod administration;
mod bulks;
mod closings;
mod readers;
mod retries;
mod scans;
mod sessions;
mod streams;
mod transfers;

use std::time::{Duration, Instant};

use fake::FakeCluster;
use kv_client::{Address, Client, ClientBuilder, Routing};
use rand::{SeedableRng, rngs::SmallRng};
use tokio::task::JoinHandle;

/// A client with a seed of its own and a deadline that a failing test reaches soon.
fn builder(cluster: &FakeCluster) -> ClientBuilder {
    Client::builder(Address::parse_list(&cluster.addresses()).unwrap())
        .timeout(Duration::from_secs(5))
        .rng(SmallRng::seed_from_u64(7))
}

fn client(cluster: &FakeCluster) -> Client {
    builder(cluster).build().unwrap()
}

fn direct(cluster: &FakeCluster) -> Client {
    builder(cluster).routing(Routing::Direct).build().unwrap()
}

/// Watches for a while that nobody gives up.
async fn goes_on<T>(pending: &JoinHandle<T>) {
    let end = Instant::now() + Duration::from_millis(300);
    while Instant::now() < end {
        assert!(!pending.is_finished(), "it has given up");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until something is so.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited until {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
