//! Notices replicas that have stopped by themselves: nothing may be routed to them any more, and the node says so.
//!
//! Damage is not found here: log and state report it where they read it, and the replica is quarantined
//! ([`super::stores`]), usually before it is seen here. Any other reason may be gone at the next start, which tries
//! again.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use super::replicas::{Failed, LocalReplicas};
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
            transport.unregister(replica.id);
            replicas.fail(Failed { shard: replica.shard, group: replica.group, id: replica.id, reason });
        }
    }
}
