//! The body of a message that goes out.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::{Body, Frame};
use thiserror::Error;
use tonic::Status;

/// Hands a body to a stream, a piece whenever the other side's window has room. The last piece ends the stream.
#[derive(Debug)]
pub(crate) struct Outgoing<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// Taken from the body, not yet handed over: whether it is the last one is known when the next one is asked for.
    next: Option<Bytes>,
}

/// Why a body was not sent to its end.
#[derive(Debug, Error)]
pub(crate) enum Failed {
    /// It could not be made.
    #[error("making the body: {0}")]
    Body(Status),
    /// The other side, or the connection.
    #[error(transparent)]
    Http(#[from] h2::Error),
    /// The other side wants no more of it.
    #[error("the stream is closed")]
    Closed,
}

/// What follows a piece.
enum Follows {
    Piece(Bytes),
    Trailers(http::HeaderMap),
    Nothing,
    NotYet,
}

impl<B: Body<Data = Bytes, Error = Status> + Unpin> Outgoing<B> {
    pub(crate) fn new(body: B, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, next: None }
    }

    /// Waits until the window of the stream is open. What is handed over then may be larger than it: it was made already.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        if self.stream.capacity() > 0 {
            return Poll::Ready(Ok(()));
        }
        // One byte: a body that is not made yet must not keep the window of the connection from others.
        self.stream.reserve_capacity(1);
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(context)) {
                Some(capacity) => capacity?,
                None => return Poll::Ready(Err(Failed::Closed)),
            };
        }
        Poll::Ready(Ok(()))
    }

    fn poll_following(&mut self, context: &mut Context<'_>) -> Result<Follows, Failed> {
        loop {
            let frame = match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(frame)) => frame.map_err(Failed::Body)?,
                Poll::Ready(None) => return Ok(Follows::Nothing),
                Poll::Pending => return Ok(Follows::NotYet),
            };
            match frame.into_data().map_err(Frame::into_trailers) {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Ok(Follows::Piece(data)),
                Err(Ok(trailers)) => return Ok(Follows::Trailers(trailers)),
                // There is no third kind.
                Err(Err(_)) => {}
            }
        }
    }

    fn poll_all(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        loop {
            if self.next.is_some() {
                ready!(self.poll_room(context))?;
            }
            let piece = self.next.take();
            let follows = self.poll_following(context)?;
            let is_last = matches!(follows, Follows::Nothing);
            if is_last || piece.is_some() {
                self.stream.send_data(piece.unwrap_or_default(), is_last)?;
            }
            match follows {
                Follows::Piece(next) => self.next = Some(next),
                Follows::Trailers(trailers) => {
                    self.stream.send_trailers(trailers)?;
                    return Poll::Ready(Ok(()));
                }
                Follows::Nothing => return Poll::Ready(Ok(())),
                Follows::NotYet => return Poll::Pending,
            }
        }
    }
}

impl<B: Body<Data = Bytes, Error = Status> + Unpin> Future for Outgoing<B> {
    type Output = Result<(), Failed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.poll_all(context) {
            Poll::Ready(Err(failed)) => {
                if let Failed::Body(_) = failed {
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                }
                Poll::Ready(Err(failed))
            }
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            // Nobody waits for a body whose stream was reset.
            Poll::Pending => self.stream.poll_reset(context).map(|_| Err(Failed::Closed)),
        }
    }
}
