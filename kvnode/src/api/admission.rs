//! What every call passes before its service sees it: the authorisation hook, the limits, the trace.
//!
//! Health checks have places of their own: an overloaded node is not a dead one.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderMap, Request};
use kv_http2::Received;
use kv_topology::ClusterMap;
use tonic::Status;
use tracing::Span;

use super::{
    body::{Counted, RequestBody},
    error,
    limits::{Limit, STREAM_AHEAD_BYTES},
    quota::{ConnectionQuota, InFlight},
    unfinished::{Unfinished, Until},
};

/// Who calls what.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// `/package.Service/Method`
    pub method: &'a str,
    /// What came with it.
    pub headers: &'a HeaderMap,
    /// Of the client.
    pub remote: Option<SocketAddr>,
}

/// Decides whether a call may go on; its status is the answer to one that may not.
pub type Authorize = Arc<dyn Fn(Call<'_>) -> Result<(), Status> + Send + Sync>;

/// Lets everything pass.
pub fn allow_all() -> Authorize {
    Arc::new(|_| Ok(()))
}

const HEALTH: &str = "/grpc.health.v1.Health/";
const UPLOAD: &str = "/kv.v1.Kv/Upload";
const BATCH: &str = "/kv.v1.Kv/Batch";
const REFLECTION: &str = "/grpc.reflection.";

/// For the next bytes of a request.
#[derive(Clone, Copy, Debug)]
pub struct IdleLimits {
    /// Of any request.
    pub request: Duration,
    /// Of a reflection stream: between two questions.
    pub reflection: Duration,
    /// Of a Batch stream: between two messages.
    pub batch: Duration,
}

/// How the bytes of a method's requests count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counts {
    /// Not at all: a health check is no more than a name, and is answered by a node that is full.
    Nothing,
    /// As they come, until it is answered.
    All,
    /// Streamed: what may be unread and the beginning of a message from the beginning on, the rest of a message as it comes.
    Streamed(Until),
}

/// What a method is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Terms {
    /// Whose places it takes.
    limit: Limit,
    counts: Counts,
    idle_max: Duration,
}

impl Terms {
    fn of(method: &str, idle: IdleLimits) -> Self {
        let terms = |limit, counts, idle_max| Self { limit, counts, idle_max };
        let streamed = |until, idle_max| terms(Limit::Requests, Counts::Streamed(until), idle_max);
        match method {
            UPLOAD => streamed(Until::Next, idle.request),
            BATCH => streamed(Until::Whole, idle.batch),
            _ if method.starts_with(HEALTH) => terms(Limit::HealthChecks, Counts::Nothing, idle.request),
            _ if method.starts_with(REFLECTION) => streamed(Until::Next, idle.reflection),
            _ => terms(Limit::Requests, Counts::All, idle.request),
        }
    }
}

/// What decides whether a call may begin.
#[derive(Clone)]
pub struct Admission {
    authorize: Authorize,
    idle: IdleLimits,
}

/// A call that may begin.
pub struct Admitted {
    /// Its place.
    pub in_flight: Arc<InFlight>,
    /// Its span.
    pub span: Span,
    terms: Terms,
}

impl Admission {
    /// With this hook and these limits.
    pub fn new(authorize: Authorize, idle: IdleLimits) -> Self {
        Self { authorize, idle }
    }

    /// Takes a place for a call that came on `connection`.
    ///
    /// # Errors
    /// What its client is told.
    pub fn admit<B>(
        &self,
        request: &Request<B>,
        connection: &Arc<ConnectionQuota>,
    ) -> Result<Admitted, Status> {
        let (method, headers) = (request.uri().path(), request.headers());
        (self.authorize)(Call { method, headers, remote: Some(connection.remote) })?;
        let terms = Terms::of(method, self.idle);
        let refused = |refused| error::describe(&refused, &ClusterMap::default()).status();
        let in_flight = connection.request(terms.limit).map_err(refused)?;
        if let Counts::Streamed(_) = terms.counts {
            in_flight.received(STREAM_AHEAD_BYTES).map_err(refused)?;
        }
        let span = tracing::debug_span!("call", method, trace_id = trace_id(headers).unwrap_or_default());
        Ok(Admitted { in_flight, span, terms })
    }
}

impl Admitted {
    /// The request, whose bytes count as the method's terms say.
    pub fn counted(&self, request: Request<Received>) -> Request<RequestBody> {
        let Terms { counts, idle_max, limit: _ } = self.terms;
        let counted = match counts {
            Counts::Nothing => Counted::No,
            Counts::All => Counted::All,
            Counts::Streamed(until) => Counted::Unfinished(Unfinished::new(self.in_flight.clone(), until)),
        };
        request.map(|body| RequestBody::new(body, self.in_flight.clone(), counted, idle_max))
    }
}

/// The trace id of a W3C `traceparent`, version 00.
fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let mut fields = text.split('-');
    let (version, trace_id, parent_id) = (fields.next()?, fields.next()?, fields.next()?);
    let is_hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_zero = |text: &str| text.bytes().all(|byte| byte == b'0');
    let known = version == "00" && is_hex(trace_id, 32) && is_hex(parent_id, 16);
    (known && !is_zero(trace_id) && !is_zero(parent_id)).then_some(trace_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_method_is_held_to_its_terms() {
        let idle = IdleLimits {
            request: Duration::from_secs(1),
            reflection: Duration::from_secs(2),
            batch: Duration::from_secs(3),
        };
        let of = |method: &str| {
            let Terms { limit, counts, idle_max } = Terms::of(method, idle);
            (limit, counts, idle_max.as_secs())
        };
        let streamed = Counts::Streamed;
        assert_eq!(of("/kv.v1.Kv/Put"), (Limit::Requests, Counts::All, 1));
        assert_eq!(of("/no.such/Method"), (Limit::Requests, Counts::All, 1));
        assert_eq!(of("/kv.v1.Kv/Upload"), (Limit::Requests, streamed(Until::Next), 1));
        assert_eq!(of("/kv.v1.Kv/Batch"), (Limit::Requests, streamed(Until::Whole), 3));
        assert_eq!(of("/grpc.health.v1.Health/Watch"), (Limit::HealthChecks, Counts::Nothing, 1));
        for version in ["v1", "v1alpha"] {
            let method = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
            assert_eq!(of(&method), (Limit::Requests, streamed(Until::Next), 2));
        }
    }

    #[test]
    fn a_trace_id_is_taken_from_a_well_formed_traceparent_only() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", text.parse().expect("a header"));
            trace_id(&headers).map(str::to_owned)
        };
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(of(&format!("00-{id}-00f067aa0ba902b7-01")).as_deref(), Some(id));
        for text in [
            "",
            "00",
            "00-4bf9-00f067aa0ba902b7-01",
            "zz",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
        assert_eq!(trace_id(&HeaderMap::new()), None);
    }
}
