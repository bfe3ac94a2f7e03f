//! The sessions of a shard (thesis 6.3): which write was applied already, and what became of it.
//!
//! ```text
//! load ─► { judge ─► the write ─► keep · open · close · sweep … take_changes ─► one write of the store } …
//! ```
//!
//! Pure and part of the replicated state: the same entries give the same table on every replica, and a table that was read
//! from disk is equal to the one that wrote it. Time is log time. Nothing is decided by the order of a hash map.
//!
//! A session is not used by what refuses it: a refused write changes nothing here.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    mem,
};

use kv_proto::{
    disk::v1::{GroupRecord, Operation, SessionRecord, StoredOutcome},
    peer::v1::Refusal,
};
use kv_topology::ShardId;

use super::{
    limits::{SESSION_OUTCOMES_MAX, SHARD_OUTCOMES_MAX, SHARD_SESSIONS_MAX, SWEPT_SESSIONS_MAX},
    refusal::{failed_precondition, invalid},
    session::{self, Session, block_of},
};
use crate::refusal::{self, reason};

/// Advice to a client that must acknowledge first, or wait for others, ms.
const RETRY_AFTER_MS: u32 = 1_000;

/// Which write of which session an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Not 0.
    pub session_id: u64,
    /// From 1 on.
    pub sequence: u64,
    /// From 1 to the sequence.
    pub lowest_outstanding: u64,
    /// Of the operation's content.
    pub fingerprint: u64,
}

impl Stamp {
    /// Of an operation whose shape was checked. `None`: it is in no session.
    pub fn of(operation: &Operation) -> Option<Self> {
        let Operation { session_id, sequence, lowest_outstanding, fingerprint, .. } = *operation;
        (session_id != 0).then_some(Self { session_id, sequence, lowest_outstanding, fingerprint })
    }
}

/// What is to be done with a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was never applied: apply it, and [`Sessions::keep`] its outcome.
    Apply,
    /// It was applied: this came of it.
    Replay(StoredOutcome),
}

/// The record of a block of a session. `None`: there is none any more.
pub type Change = ((u64, u64), Option<SessionRecord>);

/// What happened to sessions, as numbers for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Writes that were answered with their stored outcome.
    pub replayed: u64,
    /// Sessions that were swept since they were not used in time.
    pub expired: u64,
    /// Sessions that gave way to new ones.
    pub evicted: u64,
    /// Writes and new sessions that were refused, by reason.
    pub refused: BTreeMap<String, u64>,
}

impl Tally {
    /// Adds what happened later.
    pub fn add(&mut self, later: Self) {
        let Self { replayed, expired, evicted, refused } = later;
        self.replayed += replayed;
        self.expired += expired;
        self.evicted += evicted;
        for (reason, count) in refused {
            *self.refused.entry(reason).or_default() += count;
        }
    }

    fn refuse(&mut self, refusal: &Refusal) {
        *self.refused.entry(refusal.reason.clone()).or_default() += 1;
    }
}

/// The sessions of one shard.
#[derive(Clone, Debug)]
pub struct Sessions {
    shard: ShardId,
    by_id: BTreeMap<u64, Session>,
    /// Outcomes that all of them keep.
    kept: usize,
    /// Session and block of records that changed since they were taken; perhaps several times.
    changed: Vec<(u64, u64)>,
    /// Before this log time no session can give way to a new one: spares looking through all of them in vain.
    all_used_until_ms: u64,
    tally: Tally,
}

impl Sessions {
    /// None.
    pub fn new(shard: ShardId) -> Self {
        Self {
            shard,
            by_id: BTreeMap::new(),
            kept: 0,
            changed: Vec::new(),
            all_used_until_ms: 0,
            tally: Tally::default(),
        }
    }

