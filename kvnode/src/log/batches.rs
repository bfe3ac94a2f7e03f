//! Where the committer is: which batch it writes, and who waits for the end of that.
//!
//! What is queued while a batch is written waits for the next one. Whoever knows that can as well collect more until then.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Release},
};

use tokio::sync::Notify;

/// Counts batches.
#[derive(Debug, Default)]
pub struct Batches {
    begun: AtomicU64,
    ended: AtomicU64,
    end: Notify,
}

impl Batches {
    /// A batch is about to be written. Its number, from 1 on.
    pub fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Release) + 1
    }

    /// The batch of this number, and all before it, are on disk or have failed.
    pub fn end(&self, number: u64) {
        self.ended.fetch_max(number, Release);
        self.end.notify_waiters();
    }

    /// Returns when the batch that is being written now has ended; at once if there is none.
    pub async fn ended(&self) {
        let begun = self.begun.load(Acquire);
        loop {
            let mut end = std::pin::pin!(self.end.notified());
            // Before it looks: an end in between is not missed.
            end.as_mut().enable();
            if self.ended.load(Acquire) >= begun {
                return;
            }
            end.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_comes_during_a_batch_waits_for_its_end_and_for_no_other() {
        let batches = Batches::default();
        assert!(batches.ended().now_or_never().is_some(), "nothing is written");
        let first = batches.begin();
        let mut waiting = Box::pin(batches.ended());
        assert!(waiting.as_mut().now_or_never().is_none());
        let second = batches.begin();
        let mut later = Box::pin(batches.ended());
        batches.end(first);
        assert!(waiting.as_mut().now_or_never().is_some());
        assert!(later.as_mut().now_or_never().is_none());
        batches.end(second);
        assert!(later.as_mut().now_or_never().is_some());
        assert!(batches.ended().now_or_never().is_some());
    }
}
