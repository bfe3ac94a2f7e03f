//! A server's side of a connection.

use std::{
    future::poll_fn,
    pin::pin,
    task::{Poll, ready},
};

use bytes::Bytes;
use h2::{
    RecvStream,
    server::{Builder, SendResponse},
};
use http::{Request, Response};
use http_body::Body;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Status;

use crate::{KeepAlive, Received, Windows, gathered::Gathered, outgoing::Outgoing};

/// Calls that were answered before all of their body had come, and whose late bytes are no error of the client: as many as can
/// be refused within a second, for which they are remembered. Beyond that h2 counts them, and ends the connection at 1,024.
const REFUSED_MAX: usize = 4_096;

/// How connections are served.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What a client may send ahead.
    pub windows: Windows,
    /// When a silent client is given up.
    pub keep_alive: KeepAlive,
    /// Calls of one connection at the same time.
    pub streams_max: u32,
    /// Headers of a request, bytes.
    pub header_bytes_max: u32,
}

/// Answers calls. A clone of it serves each connection.
pub trait Handler: Clone + Send + 'static {
    /// The body of its responses.
    type Body: Body<Data = Bytes, Error = Status> + Send + Unpin;

    /// Answers one call. Dropped when the client gives it up.
    fn handle(&self, request: Request<Received>) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// Why a connection ended otherwise than in order.
#[derive(Debug, Error)]
pub enum Ended {
    /// Its client broke it, or did not keep to HTTP/2.
    #[error(transparent)]
    Http(#[from] h2::Error),
    /// Its client does not answer.
    #[error("no answer to a PING")]
    Silent,
}

/// Serves the calls that come on `io`, each in a task of its own, until the client is gone. Once `drain` resolves, the
/// client is asked to reconnect, and what is under way is finished.
///
/// # Errors
/// When the connection did not end in order.
pub async fn serve<T, H>(
    io: T,
    handler: H,
    options: Options,
    drain: impl Future<Output = ()>,
) -> Result<(), Ended>
where
    T: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    let (io, reads) = Gathered::new(io);
    let mut connection = Builder::new()
        .initial_window_size(options.windows.stream)
        .initial_connection_window_size(options.windows.connection)
        .max_concurrent_streams(options.streams_max)
        .max_header_list_size(options.header_bytes_max)
        .max_concurrent_reset_streams(REFUSED_MAX)
        .handshake::<_, Bytes>(io)
        .await?;
    let mut silence = pin!(options.keep_alive.watch(connection.ping_pong(), reads));
    let mut drain = pin!(drain);
    let mut is_draining = false;
    poll_fn(|context| {
        if !is_draining && drain.as_mut().poll(context).is_ready() {
            is_draining = true;
            connection.graceful_shutdown();
        }
        while let Poll::Ready(accepted) = connection.poll_accept(context) {
            let Some(accepted) = accepted else { return Poll::Ready(Ok(())) };
            let (request, respond) = accepted?;
            tokio::spawn(answer(handler.clone(), request, respond));
        }
        ready!(silence.as_mut().poll(context));
        Poll::Ready(Err(Ended::Silent))
    })
    .await
}

async fn answer<H: Handler>(handler: H, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let response = {
        let mut handling = pin!(handler.handle(request.map(Received::new)));
        poll_fn(|context| match handling.as_mut().poll(context) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            // Nobody waits for the answer any more.
            Poll::Pending => respond.poll_reset(context).map(|_| None),
        })
        .await
    };
    let Some(response) = response else { return };
    let (head, body) = response.into_parts();
    let is_whole = body.is_end_stream();
    let stream = respond.send_response(Response::from_parts(head, ()), is_whole);
    let sent = match stream {
        Ok(stream) if !is_whole => Outgoing::new(body, stream).await,
        Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = sent {
        tracing::debug!(%error, "a reply was not sent to its end");
    }
}
