//! One stream as a value: what was taken, what is answered, what waits to be sent. Pure: time comes in as an argument, and
//! what has to be asked of the store goes out as a list.

use std::sync::Arc;

use kv_proto::{
    kv::v1::{BatchOperation, BatchResult, Failure},
    peer::v1::{GotKeys, Outcome, Refusal, ReplyContext},
};
use kv_topology::{ClusterMap, ShardId};
use tokio::time::Instant;

use super::{
    answer::{self, Answer},
    intake::{self, Ask, Atlas, Group, Judged, Turned, WINDOW},
    ledger::{Call, Kind, Ledger, Reading},
    outbox::Outbox,
    tally::Tally,
};
use crate::api::{
    error::Refused,
    limits::{BATCH_WINDOW_OPERATIONS, MESSAGE_BYTES_MAX},
    quota::HeldBytes,
    validate::Violation,
};

/// What the store is to be asked.
#[derive(Debug)]
pub struct Errand {
    /// The number of its call.
    pub number: usize,
    /// Where.
    pub shard: ShardId,
    /// What.
    pub ask: Ask,
    /// It needs the share of a large reply first.
    pub returns_values: bool,
    /// Until when.
    pub deadline: Instant,
}

/// Says whether a large reply may be held now.
pub type Grant<'a> = &'a mut dyn FnMut() -> bool;

/// The stream.
pub struct Desk {
    ledger: Ledger,
    outbox: Outbox,
    atlas: Atlas,
    /// The stream's own deadline.
    until: Option<Instant>,
    /// What may wait to be sent, and be in one message, without the share of a large reply, bytes.
    small: usize,
    /// Large replies that the outbox may hold beside its own bytes.
    large_replies: usize,
    /// What was counted since it was last looked at.
    pub tally: Tally,
}

impl Desk {
    /// A stream that is opened while this is the map, and that ends at `until`; what it holds for its client is small up to
    /// so many bytes.
    pub fn new(map: Arc<ClusterMap>, until: Option<Instant>, small: usize) -> Self {
        Self {
            ledger: Ledger::default(),
            outbox: Outbox::default(),
            atlas: Atlas::new(map),
            until,
            small,
            large_replies: 0,
            tally: Tally::default(),
        }
    }

    /// Routes by `map` from now on.
    pub fn turn_to(&mut self, map: Arc<ClusterMap>) {
        self.atlas.turn_to(map);
    }

