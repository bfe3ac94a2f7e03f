//! Runs the requests of one connection side by side, in one task and at most so many at once.
//!
//! A request that finds the crew busy is refused. One that panics ends the node, as a panic of any task does.

use std::{future::Future, sync::Arc};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::runtime::Spawner;

type Job = (BoxFuture<'static, ()>, OwnedSemaphorePermit);

/// Takes jobs.
pub(super) struct Crew {
    places: Arc<Semaphore>,
    jobs: mpsc::Sender<Job>,
}

/// All places are taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Busy;

impl Crew {
    /// A crew with `places` jobs at once. It ends with the spawner's owner, or when it is dropped and done.
    pub(super) fn hire(spawner: &Spawner, name: &'static str, places: usize) -> Self {
        let (jobs, queue) = mpsc::channel(places.max(1));
        spawner.spawn(name, work(queue));
        Self { places: Arc::new(Semaphore::new(places)), jobs }
    }

    /// A place for a job, held until the job is done.
    pub(super) fn place(&self) -> Result<Place<'_>, Busy> {
        let permit = self.places.clone().try_acquire_owned().map_err(|_| Busy)?;
        Ok(Place { crew: self, permit })
    }
}

/// A place in a crew.
pub(super) struct Place<'a> {
    crew: &'a Crew,
    permit: OwnedSemaphorePermit,
}

impl Place<'_> {
    /// Has the job done. There are as many places as the queue is long, so it never fails while the crew works.
    pub(super) fn run(self, job: impl Future<Output = ()> + Send + 'static) {
        let _ = self.crew.jobs.try_send((Box::pin(job), self.permit));
    }
}

async fn work(mut queue: mpsc::Receiver<Job>) {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(()) = running.next() => {}
            Some((job, place)) = queue.recv() => running.push(async move {
                job.await;
                drop(place);
            }),
            else => return,
        }
    }
}
