//! The threads on which reads run that may touch the disk: few, so that a slow disk costs a few threads and no tokio
//! worker; the queue before them is bounded, and who has given up meanwhile is passed over.

use std::{
    collections::VecDeque,
    future::Future,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use super::{error::StateError, workers::Workers};

/// Threads that read. More than cores, because they mostly wait for the disk; few, because each can hold one page.
pub const READ_THREADS: usize = 4;
/// Reads that may wait for a thread: at 1 ms a page, a quarter of a second.
pub const READS_QUEUED_MAX: usize = 1_024;

/// Runs reads.
pub struct ReadPool {
    /// `None` in simulation: nothing blocks there, and all runs in the asking task.
    queue: Option<Arc<Queue>>,
}

/// As many reads wait as may.
#[derive(Debug, thiserror::Error)]
#[error("{READS_QUEUED_MAX} reads wait for the disk")]
pub struct Full;

type Work = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Work>,
    closed: bool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Work> {
        let mut state = self.state();
        loop {
            if let Some(work) = state.waiting.pop_front() {
                return Some(work);
            }
            if state.closed {
                return None;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl ReadPool {
    /// Starts the threads; they end when the pool is dropped.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(workers: &Workers) -> Result<Self, StateError> {
        let Workers::Threads { threads, .. } = workers else { return Ok(Self { queue: None }) };
        // Dropped on the way out, it ends those that were started.
        let pool = Self { queue: Some(Arc::default()) };
        for _ in 0..READ_THREADS {
            let Some(queue) = pool.queue.clone() else { continue };
            let work = move || {
                while let Some(work) = queue.next() {
                    work();
                }
            };
            threads("state reads", Box::new(work))
                .map_err(|error| StateError::engine("start a thread", error))?;
        }
        Ok(pool)
    }

    /// Runs `read` as soon as a thread is free. The result is `None` when the pool ended before. Dropping the future
    /// gives the read up, unless it runs already.
    ///
    /// # Errors
    /// [`Full`]: nothing was queued.
    pub fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<impl Future<Output = Option<T>> + Send + 'static, Full> {
        let (done, result) = oneshot::channel();
        let work = move || {
            if !done.is_closed() {
                // It may have been given up meanwhile.
                done.send(read()).ok();
            }
        };
        match &self.queue {
            None => work(),
            Some(queue) => {
                let mut state = queue.state();
                if state.waiting.len() >= READS_QUEUED_MAX {
                    return Err(Full);
                }
                state.waiting.push_back(Box::new(work));
                drop(state);
                queue.wake.notify_one();
            }
        }
        Ok(async move { result.await.ok() })
    }

    /// Reads that wait for a thread.
    pub fn waiting(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.state().waiting.len())
    }
}

impl Drop for ReadPool {
    fn drop(&mut self) {
        if let Some(queue) = &self.queue {
            queue.state().closed = true;
            queue.wake.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::*;

    fn threads() -> (Workers, mpsc::Receiver<()>) {
        let (ended, ends) = mpsc::channel();
        let workers = Workers::Threads {
            threads: Arc::new(move |name, work| {
                let ended = ended.clone();
                let life = move || {
                    work();
                    ended.send(()).ok();
                };
                thread::Builder::new().name(name.to_owned()).spawn(life).map(drop)
            }),
            tasks: Arc::new(|_, _| {}),
        };
        (workers, ends)
    }

    #[tokio::test]
    async fn reads_are_bounded_in_number_and_who_gave_up_is_passed_over() {
        let (workers, ends) = threads();
        let pool = ReadPool::start(&workers).unwrap();
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let (began, begins) = mpsc::channel();
        let blocked: Vec<_> = (0..READ_THREADS)
            .map(|_| {
                let (gate, began) = (gate.clone(), began.clone());
                let read = move || {
                    began.send(()).ok();
                    gate.lock().unwrap().recv().ok();
                };
                pool.run(read).unwrap()
            })
            .collect();
        for _ in 0..READ_THREADS {
            begins.recv_timeout(Duration::from_secs(10)).expect("each thread takes a read");
        }
        let (ran, runs) = mpsc::channel();
        let mut queued: Vec<_> = (0..READS_QUEUED_MAX)
            .map(|number| {
                let ran = ran.clone();
                pool.run(move || ran.send(number).ok()).unwrap()
            })
            .collect();
        assert_eq!(pool.waiting(), READS_QUEUED_MAX);
        assert!(pool.run(|| ()).is_err(), "one more than may wait");
        drop(queued.remove(0));
        drop(release);
        for read in blocked {
            assert_eq!(read.await, Some(()));
        }
        for read in queued {
            assert!(read.await.is_some());
        }
        drop(ran);
        let mut ran: Vec<usize> = runs.iter().collect();
        ran.sort_unstable();
        assert_eq!(ran, (1..READS_QUEUED_MAX).collect::<Vec<_>>(), "all but the one that gave up");
        drop(pool);
        for _ in 0..READ_THREADS {
            ends.recv_timeout(Duration::from_secs(10)).expect("the threads end with the pool");
        }
    }
}
