//! What waits for a stream and what is under way on it, as a value.
//!
//! ```text
//! push ─► ready ─► take ─► under way ─► answered
//!   │       ▲
//!   └► parked (a shard beyond its share)
//! ```
//!
//! At most a window of operations and bytes is under way, and at most half of it for one shard: what exceeds that is parked
//! by shard, so that a slow shard does not hold back the others. No order is promised, but nothing is passed for long: what
//! was parked holds its place in the share from the moment that there is one. Operations whose shard is not known share the
//! lane of shard 0.
//!
//! An operation whose time is over loses its caller, but holds its place in the window until it is answered, since the
//! node counts it until then.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

/// What may wait beyond the window for one shard, before others stand in line. Callers hold their values anyway; this bounds
/// what is left of those that gave up, until it is late.
const WAITING_OPERATIONS_MAX: usize = 16_384;
/// The same in bytes.
const WAITING_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) operations: u32,
    pub(crate) bytes: u64,
}

/// An operation and who waits for its answer.
#[derive(Debug)]
pub(crate) struct Waiting<O, R> {
    pub(crate) shard: u32,
    pub(crate) bytes: u64,
    pub(crate) deadline: Instant,
    pub(crate) operation: O,
    pub(crate) reply: R,
}

#[derive(Debug)]
struct Ready<O, R> {
    waiting: Waiting<O, R>,
    /// It was parked, and counts in its lane already.
    granted: bool,
}

#[derive(Debug)]
struct UnderWay<R> {
    id: u64,
    shard: u32,
    bytes: u64,
    deadline: Instant,
    /// `None`: its time is over.
    reply: Option<R>,
}

/// What a shard has of the window.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    operations: u32,
    bytes: u64,
}

#[derive(Debug)]
struct Lane<O, R> {
    share: Share,
    parked: VecDeque<Waiting<O, R>>,
    /// Parked or ready.
    waiting: usize,
    waiting_bytes: u64,
}

impl<O, R> Default for Lane<O, R> {
    fn default() -> Self {
        Self { share: Share::default(), parked: VecDeque::new(), waiting: 0, waiting_bytes: 0 }
    }
}

/// An operation that is to be sent.
#[derive(Debug)]
pub(crate) struct Taken<O> {
    pub(crate) id: u64,
    pub(crate) bytes: u64,
    pub(crate) deadline: Instant,
    pub(crate) operation: O,
}

/// Who waited for something that is not coming, and whether it was sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Left<R> {
    pub(crate) reply: R,
    pub(crate) sent: bool,
}

/// The operations of one stream.
#[derive(Debug)]
pub(crate) struct Queue<O, R> {
    window: Window,
    ready: VecDeque<Ready<O, R>>,
    lanes: HashMap<u32, Lane<O, R>>,
    /// By the lower half of an id; its upper half counts uses, so that no id is used again soon.
    under_way: Vec<Option<UnderWay<R>>>,
    free: Vec<u32>,
    uses: u32,
    operations: u32,
    bytes: u64,
    /// No deadline is earlier. `None`: there is none.
    next_deadline: Option<Instant>,
}

impl<O, R> Queue<O, R> {
    pub(crate) fn new(window: Window) -> Self {
        Self {
            window,
            ready: VecDeque::new(),
            lanes: HashMap::new(),
            under_way: Vec::new(),
            free: Vec::new(),
            uses: 0,
            operations: 0,
            bytes: 0,
            next_deadline: None,
        }
    }

    /// The node told its window. Zeros would stop everything and are taken for one.
    pub(crate) fn resize(&mut self, window: Window) {
        self.window = Window { operations: window.operations.max(1), bytes: window.bytes.max(1) };
        let shards: Vec<u32> = self.lanes.keys().copied().collect();
        for shard in shards {
            self.unpark(shard);
        }
    }

