//! All services of the client port, by the path of a call.

use std::convert::Infallible;

use futures::future::BoxFuture;
use http::{Request, Response};
use kv_proto::{
    admin::v1::{admin_server::AdminServer, recovery_server::RecoveryServer},
    kv::v1::{kv_server::KvServer, kv_text_server::KvTextServer},
};
use tonic::{body::Body, service::Routes};
use tower_service::Service as _;

use super::{
    admin::{AdminService, Node},
    body::RequestBody,
    health::Health,
    kv::KvService,
    limits,
    text::KvTextService,
};
use crate::{recovery::service::RecoveryService, router::store::Store};

const KV: &str = "/kv.v1.Kv/";

/// The services. The store's own is called without a detour; the others are found as tonic finds them.
pub struct Services<S: Store> {
    kv: KvServer<KvService<S>>,
    others: Routes,
}

impl<S: Store> Services<S> {
    /// Puts them together.
    ///
    /// # Errors
    /// When the descriptors that were compiled in are damaged: a bug.
    pub fn new<N: Node>(
        kv: KvService<S>,
        text: KvTextService<S>,
        admin: AdminService<N>,
        health: &Health,
        recovery: Option<RecoveryService>,
    ) -> Result<Self, tonic_reflection::server::Error> {
        const MAX: usize = limits::MESSAGE_BYTES_MAX;
        let text = KvTextServer::new(text).max_decoding_message_size(MAX).max_encoding_message_size(MAX);
        let admin = AdminServer::new(admin).max_decoding_message_size(MAX).max_encoding_message_size(MAX);
        let (v1, v1alpha) = (reflection().build_v1()?, reflection().build_v1alpha()?);
        let mut others = Routes::builder();
        others
            .add_service(text)
            .add_service(admin)
            .add_service(health.service().max_decoding_message_size(limits::QUESTION_BYTES_MAX))
            .add_service(v1.max_decoding_message_size(limits::QUESTION_BYTES_MAX))
            .add_service(v1alpha.max_decoding_message_size(limits::QUESTION_BYTES_MAX));
        if let Some(recovery) = recovery {
            let recovery = RecoveryServer::new(recovery);
            others.add_service(recovery.max_decoding_message_size(MAX).max_encoding_message_size(MAX));
        }
        let kv = KvServer::new(kv).max_decoding_message_size(MAX).max_encoding_message_size(MAX);
        Ok(Self { kv, others: others.routes().prepare() })
    }

    /// Calls the one that the path names.
    pub fn call(
        &self,
        request: Request<RequestBody>,
    ) -> BoxFuture<'static, Result<Response<Body>, Infallible>> {
        if request.uri().path().starts_with(KV) {
            return self.kv.clone().call(request);
        }
        Box::pin(self.others.clone().call(request))
    }
}

/// The types of `google.rpc` are in it so that tools can print the details of a status.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(kv_proto::PUBLIC_DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
