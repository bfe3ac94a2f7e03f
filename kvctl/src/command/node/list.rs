//! `kvctl node list`.

use anyhow::Result;
use kv_client::admin::{ClusterStatus, DiskLevel, NodeInfo, NodeState, NodeStatus, NodeView, Phase, Role};
use serde_json::{Value as Json, json};

use super::{empty::Left, phase_name, state_name};
use crate::{
    context::Context,
    exit::Exit,
    output::{self, Format},
    text, time,
};

/// Runs to the end.
pub async fn run(context: &Context) -> Result<Exit> {
    let status = context.client.cluster_status().await?;
    match context.format {
        Format::Table => table(&status)?,
        Format::Json => output::json(&json_of(&status))?,
    }
    Ok(Exit::Ok)
}

/// All nodes in a table, and below it what a person should know of them.
pub fn table(status: &ClusterStatus) -> Result<()> {
    let rows = status.nodes.iter().map(|view| {
        let info = view.info.clone().unwrap_or_default();
        let counts = view.status.as_ref().map(Counts::of);
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "?".to_owned());
        [
            info.node_id.to_string(),
            info.name.clone(),
            info.client_address.clone(),
            if info.zone.is_empty() { "-".to_owned() } else { info.zone.clone() },
            state_name(info.state()).to_owned(),
            info.version.clone(),
            or_unknown(counts.as_ref().map(|counts| counts.replicas.to_string())),
            or_unknown(counts.as_ref().map(|counts| counts.leaders.to_string())),
            or_unknown(lag_words(status, info.node_id)),
            or_unknown(view.status.as_ref().map(disk)),
            health(view),
        ]
    });
    let header =
        ["ID", "NAME", "ADDRESS", "ZONE", "STATE", "VERSION", "REPLICAS", "LEADERS", "LAG", "DISK", "HEALTH"];
    output::table(header, rows.collect())?;
    remarks(status).iter().try_for_each(|remark| output::line(remark))
}

/// Why nodes are not active, and what nodes say of themselves that a person should know: what they wait for, what they have
/// lost.
fn remarks(status: &ClusterStatus) -> Vec<String> {
    let views = status.nodes.iter();
    let infos = views.clone().filter_map(|view| view.info.as_ref());
    let of_states = infos.filter_map(|info| of_state(status, info));
    let said = views.filter_map(|view| {
        let message = &view.status.as_ref()?.message;
        let name = view.info.as_ref().map_or("?", |info| info.name.as_str());
        (!message.is_empty()).then(|| format!("{name}: {message}"))
    });
    of_states.chain(said).collect()
}

/// Why a node is in its state, unless it is active as all should be.
fn of_state(status: &ClusterStatus, info: &NodeInfo) -> Option<String> {
    let left = match info.state() {
        NodeState::Active => return None,
        NodeState::Draining | NodeState::Lost => {
            format!(", {} left", Left::of(status, info.node_id).words())
        }
        NodeState::Unspecified | NodeState::Joining | NodeState::Drained | NodeState::Removed => {
            String::new()
        }
    };
    let since = match info.state_since_unix_ms {
        0 => String::new(),
        unix_ms => format!(" since {}", time::utc(unix_ms)),
    };
    let reason = match info.state_reason.as_str() {
        "" => String::new(),
        reason => format!(": {}", text::show(reason.as_bytes())),
    };
    Some(format!("{}: {}{since}{left}{reason}", info.name, state_name(info.state())))
}

/// Entries that the node lacks of the shard that it is furthest behind in, say the leaders; `None`: none of them says.
fn lag(status: &ClusterStatus, node: u64) -> Option<u64> {
    let reports = status.nodes.iter().filter_map(|view| Some((view.info.as_ref()?, view.status.as_ref()?)));
    let led = reports.flat_map(|(info, report)| report.replicas.iter().map(move |replica| (info, replica)));
    led.filter(|(_, replica)| replica.role() == Role::Leader)
        .filter_map(|(info, replica)| {
            if info.node_id == node {
                return Some(0);
            }
            replica.lags.iter().find(|lag| lag.node_id == node).map(|lag| lag.entries)
        })
        .max()
}

/// The same for a table; a node without replicas has nothing that could lag.
fn lag_words(status: &ClusterStatus, node: u64) -> Option<String> {
    let is_empty = || Left::of(status, node).replicas == 0;
    lag(status, node).map(|entries| entries.to_string()).or_else(|| is_empty().then(|| "-".to_owned()))
}

/// Replicas by role; quarantined ones are counted apart.
#[derive(Default)]
struct Counts {
    leaders: usize,
    replicas: usize,
    quarantined: usize,
    state_bytes: u64,
}

