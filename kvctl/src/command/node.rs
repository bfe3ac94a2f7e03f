//! `kvctl node`.

use anyhow::Result;
use clap::Subcommand;
use kv_client::admin::{ClusterStatus, DiskLevel, NodeInfo, NodeState, NodeStatus, NodeView, Phase, Role};
use serde_json::{Value as Json, json};

use crate::{
    context::Context,
    exit::Exit,
    output::{self, Format},
    text,
};

/// Nodes.
#[derive(Debug, Subcommand)]
pub enum Node {
    /// Names, addresses, state, what each leads and holds
    #[command(alias = "ls")]
    List,
}

impl Node {
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

/// All nodes in a table, and below it what they say of themselves.
pub fn table(status: &ClusterStatus) -> Result<()> {
    let rows = status.nodes.iter().map(|view| {
        let info = view.info.clone().unwrap_or_default();
        let counts = view.status.as_ref().map(Counts::of);
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "?".to_owned());
        [
            info.node_id.to_string(),
            info.name.clone(),
            state_name(&info).to_owned(),
            health(view),
            or_unknown(counts.as_ref().map(|counts| counts.leaders.to_string())),
            or_unknown(counts.as_ref().map(|counts| counts.replicas.to_string())),
            or_unknown(view.status.as_ref().map(disk)),
            if info.zone.is_empty() { "-".to_owned() } else { info.zone.clone() },
            info.version.clone(),
            info.client_address,
        ]
    });
    let header =
        ["ID", "NAME", "STATE", "HEALTH", "LEADERS", "REPLICAS", "DISK", "ZONE", "VERSION", "ADDRESS"];
    output::table(header, rows.collect())?;
    remarks(status).iter().try_for_each(|remark| output::line(remark))
}

/// What nodes say of themselves that a person should know: what they wait for, what they have lost.
fn remarks(status: &ClusterStatus) -> Vec<String> {
    let remark = |view: &NodeView| {
        let message = &view.status.as_ref()?.message;
        let name = view.info.as_ref().map_or("?", |info| info.name.as_str());
        (!message.is_empty()).then(|| format!("{name}: {message}"))
    };
    status.nodes.iter().filter_map(remark).collect()
}

/// Replicas by role; quarantined ones are counted apart.
#[derive(Default)]
struct Counts {
    leaders: usize,
    replicas: usize,
    quarantined: usize,
}

impl Counts {
    fn of(status: &NodeStatus) -> Self {
        let mut counts = Self { replicas: status.replicas.len(), ..Self::default() };
        for replica in &status.replicas {
            match replica.role() {
                Role::Leader => counts.leaders += 1,
                Role::Quarantined => counts.quarantined += 1,
                Role::Unspecified | Role::Follower | Role::Learner | Role::Candidate | Role::Stopped => {}
            }
        }
        counts
    }
}

/// What the node says of itself, or that it says nothing.
fn health(view: &NodeView) -> String {
    let Some(status) = &view.status else { return "silent".to_owned() };
    let counts = Counts::of(status);
    if counts.quarantined > 0 {
        return format!("{} quarantined", counts.quarantined);
    }
    match (status.ready, status.phase()) {
        (true, _) => match status.disk_level() {
            DiskLevel::DiskEnough => "ready".to_owned(),
            DiskLevel::DiskSoft => "ready, disk nearly full".to_owned(),
            DiskLevel::DiskHard => "ready, disk full".to_owned(),
        },
        (false, Phase::Unspecified | Phase::Running) => "not ready".to_owned(),
        (false, phase) => phase_name(phase).to_owned(),
    }
}

/// What a person reads of a phase.
pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified => "unknown",
        Phase::Empty => "empty",
        Phase::Starting => "starting",
        Phase::Joining => "joining",
        Phase::Running => "running",
        Phase::Stopping => "stopping",
        Phase::Failed => "failed",
    }
}

fn disk(status: &NodeStatus) -> String {
    if status.disk_total_bytes == 0 {
        return text::size(status.disk_used_bytes);
    }
    let percent = u128::from(status.disk_used_bytes) * 100 / u128::from(status.disk_total_bytes);
    format!("{} ({percent} %)", text::size(status.disk_used_bytes))
}

fn state_name(info: &NodeInfo) -> &'static str {
    match info.state() {
        NodeState::Unspecified => "unknown",
        NodeState::Joining => "joining",
        NodeState::Active => "active",
        NodeState::Draining => "draining",
        NodeState::Drained => "drained",
        NodeState::Lost => "lost",
        NodeState::Removed => "removed",
    }
}

/// The name of a node, or its id where the registry does not know it.
pub fn name_of(status: &ClusterStatus, node: u64) -> String {
    let infos = status.nodes.iter().filter_map(|view| view.info.as_ref());
    match infos.into_iter().find(|info| info.node_id == node) {
        Some(info) => info.name.clone(),
        None => format!("#{node}"),
    }
}

/// All nodes.
pub fn json_of(status: &ClusterStatus) -> Json {
    let node = |view: &NodeView| {
        let info = view.info.clone().unwrap_or_default();
        let status = view.status.as_ref().map_or(Json::Null, |status| {
            let counts = Counts::of(status);
            json!({
                "phase": phase_name(status.phase()),
                "ready": status.ready,
                "message": status.message,
                "leaders": counts.leaders,
                "replicas": counts.replicas,
                "quarantined": counts.quarantined,
                "map_epoch": status.map_epoch,
                "disk_used_bytes": status.disk_used_bytes,
                "disk_total_bytes": status.disk_total_bytes,
                "uptime_ms": status.uptime_ms,
            })
        });
        json!({
            "node": info.node_id,
            "name": info.name,
            "state": state_name(&info),
            "zone": info.zone,
            "version": info.version,
            "client_address": info.client_address,
            "peer_address": info.peer_address,
            "status": status,
        })
    };
    status.nodes.iter().map(node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says_of_itself_is_shown_with_its_name() {
        let view = |name: &str, message: Option<&str>| NodeView {
            info: Some(NodeInfo { name: name.to_owned(), ..NodeInfo::default() }),
            status: message
                .map(|message| NodeStatus { message: message.to_owned(), ..NodeStatus::default() }),
        };
        let nodes =
            vec![view("n1", Some("")), view("n2", None), view("n3", Some("all 3 replicas quarantined"))];
        let status = ClusterStatus { nodes, ..ClusterStatus::default() };
        assert_eq!(remarks(&status), ["n3: all 3 replicas quarantined"]);
    }
}
