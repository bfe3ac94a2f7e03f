//! A client's connection, which generated clients can call.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use http::{Request, Response};
use http_body::Frame;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{Status, body::Body};
use tower_service::Service;

use crate::{KeepAlive, Received, Windows, gathered::Gathered, outgoing::Outgoing, status};

/// How a connection is set up.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What the node may send ahead.
    pub windows: Windows,
    /// When a silent node is given up.
    pub keep_alive: KeepAlive,
}

/// An open connection. Clones share it; it ends when the last of them is dropped and no call is under way.
#[derive(Clone, Debug)]
pub struct Connection {
    requests: SendRequest<Bytes>,
}

impl Connection {
    /// Speaks HTTP/2 on `io`, in a task of its own.
    ///
    /// # Errors
    /// When the other side does not.
    pub async fn open<T>(io: T, options: Options) -> Result<Self, h2::Error>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (io, reads) = Gathered::new(io);
        let (requests, mut connection) = Builder::new()
            .enable_push(false)
            .initial_window_size(options.windows.stream)
            .initial_connection_window_size(options.windows.connection)
            .handshake(io)
            .await?;
        let pings = connection.ping_pong();
        tokio::spawn(async move {
            let mut silence = pin!(options.keep_alive.watch(pings, reads));
            let mut connection = pin!(connection);
            let ended = poll_fn(|context| {
                if let Poll::Ready(ended) = connection.as_mut().poll(context) {
                    return Poll::Ready(Some(ended));
                }
                silence.as_mut().poll(context).map(|()| None)
            });
            match ended.await {
                Some(Ok(())) => {}
                Some(Err(error)) => tracing::debug!(%error, "a connection broke"),
                None => tracing::debug!("a connection is given up: its other end is silent"),
            }
        });
        Ok(Self { requests })
    }

    /// Whether calls can still be made: it has not broken, and the other side has not asked for another one.
    pub fn is_open(&self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        !matches!(self.requests.clone().poll_ready(&mut context), Poll::Ready(Err(_)))
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Reply>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Reply>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        // Calls beyond what the other side takes wait in the connection; callers bound them.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(call(self.requests.clone(), request))
    }
}

async fn call(requests: SendRequest<Bytes>, request: Request<Body>) -> Result<Response<Reply>, Status> {
    let mut requests = requests.ready().await.map_err(status::not_sent)?;
    let (head, body) = request.into_parts();
    let (response, stream) =
        requests.send_request(Request::from_parts(head, ()), false).map_err(status::not_sent)?;
    drop(requests);
    let mut sending = Sending::Under(Outgoing::new(body, stream));
    let mut response = pin!(response);
    let response = poll_fn(|context| {
        sending.go_on(context);
        response.as_mut().poll(context)
    });
    let response = response.await.map_err(status::of)?;
    Ok(response.map(|stream| Reply { received: Received::new(stream), sending }))
}

/// What becomes of the body of a request.
#[derive(Debug)]
enum Sending {
    Under(Outgoing<Body>),
    Over,
}

impl Sending {
    fn go_on(&mut self, context: &mut Context<'_>) {
        let Self::Under(outgoing) = self else { return };
        let Poll::Ready(sent) = Pin::new(outgoing).poll(context) else { return };
        if let Err(error) = sent {
            // The response, or its absence, tells the caller why.
            tracing::debug!(%error, "a request was not sent to its end");
        }
        *self = Self::Over;
    }
}

/// The body of a response. Whoever reads it sends what is left of the request meanwhile; whoever drops it gives up both.
#[derive(Debug)]
pub struct Reply {
    received: Received,
    sending: Sending,
}

impl http_body::Body for Reply {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.sending.go_on(context);
        Pin::new(&mut self.received).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.received.is_end_stream()
    }
}
