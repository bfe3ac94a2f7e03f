//! What the journal tells, as far as tests ask. It speaks to people: the words that are looked for are all here.

use std::collections::BTreeSet;

use kv_proto::admin::v1::JournalEntry;

/// An event of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A node may be restarted.
    PermitGranted,
    /// It no longer may, whoever ended that.
    PermitOver,
    /// The voters of a shard are about to change.
    ChangeBegun {
        /// The shard.
        shard: u32,
    },
    /// They have, or will not.
    ChangeOver {
        /// The shard.
        shard: u32,
    },
    /// A replica is to take another one's place.
    MoveBegun {
        /// Why, in one word.
        why: String,
    },
    /// It has.
    MoveDone,
    /// It will not.
    MoveGivenUp,
    /// A node has entered this state.
    State {
        /// In one word.
        now: String,
    },
    /// Anything else.
    Other,
}

impl Told {
    /// What an entry tells.
    pub fn by(entry: &JournalEntry) -> Self {
        let event = entry.event.as_str();
        let shard = entry.shard_id;
        if event.contains(" may be restarted within ") {
            return Self::PermitGranted;
        }
        if event.contains("permit of #") && (event.ends_with(" is over") || event.ends_with(" is overdue")) {
            return Self::PermitOver;
        }
        if let Some((_, why)) = event.split_once(" is to take the place of ") {
            let why = why.rsplit_once('(').map_or("", |(_, why)| why.trim_end_matches(')'));
            return Self::MoveBegun { why: why.to_owned() };
        }
        if event.contains(": the move from ") {
            return if event.ends_with(" is done") { Self::MoveDone } else { Self::MoveGivenUp };
        }
        if let Some((_, now)) = event.split_once(" goes from ") {
            let now = now.rsplit_once(" to ").map_or("", |(_, now)| now);
            return Self::State { now: now.to_owned() };
        }
        match shard {
            Some(shard) if event.contains(": the voters are to be ") => Self::ChangeBegun { shard },
            Some(shard)
                if event.contains(": the group has ")
                    || event.contains("the change of voters did not happen") =>
            {
                Self::ChangeOver { shard }
            }
            Some(_) | None => Self::Other,
        }
    }
}

/// How often the one lock of permits and changes of voters was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Locked {
    /// Permits that were granted.
    pub permits: usize,
    /// Changes that were begun.
    pub changes: usize,
}

/// Goes through the whole journal, the oldest entry first: never is a permit open while voters change.
///
/// # Errors
/// The entry at which both were under way, or one that is missing.
pub fn locked(entries: &[JournalEntry]) -> Result<Locked, String> {
    let mut locked = Locked::default();
    let (mut open, mut changing) = (false, BTreeSet::new());
    for (entry, expected) in entries.iter().zip(entries.first().map_or(0, |first| first.sequence)..) {
        if entry.sequence != expected {
            return Err(format!("entry {expected} is missing before {entry:?}"));
        }
        match Told::by(entry) {
            Told::PermitGranted => {
                locked.permits += 1;
                open = true;
            }
            Told::PermitOver => open = false,
            Told::ChangeBegun { shard } => {
                locked.changes += 1;
                changing.insert(shard);
            }
            Told::ChangeOver { shard } => {
                changing.remove(&shard);
            }
            Told::MoveBegun { .. }
            | Told::MoveDone
            | Told::MoveGivenUp
            | Told::State { .. }
            | Told::Other => {}
        }
        if open && !changing.is_empty() {
            return Err(format!("a permit is open while the voters of {changing:?} change: {entry:?}"));
        }
    }
    Ok(locked)
}

/// What is told of one node, the oldest first.
pub fn of_node(entries: &[JournalEntry], node_id: u64) -> Vec<(Told, &JournalEntry)> {
    let about = entries.iter().filter(|entry| entry.node_ids.contains(&node_id));
    about.map(|entry| (Told::by(entry), entry)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRANTED: &str = "#3 may be restarted within 60000 ms";
    const OVER: &str = "the permit of #3 is over";
    const OVERDUE: &str = "permit of #3 is overdue";
    const BEGUN: &str = "s1: the voters are to be r1 r2 r7";
    const SEEN: &str = "s1: the group has voters r1 r2 r7";
    const NOT_HAPPENED: &str = "s1: the change of voters did not happen";

    fn journal(events: &[&str]) -> Vec<JournalEntry> {
        let entry = |(event, sequence): (&&str, u64)| JournalEntry {
            sequence,
            event: (*event).to_owned(),
            shard_id: event.starts_with("s1: ").then_some(1),
            ..JournalEntry::default()
        };
        events.iter().zip(7..).map(entry).collect()
    }

    #[test]
    fn events_are_known_by_their_words() {
        let moved = "s1: r7 on #4 is to take the place of r3 on #3 (drain)";
        let done = "s1: the move from #3 to r7 on #4 is done";
        let given_up = "s1: the move from #3 to r7 on #4 is given up";
        let state = "#3 goes from active to draining";
        let told: Vec<Told> =
            journal(&[moved, done, given_up, state, "#3 is removed"]).iter().map(Told::by).collect();
        let expected = [
            Told::MoveBegun { why: "drain".to_owned() },
            Told::MoveDone,
            Told::MoveGivenUp,
            Told::State { now: "draining".to_owned() },
            Told::Other,
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn permit_and_change_one_after_the_other_are_well() {
        let entries = journal(&[GRANTED, OVER, BEGUN, SEEN, GRANTED, OVERDUE, BEGUN, NOT_HAPPENED, GRANTED]);
        assert_eq!(locked(&entries), Ok(Locked { permits: 3, changes: 2 }));
    }

    #[test]
    fn permit_and_change_at_once_are_seen_and_so_is_a_gap() {
        assert!(locked(&journal(&[GRANTED, BEGUN])).is_err());
        assert!(locked(&journal(&[BEGUN, GRANTED])).is_err());
        let mut entries = journal(&[GRANTED, OVER, BEGUN]);
        entries.remove(1);
        assert!(locked(&entries).is_err());
    }
}
