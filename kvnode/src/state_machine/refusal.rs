//! Refusals that apply and reads give. Each is decided by state and arguments alone.

use kv_proto::peer::v1::{Refusal, refusal::Kind};
use kv_topology::Slot;

fn refusal(kind: Kind, reason: &str, message: String) -> Refusal {
    Refusal { kind: kind.into(), reason: reason.to_owned(), message, ..Refusal::default() }
}

/// A field that cannot be.
pub(crate) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Refusal {
    Refusal { field: field.into(), ..refusal(Kind::InvalidArgument, "INVALID_ARGUMENT", message.into()) }
}

/// The key's slot belongs to another shard.
pub(crate) fn wrong_shard(slot: Slot) -> Refusal {
    refusal(Kind::WrongShard, "WRONG_SHARD", format!("slot {} is not owned here", slot.get()))
}

/// An operation of the meta group came to a data group.
pub(crate) fn not_meta() -> Refusal {
    refusal(Kind::WrongShard, "WRONG_SHARD", "this is not the meta group".to_owned())
}

/// The upload is unknown: it never began, was aborted, swept, or committed and overwritten.
pub(crate) fn upload_not_found() -> Refusal {
    refusal(Kind::NotFound, "UPLOAD_NOT_FOUND", "no such upload goes on for this key".to_owned())
}

/// The state does not allow it.
pub(crate) fn failed_precondition(reason: &str, message: impl Into<String>) -> Refusal {
    refusal(Kind::FailedPrecondition, reason, message.into())
}

/// The answer would be too large.
pub(crate) fn reply_too_large(limit: usize) -> Refusal {
    refusal(
        Kind::ResourceExhausted,
        "TXN_REPLY_TOO_LARGE",
        format!("the values that the transaction reads exceed {limit} bytes; nothing was done"),
    )
}

/// A download goes on with a value that is no longer there.
pub(crate) fn value_replaced() -> Refusal {
    refusal(Kind::NotFound, "VALUE_REPLACED", "the key no longer has the value that was opened".to_owned())
}

/// Bytes on our disk fail their checksum.
pub(crate) fn data_loss() -> Refusal {
    refusal(Kind::DataLoss, "DATA_LOSS", "this replica found damaged bytes and was quarantined".to_owned())
}

/// A bug, or a device that fails: told by the log, not to clients.
pub(crate) fn internal() -> Refusal {
    refusal(Kind::Internal, "INTERNAL", "the replica cannot answer".to_owned())
}
