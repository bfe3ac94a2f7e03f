//! The HTTP port: `/livez`, `/readyz` and `/metrics`, for kubelets, Prometheus and people with curl.
//!
//! hyper alone, HTTP/1.1, one request a connection: three fixed paths need no router, and hyper is in the program
//! anyway, below gRPC. The server is one future: it spawns nothing, and dropping it closes the port and every
//! connection.
//!
//! Nobody can keep a probe out: at most [`MAX_CONNECTIONS`] are open, and when one more comes, the oldest is closed.
//! A probe is answered in far less time than it takes to become the oldest. Whatever is sent, a connection ends
//! after [`CONNECTION_TIMEOUT`] and buffers at most [`MAX_REQUEST_BYTES`].

mod connections;
mod reply;

use std::{io, sync::Arc, time::Duration};

use futures::StreamExt;
use hyper::{Method, Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use self::connections::Connections;

/// Open connections.
pub const MAX_CONNECTIONS: usize = 64;
/// From accepting a connection to its end.
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Request line and headers; the least that hyper allows.
pub const MAX_REQUEST_BYTES: usize = 8192;
/// After a failed accept, which is a lack of file descriptors: others need them too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a probe is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Ok,
    /// No, and why, in a line for a person.
    No(String),
}

/// What the port shows of a node. Called for each request, in the server's task: it must not block.
pub trait Observed: Send + Sync + 'static {
    /// Whether restarting this process would not help. Must not depend on other nodes: were it to, a network
    /// partition would restart them all.
    fn live(&self) -> Verdict;

    /// Whether clients should be sent here.
    fn ready(&self) -> Verdict;

    /// All metrics in the text format of OpenMetrics.
    fn metrics(&self) -> String;
}

/// Serves for ever. Dropping the future ends it.
pub async fn serve(listener: TcpListener, node: Arc<impl Observed>) {
    let mut connections = Connections::new(MAX_CONNECTIONS);
    loop {
        tokio::select! {
            biased;
            Some(()) = connections.next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => connections.open(connection(stream, Arc::clone(&node))),
                Err(error) => pause(&error).await,
            },
        }
    }
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "cannot accept on the HTTP port");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

async fn connection(stream: TcpStream, node: Arc<impl Observed>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let reply = answer(request.method(), request.uri().path(), node.as_ref());
        async move { reply }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .max_buf_size(MAX_REQUEST_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    // Whoever sent garbage or went away is not news.
    match tokio::time::timeout(CONNECTION_TIMEOUT, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "HTTP connection failed"),
        Err(_) => tracing::debug!("HTTP connection timed out"),
    }
}

fn answer(method: &Method, path: &str, node: &impl Observed) -> reply::Result {
    if method != Method::GET && method != Method::HEAD {
        return reply::method_not_allowed();
    }
    match path {
        "/livez" => reply::verdict(node.live()),
        "/readyz" => reply::verdict(node.ready()),
        "/metrics" => reply::metrics(node.metrics()),
        _ => reply::not_found(),
    }
}

#[cfg(test)]
mod tests;
