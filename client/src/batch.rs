//! Many keys in few messages: BatchGet and BulkWrite. Both take any number and split it to the limits of a message.

use bytes::Bytes;
use kv_proto::kv::v1 as proto;
use prost::Message;

use crate::{
    address::Address,
    call::Call,
    client::{Client, delete_request, put_request},
    error::{Error, Result},
    failure::Failure,
    options::{GetOptions, WriteOptions},
    retry::{Decision, Kind, decide},
    routing::Route,
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
    /// Writes that surely did not happen are repeated until the deadline of their message.
    pub async fn bulk_write(&self, operations: impl IntoIterator<Item = BulkOperation>) -> Vec<BulkOutcome> {
        let mut operations: Vec<proto::WriteOperation> =
            operations.into_iter().map(|operation| operation.0).collect();
        let mut outcomes = Vec::with_capacity(operations.len());
        while !operations.is_empty() {
            let rest = operations.split_off(fitting(operations.iter().map(Message::encoded_len)));
            outcomes.extend(self.bulk_message(operations).await);
            operations = rest;
        }
        outcomes
    }

    /// Sends one message's worth, and again what surely did not happen.
    async fn bulk_message(&self, operations: Vec<proto::WriteOperation>) -> Vec<BulkOutcome> {
        let mut outcomes: Vec<Option<BulkOutcome>> = operations.iter().map(|_| None).collect();
        let mut pending: Vec<usize> = (0..operations.len()).collect();
        let mut call = self.call("BulkWrite", Kind::Write, Route::Any);
        while !pending.is_empty() {
            let request = proto::BulkWriteRequest {
                operations: pending.iter().map(|index| operations[*index].clone()).collect(),
            };
            let (parts, node) = match bulk_attempt(&mut call, &request).await {
                Ok(answer) => answer,
                Err(error) => {
                    for index in pending {
                        outcomes[index] = Some(BulkOutcome::Failed(again(&error)));
                    }
                    break;
                }
            };
            let mut refused = Vec::new();
            for (index, part) in pending.iter().zip(parts) {
                match part_outcome(&node, part) {
                    Ok(outcome) => outcomes[*index] = Some(outcome),
                    Err(failure) => refused.push((*index, *failure)),
                }
            }
            pending = retriable(&mut call, refused, &mut outcomes).await;
        }
        let missing = || BulkOutcome::Failed(Error::protocol("BulkWrite", "an outcome is missing"));
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(missing)).collect()
    }
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

/// One message, repeated while it surely did nothing.
async fn bulk_attempt(
    call: &mut Call,
    request: &proto::BulkWriteRequest,
) -> Result<(Vec<proto::WriteOutcome>, Address)> {
    call.check_size(request.encoded_len())?;
    loop {
        let node = call.node().await?;
        let mut kv = node.kv();
        let sent = kv.bulk_write(call.request(request.clone()));
        match tokio::time::timeout_at(call.deadline(), sent).await {
            Ok(Ok(reply)) => {
                let outcomes = reply.into_inner().outcomes;
                if outcomes.len() == request.operations.len() {
                    return Ok((outcomes, node.address));
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
            Err(Box::new(Failure::of_part(node, failure)))
        }
        None => Ok(BulkOutcome::Failed(Error::protocol("BulkWrite", "an outcome is missing"))),
    }
}

/// Waits once for all that may be repeated and returns them; the others get their outcome.
async fn retriable(
    call: &mut Call,
    refused: Vec<(usize, Failure)>,
    outcomes: &mut [Option<BulkOutcome>],
) -> Vec<usize> {
    let mut again = Vec::new();
    for (index, failure) in refused {
        match decide(Kind::Write, failure.cause()) {
            Decision::Retry(_) => again.push((index, failure)),
            Decision::Fail(_) => outcomes[index] = Some(BulkOutcome::Failed(Error::of(Kind::Write, failure))),
        }
    }
    // The one that must wait longest speaks for all.
    let slowest = again.iter().map(|(_, failure)| failure).max_by_key(|failure| failure.retry_after).cloned();
    let Some(slowest) = slowest else { return Vec::new() };
    if call.failed(slowest).await.is_ok() {
        return again.into_iter().map(|(index, _)| index).collect();
    }
    for (index, failure) in again {
        outcomes[index] = Some(BulkOutcome::Failed(Error::of(Kind::Write, failure)));
    }
    Vec::new()
}

/// The error once more, for each operation of the message that it ended.
fn again(error: &Error) -> Error {
    match error.failure() {
        Some(failure) => Error::of(Kind::Write, failure.clone()),
        None => Error::protocol("BulkWrite", error.to_string()),
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
