//! Many shards on nodes that are drained, restarted and killed, one after the other, under a checked load.
//!
//! Each round starts a load, lets one thing happen, waits until the cluster is whole and even again, and judges what the load
//! was told: every history must be linearizable, and nothing acknowledged may be lost. `scripts/soak-load` starts this after
//! its hour of even load.

use std::{
    fmt,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Parser;
use kv_cluster_tests::{Cluster, Load, LoadPlan, Plan, seed, settled};
use kv_compare::{patience::reach, record};
use kv_proto::admin::v1::{ClusterStatus, NodeState};
use serde::Serialize;

/// Longer than a drain of hundreds of replicas takes on two cores.
const ROUND_TIMEOUT: Duration = Duration::from_secs(1_200);
/// Writes before and after each event.
const STEADY_WRITES: u64 = 500;

/// Drains, restarts and kills the nodes of a cluster with many shards.
#[derive(Debug, Parser)]
struct Options {
    /// How long, in minutes; the last round is brought to its end
    #[arg(long, env = "KV_SOAK_MINUTES", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=10_080))]
    minutes: u64,
    /// Nodes
    #[arg(long, default_value_t = 5)]
    nodes: usize,
    /// Shards
    #[arg(long, default_value_t = 200)]
    shards: usize,
    /// Where machine, commit, command and every round are written as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What happens in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Event {
    /// A node is emptied and used again.
    Drain,
    /// A node is restarted with a permit.
    Restart,
    /// A node is killed and started.
    Kill,
}

/// A round that went well.
#[derive(Debug, Serialize)]
struct Round {
    event: Event,
    node: String,
    /// Until the cluster was whole and even again.
    seconds: f64,
    acknowledged_writes: u64,
    /// Replicas that moved.
    moves: u64,
}

impl fmt::Display for Round {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { event, node, seconds, acknowledged_writes, moves } = self;
        write!(
            formatter,
            "{event:?} of {node}: whole and even after {seconds:.0} s, {moves} moves, {acknowledged_writes} writes, sound"
        )
    }
}

/// What is kept of a run.
#[derive(Debug, Serialize)]
struct Measured<'m> {
    rounds: &'m [Round],
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let mut random = seed::generator("kv-soak-moves");
    let plan = Plan::nodes(options.nodes).with_shards(options.shards);
    let mut cluster = Cluster::start(plan).await.context("kvnode was not built")?;
    let begun = Instant::now();
    let mut rounds = Vec::new();
    let events = [Event::Drain, Event::Restart, Event::Kill].into_iter().cycle();
    for (number, event) in events.enumerate() {
        if begun.elapsed() >= Duration::from_secs(options.minutes * 60) {
            break;
        }
        let node = number % cluster.nodes.len();
        // What earlier loads wrote would be values that nobody wrote.
        let plan = LoadPlan { prefix: format!("load-{number}/"), ..LoadPlan::for_minutes() };
        let load = Load::start(plan, cluster.addresses(), &mut random);
        let round = one(&mut cluster, event, node, &load).await?;
        load.finish().await;
        println!("{round}");
        rounds.push(round);
    }
    if let Some(path) = &options.json {
        record::write(path, &Measured { rounds: &rounds })?;
    }
    println!("{} rounds, all sound", rounds.len());
    Ok(())
}

async fn one(cluster: &mut Cluster, event: Event, node: usize, load: &Load) -> Result<Round> {
    let via = (node + 1) % cluster.nodes.len();
    load.must_progress(STEADY_WRITES).await;
    let moves = moves(cluster, via).await?;
    let begun = Instant::now();
    match event {
        Event::Drain => {
            let id = cluster.node_id(node).await;
            cluster.drain(via, node).await;
            reach(cluster, via, "empty node", ROUND_TIMEOUT, |status| is_drained(status, id)).await?;
            cluster.undrain(via, node).await;
        }
        Event::Restart => cluster.restart_with_permit(via, node).await,
        Event::Kill => {
            cluster.nodes[node].kill();
            load.must_progress(STEADY_WRITES).await;
            cluster.nodes[node].start();
        }
    }
    let wanted = cluster.wanted();
    reach(cluster, via, "whole cluster", ROUND_TIMEOUT, |status| settled::is_settled(status, wanted)).await?;
    let seconds = begun.elapsed().as_secs_f64();
    load.must_progress(STEADY_WRITES).await;
    Ok(Round {
        event,
        node: cluster.nodes[node].name.clone(),
        seconds,
        acknowledged_writes: load.acknowledged_writes(),
        moves: self::moves(cluster, via).await? - moves,
    })
}

fn is_drained(status: &ClusterStatus, id: u64) -> Result<(), String> {
    let known = status.nodes.iter().find(|node| settled::id(node) == id);
    let state = known.and_then(|node| node.info.as_ref()).map(|info| info.state());
    if state == Some(NodeState::Drained) {
        return Ok(());
    }
    Err(format!("{state:?}, {} moves under way", status.moves.len()))
}

/// Replica ids that were minted so far, as far as replicas show them: each move mints one.
async fn moves(cluster: &Cluster, via: usize) -> Result<u64> {
    let status = cluster.admin(via).cluster_status().await.context("the status of the cluster")?;
    let ids = status.shards.iter().flat_map(|shard| &shard.replicas).map(|replica| replica.replica_id);
    Ok(ids.max().unwrap_or_default())
}