    /// When the stream as a whole must end.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    fn map(&self) -> Arc<ClusterMap> {
        self.atlas.map.clone()
    }

    fn push(&mut self, kind: Kind, answer: Answer) {
        self.tally.answered(kind, answer.code);
        self.outbox.push(answer);
    }

    /// Takes a message; `hold` takes room for so many bytes among those of the node.
    ///
    /// # Errors
    /// The message breaks the protocol. Nothing of it was taken.
    pub fn take(
        &mut self,
        operations: Vec<BatchOperation>,
        now: Instant,
        hold: impl FnOnce(usize) -> Result<Option<HeldBytes>, Refused>,
    ) -> Result<Vec<Errand>, Violation> {
        intake::enter(&operations, &mut self.ledger)?;
        self.tally.message(operations.len());
        let sizes = intake::sizes(&operations);
        let mut held = match hold(intake::weight(&sizes)) {
            Ok(held) => held,
            Err(refused) => {
                self.turn_away(&operations, &refused);
                return Ok(Vec::new());
            }
        };
        let Judged { groups, turned } =
            intake::judge(operations, &sizes, &self.atlas, &mut self.ledger, now, self.until);
        for Turned { id, kind, refused } in turned {
            if matches!(refused, Refused::Limit(WINDOW)) {
                self.tally.beyond_window();
            }
            let failure = answer::failure(&refused, &self.atlas.map);
            self.ledger.refuse(id);
            self.push(kind, Answer::failed(id, failure));
        }
        // Each call gives back its own bytes when it ends: a slow shard keeps those of its calls, not of their messages.
        let message_bytes = sizes.iter().sum();
        let begin = |mut group: Group| {
            group.detach(message_bytes);
            let held = held.as_mut().map(|held| held.split(group.weight()));
            self.begin(group, now, held)
        };
        Ok(groups.into_iter().map(begin).collect())
    }

    fn begin(&mut self, group: Group, came: Instant, held: Option<HeldBytes>) -> Errand {
        let returns_values = group.returns_values();
        let Group { shard, waiting, ask, deadline, .. } = group;
        let reading = match &ask {
            Ask::Read(reading) => Some(reading.clone()),
            Ask::Write(_) => None,
        };
        let number = self.ledger.open(Call { shard, waiting, reading, came, held });
        Errand { number, shard, ask, returns_values, deadline }
    }

    /// Refuses a message as a whole, operation by operation.
    ///
    /// # Errors
    /// The message breaks the protocol.
    pub fn refuse(&mut self, operations: &[BatchOperation], refused: &Refused) -> Result<(), Violation> {
        intake::enter(operations, &mut self.ledger)?;
        self.turn_away(operations, refused);
        Ok(())
    }

    fn turn_away(&mut self, operations: &[BatchOperation], refused: &Refused) {
        let failure = answer::failure(refused, &self.atlas.map);
        for operation in operations {
            self.ledger.refuse(operation.id);
            let kind = intake::kind(operation.operation.as_ref());
            self.push(kind, Answer::failed(operation.id, failure.clone()));
        }
    }

    /// Whether another answer of this weight may be held.
    fn fits(&mut self, weight: usize, grant: Grant<'_>) -> bool {
        let all = self.outbox.bytes() + weight;
        if all <= self.small {
            return true;
        }
        if self.large_replies == 0 && grant() {
            self.granted();
        }
        self.large_replies > 0 && all <= self.small + self.large_replies * MESSAGE_BYTES_MAX
    }

    /// The store has answered writes. All that they return is told, since it cannot be asked for again: a call that returns
    /// values had the share of a large reply when it began.
    pub fn written(&mut self, number: usize, result: Result<Vec<Outcome>, Refusal>, now: Instant) {
        self.tally.ended(self.ledger.call(number), now);
        let map = self.map();
        match result {
            Ok(outcomes) => {
                let mut outcomes = InOrder::new(outcomes);
                self.settle(number, usize::MAX, |result, waiting| {
                    answer::of_write(waiting, outcomes.at(result), &map)
                });
            }
            Err(refusal) => self.fail(number, &answer::failure(&Refused::Store(refusal), &map)),
        }
    }

    /// The store has answered reads. What there is no room for is let go, and read again later.
    pub fn read(
        &mut self,
        number: usize,
        result: Result<(Option<ReplyContext>, GotKeys), Refused>,
        now: Instant,
        grant: Grant<'_>,
    ) {
        self.tally.ended(self.ledger.call(number), now);
        let map = self.map();
        match result {
            Ok((_, GotKeys { results })) if results.is_empty() => {
                let refused = Refused::Bug("a read of keys without a result".to_owned());
                self.fail(number, &answer::failure(&refused, &map));
            }
            Ok((context, GotKeys { results })) => {
                let fitting = self.fitting(results.iter().map(answer::weight_of), grant);
                let mut results = InOrder::new(results);
                self.settle(number, fitting, |result, waiting| {
                    let got = results.at(result).unwrap_or_default();
                    answer::of_read(waiting, context.as_ref(), got)
                });
            }
            Err(refused) => self.fail(number, &answer::failure(&refused, &map)),
        }
    }

    /// How many of these there is room for.
    fn fitting(&mut self, weights: impl Iterator<Item = usize>, grant: Grant<'_>) -> usize {
        let mut all = 0;
        let fit = weights.take_while(|weight| {
            all += weight;
            self.fits(all, grant)
        });
        fit.count()
    }

    fn settle(
        &mut self,
        number: usize,
        count: usize,
        mut answer: impl FnMut(usize, super::ledger::Waiting) -> Answer,
    ) {
        let most = self.ledger.call(number).map_or(0, |call| call.waiting.len());
        let mut settled = Vec::with_capacity(most);
        self.ledger.settle(number, count, |result, waiting| settled.push((result, waiting)));
        for (result, waiting) in settled {
            let answer = answer(result, waiting);
            self.push(waiting.kind, answer);
        }
    }

    fn fail(&mut self, number: usize, failure: &Failure) {
        self.settle(number, usize::MAX, |_, waiting| Answer::failed(waiting.id, failure.clone()));
    }

    /// Answers what is overdue.
    pub fn expire(&mut self, now: Instant) {
        let map = self.map();
        let Self { ledger, outbox, tally, .. } = self;
        ledger.expire(now, |shard, waiting| {
            let answer = answer::overdue(shard, waiting, &map);
            tally.answered(waiting.kind, answer.code);
            outbox.push(answer);
        });
    }

    /// Answers all that waits as if it were overdue.
    pub fn expire_all(&mut self) {
        let map = self.map();
        let Self { ledger, outbox, tally, .. } = self;
        ledger.expire_all(|shard, waiting| {
            let answer = answer::overdue(shard, waiting, &map);
            tally.answered(waiting.kind, answer.code);
            outbox.push(answer);
        });
    }

    /// The next read that was let go, of a shard of which none is under way again. To be asked when nothing waits to be sent.
    pub fn again(&mut self) -> Option<(usize, ShardId, Reading, Instant)> {
        self.ledger.again()
    }

    /// Another large reply may be held from now on, until nothing waits to be sent.
    pub fn granted(&mut self) {
        self.large_replies += 1;
    }

    /// Whether what waits to be sent is more than what needs no share.
    pub fn exceeds_small(&self) -> bool {
        self.outbox.bytes() > self.small
    }

    /// Whether another message may be taken: while the client takes its answers.
    pub fn takes(&self) -> bool {
        self.outbox.bytes() < self.small && self.outbox.len() < BATCH_WINDOW_OPERATIONS
    }

    /// Whether there is something to send.
    pub fn has_answers(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// The answers of the next message; with the last ones the room for large replies is given up.
    pub fn message(&mut self) -> Vec<BatchResult> {
        let results = self.outbox.message(self.small);
        if self.outbox.is_empty() {
            self.large_replies = 0;
        }
        results
    }

    /// Whether every operation that was taken has its answer.
    pub fn is_idle(&self) -> bool {
        self.ledger.is_idle()
    }

    /// Nothing is overdue before this moment.
    pub fn earliest(&self) -> Option<Instant> {
        self.ledger.earliest()
    }
}

/// Results that are taken in ascending order of their numbers, some left out.
struct InOrder<T> {
    rest: std::vec::IntoIter<T>,
    next: usize,
}

impl<T> InOrder<T> {
    fn new(results: Vec<T>) -> Self {
        Self { rest: results.into_iter(), next: 0 }
    }

    fn at(&mut self, number: usize) -> Option<T> {
        let skipped = number.checked_sub(self.next)?;
        self.next = number + 1;
        self.rest.nth(skipped)
    }
}

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
