//! The public protocol, spoken without the client library: no retries, no routing, one node asked at a time.
//!
//! [`Fate`] says what an error means by the rules of the API: only a reply with an error reason of ours, or a
//! connection that never came about, proves that nothing happened; everything else leaves the outcome unknown.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use kv_proto::{
    admin::v1::admin_client::AdminClient,
    kv::v1::{
        Consistency, DeleteRequest, DeleteResponse, GetRequest, GetResponse, Precondition, PutRequest,
        PutResponse, ReadOptions, kv_client::KvClient, precondition::Condition,
    },
};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

/// Of the `ErrorInfo` of every error that a node itself gives.
pub const ERROR_DOMAIN: &str = "kvcluster.dev";

/// How long one request of a test may take.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(3);

/// What an error says about a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It surely did not and will not happen.
    NotApplied,
    /// Nobody knows.
    Unknown,
}

/// The reason of an error that a node itself gave; `None` when it came from the transport.
pub fn reason(status: &Status) -> Option<String> {
    let details = status.get_error_details();
    let info = details.error_info()?;
    (info.domain == ERROR_DOMAIN).then(|| info.reason.clone())
}

/// What `status` says about the write that it answers.
pub fn fate(status: &Status) -> Fate {
    if never_connected(status) {
        return Fate::NotApplied;
    }
    reason(status).map_or(Fate::Unknown, |reason| fate_of(status.code(), &reason))
}

/// Whether there was no connection that the request could have been sent on.
fn never_connected(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// What an error with a reason of ours says about the write that it answers.
pub fn fate_of(code: Code, reason: &str) -> Fate {
    let refused_by_code = matches!(code, Code::InvalidArgument | Code::ResourceExhausted);
    if refused_by_code || reason.starts_with("NOT_APPLIED_") || reason == "WRONG_SHARD" {
        return Fate::NotApplied;
    }
    Fate::Unknown
}

/// A short name of an error for counting: the reason, or the code of a transport error.
pub fn name_of(status: &Status) -> String {
    reason(status).unwrap_or_else(|| format!("transport: {:?}", status.code()))
}

/// An error for people: code, reason and message.
pub fn in_words(status: &Status) -> String {
    let reason = reason(status).unwrap_or_else(|| "of the transport".to_owned());
    format!("{:?}, {reason}: {}", status.code(), status.message())
}

/// A connection to one node, dialled when first used and again after it broke.
#[derive(Clone, Debug)]
pub struct Api {
    /// Keys and values.
    pub kv: KvClient<Channel>,
    /// Status and nodes.
    pub admin: AdminClient<Channel>,
}

impl Api {
    /// To the node whose client port is `address`.
    ///
    /// # Panics
    /// Never: a socket address always makes a URI.
    pub fn new(address: SocketAddr) -> Self {
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .expect("a socket address makes a URI")
            .connect_timeout(REQUEST_DEADLINE)
            .timeout(REQUEST_DEADLINE)
            .connect_lazy();
        Self { kv: KvClient::new(channel.clone()), admin: AdminClient::new(channel) }
    }

    /// Writes.
    ///
    /// # Errors
    /// See [`fate`].
    pub async fn put(
        &mut self,
        key: &str,
        value: Bytes,
        condition: Option<Condition>,
    ) -> Result<PutResponse, Status> {
        let precondition = condition.map(|condition| Precondition { condition: Some(condition) });
        let key = Bytes::copy_from_slice(key.as_bytes());
        let request =
            PutRequest { key, value, precondition, return_previous: false, ..PutRequest::default() };
        Ok(self.kv.put(timed(request)).await?.into_inner())
    }

    /// Deletes.
    ///
    /// # Errors
    /// See [`fate`].
    pub async fn delete(&mut self, key: &str) -> Result<DeleteResponse, Status> {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let request =
            DeleteRequest { key, precondition: None, return_previous: false, ..DeleteRequest::default() };
        Ok(self.kv.delete(timed(request)).await?.into_inner())
    }

    /// Reads as `how` says.
    ///
    /// # Errors
    /// When the node cannot answer.
    pub async fn get(&mut self, key: &str, how: Read) -> Result<GetResponse, Status> {
        let options = ReadOptions {
            consistency: match how {
                Read::Linearizable | Read::AtThisNode => Consistency::Linearizable.into(),
                Read::Stale => Consistency::Stale.into(),
            },
            max_staleness_ms: 0,
            min_revision: 0,
            serve_at_node: matches!(how, Read::AtThisNode | Read::Stale),
        };
        let key = Bytes::copy_from_slice(key.as_bytes());
        let request = GetRequest { key, options: Some(options), metadata_only: false };
        Ok(self.kv.get(timed(request)).await?.into_inner())
    }
}

/// How a read is to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Linearizable, wherever.
    Linearizable,
    /// Linearizable, from this node's own replica.
    AtThisNode,
    /// From this node's own replica, as old as it may be.
    Stale,
}

/// The node hears of the deadline too.
pub(crate) fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(REQUEST_DEADLINE);
    request
}
