//! The replicas that run on this node.

use std::{
    collections::BTreeMap,
    sync::{
        PoisonError, RwLock, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use kv_topology::{GroupId, ReplicaId, ShardId};

use crate::{group::replica::Replica, router::Replicas};

/// Running replicas by shard. A shard has at most one on a node, but for the moment between the loss of one and its
/// replacement: the newer one is found.
#[derive(Default)]
pub struct LocalReplicas {
    running: RwLock<BTreeMap<ShardId, Replica>>,
    failed: RwLock<BTreeMap<ReplicaId, Failed>>,
    /// Why the replica of a shard was quarantined, until another one takes its place.
    quarantined: RwLock<BTreeMap<ShardId, String>>,
    leaving: AtomicBool,
}

/// A replica that belongs here and does not run. It is tried again at the next start of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The shard that it is a copy of.
    pub shard: ShardId,
    /// Its Raft group.
    pub group: GroupId,
    /// Its own id.
    pub id: ReplicaId,
    /// What stopped it, or kept it from starting.
    pub reason: String,
}

impl LocalReplicas {
    /// Makes a started replica known.
    pub fn insert(&self, replica: Replica) {
        self.failed().remove(&replica.id);
        self.quarantined.write().unwrap_or_else(PoisonError::into_inner).remove(&replica.shard);
        self.running.write().unwrap_or_else(PoisonError::into_inner).insert(replica.shard, replica);
    }

    /// Forgets a replica; it must be stopped by the caller.
    pub fn remove(&self, replica: ReplicaId) -> Option<Replica> {
        let mut running = self.running.write().unwrap_or_else(PoisonError::into_inner);
        let shard = running.values().find(|running| running.id == replica)?.shard;
        running.remove(&shard)
    }

    /// Notes that a replica has stopped by itself or did not start, and takes it out of service.
    pub fn fail(&self, failed: Failed) {
        self.remove(failed.id);
        self.failed().insert(failed.id, failed);
    }

    /// Notes that the replica of a shard is quarantined, and takes it out of service; it must be stopped by the caller.
    pub fn quarantine(&self, shard: ShardId, replica: ReplicaId, reason: String) -> Option<Replica> {
        self.failed().remove(&replica);
        self.quarantined.write().unwrap_or_else(PoisonError::into_inner).insert(shard, reason);
        self.remove(replica)
    }

    /// Forgets that a replica has failed: something else is known of it now.
    pub fn forget_failure(&self, replica: ReplicaId) {
        self.failed().remove(&replica);
    }

    /// Replicas that have stopped by themselves or did not start, by id.
    pub fn all_failed(&self) -> Vec<Failed> {
        self.failed().values().cloned().collect()
    }

    fn failed(&self) -> RwLockWriteGuard<'_, BTreeMap<ReplicaId, Failed>> {
        self.failed.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this node tells whoever asks that it gives its leaderships away and wants none.
    pub fn leave(&self) {
        self.leaving.store(true, Relaxed);
    }

    /// Whether this node is about to stop.
    pub fn are_leaving(&self) -> bool {
        self.leaving.load(Relaxed)
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

    fn quarantined(&self, shard: ShardId) -> Option<String> {
        self.quarantined.read().unwrap_or_else(PoisonError::into_inner).get(&shard).cloned()
    }
}
