//! The seed of a test: from `KV_SEED`, else from the clock; always printed, so that a failure can be repeated.
//!
//! Real processes are not deterministic: the seed repeats the plan of the faults, not their exact moments.

use std::{
    env,
    time::{SystemTime, UNIX_EPOCH},
};

use rand::{SeedableRng, rngs::SmallRng};

/// A generator for `test`, whose seed is printed.
///
/// # Panics
/// When `KV_SEED` is no number.
pub fn generator(test: &str) -> SmallRng {
    let seed = match env::var("KV_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|error| panic!("KV_SEED={text}: {error}")),
        Err(_) => {
            let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::from(since_epoch.subsec_nanos()) ^ since_epoch.as_secs()
        }
    };
    eprintln!("{test}: KV_SEED={seed}");
    SmallRng::seed_from_u64(seed)
}

/// The number of rounds of a test that runs in rounds: `KV_ROUNDS`, else `default`.
///
/// # Panics
/// When `KV_ROUNDS` is no number.
pub fn rounds(default: usize) -> usize {
    match env::var("KV_ROUNDS") {
        Ok(text) => text.parse().unwrap_or_else(|error| panic!("KV_ROUNDS={text}: {error}")),
        Err(_) => default,
    }
}
