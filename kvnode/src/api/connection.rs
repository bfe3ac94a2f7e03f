//! A client's connection: a TCP stream that ends when its client does nothing useful with it.
//!
//! It is closed when the HTTP/2 preface does not come in time (silence and garbage), when replies wait and none
//! moves for long (a client that does not read), and when the node ends. A timer of the connection's own task looks
//! after that: there is no task beside it.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{Instant, Interval, MissedTickBehavior},
};
use tonic::transport::server::Connected;

use super::{
    limits::{CONNECTION_TICK, RETRY_AFTER},
    quota::{ConnectionQuota, NodeQuota},
};

/// Length of the HTTP/2 client preface, bytes; RFC 9113, 3.4.
const PREFACE_BYTES: usize = 24;
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

/// A connection under these limits.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    quota: Arc<ConnectionQuota>,
    patience: Patience,
    accepted: Instant,
    preface_bytes_missing: usize,
    tick: Interval,
}

impl Connection {
    fn new(stream: TcpStream, quota: Arc<ConnectionQuota>, patience: Patience) -> Self {
        let mut tick = tokio::time::interval(CONNECTION_TICK.min(patience.preface).min(patience.send_stall));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let accepted = Instant::now();
        Self { stream, quota, patience, accepted, preface_bytes_missing: PREFACE_BYTES, tick }
    }

    fn fault(&self) -> Option<io::Error> {
        let timed_out = |text| Some(io::Error::new(io::ErrorKind::TimedOut, text));
        if self.quota.node.has_ended() {
            return Some(io::Error::new(io::ErrorKind::ConnectionAborted, "the node ends"));
        }
        if self.preface_bytes_missing > 0 && self.accepted.elapsed() >= self.patience.preface {
            return timed_out("no HTTP/2 preface in time");
        }
        if self.quota.is_stalled(self.patience.send_stall) {
            return timed_out("the client takes no replies");
        }
        None
    }
}

/// The connections that `listener` accepts. Beyond the limit it closes new ones at once.
pub fn incoming(
    listener: TcpListener,
    node: Arc<NodeQuota>,
    patience: Patience,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    stream::unfold((listener, node), move |(listener, node)| async move {
        let connection = accept(&listener, &node, patience).await;
        Some((Ok(connection), (listener, node)))
    })
}

async fn accept(listener: &TcpListener, node: &Arc<NodeQuota>, patience: Patience) -> Connection {
    loop {
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: trying again at once would only burn CPU.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(RETRY_AFTER).await;
                continue;
            }
        };
        let Ok(permit) = node.connections.clone().try_acquire_owned() else {
            tracing::warn!(%remote, "too many connections, one is refused");
            continue;
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%remote, %error, "a connection is gone already");
            continue;
        }
        return Connection::new(stream, ConnectionQuota::new(node.clone(), Some(remote), permit), patience);
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<ConnectionQuota>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.quota.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.tick.poll_tick(context).is_ready() {
            if let Some(fault) = self.fault() {
                tracing::debug!(remote = ?self.quota.remote, %fault, "a connection is closed");
                return Poll::Ready(Err(fault));
            }
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = buffer.filled().len() - before;
        self.preface_bytes_missing = self.preface_bytes_missing.saturating_sub(read);
        Poll::Ready(Ok(()))
    }
}

impl Connection {
    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(PROGRESS_BYTES_MIN..)) = written {
            self.quota.progressed();
        }
        written
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
