//! The port of clients: services, reflection and health behind limits, on a listener that is already bound.
//!
//! Its end has three steps: NOT_SERVING, then GOAWAY while running requests finish, then every connection is closed.

use std::{future::Future, sync::Arc, time::Duration};

use kv_proto::{
    admin::v1::admin_server::AdminServer,
    kv::v1::{kv_server::KvServer, kv_text_server::KvTextServer},
};
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tonic::{service::Routes, transport::Server};

use super::{
    admin::{AdminService, Node},
    admission::{Admission, Authorize, IdleLimits, allow_all},
    batch_stream::{BatchTerms, Streams},
    connection::{Patience, incoming},
    context::Context,
    health::Health,
    kv::KvService,
    limits,
    measure::{ApiMetrics, Measured},
    quota::NodeQuota,
    text::KvTextService,
};
use crate::router::store::Store;

/// What can be set; the default is what the limits say.
#[derive(Clone)]
pub struct Options {
    /// What is counted and timed.
    pub metrics: ApiMetrics,
    /// Decides who may call what.
    pub authorize: Authorize,
    /// Connections at the same time.
    pub connections_max: usize,
    /// Requests at the same time.
    pub requests_max: usize,
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
}

impl Default for Options {
    fn default() -> Self {
        Self {
            metrics: ApiMetrics::default(),
            authorize: allow_all(),
            connections_max: limits::CONNECTIONS_MAX,
            requests_max: limits::REQUESTS_IN_FLIGHT_MAX,
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
        }
    }
}

/// The server could not be made or broke.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors that were compiled in are damaged: a bug.
    #[error("reflection: {0:?}")]
    Reflection(tonic_reflection::server::Error),
    /// The transport gave up.
    #[error("serving clients")]
    Transport(#[from] tonic::transport::Error),
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
    let quota = NodeQuota::new(options.connections_max, options.requests_max, metrics.refusals());
    // Served once in a node's life; in tests a second server shows the first one's.
    metrics.quota.set(quota.clone()).ok();
    let (drain, draining) = watch::channel(false);
    let streams = Streams::new(options.batch, options.connection_age_max, metrics.batch.clone(), draining);
    let routes = routes(context, streams, node, &health)?;
    let admission = Admission::new(routes, options.authorize.clone(), options.idle);
    let admission = Measured::new(admission, options.metrics.requests.clone());
    let connections = incoming(listener, quota.clone(), options.patience);
    let (going, gone) = tokio::sync::oneshot::channel::<()>();
    let goaway = async move {
        gone.await.ok();
    };
    let serving = transport(&options).serve_with_incoming_shutdown(admission, connections, goaway);
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        biased;
        () = stop => {}
        ended = &mut serving => return Ok(ended?),
    }
    health.set(false, false).await;
    // Serving goes on while those who watch the health look elsewhere.
    if let Ok(ended) = timeout(options.stop_notice, &mut serving).await {
        return Ok(ended?);
    }
    drop(going);
    drain.send_replace(true);
    let ended = timeout(options.stop_grace, &mut serving).await;
    quota.end();
    match ended {
        Ok(ended) => Ok(ended?),
        // Each connection sees the end at its next tick.
        Err(_) => Ok(serving.await?),
    }
}

fn transport(options: &Options) -> Server {
    Server::builder()
        .max_concurrent_streams(options.streams_per_connection_max)
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(limits::HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(limits::KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(limits::KEEPALIVE_INTERVAL))
        .max_connection_age(options.connection_age_max)
}

fn routes<S: Store, N: Node>(
    context: Arc<Context<S>>,
    streams: Arc<Streams>,
    node: Arc<N>,
    health: &Health,
) -> Result<Routes, ServeError> {
    const MAX: usize = limits::MESSAGE_BYTES_MAX;
    let kv = KvServer::new(KvService::new(context.clone(), streams));
    let text = KvTextServer::new(KvTextService::new(context));
    let admin = AdminServer::new(AdminService::new(node));
    let (v1, v1alpha) = (reflection().build_v1(), reflection().build_v1alpha());
    let (v1, v1alpha) = (v1.map_err(ServeError::Reflection)?, v1alpha.map_err(ServeError::Reflection)?);
    let mut routes = Routes::builder();
    routes
        .add_service(kv.max_decoding_message_size(MAX).max_encoding_message_size(MAX))
        .add_service(text.max_decoding_message_size(MAX).max_encoding_message_size(MAX))
        .add_service(admin.max_decoding_message_size(MAX).max_encoding_message_size(MAX))
        .add_service(health.service().max_decoding_message_size(limits::QUESTION_BYTES_MAX))
        .add_service(v1.max_decoding_message_size(limits::QUESTION_BYTES_MAX))
        .add_service(v1alpha.max_decoding_message_size(limits::QUESTION_BYTES_MAX));
    Ok(routes.routes())
}

/// The types of `google.rpc` are in it so that tools can print the details of a status.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(kv_proto::PUBLIC_DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
