//! Takes replicas that were given up with their group out of service: those on the disk before any of them starts, those that
//! run as soon as the node hears of it.
//!
//! Such a replica is quarantined like one that is damaged, and by the same means: at once it says nothing any more, then that
//! is made durable, then it is stopped. Its bytes are removed when meta says that nobody needs them.

use std::sync::Arc;

use futures::future::join_all;
use kv_proto::disk::v1::ReplicaDescriptor;
use kv_topology::ClusterMap;

use super::fence;
use crate::{
    log::{LogError, LogHub},
    node::{map_feed::MapFeed, quarantine, replicas::LocalReplicas},
    transport::Transport,
};

/// Marks what must not start. Before the first replica starts.
///
/// # Errors
/// When the log is closed or its device has failed.
pub async fn before_start(log: &LogHub, map: &ClusterMap) -> Result<(), LogError> {
    for marked in fence::given_up(map, &log.descriptors()) {
        tell(&marked);
        log.put_descriptor(marked).await?;
    }
    Ok(())
}

/// Looks at every new map, for ever. The others are told how often this node knows meta to have been recovered.
pub async fn run(maps: Arc<MapFeed>, log: LogHub, replicas: Arc<LocalReplicas>, transport: Transport) {
    let mut epoch = 0;
    loop {
        let view = maps.registry.newer_than(epoch).await;
        epoch = view.epoch();
        transport.set_recoveries(view.record.recoveries);
        // Side by side: the end of each may take seconds.
        let ends = fence::given_up(&view.map, &log.descriptors()).into_iter().map(|marked| {
            tell(&marked);
            quarantine::take_out(&log, &replicas, &transport, marked)
        });
        join_all(ends).await;
    }
}

fn tell(marked: &ReplicaDescriptor) {
    let (replica, shard) = (marked.replica_id, marked.shard_id);
    let (group, reason) = (marked.group_id, &marked.quarantine_reason);
    tracing::warn!(replica, shard, group, reason, "replica is fenced");
}
