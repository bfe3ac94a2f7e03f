//! `kvctl cluster`: wishes of the whole cluster.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use kv_client::admin::{Policy as Values, SetPolicyRequest};
use serde_json::{Value as Json, json};

use crate::{
    actor::{self, Because},
    command::node::done,
    context::Context,
    exit::{Exit, usage},
    time,
};

/// Wishes of the whole cluster.
#[derive(Debug, Subcommand)]
pub enum Cluster {
    Policy(Policy),
}

impl Cluster {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        let Self::Policy(policy) = self;
        policy.run(context).await
    }
}

/// Shows what is wished, or changes it; what is not named stays as it is.
#[derive(Debug, Args)]
pub struct Policy {
    /// Replicas of each shard: 1, 3, 5 or 7. Growing takes as many active nodes
    #[arg(long, value_parser = replicas, value_name = "N")]
    replication_factor: Option<u32>,
    /// A node that is silent for longer is lost, and what it holds is rebuilt elsewhere: 10s to 7d
    #[arg(long, value_parser = grace, value_name = "TIME")]
    lost_node_grace: Option<Duration>,
    /// Replicas that move at the same time, in the whole cluster: 1 to 64
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64), value_name = "N")]
    moves_at_once: Option<u32>,
    #[command(flatten)]
    because: Because,
}

fn replicas(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(replicas @ (1 | 3 | 5 | 7)) => Ok(replicas),
        Ok(_) | Err(_) => Err("expected 1, 3, 5 or 7".to_owned()),
    }
}

fn grace(text: &str) -> Result<Duration, String> {
    time::parse_within(text, Duration::from_secs(10), Duration::from_secs(7 * 24 * 3600))
}

impl Policy {
    async fn run(self, context: &Context) -> Result<Exit> {
        let wishes_nothing = self.replication_factor.is_none()
            && self.lost_node_grace.is_none()
            && self.moves_at_once.is_none();
        let values = if !wishes_nothing {
            self.set(context).await?
        } else if self.because.reason.is_empty() {
            let status = context.client.cluster_status().await?;
            let of_cluster = Values { replication_factor: status.replication_factor, ..Values::default() };
            status.policy.unwrap_or(of_cluster)
        } else {
            return Err(usage("--reason is for a change: say what to change"));
        };
        done(context, &text(&values), &document(&values))
    }

    async fn set(self, context: &Context) -> Result<Values> {
        let request = SetPolicyRequest {
            replication_factor: self.replication_factor,
            lost_node_grace_ms: self.lost_node_grace.map(time::ms),
            moves_at_once: self.moves_at_once,
            actor: actor::name(),
            reason: self.because.reason,
        };
        let values = context.client.set_policy(request).await?.policy.unwrap_or_default();
        if self.replication_factor.is_some() {
            eprintln!("the shards follow one after the other: `kvctl shard list` shows how far they are");
        }
        Ok(values)
    }
}

fn text(values: &Values) -> String {
    let shown = |value: u64, text: String| if value == 0 { "?".to_owned() } else { text };
    let grace = shown(values.lost_node_grace_ms, time::exact(values.lost_node_grace_ms));
    let moves = shown(values.moves_at_once.into(), values.moves_at_once.to_string());
    format!(
        "replication factor  {}\nlost node grace     {grace}\nmoves at once       {moves}",
        values.replication_factor
    )
}

/// The same in JSON.
pub fn document(values: &Values) -> Json {
    json!({
        "replication_factor": values.replication_factor,
        "lost_node_grace_ms": values.lost_node_grace_ms,
        "moves_at_once": values.moves_at_once,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_have_bounds() {
        assert_eq!((replicas("1"), replicas("7")), (Ok(1), Ok(7)));
        assert!(["0", "2", "9", "x", ""].iter().all(|text| replicas(text).is_err()));
        assert_eq!(grace("10m"), Ok(Duration::from_secs(600)));
        assert!(["9s", "8d"].iter().all(|text| grace(text).is_err()));
    }
}
