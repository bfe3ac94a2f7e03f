//! The way of a call: it is measured, admitted, answered by its service, and holds its place until the last byte of
//! the reply was sent.

use std::sync::Arc;

use http::{Request, Response};
use kv_http2::{Received, server::Handler};
use tokio::time::Instant;
use tonic::body::Body;
use tracing::Instrument;

use super::{
    admission::{Admission, Admitted},
    body::ReplyBody,
    measure::{Calls, MeasuredBody},
    quota::{ConnectionQuota, InFlight, Sending, Share},
    services::Services,
};
use crate::router::store::Store;

/// What is known of a request when its headers have come.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// When. Its time counts from here: what waits for its body and for its turn is part of it.
    pub at: Instant,
    /// Where.
    pub connection: Arc<ConnectionQuota>,
}

/// What all connections share.
pub struct Port<S: Store> {
    /// Measures.
    pub calls: Calls,
    /// Admits.
    pub admission: Admission,
    /// Answers.
    pub services: Services<S>,
}

/// The calls of one connection.
pub struct Reception<S: Store> {
    port: Arc<Port<S>>,
    connection: Arc<ConnectionQuota>,
}

impl<S: Store> Clone for Reception<S> {
    fn clone(&self) -> Self {
        Self { port: self.port.clone(), connection: self.connection.clone() }
    }
}

impl<S: Store> Reception<S> {
    /// For the calls that come on `connection`.
    pub fn new(port: Arc<Port<S>>, connection: Arc<ConnectionQuota>) -> Self {
        Self { port, connection }
    }

    async fn answer(
        &self,
        request: Request<Received>,
        at: Instant,
    ) -> (Response<Body>, Option<Arc<InFlight>>) {
        let admitted = match self.port.admission.admit(&request, &self.connection) {
            Ok(admitted) => admitted,
            Err(status) => return (status.into_http(), None),
        };
        let mut request = admitted.counted(request);
        request.extensions_mut().insert(Arrival { at, connection: self.connection.clone() });
        let Admitted { in_flight, span, .. } = admitted;
        let Ok(reply) = self.port.services.call(request).instrument(span).await;
        (reply, Some(in_flight))
    }
}

impl<S: Store> Handler for Reception<S> {
    type Body = MeasuredBody<ReplyBody>;

    async fn handle(&self, request: Request<Received>) -> Response<Self::Body> {
        let at = Instant::now();
        let mut call = self.port.calls.begin(request.uri().path());
        let (mut reply, in_flight) = self.answer(request, at).await;
        call.end_with(reply.headers());
        let extensions = reply.extensions_mut();
        let (share, sending) = (extensions.remove::<Share>(), extensions.remove::<Sending>());
        reply.map(|body| MeasuredBody::new(ReplyBody::new(body, in_flight, share, sending), call))
    }
}
