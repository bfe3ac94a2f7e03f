//! Connections that other nodes dialled, from their first batch to their end.
//!
//! The first batch tells who is there: it is checked like every later one, and a batch of another cluster or for
//! another node is refused and ends the stream. A node has one connection in each lane, the newest. Those that have not
//! said who they are yet are few, and have the idle time-out to do so.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use kv_proto::peer::v1::FrameBatch;
use kv_topology::NodeId;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{
    answers::Answers,
    conduit::{Accept, Broken, Connection, Lane},
    dispatch::{Dispatch, Shared},
    identity::{IdentityCell, Refused},
    peers::Peers,
};
use crate::runtime::{Spawner, Tasks};

/// Serves what other nodes dial.
pub(super) struct Acceptor {
    pub(super) identity: Arc<IdentityCell>,
    pub(super) peers: Arc<Peers>,
    pub(super) shared: Shared,
    pub(super) spawner: Spawner,
    pub(super) connections: Arc<Connections>,
}

impl Accept for Acceptor {
    fn accept(&self, lane: Lane, connection: Connection) {
        let Some((number, spawner)) = self.connections.enter(&self.spawner, self.shared.limits.strangers)
        else {
            let _ = connection.outbound.try_send(Err(Refused::TooManyStrangers));
            return;
        };
        let serving = Serving {
            number,
            lane,
            identity: self.identity.clone(),
            peers: self.peers.clone(),
            shared: self.shared.clone(),
            spawner: spawner.clone(),
            connections: self.connections.clone(),
        };
        spawner.spawn("peer connection", serving.run(connection));
    }
}

/// One accepted connection.
struct Serving {
    number: u64,
    lane: Lane,
    identity: Arc<IdentityCell>,
    peers: Arc<Peers>,
    shared: Shared,
    spawner: Spawner,
    connections: Arc<Connections>,
}

impl Serving {
    async fn run(self, mut connection: Connection) {
        let broken = self.serve(&mut connection).await;
        tracing::debug!(lane = self.lane.name(), error = %broken, "accepted peer stream ended");
        if let Broken::Refused(refused) = broken {
            // Not for longer than an honest peer needs: the stream may be full.
            let telling = connection.outbound.send(Err(refused));
            let _ = timeout(self.shared.limits.keep_alive, telling).await;
        }
        self.connections.leave(self.number);
    }

    async fn serve(&self, connection: &mut Connection) -> Broken {
        let first = match self.next_batch(connection).await {
            Ok(first) => first,
            Err(broken) => return broken,
        };
        let from = match self.identity.check(&first, None) {
            Ok(from) => from,
            Err(refused) => return refused.into(),
        };
        self.connections.identify(self.number, (from, self.lane));
        let peer = self.peers.peer(from);
        let answers = Arc::new(Answers::new(self.shared.limits.clone()));
        let ended = self.spawn_writer(from, answers.clone(), connection.outbound.clone());
        let mut dispatch =
            Dispatch::new((from, peer.clone()), self.shared.clone(), self.spawner.clone(), answers.clone());
        let mut batch = first;
        loop {
            peer.hear(Instant::now(), batch.frames.len());
            peer.told(&batch);
            if batch.frames.is_empty() {
                answers.alive();
            }
            for frame in batch.frames {
                dispatch.deliver(frame);
            }
            let next = tokio::select! {
                biased;
                () = ended.closed() => return Broken::Ended,
                next = self.next_batch(connection) => next,
            };
            batch = match next {
                Ok(next) => next,
                Err(broken) => return broken,
            };
            if let Err(refused) = self.identity.check(&batch, Some(from)) {
                return refused.into();
            }
        }
    }

    /// Writes answers; the returned channel closes when that has ended.
    fn spawn_writer(
        &self,
        to: NodeId,
        answers: Arc<Answers>,
        outbound: mpsc::Sender<Result<FrameBatch, Refused>>,
    ) -> mpsc::Sender<()> {
        let (ended, alive) = mpsc::channel::<()>(1);
        let (identity, peer, lane) = (self.identity.clone(), self.peers.peer(to), self.lane);
        self.spawner.spawn("peer answers", async move {
            let _alive = alive;
            if let Some(identity) = identity.get() {
                let broken = answers.write(&outbound, (identity, to), (&peer, lane)).await;
                tracing::debug!(node = to.0, error = %broken, "answers to a peer ended");
            }
        });
        ended
    }

    async fn next_batch(&self, connection: &mut Connection) -> Result<FrameBatch, Broken> {
        match timeout(self.idle(), connection.inbound.next()).await {
            Ok(Some(batch)) => batch,
            Ok(None) => Err(Broken::Ended),
            Err(_) => Err(Broken::Idle),
        }
    }

    fn idle(&self) -> Duration {
        match self.lane {
            Lane::Raft => self.shared.limits.raft_idle,
            Lane::Bulk => self.shared.limits.bulk_idle,
        }
    }
}

/// The accepted connections that are open, each with the tasks that serve it.
#[derive(Default)]
pub(super) struct Connections(Mutex<Table>);

#[derive(Default)]
struct Table {
    next: u64,
    open: BTreeMap<u64, (Option<(NodeId, Lane)>, Tasks)>,
}

impl Connections {
    /// Enters a stranger, unless there are too many.
    fn enter(&self, spawner: &Spawner, strangers: usize) -> Option<(u64, Spawner)> {
        let mut table = self.table();
        if table.open.values().filter(|(who, _)| who.is_none()).count() >= strangers {
            return None;
        }
        let number = table.next;
        table.next += 1;
        let tasks = spawner.scope("peer connection");
        let spawner = tasks.spawner();
        table.open.insert(number, (None, tasks));
        Some((number, spawner))
    }

    /// Notes who is there, and ends the connection that it had before in this lane.
    fn identify(&self, number: u64, who: (NodeId, Lane)) {
        let replaced = {
            let mut table = self.table();
            let before =
                table.open.iter().find(|(_, (other, _))| *other == Some(who)).map(|(number, _)| *number);
            if let Some((stranger, _)) = table.open.get_mut(&number) {
                *stranger = Some(who);
            }
            before.and_then(|before| table.open.remove(&before))
        };
        drop(replaced);
    }

    /// Ends a connection and all its tasks.
    fn leave(&self, number: u64) {
        let left = self.table().open.remove(&number);
        drop(left);
    }

    /// Ends all connections.
    pub(super) fn close(&self) {
        let open = std::mem::take(&mut self.table().open);
        drop(open);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
