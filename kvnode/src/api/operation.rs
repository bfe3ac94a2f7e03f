//! Requests as operations of the log, and outcomes as replies.

use kv_proto::{
    disk::v1 as disk,
    kv::v1::{
        DeleteRequest, DeleteResponse, GetRequest, GetResponse, KeyValue, PutRequest, PutResponse,
        ResponseHeader,
    },
    peer::v1::{DeleteOutcome, GetOutcome, PutOutcome},
};
use prost::Message;

use super::session::Stamp;

/// The operation of a Put, and its stamp. The checksum is made here, where the value enters the cluster.
pub fn put(request: PutRequest) -> (Stamp, disk::Put) {
    let PutRequest { key, value, precondition, return_previous, session_id, sequence, lowest_outstanding } =
        request;
    let value_crc32c = crc32c::crc32c(&value);
    let stamp = Stamp { session_id, sequence, lowest_outstanding };
    (stamp, disk::Put { key, value, value_crc32c, precondition, return_previous })
}

/// The operation of a Delete, and its stamp.
pub fn delete(request: DeleteRequest) -> (Stamp, disk::Delete) {
    let DeleteRequest { key, precondition, return_previous, session_id, sequence, lowest_outstanding } =
        request;
    let stamp = Stamp { session_id, sequence, lowest_outstanding };
    (stamp, disk::Delete { key, precondition, return_previous })
}

/// The read of a transaction.
pub fn get(request: GetRequest) -> disk::Get {
    let GetRequest { key, options: _, metadata_only } = request;
    disk::Get { key, metadata_only }
}

/// The reply to a Put.
pub fn put_response(header: Option<ResponseHeader>, outcome: PutOutcome, replayed: bool) -> PutResponse {
    let PutOutcome { applied, previous, mod_revision, version } = outcome;
    PutResponse { header, applied, previous, mod_revision, version, replayed }
}

/// The reply to a Delete.
pub fn delete_response(
    header: Option<ResponseHeader>,
    outcome: DeleteOutcome,
    replayed: bool,
) -> DeleteResponse {
    let DeleteOutcome { applied, previous } = outcome;
    DeleteResponse { header, applied, previous, replayed }
}

/// The reply to a Get.
pub fn get_response(header: Option<ResponseHeader>, outcome: GetOutcome) -> GetResponse {
    GetResponse { header, kv: outcome.kv }
}

/// What is left of a reply's bytes.
#[derive(Debug)]
pub struct ReplyBudget {
    left: usize,
}

impl ReplyBudget {
    /// Of `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self { left: bytes }
    }

    /// Takes what `message` needs; false: it does not fit.
    pub fn take(&mut self, message: &impl Message) -> bool {
        let bytes = message.encoded_len();
        let fits = bytes <= self.left;
        if fits {
            self.left -= bytes;
        }
        fits
    }

    /// Leaves out the value when it does not fit: what is done cannot be refused any more. The caller sees a key
    /// without a value, as in a read of metadata, and asks again.
    pub fn strip(&mut self, kv: &mut Option<KeyValue>) {
        if let Some(kv) = kv
            && !self.take(kv)
        {
            kv.value = None;
            self.left = self.left.saturating_sub(kv.encoded_len());
        }
    }
}
