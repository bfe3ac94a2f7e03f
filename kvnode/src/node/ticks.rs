//! Moves log time on where something waits for it: uploads that nobody goes on with, sessions that nobody uses, permits.
//!
//! Log time stands still while a group writes nothing. So each leader writes an entry now and then, which also sweeps
//! what has expired; only while its group has uploads under way or sessions, or a permit is open, so that an idle cluster
//! writes nothing.

use std::{sync::Arc, time::Duration};

use kv_proto::disk::v1::{MetaRecord, Operation, Tick, operation};
use kv_topology::ShardId;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::{map_feed::MapFeed, replicas::LocalReplicas};
use crate::{
    group::replica::Replica,
    meta::machine::open_permit,
    router::{Maps, Replicas},
};

/// Between two ticks of a group: a tenth of the time after which an upload is abandoned. An upload lives at most two
/// periods longer than promised, and a group with uploads writes one small entry a minute.
pub const TICK_EVERY: Duration = Duration::from_secs(60);
/// The same of the meta group while a permit is open: as exact as the shortest permit.
const PERMIT_TICK_EVERY: Duration = Duration::from_secs(1);
/// For one tick.
const TICK_TIMEOUT: Duration = Duration::from_secs(5);

/// Ticks for the data groups that are led here, for ever.
pub async fn run(replicas: Arc<LocalReplicas>) {
    let mut ticks = every(TICK_EVERY);
    loop {
        ticks.tick().await;
        let all = replicas.all();
        let led = all.iter().filter(|replica| !replica.shard.is_meta() && leads(replica));
        futures::future::join_all(led.map(tick_in_use)).await;
    }
}

/// The same for the meta group.
pub async fn run_for_meta(replicas: Arc<LocalReplicas>, maps: Arc<MapFeed>) {
    let mut ticks = every(PERMIT_TICK_EVERY);
    loop {
        ticks.tick().await;
        if !waits_for_log_time(&maps.meta()) {
            continue;
        }
        if let Some(meta) = replicas.replica(ShardId::META).filter(leads) {
            tick(&meta).await;
        }
    }
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Whether something in the record expires. An overdue permit has expired.
fn waits_for_log_time(record: &MetaRecord) -> bool {
    open_permit(record).is_some()
}

fn leads(replica: &Replica) -> bool {
    replica.control.leader() == Some(replica.node)
}

async fn tick_in_use(replica: &Replica) {
    let (sessions, _) = replica.state.sessions();
    if sessions > 0 || replica.state.has_uploads().await {
        tick(replica).await;
    }
}

async fn tick(replica: &Replica) {
    let operation = Operation { kind: Some(operation::Kind::Tick(Tick {})), ..Operation::default() };
    if let Err(refused) = replica.write(vec![operation], Instant::now() + TICK_TIMEOUT).await {
        // The next one comes, here or at the next leader.
        tracing::debug!(shard = replica.shard.get(), reason = refused.reason, "a tick was refused");
    }
}

#[cfg(test)]
mod tests {
    use kv_proto::disk::v1::Permit;

    use super::*;

    #[test]
    fn only_a_permit_that_has_not_expired_waits_for_log_time() {
        let record = |permits: &[bool]| {
            let permit = |overdue: &bool| Permit { overdue: *overdue, ..Permit::default() };
            MetaRecord { permits: permits.iter().map(permit).collect(), ..MetaRecord::default() }
        };
        assert!(!waits_for_log_time(&record(&[])));
        assert!(!waits_for_log_time(&record(&[true])));
        assert!(waits_for_log_time(&record(&[true, false])));
    }
}
