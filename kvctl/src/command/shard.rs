//! `kvctl shard`.

use anyhow::Result;
use clap::Subcommand;
use kv_client::admin::{ClusterStatus, ShardStatus};
use serde_json::{Value as Json, json};

use crate::{
    command::node::name_of,
    context::Context,
    exit::Exit,
    output::{self, Format},
};

/// Shards.
#[derive(Debug, Subcommand)]
pub enum Shard {
    /// Who leads and holds which slots, and how far the slowest voter lags
    #[command(alias = "ls")]
    List,
}

impl Shard {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        let Self::List = self;
        let status = context.client.cluster_status().await?;
        match context.format {
            Format::Table => table(&status)?,
            Format::Json => output::json(&json_of(&status))?,
        }
        Ok(Exit::Ok)
    }
}

fn table(status: &ClusterStatus) -> Result<()> {
    let rows = status.shards.iter().map(|shard| {
        let leader = match shard.leader_node_id {
            0 => "none".to_owned(),
            node => name_of(status, node),
        };
        [
            name(shard),
            leader,
            replicas(status, shard),
            slots(shard),
            shard.max_lag_entries.to_string(),
            if shard.shard_id == 0 { "-".to_owned() } else { shard.revision.to_string() },
        ]
    });
    output::table(["SHARD", "LEADER", "REPLICAS", "SLOTS", "LAG", "REVISION"], rows.collect())
}

fn name(shard: &ShardStatus) -> String {
    if shard.shard_id == 0 { "meta".to_owned() } else { shard.shard_id.to_string() }
}

/// Nodes with a replica; learners in brackets.
fn replicas(status: &ClusterStatus, shard: &ShardStatus) -> String {
    let names: Vec<String> = shard
        .replicas
        .iter()
        .map(|replica| match replica.voter {
            true => name_of(status, replica.node_id),
            false => format!("({})", name_of(status, replica.node_id)),
        })
        .collect();
    names.join(" ")
}

fn slots(shard: &ShardStatus) -> String {
    if shard.slots.is_empty() {
        return "-".to_owned();
    }
    let ranges: Vec<String> =
        shard.slots.iter().map(|range| format!("{}-{}", range.first, range.last)).collect();
    ranges.join(",")
}

/// All shards.
pub fn json_of(status: &ClusterStatus) -> Json {
    let shard = |shard: &ShardStatus| {
        let slots = shard.slots.iter().map(|range| json!([range.first, range.last]));
        let replicas = shard.replicas.iter().map(|replica| {
            json!({ "replica": replica.replica_id, "node": replica.node_id, "voter": replica.voter })
        });
        json!({
            "shard": shard.shard_id,
            "group": shard.group_id,
            "leader_node": (shard.leader_node_id != 0).then_some(shard.leader_node_id),
            "replicas": replicas.collect::<Vec<_>>(),
            "slots": slots.collect::<Vec<_>>(),
            "max_lag_entries": shard.max_lag_entries,
            "revision": shard.revision,
        })
    };
    status.shards.iter().map(shard).collect()
}