    /// No sooner is anything late.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.next_deadline
    }

    /// Whether so much waits for a shard that no more should be pushed.
    pub(crate) fn is_full(&self, shard: u32) -> bool {
        self.lanes.get(&shard).is_some_and(|lane| {
            lane.waiting >= WAITING_OPERATIONS_MAX || lane.waiting_bytes >= WAITING_BYTES_MAX
        })
    }

    /// Puts an operation behind the others. Whether there is room for it is asked before.
    pub(crate) fn push(&mut self, waiting: Waiting<O, R>) {
        if self.next_deadline.is_none_or(|next| waiting.deadline < next) {
            self.next_deadline = Some(waiting.deadline);
        }
        let lane = self.lanes.entry(waiting.shard).or_default();
        lane.waiting += 1;
        lane.waiting_bytes += waiting.bytes;
        if lane.parked.is_empty() {
            self.ready.push_back(Ready { waiting, granted: false });
        } else {
            lane.parked.push_back(waiting);
        }
    }

    /// Whether the next [`Self::take`] would give something, as far as the window goes.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.front().is_some_and(|next| self.fits(next.waiting.bytes))
    }

    /// At most so many can be taken now.
    pub(crate) fn ready_len(&self) -> usize {
        self.ready.len()
    }

    /// Whether the window has room; something larger than it goes alone.
    fn fits(&self, bytes: u64) -> bool {
        self.operations == 0
            || (self.operations < self.window.operations && self.bytes + bytes <= self.window.bytes)
    }

    /// Takes the next operation that the window and its shard's share have room for, of at most `room_bytes`, under the id
    /// that its answer will have. Those that nobody waits for any more are dropped.
    pub(crate) fn take(&mut self, room_bytes: u64, is_awaited: impl Fn(&R) -> bool) -> Option<Taken<O>> {
        loop {
            let Ready { waiting: next, granted } = self.ready.front()?;
            let (shard, bytes, granted) = (next.shard, next.bytes, *granted);
            if !is_awaited(&next.reply) {
                self.ready.pop_front();
                self.not_waiting(shard, bytes);
                if granted {
                    self.give_back(shard, bytes);
                }
                continue;
            }
            if !self.fits(bytes) || bytes > room_bytes {
                return None;
            }
            let next = self.ready.pop_front()?.waiting;
            let lane = self.lanes.entry(shard).or_default();
            if !granted && !lane.share.has_room(self.window, bytes) {
                lane.parked.push_back(next);
                continue;
            }
            if !granted {
                lane.share.take(bytes);
            }
            return Some(self.begin(next));
        }
    }

    fn begin(&mut self, next: Waiting<O, R>) -> Taken<O> {
        self.not_waiting(next.shard, next.bytes);
        self.operations += 1;
        self.bytes += next.bytes;
        let index = self.free.pop().unwrap_or_else(|| {
            self.under_way.push(None);
            // As many as a window has operations, which is a u32.
            u32::try_from(self.under_way.len() - 1).unwrap_or(u32::MAX)
        });
        self.uses = self.uses.wrapping_add(1);
        let id = u64::from(self.uses) << 32 | u64::from(index);
        let Waiting { shard, bytes, deadline, operation, reply } = next;
        self.under_way[index as usize] = Some(UnderWay { id, shard, bytes, deadline, reply: Some(reply) });
        Taken { id, bytes, deadline, operation }
    }

    fn not_waiting(&mut self, shard: u32, bytes: u64) {
        let Some(lane) = self.lanes.get_mut(&shard) else { return };
        lane.waiting -= 1;
        lane.waiting_bytes -= bytes;
    }

    /// An answer came. Who waits for it; `None`: nobody any more, or it answers nothing.
    pub(crate) fn answered(&mut self, id: u64) -> Option<R> {
        let index = id & u64::from(u32::MAX);
        let place = self.under_way.get_mut(usize::try_from(index).ok()?)?;
        let ended = place.take_if(|under_way| under_way.id == id)?;
        self.free.push(u32::try_from(index).ok()?);
        self.operations -= 1;
        self.bytes -= ended.bytes;
        self.give_back(ended.shard, ended.bytes);
        ended.reply
    }

    /// A place in a shard's share is free again.
    fn give_back(&mut self, shard: u32, bytes: u64) {
        let Some(lane) = self.lanes.get_mut(&shard) else { return };
        lane.share.operations -= 1;
        lane.share.bytes -= bytes;
        self.unpark(shard);
    }

    /// What a shard's share has room for goes to the end of the line.
    fn unpark(&mut self, shard: u32) {
        let Some(lane) = self.lanes.get_mut(&shard) else { return };
        while let Some(first) = lane.parked.pop_front() {
            if !lane.share.has_room(self.window, first.bytes) {
                lane.parked.push_front(first);
                break;
            }
            lane.share.take(first.bytes);
            self.ready.push_back(Ready { waiting: first, granted: true });
        }
    }

    /// Those whose time is over.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<Left<R>> {
        let mut left = Vec::new();
        let mut next: Option<Instant> = None;
        let mut keep = |deadline: Instant| next = Some(next.map_or(deadline, |next| next.min(deadline)));
        for under_way in self.under_way.iter_mut().flatten() {
            if under_way.deadline <= now {
                left.extend(under_way.reply.take().map(|reply| Left { reply, sent: true }));
            } else {
                keep(under_way.deadline);
            }
        }
        for lane in self.lanes.values_mut() {
            for waiting in std::mem::take(&mut lane.parked) {
                if waiting.deadline > now {
                    keep(waiting.deadline);
                    lane.parked.push_back(waiting);
                    continue;
                }
                lane.waiting -= 1;
                lane.waiting_bytes -= waiting.bytes;
                left.push(Left { reply: waiting.reply, sent: false });
            }
        }
        // What it unparks is behind what is looked at here, and was kept above.
        for ready in std::mem::take(&mut self.ready) {
            if ready.waiting.deadline > now {
                keep(ready.waiting.deadline);
                self.ready.push_back(ready);
                continue;
            }
            self.not_waiting(ready.waiting.shard, ready.waiting.bytes);
            if ready.granted {
                self.give_back(ready.waiting.shard, ready.waiting.bytes);
            }
            left.push(Left { reply: ready.waiting.reply, sent: false });
        }
        self.next_deadline = next;
        left
    }

    /// The stream is over: everybody who waits.
    pub(crate) fn fail(&mut self) -> Vec<Left<R>> {
        let sent = self.under_way.drain(..).flatten().filter_map(|under_way| under_way.reply);
        let mut left: Vec<Left<R>> = sent.map(|reply| Left { reply, sent: true }).collect();
        let parked = self.lanes.drain().flat_map(|(_, lane)| lane.parked);
        let unsent = self.ready.drain(..).map(|ready| ready.waiting).chain(parked);
        left.extend(unsent.map(|waiting| Left { reply: waiting.reply, sent: false }));
        *self = Self::new(self.window);
        left
    }
}

impl Share {
    /// Half of the window; something larger than that goes alone.
    fn has_room(self, window: Window, bytes: u64) -> bool {
        let (operations_max, bytes_max) = (window.operations.div_ceil(2), window.bytes / 2);
        self.operations == 0 || (self.operations < operations_max && self.bytes + bytes <= bytes_max)
    }

    fn take(&mut self, bytes: u64) {
        self.operations += 1;
        self.bytes += bytes;
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
