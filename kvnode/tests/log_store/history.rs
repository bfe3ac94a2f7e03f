//! The model that crashes are judged by: the states that a replica's log went through, and how far it was promised.

use kvnode::log::codec::{Entry, LogId, Vote};

/// A replica's log as it should be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    pub entries: Vec<Entry>,
}

impl Image {
    pub fn next(&self) -> u64 {
        self.entries.last().map(|entry| entry.log_id).or(self.purged).map_or(0, |id| id.index + 1)
    }

    pub fn truncate(&mut self, from: u64) {
        self.entries.retain(|entry| entry.log_id.index < from);
    }

    pub fn purge(&mut self, upto: LogId) {
        self.purged = Some(upto);
        self.entries.retain(|entry| entry.log_id.index > upto.index);
    }

    /// Whether this is `before` with some of the entries by which `after` is longer: an append is not atomic.
    fn lies_between(&self, before: &Self, after: &Self) -> bool {
        [before.committed, after.committed].contains(&self.committed)
            && self.vote == after.vote
            && self.purged == after.purged
            && before.entries.len() <= self.entries.len()
            && after.entries.starts_with(&self.entries)
            && after.entries.starts_with(&before.entries)
    }
}

/// The states of one life, one after each operation.
#[derive(Debug)]
pub struct History {
    states: Vec<Image>,
    promised: usize,
    /// Saved since the last operation; goes to the disk with the next.
    committed: Option<LogId>,
}

impl History {
    /// A life begins with what was found.
    pub fn new(found: Image) -> Self {
        let committed = found.committed;
        Self { states: vec![found], promised: 0, committed }
    }

    /// The state as memory has it.
    pub fn now(&self) -> &Image {
        self.states.last().expect("never empty")
    }

    /// Notes an operation that is about to be made; returns its number.
    pub fn attempt(&mut self, change: impl FnOnce(&mut Image)) -> usize {
        let mut state = self.now().clone();
        state.committed = self.committed;
        change(&mut state);
        self.states.push(state);
        self.states.len() - 1
    }

    /// The committed id goes with the next operation.
    pub fn commit(&mut self, committed: LogId) {
        self.committed = Some(committed);
    }

    /// The operation that appended the entry that is now at this index; 0 if it was found.
    pub fn last_that_wrote(&self, index: u64) -> usize {
        let has =
            |state: &Image| state.entries.iter().find(|entry| entry.log_id.index == index).map(|e| e.log_id);
        let now = has(self.now());
        self.states.iter().rposition(|state| has(state) != now).map_or(0, |before| before + 1)
    }

    /// The device was said to have all operations up to this one.
    pub fn promise(&mut self, operation: usize) {
        self.promised = self.promised.max(operation);
    }

    /// Judges what was found after a crash.
    pub fn judge(&self, found: &Image) -> Result<(), String> {
        for number in self.promised..self.states.len() {
            let state = &self.states[number];
            let after = self.states.get(number + 1);
            if state == found || after.is_some_and(|after| found.lies_between(state, after)) {
                return Ok(());
            }
        }
        Err(format!(
            "found {}, but promised was {}, and attempted {}",
            describe(found),
            describe(&self.states[self.promised]),
            describe(self.now())
        ))
    }
}

fn describe(image: &Image) -> String {
    let id =
        |id: Option<LogId>| id.map_or("-".to_owned(), |id| format!("{}/{}", id.leader_id.term, id.index));
    let last = image.entries.last().map(|entry| entry.log_id);
    let vote = image.vote.map_or(0, |vote| vote.leader_id.term);
    format!("[vote {vote} purged {} last {} committed {}]", id(image.purged), id(last), id(image.committed))
}
