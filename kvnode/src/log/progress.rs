//! How far a replica's queued operations are on disk, and who waits for that.
//!
//! Operations are numbered from 1 in the order in which they are queued. Whether an index is durable is asked
//! through the number of the append that wrote it last: an index that was truncated and appended again is not
//! taken for durable because its predecessor was.

use std::{collections::VecDeque, ops::Range};

use tokio::sync::oneshot;

/// Numbers of the queued operations of a replica.
#[derive(Debug, Default)]
pub struct Progress {
    queued: u64,
    durable: u64,
    stopped: bool,
    /// Appends that are not on disk, ascending by index and by number.
    appends: VecDeque<Append>,
    waiters: Vec<(u64, oneshot::Sender<()>)>,
}

#[derive(Debug)]
struct Append {
    indexes: Range<u64>,
    operation: u64,
}

impl Progress {
    /// Numbers the next operation.
    pub fn queue(&mut self) -> u64 {
        self.queued += 1;
        self.queued
    }

    /// Notes that the next operation to be queued appends these indexes.
    pub fn will_append(&mut self, indexes: Range<u64>) {
        self.appends.push_back(Append { indexes, operation: self.queued + 1 });
    }

    /// Operations that are queued and not on disk.
    pub fn waiting(&self) -> u64 {
        self.queued - self.durable
    }

    /// Whether nothing more will be queued or reached.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Indexes below this are on disk, as far as the log has them.
    pub fn durable_end(&self) -> u64 {
        self.appends.front().map_or(u64::MAX, |append| append.indexes.start)
    }

    /// Whether nothing that an index needs is still to be written. Says nothing about whether the log has it.
    pub fn is_durable(&self, index: u64) -> bool {
        self.needed_for(index).is_none()
    }

    /// Is sent to when the index is on disk, dropped if it never will be; `None`: it is already.
    pub fn wait(&mut self, index: u64) -> Option<oneshot::Receiver<()>> {
        let operation = self.needed_for(index)?;
        let (sender, receiver) = oneshot::channel();
        if !self.stopped {
            self.waiters.push((operation, sender));
        }
        Some(receiver)
    }

    /// The entries from an index on are gone.
    pub fn truncate(&mut self, from: u64) {
        while self.appends.back().is_some_and(|append| append.indexes.start >= from) {
            self.appends.pop_back();
        }
        if let Some(append) = self.appends.back_mut() {
            append.indexes.end = append.indexes.end.min(from);
        }
    }

    /// All operations up to this one are on disk.
    pub fn reached(&mut self, operation: u64) {
        debug_assert!(operation <= self.queued, "the watermark is never early");
        self.durable = self.durable.max(operation);
        while self.appends.front().is_some_and(|append| append.operation <= operation) {
            self.appends.pop_front();
        }
        for (_, waiter) in self.waiters.extract_if(.., |(needed, _)| *needed <= operation) {
            // Who no longer waits does not want to know.
            let _ = waiter.send(());
        }
    }

    /// Nothing more will be reached. Whoever waits is let go.
    pub fn stop(&mut self) {
        self.stopped = true;
        self.waiters.clear();
    }

    /// The append that must be on disk for this index to be.
    fn needed_for(&self, index: u64) -> Option<u64> {
        let after = self.appends.partition_point(|append| append.indexes.start <= index);
        let append = self.appends.get(after.checked_sub(1)?)?;
        append.indexes.contains(&index).then_some(append.operation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(progress: &mut Progress, indexes: Range<u64>) -> u64 {
        progress.will_append(indexes);
        progress.queue()
    }

    #[test]
    fn an_index_is_durable_when_the_append_that_wrote_it_is() {
        let mut progress = Progress::default();
        let first = append(&mut progress, 1..4);
        let second = append(&mut progress, 4..6);
        assert!(!progress.is_durable(3) && !progress.is_durable(4));
        progress.reached(first);
        assert!(progress.is_durable(3) && !progress.is_durable(4));
        assert_eq!(progress.durable_end(), 4);
        progress.reached(second);
        assert_eq!((progress.durable_end(), progress.waiting()), (u64::MAX, 0));
    }

    #[test]
    fn an_index_that_was_truncated_and_appended_again_waits_for_the_second_append() {
        let mut progress = Progress::default();
        let first = append(&mut progress, 1..6);
        progress.truncate(3);
        let truncate = progress.queue();
        let second = append(&mut progress, 3..5);
        let mut waiter = progress.wait(4).expect("not durable");
        progress.reached(first);
        assert!(progress.is_durable(2) && !progress.is_durable(3));
        progress.reached(truncate);
        assert!(waiter.try_recv().is_err(), "only its predecessor is on disk");
        progress.reached(second);
        assert_eq!(waiter.try_recv(), Ok(()));
    }

    #[test]
    fn whoever_waits_is_let_go_when_it_stops() {
        let mut progress = Progress::default();
        append(&mut progress, 1..6);
        let mut early = progress.wait(4).expect("not durable");
        progress.stop();
        let mut late = progress.wait(4).expect("not durable");
        assert!(matches!(early.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        assert!(matches!(late.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
    }
}
