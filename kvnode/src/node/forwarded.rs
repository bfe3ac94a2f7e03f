//! Memory for writes that other nodes forward to this one, from their arrival to their answer.
//!
//! Writes of this node's own clients count among their requests; those of others' clients count here.

use std::sync::Arc;

use kv_proto::{disk::v1::Operation, peer::v1::Refusal};
use prometheus_client::metrics::gauge::Gauge;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{metrics::QueueMetric, refusal};

/// Advice to a refused caller, ms.
const RETRY_AFTER_MS: u32 = 50;
/// What a write counts at least, bytes: its bookkeeping.
const WRITE_BYTES_MIN: usize = 512;

/// The memory, and how much of it is left.
pub struct Forwarded {
    bytes: usize,
    room: Arc<Semaphore>,
    metric: QueueMetric,
}

/// A share of it, until dropped.
pub struct Share {
    bytes: i64,
    held: Gauge,
    _room: OwnedSemaphorePermit,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.held.dec_by(self.bytes);
    }
}

impl Forwarded {
    /// So much memory, bytes.
    pub fn new(bytes: usize, metric: QueueMetric) -> Self {
        let bytes = bytes.min(Semaphore::MAX_PERMITS);
        Self { bytes, room: Arc::new(Semaphore::new(bytes)), metric }
    }

    /// A share for these writes.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED`: it is all in use. Nothing has happened.
    pub fn admit(&self, operations: &[Operation]) -> Result<Share, Refusal> {
        let bytes: usize = operations.iter().map(|write| write.encoded_len().max(WRITE_BYTES_MIN)).sum();
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).try_acquire_many_owned(permits).map_err(|_| {
            self.metric.refused.inc();
            let message = format!("{} B of writes of other nodes wait here", self.bytes);
            refusal::exhausted(refusal::PROPOSAL_QUEUE_FULL, message, RETRY_AFTER_MS)
        })?;
        let bytes = i64::from(permits);
        self.metric.length.inc_by(bytes);
        Ok(Share { bytes, held: self.metric.length.clone(), _room: room })
    }
}

#[cfg(test)]
mod tests {
    use kv_proto::disk::v1::{Put, operation::Kind};

    use super::*;

    fn put(bytes: usize) -> Operation {
        let put = Put { value: vec![0; bytes].into(), ..Put::default() };
        Operation { kind: Some(Kind::Put(put)), ..Operation::default() }
    }

    #[test]
    fn what_does_not_fit_is_refused_until_something_is_answered() {
        let forwarded = Forwarded::new(10_000, QueueMetric::default());
        let first = forwarded.admit(&[put(4_000), put(0)]).expect("there is room");
        let second = forwarded.admit(&[put(4_000)]).expect("there is room");
        let held = forwarded.metric.length.get();
        assert!((8_512..9_000).contains(&held), "{held}");
        let refused = forwarded.admit(&[put(4_000)]).err().expect("there is none");
        assert_eq!(
            (refused.reason.as_str(), refused.retry_after_ms),
            (refusal::PROPOSAL_QUEUE_FULL, RETRY_AFTER_MS)
        );
        assert_eq!((forwarded.metric.refused.get(), forwarded.metric.length.get()), (1, held));
        drop(first);
        forwarded.admit(&[put(4_000)]).expect("there is room again");
        drop(second);
        assert_eq!(forwarded.metric.length.get(), 0);
    }
}
