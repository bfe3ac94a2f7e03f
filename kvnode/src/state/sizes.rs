//! How large the states of replicas are, about.
//!
//! The store knows what a range has on disk. What is in memory it only knows in all: each replica has as much of that as of
//! what was applied since the start, and no more than was applied for it.

use std::{collections::BTreeMap, io};

use kv_topology::ReplicaId;

use super::{hub::StateHub, keys};

impl StateHub {
    /// Bytes of the state of each of these replicas, on disk and in memory, about. May take as long as the disk does.
    ///
    /// # Errors
    /// The store failed or stops, or there is no thread for it.
    pub async fn sizes(&self, replicas: Vec<ReplicaId>) -> io::Result<BTreeMap<ReplicaId, u64>> {
        let applied: Vec<u64> = replicas
            .iter()
            .map(|replica| self.find(*replica).map_or(0, |known| known.progress.applied_bytes()))
            .collect();
        let spans: Vec<_> = replicas.iter().map(|replica| keys::replica(*replica)).collect();
        let engine = self.shared.engine.clone();
        let look = move || Ok::<_, io::Error>((engine.disk_bytes(&spans), engine.unflushed_bytes()?));
        let (on_disk, unflushed) = self.shared.workers.blocking("sizes of states", look).await??;
        let in_memory = in_memory(&applied, unflushed);
        let bytes = on_disk.into_iter().zip(in_memory).map(|(disk, memory)| disk.saturating_add(memory));
        Ok(replicas.into_iter().zip(bytes).collect())
    }
}

/// How much of `unflushed` bytes belongs to each replica, by how much was applied for it.
fn in_memory(applied: &[u64], unflushed: u64) -> Vec<u64> {
    let all: u128 = applied.iter().map(|bytes| u128::from(*bytes)).sum();
    let share = |bytes: u64| {
        let share = u128::from(unflushed) * u128::from(bytes) / all.max(1);
        // An empty table of memory takes memory too.
        u64::try_from(share).unwrap_or(u64::MAX).min(bytes)
    };
    applied.iter().map(|bytes| share(*bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_memory_belongs_to_those_for_whom_something_was_applied() {
        assert_eq!(in_memory(&[100, 300, 0], 200), [50, 150, 0]);
        assert_eq!(in_memory(&[100, 300, 0], 4_000), [100, 300, 0], "no more than was applied");
        assert_eq!(in_memory(&[0, 0], 4_000), [0, 0]);
        assert_eq!(in_memory(&[], 4_000), [0; 0]);
        assert_eq!(in_memory(&[u64::MAX, u64::MAX], u64::MAX), [u64::MAX / 2, u64::MAX / 2]);
    }
}
