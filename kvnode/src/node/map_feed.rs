//! Keeps what this node knows of the cluster fresh.
//!
//! A node with a replica of meta is told by that replica; all others ask one that has the newest map, and so does a node
//! whose replica does not lead: it may have left its group, and hears of nothing any more. They ask soon when a request met a
//! wrong shard, and once a second anyway.

use std::{sync::Arc, time::Duration};

use kv_proto::{
    disk::v1::MetaRecord,
    peer::v1::{ControlRequest, FetchMap, control_request::Request, control_response::Response},
};
use kv_topology::{ClusterMap, NodeId, ShardId};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::{peers::OverTransport, replicas::LocalReplicas};
use crate::{
    meta::registry::{Offered, Registry},
    router::{Maps, Replicas},
};

/// Between two questions, when nobody asks for more.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// For one question.
const ASK_TIMEOUT: Duration = Duration::from_millis(800);

/// The map of this node and where it comes from.
pub struct MapFeed {
    /// What is known.
    pub registry: Arc<Registry>,
    wanted: Notify,
}

impl MapFeed {
    /// A feed of this registry.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry, wanted: Notify::new() }
    }

    /// Takes a record, if it is newer.
    pub fn offer(&self, record: MetaRecord) {
        match self.registry.offer(record) {
            Offered::Taken | Offered::NotNewer => {}
            Offered::OtherCluster => tracing::error!("a node of another cluster offered its map"),
            Offered::Malformed(error) => tracing::error!(%error, "a map that makes no sense was refused"),
        }
    }

    /// Asks for newer maps for ever.
    pub async fn run(self: Arc<Self>, me: NodeId, replicas: Arc<LocalReplicas>, peers: OverTransport) {
        let mut turn = 0;
        loop {
            // The time-out is the tick.
            timeout(ASK_EVERY, self.wanted.notified()).await.ok();
            let view = self.registry.view();
            turn += 1;
            // What this node's own replica of meta says may be over. Every other time, since that node may be gone again.
            if let Some(ahead) = peers.0.ahead().filter(|_| turn % 2 == 1) {
                self.ask(ahead, view.epoch(), &peers).await;
                continue;
            }
            let own = replicas.replica(ShardId::META);
            if own.is_some_and(|meta| meta.control.leader() == Some(me)) {
                continue;
            }
            let asked = whom_to_ask(&view.map, me);
            if asked.is_empty() {
                continue;
            }
            self.ask(asked[turn % asked.len()], view.epoch(), &peers).await;
        }
    }

    async fn ask(&self, node: NodeId, epoch: u64, peers: &OverTransport) {
        let request =
            ControlRequest { request: Some(Request::FetchMap(FetchMap { newer_than_epoch: epoch })) };
        let answer = peers.clone().control(node, request, Instant::now() + ASK_TIMEOUT).await;
        match answer.map(|answer| answer.response) {
            Ok(Some(Response::Map(record))) => self.offer(record),
            Ok(_) => {}
            Err(refused) => tracing::debug!(node = node.get(), reason = refused.reason, "no map from node"),
        }
    }
}

impl Maps for MapFeed {
    fn map(&self) -> Arc<ClusterMap> {
        self.registry.view().map.clone()
    }

    fn meta(&self) -> Arc<MetaRecord> {
        self.registry.view().record.clone()
    }

    fn refresh(&self) {
        self.wanted.notify_one();
    }
}

/// The nodes of the meta group, or all when none is known.
fn whom_to_ask(map: &ClusterMap, me: NodeId) -> Vec<NodeId> {
    let meta = map.shards.get(&ShardId::META);
    let hosts: Vec<NodeId> = meta
        .iter()
        .flat_map(|shard| shard.replicas.iter().map(|placement| placement.node))
        .filter(|node| *node != me)
        .collect();
    if hosts.is_empty() { map.nodes.keys().copied().filter(|node| *node != me).collect() } else { hosts }
}
