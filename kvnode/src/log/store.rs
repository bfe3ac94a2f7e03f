//! The log as openraft sees it.
//!
//! Appended entries are readable when `append` returns; that they are on disk is reported later through `IOFlushed`,
//! in the order of the appends and never early. `save_vote` returns when the vote is on disk. `save_committed` never
//! causes a sync. All changes of a replica reach the disk in the order in which they were made.

use std::{
    fmt::Debug,
    io,
    marker::PhantomData,
    ops::{Bound, Range, RangeBounds, RangeInclusive},
    sync::Arc,
};

use futures::{Stream, stream};
use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};
use openraft_rt::AsyncRuntime;

use crate::{
    group::type_config::TypeConfig,
    log::{
        codec::{Entry, LogId, Vote},
        reader,
        replica::Replica,
        view::LogView,
    },
};

/// Encoded bytes of the entries of one AppendEntries, at most (or one entry): large enough to fill a fast network,
/// small enough not to delay the heartbeat behind it.
pub const APPEND_BYTES: u64 = 2 << 20;

/// Encoded bytes that are read ahead of apply, at most (or one entry).
pub const STREAM_CHUNK_BYTES: u64 = 1 << 20;

/// One replica's log, for one Raft instance. Clones are the same log.
pub struct LogStore<RT> {
    replica: Arc<Replica>,
    runtime: PhantomData<fn() -> RT>,
}

impl<RT> Clone for LogStore<RT> {
    fn clone(&self) -> Self {
        Self::new(self.replica.clone())
    }
}

impl<RT> LogStore<RT> {
    pub(in crate::log) fn new(replica: Arc<Replica>) -> Self {
        Self { replica, runtime: PhantomData }
    }

    /// What others may ask of this log.
    pub fn view(&self) -> LogView {
        LogView::new(self.replica.clone())
    }
}

impl<RT: AsyncRuntime> LogStore<RT> {
    async fn read(&self, indexes: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, io::Error> {
        Ok(reader::read::<RT>(&self.replica, indexes, max_bytes).await?)
    }
}

impl<RT: AsyncRuntime> RaftLogReader<TypeConfig<RT>> for LogStore<RT> {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(indexes(&range), u64::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start..end, APPEND_BYTES).await
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let store = self.clone();
        let chunks = stream::try_unfold((store, indexes(&range)), |(store, rest)| async move {
            let chunk = store.read(rest.clone(), STREAM_CHUNK_BYTES).await?;
            let Some(last) = chunk.last() else { return Ok::<_, io::Error>(None) };
            let rest = last.log_id.index + 1..rest.end;
            Ok(Some((stream::iter(chunk.into_iter().map(Ok)), (store, rest))))
        });
        Box::pin(futures::TryStreamExt::try_flatten(chunks))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.replica.vote())
    }

    async fn get_key_log_ids(&mut self, range: RangeInclusive<LogId>) -> Result<Vec<LogId>, io::Error> {
        Ok(self.replica.lock().extent.last_of_each_leader(&range))
    }
}

impl<RT: AsyncRuntime> RaftLogStorage<TypeConfig<RT>> for LogStore<RT> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig<RT>>, io::Error> {
        let status = self.replica.status();
        Ok(LogState { last_purged_log_id: status.purged, last_log_id: status.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        Ok(self.replica.save_vote(vote).await?)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.replica.save_committed(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.replica.committed())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig<RT>>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let notify = Box::new(move |result: Result<(), _>| {
            callback.io_completed(result.map_err(|error| io::Error::other(format!("{error}"))));
        });
        Ok(self.replica.append(entries, notify).await?)
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        Ok(self.replica.truncate_after(last_log_id).await?)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        Ok(self.replica.purge(log_id).await?)
    }
}

fn indexes(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}
