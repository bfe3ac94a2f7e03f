//! What the store holds and where an answer came from, in this library's own words.

use bytes::Bytes;
use kv_proto::kv::v1 as proto;
use kv_topology::{NodeId, ShardId};

/// Where and when a reply was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Minted at bootstrap.
    pub cluster_id: String,
    /// The node that served it.
    pub node: NodeId,
    /// The key's shard; 0 where several were asked.
    pub shard: ShardId,
    /// Revision of the shard's data that the reply reflects.
    pub revision: u64,
    /// Raft term.
    pub term: u64,
    /// Epoch of the shard map that the node knows.
    pub map_epoch: u64,
    /// By which replica.
    pub served_by: ServedBy,
}

/// Which replica served a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServedBy {
    /// The node did not say.
    #[default]
    Unspecified,
    /// The shard's leader.
    Leader,
    /// Another replica.
    Follower,
}

impl From<Option<proto::ResponseHeader>> for Header {
    fn from(header: Option<proto::ResponseHeader>) -> Self {
        let header = header.unwrap_or_default();
        let served_by = match header.served_by() {
            proto::ServedBy::Unspecified => ServedBy::Unspecified,
            proto::ServedBy::Leader => ServedBy::Leader,
            proto::ServedBy::Follower => ServedBy::Follower,
        };
        Self {
            cluster_id: header.cluster_id,
            node: NodeId(header.node_id),
            shard: ShardId(header.shard_id),
            revision: header.revision,
            term: header.term,
            map_epoch: header.map_epoch,
            served_by,
        }
    }
}

/// A key, its value and its history in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// What it holds.
    pub value: Value,
    /// Revision at which it was created.
    pub create_revision: u64,
    /// Revision of the last write; only grows.
    pub mod_revision: u64,
    /// 1 when it was created, and one more with each write.
    pub version: u64,
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// The bytes themselves.
    Inline(Bytes),
    /// An uploaded value: read it with [`crate::Client::download`].
    Blob(Blob),
    /// Not asked for (keys or metadata only).
    Omitted,
}

/// Describes an uploaded value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Its length.
    pub size_bytes: u64,
    /// 32 bytes; empty when the node gave none.
    pub sha256: Bytes,
}

impl KeyValue {
    /// The bytes of an inline value.
    pub fn inline(&self) -> Option<&Bytes> {
        match &self.value {
            Value::Inline(bytes) => Some(bytes),
            Value::Blob(_) | Value::Omitted => None,
        }
    }
}

impl From<proto::Blob> for Blob {
    fn from(blob: proto::Blob) -> Self {
        Self { size_bytes: blob.size_bytes, sha256: blob.sha256 }
    }
}

impl From<proto::KeyValue> for KeyValue {
    fn from(kv: proto::KeyValue) -> Self {
        let value = match kv.value {
            Some(proto::key_value::Value::Inline(bytes)) => Value::Inline(bytes),
            Some(proto::key_value::Value::Blob(blob)) => Value::Blob(blob.into()),
            None => Value::Omitted,
        };
        Self {
            key: kv.key,
            value,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
        }
    }
}

/// Answer to a put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutReply {
    /// Where it was made.
    pub header: Header,
    /// False: the precondition did not hold and nothing was written.
    pub applied: bool,
    /// The previous key when asked for; on a failed precondition the current one without its value.
    pub previous: Option<KeyValue>,
    /// The key's new revision; 0 when not applied.
    pub mod_revision: u64,
    /// The key's new version; 0 when not applied.
    pub version: u64,
    /// An earlier attempt was applied, and this is its outcome: `previous` is left out, and the header's revision is the
    /// one of then.
    pub replayed: bool,
}

impl From<proto::PutResponse> for PutReply {
    fn from(reply: proto::PutResponse) -> Self {
        Self {
            header: reply.header.into(),
            applied: reply.applied,
            previous: reply.previous.map(Into::into),
            mod_revision: reply.mod_revision,
            version: reply.version,
            replayed: reply.replayed,
        }
    }
}

/// Answer to a get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GetReply {
    /// Where it was made.
    pub header: Header,
    /// `None`: the key is absent.
    pub kv: Option<KeyValue>,
}

impl From<proto::GetResponse> for GetReply {
    fn from(reply: proto::GetResponse) -> Self {
        Self { header: reply.header.into(), kv: reply.kv.map(Into::into) }
    }
}

/// Answer to a delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteReply {
    /// Where it was made.
    pub header: Header,
    /// False: the key was absent or the precondition did not hold.
    pub applied: bool,
    /// The previous key when asked for; on a failed precondition the current one without its value.
    pub previous: Option<KeyValue>,
    /// As in [`PutReply::replayed`].
    pub replayed: bool,
}

impl From<proto::DeleteResponse> for DeleteReply {
    fn from(reply: proto::DeleteResponse) -> Self {
        Self {
            header: reply.header.into(),
            applied: reply.applied,
            previous: reply.previous.map(Into::into),
            replayed: reply.replayed,
        }
    }
}
