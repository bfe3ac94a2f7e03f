//! What became of an operation, as the stream tells it. Pure.
//!
//! Headers leave the cluster id out: the stream tells it once.

use kv_proto::{
    kv::v1::{BatchResult, Failure, KeyValue, batch_result, key_value},
    peer::v1::{GetOutcome, Outcome, Refusal, ReplyContext, outcome},
};
use kv_topology::{ClusterMap, ShardId};
use prost::Message;
use tonic::Code;

use super::ledger::{Kind, Waiting};
use crate::{
    api::{
        context::{Settled, settled, unexpected},
        error::{self, Refused},
        header, operation as op, txn,
    },
    refusal,
};

/// Encoded size of an answer without key and value, bytes, at most: a header and a few numbers.
const PLAIN_BYTES: usize = 128;

/// An answer, its status, and its encoded size or a little more.
#[derive(Debug)]
pub struct Answer {
    /// As it is sent.
    pub result: BatchResult,
    /// For the metrics.
    pub code: Code,
    /// Bytes.
    pub weight: usize,
}

impl Answer {
    /// A failure.
    pub fn failed(id: u64, failure: Failure) -> Self {
        let code = Code::from_i32(failure.code);
        let weight = failure.encoded_len() + PLAIN_BYTES;
        Self {
            result: BatchResult { id, result: Some(batch_result::Result::Failure(failure)) },
            code,
            weight,
        }
    }

    fn ok(id: u64, result: batch_result::Result, weight: usize) -> Self {
        Self { result: BatchResult { id, result: Some(result) }, code: Code::Ok, weight }
    }
}

/// What a refusal is to a client.
pub fn failure(refused: &Refused, map: &ClusterMap) -> Failure {
    error::describe(refused, map).failure()
}

/// The answer to a write.
pub fn of_write(waiting: Waiting, outcome: Option<Outcome>, map: &ClusterMap) -> Answer {
    let lost = || Err(Refused::Bug("a write without an outcome".to_owned()));
    match outcome.map_or_else(lost, settled) {
        Ok(written) => of_settled(waiting, written)
            .unwrap_or_else(|refused| Answer::failed(waiting.id, failure(&refused, map))),
        Err(refused) => Answer::failed(waiting.id, failure(&refused, map)),
    }
}

fn of_settled(waiting: Waiting, written: Settled) -> Result<Answer, Refused> {
    let Settled { context, result, replayed } = written;
    let header = Some(header::of(context.as_ref(), ""));
    let with = |kv: Option<&KeyValue>| PLAIN_BYTES + kv.map_or(0, KeyValue::encoded_len);
    match (waiting.kind, result) {
        (Kind::Put, outcome::Result::Put(put)) => {
            let weight = with(put.previous.as_ref());
            let put = op::put_response(header, put, replayed);
            Ok(Answer::ok(waiting.id, batch_result::Result::Put(put), weight))
        }
        (Kind::Delete, outcome::Result::Delete(delete)) => {
            let weight = with(delete.previous.as_ref());
            let delete = op::delete_response(header, delete, replayed);
            Ok(Answer::ok(waiting.id, batch_result::Result::Delete(delete), weight))
        }
        (Kind::Txn, outcome::Result::Txn(outcome)) => {
            let txn = txn::txn_response(header, outcome, replayed);
            let weight = PLAIN_BYTES + txn.encoded_len();
            Ok(Answer::ok(waiting.id, batch_result::Result::Txn(txn), weight))
        }
        (_, other) => Err(unexpected("a write on a stream", &other)),
    }
}

/// The answer to a read.
pub fn of_read(waiting: Waiting, context: Option<&ReplyContext>, got: GetOutcome) -> Answer {
    let weight = weight_of(&got);
    let got = op::get_response(Some(header::of(context, "")), got);
    Answer::ok(waiting.id, batch_result::Result::Get(got), weight)
}

/// What the answer to a read weighs.
pub fn weight_of(got: &GetOutcome) -> usize {
    let Some(kv) = &got.kv else { return PLAIN_BYTES };
    let value = match &kv.value {
        Some(key_value::Value::Inline(value)) => value.len(),
        Some(key_value::Value::Blob(blob)) => blob.encoded_len(),
        None => 0,
    };
    PLAIN_BYTES + kv.key.len() + value
}

/// The answer to an operation whose time is over while its shard's call is still running.
pub fn overdue(shard: ShardId, waiting: Waiting, map: &ClusterMap) -> Answer {
    let refusal: Refusal = match waiting.kind {
        Kind::Get | Kind::Unknown => {
            refusal::deadline_exceeded(format!("shard {shard} did not answer the read before the deadline"))
        }
        Kind::Put | Kind::Delete | Kind::Txn => {
            refusal::outcome_unknown(format!("shard {shard} did not answer the write before the deadline"))
        }
    };
    Answer::failed(waiting.id, failure(&Refused::Store(refusal), map))
}
