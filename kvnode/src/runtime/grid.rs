//! Tokio, with the ticks of all groups of a node on a common grid.
//!
//! openraft gives each replica a tick of its own, five for each heartbeat, at a random phase. On a node with many groups that is a
//! wake for each tick and a message for each heartbeat: with 64 groups on three nodes 6,500 wakes a second, a sixth of two cores
//! in a cluster without any load. Ticks that wait for the next line of a grid come together, with one wake for all of them, and
//! their heartbeats travel in one message to each other node. Elections keep their random time-outs: a tick only looks
//! whether they have passed, and the grids of different nodes have nothing to do with each other.

use std::{
    future::Future,
    io,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use openraft_rt::{AsyncRuntime, Instant, OptionalSend};
use openraft_rt_tokio::{TokioInstant, TokioRuntime};

/// Between two lines, microseconds; 0: there is no grid.
static STEP_MICROS: AtomicU64 = AtomicU64::new(0);

/// The runtime of the groups of a node.
#[derive(Debug)]
pub struct GridRuntime(TokioRuntime);

impl GridRuntime {
    /// From now on the ticks of this process come together at lines that are four fifteenths of a heartbeat apart: a little more
    /// than openraft's ticks, and four of them a little more than a heartbeat, which is sent at the first tick after it is due.
    pub fn align(heartbeat: Duration) {
        let micros = u64::try_from((heartbeat * 4 / 15).as_micros()).unwrap_or(0);
        STEP_MICROS.store(micros, Ordering::Relaxed);
    }
}

/// The first line of a grid at or after the deadline.
fn on_grid<I: Instant>(origin: I, step_micros: u64, deadline: I) -> I {
    let since = u64::try_from((deadline - origin).as_micros()).unwrap_or(0);
    match since.checked_rem(step_micros) {
        None | Some(0) => deadline,
        Some(past) => deadline + Duration::from_micros(step_micros - past),
    }
}

impl AsyncRuntime for GridRuntime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = TokioInstant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    /// openraft waits like this for its ticks.
    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        static ORIGIN: OnceLock<TokioInstant> = OnceLock::new();
        let origin = *ORIGIN.get_or_init(TokioInstant::now);
        TokioRuntime::sleep_until(on_grid(origin, STEP_MICROS.load(Ordering::Relaxed), deadline))
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }

    fn spawn_blocking<F, T>(work: F) -> impl Future<Output = Result<T, io::Error>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        TokioRuntime::spawn_blocking(work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_between_two_lines_come_together_at_the_later_one() {
        let origin = TokioInstant::now();
        let at = |millis: u64| origin + Duration::from_millis(millis);
        for (deadline, expected) in [(0, 0), (1, 40), (39, 40), (40, 40), (41, 80), (1_011, 1_040)] {
            assert_eq!(on_grid(origin, 40_000, at(deadline)), at(expected), "{deadline}");
            assert_eq!(on_grid(origin, 0, at(deadline)), at(deadline), "without a grid");
        }
        assert_eq!(on_grid(at(500), 40_000, at(149)), at(149), "before the grid begins");
    }

    #[test]
    fn ticks_of_any_phase_come_at_every_line() {
        let origin = TokioInstant::now();
        let at = |millis: u64| origin + Duration::from_millis(millis);
        for first in 150..300 {
            // As openraft counts: the next multiple of its period after the moment of the wake.
            let (mut deadline, mut wakes) = (first, Vec::new());
            for _ in 0..5 {
                let wake = on_grid(origin, 40_000, at(deadline)) - origin;
                let now = u64::try_from(wake.as_millis()).expect("small");
                wakes.push(now);
                deadline = first + ((now - first) / 30 + 1) * 30;
            }
            assert!(wakes.windows(2).all(|pair| pair[1] - pair[0] == 40), "{first}: {wakes:?}");
        }
    }
}
