//! One replica's log as its users share it: what it holds, how far it is on disk, and the newest entries.
//!
//! Memory is always ahead of the device: a change is made here first and queued in the same moment, under one lock,
//! so that the order of the queue is the order of the changes. Reading is in [`crate::log::reader`].
//!
//! The committed log id is never written for itself: it goes with the replica's next operation, which is also what
//! keeps it from being on disk before the entries that it covers.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use kv_proto::disk::v1 as disk;
use kv_topology::ReplicaId;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::log::{
    batches::Batches,
    budget::{Holder, OPERATION_OVERHEAD_BYTES, REPLICA_QUEUE_BYTES, TailBudget},
    codec::{self, Entry, LogId, Vote},
    committer::Commits,
    device::{DeviceError, LogDevice, Write},
    error::LogError,
    extent::Extent,
    keys::{self, Place},
    lock,
    piece::{Encoded, split},
    progress::Progress,
    queue::{Completion, Notify, Operation, Purpose, Watermark},
    tail::{Leaving, Tail, Usage},
};

/// What the replicas of a node share.
pub struct Shared {
    /// Where everything is kept.
    pub device: Arc<dyn LogDevice>,
    /// What waits for it.
    pub commits: Arc<Commits>,
    /// Memory for the tails.
    pub budget: TailBudget,
    /// What the queue holds, in bytes.
    pub queue_bytes: usize,
    /// Room in the queue, in bytes.
    pub room: Arc<Semaphore>,
    /// Told of damaged bytes that are met while a replica runs.
    pub damaged: OnceLock<OnDamage>,
    /// Votes of replicas for themselves.
    pub elections: Counter,
}

/// Hears whose log is damaged, and how it was noticed. It must not block.
pub type OnDamage = Box<dyn Fn(ReplicaId, &LogError) + Send + Sync>;

/// One replica's log.
pub struct Replica {
    id: ReplicaId,
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
    state: Mutex<State>,
}

/// What the log is, all of it under one lock.
#[derive(Default)]
pub(in crate::log) struct State {
    vote: Option<Vote>,
    committed: Option<LogId>,
    /// `committed` is newer than what was queued of it.
    committed_is_new: bool,
    purged: Option<LogId>,
    pub(in crate::log) extent: Extent,
    pub(in crate::log) tail: Tail,
    /// Grows when entries are truncated or purged: what was read from the device meanwhile is not one moment.
    pub(in crate::log) epoch: u64,
    progress: Progress,
}

/// Numbers of a replica's log, for status and compaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStatus {
    /// The last purged entry.
    pub purged: Option<LogId>,
    /// The last entry, or the last purged one if there is none.
    pub last: Option<LogId>,
    /// Entries that are there.
    pub entries: u64,
    /// Their encoded bytes.
    pub bytes: u64,
    /// Memory of its decoded tail, in bytes.
    pub tail_bytes: usize,
    /// Operations that wait for the device.
    pub queued: u64,
}

impl LogStatus {
    /// Whether all entries from the first one on are there. A log without entries does not show that.
    pub fn begins_with_the_first_entry(&self) -> bool {
        self.purged.is_none() && self.last.is_some_and(|last| last.index + 1 == self.entries)
    }
}

impl Replica {
    /// Reads what the device has of a replica. It reads the whole log, so that damage is found before the replica
    /// votes; that takes about a second for each gibibyte, and it blocks.
    ///
    /// # Errors
    /// When it cannot be read or contradicts itself.
    pub fn open(id: ReplicaId, shared: Arc<Shared>) -> Result<Arc<Self>, LogError> {
        let state = State::load(id, &*shared.device)?;
        let room = Arc::new(Semaphore::new(REPLICA_QUEUE_BYTES));
        let replica = Arc::new(Self { id, shared, room, state: Mutex::new(state) });
        let holder: Arc<dyn Holder> = replica.clone();
        replica.shared.budget.join(id, Arc::downgrade(&holder));
        Ok(replica)
    }

    /// Its id.
    pub fn id(&self) -> ReplicaId {
        self.id
    }

    /// Where the node's committer is.
    pub fn batches(&self) -> &Batches {
        self.shared.commits.batches()
    }

    /// Where it is kept.
    pub fn device(&self) -> &dyn LogDevice {
        &*self.shared.device
    }

    /// Tells the node of an error, if it is damage: the Raft library only passes on that something failed.
    pub(in crate::log) fn tell(&self, error: &LogError) {
        if error.is_damage()
            && let Some(damaged) = self.shared.damaged.get()
        {
            damaged(self.id, error);
        }
    }

