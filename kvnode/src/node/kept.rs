//! What a node knows of its cluster without its databases: the file `CLUSTER` of the data folder.
//!
//! It holds the last registry and map, so that a cold start needs no meta and a node whose log was lost still finds
//! the others; and which replicas live here, so that one whose log or vote was lost is known to have been lost.
//! Written whole and durably each time; both change rarely.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use kv_proto::disk::v1::{ClusterCache, MetaRecord, ReplicaDescriptor};
use kv_topology::ReplicaId;
use prost::Message;

use crate::data_dir::small_file::{self, SmallFileError};

/// The file, and its content in memory.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
    cache: Mutex<ClusterCache>,
    /// Held while the file is written: readers of the cache do not wait for the disk.
    writing: Mutex<()>,
}

impl Kept {
    /// Reads the file; nothing is kept when it is not there. Of a damaged one a copy is put
    /// aside, nothing is kept, and what is wrong with it comes back too: at every start until something is kept again.
    ///
    /// # Errors
    /// When it cannot be read or copied.
    pub fn open(path: &Path) -> Result<(Self, Option<String>), SmallFileError> {
        let kept =
            |cache| Self { path: path.to_owned(), cache: Mutex::new(cache), writing: Mutex::default() };
        let damage = match small_file::read_checked(path) {
            Ok(None) => return Ok((kept(ClusterCache::default()), None)),
            Ok(Some(content)) => match ClusterCache::decode(content.as_slice()) {
                Ok(cache) => return Ok((kept(cache), None)),
                Err(error) => format!("{} is damaged: {error}", path.display()),
            },
            Err(damaged @ SmallFileError::Damaged { .. }) => damaged.to_string(),
            Err(failed @ SmallFileError::Io { .. }) => return Err(failed),
        };
        let aside = path.with_extension("damaged");
        // Not moved away: until it is written anew, every start must know that the list was lost.
        fs::copy(path, &aside).map_err(|source| SmallFileError::Io {
            operation: "copy",
            path: path.to_owned(),
            source,
        })?;
        Ok((kept(ClusterCache::default()), Some(damage)))
    }

    /// The last registry and map; the default when none is kept.
    pub fn meta(&self) -> MetaRecord {
        self.cache().meta.clone().unwrap_or_default()
    }

    /// The replicas that this node was told to host, by id.
    pub fn hosted(&self) -> Vec<ReplicaDescriptor> {
        self.cache().hosted.clone()
    }

    /// Keeps the registry and map, unless a newer one is kept. Blocks until it is on disk.
    ///
    /// # Errors
    /// When it is not.
    pub fn keep_meta(&self, meta: MetaRecord) -> Result<(), SmallFileError> {
        if self.cache().meta.as_ref().is_some_and(|kept| kept.epoch >= meta.epoch) {
            return Ok(());
        }
        self.change(|cache| cache.meta = Some(meta))
    }

    /// Forgets the registry and map. Blocks until that is on disk.
    ///
    /// # Errors
    /// When it is not.
    pub fn forget_meta(&self) -> Result<(), SmallFileError> {
        self.change(|cache| cache.meta = None)
    }

    /// Keeps that this replica lives here: after its descriptor is in the log, and before it starts. Blocks until it
    /// is on disk.
    ///
    /// # Errors
    /// When it is not.
    pub fn keep_hosted(&self, replica: &ReplicaDescriptor) -> Result<(), SmallFileError> {
        // What is to become of it is kept in the log: what counts here is that it was there.
        let ReplicaDescriptor { replica_id, shard_id, group_id, .. } = *replica;
        let replica = ReplicaDescriptor { replica_id, shard_id, group_id, ..ReplicaDescriptor::default() };
        if self.cache().hosted.contains(&replica) {
            return Ok(());
        }
        self.change(|cache| {
            cache.hosted.retain(|known| known.replica_id != replica.replica_id);
            cache.hosted.push(replica);
            cache.hosted.sort_by_key(|known| known.replica_id);
        })
    }

    /// Forgets that these replicas lived here: before their descriptors are removed from the log. Blocks until it is on
    /// disk.
    ///
    /// # Errors
    /// When it is not.
    pub fn forget_hosted(&self, replicas: &[ReplicaId]) -> Result<(), SmallFileError> {
        self.change(|cache| cache.hosted.retain(|known| !replicas.contains(&ReplicaId(known.replica_id))))
    }

    fn change(&self, change: impl FnOnce(&mut ClusterCache)) -> Result<(), SmallFileError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = self.cache().clone();
        change(&mut changed);
        small_file::write_checked(&self.path, &changed.encode_to_vec())?;
        *self.cache() = changed;
        Ok(())
    }

    fn cache(&self) -> MutexGuard<'_, ClusterCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(replica_id: u64) -> ReplicaDescriptor {
        ReplicaDescriptor { replica_id, shard_id: 3, ..ReplicaDescriptor::default() }
    }

    #[test]
    fn what_is_kept_is_there_at_the_next_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("CLUSTER");
        let (kept, damage) = Kept::open(&path).expect("readable");
        assert_eq!((kept.meta(), kept.hosted(), damage), (MetaRecord::default(), Vec::new(), None));
        kept.keep_meta(MetaRecord { epoch: 7, ..MetaRecord::default() }).expect("written");
        for id in [5, 2, 9, 5] {
            kept.keep_hosted(&replica(id)).expect("written");
        }
        kept.forget_hosted(&[ReplicaId(9), ReplicaId(1)]).expect("written");
        kept.keep_meta(MetaRecord { epoch: 6, ..MetaRecord::default() }).expect("nothing to write");
        let (kept, damage) = Kept::open(&path).expect("readable");
        assert_eq!((kept.meta().epoch, damage), (7, None));
        assert_eq!(kept.hosted(), [replica(2), replica(5)]);
    }

    #[test]
    fn a_damaged_file_is_put_aside_and_told_until_something_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("CLUSTER");
        fs::write(&path, "garbage").expect("written");
        let (kept, damage) = Kept::open(&path).expect("put away");
        assert!(damage.is_some_and(|damage| damage.contains("CLUSTER is damaged")));
        assert_eq!(fs::read(folder.path().join("CLUSTER.damaged")).expect("kept"), b"garbage");
        assert!(Kept::open(&path).expect("readable").1.is_some(), "a start that was cut off changes nothing");
        kept.keep_hosted(&replica(1)).expect("written");
        assert_eq!(Kept::open(&path).expect("readable").1, None);
    }
}
