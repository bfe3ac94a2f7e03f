//! Independent writes, many in a message: BulkWrite.
//!
//! Each write has a place of its own in the session of its shard, and what is known of it is its own too: what was never sent
//! is told as such, whatever became of the others of its message.

use bytes::Bytes;
use kv_proto::kv::v1 as proto;
use prost::Message as _;

use crate::{
    address::Address,
    batch::fitting,
    call::Call,
    client::{Client, delete_request, put_request, slot},
    error::{Error, Result},
    failure::Failure,
    options::WriteOptions,
    places::{Place, key_of, places, renew, stamp},
    retry::{Cause, Decision, Happened, Kind, decide},
    routing::Route,
    sessions::Ticket,
    value::{DeleteReply, PutReply},
};

/// One independent write of a bulk.
#[derive(Clone, Debug, PartialEq)]
pub struct BulkOperation(proto::WriteOperation);

impl BulkOperation {
    /// Writes a key.
    pub fn put(key: impl AsRef<[u8]>, value: impl Into<Bytes>, options: WriteOptions) -> Self {
        let put = put_request(Bytes::copy_from_slice(key.as_ref()), value.into(), options);
        Self(proto::WriteOperation { operation: Some(proto::write_operation::Operation::Put(put)) })
    }

    /// Deletes a key.
    pub fn delete(key: impl AsRef<[u8]>, options: WriteOptions) -> Self {
        let delete = delete_request(Bytes::copy_from_slice(key.as_ref()), options);
        Self(proto::WriteOperation { operation: Some(proto::write_operation::Operation::Delete(delete)) })
    }
}

/// What became of one write of a bulk.
#[derive(Debug)]
pub enum BulkOutcome {
    /// It was written, or its precondition did not hold.
    Put(PutReply),
    /// It was deleted, was absent, or its precondition did not hold.
    Delete(DeleteReply),
    /// It failed; [`Error::may_have_happened`] tells how.
    Failed(Error),
}

/// One write of a message, from its place to its outcome.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) operation: proto::WriteOperation,
    /// `None`: it is in no session, or needs another one. Then nothing happened yet.
    pub(crate) ticket: Option<Ticket>,
    /// An attempt may have been applied, whatever later ones are told.
    in_doubt: bool,
    pub(crate) outcome: Option<BulkOutcome>,
}

impl Part {
    fn new(operation: proto::WriteOperation, place: Place) -> Self {
        let (ticket, outcome) = match place {
            Place::Anywhere => (None, None),
            Place::Session(ticket) => (Some(ticket), None),
            Place::Nowhere(error) => (None, Some(BulkOutcome::Failed(error))),
        };
        Self { operation, ticket, in_doubt: false, outcome }
    }

    /// As the next attempt sends it.
    fn stamped(&mut self) -> proto::WriteOperation {
        if let Some(ticket) = &self.ticket {
            stamp(&mut self.operation, ticket.stamp());
        }
        self.operation.clone()
    }

    fn ends(&mut self, outcome: BulkOutcome) {
        self.outcome = Some(outcome);
        // Its place is needed no more, and others wait for it.
        self.ticket = None;
    }

    fn fails(&mut self, kind: Kind, failure: Failure) {
        self.ends(BulkOutcome::Failed(Error::end(kind, failure, self.in_doubt)));
    }

    /// The message that it was sent in failed as a whole.
    fn fails_like(&mut self, error: &Error) {
        let error = error.again();
        self.ends(BulkOutcome::Failed(if self.in_doubt { error.in_doubt() } else { error }));
    }
}

impl Client {
    /// Makes independent writes. One outcome for each, in order; one failure does not stop the others.
    ///
    /// Each write is in the session of its shard, and repeated until the deadline of its message. Without sessions only what
    /// surely did not happen is.
    pub async fn bulk_write(&self, operations: impl IntoIterator<Item = BulkOperation>) -> Vec<BulkOutcome> {
        let mut operations: Vec<proto::WriteOperation> =
            operations.into_iter().map(|operation| operation.0).collect();
        let mut outcomes = Vec::with_capacity(operations.len());
        while !operations.is_empty() {
            let fitting = fitting(operations.iter().map(prost::Message::encoded_len));
            let call = self.call("BulkWrite", self.write_kind(), Route::Any);
            let places = places(&call, &operations[..fitting]).await;
            let rest = operations.split_off(places.len());
            let parts =
                operations.into_iter().zip(places).map(|(operation, place)| Part::new(operation, place));
            outcomes.extend(message(call, parts.collect()).await);
            operations = rest;
        }
        outcomes
    }
}

