//! Many keys in few messages: BatchGet and BulkWrite. Both take any number and split it to the limits of a message.

use bytes::Bytes;
use kv_proto::kv::v1 as proto;
use prost::Message;

use crate::{
    address::Address,
    call::Call,
    client::{Client, delete_request, put_request, slot},
    error::{Error, Result},
    failure::Failure,
    options::{GetOptions, WriteOptions},
    places::{Place, key_of, places, renew, stamp},
    retry::{Cause, Decision, Happened, Kind, decide},
    routing::Route,
    sessions::Ticket,
    value::{DeleteReply, GetReply, PutReply},
};

/// Keys or operations in one message.
const MAX_ITEMS: usize = 1000;
/// Bytes of operations in one message; below 4 MiB, with room for the framing.
const MAX_MESSAGE_BYTES: usize = 3 * 1024 * 1024;

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

impl Client {
    /// Reads many keys, linearizably. One reply for each, in order.
    ///
    /// # Errors
    /// See [`Error`]; absent keys are none.
    pub async fn batch_get<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        options: GetOptions,
    ) -> Result<Vec<GetReply>> {
        let mut keys: Vec<Bytes> = keys.into_iter().map(|key| Bytes::copy_from_slice(key.as_ref())).collect();
        let mut replies = Vec::with_capacity(keys.len());
        while !keys.is_empty() {
            let request = proto::BatchGetRequest {
                keys: keys.iter().take(fitting(keys.iter().map(Bytes::len))).cloned().collect(),
                options: Some(options.read.into()),
                metadata_only: options.metadata_only,
            };
            let asked = request.keys.len();
            let call = self.call("BatchGet", Kind::Read, Route::Any);
            let send = |node: crate::pool::Node, request| async move { node.kv().batch_get(request).await };
            let (reply, _) = call.unary(request, send).await?;
            let got = reply.results.len();
            if got == 0 || got > asked {
                return Err(Error::protocol("BatchGet", format!("{got} results for {asked} keys")));
            }
            keys.drain(..got);
            replies.extend(reply.results.into_iter().map(GetReply::from));
        }
        Ok(replies)
    }

    /// Makes independent writes. One outcome for each, in order; one failure does not stop the others.
    ///
    /// Each write is in the session of its shard, and repeated until the deadline of its message. Without sessions only what
    /// surely did not happen is.
    pub async fn bulk_write(&self, operations: impl IntoIterator<Item = BulkOperation>) -> Vec<BulkOutcome> {
        let mut operations: Vec<proto::WriteOperation> =
            operations.into_iter().map(|operation| operation.0).collect();
        let mut outcomes = Vec::with_capacity(operations.len());
        while !operations.is_empty() {
            let fitting = fitting(operations.iter().map(Message::encoded_len));
            let call = self.call("BulkWrite", self.write_kind(), Route::Any);
            let places = places(&call, &operations[..fitting]).await;
            let rest = operations.split_off(places.len());
            outcomes.extend(bulk_message(call, operations, places).await);
            operations = rest;
        }
        outcomes
    }
}

/// Sends one message's worth, and again what surely did not happen or is in a session.
async fn bulk_message(
    mut call: Call,
    mut operations: Vec<proto::WriteOperation>,
    places: Vec<Place>,
) -> Vec<BulkOutcome> {
    let mut outcomes: Vec<Option<BulkOutcome>> = operations.iter().map(|_| None).collect();
    let mut tickets: Vec<Option<Ticket>> = Vec::with_capacity(places.len());
    let mut pending = Vec::with_capacity(places.len());
    for (index, place) in places.into_iter().enumerate() {
        let (ticket, failed) = match place {
            Place::Anywhere => (None, None),
            Place::Session(ticket) => (Some(ticket), None),
            Place::Nowhere(error) => (None, Some(BulkOutcome::Failed(error))),
        };
        tickets.push(ticket);
        if failed.is_none() {
            pending.push(index);
        }
        outcomes[index] = failed;
    }
    loop {
        let (ready, full) = renew(&call, pending, &operations, &mut tickets, &mut outcomes).await;
        if ready.is_empty() {
            break;
        }
        for index in &ready {
            if let Some(ticket) = &tickets[*index] {
                stamp(&mut operations[*index], ticket.stamp());
            }
        }
        let request = proto::BulkWriteRequest {
            operations: ready.iter().map(|index| operations[*index].clone()).collect(),
        };
        let (parts, node) = match bulk_attempt(&mut call, &request).await {
            Ok(answer) => answer,
            Err(error) => {
                for index in ready.into_iter().chain(full) {
                    outcomes[index] = Some(BulkOutcome::Failed(again(&error)));
                }
                break;
            }
        };
        let mut refused = Vec::new();
        for (index, part) in ready.into_iter().zip(parts) {
            match part_outcome(&node, part) {
                Ok(outcome) => outcomes[index] = Some(outcome),
                Err(failure) => refused.push((index, *failure)),
            }
        }
        for (index, failure) in &refused {
            if failure.cause() == Cause::NoSession {
                let slot = slot(key_of(&operations[*index]));
                call.without_session(tickets[*index].take().as_ref(), Some(slot), failure);
            }
        }
        pending = retriable(&mut call, refused, &mut outcomes).await;
        pending.extend(full);
        // What has its outcome needs its place no more, and others wait for it.
        for (ticket, _) in tickets.iter_mut().zip(&outcomes).filter(|(_, outcome)| outcome.is_some()) {
            *ticket = None;
        }
    }
    let missing = || BulkOutcome::Failed(Error::protocol("BulkWrite", "an outcome is missing"));
    outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(missing)).collect()
}

