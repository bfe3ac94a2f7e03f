//! Weather for the loopback.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use kv_proto::peer::v1::Frame;
use kvnode::transport::{
    Lane,
    loopback::{Way, Weather},
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// Everything takes so long, in order.
pub struct Distance(pub Duration);

impl Weather for Distance {
    fn arrivals(&self, _: Way, _: Lane, _: Option<&Frame>) -> Vec<Duration> {
        vec![self.0]
    }
}

/// While it rages, frames are lost, repeated and reordered.
pub struct Storm {
    rng: Mutex<SmallRng>,
    rages: std::sync::Arc<AtomicBool>,
}

impl Storm {
    pub fn new(seed: u64, rages: std::sync::Arc<AtomicBool>) -> Self {
        Self { rng: Mutex::new(SmallRng::seed_from_u64(seed)), rages }
    }
}

impl Weather for Storm {
    fn arrivals(&self, _: Way, _: Lane, _: Option<&Frame>) -> Vec<Duration> {
        let mut rng = self.rng.lock().unwrap();
        let mut flight = || Duration::from_millis(1 + rng.random_range(0..30));
        if !self.rages.load(Relaxed) {
            return vec![Duration::from_millis(1)];
        }
        let (first, second, third) = (flight(), flight(), flight() * 20);
        match rng.random_range(0..100) {
            0..3 => vec![],
            3..20 => vec![first, second],
            20..23 => vec![first, third],
            _ => vec![first],
        }
    }
}
