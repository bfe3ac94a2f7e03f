//! Who waits for an answer on one stream, and for which call of the store. Pure: time comes in as an argument.
//!
//! A call is what one message asks of one shard. Its operations are answered by what the call brings, or one by one when
//! their time is over; whichever comes first, each is answered once and leaves the window then. A call whose operations
//! have all been answered stays until it has ended, so that its number means nothing else meanwhile.
//!
//! A read that brought more than there is room for is put off: its operations wait on, and are asked for again, one read of
//! each shard at a time: those of a shard that does not answer hold up none of another one.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use bytes::Bytes;
use kv_proto::kv::v1::ReadOptions;
use kv_topology::ShardId;
use tokio::time::Instant;

use super::window::{Load, Window};
use crate::api::quota::HeldBytes;

/// What an operation asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Put.
    Put,
    /// Get.
    Get,
    /// Delete.
    Delete,
    /// Txn.
    Txn,
    /// Nothing that this node knows.
    Unknown,
}

/// An operation without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The client's.
    pub id: u64,
    /// What it asks for.
    pub kind: Kind,
    /// When it is answered at the latest.
    pub deadline: Instant,
    /// Its encoded size.
    pub bytes: usize,
}

/// What a read asks for, kept until it is answered: it may be asked for again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Of all its keys.
    pub options: ReadOptions,
    /// Without values.
    pub metadata_only: bool,
    /// One for each operation.
    pub keys: Vec<Bytes>,
}

/// What one message asks of one shard.
#[derive(Debug)]
pub struct Call {
    /// The shard.
    pub shard: ShardId,
    /// One for each operation, in the order in which they were asked for; `None`: answered.
    pub waiting: Vec<Option<Waiting>>,
    /// `None`: writes.
    pub reading: Option<Reading>,
    /// When its message came.
    pub came: Instant,
    /// Its part of the message's bytes, until it has ended.
    pub held: Option<HeldBytes>,
}

/// A call that is under way or put off.
#[derive(Debug)]
struct Open {
    call: Call,
    /// Operations without an answer.
    left: usize,
    /// Positions that were asked for when it was asked again; `None`: all.
    asked: Option<Vec<usize>>,
}

/// All that is under way on a stream.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Of operations without an answer.
    ids: HashSet<u64>,
    window: Window,
    calls: Vec<Option<Open>>,
    free: Vec<usize>,
    put_off: BTreeMap<ShardId, VecDeque<usize>>,
    /// Shards of which a read that was put off is under way again.
    asked_again: BTreeSet<ShardId>,
    /// No operation has its deadline before.
    earliest: Option<Instant>,
}

impl Ledger {
    /// Notes the ids of a message's operations: each will be answered once.
    ///
    /// # Errors
    /// The position of the first one that has no answer yet, or that came twice. Nothing was noted then.
    pub fn enter(&mut self, ids: impl Iterator<Item = u64> + Clone) -> Result<(), usize> {
        for (position, id) in ids.clone().enumerate() {
            if !self.ids.insert(id) {
                ids.take(position).for_each(|id| {
                    self.ids.remove(&id);
                });
                return Err(position);
            }
        }
        Ok(())
    }

    /// An operation is answered without a call.
    pub fn refuse(&mut self, id: u64) {
        self.ids.remove(&id);
    }

    /// Takes a place in the window; see [`Window::take`].
    pub fn take(&mut self, shard: ShardId, bytes: usize) -> bool {
        self.window.take(shard, Load::one(bytes))
    }

    /// A call begins; its number.
    pub fn open(&mut self, call: Call) -> usize {
        let deadlines = call.waiting.iter().flatten().map(|waiting| waiting.deadline);
        self.earliest = deadlines.chain(self.earliest).min();
        let left = call.waiting.iter().flatten().count();
        let open = Some(Open { call, left, asked: None });
        match self.free.pop() {
            Some(number) => {
                self.calls[number] = open;
                number
            }
            None => {
                self.calls.push(open);
                self.calls.len() - 1
            }
        }
    }

    /// What a call is about.
    pub fn call(&self, number: usize) -> Option<&Call> {
        self.calls.get(number)?.as_ref().map(|open| &open.call)
    }

