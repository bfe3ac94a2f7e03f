//! What `grpc.health.v1` says: `""` for the node, `kv.v1.Kv` for whether it can route.

use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

/// The name under which clients ask whether the store can be used.
pub const KV: &str = "kv.v1.Kv";

/// The switch of both answers. Clones turn the same one.
#[derive(Clone, Debug)]
pub struct Health {
    reporter: HealthReporter,
}

impl Health {
    /// Nothing is served yet.
    pub async fn starting() -> Self {
        let health = Self { reporter: HealthReporter::new() };
        health.set(false, false).await;
        health
    }

    /// Says whether the node serves, and whether it can route.
    pub async fn set(&self, serves: bool, routes: bool) {
        let status = |good| if good { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.reporter.set_service_status(KV, status(serves && routes)).await;
        self.reporter.set_service_status("", status(serves)).await;
    }

    /// The service.
    pub fn service(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }
}
