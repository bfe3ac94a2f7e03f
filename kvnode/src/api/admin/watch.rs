//! `WatchCluster`: what meta knows, at once and again after each change.
//!
//! A watch takes the place of a stream. It is pulled by its client: one that does not read misses the states in between and
//! gets the newest one when it reads again, so that nothing piles up here. It ends with its caller's deadline, at the age of
//! its connection, with the node, and when the node is out of its cluster and would tell nothing for ever; the status says that
//! the same may be asked again.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use kv_proto::admin::v1::{ClusterEvent, Phase};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::Node;
use crate::{
    api::{
        error::{self, Refused},
        kv::{Caller, Replies},
        quota::Share,
    },
    meta::view,
    refusal,
};

/// How often a watch to which nothing comes looks whether its node is still in the cluster.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What ends all watches of a port.
#[derive(Clone, Debug)]
pub struct Watches {
    /// Of a connection, at which its watches end; `None`: never.
    age_max: Option<Duration>,
    draining: watch::Receiver<bool>,
}

impl Watches {
    /// They end when `draining` says so, and `age_notice` after their connection was asked to reconnect.
    pub fn new(connection_age_max: Duration, age_notice: Duration, draining: watch::Receiver<bool>) -> Self {
        Self { age_max: connection_age_max.checked_add(age_notice), draining }
    }

    /// Resolves when a watch of this caller must end, and says why.
    pub fn end_of(&self, caller: &Caller) -> BoxFuture<'static, Refused> {
        let aged = caller.connection().and_then(|connection| connection.since.checked_add(self.age_max?));
        let (expires, mut draining) = (caller.deadline.call(), self.draining.clone());
        async move {
            tokio::select! {
                biased;
                // Also when nobody is left to tell.
                _ = draining.wait_for(|draining| *draining) => ended("the node is stopping"),
                () = reach(expires) => Refused::Expired,
                () = reach(aged) => ended("the connection is old"),
            }
        }
        .boxed()
    }
}

fn ended(why: &str) -> Refused {
    Refused::Store(refusal::not_applied(refusal::STREAM_ENDED, format!("{why}; watch again")))
}

async fn reach(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

struct Watch<N> {
    node: Arc<N>,
    /// Of the last event.
    epoch: u64,
    end: BoxFuture<'static, Refused>,
    _place: Option<Share>,
}

/// The states of the cluster from the first that is newer than `epoch`, until `end`.
pub fn events<N: Node>(
    node: Arc<N>,
    epoch: u64,
    end: BoxFuture<'static, Refused>,
    place: Option<Share>,
) -> Replies<ClusterEvent> {
    let watch = Watch { node, epoch, end, _place: place };
    stream::unfold(Some(watch), |watch| async move {
        let mut watch = watch?;
        match watch.next().await {
            Ok(event) => Some((Ok(event), Some(watch))),
            Err(refused) => Some((Err(error::describe(&refused, &watch.node.map()).status()), None)),
        }
    })
    .boxed()
}

impl<N: Node> Watch<N> {
    async fn next(&mut self) -> Result<ClusterEvent, Refused> {
        let Self { node, epoch, end, .. } = self;
        loop {
            if hears_nothing(node.status().phase()) {
                return Err(ended("the node is out of its cluster"));
            }
            tokio::select! {
                biased;
                refused = &mut *end => return Err(refused),
                record = node.meta_newer_than(*epoch) => {
                    *epoch = record.epoch;
                    return Ok(view::cluster_event(&record));
                }
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }
}

/// Whether what a node knows of the cluster does not change any more.
fn hears_nothing(phase: Phase) -> bool {
    match phase {
        Phase::Failed | Phase::Recovering => true,
        Phase::Unspecified
        | Phase::Empty
        | Phase::Starting
        | Phase::Joining
        | Phase::Running
        | Phase::Stopping => false,
    }
}
