//! Txn: compare, then or else, atomically in one shard.

use std::collections::BTreeSet;

use kv_proto::{
    disk::v1::{self as disk, operation},
    kv::v1::{
        ResponseHeader, TxnOperation, TxnOperationResult, TxnRequest, TxnResponse, txn_operation,
        txn_operation_result,
    },
    peer::v1::{TxnOutcome, TxnResult, outcome, txn_result},
};
use kv_topology::{ClusterMap, ShardId, slot::routing_part};
use tokio::time::Instant;

use super::{
    context::{Context, shard_of, unexpected},
    error::Refused,
    header,
    limits::REPLY_BYTES_MAX,
    operation::{self as op, ReplyBudget},
    session::Stamp,
    validate,
};
use crate::router::store::Store;

impl<S: Store> Context<S> {
    /// Runs a transaction.
    ///
    /// # Errors
    /// When its keys lie in several shards; else see the table of errors.
    pub async fn txn(&self, request: TxnRequest, deadline: Instant) -> Result<TxnResponse, Refused> {
        validate::txn(&request)?;
        let map = self.map()?;
        let shard = only_shard(&map, &request)?;
        let written = self.propose(shard, stamped(request), deadline).await?;
        let header = Some(header::of(written.context.as_ref(), &map.cluster_id));
        match written.result {
            outcome::Result::Txn(outcome) => Ok(txn_response(header, outcome, written.replayed)),
            other => Err(unexpected("Txn", &other)),
        }
    }
}

/// The operation of a Txn, with its stamp.
pub fn stamped(request: TxnRequest) -> disk::Operation {
    let TxnRequest { compare, then, r#else, session_id, sequence, lowest_outstanding } = request;
    let proposals = |operations: Vec<_>| operations.into_iter().map(proposal).collect();
    let txn = disk::Txn { compare, then: proposals(then), r#else: proposals(r#else) };
    Stamp { session_id, sequence, lowest_outstanding }.on(operation::Kind::Txn(txn))
}

/// The reply to a Txn. Values that are too much for a reply are left out.
pub fn txn_response(header: Option<ResponseHeader>, outcome: TxnOutcome, replayed: bool) -> TxnResponse {
    let TxnOutcome { succeeded, results } = outcome;
    let mut budget = ReplyBudget::new(REPLY_BYTES_MAX);
    let results = results.into_iter().map(|result| told(result, &mut budget)).collect();
    TxnResponse { header, succeeded, results, replayed }
}

fn keys(request: &TxnRequest) -> impl Iterator<Item = &[u8]> {
    let compared = request.compare.iter().map(|compare| &compare.key[..]);
    let touched =
        request.then.iter().chain(&request.r#else).filter_map(|operation| match &operation.operation {
            Some(txn_operation::Operation::Get(get)) => Some(&get.key[..]),
            Some(txn_operation::Operation::Put(put)) => Some(&put.key[..]),
            Some(txn_operation::Operation::Delete(delete)) => Some(&delete.key[..]),
            None => None,
        });
    compared.chain(touched)
}

/// The shard that owns all keys.
///
/// # Errors
/// When there is more than one, or the map names none.
pub fn only_shard(map: &ClusterMap, request: &TxnRequest) -> Result<ShardId, Refused> {
    let shards = keys(request).map(|key| shard_of(map, key)).collect::<Result<BTreeSet<_>, _>>()?;
    match shards.first() {
        Some(shard) if shards.len() == 1 => Ok(*shard),
        _ => Err(Refused::SpansShards { shards: shards.into_iter().collect(), tag: joining_tag(request) }),
    }
}

/// The tag of the first key that has one; else one made of the first key, where it is short text.
fn joining_tag(request: &TxnRequest) -> String {
    const TAG_BYTES_MAX: usize = 64;
    let tagged =
        keys(request).map(|key| (key, routing_part(key))).find(|(key, part)| key.len() != part.len());
    let part = tagged.map(|(_, part)| part).or_else(|| keys(request).next()).unwrap_or_default();
    let is_fit = |text: &&str| {
        !text.is_empty()
            && text.len() <= TAG_BYTES_MAX
            && !text.contains(['{', '}'])
            && !text.contains(char::is_control)
    };
    let text = std::str::from_utf8(part).ok().filter(is_fit).unwrap_or("tag");
    format!("{{{text}}}")
}

fn proposal(operation: TxnOperation) -> disk::TxnOperation {
    use disk::txn_operation::Operation;
    let operation = operation.operation.map(|operation| match operation {
        txn_operation::Operation::Get(get) => Operation::Get(op::get(get)),
        txn_operation::Operation::Put(put) => Operation::Put(op::put(put).1),
        txn_operation::Operation::Delete(delete) => Operation::Delete(op::delete(delete).1),
    });
    disk::TxnOperation { operation }
}

fn told(result: TxnResult, budget: &mut ReplyBudget) -> TxnOperationResult {
    let result = result.result.map(|result| match result {
        txn_result::Result::Get(mut get) => {
            budget.strip(&mut get.kv);
            txn_operation_result::Result::Get(op::get_response(None, get))
        }
        txn_result::Result::Put(mut put) => {
            budget.strip(&mut put.previous);
            txn_operation_result::Result::Put(op::put_response(None, put, false))
        }
        txn_result::Result::Delete(mut delete) => {
            budget.strip(&mut delete.previous);
            txn_operation_result::Result::Delete(op::delete_response(None, delete, false))
        }
    });
    TxnOperationResult { result }
}

#[cfg(test)]
mod tests {
    use kv_proto::kv::v1::GetRequest;

    use super::*;

    fn reads(keys: &[&[u8]]) -> TxnRequest {
        let get = |key: &&[u8]| GetRequest { key: key.to_vec().into(), ..GetRequest::default() };
        let operation = |key| TxnOperation { operation: Some(txn_operation::Operation::Get(get(key))) };
        TxnRequest { then: keys.iter().map(operation).collect(), ..TxnRequest::default() }
    }

    #[test]
    fn the_tag_that_would_join_the_keys_is_one_that_they_have_or_the_first_key() {
        let table: [(&[&[u8]], &str); 5] = [
            (&[b"a", b"b"], "{a}"),
            (&[b"a", b"x{user7}y"], "{user7}"),
            (&[b"\xff\xfe", b"b"], "{tag}"),
            (&[b"a{", b"b"], "{tag}"),
            (&[b"line\nbreak", b"b"], "{tag}"),
        ];
        for (keys, tag) in table {
            assert_eq!(joining_tag(&reads(keys)), tag, "{keys:?}");
        }
    }
}
