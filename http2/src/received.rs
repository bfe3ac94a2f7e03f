//! The body of a message that comes in.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::RecvStream;
use http_body::{Body, Frame};
use tonic::Status;

use crate::status;

/// What the other side sends: pieces, and perhaps trailers.
#[derive(Debug)]
pub struct Received {
    stream: RecvStream,
    part: Part,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Data,
    Trailers,
    Nothing,
}

impl Received {
    pub(crate) fn new(stream: RecvStream) -> Self {
        let part = if stream.is_end_stream() { Part::Nothing } else { Part::Data };
        Self { stream, part }
    }

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        let Some(data) = ready!(self.stream.poll_data(context)) else { return Poll::Ready(None) };
        let taken = data.and_then(|data| {
            // The window opens as far as somebody has read.
            self.stream.flow_control().release_capacity(data.len())?;
            Ok(data)
        });
        Poll::Ready(Some(taken.map_err(|error| status::of(&error))))
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        while self.part == Part::Data {
            let data = ready!(self.poll_data(context));
            if self.stream.is_end_stream() {
                self.part = Part::Nothing;
            } else if !matches!(data, Some(Ok(_))) {
                self.part = Part::Trailers;
            }
            match data {
                // Only the end of the stream came with it.
                Some(Ok(data)) if data.is_empty() => {}
                Some(data) => return Poll::Ready(Some(data.map(Frame::data))),
                None => {}
            }
        }
        if self.part == Part::Nothing {
            return Poll::Ready(None);
        }
        let trailers = ready!(self.stream.poll_trailers(context));
        self.part = Part::Nothing;
        Poll::Ready(match trailers {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => Some(Err(status::of(&error))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.part == Part::Nothing
    }
}
