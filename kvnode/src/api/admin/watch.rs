//! `WatchCluster`: what meta knows, at once and again after each change.
//!
//! A watch takes the place of a stream. It is pulled by its client: one that does not read misses the states in between and
//! gets the newest one when it reads again, so that nothing piles up here. It ends with its caller's deadline, at the age of
//! its connection and with the node; the status says that the same may be asked again.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use kv_proto::admin::v1::ClusterEvent;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
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
        let Watch { node, epoch, end, .. } = &mut watch;
        tokio::select! {
            biased;
            refused = end => {
                let status = error::describe(&refused, &node.map()).status();
                Some((Err(status), None))
            }
            record = node.meta_newer_than(*epoch) => {
                *epoch = record.epoch;
                Some((Ok(view::cluster_event(&record)), Some(watch)))
            }
        }
    })
    .boxed()
}
