//! A device in memory that forgets, at a crash, what was not synced.
//!
//! A [`SimulatedDisk`] outlives the lives of its node: each life opens it and gets a device of its own, and a device
//! of an earlier life can no longer write. At a crash a random prefix of the batches since the last sync survives,
//! as after a power loss.

use std::{
    collections::BTreeMap,
    mem,
    ops::Bound,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use rand::{Rng, RngExt};

use crate::log::{
    device::{DeviceError, LogDevice, Visitor, Write},
    keys::{self, Place},
    lock,
};

/// A bug that is planted to see whether the checkers of a simulation find it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlantedBug {
    /// The code as it is meant.
    #[default]
    None,
    /// Appends are acknowledged before they are synced.
    AcknowledgeBeforeSync,
    /// The vote is gone after a crash.
    ForgetVote,
    /// `save_vote` returns before the vote is synced.
    VoteNotSynced,
}

/// What a node has on its disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimulatedDisk {
    platter: Arc<Mutex<Platter>>,
    bug: PlantedBug,
}

/// What a crash did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crash {
    /// Unsynced batches that happened to be on disk.
    pub kept: usize,
    /// Unsynced batches that are gone.
    pub lost: usize,
}

#[derive(Debug, Default)]
struct Platter {
    synced: Image,
    written: Image,
    unsynced: Vec<Vec<Write>>,
    life: u64,
}

/// The device of one life of a node.
#[derive(Debug)]
pub struct SimulatedDevice {
    disk: SimulatedDisk,
    life: u64,
}

#[derive(Clone, Debug, Default)]
struct Image(BTreeMap<Vec<u8>, Bytes>);

impl Image {
    fn apply(&mut self, batch: &[Write]) {
        for write in batch {
            match write {
                Write::Put(key, value) => {
                    self.0.insert(key.to_vec(), value.clone());
                }
                Write::DeleteRange(range) => {
                    let bounds = (Bound::Included(range.start.to_vec()), Bound::Excluded(range.end.to_vec()));
                    if bounds_are_empty(&bounds) {
                        continue;
                    }
                    let gone: Vec<_> = self.0.range(bounds).map(|(key, _)| key.clone()).collect();
                    for key in gone {
                        self.0.remove(&key);
                    }
                }
            }
        }
    }

    fn forget_votes(&mut self) {
        self.0.retain(|key, _| !matches!(keys::decode(key), Ok((_, Place::Vote))));
    }
}

/// A range of a `BTreeMap` that ends before it starts would panic.
fn bounds_are_empty(bounds: &(Bound<Vec<u8>>, Bound<Vec<u8>>)) -> bool {
    matches!(bounds, (Bound::Included(start), Bound::Excluded(end)) if start >= end)
}

impl SimulatedDisk {
    /// An empty disk.
    pub fn new(bug: PlantedBug) -> Self {
        Self { platter: Arc::default(), bug }
    }

    /// The bug planted in it.
    pub fn bug(&self) -> PlantedBug {
        self.bug
    }

    /// Begins a new life: the devices of earlier ones can no longer write.
    pub fn open(&self) -> Arc<SimulatedDevice> {
        let mut platter = lock(&self.platter);
        platter.life += 1;
        Arc::new(SimulatedDevice { disk: self.clone(), life: platter.life })
    }

    /// Power loss: a random prefix of the unsynced batches survives, the life is over.
    pub fn crash(&self, rng: &mut impl Rng) -> Crash {
        let mut platter = lock(&self.platter);
        platter.life += 1;
        let unsynced = mem::take(&mut platter.unsynced);
        let kept = rng.random_range(0..=unsynced.len());
        for batch in &unsynced[..kept] {
            platter.synced.apply(batch);
        }
        if self.bug == PlantedBug::ForgetVote {
            platter.synced.forget_votes();
        }
        platter.written = platter.synced.clone();
        Crash { kept, lost: unsynced.len() - kept }
    }

    /// Batches that a crash might lose.
    pub fn unsynced(&self) -> usize {
        lock(&self.platter).unsynced.len()
    }
}

impl SimulatedDevice {
    fn alive<T>(&self, act: impl FnOnce(&mut Platter) -> T) -> Result<T, DeviceError> {
        let mut platter = lock(&self.disk.platter);
        if platter.life == self.life { Ok(act(&mut platter)) } else { Err(DeviceError::Detached) }
    }
}

impl LogDevice for SimulatedDevice {
    fn write(&self, batch: &[Write], sync: bool) -> Result<(), DeviceError> {
        self.alive(|platter| {
            platter.written.apply(batch);
            platter.unsynced.push(batch.to_vec());
        })?;
        if sync { self.sync() } else { Ok(()) }
    }

    fn sync(&self) -> Result<(), DeviceError> {
        self.alive(|platter| {
            for batch in mem::take(&mut platter.unsynced) {
                platter.synced.apply(&batch);
            }
        })
    }

    fn visit(&self, from: &[u8], to: &[u8], visitor: &mut Visitor<'_>) -> Result<(), DeviceError> {
        let bounds = (Bound::Included(from.to_vec()), Bound::Excluded(to.to_vec()));
        if bounds_are_empty(&bounds) {
            return Ok(());
        }
        self.alive(|platter| {
            for (key, value) in platter.written.0.range(bounds) {
                if visitor(key, value).is_break() {
                    break;
                }
            }
        })
    }

    fn reads_block(&self) -> bool {
        false
    }
}