    /// The vote that was saved last.
    pub fn vote(&self) -> Option<Vote> {
        self.lock().vote
    }

    /// The committed log id that was saved last.
    pub fn committed(&self) -> Option<LogId> {
        self.lock().committed
    }

    /// Keeps the committed log id; it reaches the disk with the next operation.
    pub fn save_committed(&self, committed: Option<LogId>) {
        let mut state = self.lock();
        state.committed = committed;
        state.committed_is_new = true;
    }

    /// Numbers for status and compaction.
    pub fn status(&self) -> LogStatus {
        let state = self.lock();
        LogStatus {
            purged: state.purged,
            last: state.last(),
            entries: state.extent.len() as u64,
            bytes: state.extent.bytes(),
            tail_bytes: state.tail.usage().total(),
            queued: state.progress.waiting(),
        }
    }

    /// Appends entries. They are readable when it returns; `notify` is called when they are on disk.
    ///
    /// # Errors
    /// When the entries do not follow the log, the log is closed, or the device has failed. A caller that sees one
    /// must not go on with this log: a part may have been appended.
    pub async fn append(
        self: &Arc<Self>,
        entries: impl IntoIterator<Item = Entry>,
        notify: Notify,
    ) -> Result<(), LogError> {
        let mut pieces = split(entries);
        let last = pieces.pop().unwrap_or_default();
        for piece in pieces {
            self.append_piece(piece, None).await?;
        }
        self.append_piece(last, Some(notify)).await
    }

    async fn append_piece(
        self: &Arc<Self>,
        piece: Vec<Encoded>,
        notify: Option<Notify>,
    ) -> Result<(), LogError> {
        let room = self.room(piece.iter().map(|encoded| encoded.bytes.len()).sum()).await?;
        {
            let mut state = self.open_state()?;
            let mut next = None;
            for Encoded { entry, .. } in &piece {
                let expected = next.or_else(|| state.next_index());
                check_next(self.id, entry.log_id.index, expected)?;
                next = Some(entry.log_id.index + 1);
            }
            if let (Some(first), Some(end)) = (piece.first(), next) {
                state.progress.will_append(first.entry.log_id.index..end);
            }
            let mut writes = Vec::with_capacity(piece.len() + 1);
            self.change_tail(&mut state, |state| {
                for Encoded { entry, bytes } in piece {
                    state.extent.push(&entry.log_id, u32::try_from(bytes.len()).unwrap_or(u32::MAX));
                    let key = keys::encode(self.id, Place::Entry(entry.log_id.index));
                    state.tail.push(entry, bytes.len());
                    writes.push(Write::Put(key, bytes));
                }
            });
            self.submit(&mut state, Purpose::Other, writes, notify, room)?;
        }
        self.shared.budget.enforce();
        Ok(())
    }

    /// Saves the vote and returns when it is on disk, and with it everything that was queued before.
    ///
    /// # Errors
    /// When the log is closed or the device has failed.
    pub async fn save_vote(self: &Arc<Self>, vote: &Vote) -> Result<(), LogError> {
        let value = codec::to_bytes(&codec::vote_to_disk(vote));
        let room = self.room(value.len()).await?;
        let (notify, done) = waiter();
        {
            let mut state = self.open_state()?;
            let term_of = |vote: &Vote| vote.leader_id.term;
            let is_new = state.vote.as_ref().map(term_of) != Some(term_of(vote));
            if is_new && !vote.committed && vote.leader_id.node_id == self.id.get() {
                self.shared.elections.inc();
            }
            state.vote = Some(*vote);
            let writes = vec![Write::Put(keys::encode(self.id, Place::Vote), value)];
            self.submit(&mut state, Purpose::Vote, writes, Some(notify), room)?;
        }
        Ok(done.await.map_err(|_| LogError::Stopped)??)
    }

    /// Removes the entries after this one; all entries if it is `None`.
    ///
    /// # Errors
    /// When the log is closed or the device has failed.
    pub async fn truncate_after(self: &Arc<Self>, last: Option<LogId>) -> Result<(), LogError> {
        let room = self.room(0).await?;
        let mut state = self.open_state()?;
        let from = last.map_or(0, |id| id.index + 1).max(state.extent.indexes().start);
        let end = state.extent.indexes().end;
        if from >= end {
            return Ok(());
        }
        self.change_tail(&mut state, |state| {
            state.extent.truncate(from);
            state.tail.truncate(from);
            state.progress.truncate(from);
            state.epoch += 1;
        });
        let gone = vec![Write::DeleteRange(keys::entries(self.id, from..end))];
        self.submit(&mut state, Purpose::Other, gone, None, room)
    }

