//! A client's connection: a socket that ends when its client does nothing useful with it.
//!
//! It is closed when the HTTP/2 preface does not come in time (silence and garbage), when replies wait and none
//! moves for long (a client that does not read), and when the node ends.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use tokio::{
    net::TcpListener,
    time::{Interval, MissedTickBehavior},
};

use super::{
    limits::CONNECTION_TICK,
    quota::{ConnectionQuota, NodeQuota},
};
use crate::net::{
    accept,
    socket::{Socket, Watch},
};

/// Writes of fewer bytes may be PINGs and window updates: no sign that replies move.
const PROGRESS_BYTES_MIN: usize = 1024;

/// Time limits of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the preface.
    pub preface: Duration,
    /// For the client to take some of the bytes that wait for it.
    pub send_stall: Duration,
}

/// What a connection holds, and how long it may stand still.
#[derive(Debug)]
pub struct Lifeline {
    quota: Arc<ConnectionQuota>,
    send_stall: Duration,
    tick: Interval,
}

/// A connection under its limits.
pub type Connection = Socket<Lifeline>;

impl Lifeline {
    fn new(quota: Arc<ConnectionQuota>, send_stall: Duration) -> Self {
        let mut tick = tokio::time::interval(CONNECTION_TICK.min(send_stall));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { quota, send_stall, tick }
    }

    /// What is counted of the connection.
    pub fn quota(&self) -> &Arc<ConnectionQuota> {
        &self.quota
    }

    fn fault(&self) -> Option<io::Error> {
        if self.quota.node.has_ended() {
            return Some(io::Error::new(io::ErrorKind::ConnectionAborted, "the node ends"));
        }
        let stalled = || io::Error::new(io::ErrorKind::TimedOut, "the client takes no replies");
        self.quota.is_stalled(self.send_stall).then(stalled)
    }
}

impl Watch for Lifeline {
    fn poll_fault(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        while self.tick.poll_tick(context).is_ready() {
            if let Some(fault) = self.fault() {
                tracing::debug!(remote = ?self.quota.remote, %fault, "a connection is closed");
                return Poll::Ready(fault);
            }
        }
        Poll::Pending
    }

    fn wrote(&self, bytes: usize) {
        if bytes >= PROGRESS_BYTES_MIN {
            self.quota.progressed();
        }
    }
}

/// The connections that `listener` accepts. Whoever finds no place in `node` is closed at once.
pub fn incoming(
    listener: TcpListener,
    node: Arc<NodeQuota>,
    patience: Patience,
) -> impl Stream<Item = Connection> + Send {
    accept::incoming(listener, "clients", patience.preface, move |remote: SocketAddr| {
        let quota = ConnectionQuota::new(&node, remote)?;
        Some(Lifeline::new(quota, patience.send_stall))
    })
}
