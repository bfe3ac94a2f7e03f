//! The stream `Batch`: small operations, many in a message.

use kv_proto::kv::v1::{BatchRequest, BatchResponse};
use tonic::{Request, Response, Status, Streaming};

use super::kv::Replies;

/// Answers one stream.
///
/// # Errors
/// Always: it is not there yet.
pub fn batch_stream(
    _request: Request<Streaming<BatchRequest>>,
) -> Result<Response<Replies<BatchResponse>>, Status> {
    Err(Status::unimplemented("Batch is not there yet"))
}
