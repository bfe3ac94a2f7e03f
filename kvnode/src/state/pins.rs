//! Pinned moments: what a download reads while its key is overwritten or deleted.
//!
//! ```text
//! open ─► read … read ─► close; or: a minute without a read · ten minutes old · the disk fills up · the store closes
//! ```
//!
//! A moment of RocksDB borrows the database, so a thread holds it and makes all reads from it; a moment of a store in
//! memory is a copy. Each holds back compaction, therefore they are few and short-lived, and none is kept for reads
//! alone: who finds none reads the present state, and may learn that the value was replaced.
//!
//! An id is drawn by whoever opens the pin, for one replica and one moment: opening it again changes nothing, since a read
//! that is sent twice may arrive twice.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use kv_topology::ReplicaId;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, sleep_until},
};

use super::{StateEngine, View, engine::with_view, workers::Workers};

/// Most moments that a node keeps. Each is a thread, and a snapshot of RocksDB, of which some hundreds slow it down.
pub const PINS_MAX: usize = 64;
/// A moment that nobody reads from is given up after this: so long may a client take none of its bytes before it is cut
/// off.
pub const PIN_IDLE_MAX: Duration = Duration::from_secs(60);
/// A moment is given up at this age: what was overwritten since then fills the disk.
pub const PIN_AGE_MAX: Duration = Duration::from_secs(600);
/// Reads from one moment that wait for its thread: a download has two under way.
const READS_QUEUED_MAX: usize = 8;

/// Names a moment of a replica.
pub type PinId = [u8; 16];

/// A moment of the state as a value.
pub type Copied = Box<dyn View + Send + Sync>;

type Key = (ReplicaId, PinId);
type Work = Box<dyn FnOnce(&dyn View) + Send>;

/// As many reads of one moment wait as may, or its thread panicked: nothing was read.
#[derive(Debug, thiserror::Error)]
#[error("{READS_QUEUED_MAX} reads wait for one moment")]
pub struct Full;

/// The moments that a node keeps.
pub struct Pins {
    /// Given back when a moment is really gone.
    places: Arc<Semaphore>,
    table: Mutex<Table>,
    /// A moment was opened, or all were closed for good.
    changed: Notify,
    refused: AtomicU64,
}

#[derive(Default)]
struct Table {
    open: BTreeMap<Key, Pin>,
    admission: Admission,
}

/// What became of a pin that was to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It is there.
    Opened,
    /// It was there.
    Known,
    /// As many are kept as may be, or there is no room.
    Refused,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Admission {
    #[default]
    Open,
    /// There is no room on the disk for what a moment keeps.
    NoRoom,
    /// For good.
    Closed,
}

struct Pin {
    life: Life,
    moment: Moment,
}

#[derive(Clone, Copy, Debug)]
struct Life {
    opened: Instant,
    used: Instant,
}

impl Life {
    fn end(self) -> Instant {
        (self.used + PIN_IDLE_MAX).min(self.opened + PIN_AGE_MAX)
    }
}

#[derive(Clone)]
enum Moment {
    /// With its place.
    Copied(Arc<(Copied, OwnedSemaphorePermit)>),
    /// A thread that ends when the last sender is gone.
    Held(SyncSender<Work>),
}

impl Default for Pins {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(PINS_MAX)),
            table: Mutex::default(),
            changed: Notify::new(),
            refused: AtomicU64::new(0),
        }
    }
}

impl Pins {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the state as it is at some moment after the call, unless a moment has this id.
    pub fn open(
        &self,
        replica: ReplicaId,
        id: PinId,
        engine: &Arc<dyn StateEngine>,
        workers: &Workers,
    ) -> Opening {
        let known = |table: &Table| table.open.contains_key(&(replica, id));
        let admits = |table: &Table| table.admission == Admission::Open;
        if known(&self.table()) {
            return Opening::Known;
        }
        let moment = if admits(&self.table()) { self.moment(engine, workers) } else { None };
        let Some(moment) = moment else { return self.refuse() };
        {
            let mut table = self.table();
            if known(&table) {
                return Opening::Known;
            }
            if !admits(&table) {
                drop(table);
                return self.refuse();
            }
            let now = Instant::now();
            let life = Life { opened: now, used: now };
            table.open.insert((replica, id), Pin { life, moment });
        }
        self.changed.notify_one();
        Opening::Opened
    }

    fn refuse(&self) -> Opening {
        self.refused.fetch_add(1, Ordering::Relaxed);
        Opening::Refused
    }

