//! Waiting for a condition, with a deadline that says what was waited for.

use std::{fmt, future::Future, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

/// How long a cluster on a busy two-core machine may take for anything that should take a second or two.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(20);

/// Between two looks at what all nodes are asked for.
pub const SLOW_POLL: Duration = Duration::from_millis(100);

/// A condition did not come true in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("waited {waited:?} for {what}; at last: {last}")]
pub struct WaitError {
    /// The condition.
    pub what: String,
    /// For how long.
    pub waited: Duration,
    /// Why it did not hold when it was last looked at.
    pub last: String,
}

/// Looks at `condition` until it gives a value. Its error says what is missing.
///
/// # Errors
/// After `deadline`, with the last thing that was missing.
pub async fn wait_until<T, E, F>(
    what: impl fmt::Display,
    deadline: Duration,
    condition: impl FnMut() -> F,
) -> Result<T, WaitError>
where
    E: fmt::Display,
    F: Future<Output = Result<T, E>>,
{
    wait_until_every(POLL, what, deadline, condition).await
}

/// The same with another pause between two looks.
///
/// # Errors
/// After `deadline`, with the last thing that was missing.
pub async fn wait_until_every<T, E, F>(
    pause: Duration,
    what: impl fmt::Display,
    deadline: Duration,
    mut condition: impl FnMut() -> F,
) -> Result<T, WaitError>
where
    E: fmt::Display,
    F: Future<Output = Result<T, E>>,
{
    let end = Instant::now() + deadline;
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = "it was never looked at to the end".to_owned();
    loop {
        match timeout_at(end, condition()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(missing)) => last = missing.to_string(),
            Err(_) => {}
        }
        if timeout_at(end, ticks.tick()).await.is_err() || Instant::now() >= end {
            return Err(WaitError { what: what.to_string(), waited: deadline, last });
        }
    }
}
