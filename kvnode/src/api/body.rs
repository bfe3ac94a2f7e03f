//! The bodies of requests and replies, counted.
//!
//! A request's bytes count until its reply is sent, those of a stream until they are handed over; a body that stops coming
//! ends with an error. Each piece of a reply counts until HTTP/2 drops it, which it does when the last byte was written or
//! copied for the next write.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use kv_http2::Received;
use tokio::time::{Instant, Sleep};
use tonic::{Code, Status};

use super::{
    error::{self, Refused},
    quota::{ConnectionQuota, InFlight, Sending, Share},
    unfinished::Unfinished,
};

/// How the bytes of a request count.
pub enum Counted {
    /// Not at all.
    No,
    /// Until the reply was sent.
    All,
    /// Those of a streamed request, as far as they were not handed over.
    Unfinished(Unfinished),
}

/// The body of a request.
pub struct RequestBody {
    inner: Received,
    in_flight: Arc<InFlight>,
    counted: Counted,
    idle_max: Duration,
    /// Runs while bytes are waited for.
    idle: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    /// Wraps `inner`.
    pub fn new(inner: Received, in_flight: Arc<InFlight>, counted: Counted, idle_max: Duration) -> Self {
        Self { inner, in_flight, counted, idle_max, idle: None }
    }

    fn count(&mut self, data: &[u8]) -> Result<(), Refused> {
        match &mut self.counted {
            Counted::No => Ok(()),
            Counted::All => self.in_flight.received(data.len()),
            Counted::Unfinished(unfinished) => {
                unfinished.came(data);
                Ok(())
            }
        }
    }

    fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<Status> {
        let idle_max = self.idle_max;
        let idle =
            self.idle.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + idle_max)));
        ready!(idle.as_mut().poll(context));
        Poll::Ready(Status::deadline_exceeded("the request stopped coming"))
    }
}

fn status_of(refused: &Refused) -> Status {
    error::describe(refused, &Default::default()).status()
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Counted::Unfinished(unfinished) = &mut self.counted
            && let Err(refused) = ready!(unfinished.poll_room(context))
        {
            return Poll::Ready(Some(Err(status_of(&refused))));
        }
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) else {
            return self.poll_idle(context).map(|status| Some(Err(status)));
        };
        self.idle = None;
        // A cancelled request must not look complete: an upload would take what came for the whole value. tonic (0.14,
        // `Streaming`) ends a body that fails as cancelled as if all had come.
        let is_cut = match &frame {
            None => !self.inner.is_end_stream(),
            Some(Ok(_)) => false,
            Some(Err(status)) => status.code() == Code::Cancelled,
        };
        if is_cut {
            return Poll::Ready(Some(Err(Status::unavailable("the client cancelled the request"))));
        }
        let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
        if let Some(data) = data
            && let Err(refused) = self.count(data)
        {
            return Poll::Ready(Some(Err(status_of(&refused))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The body of a reply.
pub struct ReplyBody {
    inner: tonic::body::Body,
    /// `None`: the call was refused before it took a place.
    in_flight: Option<Arc<InFlight>>,
    share: Option<Share>,
    sending: Option<Sending>,
}

impl ReplyBody {
    /// Wraps `inner`; `share` is given back after its last piece, and what is being sent with its own.
    pub fn new(
        inner: tonic::body::Body,
        in_flight: Option<Arc<InFlight>>,
        share: Option<Share>,
        sending: Option<Sending>,
    ) -> Self {
        Self { inner, in_flight, share, sending }
    }
}

/// A piece of a reply that HTTP/2 has not sent yet.
struct Unsent {
    data: Bytes,
    connection: Arc<ConnectionQuota>,
    _share: Option<Share>,
    _sending: Vec<Share>,
}

impl AsRef<[u8]> for Unsent {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.connection.sent(self.data.len());
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        let Some(in_flight) = &self.in_flight else { return Poll::Ready(frame) };
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| {
                frame.map_data(|data| {
                    let connection = in_flight.connection.clone();
                    connection.queued(data.len());
                    let _sending = self.sending.as_ref().map(Sending::current).unwrap_or_default();
                    Bytes::from_owner(Unsent { data, connection, _share: self.share.clone(), _sending })
                })
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