/// Sends one message's worth, and again what surely did not happen or is in a session.
async fn message(mut call: Call, mut parts: Vec<Part>) -> Vec<BulkOutcome> {
    let mut pending: Vec<usize> = (0..parts.len()).filter(|index| parts[*index].outcome.is_none()).collect();
    loop {
        let (ready, full) = renew(&call, pending, &mut parts).await;
        if ready.is_empty() {
            break;
        }
        let operations = ready.iter().map(|index| parts[*index].stamped()).collect();
        let sent = attempt(&mut call, &proto::BulkWriteRequest { operations }).await;
        let in_doubt = call.take_doubt();
        for index in &ready {
            parts[*index].in_doubt |= in_doubt;
        }
        let (outcomes, node) = match sent {
            Ok(answer) => answer,
            Err(error) => {
                for index in ready {
                    parts[index].fails_like(&error);
                }
                for index in full {
                    parts[index].ends(BulkOutcome::Failed(error.again().unsent("BulkWrite")));
                }
                break;
            }
        };
        let mut refused = Vec::new();
        for (index, outcome) in ready.into_iter().zip(outcomes) {
            match judged(&node, outcome) {
                Ok(outcome) => parts[index].ends(outcome),
                Err(failure) => refused.push((index, *failure)),
            }
        }
        for (index, failure) in &refused {
            if failure.cause() == Cause::NoSession {
                let slot = slot(key_of(&parts[*index].operation));
                call.without_session(parts[*index].ticket.take().as_ref(), Some(slot), failure);
            }
        }
        pending = retriable(&mut call, refused, &mut parts).await;
        pending.extend(full);
    }
    let missing = || BulkOutcome::Failed(Error::protocol("BulkWrite", "an outcome is missing"));
    parts.into_iter().map(|part| part.outcome.unwrap_or_else(missing)).collect()
}

/// One message, repeated while it may be.
async fn attempt(
    call: &mut Call,
    request: &proto::BulkWriteRequest,
) -> Result<(Vec<proto::WriteOutcome>, Address)> {
    call.check_size(request.encoded_len())?;
    loop {
        let node = call.node().await?;
        let mut kv = node.kv();
        let sent = kv.bulk_write(call.request(request.clone()));
        match tokio::time::timeout_at(call.patience(call.plan.kind != Kind::Write), sent).await {
            Ok(Ok(reply)) => {
                call.client.core().knowledge.met();
                let outcomes = reply.into_inner().outcomes;
                if outcomes.len() == request.operations.len() {
                    return Ok((outcomes, node.address().clone()));
                }
                let problem =
                    format!("{} outcomes for {} operations", outcomes.len(), request.operations.len());
                return Err(Error::protocol("BulkWrite", problem));
            }
            Ok(Err(status)) => call.failed_at(&node, &status).await?,
            Err(_) => {
                let failure = call.silence_of(&node);
                call.failed(failure).await?;
            }
        }
    }
}

/// The outcome, or a failure that the table of retries has to judge.
fn judged(node: &Address, outcome: proto::WriteOutcome) -> Result<BulkOutcome, Box<Failure>> {
    match outcome.outcome {
        Some(proto::write_outcome::Outcome::Put(put)) => Ok(BulkOutcome::Put(put.into())),
        Some(proto::write_outcome::Outcome::Delete(delete)) => Ok(BulkOutcome::Delete(delete.into())),
        Some(proto::write_outcome::Outcome::Failure(failure)) => {
            Err(Box::new(Failure::of_part("BulkWrite", node, failure)))
        }
        None => Ok(BulkOutcome::Failed(Error::protocol("BulkWrite", "an outcome is missing"))),
    }
}

/// Waits once for all that may be repeated and returns them; the others get their outcome.
async fn retriable(call: &mut Call, refused: Vec<(usize, Failure)>, parts: &mut [Part]) -> Vec<usize> {
    let kind = call.plan.kind;
    let mut again = Vec::new();
    for (index, failure) in refused {
        let part = &mut parts[index];
        // What became of its earlier attempt was kept in the session.
        let lost = failure.cause() == Cause::NoSession && part.in_doubt;
        match decide(kind, failure.cause()) {
            Decision::Retry(_) if !lost => {
                part.in_doubt |= failure.cause().happened() == Happened::Perhaps;
                again.push((index, failure));
            }
            Decision::Retry(_) | Decision::Fail(_) => part.fails(kind, failure),
        }
    }
    // The one that must wait longest speaks for all.
    let slowest = again.iter().map(|(_, failure)| failure).max_by_key(|failure| failure.retry_after).cloned();
    let Some(slowest) = slowest else { return Vec::new() };
    let waited = call.failed(slowest).await;
    // Each part has its own.
    call.take_doubt();
    if waited.is_ok() {
        return again.into_iter().map(|(index, _)| index).collect();
    }
    for (index, failure) in again {
        parts[index].fails(kind, failure);
    }
    Vec::new()
}
