//! A server over the fake store on loopback, and clients of it.

use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use kv_proto::{
    admin::v1::admin_client::AdminClient,
    kv::v1::{GetRequest, PutRequest, UploadRequest, UploadResponse, kv_client::KvClient, upload_request},
};
use kvnode::api::{
    context::{Context, TaskSpawner},
    health::Health,
    limits::Limit,
    measure::ApiMetrics,
    server::{self, Options},
};
use kvnode::metrics::Metrics;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt;

use crate::{fake::FakeStore, node::FakeNode};

/// How long a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Tasks of services run on the test's runtime.
pub fn spawner() -> TaskSpawner {
    Arc::new(|_, task| {
        tokio::spawn(task);
    })
}

/// Services over `store`, without a server.
pub fn context(store: Arc<FakeStore>) -> Arc<Context<FakeStore>> {
    let counter = Mutex::new(0u128);
    let ids = move || {
        let mut counter = counter.lock().unwrap_or_else(PoisonError::into_inner);
        *counter += 1;
        counter.to_be_bytes()
    };
    Context::new(store, spawner(), Box::new(ids))
}

/// A running server.
pub struct Harness {
    pub store: Arc<FakeStore>,
    pub node: Arc<FakeNode>,
    pub address: SocketAddr,
    pub health: Health,
    registry: Metrics,
    metrics: ApiMetrics,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

impl Harness {
    /// With five shards and the limits of the API.
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let store = FakeStore::new(5);
        let node = Arc::new(FakeNode::default());
        let health = Health::starting().await;
        health.set(true, true).await;
        let registry = Metrics::new();
        let metrics = ApiMetrics {
            limits: registry.limits.clone(),
            batch: registry.batch.clone(),
            ..options.metrics.clone()
        };
        let options = Options { metrics: metrics.clone(), ..options };
        let (stop, stopped) = oneshot::channel();
        let serving = server::serve(
            listener,
            context(store.clone()),
            node.clone(),
            health.clone(),
            options,
            async move {
                stopped.await.ok();
            },
        );
        let serving = tokio::spawn(async move { serving.await.expect("serving") });
        Self { store, node, address, health, registry, metrics, stop: Some(stop), serving }
    }

    /// A connection of its own.
    pub async fn channel(&self) -> Channel {
        self.channel_from(Ipv4Addr::LOCALHOST).await
    }

    /// The same from another address of this machine.
    pub async fn channel_from(&self, address: Ipv4Addr) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("an address");
        let endpoint = endpoint.local_address(Some(address.into()));
        within("a connection", endpoint.connect()).await.expect("a connection")
    }

    /// A client with a connection of its own.
    pub async fn client(&self) -> KvClient<Channel> {
        KvClient::new(self.channel().await)
    }

    /// The same for administrators.
    pub async fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel().await)
    }

    /// The same from another address of this machine.
    pub async fn client_from(&self, address: Ipv4Addr) -> KvClient<Channel> {
        KvClient::new(self.channel_from(address).await)
    }

    /// A good client puts and gets.
    pub async fn serves(&self) {
        self.serves_from(Ipv4Addr::LOCALHOST).await;
    }

    /// The same from another address of this machine.
    pub async fn serves_from(&self, address: Ipv4Addr) {
        let mut client = self.client_from(address).await;
        let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
        within("a put of another client", client.put(put)).await.expect("a put");
        within("a get of another client", client.get(get("k"))).await.expect("a get");
    }

    /// What `grpc.health.v1` says of a service.
    pub async fn health_of(&self, service: &str) -> Result<ServingStatus, Code> {
        let mut client = HealthClient::new(self.channel().await);
        let request = HealthCheckRequest { service: service.to_owned() };
        let reply = within("the health", client.check(request)).await;
        reply.map(|reply| reply.into_inner().status()).map_err(|status| status.code())
    }

    /// What all clients hold of a limit.
    pub fn taken(&self, limit: Limit) -> usize {
        self.metrics.quota.get().map_or(0, |quota| quota.pool(limit).taken)
    }

    /// Addresses with a connection.
    pub fn addresses(&self) -> usize {
        self.metrics.quota.get().map_or(0, |quota| quota.addresses())
    }

    /// The metrics of the limits, as an operator sees them.
    pub fn metrics(&self) -> String {
        self.metrics.measure();
        self.registry.encode()
    }

    /// Begins the end.
    pub fn stop(&mut self) {
        self.stop.take().map(|stop| stop.send(()));
    }

    /// Waits for the end.
    pub async fn ended(self) {
        within("the end of the server", self.serving).await.expect("no panic");
    }
}

/// A linearizable read.
pub fn get(key: &'static str) -> GetRequest {
    GetRequest { key: key.into(), ..GetRequest::default() }
}

/// Waits, and says for what when it did not come.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"))
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let looked = async {
        let mut tick = tokio::time::interval(Duration::from_millis(2));
        while !condition() {
            tick.tick().await;
        }
    };
    within(what, looked).await;
}

/// Code and reason of a status of ours.
pub fn told(status: &Status) -> (Code, String) {
    let reason = status.get_error_details().error_info().map(|info| info.reason.clone());
    (status.code(), reason.unwrap_or_default())
}

/// One entry of the metadata of the `ErrorInfo`.
pub fn metadata(status: &Status, name: &str) -> Option<String> {
    status.get_error_details().error_info().and_then(|info| info.metadata.get(name).cloned())
}

/// The field that a status complains of.
pub fn field(status: &Status) -> String {
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let details = status.get_error_details();
    details.bad_request().map(|bad| bad.field_violations[0].field.clone()).unwrap_or_default()
}

/// Bytes without a pattern of the size of a chunk.
pub fn value_of(size: usize) -> Bytes {
    (0..size).map(|at| u8::try_from((at * 7 + at / 251) % 256).expect("below 256")).collect::<Vec<_>>().into()
}

/// The messages of an upload.
pub fn upload_messages(header: upload_request::Header, value: &Bytes, piece: usize) -> Vec<UploadRequest> {
    let mut messages = vec![UploadRequest { part: Some(upload_request::Part::Header(header)) }];
    let data = value.chunks(piece).map(|piece| value.slice_ref(piece));
    messages.extend(data.map(|data| UploadRequest { part: Some(upload_request::Part::Data(data)) }));
    messages
}

/// Uploads `value` in messages of `piece` bytes.
pub async fn upload(
    client: &mut KvClient<Channel>,
    header: upload_request::Header,
    value: &Bytes,
    piece: usize,
) -> Result<UploadResponse, Status> {
    let messages = upload_messages(header, value, piece);
    within("an upload", client.upload(tokio_stream::iter(messages))).await.map(Response::into_inner)
}
