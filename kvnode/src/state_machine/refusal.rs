//! Refusals that apply and reads give. Each is decided by state and arguments alone.

use kv_proto::peer::v1::{Refusal, refusal::Kind};
use kv_topology::Slot;

use crate::refusal::{self, of, reason};

/// A field that cannot be.
pub(crate) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Refusal {
    Refusal { field: field.into(), ..of(Kind::InvalidArgument, reason::INVALID_ARGUMENT, message) }
}

/// The key's slot belongs to another shard.
pub(crate) fn wrong_shard(slot: Slot) -> Refusal {
    of(Kind::WrongShard, reason::WRONG_SHARD, format!("slot {} is not owned here", slot.get()))
}

/// An operation of the meta group came to a data group.
pub(crate) fn not_meta() -> Refusal {
    of(Kind::WrongShard, reason::WRONG_SHARD, "this is not the meta group")
}

/// The upload is unknown: it never began, was aborted, swept, or committed and overwritten.
pub(crate) fn upload_not_found() -> Refusal {
    of(Kind::NotFound, reason::UPLOAD_NOT_FOUND, "no such upload goes on for this key")
}

/// The state does not allow it.
pub(crate) fn failed_precondition(reason: &str, message: impl Into<String>) -> Refusal {
    of(Kind::FailedPrecondition, reason, message)
}

/// The answer would be too large.
pub(crate) fn reply_too_large(limit: usize) -> Refusal {
    of(
        Kind::ResourceExhausted,
        reason::TXN_REPLY_TOO_LARGE,
        format!("the values that the transaction reads exceed {limit} bytes; nothing was done"),
    )
}

/// A download goes on with a value that is no longer there.
pub(crate) fn value_replaced() -> Refusal {
    of(Kind::NotFound, reason::VALUE_REPLACED, "the key no longer has the value that was opened")
}

/// Bytes on our disk fail their checksum.
pub(crate) fn data_loss() -> Refusal {
    of(Kind::DataLoss, reason::DATA_LOSS, "this replica found damaged bytes and was quarantined")
}

/// A bug, or a device that fails: told by the log, not to clients.
pub(crate) fn internal() -> Refusal {
    refusal::internal("the replica cannot answer")
}
