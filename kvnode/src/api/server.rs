//! The port of clients: services, reflection and health behind limits, on a listener that is already bound.
//!
//! Its end has three steps: NOT_SERVING, then GOAWAY while running requests finish, then every connection is closed.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use kv_http2::{KeepAlive, Windows, server as http2};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    admin::{AdminService, Node, Watches},
    admission::{Admission, Authorize, IdleLimits, allow_all},
    batch_stream::{BatchTerms, Streams},
    connection::{Connection, Patience, incoming},
    context::Context,
    health::Health,
    kv::KvService,
    limits,
    measure::{ApiMetrics, Calls},
    port::{Port, Reception},
    quota::{Capacity, NodeQuota},
    services::Services,
    text::KvTextService,
};
use crate::{recovery::service::RecoveryService, router::store::Store};

/// What can be set; the default is what the limits say.
#[derive(Clone)]
pub struct Options {
    /// What is counted and timed.
    pub metrics: ApiMetrics,
    /// Decides who may call what.
    pub authorize: Authorize,
    /// What clients may hold, where that is less than the limits of the API.
    pub capacity: Capacity,
    /// Requests of one connection at the same time.
    pub streams_per_connection_max: u32,
    /// Time limits of connections.
    pub patience: Patience,
    /// For the next bytes of a request.
    pub idle: IdleLimits,
    /// Time limits of Batch streams.
    pub batch: BatchTerms,
    /// After which a connection is asked to reconnect.
    pub connection_age_max: Duration,
    /// Between NOT_SERVING and GOAWAY.
    pub stop_notice: Duration,
    /// Between GOAWAY and the end.
    pub stop_grace: Duration,
    /// What is on this node's disk, and how it goes on after a loss; `None`: not served.
    pub recovery: Option<RecoveryService>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            metrics: ApiMetrics::default(),
            authorize: allow_all(),
            capacity: Capacity::default(),
            streams_per_connection_max: limits::STREAMS_PER_CONNECTION_MAX,
            patience: Patience { preface: limits::PREFACE_DEADLINE, send_stall: limits::SEND_STALL_MAX },
            idle: IdleLimits {
                request: limits::REQUEST_IDLE_MAX,
                reflection: limits::REFLECTION_IDLE_MAX,
                batch: limits::BATCH_IDLE_MAX,
            },
            batch: BatchTerms::default(),
            connection_age_max: limits::CONNECTION_AGE_MAX,
            stop_notice: limits::STOP_NOTICE,
            stop_grace: limits::STOP_GRACE,
            recovery: None,
        }
    }
}

/// The server could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors that were compiled in are damaged: a bug.
    #[error("reflection: {0:?}")]
    Reflection(tonic_reflection::server::Error),
}

/// Serves clients on `listener` until `stop` resolves, and then ends gracefully.
///
/// # Errors
/// When the server could not be made.
pub async fn serve<S: Store, N: Node>(
    listener: TcpListener,
    context: Arc<Context<S>>,
    node: Arc<N>,
    health: Health,
    options: Options,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let metrics = &options.metrics;
    let quota = NodeQuota::new(&options.capacity, metrics.refusals());
    // Served once in a node's life; in tests a second server shows the first one's.
    metrics.quota.set(quota.clone()).ok();
    let (drain, draining) = watch::channel(false);
    let reply_bytes = options.capacity.of_batch_stream();
    let (batch, age_max) = (options.batch, options.connection_age_max);
    let streams = Streams::new(batch, age_max, reply_bytes, metrics.batch.clone(), draining.clone());
    let kv = KvService::new(context.clone(), streams);
    let watches = Watches::new(age_max, batch.age_notice, draining.clone());
    let (text, admin) = (KvTextService::new(context), AdminService::new(node, watches));
    let services =
        Services::new(kv, text, admin, &health, options.recovery.clone()).map_err(ServeError::Reflection)?;
    let calls = Calls::new(metrics.requests.clone());
    let port = Arc::new(Port {
        calls,
        admission: Admission::new(options.authorize.clone(), options.idle),
        services,
    });
    let terms = Terms { http: http(&options), age_max: options.connection_age_max, draining };

    let mut open = JoinSet::new();
    {
        let incoming = std::pin::pin!(incoming(listener, quota.clone(), options.patience));
        let mut door = Door { incoming, port, terms, open: &mut open };
        door.accept_until(stop).await;
        health.set(false, false).await;
        // Serving goes on while those who watch the health look elsewhere.
        door.accept_until(sleep(options.stop_notice)).await;
    }
    drain.send_replace(true);
    if timeout(options.stop_grace, all_ended(&mut open)).await.is_err() {
        // Each connection sees the end at its next tick.
        quota.end();
        all_ended(&mut open).await;
    }
    Ok(())
}

/// What holds for each connection.
#[derive(Clone)]
struct Terms {
    http: http2::Options,
    age_max: Duration,
    draining: watch::Receiver<bool>,
}

impl Terms {
    /// Resolves when a connection that begins now must be ended.
    async fn over(mut self) {
        let stopped = self.draining.wait_for(|draining| *draining);
        // By age, by the end of the node, or because nobody is left to tell.
        let _ = timeout(self.age_max, stopped).await;
    }
}

/// Where connections come in.
struct Door<'a, I, S: Store> {
    incoming: Pin<&'a mut I>,
    port: Arc<Port<S>>,
    terms: Terms,
    open: &'a mut JoinSet<()>,
}

impl<I: Stream<Item = Connection>, S: Store> Door<'_, I, S> {
    async fn accept_until(&mut self, end: impl Future<Output = ()>) {
        let mut end = std::pin::pin!(end);
        loop {
            tokio::select! {
                biased;
                () = &mut end => return,
                Some(connection) = self.incoming.next() => self.admit(connection),
                Some(_) = self.open.join_next() => {}
            }
        }
    }

    fn admit(&mut self, connection: Connection) {
        let reception = Reception::new(self.port.clone(), connection.watch().quota().clone());
        let terms = self.terms.clone();
        self.open.spawn(async move {
            let remote = connection.watch().quota().remote;
            let served = http2::serve(connection, reception, terms.http, terms.over()).await;
            if let Err(error) = served {
                tracing::debug!(%remote, %error, "a connection broke");
            }
        });
    }
}

async fn all_ended(open: &mut JoinSet<()>) {
    while open.join_next().await.is_some() {}
}

fn http(options: &Options) -> http2::Options {
    let connection = limits::connection_window_bytes(options.streams_per_connection_max);
    http2::Options {
        windows: Windows { stream: limits::STREAM_WINDOW_BYTES, connection },
        keep_alive: KeepAlive { interval: limits::KEEPALIVE_INTERVAL, timeout: limits::KEEPALIVE_INTERVAL },
        streams_max: options.streams_per_connection_max,
        header_bytes_max: limits::HEADER_BYTES_MAX,
    }
}
