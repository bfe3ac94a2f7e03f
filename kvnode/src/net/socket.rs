//! An accepted TCP stream that ends when nobody speaks HTTP/2 on it, or when its watch says so.
//!
//! The timers of a socket belong to its own task, which reads from it: there is no task beside it. A watch is asked
//! before each read and while a write waits: a client that takes no bytes can keep HTTP/2 from reading.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

/// Length of the HTTP/2 client preface, bytes; RFC 9113, 3.4.
const PREFACE_BYTES: usize = 24;

/// What a port holds with each of its sockets, and when it ends one. Dropped with the socket.
pub trait Watch: Send + Unpin {
    /// Why the socket must end now. While there is no reason, sees to it that the task wakes to ask again.
    fn poll_fault(&mut self, _: &mut Context<'_>) -> Poll<io::Error> {
        Poll::Pending
    }

    /// So many bytes went out.
    fn wrote(&self, _bytes: usize) {}
}

/// A watched socket.
#[derive(Debug)]
pub struct Socket<W> {
    stream: TcpStream,
    preface_bytes_missing: usize,
    /// Until the preface has come.
    preface: Option<Pin<Box<Sleep>>>,
    watch: W,
}

impl<W: Watch> Socket<W> {
    /// Just accepted; the preface must come within `preface`.
    pub fn new(stream: TcpStream, preface: Duration, watch: W) -> Self {
        let preface = Some(Box::pin(sleep(preface)));
        Self { stream, preface_bytes_missing: PREFACE_BYTES, preface, watch }
    }

    /// What is held with it.
    pub fn watch(&self) -> &W {
        &self.watch
    }

    /// Fails when the socket must end.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if let Some(preface) = &mut self.preface
            && preface.as_mut().poll(context).is_ready()
        {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no HTTP/2 preface in time"));
        }
        match self.watch.poll_fault(context) {
            Poll::Ready(fault) => Err(fault),
            Poll::Pending => Ok(()),
        }
    }

    fn written(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => self.watch.wrote(bytes),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.check(context)?,
        }
        written
    }
}

impl<W: Watch> AsyncRead for Socket<W> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = buffer.filled().len() - before;
        self.preface_bytes_missing = self.preface_bytes_missing.saturating_sub(read);
        if self.preface_bytes_missing == 0 {
            self.preface = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl<W: Watch> AsyncWrite for Socket<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.written(written, context)
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
