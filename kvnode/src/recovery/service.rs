//! The service `admin.v1.Recovery`: on the client port, beside the others.

use std::sync::Arc;

use kv_proto::admin::v1::{
    InspectRequest, InspectResponse, ReplaceGroupRequest, ReplaceGroupResponse, RewriteRequest,
    RewriteResponse, recovery_server::Recovery,
};
use kv_proto::peer::v1::Refusal;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::site::Site;
use crate::{
    api::{
        deadline::Deadline,
        error::{self, Refused},
    },
    router::Maps,
};

/// The service.
#[derive(Clone)]
pub struct RecoveryService(Arc<Site>);

impl RecoveryService {
    /// Over the disk of this node.
    pub fn new(site: Site) -> Self {
        Self(Arc::new(site))
    }

    fn status(&self, refused: Refusal) -> Status {
        error::describe(&Refused::Store(refused), &self.0.maps.map()).status()
    }
}

#[tonic::async_trait]
impl Recovery for RecoveryService {
    async fn inspect(&self, _: Request<InspectRequest>) -> Result<Response<InspectResponse>, Status> {
        Ok(Response::new(self.0.inspect().await))
    }

    async fn rewrite(&self, request: Request<RewriteRequest>) -> Result<Response<RewriteResponse>, Status> {
        let done = self.0.rewrite(request.into_inner()).await;
        done.map(Response::new).map_err(|refused| self.status(refused))
    }

    async fn replace_group(
        &self,
        request: Request<ReplaceGroupRequest>,
    ) -> Result<Response<ReplaceGroupResponse>, Status> {
        let deadline = Deadline::of(request.metadata(), Instant::now()).unary(Instant::now());
        let done = self.0.replace_group(request.into_inner(), deadline).await;
        done.map(Response::new).map_err(|refused| self.status(refused))
    }
}
