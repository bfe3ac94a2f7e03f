//! Put, Get and Delete of one key.

use kv_proto::{
    disk::v1::operation,
    kv::v1::{DeleteRequest, DeleteResponse, GetRequest, GetResponse, PutRequest, PutResponse},
    peer::v1::outcome,
};
use tokio::time::Instant;

use super::{
    context::{Context, shard_of, unexpected},
    error::Refused,
    header, operation as op, validate,
};
use crate::router::store::Store;

impl<S: Store> Context<S> {
    /// Writes one key.
    ///
    /// # Errors
    /// See the table of errors.
    pub async fn put(&self, request: PutRequest, deadline: Instant) -> Result<PutResponse, Refused> {
        validate::put(&request)?;
        let map = self.map()?;
        let shard = shard_of(&map, &request.key)?;
        let (stamp, put) = op::put(request);
        let written = self.propose(shard, stamp.on(operation::Kind::Put(put)), deadline).await?;
        let header = header::of(written.context.as_ref(), &map.cluster_id);
        match written.result {
            outcome::Result::Put(put) => Ok(op::put_response(Some(header), put, written.replayed)),
            other => Err(unexpected("Put", &other)),
        }
    }

    /// Reads one key.
    ///
    /// # Errors
    /// See the table of errors.
    pub async fn get(&self, request: GetRequest, deadline: Instant) -> Result<GetResponse, Refused> {
        validate::get(&request)?;
        let map = self.map()?;
        let shard = shard_of(&map, &request.key)?;
        let GetRequest { key, options, metadata_only } = request;
        let (context, got) = self.read_keys(shard, options, vec![key], metadata_only, deadline).await?;
        let header = header::of(context.as_ref(), &map.cluster_id);
        let one = got.results.into_iter().next();
        let one = one.ok_or_else(|| Refused::Bug("a read of one key without a result".to_owned()))?;
        Ok(op::get_response(Some(header), one))
    }

    /// Deletes one key.
    ///
    /// # Errors
    /// See the table of errors.
    pub async fn delete(&self, request: DeleteRequest, deadline: Instant) -> Result<DeleteResponse, Refused> {
        validate::delete(&request)?;
        let map = self.map()?;
        let shard = shard_of(&map, &request.key)?;
        let (stamp, delete) = op::delete(request);
        let written = self.propose(shard, stamp.on(operation::Kind::Delete(delete)), deadline).await?;
        let header = header::of(written.context.as_ref(), &map.cluster_id);
        match written.result {
            outcome::Result::Delete(delete) => {
                Ok(op::delete_response(Some(header), delete, written.replayed))
            }
            other => Err(unexpected("Delete", &other)),
        }
    }
}
