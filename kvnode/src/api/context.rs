//! What all services share: the store, who runs tasks, where fresh ids come from.
//!
//! It knows how to ask the store one thing and how to tell a client what went wrong. It keeps no state of its own.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::future::BoxFuture;
use kv_proto::{
    disk::v1::{Operation, operation},
    kv::v1::ReadOptions,
    peer::v1::{
        GetKeys, GotKeys, Outcome, ReadRequest, ReadResponse, ReplyContext, outcome, read_request,
        read_response,
    },
};
use kv_topology::{ClusterMap, KeyspaceId, ShardId, Slot};
use tokio::time::Instant;
use tonic::Status;

use super::{
    deadline,
    error::{self, Refused},
    session::Stamp,
};
use crate::router::store::Store;

/// The default keyspace, which is the only one so far.
pub const KEYSPACE: KeyspaceId = KeyspaceId(0);

/// Runs a task that outlives the request that began it.
pub type TaskSpawner = Arc<dyn Fn(&'static str, BoxFuture<'static, ()>) + Send + Sync>;

/// Where ids of uploads and pins come from: 16 bytes of randomness at each call.
pub type FreshIds = Box<dyn FnMut() -> [u8; 16] + Send>;

/// Shared by all services of a node.
pub struct Context<S> {
    /// The cluster.
    pub store: Arc<S>,
    spawn: TaskSpawner,
    fresh_ids: Mutex<FreshIds>,
}

impl<S: Store> Context<S> {
    /// Services over `store`.
    pub fn new(store: Arc<S>, spawn: TaskSpawner, fresh_ids: FreshIds) -> Arc<Self> {
        Arc::new(Self { store, spawn, fresh_ids: Mutex::new(fresh_ids) })
    }

    /// Runs `task` beside the request.
    pub fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) {
        (self.spawn)(name, task);
    }

    /// A fresh id, of an upload or of a pin.
    pub fn fresh_id(&self) -> [u8; 16] {
        (self.fresh_ids.lock().unwrap_or_else(PoisonError::into_inner))()
    }

    /// The map as this node knows it, once there are shards in it.
    ///
    /// # Errors
    /// While it is not known.
    pub fn map(&self) -> Result<Arc<ClusterMap>, Refused> {
        let map = self.store.map();
        if map.shards.keys().all(|shard| shard.is_meta()) { Err(Refused::Starting) } else { Ok(map) }
    }

    /// What the client is told.
    pub fn status(&self, refused: &Refused) -> Status {
        error::describe(refused, &self.store.map()).status()
    }

    /// Proposes one operation without a session.
    ///
    /// # Errors
    /// When it was refused.
    pub async fn write(
        &self,
        shard: ShardId,
        kind: operation::Kind,
        deadline: Instant,
    ) -> Result<(Option<ReplyContext>, outcome::Result), Refused> {
        let Settled { context, result, replayed: _ } =
            self.propose(shard, Stamp::NONE.on(kind), deadline).await?;
        Ok((context, result))
    }

    /// Proposes one operation.
    ///
    /// # Errors
    /// When it was refused.
    pub async fn propose(
        &self,
        shard: ShardId,
        operation: Operation,
        deadline: Instant,
    ) -> Result<Settled, Refused> {
        let outcomes = self.store.write(shard, vec![operation], deadline).await.map_err(Refused::Store)?;
        let one = outcomes
            .into_iter()
            .next()
            .ok_or_else(|| Refused::Bug("a write without an outcome".to_owned()))?;
        settled(one)
    }

    /// Reads from one shard.
    ///
    /// # Errors
    /// When it was refused.
    pub async fn read(
        &self,
        shard: ShardId,
        options: Option<ReadOptions>,
        read: read_request::Read,
        deadline: Instant,
    ) -> Result<(Option<ReplyContext>, read_response::Read), Refused> {
        let request = ReadRequest {
            shard_id: shard.get(),
            options,
            deadline_ms: deadline::left_ms(deadline, Instant::now()),
            keyspace_id: KEYSPACE.get(),
            // The router knows it, where it asks another node.
            group_id: 0,
            read: Some(read),
        };
        let ReadResponse { context, read } =
            self.store.read(request, deadline).await.map_err(Refused::Store)?;
        match read {
            Some(read_response::Read::Refusal(refusal)) => Err(Refused::Store(refusal)),
            Some(read) => Ok((context, read)),
            None => Err(Refused::Bug("a read without a result".to_owned())),
        }
    }

    /// Reads keys of one shard.
    ///
    /// # Errors
    /// When it was refused.
    pub async fn read_keys(
        &self,
        shard: ShardId,
        options: Option<ReadOptions>,
        keys: Vec<Bytes>,
        metadata_only: bool,
        deadline: Instant,
    ) -> Result<(Option<ReplyContext>, GotKeys), Refused> {
        self.get_keys(shard, options, GetKeys { keys, metadata_only, ..GetKeys::default() }, deadline).await
    }

    /// The same, perhaps with a pin.
    ///
    /// # Errors
    /// When it was refused.
    pub async fn get_keys(
        &self,
        shard: ShardId,
        options: Option<ReadOptions>,
        get: GetKeys,
        deadline: Instant,
    ) -> Result<(Option<ReplyContext>, GotKeys), Refused> {
        match self.read(shard, options, read_request::Read::Get(get), deadline).await? {
            (context, read_response::Read::Get(got)) => Ok((context, got)),
            (_, other) => Err(unexpected("GetKeys", &other)),
        }
    }
}

/// What became of an operation that was not refused.
#[derive(Debug)]
pub struct Settled {
    /// Where it was applied, and the revision of then.
    pub context: Option<ReplyContext>,
    /// Its outcome.
    pub result: outcome::Result,
    /// The outcome is the one that its session has kept of an earlier time.
    pub replayed: bool,
}

/// The shard that owns `key`.
///
/// # Errors
/// When the map names none.
pub fn shard_of(map: &ClusterMap, key: &[u8]) -> Result<ShardId, Refused> {
    map.shard_of(Slot::of(KEYSPACE, key)).ok_or(Refused::Starting)
}

/// The result of an operation, unless it was refused.
///
/// # Errors
/// The refusal.
pub fn settled(outcome: Outcome) -> Result<Settled, Refused> {
    let Outcome { context, result, replayed } = outcome;
    match result {
        Some(outcome::Result::Refusal(refusal)) => Err(Refused::Store(refusal)),
        Some(result) => Ok(Settled { context, result, replayed }),
        None => Err(Refused::Bug("an outcome without a result".to_owned())),
    }
}

/// The store answered another question than was asked.
pub fn unexpected(asked: &str, answer: &dyn std::fmt::Debug) -> Refused {
    let mut answer = format!("{answer:?}");
    // The name of the variant is enough; values stay out of the log.
    answer.truncate(answer.find('(').unwrap_or(answer.len()));
    Refused::Bug(format!("{asked} was answered with {answer}"))
}
