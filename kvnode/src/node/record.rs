//! The record of meta as it is at this moment, read at any node.

use kv_proto::{
    disk::v1::MetaRecord,
    peer::v1::{ReadMeta, ReadRequest, Refusal, read_request, read_response},
};
use kv_topology::ShardId;
use tokio::time::Instant;

use crate::{refusal, router::store::Store};

/// Reads the record linearizably.
///
/// # Errors
/// Meta has no leader, or does not answer in time.
pub async fn read_record(store: &impl Store, deadline: Instant) -> Result<MetaRecord, Refusal> {
    let request = ReadRequest {
        shard_id: ShardId::META.get(),
        read: Some(read_request::Read::Meta(ReadMeta {})),
        ..ReadRequest::default()
    };
    match store.read(request, deadline).await?.read {
        Some(read_response::Read::Meta(record)) => Ok(record),
        Some(read_response::Read::Refusal(refused)) => Err(refused),
        _ => Err(refusal::internal("meta answered with something else")),
    }
}
