//! Put, get, delete and txn, however they come.

use bytes::Bytes;
use kv_proto::kv::v1::{self as proto, batch_operation::Operation, batch_result::Result as Answer};
use tonic::Status;

use super::{FakeNode, Store, sessions::stamp_of, shard_of};

impl FakeNode {
    /// A call of its own.
    pub async fn small(&self, operation: Operation) -> Result<Answer, Status> {
        let key = key_of(&operation);
        self.unary(method_of(&operation), &key, || self.execute(operation)).await?
    }

    /// Does it, once if it is in a session.
    pub fn execute(&self, operation: Operation) -> Result<Answer, Status> {
        let (key, stamp) = (key_of(&operation), stamp_of(&operation));
        let mut header = self.header(&key);
        // Under one lock: a copy of a write may come at the same time to another node.
        let mut state = self.shared.state();
        if let Some(answer) = state.sessions.before(stamp, shard_of(&key), &operation)? {
            return Ok(answer);
        }
        let mut answer = run(&mut state.store, operation.clone());
        header.as_mut().unwrap().revision = state.store.revision;
        match &mut answer {
            Answer::Put(put) => put.header = header,
            Answer::Get(get) => get.header = header,
            Answer::Delete(delete) => delete.header = header,
            Answer::Txn(txn) => txn.header = header,
            Answer::Failure(_) => {}
        }
        state.sessions.after(stamp, &operation, &answer);
        Ok(answer)
    }
}

fn run(store: &mut Store, operation: Operation) -> Answer {
    match operation {
        Operation::Put(put) => Answer::Put(store.put(put, false)),
        Operation::Get(get) => Answer::Get(store.get(&get)),
        Operation::Delete(delete) => Answer::Delete(store.delete(delete)),
        Operation::Txn(txn) => {
            let succeeded = txn.compare.iter().all(|compare| store.compare(compare));
            let branch = if succeeded { txn.then } else { txn.r#else };
            let results = branch.into_iter().map(|operation| part(store, operation)).collect();
            Answer::Txn(proto::TxnResponse { succeeded, results, ..Default::default() })
        }
    }
}

fn part(store: &mut Store, operation: proto::TxnOperation) -> proto::TxnOperationResult {
    use proto::{txn_operation::Operation, txn_operation_result::Result as Part};
    let result = match operation.operation.unwrap() {
        Operation::Get(get) => Part::Get(store.get(&get)),
        Operation::Put(put) => Part::Put(store.put(put, false)),
        Operation::Delete(delete) => Part::Delete(store.delete(delete)),
    };
    proto::TxnOperationResult { result: Some(result) }
}

pub fn method_of(operation: &Operation) -> &'static str {
    match operation {
        Operation::Put(_) => "Put",
        Operation::Get(_) => "Get",
        Operation::Delete(_) => "Delete",
        Operation::Txn(_) => "Txn",
    }
}

pub fn key_of(operation: &Operation) -> Bytes {
    match operation {
        Operation::Put(put) => put.key.clone(),
        Operation::Get(get) => get.key.clone(),
        Operation::Delete(delete) => delete.key.clone(),
        Operation::Txn(txn) => txn.compare.first().map(|compare| compare.key.clone()).unwrap_or_default(),
    }
}
