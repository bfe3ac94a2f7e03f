//! How an empty node comes to belong to a cluster: it asks the others, decides, acts, and asks again.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use kv_proto::{
    admin::v1::{
        GetNodeStatusRequest, GetShardMapRequest, JoinRequest, JoinResponse, NodeInfo, NodeStatus, ShardMap,
        admin_client::AdminClient,
    },
    disk::v1::{MetaRecord, ReplicaPlacement, ShardRecord, SlotRange},
};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::Endpoint;

use crate::{
    config::{Config, Formation},
    meta::{
        startup::{self, Answer, Awaited, Decision, Identity, InitialNode, Intent},
        view,
    },
};

/// Between two rounds of questions.
const ASK_EVERY: Duration = Duration::from_millis(300);
/// For one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// For a registration, which is a write of the meta group.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How it ended.
pub enum Formed {
    /// This node shall make a cluster.
    Bootstrap,
    /// A cluster took this node.
    Joined(Box<JoinResponse>),
    /// The node belongs to a cluster already.
    Resume,
    /// A person has to do something.
    Refused(String),
}

/// Asks and decides until this node knows where it belongs. `told` hears what it waits for, each time that changes.
pub async fn form(
    intent: &Intent,
    identity: &Identity,
    own: &NodeInfo,
    mut told: impl FnMut(&Awaited),
) -> Formed {
    let mut waited = None;
    loop {
        let answers = ask_all(&startup::addresses_to_ask(intent), &own.disk_uuid).await;
        match startup::decide(intent, identity, &answers) {
            Decision::Bootstrap => return Formed::Bootstrap,
            Decision::Resume => return Formed::Resume,
            Decision::Refuse(reason) => return Formed::Refused(reason),
            Decision::Join { address } => match join(&address, own).await {
                Ok(joined) => return Formed::Joined(Box::new(joined)),
                Err(status) => {
                    tracing::warn!(address, message = status.message(), "not taken into the cluster yet");
                }
            },
            Decision::Wait(awaited) => {
                if waited.as_ref() != Some(&awaited) {
                    told(&awaited);
                    waited = Some(awaited);
                }
            }
        }
        sleep(ASK_EVERY).await;
    }
}

/// What the node was told, for the decision.
pub fn intent(config: &Config) -> Intent {
    let mut intent = Intent { name: config.node_name.to_string(), ..Intent::default() };
    match &config.formation {
        Formation::Wait => {}
        Formation::InitialNodes(nodes) => {
            let node = |node: &crate::config::InitialNode| InitialNode {
                name: node.name.to_string(),
                address: node.client.to_string(),
            };
            intent.initial_nodes = nodes.iter().map(node).collect();
        }
        Formation::Bootstrap { ask } => {
            intent.bootstrap = true;
            intent.join = ask.iter().map(ToString::to_string).collect();
        }
        Formation::Join(addresses) => intent.join = addresses.iter().map(ToString::to_string).collect(),
    }
    intent
}

/// An address that leads back to this very node says nothing about others: it counts as silent.
async fn ask_all(addresses: &[String], own_disk: &str) -> BTreeMap<String, Answer> {
    let answers = join_all(addresses.iter().map(|address| async move {
        let status = status_of(address, Instant::now() + ANSWER_TIMEOUT).await;
        let other = |status: &NodeStatus| status.node.as_ref().is_none_or(|node| node.disk_uuid != own_disk);
        let answer = status.filter(other).map_or(Answer::Silent, |status| Answer::of(&status));
        (address.clone(), answer)
    }));
    answers.await.into_iter().collect()
}

/// What the node at a client address says of itself; `None` when it does not answer in time.
pub async fn status_of(address: &str, deadline: Instant) -> Option<NodeStatus> {
    let asked = async {
        let mut client = connect(address).await.ok()?;
        Some(client.get_node_status(GetNodeStatusRequest {}).await.ok()?.into_inner())
    };
    timeout_at(deadline, asked).await.ok().flatten()
}

/// The map that the node at a client address knows; `None` when it does not answer in time.
pub async fn map_of(address: &str, deadline: Instant) -> Option<ShardMap> {
    let asked = async {
        let mut client = connect(address).await.ok()?;
        Some(client.get_shard_map(GetShardMapRequest { newer_than_epoch: 0 }).await.ok()?.into_inner())
    };
    timeout_at(deadline, asked).await.ok().flatten()
}

async fn join(address: &str, own: &NodeInfo) -> Result<JoinResponse, tonic::Status> {
    let asked = async {
        let mut client = connect(address).await?;
        let request = JoinRequest { node: Some(own.clone()), cluster_id: String::new() };
        Ok(client.join(request).await?.into_inner())
    };
    timeout_at(Instant::now() + JOIN_TIMEOUT, asked)
        .await
        .unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer in time")))
}

async fn connect(address: &str) -> Result<AdminClient<tonic::transport::Channel>, tonic::Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| tonic::Status::invalid_argument(error.to_string()))?;
    let channel = endpoint.connect().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    Ok(AdminClient::new(channel))
}

/// What a joining node knows of its cluster before it can ask for the whole record: one epoch older than the map it
/// was given, so that the record replaces it.
pub fn first_record(map: &ShardMap) -> MetaRecord {
    let shards = map.shards.iter().map(|shard| ShardRecord {
        shard_id: shard.shard_id,
        group_id: shard.group_id,
        slots: shard.slots.iter().map(|range| SlotRange { first: range.first, last: range.last }).collect(),
        replicas: shard
            .replicas
            .iter()
            .map(|replica| ReplicaPlacement { replica_id: replica.replica_id, node_id: replica.node_id })
            .collect(),
        ..ShardRecord::default()
    });
    MetaRecord {
        cluster_id: map.cluster_id.clone(),
        epoch: map.epoch.saturating_sub(1).max(1),
        nodes: map.nodes.iter().map(view::node_record).collect(),
        shards: shards.collect(),
        ..MetaRecord::default()
    }
}
