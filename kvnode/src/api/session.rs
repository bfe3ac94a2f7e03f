//! OpenSession and CloseSession, and the stamp that a write in a session carries.

use kv_proto::{
    disk::v1::{self as disk, Operation, operation},
    kv::v1::{
        CloseSessionRequest, CloseSessionResponse, OpenSessionRequest, OpenSessionResponse,
        open_session_request,
    },
    peer::v1::outcome,
};
use kv_topology::{ClusterMap, ShardId};
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    context::{Context, KEYSPACE, shard_of, unexpected},
    error::Refused,
    header,
    validate::{self, Violation},
};
use crate::{
    router::store::Store,
    state_machine::{limits, session},
};

/// Which write of which session it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// 0: of none.
    pub session_id: u64,
    /// From 1 on; 0 without a session.
    pub sequence: u64,
    /// From 1 to the sequence; 0 without a session.
    pub lowest_outstanding: u64,
}

impl Stamp {
    /// Of no session.
    pub const NONE: Self = Self { session_id: 0, sequence: 0, lowest_outstanding: 0 };

    /// The operation of the default keyspace that carries it. The fingerprint of a write in a session is made here,
    /// where the write enters the cluster.
    pub fn on(self, kind: operation::Kind) -> Operation {
        let Self { session_id, sequence, lowest_outstanding } = self;
        let fingerprint = if session_id == 0 { 0 } else { fingerprint(&kind) };
        Operation {
            keyspace_id: KEYSPACE.get(),
            session_id,
            sequence,
            lowest_outstanding,
            fingerprint,
            kind: Some(kind),
        }
    }
}

/// xxh3_64 of the encoding.
fn fingerprint(kind: &operation::Kind) -> u64 {
    let mut encoded = Vec::with_capacity(kind.encoded_len());
    kind.encode(&mut encoded);
    xxh3_64(&encoded)
}

impl<S: Store> Context<S> {
    /// Opens a session in one shard.
    ///
    /// # Errors
    /// `SESSIONS_FULL`; else see the table of errors.
    pub async fn open_session(
        &self,
        request: OpenSessionRequest,
        deadline: Instant,
    ) -> Result<OpenSessionResponse, Refused> {
        validate::open_session(&request)?;
        let map = self.map()?;
        let shard = chosen_shard(&map, &request)?;
        let ttl_ms = if request.ttl_ms == 0 { limits::SESSION_TTL_DEFAULT_MS } else { request.ttl_ms };
        let open = disk::OpenSession { ttl_ms };
        match self.write(shard, operation::Kind::OpenSession(open), deadline).await? {
            (context, outcome::Result::Session(session)) => Ok(OpenSessionResponse {
                header: Some(header::of(context.as_ref(), &map.cluster_id)),
                session_id: session.session_id,
                ttl_ms: session.ttl_ms,
                window: limits::SESSION_OUTCOMES_MAX,
            }),
            (_, other) => Err(unexpected("OpenSession", &other)),
        }
    }

    /// Closes a session. One that is not there is closed already.
    ///
    /// # Errors
    /// See the table of errors.
    pub async fn close_session(
        &self,
        request: CloseSessionRequest,
        deadline: Instant,
    ) -> Result<CloseSessionResponse, Refused> {
        let map = self.map()?;
        let CloseSessionRequest { session_id } = request;
        let shard = session::shard_of(session_id);
        if !is_data_shard(&map, shard) {
            return Err(Violation::new("session_id", "is of no shard of this cluster").into());
        }
        let close = disk::CloseSession { session_id };
        match self.write(shard, operation::Kind::CloseSession(close), deadline).await? {
            (context, outcome::Result::Done(_)) => {
                Ok(CloseSessionResponse { header: Some(header::of(context.as_ref(), &map.cluster_id)) })
            }
            (_, other) => Err(unexpected("CloseSession", &other)),
        }
    }
}

fn chosen_shard(map: &ClusterMap, request: &OpenSessionRequest) -> Result<ShardId, Refused> {
    match &request.shard {
        Some(open_session_request::Shard::Key(key)) => shard_of(map, key),
        Some(open_session_request::Shard::ShardId(id)) if is_data_shard(map, ShardId(*id)) => {
            Ok(ShardId(*id))
        }
        Some(open_session_request::Shard::ShardId(_)) => {
            Err(Violation::new("shard_id", "is no data shard of this cluster").into())
        }
        None => Err(Violation::new("shard", "must be given, as a key or a shard_id").into()),
    }
}

fn is_data_shard(map: &ClusterMap, shard: ShardId) -> bool {
    !shard.is_meta() && map.shards.contains_key(&shard)
}
