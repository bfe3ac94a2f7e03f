//! Clients that count: each increments keys of its own in a session, sends what was not answered again through whatever
//! goes wrong, and knows at every moment how often it has incremented. The store counts too: the version of a key.
//!
//! A put adds one to the version of its key, so a write that was applied twice, or said to be applied and was not, shows in
//! the versions that outcomes tell and in the one that is read at the end.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use kv_proto::{
    disk::v1::{OpenSession, Operation, Put, operation::Kind},
    peer::v1::{Outcome, outcome, read_response},
};
use kvnode::{refusal, router::store::Store};
use tokio::time::sleep;

use crate::{
    clients::{Answer, question, request},
    world::{SHARD, World},
};

/// Increments that are under way at once, at most.
const AT_ONCE: u64 = 4;
/// Sessions of one counter live so long, ms of log time: shorter than some troubles.
const SHORT_TTL_MS: u32 = 5_000;
/// Sessions of the others outlive the run.
pub const LONG_TTL_MS: u32 = 3_600_000;

/// One client that counts.
pub struct Counter {
    pub id: u32,
    pub world: Arc<World>,
    /// Set when it shall come to its end.
    pub ending: Arc<AtomicBool>,
    /// A planted bug: the server is not told which write of which session it is.
    pub forgets_session: bool,
}

/// What it knows.
#[derive(Default)]
struct Ledger {
    session: u64,
    sequence: u64,
    /// Sequences without an outcome, and which increment they are.
    pending: Vec<u64>,
    /// Version that an outcome told, by sequence of this session.
    told: BTreeMap<u64, u64>,
    /// Increments that happened in this session and the ones before.
    count: u64,
}

impl Counter {
    /// Counts until it is told to end; then what it counted must be there. How often it has incremented.
    pub async fn run(self) -> u64 {
        let mut ledger = Ledger::default();
        while !self.ending.load(Relaxed) {
            sleep(self.world.dice.millis(50, 600)).await;
            if ledger.session == 0 {
                ledger.session = self.open().await;
            }
            for _ in 0..=self.world.dice.below(AT_ONCE) {
                ledger.sequence += 1;
                ledger.pending.push(ledger.sequence);
            }
            self.settle(&mut ledger).await;
        }
        let found = self.read().await;
        if found != ledger.count {
            self.violated(&format!("counted {}, and {found} is there", ledger.count));
        }
        ledger.count
    }

    fn key(&self) -> String {
        format!("count-{}", self.id)
    }

    fn violated(&self, what: &str) {
        self.world.violated(format!("counter {}: {what}", self.id));
    }

    async fn pause(&self) {
        sleep(self.world.dice.millis(20, 300)).await;
    }

    /// Opens a session, however often it takes; what came of earlier attempts expires.
    async fn open(&self) -> u64 {
        let ttl_ms = if self.id.is_multiple_of(2) { SHORT_TTL_MS } else { LONG_TTL_MS };
        loop {
            if let Some(session) = open(&self.world, ttl_ms).await {
                return session;
            }
            self.pause().await;
        }
    }

    /// Sends what has no outcome, some or all of it, again and again.
    async fn settle(&self, ledger: &mut Ledger) {
        while let Some(lowest) = ledger.pending.first().copied() {
            let chosen: Vec<u64> =
                ledger.pending.iter().copied().filter(|_| self.world.dice.below(4) > 0).collect();
            let operations = chosen.iter().map(|sequence| self.increment(ledger.session, *sequence, lowest));
            // And one that was answered: a retry that was on its way must change nothing. With the planted bug every one
            // would show; it must be found by what goes wrong.
            let answered = ledger.told.keys().next_back().copied();
            let answered = answered.filter(|told| *told >= lowest && !self.forgets_session);
            let again = answered.map(|told| self.increment(ledger.session, told, lowest));
            let operations: Vec<_> = operations.chain(again).collect();
            let sequences = chosen.iter().copied().chain(answered);
            if operations.is_empty() {
                continue;
            }
            let Some(outcomes) = send(&self.world, operations).await else {
                self.pause().await;
                continue;
            };
            for (sequence, outcome) in sequences.zip(outcomes) {
                if self.hear(ledger, sequence, outcome) == Heard::Expired {
                    self.begin_anew(ledger).await;
                    return;
                }
            }
            self.pause().await;
        }
    }

