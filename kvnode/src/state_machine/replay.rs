//! What a session keeps of an outcome, and the outcome that is made of it for a write that comes again.

use kv_proto::{
    disk::v1::{StoredOutcome, operation::Kind},
    peer::v1::{DeleteOutcome, PutOutcome, Refusal, TxnOutcome, outcome},
};

use super::refusal;

/// Branch and version of an outcome. The rest is its revision.
pub(crate) fn kept(result: &outcome::Result) -> (bool, u64) {
    match result {
        outcome::Result::Put(put) => (put.applied, put.version),
        outcome::Result::Delete(delete) => (delete.applied, 0),
        outcome::Result::Txn(txn) => (txn.succeeded, 0),
        // None of these is in a session.
        outcome::Result::DeleteRange(_)
        | outcome::Result::Upload(_)
        | outcome::Result::Done(_)
        | outcome::Result::Meta(_)
        | outcome::Result::Refusal(_)
        | outcome::Result::Session(_) => (false, 0),
    }
}

/// The outcome again, without what was read. The fingerprint has told that it is the same operation.
///
/// # Errors
/// Operations of this kind are in no session.
pub(crate) fn result(kind: &Kind, stored: &StoredOutcome) -> Result<outcome::Result, Refusal> {
    let StoredOutcome { sequence: _, fingerprint: _, revision, branch, version } = *stored;
    Ok(match kind {
        Kind::Put(_) => outcome::Result::Put(PutOutcome {
            applied: branch,
            previous: None,
            mod_revision: if branch { revision } else { 0 },
            version,
        }),
        Kind::Delete(_) => outcome::Result::Delete(DeleteOutcome { applied: branch, previous: None }),
        Kind::Txn(_) => outcome::Result::Txn(TxnOutcome { succeeded: branch, results: Vec::new() }),
        Kind::DeleteRange(_)
        | Kind::UploadBegin(_)
        | Kind::UploadChunk(_)
        | Kind::UploadCommit(_)
        | Kind::UploadAbort(_)
        | Kind::OwnSlots(_)
        | Kind::Tick(_)
        | Kind::OpenSession(_)
        | Kind::CloseSession(_)
        | Kind::Recovered(_)
        | Kind::Meta(_) => return Err(refusal::invalid("session_id", "not for operations of this kind")),
    })
}
