//! `kvctl shard`.

use anyhow::Result;
use clap::{Args, Subcommand};
use kv_client::admin::{ClusterStatus, ShardStatus, TransferLeaderRequest};
use serde_json::{Value as Json, json};

use crate::{
    actor::{self, Because},
    command::node::{done, name_of},
    context::Context,
    exit::Exit,
    named::met,
    output::{self, Format},
};

/// Shards.
#[derive(Debug, Subcommand)]
pub enum Shard {
    /// Who leads and holds which slots, how far the slowest voter lags, and how many more nodes may fail
    #[command(alias = "ls")]
    List,
    Transfer(Transfer),
}

impl Shard {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        match self {
            Self::List => list(context).await,
            Self::Transfer(transfer) => transfer.run(context).await,
        }
    }
}

/// Lets another replica of a shard lead. Refused when there is none on that node that is alive and has caught up.
///
/// It goes on leading there, also after restarts, until the leadership is transferred again, the node drains, is lost or has
/// no voter of the shard any more, or another node joins or is undrained: then all leaders are spread evenly anew.
#[derive(Debug, Args)]
pub struct Transfer {
    /// The shard, by number; `meta` or 0: the meta group
    #[arg(value_parser = parse)]
    shard: u32,
    /// The node that is to lead, by name or id
    #[arg(long, value_name = "NODE")]
    to: String,
    #[command(flatten)]
    because: Because,
}

impl Transfer {
    async fn run(self, context: &Context) -> Result<Exit> {
        let request = TransferLeaderRequest {
            shard_id: self.shard,
            to_node: self.to.clone(),
            actor: actor::name(),
            reason: self.because.reason,
        };
        let reply = context.client.transfer_leader(request).await?;
        let text = format!("{} leads {}", met(&self.to, reply.leader_node_id), title(self.shard));
        done(context, &text, &json!({ "shard": self.shard, "leader_node": reply.leader_node_id }))
    }
}

/// Reads the number of a shard, or `meta`.
pub fn parse(text: &str) -> Result<u32, String> {
    match text {
        "meta" => Ok(0),
        number => number.parse().map_err(|_| "expected the number of a shard, or meta".to_owned()),
    }
}

/// A shard in a sentence.
fn title(shard: u32) -> String {
    if shard == 0 { "meta".to_owned() } else { format!("shard {shard}") }
}

async fn list(context: &Context) -> Result<Exit> {
    let status = context.client.cluster_status().await?;
    match context.format {
        Format::Table => table(&status)?,
        Format::Json => output::json(&json_of(&status))?,
    }
    Ok(Exit::Ok)
}

fn table(status: &ClusterStatus) -> Result<()> {
    let rows = status.shards.iter().map(|shard| {
        let leader = match shard.leader_node_id {
            0 => "none".to_owned(),
            node => name_of(status, node),
        };
        [
            name(shard.shard_id),
            leader,
            replicas(status, shard),
            slots(shard),
            shard.max_lag_entries.to_string(),
            if shard.shard_id == 0 { "-".to_owned() } else { shard.revision.to_string() },
            if shard.fault_tolerance < 0 { "none".to_owned() } else { shard.fault_tolerance.to_string() },
        ]
    });
    let header = ["SHARD", "LEADER", "REPLICAS", "SLOTS", "LAG", "REVISION", "TOLERANCE"];
    output::table(header, rows.collect())
}

/// A shard in a table.
pub fn name(shard: u32) -> String {
    if shard == 0 { "meta".to_owned() } else { shard.to_string() }
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
            "fault_tolerance": shard.fault_tolerance,
        })
    };
    status.shards.iter().map(shard).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_is_a_shard_with_a_name() {
        assert_eq!((parse("meta"), parse("0"), parse("17")), (Ok(0), Ok(0), Ok(17)));
        assert!(parse("n1").is_err() && parse("-1").is_err());
    }
}
