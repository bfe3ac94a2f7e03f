//! BatchGet and BulkWrite: many keys in one message, grouped by shard, one group beside the other.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::join_all;
use kv_proto::{
    disk::v1::{Operation, operation},
    kv::v1::{
        BatchGetRequest, BatchGetResponse, BulkWriteRequest, BulkWriteResponse, GetResponse, WriteOperation,
        WriteOutcome, write_operation, write_outcome,
    },
    peer::v1::{GotKeys, ReplyContext, outcome},
};
use kv_topology::{ClusterMap, ShardId};
use tokio::time::Instant;

use super::{
    context::{Context, Settled, settled, shard_of, unexpected},
    error::{self, Refused},
    header,
    limits::REPLY_BYTES_MAX,
    operation::{self as op, ReplyBudget},
    validate,
};
use crate::router::store::Store;

/// What goes to one shard: positions in the request, and what stood there.
type Groups<T> = BTreeMap<ShardId, (Vec<usize>, Vec<T>)>;

/// What became of one operation.
type Ended = Result<Settled, Refused>;

fn group<T>(
    map: &ClusterMap,
    items: impl IntoIterator<Item = T>,
    key: impl Fn(&T) -> &[u8],
) -> Result<Groups<T>, Refused> {
    let mut groups = Groups::new();
    for (position, item) in items.into_iter().enumerate() {
        let (positions, members) = groups.entry(shard_of(map, key(&item))?).or_default();
        positions.push(position);
        members.push(item);
    }
    Ok(groups)
}

impl<S: Store> Context<S> {
    /// Reads many keys. One snapshot of each shard, none across shards.
    ///
    /// # Errors
    /// When any shard refused; see the table of errors.
    pub async fn batch_get(
        &self,
        request: BatchGetRequest,
        deadline: Instant,
    ) -> Result<BatchGetResponse, Refused> {
        validate::batch_get(&request)?;
        let map = self.map()?;
        let BatchGetRequest { keys, options, metadata_only } = request;
        let count = keys.len();
        let groups = group(&map, keys, |key: &Bytes| key)?;
        let reads = groups.into_iter().map(|(shard, (positions, keys))| async move {
            let read = self.read_keys(shard, options, keys, metadata_only, deadline).await;
            read.map(|(context, got)| (positions, context, got))
        });
        let mut results: Vec<Option<GetResponse>> = vec![None; count];
        for read in join_all(reads).await {
            let (positions, context, GotKeys { results: got }) = read?;
            let header = header::of(context.as_ref(), &map.cluster_id);
            // Fewer results than keys: the shard's own reply is full.
            for (position, outcome) in positions.into_iter().zip(got) {
                results[position] = Some(op::get_response(Some(header.clone()), outcome));
            }
        }
        let mut budget = ReplyBudget::new(REPLY_BYTES_MAX);
        let results: Vec<_> =
            results.into_iter().map_while(|result| result.filter(|result| budget.take(result))).collect();
        if results.is_empty() {
            return Err(Refused::Bug("a batch of reads without a result".to_owned()));
        }
        Ok(BatchGetResponse { results })
    }

    /// Writes many keys, each for itself.
    ///
    /// # Errors
    /// When nothing was done; what happens to one operation is said in its outcome.
    pub async fn bulk_write(
        &self,
        request: BulkWriteRequest,
        deadline: Instant,
    ) -> Result<BulkWriteResponse, Refused> {
        validate::bulk_write(&request)?;
        let map = self.map()?;
        let count = request.operations.len();
        let groups = group(&map, request.operations, key_of)?;
        let writes = groups.into_iter().map(|(shard, (positions, operations))| async move {
            let operations = operations.into_iter().map(proposal).collect();
            (positions, self.store.write(shard, operations, deadline).await)
        });
        let mut outcomes: Vec<Option<Ended>> = Vec::new();
        outcomes.resize_with(count, || None);
        for (positions, written) in join_all(writes).await {
            let lost = || Err(Refused::Bug("a write without an outcome".to_owned()));
            let mut answers = match written {
                Ok(answers) => Ok(answers.into_iter()),
                Err(refusal) => Err(refusal),
            };
            for position in positions {
                let settled = match &mut answers {
                    Ok(answers) => answers.next().map_or_else(lost, settled),
                    Err(refusal) => Err(Refused::Store(refusal.clone())),
                };
                outcomes[position] = Some(settled);
            }
        }
        let mut budget = ReplyBudget::new(REPLY_BYTES_MAX);
        let tell = |settled: Option<Ended>| {
            let settled =
                settled.unwrap_or_else(|| Err(Refused::Bug("an operation that no shard took".to_owned())));
            write_outcome(settled, &map, &mut budget)
        };
        Ok(BulkWriteResponse { outcomes: outcomes.into_iter().map(tell).collect() })
    }
}

fn key_of(operation: &WriteOperation) -> &[u8] {
    match &operation.operation {
        Some(write_operation::Operation::Put(put)) => &put.key,
        Some(write_operation::Operation::Delete(delete)) => &delete.key,
        // Refused before.
        None => &[],
    }
}

fn proposal(write: WriteOperation) -> Operation {
    match write.operation {
        Some(write_operation::Operation::Put(put)) => {
            let (stamp, put) = op::put(put);
            stamp.on(operation::Kind::Put(put))
        }
        Some(write_operation::Operation::Delete(delete)) => {
            let (stamp, delete) = op::delete(delete);
            stamp.on(operation::Kind::Delete(delete))
        }
        None => Operation::default(),
    }
}

fn write_outcome(settled: Ended, map: &ClusterMap, budget: &mut ReplyBudget) -> WriteOutcome {
    let header = |context: Option<ReplyContext>| Some(header::of(context.as_ref(), &map.cluster_id));
    let failed = |refused: &Refused| write_outcome::Outcome::Failure(error::describe(refused, map).failure());
    let outcome = match settled {
        Ok(Settled { context, result: outcome::Result::Put(mut put), replayed }) => {
            budget.strip(&mut put.previous);
            write_outcome::Outcome::Put(op::put_response(header(context), put, replayed))
        }
        Ok(Settled { context, result: outcome::Result::Delete(mut delete), replayed }) => {
            budget.strip(&mut delete.previous);
            write_outcome::Outcome::Delete(op::delete_response(header(context), delete, replayed))
        }
        Ok(other) => failed(&unexpected("BulkWrite", &other.result)),
        Err(refused) => failed(&refused),
    };
    WriteOutcome { outcome: Some(outcome) }
}
