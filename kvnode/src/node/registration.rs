//! Tells the meta group who this node is now: its addresses, zone, version and boot counter may have changed.

use std::{sync::Arc, time::Duration};

use kv_proto::{
    disk::v1::{MetaCommand, NodeRecord, meta_command},
    peer::v1::{MetaOutcome, Refusal},
};
use kv_topology::ShardId;
use tokio::time::{Instant, sleep};

use super::{
    hands::{meta_outcome, operation_of},
    map_feed::MapFeed,
};
use crate::router::{Maps, Router, store::Store};

/// Between two attempts: the meta group may be electing.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// For one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// Registers a node with the meta group.
///
/// # Errors
/// The meta group refused it, or could not be asked.
pub async fn register(
    store: &impl Store,
    node: NodeRecord,
    name_holder_alive: bool,
    deadline: Instant,
) -> Result<MetaOutcome, Refusal> {
    let register = meta_command::RegisterNode { node: Some(node), name_holder_alive };
    let command = MetaCommand { command: Some(meta_command::Command::RegisterNode(register)) };
    meta_outcome(store.write(ShardId::META, vec![operation_of(command)], deadline).await?)
}

/// Registers this node, again and again until the meta group has it as it is.
pub async fn run(own: NodeRecord, maps: Arc<MapFeed>, router: Arc<Router>) {
    loop {
        // Before there is a cluster there is nobody to tell.
        if maps.meta().epoch > 0 {
            match register(&*router, own.clone(), false, Instant::now() + ATTEMPT_TIMEOUT).await {
                Ok(_) => return,
                Err(refused) => {
                    tracing::info!(reason = refused.reason, message = refused.message, "not registered yet");
                }
            }
        }
        sleep(RETRY_AFTER).await;
    }
}
