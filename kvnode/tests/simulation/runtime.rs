//! What openraft runs on in simulation: tokio on one thread with paused time, and tasks that belong to a life of a
//! node.
//!
//! A life is what a crash ends. Each task of a life runs with it in a task-local, so that whatever it spawns belongs to
//! the same life, and a life that has ended takes no more tasks: a late message cannot wake it.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::FutureExt;
use kvnode::runtime::Tasks;
use openraft_rt::{AsyncRuntime, OptionalSend};
use openraft_rt_tokio::{TokioInstant, TokioMpsc, TokioMutex, TokioOneshot, TokioRuntime};
use rand::rngs::SmallRng;
use tokio::task::{AbortHandle, JoinError, JoinHandle};

use crate::{dice::Dice, watch::FifoWatch};

/// Handles kept before those of ended tasks are dropped.
const HANDLES_KEPT: usize = 1_024;

tokio::task_local! {
    static LIFE: Arc<Life>;
}

/// One life of a node, and what openraft spawned in it.
pub struct Life {
    dice: Dice,
    /// `None` when it has ended.
    handles: Mutex<Option<Vec<AbortHandle>>>,
}

impl Life {
    pub fn new(dice: Dice) -> Arc<Self> {
        Arc::new(Self { dice, handles: Mutex::new(Some(Vec::new())) })
    }

    /// The owner of the node's other tasks, which run in this life too.
    pub fn tasks(self: &Arc<Self>) -> Tasks {
        let life = self.clone();
        Tasks::wrapped("node", Arc::new(move |task| LIFE.scope(life.clone(), task).boxed()))
    }

    /// None of its tasks is polled again.
    pub fn end(&self) {
        let handles = self.handles.lock().unwrap().take();
        handles.into_iter().flatten().for_each(|handle| handle.abort());
    }

    fn spawn<T>(self: &Arc<Self>, task: T) -> JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        let handle = tokio::spawn(LIFE.scope(self.clone(), task));
        match self.handles.lock().unwrap().as_mut() {
            None => handle.abort(),
            Some(handles) => {
                if handles.len() > HANDLES_KEPT {
                    handles.retain(|handle| !handle.is_finished());
                }
                handles.push(handle.abort_handle());
            }
        }
        handle
    }
}

/// The runtime of simulated nodes.
#[derive(Debug)]
pub struct SimRuntime;

impl AsyncRuntime for SimRuntime {
    type JoinError = JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = TokioInstant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = SmallRng;
    type Mpsc = TokioMpsc;
    type Watch = FifoWatch;
    type Oneshot = TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = TokioMutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        LIFE.with(Clone::clone).spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        tokio::time::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        tokio::time::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        error.is_panic()
    }

    fn thread_rng() -> SmallRng {
        LIFE.with(|life| life.dice.fork())
    }

    fn new(_: usize) -> Self {
        unreachable!("the simulation makes its own tokio runtime")
    }

    fn block_on<F, T>(&mut self, _: F) -> T
    where
        F: Future<Output = T>,
    {
        unreachable!("the simulation makes its own tokio runtime")
    }

    async fn spawn_blocking<F, T>(_: F) -> Result<T, io::Error>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        unreachable!("nothing blocks in simulation")
    }
}