    /// Removes the entries up to and including this one. It may lie beyond the last entry.
    ///
    /// # Errors
    /// When the log is closed or the device has failed.
    pub async fn purge(self: &Arc<Self>, upto: LogId) -> Result<(), LogError> {
        let value = codec::to_bytes(&codec::log_id_to_disk(&upto));
        let room = self.room(value.len()).await?;
        let mut state = self.open_state()?;
        let start = state.purged.map_or(0, |id| id.index + 1);
        if upto.index < start {
            return Ok(());
        }
        self.change_tail(&mut state, |state| {
            state.extent.purge(upto.index);
            state.tail.purge(upto.index);
            state.purged = Some(upto);
            state.epoch += 1;
        });
        // What is before the previous purge point is gone.
        let writes = vec![
            Write::Put(keys::encode(self.id, Place::Purged), value),
            Write::DeleteRange(keys::entries(self.id, start..upto.index + 1)),
        ];
        self.submit(&mut state, Purpose::Other, writes, None, room)
    }

    /// Removes everything that the replica has, and takes no more. Returns when that is on disk.
    ///
    /// # Errors
    /// When the log is closed or the device has failed.
    pub async fn remove(self: &Arc<Self>) -> Result<(), LogError> {
        let room = self.room(0).await?;
        let (notify, done) = waiter();
        {
            let mut state = self.open_state()?;
            state.committed_is_new = false;
            self.change_tail(&mut state, |state| {
                state.extent = Extent::default();
                state.tail = Tail::default();
                state.epoch += 1;
            });
            let all = vec![Write::DeleteRange(keys::all_of(self.id))];
            self.submit(&mut state, Purpose::Other, all, Some(notify), room)?;
            state.progress.stop();
        }
        Ok(done.await.map_err(|_| LogError::Stopped)??)
    }

    /// Queues the committed log id if it is newer than what is queued. For an orderly end.
    ///
    /// # Errors
    /// When the log is closed or the device has failed.
    pub fn flush_committed(self: &Arc<Self>) -> Result<(), LogError> {
        let mut state = self.open_state()?;
        if !state.committed_is_new {
            return Ok(());
        }
        self.submit(&mut state, Purpose::Other, Vec::new(), None, Vec::new())
    }

    /// Returns when the entry at this index, as it is now, is on disk. What was purged was on disk, or covered by a
    /// snapshot that is.
    ///
    /// # Errors
    /// When there is no such entry, the replica was removed, or the device has failed.
    pub async fn wait_durable(&self, index: u64) -> Result<(), LogError> {
        let done = {
            let mut state = self.open_state()?;
            if state.last().is_none_or(|last| last.index < index) {
                return Err(LogError::Absent { replica: self.id, index });
            }
            state.progress.wait(index)
        };
        match done {
            None => Ok(()),
            Some(done) => done.await.map_err(|_| LogError::Stopped),
        }
    }

    /// Whether the log has this index, and it is on disk.
    pub fn is_durable(&self, index: u64) -> bool {
        let state = self.lock();
        state.last().is_some_and(|last| index <= last.index) && state.progress.is_durable(index)
    }