    /// Those of a store, from their blocks in the order of session and block.
    ///
    /// # Errors
    /// What is wrong with a record.
    pub fn read(
        shard: ShardId,
        records: impl IntoIterator<Item = ((u64, u64), SessionRecord)>,
    ) -> Result<Self, &'static str> {
        let mut sessions = Self::new(shard);
        for ((id, block), record) in records {
            if session::shard_of(id) != shard {
                return Err("a session of another shard");
            }
            match sessions.by_id.entry(id) {
                Entry::Vacant(new) => drop(new.insert(Session::read_first(block, record)?)),
                Entry::Occupied(mut session) => session.get_mut().read_next(block, record)?,
            }
        }
        sessions.kept = sessions.by_id.values().map(Session::kept).sum();
        Ok(sessions)
    }

    /// How many sessions there are.
    pub fn open_now(&self) -> usize {
        self.by_id.len()
    }

    /// How many outcomes they keep.
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// Decides about a write at log time `now_ms`. A replay is a use of its session.
    ///
    /// # Errors
    /// The write must not be applied.
    pub fn judge(&mut self, stamp: &Stamp, now_ms: u64) -> Result<Verdict, Refusal> {
        let verdict = self.decide(stamp, now_ms).inspect_err(|refused| self.tally.refuse(refused))?;
        if let Verdict::Replay(_) = verdict {
            self.touch(stamp, now_ms);
            self.tally.replayed += 1;
        }
        Ok(verdict)
    }

    fn decide(&self, stamp: &Stamp, now_ms: u64) -> Result<Verdict, Refusal> {
        self.check_shard(stamp.session_id)?;
        let live = self.by_id.get(&stamp.session_id).filter(|session| !session.is_expired(now_ms));
        let session = live.ok_or_else(|| expired(stamp.session_id))?;
        if stamp.sequence < session.lowest_outstanding() {
            return Err(acknowledged(stamp.sequence, session.lowest_outstanding()));
        }
        if let Some(stored) = session.outcome(stamp.sequence) {
            if stored.fingerprint != stamp.fingerprint {
                let message = format!("{} was the sequence of another write", stamp.sequence);
                return Err(invalid("sequence", message));
            }
            return Ok(Verdict::Replay(stored));
        }
        let lowest = session.lowest_outstanding().max(stamp.lowest_outstanding);
        if stamp.sequence.saturating_sub(lowest) >= u64::from(SESSION_OUTCOMES_MAX) {
            return Err(window_full(format!(
                "sequence {} is {SESSION_OUTCOMES_MAX} or more above the lowest outstanding, {lowest}",
                stamp.sequence
            )));
        }
        // Asked only when it matters: what this write acknowledges makes room for it. Who keeps much leaves as much to others, so
        // that clients which never acknowledge do not stop those which do.
        if self.kept + SESSION_OUTCOMES_MAX as usize > SHARD_OUTCOMES_MAX {
            let acknowledged = session.kept_below(lowest);
            let left = SHARD_OUTCOMES_MAX - (self.kept - acknowledged).min(SHARD_OUTCOMES_MAX);
            let own = session.kept() - acknowledged;
            if own >= left {
                return Err(window_full(format!(
                    "session {} keeps {own} outcomes that are not acknowledged, and the sessions of shard {} have room for {left} more",
                    stamp.session_id, self.shard
                )));
            }
        }
        Ok(Verdict::Apply)
    }

    /// Keeps what came of a write that [`Self::judge`] let pass at the same log time.
    pub fn keep(&mut self, stamp: &Stamp, now_ms: u64, revision: u64, branch: bool, version: u64) {
        let Stamp { session_id, sequence, lowest_outstanding: _, fingerprint } = *stamp;
        self.touch(stamp, now_ms);
        if let Some(session) = self.by_id.get_mut(&session_id) {
            session.keep(StoredOutcome { sequence, fingerprint, revision, branch, version });
            self.kept += 1;
            note(&mut self.changed, (session_id, block_of(sequence)));
        }
    }

    /// The session is used by `stamp`.
    fn touch(&mut self, stamp: &Stamp, now_ms: u64) {
        let Some(session) = self.by_id.get_mut(&stamp.session_id) else { return };
        let (before, changed) = (session.kept(), &mut self.changed);
        session.touch(now_ms, stamp.lowest_outstanding, |block| note(changed, (stamp.session_id, block)));
        self.kept -= before - session.kept();
    }

    /// Opens a session; its id. At the cap one that expired gives way, or one that keeps nothing and is idle.
    ///
    /// # Errors
    /// `SESSIONS_FULL`.
    pub fn open(&mut self, group: &mut GroupRecord, ttl_ms: u32) -> Result<u64, Refusal> {
        let (now_ms, number) = (group.log_time_ms, group.sessions_opened + 1);
        let id = session::id_of(self.shard, number).filter(|_| self.make_room(now_ms));
        let Some(id) = id else {
            let refused = self.full();
            self.tally.refuse(&refused);
            return Err(refused);
        };
        group.sessions_opened = number;
        let session = Session::new(ttl_ms, now_ms);
        self.all_used_until_ms = self.all_used_until_ms.min(session.gives_way_at_ms());
        self.by_id.insert(id, session);
        self.changed.push((id, 0));
        Ok(id)
    }

    /// Makes room for one more session, if it must; false: there is none.
    fn make_room(&mut self, now_ms: u64) -> bool {
        if self.by_id.len() < SHARD_SESSIONS_MAX {
            return true;
        }
        if now_ms < self.all_used_until_ms {
            return false;
        }
        self.sweep(now_ms);
        if self.by_id.len() >= SHARD_SESSIONS_MAX {
            self.evict(now_ms);
        }
        let first = self.by_id.values().map(Session::gives_way_at_ms).min();
        self.all_used_until_ms = first.unwrap_or(0);
        self.by_id.len() < SHARD_SESSIONS_MAX
    }

    /// Forgets the least recently used of the sessions that keep nothing and are idle.
    fn evict(&mut self, now_ms: u64) {
        let idle = self.by_id.iter().filter(|(_, session)| session.gives_way_at_ms() <= now_ms);
        if let Some((_, id)) = idle.map(|(id, session)| (session.touched_ms(), *id)).min() {
            self.remove(id);
            self.tally.evicted += 1;
        }
    }

    /// Closes a session; one that is not there is closed already.
    ///
    /// # Errors
    /// It is of another shard.
    pub fn close(&mut self, id: u64) -> Result<(), Refusal> {
        self.check_shard(id)?;
        self.remove(id);
        Ok(())
    }

    /// Forgets the first sessions, in the order of their ids, that have expired.
    pub fn sweep(&mut self, now_ms: u64) {
        let expired = self.by_id.iter().filter(|(_, session)| session.is_expired(now_ms));
        let ids: Vec<u64> = expired.map(|(id, _)| *id).take(SWEPT_SESSIONS_MAX).collect();
        for id in ids {
            self.remove(id);
            self.tally.expired += 1;
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(session) = self.by_id.remove(&id) {
            self.kept -= session.kept();
            self.changed.extend(session.blocks().map(|block| (id, block)));
        }
    }

    /// The records that changed since they were taken last, each once.
    pub fn take_changes(&mut self) -> impl Iterator<Item = Change> {
        let mut changed = mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        changed.into_iter().map(|(id, block)| {
            let record = self.by_id.get(&id).and_then(|session| session.record(block));
            ((id, block), record)
        })
    }

    /// What happened since it was taken last.
    pub fn take_tally(&mut self) -> Tally {
        mem::take(&mut self.tally)
    }

    fn check_shard(&self, id: u64) -> Result<(), Refusal> {
        if session::shard_of(id) == self.shard {
            return Ok(());
        }
        Err(invalid("session_id", format!("the session is not of shard {}", self.shard)))
    }

    fn full(&self) -> Refusal {
        let message = format!("shard {} has {SHARD_SESSIONS_MAX} sessions, all in use", self.shard);
        refusal::exhausted(reason::SESSIONS_FULL, message, RETRY_AFTER_MS)
    }
}

/// Notes a changed record. Nearly always it is one of the last two: the session's own, and that of the newest outcomes.
fn note(changed: &mut Vec<(u64, u64)>, record: (u64, u64)) {
    if !changed.iter().rev().take(2).any(|noted| *noted == record) {
        changed.push(record);
    }
}

fn expired(id: u64) -> Refusal {
    let message = format!("session {id} was closed, or has expired: its writes are not applied any more");
    failed_precondition(reason::SESSION_EXPIRED, message)
}

fn acknowledged(sequence: u64, lowest: u64) -> Refusal {
    let message = format!("outcomes below {lowest} were acknowledged; {sequence} is not kept any more");
    failed_precondition(reason::SEQUENCE_ACKNOWLEDGED, message)
}

fn window_full(message: String) -> Refusal {
    refusal::exhausted(reason::SESSION_WINDOW_FULL, message, RETRY_AFTER_MS)
}

#[cfg(test)]
#[path = "sessions_tests.rs"]
mod tests;