    fn increment(&self, session_id: u64, sequence: u64, lowest_outstanding: u64) -> Operation {
        let (key, value) = (Bytes::from(self.key()), Bytes::copy_from_slice(&sequence.to_be_bytes()));
        let put = Put { key, value_crc32c: crc32c::crc32c(&value), value, ..Put::default() };
        let plain = Operation { kind: Some(Kind::Put(put)), ..Operation::default() };
        if self.forgets_session {
            return plain;
        }
        Operation { session_id, sequence, lowest_outstanding, fingerprint: sequence, ..plain }
    }

    fn hear(&self, ledger: &mut Ledger, sequence: u64, outcome: Outcome) -> Heard {
        match outcome.result {
            Some(outcome::Result::Put(put)) if put.applied => {
                let before = ledger.told.insert(sequence, put.version);
                if before.is_some_and(|before| before != put.version) {
                    self.violated(&format!("{sequence} made versions {before:?} and {}", put.version));
                }
                if before.is_none() {
                    ledger.count += 1;
                    ledger.pending.retain(|pending| *pending != sequence);
                }
                let highest = ledger.count + ledger.pending.len() as u64;
                if put.version == 0 || put.version > highest {
                    self.violated(&format!("version {} after at most {highest} increments", put.version));
                }
                Heard::Outcome
            }
            Some(outcome::Result::Refusal(refused)) if refused.reason == refusal::SESSION_EXPIRED => {
                Heard::Expired
            }
            Some(outcome::Result::Refusal(_)) => Heard::Refusal,
            other => {
                self.violated(&format!("an increment was answered with {other:?}"));
                Heard::Refusal
            }
        }
    }

    /// The session has expired: nothing of it will be applied any more, so what is there now is what happened.
    async fn begin_anew(&self, ledger: &mut Ledger) {
        let found = self.read().await;
        let highest = ledger.count + ledger.pending.len() as u64;
        if found < ledger.count || found > highest {
            self.violated(&format!("{found} is there, of {} to {highest}", ledger.count));
        }
        *ledger = Ledger { count: found, ..Ledger::default() };
        ledger.session = self.open().await;
    }

    /// The version of the key, however long it takes.
    async fn read(&self) -> u64 {
        loop {
            let question = question(&self.key());
            let asked = request(&self.world, self.world.any_node(), |router, deadline| async move {
                router.read(question, deadline).await
            });
            if let Answer::Heard(response) = asked.await
                && let Some(read_response::Read::Get(got)) = response.read
            {
                let found = got.results.into_iter().next().and_then(|result| result.kv);
                return found.map_or(0, |kv| kv.version);
            }
            self.pause().await;
        }
    }
}

/// Asks any node to open a session.
pub async fn open(world: &World, ttl_ms: u32) -> Option<u64> {
    let kind = Some(Kind::OpenSession(OpenSession { ttl_ms }));
    let outcomes = send(world, vec![Operation { kind, ..Operation::default() }]).await?;
    match outcomes.into_iter().next()?.result? {
        outcome::Result::Session(session) => Some(session.session_id),
        _ => None,
    }
}

/// Asks any node. `None`: no answer, or a refusal of all.
async fn send(world: &World, operations: Vec<Operation>) -> Option<Vec<Outcome>> {
    let asked = request(world, world.any_node(), |router, deadline| async move {
        router.write(SHARD, operations, deadline).await
    });
    match asked.await {
        Answer::Heard(outcomes) => Some(outcomes),
        Answer::Refused(_) | Answer::Silence => None,
    }
}

/// What an outcome told.
#[derive(PartialEq)]
enum Heard {
    Outcome,
    Refusal,
    Expired,
}
