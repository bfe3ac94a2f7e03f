//! Revisions of the keys that were written last, without their values.
//!
//! Every write needs the revisions of what it overwrites. In the store these lie beside the value, and a lookup among
//! hundreds of thousands of records costs more than all else that apply does for a small put. So what was written is
//! remembered here, as far as the node's memory for it goes. It is never the truth: what is not here is read from the
//! store, and an uploaded value is never here.
//!
//! Two halves: a key that is used moves into the recent one; when that is full it becomes the older one, and what was
//! there is forgotten. Replicas share the memory in equal parts, used or not.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use kv_proto::disk::v1::KeyRecord;

/// What a remembered key takes beside its name, bytes: head, place in the table, allocation.
const OVERHEAD_BYTES: usize = 96;

/// Memory for the heads of all replicas of a node.
#[derive(Debug)]
pub struct HeadBudget {
    bytes: usize,
    used: AtomicUsize,
    replicas: AtomicUsize,
}

impl HeadBudget {
    /// So many bytes.
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { bytes, used: AtomicUsize::new(0), replicas: AtomicUsize::new(0) })
    }

    /// What one replica may use now: those that come later make it less.
    fn share(&self) -> usize {
        self.bytes / self.replicas.load(Relaxed).max(1)
    }

    /// What the heads take now, bytes.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }
}

/// A key's record without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    create_revision: u64,
    mod_revision: u64,
    version: u64,
}

/// Names to heads, and the bytes of both.
#[derive(Debug, Default)]
struct Half {
    heads: HashMap<Box<[u8]>, Head>,
    bytes: usize,
}

/// The heads of one replica.
#[derive(Debug)]
pub struct Heads {
    recent: Half,
    older: Half,
    budget: Arc<HeadBudget>,
}

impl Default for Heads {
    /// Remembers nothing.
    fn default() -> Self {
        Self::new(HeadBudget::new(0))
    }
}

impl Heads {
    /// Within `budget`.
    pub fn new(budget: Arc<HeadBudget>) -> Self {
        budget.replicas.fetch_add(1, Relaxed);
        Self { recent: Half::default(), older: Half::default(), budget }
    }

    /// The record of a key without its value. `None`: ask the store.
    pub(super) fn get(&mut self, name: &[u8]) -> Option<KeyRecord> {
        let head = match self.recent.heads.get(name) {
            Some(head) => *head,
            None => {
                let (name, head) = self.older.heads.remove_entry(name)?;
                self.older.bytes -= size(&name);
                self.enter(name, head);
                head
            }
        };
        let Head { create_revision, mod_revision, version } = head;
        Some(KeyRecord { create_revision, mod_revision, version, value: None })
    }

    /// The key has this record now, with an inline value.
    pub(super) fn set(&mut self, name: &[u8], record: &KeyRecord) {
        if self.budget.bytes == 0 {
            return;
        }
        let KeyRecord { create_revision, mod_revision, version, value: _ } = *record;
        let head = Head { create_revision, mod_revision, version };
        if let Some(known) = self.recent.heads.get_mut(name) {
            *known = head;
            return;
        }
        if self.older.heads.remove(name).is_some() {
            self.older.bytes -= size(name);
        } else {
            self.budget.used.fetch_add(size(name), Relaxed);
        }
        self.enter(name.into(), head);
    }

    /// The key is gone, or its value was uploaded.
    pub(super) fn forget(&mut self, name: &[u8]) {
        for half in [&mut self.recent, &mut self.older] {
            if half.heads.remove(name).is_some() {
                half.bytes -= size(name);
                self.budget.used.fetch_sub(size(name), Relaxed);
            }
        }
    }

    /// Into the recent half. Its bytes are counted already.
    fn enter(&mut self, name: Box<[u8]>, head: Head) {
        self.recent.bytes += size(&name);
        self.recent.heads.insert(name, head);
        if self.recent.bytes > self.budget.share() / 2 {
            let forgotten = std::mem::replace(&mut self.older, std::mem::take(&mut self.recent));
            self.budget.used.fetch_sub(forgotten.bytes, Relaxed);
        }
    }
}

impl Drop for Heads {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.recent.bytes + self.older.bytes, Relaxed);
        self.budget.replicas.fetch_sub(1, Relaxed);
    }
}

fn size(name: &[u8]) -> usize {
    name.len() + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn record(revision: u64) -> KeyRecord {
        KeyRecord { create_revision: 1, mod_revision: revision, version: revision, value: None }
    }

    proptest! {
        /// Whatever is remembered is the last thing that was written, and the budget holds.
        #[test]
        fn remembers_the_last_write_or_nothing(
            steps in prop::collection::vec((0_u8..4, 0_u8..2, 0_u8..60), 1..400),
            keys in 0_usize..70,
        ) {
            let budget = HeadBudget::new(keys * size(&[0]));
            let mut both = [Heads::new(budget.clone()), Heads::new(budget.clone())];
            let mut written = [BTreeMap::new(), BTreeMap::new()];
            for (revision, (what, replica, key)) in steps.into_iter().enumerate() {
                let (heads, model) = (&mut both[usize::from(replica)], &mut written[usize::from(replica)]);
                match what {
                    0 => {
                        heads.forget(&[key]);
                        model.remove(&key);
                    }
                    1 => prop_assert!(heads.get(&[key]).is_none_or(|known| model.get(&key) == Some(&known))),
                    _ => {
                        let record = record(u64::try_from(revision).unwrap());
                        heads.set(&[key], &record);
                        model.insert(key, record);
                    }
                }
                // A half is full when it exceeds its share.
                prop_assert!(budget.used() <= (keys + 4) * size(&[0]));
                let held: usize = both.iter().map(|heads| heads.recent.bytes + heads.older.bytes).sum();
                prop_assert_eq!(held, budget.used());
            }
            drop(both);
            prop_assert_eq!(budget.used(), 0);
        }
    }

    #[test]
    fn what_fits_is_remembered() {
        let mut heads = Heads::new(HeadBudget::new(200 * size(&[0])));
        (0..100).for_each(|key| heads.set(&[key], &record(u64::from(key))));
        assert!((0..100).all(|key| heads.get(&[key]) == Some(record(u64::from(key)))));
        heads.forget(&[7]);
        assert_eq!(heads.get(&[7]), None);
        assert_eq!(Heads::default().get(&[1]), None);
    }
}
