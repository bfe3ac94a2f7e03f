//! Where the state store's own work runs: on threads of the node, or within one task under simulation.

use std::{fmt, future::Future, io, pin::Pin, sync::Arc};

use tokio::sync::oneshot;

/// A task of the node.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Starts a task that the node keeps. The name is for people.
pub type TaskSpawner = Arc<dyn Fn(&'static str, Task) + Send + Sync>;

/// Starts a thread that the node keeps. The name is for people.
pub type ThreadSpawner = Arc<dyn Fn(&'static str, Box<dyn FnOnce() + Send>) -> io::Result<()> + Send + Sync>;

/// How the state store's work is run.
#[derive(Clone)]
pub enum Workers {
    /// What may block gets a thread of its own.
    Threads {
        /// For what blocks.
        threads: ThreadSpawner,
        /// For what waits.
        tasks: TaskSpawner,
    },
    /// Nothing blocks, because the store is in memory: all runs in tasks of one thread.
    Simulated {
        /// For everything.
        tasks: TaskSpawner,
    },
}

impl fmt::Debug for Workers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Threads { .. } => "Threads",
            Self::Simulated { .. } => "Simulated",
        })
    }
}

impl Workers {
    /// Starts a task.
    pub fn task(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        match self {
            Self::Threads { tasks, .. } | Self::Simulated { tasks } => tasks(name, Box::pin(task)),
        }
    }

    /// Runs `work` where it may block, and waits for it.
    ///
    /// # Errors
    /// When no thread could be started, or it ended without a result.
    pub async fn blocking<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        match self {
            Self::Simulated { .. } => Ok(work()),
            Self::Threads { threads, .. } => {
                let (done, result) = oneshot::channel();
                threads(
                    name,
                    Box::new(move || {
                        // The one who asked may have given up.
                        done.send(work()).ok();
                    }),
                )?;
                result
                    .await
                    .map_err(|_| io::Error::other(format!("{name}: the thread ended without a result")))
            }
        }
    }
}
