//! What goes from the store, and the space that it took.
//!
//! A replica is one range of names, and goes by one delete of that range. Views that are open still show it: no table is
//! unlinked under them. Its space comes back when the tables are written anew, which [`StateHub::give_back`] does for the
//! range alone, and [`StateHub::reclaim`] for the whole store.

use std::{io, sync::atomic::Ordering};

use kv_topology::ReplicaId;

use super::{Span, StateEngine, StateError, hub::StateHub, keys};

impl StateHub {
    /// Returns when the machine of a replica has ended: nothing is written for the replica after that. At once when it has
    /// none here. For ever while its Raft runs.
    pub async fn machine_ended(&self, replica: ReplicaId) {
        let known = self.find(replica);
        if let Some(known) = known {
            known.ended.clone().await;
        }
    }

    /// Removes all that these replicas have. Their machines must have ended. Returns when it is durable; done already is
    /// done.
    ///
    /// # Errors
    /// The store failed, which the node was told, or stops.
    pub async fn remove_replicas(&self, replicas: Vec<ReplicaId>) -> io::Result<()> {
        for replica in &replicas {
            if let Some(known) = self.replicas().remove(replica) {
                known.removed.store(true, Ordering::Release);
            }
            self.shared.pins.close_all_of(*replica);
        }
        let engine = self.shared.engine.clone();
        let remove = move || {
            replicas.into_iter().try_for_each(|replica| engine.delete_range(keys::replica(replica)))?;
            engine.flush()
        };
        let removed = self.shared.workers.blocking("remove replicas", remove).await?;
        Ok(removed.inspect_err(|error| self.shared.hooks.tell(error))?)
    }

    /// Deletes that were written to the store up to now; see [`StateEngine::deletes`].
    pub fn deletes(&self) -> u64 {
        self.shared.engine.deletes()
    }

    /// Gives the space of deleted records back; see [`StateEngine::reclaim`]. All is flushed first by who flushes for all
    /// groups, so that the logs may be cut too. Takes as long as it takes to write the store anew, or until it closes.
    ///
    /// # Errors
    /// The store failed, which the node was told, or stops, or there is no thread for it.
    pub async fn reclaim(&self, spare_bytes: impl Fn() -> u64 + Send + 'static) -> io::Result<bool> {
        self.round(Vec::new(), spare_bytes).await
    }

    /// Gives the space of replicas that were removed back; as [`Self::reclaim`], in their ranges alone.
    ///
    /// # Errors
    /// As [`Self::reclaim`].
    pub async fn give_back(
        &self,
        replicas: Vec<ReplicaId>,
        spare_bytes: impl Fn() -> u64 + Send + 'static,
    ) -> io::Result<bool> {
        if replicas.is_empty() {
            return Ok(true);
        }
        self.round(replicas.into_iter().map(keys::replica).collect(), spare_bytes).await
    }

    /// One round through these ranges; none: through everything. One at a time.
    async fn round(
        &self,
        ranges: Vec<Span>,
        spare_bytes: impl Fn() -> u64 + Send + 'static,
    ) -> io::Result<bool> {
        let told = |error: &StateError| self.shared.hooks.tell(error);
        let turn = self.shared.reclaiming.clone().lock_owned().await;
        if self.shared.engine.unflushed_bytes().inspect_err(told)? > spare_bytes() {
            return Ok(false);
        }
        self.flush().await?;
        let (engine, closing) = (self.shared.engine.clone(), self.shared.closing.clone());
        let round = move || {
            // Until the thread has ended, whoever asked for it.
            let _turn = turn;
            let spare_bytes = || (!closing.load(Ordering::Relaxed)).then(&spare_bytes);
            through(engine.as_ref(), &ranges, &spare_bytes)
        };
        match self.shared.workers.blocking("reclaim", round).await? {
            // Work that was cut off is no failure of the store.
            Err(_) if self.shared.closing.load(Ordering::Relaxed) => Ok(false),
            ended => Ok(ended.inspect_err(told)?),
        }
    }
}

fn through(
    engine: &dyn StateEngine,
    ranges: &[Span],
    spare_bytes: &dyn Fn() -> Option<u64>,
) -> Result<bool, StateError> {
    if ranges.is_empty() {
        return engine.reclaim(None, spare_bytes);
    }
    let mut whole = true;
    for range in ranges {
        whole &= engine.reclaim(Some(range), spare_bytes)?;
    }
    Ok(whole)
}
