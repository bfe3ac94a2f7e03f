//! Sockets on the peer port, from their acceptance on: counted, bounded, and cut off when nobody speaks HTTP/2 on them.
//!
//! The bound alone would let a few silent strangers keep every node out; the deadline of the preface gives their places
//! back. What is said on a connection, and by whom, is looked at later (`accepted`).

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
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tonic::transport::server::Connected;

use super::limits::Limits;

/// Length of the HTTP/2 client preface, bytes; RFC 9113, 3.4.
const PREFACE_BYTES: usize = 24;
/// Before the next attempt after the system refused to accept: out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An accepted socket. Dropping it gives its place back.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    preface_bytes_missing: usize,
    /// Until the preface has come.
    deadline: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

/// The sockets that `listener` accepts, at most so many at once. Beyond that new ones are closed at once.
pub(super) fn incoming(
    listener: TcpListener,
    limits: &Limits,
) -> impl Stream<Item = io::Result<Socket>> + Send + use<> {
    let (places, patience) = (Arc::new(Semaphore::new(limits.sockets)), limits.connect);
    stream::unfold((listener, places), move |(listener, places)| async move {
        let socket = accept(&listener, &places, patience).await;
        Some((Ok(socket), (listener, places)))
    })
}

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>, patience: Duration) -> Socket {
    loop {
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a peer's connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(%remote, "too many connections on the peer port, one is refused");
            continue;
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%remote, %error, "a peer's connection is gone already");
            continue;
        }
        return Socket {
            stream,
            preface_bytes_missing: PREFACE_BYTES,
            deadline: Some(Box::pin(sleep(patience))),
            _place: place,
        };
    }
}

impl Connected for Socket {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no HTTP/2 preface in time")));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = buffer.filled().len() - before;
        self.preface_bytes_missing = self.preface_bytes_missing.saturating_sub(read);
        if self.preface_bytes_missing == 0 {
            self.deadline = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
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