    fn moment(&self, engine: &Arc<dyn StateEngine>, workers: &Workers) -> Option<Moment> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        if let Some(copy) = engine.copy() {
            return Some(Moment::Copied(Arc::new((copy, place))));
        }
        let Workers::Threads { threads, .. } = workers else { return None };
        let (sender, work) = sync_channel(READS_QUEUED_MAX);
        let engine = engine.clone();
        let life = move || {
            hold(engine.as_ref(), &work);
            // In this order: who waits for all places may close the store.
            drop(engine);
            drop(place);
        };
        threads("pinned moment", Box::new(life)).ok()?;
        Some(Moment::Held(sender))
    }

    /// Reads from a moment. `None`: it is not kept here (any more).
    pub fn read<T, R>(
        &self,
        replica: ReplicaId,
        id: PinId,
        read: R,
    ) -> Option<impl Future<Output = Result<T, Full>> + Send + use<T, R>>
    where
        T: Send + 'static,
        R: FnOnce(&dyn View) -> T + Send + 'static,
    {
        let moment = {
            let mut table = self.table();
            let pin = table.open.get_mut(&(replica, id))?;
            pin.life.used = Instant::now();
            pin.moment.clone()
        };
        let (done, result) = oneshot::channel();
        let work = move |view: &dyn View| {
            if !done.is_closed() {
                // It may have been given up meanwhile.
                done.send(read(view)).ok();
            }
        };
        match moment {
            Moment::Copied(kept) => work(kept.0.as_ref()),
            Moment::Held(queue) => match queue.try_send(Box::new(work)) {
                // What is refused is dropped, and its result does not come.
                Ok(()) | Err(TrySendError::Full(_)) => {}
                Err(TrySendError::Disconnected(_)) => {
                    self.close(replica, id);
                    return None;
                }
            },
        }
        Some(async move { result.await.map_err(|_| Full) })
    }

    /// Gives a moment up. Reads from it that are under way go on.
    pub fn close(&self, replica: ReplicaId, id: PinId) {
        drop(self.table().open.remove(&(replica, id)));
    }

    /// Gives all moments of a replica up.
    pub fn close_all_of(&self, replica: ReplicaId) {
        self.table().open.retain(|(of, _), _| *of != replica);
    }

    /// Whether there is room for what moments keep. Without, all of them are given up.
    pub fn set_room(&self, room: bool) {
        let mut table = self.table();
        match (table.admission, room) {
            (Admission::Closed, _) => {}
            (_, true) => table.admission = Admission::Open,
            (_, false) => {
                table.admission = Admission::NoRoom;
                table.open.clear();
            }
        }
    }

    /// Gives all up for good, and waits until their threads have let go of the store.
    pub async fn shut(&self) {
        {
            let mut table = self.table();
            table.admission = Admission::Closed;
            table.open.clear();
        }
        self.changed.notify_one();
        let all = u32::try_from(PINS_MAX).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        drop(self.places.acquire_many(all).await);
    }

    /// Gives up what has come to its end, until all are closed.
    pub async fn run(self: Arc<Self>) {
        loop {
            let end = match self.expire(Instant::now()) {
                Next::Never => return,
                Next::At(end) => sleep_until(end).boxed(),
                Next::Nothing => std::future::pending().boxed(),
            };
            self.wait(end).await;
        }
    }

    /// What is opened meanwhile comes to its end later than what was there.
    async fn wait(&self, end: BoxFuture<'_, ()>) {
        tokio::select! {
            biased;
            () = self.changed.notified() => {}
            () = end => {}
        }
    }

    fn expire(&self, now: Instant) -> Next {
        let mut table = self.table();
        table.open.retain(|_, pin| pin.life.end() > now);
        match (table.admission, table.open.values().map(|pin| pin.life.end()).min()) {
            (Admission::Closed, _) => Next::Never,
            (Admission::Open | Admission::NoRoom, Some(end)) => Next::At(end),
            (Admission::Open | Admission::NoRoom, None) => Next::Nothing,
        }
    }

    /// Moments that are kept, those included whose last read goes on.
    pub fn kept(&self) -> usize {
        PINS_MAX.saturating_sub(self.places.available_permits())
    }

    /// Moments that were refused since the last call.
    pub fn take_refused(&self) -> u64 {
        self.refused.swap(0, Ordering::Relaxed)
    }
}

/// When the next moment comes to its end.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    At(Instant),
    /// None is kept.
    Nothing,
    /// None will be.
    Never,
}

/// The life of a thread that keeps a moment.
fn hold(engine: &dyn StateEngine, work: &Receiver<Work>) {
    with_view(engine, |view| {
        while let Ok(read) = work.recv() {
            read(view);
        }
    });
}

#[cfg(test)]
#[path = "pins_tests.rs"]
mod tests;
