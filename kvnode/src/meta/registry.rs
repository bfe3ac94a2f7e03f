//! What a node knows of its cluster: the meta record and its map, shared by everything in the node.
//!
//! Records flow in from the meta group's own replica, from `FetchMap` and from the cache on disk; the newest one of the
//! own cluster wins and is handed to the persist hook, so that a cold start needs no meta. Readers take a [`View`], which
//! never changes under them, or wait for a newer epoch.
//!
//! Woken in order of arrival: tokio's `Notify` is a queue, where its `watch` wakes at random and would spoil simulations.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kv_proto::disk::v1::MetaRecord;
use kv_topology::{ClusterMap, ShardId, SlotTable};
use tokio::sync::Notify;

use super::view::{ViewError, cluster_map};

/// The cluster at one epoch.
#[derive(Clone, Debug)]
pub struct View {
    /// As meta keeps it.
    pub record: Arc<MetaRecord>,
    /// The same as a map.
    pub map: Arc<ClusterMap>,
    /// The owner of each slot.
    pub slots: Arc<SlotTable>,
}

impl View {
    fn of(record: MetaRecord) -> Result<Self, ViewError> {
        let map = cluster_map(&record)?;
        let slots = Arc::new(SlotTable::of(&map));
        Ok(Self { record: Arc::new(record), map: Arc::new(map), slots })
    }

    /// 0: nothing is known yet.
    pub fn epoch(&self) -> u64 {
        self.map.epoch
    }

    /// The shard that owns `slot`; `None` before the data shards were created.
    pub fn shard_of(&self, slot: kv_topology::Slot) -> Option<ShardId> {
        self.slots.shard_of(slot)
    }
}

/// What became of a record that was offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It is the view now.
    Taken,
    /// One as new is known.
    NotNewer,
    /// It belongs to another cluster, and was dropped.
    OtherCluster,
    /// It describes no possible map, and was dropped.
    Malformed(ViewError),
}

/// Takes a newer record for safe keeping. Called in the order of epochs, under the registry's lock: it must only pass the
/// record on, never block.
pub type Persist = Box<dyn Fn(Arc<MetaRecord>) + Send + Sync>;

/// The newest view of a node.
pub struct Registry {
    view: Mutex<Arc<View>>,
    persist: Persist,
    changed: Notify,
}

impl fmt::Debug for Registry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "registry at epoch {}", self.view().epoch())
    }
}

impl Registry {
    /// A registry that starts from the record that the node kept; the default record when it kept none.
    ///
    /// # Errors
    /// When the kept record describes no possible map.
    pub fn new(kept: MetaRecord, persist: Persist) -> Result<Self, ViewError> {
        Ok(Self { view: Mutex::new(Arc::new(View::of(kept)?)), persist, changed: Notify::new() })
    }

    /// The newest view.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.lock())
    }

    /// Takes `record` if it is newer than what is known and of the same cluster.
    pub fn offer(&self, record: MetaRecord) -> Offered {
        {
            let mut view = self.lock();
            if record.epoch == 0 {
                // A new replica of meta that has applied nothing yet: it does not even know its cluster.
                return Offered::NotNewer;
            }
            if !view.map.cluster_id.is_empty() && view.map.cluster_id != record.cluster_id {
                return Offered::OtherCluster;
            }
            if record.epoch <= view.epoch() {
                return Offered::NotNewer;
            }
            match View::of(record) {
                Ok(newer) => *view = Arc::new(newer),
                Err(error) => return Offered::Malformed(error),
            }
            (self.persist)(Arc::clone(&view.record));
        }
        self.changed.notify_waiters();
        Offered::Taken
    }

    /// The view once its epoch is above `epoch`. May be dropped at any time.
    pub async fn newer_than(&self, epoch: u64) -> Arc<View> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Queued before the look, so that no change falls between look and wait.
            changed.as_mut().enable();
            let view = self.view();
            if view.epoch() > epoch {
                return view;
            }
            changed.await;
        }
    }

    /// A view is replaced whole: one that a panicking holder left behind is sound.
    fn lock(&self) -> MutexGuard<'_, Arc<View>> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn record(cluster_id: &str, epoch: u64) -> MetaRecord {
        MetaRecord { cluster_id: cluster_id.to_owned(), epoch, ..MetaRecord::default() }
    }

    fn registry() -> (Registry, Arc<Mutex<Vec<u64>>>) {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&kept);
        let persist = move |record: Arc<MetaRecord>| keep.lock().unwrap().push(record.epoch);
        (Registry::new(MetaRecord::default(), Box::new(persist)).unwrap(), kept)
    }

    #[test]
    fn only_newer_records_of_the_same_cluster_are_taken_and_kept() {
        let (registry, kept) = registry();
        assert_eq!(registry.offer(record("a", 3)), Offered::Taken);
        assert_eq!(registry.offer(record("a", 3)), Offered::NotNewer);
        assert_eq!(registry.offer(record("a", 2)), Offered::NotNewer);
        assert_eq!(registry.offer(record("b", 9)), Offered::OtherCluster);
        assert_eq!(registry.offer(record("", 0)), Offered::NotNewer, "a replica that has applied nothing");
        let mut broken = record("a", 9);
        broken.nodes.push(kv_proto::disk::v1::NodeRecord { state: 77, ..Default::default() });
        assert!(matches!(registry.offer(broken), Offered::Malformed(_)));
        assert_eq!(registry.offer(record("a", 5)), Offered::Taken);
        assert_eq!(registry.view().epoch(), 5);
        assert_eq!(*kept.lock().unwrap(), [3, 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn waiters_wake_for_newer_epochs_only() {
        let (registry, _) = registry();
        registry.offer(record("a", 1));
        assert_eq!(registry.newer_than(0).await.epoch(), 1, "already newer");
        let early = registry.newer_than(1);
        let late = registry.newer_than(2);
        tokio::pin!(early, late);
        assert!(tokio::time::timeout(Duration::from_millis(10), &mut early).await.is_err());
        registry.offer(record("a", 2));
        assert_eq!(early.await.epoch(), 2);
        assert!(tokio::time::timeout(Duration::from_millis(10), &mut late).await.is_err());
        registry.offer(record("a", 7));
        assert_eq!(late.await.epoch(), 7);
    }
}