/// How many items from the front fit into a message; at least one.
fn fitting(sizes: impl Iterator<Item = usize>) -> usize {
    let mut bytes = 0;
    let mut items = 0;
    for size in sizes.take(MAX_ITEMS) {
        bytes += size + 8;
        if items > 0 && bytes > MAX_MESSAGE_BYTES {
            break;
        }
        items += 1;
    }
    items
}

/// One message, repeated while it may be.
async fn bulk_attempt(
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
fn part_outcome(node: &Address, part: proto::WriteOutcome) -> Result<BulkOutcome, Box<Failure>> {
    match part.outcome {
        Some(proto::write_outcome::Outcome::Put(put)) => Ok(BulkOutcome::Put(put.into())),
        Some(proto::write_outcome::Outcome::Delete(delete)) => Ok(BulkOutcome::Delete(delete.into())),
        Some(proto::write_outcome::Outcome::Failure(failure)) => {
            Err(Box::new(Failure::of_part("BulkWrite", node, failure)))
        }
        None => Ok(BulkOutcome::Failed(Error::protocol("BulkWrite", "an outcome is missing"))),
    }
}

/// Waits once for all that may be repeated and returns them; the others get their outcome.
///
/// In doubt whether an earlier attempt of one of them was applied, all of them are: they were sent together.
async fn retriable(
    call: &mut Call,
    refused: Vec<(usize, Failure)>,
    outcomes: &mut [Option<BulkOutcome>],
) -> Vec<usize> {
    let mut again = Vec::new();
    for (index, failure) in refused {
        let lost = failure.cause() == Cause::NoSession && call.may_have_happened();
        match decide(call.plan.kind, failure.cause()) {
            Decision::Retry(_) if !lost => again.push((index, failure)),
            Decision::Retry(_) | Decision::Fail(_) => {
                outcomes[index] = Some(BulkOutcome::Failed(call.end(failure)));
            }
        }
    }
    // The one that must wait longest speaks for all.
    let slowest = again.iter().map(|(_, failure)| failure).max_by_key(|failure| failure.retry_after).cloned();
    let Some(slowest) = slowest else { return Vec::new() };
    let in_doubt = again.iter().any(|(_, failure)| failure.cause().happened() == Happened::Perhaps);
    if call.failed(slowest).await.is_ok() {
        if in_doubt {
            call.doubt();
        }
        return again.into_iter().map(|(index, _)| index).collect();
    }
    for (index, failure) in again {
        outcomes[index] = Some(BulkOutcome::Failed(call.end(failure)));
    }
    Vec::new()
}

/// The error once more, for each operation of the message that it ended.
pub(crate) fn again(error: &Error) -> Error {
    match (error, error.failure()) {
        // Whatever the last failure tells of its own attempt.
        (Error::OutcomeUnknown(_), Some(failure)) => Error::OutcomeUnknown(Box::new(failure.clone())),
        (_, Some(failure)) => Error::of(Kind::Write, failure.clone()),
        (_, None) => Error::protocol("BulkWrite", error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_hold_at_most_a_thousand_items_and_the_byte_limit() {
        assert_eq!(fitting([1; 1500].into_iter()), MAX_ITEMS);
        assert_eq!(fitting([1024 * 1024; 10].into_iter()), 2);
        assert_eq!(fitting([MAX_MESSAGE_BYTES * 2].into_iter()), 1, "at least one, to be refused by name");
        assert_eq!(fitting([].into_iter()), 0);
    }
}
