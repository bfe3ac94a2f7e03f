//! The replicas that run on this node.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, RwLock},
};

use kv_topology::{GroupId, ReplicaId, ShardId};

use crate::{group::replica::Replica, router::Replicas};

/// Running replicas by shard. A shard has at most one on a node, but for the moment between the loss of one and its
/// replacement: the newer one is found.
#[derive(Default)]
pub struct LocalReplicas {
    running: RwLock<BTreeMap<ShardId, Replica>>,
    failed: RwLock<BTreeMap<ShardId, String>>,
}

impl LocalReplicas {
    /// Makes a started replica known.
    pub fn insert(&self, replica: Replica) {
        self.running.write().unwrap_or_else(PoisonError::into_inner).insert(replica.shard, replica);
    }

    /// Forgets a replica; it must be stopped by the caller.
    pub fn remove(&self, replica: ReplicaId) -> Option<Replica> {
        let mut running = self.running.write().unwrap_or_else(PoisonError::into_inner);
        let shard = running.values().find(|running| running.id == replica)?.shard;
        running.remove(&shard)
    }

    /// Takes a replica that has stopped by itself out of service, for this reason.
    pub fn fail(&self, replica: ReplicaId, reason: String) {
        if let Some(replica) = self.remove(replica) {
            self.failed.write().unwrap_or_else(PoisonError::into_inner).insert(replica.shard, reason);
        }
    }

    /// Shards whose replica here has stopped by itself, and why.
    pub fn failed(&self) -> BTreeMap<ShardId, String> {
        self.failed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The replica of a group.
    pub fn of_group(&self, group: GroupId) -> Option<Replica> {
        self.all().into_iter().find(|replica| replica.group == group)
    }

    /// All of them, by shard.
    pub fn all(&self) -> Vec<Replica> {
        self.running.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl Replicas for LocalReplicas {
    fn replica(&self, shard: ShardId) -> Option<Replica> {
        self.running.read().unwrap_or_else(PoisonError::into_inner).get(&shard).cloned()
    }
}
