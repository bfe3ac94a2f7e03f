//! Moves log time on where something waits for it: uploads that nobody goes on with, sessions that nobody uses.
//!
//! Log time stands still while a group writes nothing. So each leader writes an entry now and then, which also sweeps
//! what has expired; only while its group has uploads under way or sessions, so that an idle cluster writes nothing.

use std::{sync::Arc, time::Duration};

use kv_proto::disk::v1::{Operation, Tick, operation};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::replicas::LocalReplicas;
use crate::group::replica::Replica;

/// Between two ticks of a group: a tenth of the time after which an upload is abandoned. An upload lives at most two
/// periods longer than promised, and a group with uploads writes one small entry a minute.
pub const TICK_EVERY: Duration = Duration::from_secs(60);
/// For one tick.
const TICK_TIMEOUT: Duration = Duration::from_secs(5);

/// Ticks for the groups that are led here, for ever.
pub async fn run(replicas: Arc<LocalReplicas>) {
    let mut ticks = interval(TICK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let all = replicas.all();
        futures::future::join_all(all.iter().filter(|replica| leads(replica)).map(tick)).await;
    }
}

fn leads(replica: &Replica) -> bool {
    !replica.shard.is_meta() && replica.control.leader() == Some(replica.node)
}

async fn tick(replica: &Replica) {
    let (sessions, _) = replica.state.sessions();
    if sessions == 0 && !replica.state.has_uploads().await {
        return;
    }
    let operation = Operation { kind: Some(operation::Kind::Tick(Tick {})), ..Operation::default() };
    if let Err(refused) = replica.write(vec![operation], Instant::now() + TICK_TIMEOUT).await {
        // The next one comes, here or at the next leader.
        tracing::debug!(shard = replica.shard.get(), reason = refused.reason, "a tick was refused");
    }
}
