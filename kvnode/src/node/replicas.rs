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

/// Running replicas by shard. A shard has at most one on a node, but for the time between the loss of one, or its leave, and
/// its removal: the newer one is found.
#[derive(Default)]
pub struct LocalReplicas {
    running: RwLock<BTreeMap<(ShardId, ReplicaId), Replica>>,
    failed: RwLock<BTreeMap<ReplicaId, Failed>>,
    /// Which replica of a shard was quarantined and why, until another one takes its place.
    quarantined: RwLock<BTreeMap<ShardId, (ReplicaId, String)>>,
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
        self.marked().remove(&replica.shard);
        self.running().insert((replica.shard, replica.id), replica);
    }

    /// Forgets a replica; it must be stopped by the caller.
    pub fn remove(&self, replica: ReplicaId) -> Option<Replica> {
        let mut running = self.running();
        let place = running.keys().find(|(_, id)| *id == replica).copied()?;
        running.remove(&place)
    }

    /// Forgets all that is known of a replica: it is removed from this node. It must be stopped by the caller.
    pub fn forget(&self, replica: ReplicaId) -> Option<Replica> {
        self.failed().remove(&replica);
        self.marked().retain(|_, (id, _)| *id != replica);
        self.remove(replica)
    }

    /// Notes that a replica has stopped by itself or did not start, and takes it out of service.
    pub fn fail(&self, failed: Failed) {
        self.remove(failed.id);
        self.failed().insert(failed.id, failed);
    }

    /// Notes that the replica of a shard is quarantined, and takes it out of service; it must be stopped by the caller.
    pub fn quarantine(&self, shard: ShardId, replica: ReplicaId, reason: String) -> Option<Replica> {
        self.failed().remove(&replica);
        self.marked().insert(shard, (replica, reason));
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

    fn running(&self) -> RwLockWriteGuard<'_, BTreeMap<(ShardId, ReplicaId), Replica>> {
        self.running.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> RwLockWriteGuard<'_, BTreeMap<ReplicaId, Failed>> {
        self.failed.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn marked(&self) -> RwLockWriteGuard<'_, BTreeMap<ShardId, (ReplicaId, String)>> {
        self.quarantined.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this node tells whoever asks that it gives its leaderships away and wants none, from now on.
    pub fn set_leaving(&self, leaving: bool) {
        self.leaving.store(leaving, Relaxed);
    }

    /// Whether this node is about to stop, or to be restarted on purpose.
    pub fn are_leaving(&self) -> bool {
        self.leaving.load(Relaxed)
    }

    /// The replica of a group; the newest.
    pub fn of_group(&self, group: GroupId) -> Option<Replica> {
        self.all().into_iter().rev().find(|replica| replica.group == group)
    }

    /// All of them, by shard.
    pub fn all(&self) -> Vec<Replica> {
        self.running.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl Replicas for LocalReplicas {
    fn replica(&self, shard: ShardId) -> Option<Replica> {
        let running = self.running.read().unwrap_or_else(PoisonError::into_inner);
        let of_shard = (shard, ReplicaId(0))..=(shard, ReplicaId(u64::MAX));
        running.range(of_shard).next_back().map(|(_, replica)| replica.clone())
    }

    fn quarantined(&self, shard: ShardId) -> Option<String> {
        let quarantined = self.quarantined.read().unwrap_or_else(PoisonError::into_inner);
        quarantined.get(&shard).map(|(_, reason)| reason.clone())
    }
}
