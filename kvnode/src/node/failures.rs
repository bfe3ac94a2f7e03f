//! Notices replicas that have stopped by themselves: nothing may be routed to them any more, and the node says so.
//!
//! What stopped them is found again at the next start: damage quarantines the replica then.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use super::replicas::LocalReplicas;
use crate::transport::Transport;

/// How often the replicas are looked at: well below the patience of a client.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Looks for ever.
pub async fn watch(replicas: Arc<LocalReplicas>, transport: Transport) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for replica in replicas.all() {
            let Some(reason) = replica.control.failure() else { continue };
            let (shard, id) = (replica.shard.get(), replica.id.get());
            tracing::error!(shard, replica = id, reason, "a replica has stopped");
            replicas.fail(replica.id, reason);
            transport.unregister(replica.id);
        }
    }
}
