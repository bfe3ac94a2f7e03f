//! The seam between the services and the cluster: what a service can ask for.

use std::{future::Future, sync::Arc};

use kv_proto::{
    disk::v1::{MetaRecord, Operation},
    peer::v1::{Outcome, ReadRequest, ReadResponse, Refusal},
};
use kv_topology::{ClusterMap, ShardId};
use tokio::time::Instant;

/// The store as the services see it: the whole cluster, whichever node they run in.
///
/// Implemented by the router; by a plain map in tests of the services. Both calls route, forward, and retry what
/// surely did not happen, until the deadline. A refusal is the final answer.
pub trait Store: Send + Sync + 'static {
    /// Proposes operations of one shard. One outcome for each, in order.
    ///
    /// # Errors
    /// When the request as a whole was refused; what may have happened is said by the refusal's kind.
    fn write(
        &self,
        shard: ShardId,
        operations: Vec<Operation>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Vec<Outcome>, Refusal>> + Send;

    /// Reads from one shard, with the consistency that the request names.
    ///
    /// # Errors
    /// When the read was refused. A read has no effect: it may be repeated.
    fn read(
        &self,
        request: ReadRequest,
        deadline: Instant,
    ) -> impl Future<Output = Result<ReadResponse, Refusal>> + Send;

    /// The registry and shard map that this node knows.
    fn map(&self) -> Arc<ClusterMap>;

    /// The same as meta keeps it.
    fn meta(&self) -> Arc<MetaRecord>;
}
