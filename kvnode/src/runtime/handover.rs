//! From a thread to the tasks of its node: many answers, one wake.
//!
//! A thread that answers hundreds of callers one by one wakes the runtime for each of them, which is a system call and
//! often a switch of threads. Instead it hands the whole work of answering over, and a task of the node does it where
//! the callers run.

use std::future::Future;

use tokio::sync::mpsc;

/// What is left to do; it must not block.
type Work = Box<dyn FnOnce() + Send>;

/// What was handed over. When the task is ended, what is left is done on the way out.
struct Waiting(mpsc::UnboundedReceiver<Work>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.close();
        while let Ok(work) = self.0.try_recv() {
            work();
        }
    }
}

/// Takes work from one thread, in order.
#[derive(Clone, Debug)]
pub struct Handover(Option<mpsc::UnboundedSender<Work>>);

impl Handover {
    /// To the returned task, which ends with the last handle. Unbounded: what waits is bounded by those who handed the
    /// answered work in.
    pub fn to_task() -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, waiting) = mpsc::unbounded_channel();
        let mut waiting = Waiting(waiting);
        let task = async move {
            while let Some(work) = waiting.0.recv().await {
                work();
            }
        };
        (Self(Some(sender)), task)
    }

    /// To nobody: the work is done where it arises.
    pub fn in_place() -> Self {
        Self(None)
    }

    /// Does `work` soon, after all that was handed over before. When the task has ended it is done here: someone may
    /// still wait for it.
    pub fn run(&self, work: impl FnOnce() + Send + 'static) {
        match &self.0 {
            None => work(),
            Some(task) => {
                if let Err(mpsc::error::SendError(work)) = task.send(Box::new(work)) {
                    work();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn work_is_done_in_order_by_the_task_and_here_when_that_has_ended() {
        let (handover, task) = Handover::to_task();
        let done = Arc::new(Mutex::new(Vec::new()));
        let note = |number: u32| {
            let done = done.clone();
            move || done.lock().unwrap().push(number)
        };
        handover.run(note(1));
        handover.run(note(2));
        assert!(done.lock().unwrap().is_empty());
        let last = handover.clone();
        drop(handover);
        let task = tokio::spawn(task);
        let (told, tells) = tokio::sync::oneshot::channel();
        last.run(move || told.send(()).unwrap());
        tells.await.unwrap();
        assert_eq!(*done.lock().unwrap(), [1, 2]);
        task.abort();
        // It is ended before it can do this.
        last.run(note(3));
        task.await.unwrap_err();
        assert_eq!(*done.lock().unwrap(), [1, 2, 3]);
        last.run(note(4));
        assert_eq!(*done.lock().unwrap(), [1, 2, 3, 4]);
        Handover::in_place().run(note(5));
        assert_eq!(*done.lock().unwrap(), [1, 2, 3, 4, 5]);
    }
}