impl Counts {
    fn of(status: &NodeStatus) -> Self {
        let mut counts = Self { replicas: status.replicas.len(), ..Self::default() };
        for replica in &status.replicas {
            counts.state_bytes += replica.state_bytes;
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

fn disk(status: &NodeStatus) -> String {
    if status.disk_total_bytes == 0 {
        return text::size(status.disk_used_bytes);
    }
    let percent = u128::from(status.disk_used_bytes) * 100 / u128::from(status.disk_total_bytes);
    format!("{} ({percent} %)", text::size(status.disk_used_bytes))
}

/// All nodes.
pub fn json_of(status: &ClusterStatus) -> Json {
    let node = |view: &NodeView| {
        let info = view.info.clone().unwrap_or_default();
        let said = view.status.as_ref().map_or(Json::Null, |status| {
            let counts = Counts::of(status);
            json!({
                "phase": phase_name(status.phase()),
                "ready": status.ready,
                "message": status.message,
                "leaders": counts.leaders,
                "replicas": counts.replicas,
                "quarantined": counts.quarantined,
                "state_bytes": counts.state_bytes,
                "map_epoch": status.map_epoch,
                "disk_used_bytes": status.disk_used_bytes,
                "disk_total_bytes": status.disk_total_bytes,
                "uptime_ms": status.uptime_ms,
            })
        });
        json!({
            "node": info.node_id,
            "name": info.name,
            "state": state_name(info.state()),
            "state_reason": info.state_reason,
            "state_since_unix_ms": info.state_since_unix_ms,
            "zone": info.zone,
            "zone_labelled": info.zone_labelled,
            "version": info.version,
            "client_address": info.client_address,
            "peer_address": info.peer_address,
            "lag_entries": lag(status, info.node_id),
            "health": health(view),
            "status": said,
        })
    };
    status.nodes.iter().map(node).collect()
}

#[cfg(test)]
mod tests {
    use kv_client::admin::{ReplicaLag, ReplicaPlacement, ReplicaStatus, ShardStatus};

    use super::*;

    fn view(name: &str, message: Option<&str>) -> NodeView {
        NodeView {
            info: Some(NodeInfo {
                name: name.to_owned(),
                state: NodeState::Active.into(),
                ..NodeInfo::default()
            }),
            status: message
                .map(|message| NodeStatus { message: message.to_owned(), ..NodeStatus::default() }),
        }
    }

    #[test]
    fn what_a_node_says_of_itself_is_shown_with_its_name() {
        let nodes =
            vec![view("n1", Some("")), view("n2", None), view("n3", Some("all 3 replicas quarantined"))];
        let status = ClusterStatus { nodes, ..ClusterStatus::default() };
        assert_eq!(remarks(&status), ["n3: all 3 replicas quarantined"]);
    }

    #[test]
    fn a_node_that_is_not_active_is_shown_with_the_reason() {
        let mut node = view("n3", None);
        let info = node.info.as_mut().unwrap();
        info.set_state(NodeState::Drained);
        (info.state_reason, info.state_since_unix_ms) = ("new\ndisk".to_owned(), 951_782_399_000);
        let status = ClusterStatus { nodes: vec![node], ..ClusterStatus::default() };
        assert_eq!(remarks(&status), ["n3: drained since 2000-02-28 23:59:59Z: new\\ndisk"]);
    }

    #[test]
    fn the_lag_of_a_node_is_the_greatest_that_a_leader_tells() {
        let led = |entries: &[(u64, u64)]| ReplicaStatus {
            role: Role::Leader.into(),
            lags: entries
                .iter()
                .map(|&(node_id, entries)| ReplicaLag { node_id, entries, ..ReplicaLag::default() })
                .collect(),
            ..ReplicaStatus::default()
        };
        let report = |node_id, replicas| NodeView {
            info: Some(NodeInfo { node_id, ..NodeInfo::default() }),
            status: Some(NodeStatus { replicas, ..NodeStatus::default() }),
        };
        let nodes = vec![report(1, vec![led(&[(2, 7), (3, 0)])]), report(2, vec![led(&[(1, 2), (3, 9)])])];
        let status = ClusterStatus { nodes, ..ClusterStatus::default() };
        assert_eq!([1, 2, 3, 4].map(|node| lag(&status, node)), [Some(2), Some(7), Some(9), None]);
    }

    #[test]
    fn a_node_without_replicas_lags_nowhere_and_of_others_nobody_may_know() {
        let placed = ReplicaPlacement { node_id: 1, ..ReplicaPlacement::default() };
        let shards = vec![ShardStatus { replicas: vec![placed], ..ShardStatus::default() }];
        let status = ClusterStatus { shards, ..ClusterStatus::default() };
        assert_eq!([1, 2].map(|node| lag_words(&status, node)), [None, Some("-".to_owned())]);
    }
}
