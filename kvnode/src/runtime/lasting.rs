//! Threads that end before the process does.
//!
//! RocksDB has statics, which are gone when `main` has returned. A thread that closes a database after that ends the process by
//! SIGABRT, and nobody learns of its exit code.

use std::{
    io,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// Those of this process: it is what ends, whatever nodes ran in it.
pub static THREADS: Threads = Threads::none();

/// Threads that somebody waits for.
#[derive(Debug)]
pub struct Threads {
    running: Mutex<usize>,
    ended: Condvar,
}

impl Threads {
    const fn none() -> Self {
        Self { running: Mutex::new(0), ended: Condvar::new() }
    }

    /// Starts one.
    ///
    /// # Errors
    /// The system has none left.
    pub fn spawn(&'static self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let running = Running::one_of(self);
        let life = move || {
            work();
            drop(running);
        };
        thread::Builder::new().name(name.to_owned()).spawn(life).map(drop)
    }

    /// Waits until all of them have ended, for so long at most. `false`: some have not.
    pub fn wait(&self, limit: Duration) -> bool {
        let waited = self.ended.wait_timeout_while(self.running(), limit, |running| *running > 0);
        let (running, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *running == 0
    }

    fn running(&self) -> MutexGuard<'_, usize> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of them, until it is dropped.
struct Running(&'static Threads);

impl Running {
    fn one_of(threads: &'static Threads) -> Self {
        *threads.running() += 1;
        Self(threads)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.running() -= 1;
        self.0.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn threads_are_waited_for_until_what_they_own_is_dropped() {
        static OWN: Threads = Threads::none();
        let (release, gate) = mpsc::channel::<()>();
        // It goes on until the other end is dropped.
        OWN.spawn("lasting", move || gate.iter().for_each(drop)).unwrap();
        assert!(!OWN.wait(Duration::from_millis(1)), "it runs");
        drop(release);
        assert!(OWN.wait(Duration::from_secs(30)), "it has ended");
    }
}
