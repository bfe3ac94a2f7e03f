//! The store as the services see it: the router, once this node belongs to a cluster.

use std::sync::{Arc, OnceLock};

use kv_proto::{
    disk::v1::{MetaRecord, Operation},
    peer::v1::{Outcome, ReadRequest, ReadResponse, Refusal},
};
use kv_topology::{ClusterMap, ShardId};
use tokio::time::Instant;

use crate::{
    meta::registry::Registry,
    refusal,
    router::{Router, store::Store},
};

/// The store of a node. Refuses everything until the node belongs to a cluster.
pub struct NodeStore {
    registry: Arc<Registry>,
    router: OnceLock<Arc<Router>>,
}

impl NodeStore {
    /// A store that refuses.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry, router: OnceLock::new() }
    }

    /// From now on this router answers.
    pub fn open(&self, router: Arc<Router>) {
        // A second one would be the same node's: the first stays.
        self.router.set(router).ok();
    }

    fn router(&self) -> Result<&Arc<Router>, Refusal> {
        self.router.get().ok_or_else(|| {
            refusal::not_applied(refusal::STARTING, "this node does not belong to a cluster yet")
        })
    }
}

impl Store for NodeStore {
    async fn write(
        &self,
        shard: ShardId,
        operations: Vec<Operation>,
        deadline: Instant,
    ) -> Result<Vec<Outcome>, Refusal> {
        self.router()?.write(shard, operations, deadline).await
    }

    async fn read(&self, request: ReadRequest, deadline: Instant) -> Result<ReadResponse, Refusal> {
        self.router()?.read(request, deadline).await
    }

    fn map(&self) -> Arc<ClusterMap> {
        self.registry.view().map.clone()
    }

    fn meta(&self) -> Arc<MetaRecord> {
        self.registry.view().record.clone()
    }
}