    /// A call has ended, and its first `count` results are used: each operation that still waits for one of them is given
    /// to `answer`, with the number of its result. The call is put off when others are left; `usize::MAX` leaves none.
    pub fn settle(&mut self, number: usize, count: usize, mut answer: impl FnMut(usize, Waiting)) {
        let Some(open) = self.calls.get_mut(number).and_then(Option::as_mut) else { return };
        let (waiting, mut load) = (&mut open.call.waiting, Load::default());
        let all = waiting.len();
        let mut settle = |result: usize, position: usize| {
            if let Some(waiting) = waiting.get_mut(position).and_then(Option::take) {
                load = Load { operations: load.operations + 1, bytes: load.bytes + waiting.bytes };
                self.ids.remove(&waiting.id);
                answer(result, waiting);
            }
        };
        match &open.asked {
            Some(asked) => asked.iter().take(count).enumerate().for_each(|(result, at)| settle(result, *at)),
            None => (0..all.min(count)).for_each(|at| settle(at, at)),
        }
        open.left -= load.operations;
        let shard = open.call.shard;
        self.window.give_back(shard, load);
        if open.asked.is_some() {
            self.asked_again.remove(&shard);
        }
        if open.left == 0 {
            self.remove(number);
        } else {
            self.put_off.entry(shard).or_default().push_back(number);
        }
    }

    fn remove(&mut self, number: usize) {
        self.calls[number] = None;
        self.free.push(number);
    }

    /// The next read that was put off, of a shard of which none is under way again, if it is still waited for: its number, and
    /// what to ask for now.
    pub fn again(&mut self) -> Option<(usize, ShardId, Reading, Instant)> {
        loop {
            let is_free = |shard: &&ShardId| !self.asked_again.contains(shard);
            let shard = *self.put_off.keys().find(is_free)?;
            let Some(number) = self.put_off.get_mut(&shard).and_then(VecDeque::pop_front) else {
                self.put_off.remove(&shard);
                continue;
            };
            let Some(open) = self.calls[number].as_mut() else { continue };
            let waiting = || open.call.waiting.iter().enumerate().filter(|(_, waiting)| waiting.is_some());
            let deadline = waiting().filter_map(|(_, waiting)| Some(waiting.as_ref()?.deadline)).max();
            let (Some(reading), Some(deadline)) = (&open.call.reading, deadline) else {
                self.remove(number);
                continue;
            };
            let asked: Vec<_> = waiting().map(|(position, _)| position).collect();
            let keys = asked.iter().filter_map(|position| reading.keys.get(*position).cloned()).collect();
            let reading = Reading { keys, ..*reading };
            open.asked = Some(asked);
            self.asked_again.insert(shard);
            return Some((number, shard, reading, deadline));
        }
    }

    /// Gives every operation whose time is over to `answer`, with its shard.
    pub fn expire(&mut self, now: Instant, answer: impl FnMut(ShardId, Waiting)) {
        if self.earliest.is_some_and(|earliest| earliest <= now) {
            self.answer_if(|waiting| waiting.deadline <= now, answer);
        }
    }

    /// The same with all operations.
    pub fn expire_all(&mut self, answer: impl FnMut(ShardId, Waiting)) {
        self.answer_if(|_| true, answer);
    }

    fn answer_if(&mut self, is_over: impl Fn(&Waiting) -> bool, mut answer: impl FnMut(ShardId, Waiting)) {
        self.earliest = None;
        for open in self.calls.iter_mut().flatten().filter(|open| open.left > 0) {
            let mut load = Load::default();
            for waits in &mut open.call.waiting {
                match waits.take_if(|waiting| is_over(waiting)) {
                    Some(over) => {
                        load = Load { operations: load.operations + 1, bytes: load.bytes + over.bytes };
                        self.ids.remove(&over.id);
                        answer(open.call.shard, over);
                    }
                    None => {
                        let deadline = waits.as_ref().map(|waiting| waiting.deadline);
                        self.earliest = deadline.into_iter().chain(self.earliest).min();
                    }
                }
            }
            open.left -= load.operations;
            self.window.give_back(open.call.shard, load);
        }
    }

    /// Before this moment nothing expires; `None`: nothing waits.
    pub fn earliest(&self) -> Option<Instant> {
        self.earliest.filter(|_| !self.ids.is_empty())
    }

    /// What is under way.
    pub fn taken(&self) -> Load {
        self.window.taken()
    }

    /// Whether every operation has its answer.
    pub fn is_idle(&self) -> bool {
        self.ids.is_empty()
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
