//! Randomness that is handed in: everything that a seed decides.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};

/// A source of random numbers that the parts of one simulated world share or fork.
#[derive(Clone)]
pub struct Dice(Arc<Mutex<SmallRng>>);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(SmallRng::seed_from_u64(seed))))
    }

    /// Any of 64 bits.
    pub fn next(&self) -> u64 {
        self.0.lock().unwrap().next_u64()
    }

    /// A source of its own, so that what one part draws does not move the others.
    pub fn fork(&self) -> SmallRng {
        SmallRng::seed_from_u64(self.next())
    }

    /// One of `0..bound`; 0 when there is none.
    pub fn below(&self, bound: u64) -> u64 {
        self.0.lock().unwrap().random_range(0..bound.max(1))
    }

    /// True so often in a thousand.
    pub fn per_mille(&self, often: u64) -> bool {
        self.below(1_000) < often
    }

    /// A whole number of milliseconds in `from..to`.
    pub fn millis(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}
