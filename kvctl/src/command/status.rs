//! `kvctl status`.

use anyhow::Result;
use clap::Args;
use kv_client::admin::{ClusterStatus, Move, NodeState, NodeStatus, Permit};
use serde_json::{Value as Json, json};

use crate::{
    command::{cluster, node, shard},
    context::Context,
    exit::Exit,
    output::{self, Format},
    time,
};

/// How the cluster is: nodes, shards, how many more nodes may fail now, what is being moved, and who may be restarted.
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
                "policy": status.policy.as_ref().map(cluster::document),
                "moves": status.moves.iter().map(move_document).collect::<Vec<_>>(),
                "permits": status.permits.iter().map(permit_document).collect::<Vec<_>>(),
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
    for permit in &status.permits {
        output::line(&format!("permit              {}", permit_words(status, permit)))?;
    }
    output::line(&format!("moves under way     {}", status.moves.len()))?;
    output::line("")?;
    node::table(status)?;
    if !status.moves.is_empty() {
        output::line("")?;
        moves(status)?;
    }
    Ok(())
}

/// Whose permit it is, and for how long; or that its node is waited for.
fn permit_words(status: &ClusterStatus, permit: &Permit) -> String {
    let name = node::name_of(status, permit.node_id);
    let since = time::utc(permit.granted_unix_ms);
    if permit.overdue {
        return format!("{name}, overdue, since {since}: it counts as down until it has caught up");
    }
    format!("{name}, for {} since {since}", time::exact(permit.ttl_ms))
}

/// Which replica takes whose place, why, and how far it is.
fn moves(status: &ClusterStatus) -> Result<()> {
    let row = |moved: &Move| {
        [
            shard::name(moved.shard_id),
            node::name_of(status, moved.from_node_id),
            node::name_of(status, moved.to_node_id),
            moved.reason.clone(),
            moved.lag_entries.map_or("?".to_owned(), |entries| entries.to_string()),
            time::utc(moved.begun_unix_ms),
        ]
    };
    let rows = status.moves.iter().map(row).collect();
    output::table(["SHARD", "FROM", "TO", "WHY", "LAG", "SINCE"], rows)
}

fn move_document(moved: &Move) -> Json {
    json!({
        "shard": moved.shard_id,
        "from_node": moved.from_node_id,
        "to_node": moved.to_node_id,
        "from_replica": moved.from_replica_id,
        "to_replica": moved.to_replica_id,
        "reason": moved.reason,
        "begun_unix_ms": moved.begun_unix_ms,
        "lag_entries": moved.lag_entries,
    })
}

fn permit_document(permit: &Permit) -> Json {
    json!({
        "node": permit.node_id,
        "ttl_ms": permit.ttl_ms,
        "granted_unix_ms": permit.granted_unix_ms,
        "overdue": permit.overdue,
        "outage_shards": permit.outage_shard_ids,
    })
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
