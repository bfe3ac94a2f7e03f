//! `kvctl status`.

use anyhow::Result;
use clap::Args;
use kv_client::admin::{ClusterStatus, NodeState, NodeStatus};
use serde_json::json;

use crate::{
    command::{node, shard},
    context::Context,
    exit::Exit,
    output::{self, Format},
};

/// How the cluster is: nodes, shards, and how many more nodes may fail now.
#[derive(Debug, Args)]
pub struct Status {}

impl Status {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        let status = context.client.cluster_status().await?;
        match context.format {
            Format::Table if status.cluster_id.is_empty() => {
                output::line(&lonely(&context.client.node_status().await?))?;
                return Ok(Exit::Unavailable);
            }
            Format::Table => table(&status)?,
            Format::Json => output::json(&json!({
                "cluster_id": status.cluster_id,
                "map_epoch": status.map_epoch,
                "replication_factor": status.replication_factor,
                "fault_tolerance": status.fault_tolerance,
                "nodes": node::json_of(&status),
                "shards": shard::json_of(&status),
            }))?,
        }
        Ok(Exit::Ok)
    }
}

/// A node that belongs to no cluster has nothing to tell of one, but what it waits for.
fn lonely(status: &NodeStatus) -> String {
    let name = status.node.as_ref().map_or("the node", |info| info.name.as_str());
    let phase = node::phase_name(status.phase());
    let message = if status.message.is_empty() { String::new() } else { format!(": {}", status.message) };
    format!("{name} belongs to no cluster yet ({phase}{message})")
}

fn table(status: &ClusterStatus) -> Result<()> {
    let members = || {
        let infos = status.nodes.iter().filter_map(|node| node.info.as_ref());
        infos.filter(|info| info.state() != NodeState::Removed)
    };
    let answering = status.nodes.iter().filter(|node| node.status.is_some()).count();
    let data: Vec<_> = status.shards.iter().filter(|shard| shard.shard_id != 0).collect();
    let led = data.iter().filter(|shard| shard.leader_node_id != 0).count();
    output::line(&format!("cluster             {}", status.cluster_id))?;
    output::line(&format!("nodes answering     {answering} of {}", members().count()))?;
    output::line(&format!("shards with leader  {led} of {}", data.len()))?;
    output::line(&format!("replication factor  {}", status.replication_factor))?;
    output::line(&format!("map epoch           {}", status.map_epoch))?;
    output::line(&format!("fault tolerance     {}", tolerance(status.fault_tolerance)))?;
    output::line("")?;
    node::table(status)
}

/// The number of further nodes that may fail, in words.
fn tolerance(nodes: i32) -> String {
    match nodes {
        i32::MIN..=-1 => "none: a shard has lost its quorum".to_owned(),
        0 => "0: no further node may fail now".to_owned(),
        1 => "1 more node may fail now".to_owned(),
        nodes => format!("{nodes} more nodes may fail now"),
    }
}

#[cfg(test)]
mod tests {
    use kv_client::admin::{NodeInfo, Phase};

    use super::*;

    #[test]
    fn a_node_without_a_cluster_says_what_it_waits_for() {
        let node = Some(NodeInfo { name: "n1".to_owned(), ..NodeInfo::default() });
        let phase = Phase::Empty.into();
        let status =
            NodeStatus { node, phase, message: "n2 does not answer".to_owned(), ..NodeStatus::default() };
        assert_eq!(lonely(&status), "n1 belongs to no cluster yet (empty: n2 does not answer)");
    }
}