    pub(in crate::log) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn open_state(&self) -> Result<MutexGuard<'_, State>, LogError> {
        let state = self.lock();
        if state.progress.is_stopped() { Err(LogError::Stopped) } else { Ok(state) }
    }

    /// Makes a change and counts what it does to the memory of the tail.
    fn change_tail(&self, state: &mut State, change: impl FnOnce(&mut State)) {
        let before = state.tail.usage().total();
        change(state);
        self.shared.budget.changed(before, state.tail.usage().total());
    }

    /// Waits for room in the queue: its own first, so that a flooded replica does not hold what others wait for.
    async fn room(&self, bytes: usize) -> Result<Vec<OwnedSemaphorePermit>, LogError> {
        let bytes = bytes + OPERATION_OVERHEAD_BYTES;
        let share = |limit: usize| u32::try_from(bytes.min(limit)).unwrap_or(u32::MAX);
        let own = self.room.clone().acquire_many_owned(share(REPLICA_QUEUE_BYTES));
        let own = own.await.map_err(|_| LogError::Stopped)?;
        let common = self.shared.room.clone().acquire_many_owned(share(self.shared.queue_bytes));
        Ok(vec![own, common.await.map_err(|_| LogError::Stopped)?])
    }

    /// Queues a change that was just made to the state, and the committed log id with it if that is new.
    fn submit(
        self: &Arc<Self>,
        state: &mut State,
        purpose: Purpose,
        mut writes: Vec<Write>,
        notify: Option<Notify>,
        room: Vec<OwnedSemaphorePermit>,
    ) -> Result<(), LogError> {
        if std::mem::take(&mut state.committed_is_new)
            && let Some(id) = state.committed
        {
            let value = codec::to_bytes(&codec::log_id_to_disk(&id));
            writes.push(Write::Put(keys::encode(self.id, Place::Committed), value));
        }
        let watermark: Arc<dyn Watermark> = self.clone();
        let watermark = Some((watermark, state.progress.queue()));
        let completion = Completion { watermark, notify, room };
        let operation = Operation { replica: self.id, purpose, writes, completion };
        self.shared.commits.submit(operation).inspect_err(|_| state.progress.stop())?;
        Ok(())
    }
}

impl Watermark for Replica {
    fn reached(&self, operation: u64) {
        self.lock().progress.reached(operation);
        self.shared.budget.enforce();
    }

    fn failed(&self) {
        self.lock().progress.stop();
    }
}

impl Holder for Replica {
    fn usage(&self) -> Usage {
        self.lock().tail.usage()
    }

    fn release(&self, leaving: Leaving, bytes: usize) -> usize {
        let mut state = self.lock();
        let durable_end = state.progress.durable_end();
        let freed = state.tail.release(leaving, bytes, durable_end);
        self.shared.budget.changed(freed, 0);
        freed
    }
}

impl State {
    fn load(id: ReplicaId, device: &dyn LogDevice) -> Result<Self, LogError> {
        let mut state = Self::default();
        let mut wrong = None;
        device
            .scan(id, &mut |place, value| {
                state.take_record(id, place, value).map_err(|error| {
                    let reason = error.to_string();
                    wrong = Some(error);
                    DeviceError::Damaged { reason }
                })
            })
            .map_err(|error| wrong.unwrap_or(LogError::Device(error)))?;
        Ok(state)
    }

    fn take_record(&mut self, id: ReplicaId, place: Place, value: &[u8]) -> Result<(), LogError> {
        let error = |source| LogError::Record { replica: id, record: format!("{place:?}"), source };
        match place {
            Place::Vote => {
                let vote: disk::Vote = codec::from_bytes("Vote", value).map_err(error)?;
                self.vote = Some(codec::vote_from_disk(&vote));
            }
            Place::Purged => self.purged = Some(log_id(value).map_err(error)?),
            Place::Committed => self.committed = Some(log_id(value).map_err(error)?),
            Place::Entry(index) => {
                check_next(id, index, self.next_index())
                    .map_err(|_| LogError::Hole { replica: id, index })?;
                let entry: disk::LogEntry = codec::from_bytes("LogEntry", value).map_err(error)?;
                let entry = codec::decode_entry(entry).map_err(error)?;
                check_next(id, entry.log_id.index, Some(index))?;
                self.extent.push(&entry.log_id, u32::try_from(value.len()).unwrap_or(u32::MAX));
            }
            // The hub's.
            Place::Descriptor => {}
        }
        Ok(())
    }

    fn last(&self) -> Option<LogId> {
        self.extent.last().or(self.purged)
    }

    /// Where the next entry goes; `None` if any index will do. A log that was never purged begins at 0, but where it
    /// begins is openraft's to say, and its test suite begins elsewhere.
    fn next_index(&self) -> Option<u64> {
        self.last().map(|last| last.index + 1)
    }
}

fn check_next(replica: ReplicaId, index: u64, expected: Option<u64>) -> Result<(), LogError> {
    match expected {
        Some(expected) if expected != index => Err(LogError::NotNext { replica, index, expected }),
        Some(_) | None => Ok(()),
    }
}

fn log_id(value: &[u8]) -> Result<LogId, codec::CodecError> {
    Ok(codec::log_id_from_disk(&codec::from_bytes::<disk::LogId>("LogId", value)?))
}

fn waiter() -> (Notify, oneshot::Receiver<Result<(), DeviceError>>) {
    let (sender, receiver) = oneshot::channel();
    // Who no longer waits does not want to know.
    (Box::new(move |result| drop(sender.send(result))), receiver)
}
