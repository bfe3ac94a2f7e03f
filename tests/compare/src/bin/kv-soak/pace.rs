//! How fast the machine itself is while it is loaded: on a shared one neighbours take half of each core at times, and no clock of
//! the guest shows that.
//!
//! A thread does a fixed piece of work once a second and looks at the processor time that it took, so that waiting for a
//! processor does not count. The piece computes and walks through memory, as servers do.

use std::{
    hint::black_box,
    sync::mpsc::{self, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

/// Between two pieces. Each takes a few milliseconds.
const INTERVAL: Duration = Duration::from_secs(1);
/// Words that a piece walks through: 2 MiB, more than the nearest caches hold.
const WORDS: usize = 1 << 18;
const STEPS: usize = 1 << 19;

/// Measures until it is ended.
pub struct Pace {
    end: mpsc::Sender<()>,
    thread: JoinHandle<Vec<f64>>,
}

impl Pace {
    /// Starts measuring.
    pub fn begin() -> Self {
        let (end, ended) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut words: Vec<u64> = (0..WORDS as u64).collect();
            let mut pieces = vec![piece(&mut words)];
            while ended.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                pieces.push(piece(&mut words));
            }
            pieces
        });
        Self { end, thread }
    }

    /// Of the pieces since the beginning, the time that each took of a processor, ms.
    ///
    /// # Panics
    /// When the thread did.
    pub fn end(self) -> Vec<f64> {
        drop(self.end);
        self.thread.join().expect("a piece of work does not fail")
    }
}

/// Does the work, and tells its processor time, ms.
fn piece(words: &mut [u64]) -> f64 {
    let begun = processor_time();
    let mut at = 0_u64;
    for _ in 0..STEPS {
        // The next place depends on this word: the walk cannot be foreseen.
        let word = &mut words[usize::try_from(at).unwrap_or_default() % WORDS];
        at = at.wrapping_add(*word).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1) >> 7;
        *word ^= at;
    }
    black_box(at);
    processor_time().saturating_sub(begun).as_secs_f64() * 1e3
}

fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_take_time_until_it_is_ended() {
        let pieces = Pace::begin().end();
        assert!(!pieces.is_empty() && pieces.iter().all(|piece| *piece > 0.0), "{pieces:?}");
    }
}
