//! The keeper of a client's sessions: closes those that nobody writes in any more, and all of them when the client is gone.
//!
//! A shard keeps a session, and what its last write did, until it is closed or expires, and has room for some thousands. So
//! what is not needed is given back. A session that is needed again is opened again by the next write.
//!
//! One task for a client and its clones, which begins with the first session that is opened and ends with the last one that is
//! there. Writes do not know of it: a session is idle when nobody waits for an outcome and no sequence was given out between two
//! looks, and is taken out under the lock that gives sequences out. So no write has a place in what is closed.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::client::{Client, Core};

/// A session that was not used from one look to the next is closed: after 10 to 20 s. Long enough that who writes now and then
/// does not open one for each write, and short next to the 10 minutes after which it would expire.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// What the clones of a client hold together. When the last one goes, the keeper is told.
#[derive(Debug)]
pub(crate) struct Clones(Arc<Core>);

impl Clones {
    pub(crate) fn of(core: Arc<Core>) -> Arc<Self> {
        Arc::new(Self(core))
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0
    }
}

impl Drop for Clones {
    fn drop(&mut self) {
        self.0.sessions.rouse_keeper();
    }
}

/// The task.
struct Keeper {
    core: Arc<Core>,
    clones: Weak<Clones>,
    is_done: bool,
}

/// Sees to it that the sessions of these clones have a keeper. To be called when one was opened.
pub(crate) fn keep(clones: &Arc<Clones>) {
    let core = clones.core().clone();
    if core.sessions.needs_keeper() {
        tokio::spawn(Keeper { core, clones: Arc::downgrade(clones), is_done: false }.run());
    }
}

impl Keeper {
    async fn run(mut self) {
        let mut looks = interval_at(Instant::now() + LOOK_INTERVAL, LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.is_done {
            tokio::select! {
                _ = looks.tick() => self.close(self.core.sessions.take_idle()).await,
                () = self.core.sessions.keeper_roused() => {}
            }
            if self.clones.strong_count() == 0 {
                self.close(self.core.sessions.take()).await;
            }
            self.is_done = self.core.sessions.dismisses_keeper();
        }
    }

    async fn close(&self, sessions: Vec<u64>) {
        if !sessions.is_empty() {
            Client::of(Clones::of(self.core.clone())).close_sessions(sessions).await;
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Its runtime has ended. Another one may have sessions opened yet.
        if !self.is_done {
            self.core.sessions.lost_keeper();
        }
    }
}
