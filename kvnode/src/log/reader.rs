//! Reading a replica's log: from the tail in memory, and from the device what has left it.
//!
//! A read is planned under the replica's lock, then what is missing is fetched without it, possibly on another
//! thread. If entries were truncated or purged in between, the fetched ones are thrown away and the read is planned
//! again, so that its result is always the log of one moment.

use std::{ops::Range, sync::Arc};

use kv_proto::disk::v1 as disk;
use openraft_rt::AsyncRuntime;

use crate::log::{
    codec::{self, Entry},
    error::LogError,
    replica::Replica,
};

/// What of a range is in memory, and what must come from the device.
struct Plan {
    epoch: u64,
    /// Index of the first entry.
    start: u64,
    entries: Vec<Option<Entry>>,
    /// From the first to the last entry that is not in memory.
    missing: Option<Range<u64>>,
}

impl Plan {
    /// At least one entry if there is any, and no more once `max_bytes` are reached.
    fn make(replica: &Replica, indexes: &Range<u64>, max_bytes: u64) -> Self {
        let state = replica.lock();
        let there = state.extent.indexes();
        let start = indexes.start.max(there.start);
        let mut plan = Self { epoch: state.epoch, start, entries: Vec::new(), missing: None };
        let mut bytes = 0;
        for index in start..indexes.end.min(there.end) {
            let entry = state.tail.get(index).cloned();
            if entry.is_none() {
                let first = plan.missing.as_ref().map_or(index, |missing| missing.start);
                plan.missing = Some(first..index + 1);
            }
            plan.entries.push(entry);
            bytes += u64::from(state.extent.size(index).unwrap_or_default());
            if bytes >= max_bytes {
                break;
            }
        }
        plan
    }

    /// Fetches what is missing. May block. `None`: the log changed meanwhile.
    fn fetch(mut self, replica: &Replica) -> Result<Option<Vec<Entry>>, LogError> {
        if let Some(missing) = self.missing.take() {
            let read = replica.device().read(replica.id(), missing, u64::MAX);
            if replica.lock().epoch != self.epoch {
                return Ok(None);
            }
            for (index, bytes) in read? {
                let offset = usize::try_from(index.saturating_sub(self.start)).unwrap_or(usize::MAX);
                if let Some(slot @ None) = self.entries.get_mut(offset) {
                    *slot = Some(decode(replica, index, bytes)?);
                }
            }
        }
        let hole = |index| LogError::Hole { replica: replica.id(), index };
        let entries = self.entries.into_iter().zip(self.start..);
        entries.map(|(entry, index)| entry.ok_or_else(|| hole(index))).collect::<Result<_, _>>().map(Some)
    }
}

fn decode(replica: &Replica, index: u64, bytes: bytes::Bytes) -> Result<Entry, LogError> {
    let entry = codec::from_bytes::<disk::LogEntry>("LogEntry", bytes).and_then(codec::decode_entry);
    let entry = entry.map_err(|source| LogError::Record {
        replica: replica.id(),
        record: format!("entry {index}"),
        source,
    })?;
    if entry.log_id.index == index { Ok(entry) } else { Err(LogError::Hole { replica: replica.id(), index }) }
}

/// Reads the entries of a range that the log has: at least one if there is any, and no more once `max_bytes` are
/// reached. A read that waits for a disk does so on a thread that may block.
///
/// # Errors
/// When the device has not what it should have. Damage is told to the node, too.
pub async fn read<RT: AsyncRuntime>(
    replica: &Arc<Replica>,
    indexes: Range<u64>,
    max_bytes: u64,
) -> Result<Vec<Entry>, LogError> {
    read_one_moment::<RT>(replica, indexes, max_bytes).await.inspect_err(|error| replica.tell(error))
}

async fn read_one_moment<RT: AsyncRuntime>(
    replica: &Arc<Replica>,
    indexes: Range<u64>,
    max_bytes: u64,
) -> Result<Vec<Entry>, LogError> {
    loop {
        let plan = Plan::make(replica, &indexes, max_bytes);
        let entries = if plan.missing.is_some() && replica.device().reads_block() {
            let replica = replica.clone();
            let fetched = RT::spawn_blocking(move || plan.fetch(&replica)).await;
            fetched.map_err(|error| LogError::Thread(error.to_string()))??
        } else {
            plan.fetch(replica)?
        };
        if let Some(entries) = entries {
            return Ok(entries);
        }
    }
}
