//! Randomness that was handed in, shared by the tasks of a transport.

use std::sync::{Arc, Mutex, PoisonError};

use rand::Rng;

/// A source of random numbers; a simulation seeds it.
#[derive(Clone)]
pub struct Randomness(Arc<Mutex<dyn Rng + Send>>);

impl Randomness {
    /// Draws from `rng`.
    pub fn new(rng: impl Rng + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(rng)))
    }

    /// The next number, any of 64 bits.
    pub fn next(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next_u64()
    }
}
