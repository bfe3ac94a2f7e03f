//! Gives the space of deleted records back on a disk that fills up: RocksDB by itself would do so some day.
//!
//! One round at a time goes through the whole state ([`StateEngine::reclaim`]), only below the soft limit, and only when
//! something was deleted since the last one began. Rounds leave the machine to the requests for most of the time.
//!
//! [`StateEngine::reclaim`]: crate::state::StateEngine::reclaim

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::space::Disk;
use crate::{data_dir::Level, state::hub::StateHub};

/// How often it is looked: as often as free space is measured.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Least time between two rounds: deletes that come one by one share a round.
const REST_MIN: Duration = Duration::from_secs(10);

/// After a round there is rest for so many times as long as it took.
const REST_FACTOR: u32 = 4;

/// The rounds up to now.
#[derive(Debug, Default)]
struct Rounds {
    /// Deletes that the last round, or one before, has seen.
    seen: u64,
    rest_until: Option<Instant>,
}

impl Rounds {
    fn is_due(&self, level: Level, deletes: u64, now: Instant) -> bool {
        level >= Level::Soft && deletes > self.seen && self.rest_until.is_none_or(|until| until <= now)
    }

    /// A round ended that had seen so many deletes when it began. When it was not `whole`, there is more to do.
    fn ended(&mut self, whole: bool, seen: u64, began: Instant, now: Instant) {
        if whole {
            self.seen = seen;
        }
        self.rest_until = Some(now + REST_MIN.max((now - began) * REST_FACTOR));
    }
}

/// Looks for ever.
pub async fn run(disk: Arc<Disk>, state: Arc<StateHub>) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut rounds = Rounds::default();
    loop {
        ticks.tick().await;
        let (began, seen) = (Instant::now(), state.deletes());
        if !rounds.is_due(disk.level(), seen, began) {
            continue;
        }
        let measuring = disk.clone();
        let ended = state.reclaim(move || measuring.spare_bytes()).await;
        let now = Instant::now();
        rounds.ended(matches!(ended, Ok(true)), seen, began, now);
        let seconds = (now - began).as_secs_f64();
        match ended {
            Ok(true) => tracing::info!(seconds, "the space of deleted records was given back"),
            Ok(false) => tracing::info!(seconds, "some deleted records keep their space: too little is free"),
            // When the store failed the node was told, and is about to end. Anything else may pass.
            Err(error) => tracing::warn!(%error, "the space of deleted records could not be given back"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_round_is_due_when_something_was_deleted_since_the_last_began_and_there_was_rest() {
        let mut rounds = Rounds::default();
        let began = Instant::now();
        assert!(!rounds.is_due(Level::Enough, 7, began), "there is room");
        assert!(!rounds.is_due(Level::Soft, 0, began), "nothing was deleted");
        assert!(rounds.is_due(Level::Soft, 7, began) && rounds.is_due(Level::Hard, 7, began));
        let ended = began + Duration::from_secs(60);
        rounds.ended(true, 7, began, ended);
        let later = ended + Duration::from_secs(240);
        assert!(!rounds.is_due(Level::Soft, 7, later), "nothing was deleted since");
        assert!(!rounds.is_due(Level::Soft, 8, ended + Duration::from_secs(239)), "most of the time is rest");
        assert!(rounds.is_due(Level::Soft, 8, later));
        rounds.ended(false, 8, later, later);
        assert!(!rounds.is_due(Level::Soft, 8, later + REST_MIN / 2));
        assert!(rounds.is_due(Level::Soft, 8, later + REST_MIN), "it has passed something over");
    }
}
