//! Requests that must succeed on a machine that may stand still for seconds: each is repeated until it does, or until a
//! deadline says that the cluster is broken.
//!
//! A pause that is longer than an election costs a leader; one that is longer than [`crate::api::REQUEST_DEADLINE`]
//! costs the reply too. Neither is what a test is about that writes a key before it begins. What a write was told is lost
//! with its reply, so a repeated one may have been applied twice: only for unconditional writes that nobody counts.

use std::future::Future;

use bytes::Bytes;
use kv_proto::{
    admin::v1::NodeStatus,
    kv::v1::{DeleteResponse, GetResponse, PutResponse, key_value::Value},
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tonic::Status;

use crate::{
    api::{Api, Read},
    cluster::Cluster,
    wait::{DEADLINE, wait_until},
};

impl Cluster {
    /// What a node says of itself, as soon as it answers.
    ///
    /// # Panics
    /// When it does not answer in time.
    pub async fn status(&self, node: usize) -> NodeStatus {
        self.wait_status(node, "an answer", |_| true).await
    }

    /// Waits until what a node says of itself is so, and gives it.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn wait_status(
        &self,
        node: usize,
        what: &str,
        is_so: impl Fn(&NodeStatus) -> bool,
    ) -> NodeStatus {
        let seen = wait_until(format!("{what} of node {node}"), DEADLINE, || async {
            let status = self.statuses_of(&[node]).await.remove(0).ok_or("it does not answer")?;
            if is_so(&status) { Ok(status) } else { Err(format!("{status:?}")) }
        });
        seen.await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Writes through a node, until that succeeds.
    ///
    /// # Panics
    /// When it does not in time.
    pub async fn put(&self, node: usize, key: &str, value: impl Into<Bytes>) -> PutResponse {
        let value = value.into();
        let write = async |mut api: Api| api.put(key, value.clone(), None).await;
        repeat(format!("a write of {key} through node {node}"), || write(self.api(node))).await
    }

    /// Writes so many keys through a node, each once: bytes that no compression makes smaller.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn fill(&self, node: usize, keys: u64, value_bytes: usize) {
        for number in 0..keys {
            self.put(node, &filled_key(number), filling(number, value_bytes)).await;
        }
    }

    /// Waits until no log of a data shard reaches back to its beginning: new replicas need snapshots from then on.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn wait_cut_logs(&self) {
        let cut = wait_until("logs that were cut", DEADLINE, || async {
            let statuses = self.statuses().await;
            let replicas = statuses.iter().flatten().flat_map(|status| &status.replicas);
            match replicas.filter(|replica| replica.shard_id != 0).map(|replica| replica.purged_index).min() {
                Some(0) | None => Err("some log begins with its first entry"),
                Some(_) => Ok(()),
            }
        });
        cut.await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Reads at a node itself what [`fill`](Self::fill) wrote.
    ///
    /// # Panics
    /// When something is missing or another value, or cannot be read in time.
    pub async fn has_filling(&self, node: usize, keys: u64, value_bytes: usize) {
        for number in 0..keys {
            let read = self.get(node, &filled_key(number), Read::AtThisNode).await;
            let found = read.kv.and_then(|kv| kv.value);
            let is_right = found == Some(Value::Inline(filling(number, value_bytes)));
            assert!(is_right, "{} at node {node} is another value", filled_key(number));
        }
    }

    /// Reads through a node, until that succeeds.
    ///
    /// # Panics
    /// When it does not in time.
    pub async fn get(&self, node: usize, key: &str, how: Read) -> GetResponse {
        let read = async |mut api: Api| api.get(key, how).await;
        repeat(format!("a read of {key}, {how:?}, through node {node}"), || read(self.api(node))).await
    }

    /// Deletes through a node, until that succeeds.
    ///
    /// # Panics
    /// When it does not in time.
    pub async fn delete(&self, node: usize, key: &str) -> DeleteResponse {
        let delete = async |mut api: Api| api.delete(key).await;
        repeat(format!("a delete of {key} through node {node}"), || delete(self.api(node))).await
    }
}

fn filled_key(number: u64) -> String {
    format!("filling/{number}")
}

fn filling(number: u64, bytes: usize) -> Bytes {
    let mut random = SmallRng::seed_from_u64(number);
    (0..bytes).map(|_| random.random::<u8>()).collect::<Vec<u8>>().into()
}

/// Repeats a request until it succeeds.
///
/// # Panics
/// When it does not in time.
pub async fn repeat<T, F>(what: String, request: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, Status>>,
{
    wait_until(what, DEADLINE, request).await.unwrap_or_else(|error| panic!("{error}"))
}
