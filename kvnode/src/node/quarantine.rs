//! Takes replicas out of service whose bytes turn out to be damaged, while the node runs.
//!
//! Log and state report what they meet; here the replica is cut off, and then durably marked and stopped. It never starts
//! again: `stores.rs` and `host.rs` see to that. Replacing it is up to the cluster.

use std::{collections::BTreeSet, future::Future, sync::Arc};

use futures::{FutureExt, StreamExt, future::OptionFuture, stream::FuturesUnordered};
use kv_proto::disk::v1::ReplicaDescriptor;
use kv_topology::{ReplicaId, ShardId};
use tokio::sync::mpsc;

use super::replicas::LocalReplicas;
use crate::{log::LogHub, state::Damage, transport::Transport};

/// Damaged bytes of a replica that were met while the node runs.
pub struct Finding {
    /// Whose they are.
    pub replica: ReplicaId,
    /// What was found.
    pub reason: String,
}

impl From<Damage> for Finding {
    fn from(damage: Damage) -> Self {
        Self { replica: damage.replica, reason: damage.to_string() }
    }
}

/// Quarantines for as long as somebody may find something.
pub async fn run(
    findings: mpsc::UnboundedReceiver<Finding>,
    log: LogHub,
    replicas: Arc<LocalReplicas>,
    transport: Transport,
) {
    side_by_side(findings, |finding| quarantine(&log, &replicas, &transport, finding)).await;
}

/// Handles findings until nobody finds any more: those of several replicas at the same time, since the end of each may
/// take seconds, and one of a replica at a time; more than one at a time say nothing new.
async fn side_by_side<F: Future<Output = ()>>(
    mut findings: mpsc::UnboundedReceiver<Finding>,
    handle: impl Fn(Finding) -> F,
) {
    let mut replicas = BTreeSet::new();
    let mut handling = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(replica) = handling.next() => {
                replicas.remove(&replica);
            }
            Some(finding) = findings.recv() => {
                let replica = finding.replica;
                if replicas.insert(replica) {
                    handling.push(handle(finding).map(move |()| replica));
                }
            }
            else => return,
        }
    }
}

async fn quarantine(log: &LogHub, replicas: &LocalReplicas, transport: &Transport, finding: Finding) {
    let Finding { replica, reason } = finding;
    let Some(descriptor) =
        log.descriptor(replica).filter(|known| known.quarantine_reason.is_empty() && !known.removed)
    else {
        return;
    };
    tracing::error!(replica = replica.get(), reason, "damaged bytes: replica is quarantined");
    let marked = ReplicaDescriptor { quarantine_reason: reason, ..descriptor };
    take_out(log, replicas, transport, marked).await;
}

/// Takes a replica out of service for good, as its new descriptor says.
pub async fn take_out(
    log: &LogHub,
    replicas: &LocalReplicas,
    transport: &Transport,
    marked: ReplicaDescriptor,
) {
    let (replica, shard) = (ReplicaId(marked.replica_id), ShardId(marked.shard_id));
    // First of all it says nothing to its group any more.
    transport.unregister(replica);
    let running = replicas.quarantine(shard, replica, marked.quarantine_reason.clone());
    // At the same time: a leader goes on sending heartbeats until it has ended, and its shard has no other one.
    let ended = OptionFuture::from(running.map(|running| async move { running.control.stop().await }));
    let (written, _) = tokio::join!(log.put_descriptor(marked.clone()), ended);
    if let Err(error) = written {
        tracing::error!(%error, "the quarantine could not be written");
    }
    // It may have started meanwhile, before it could be seen that it must not, or the damage may have stopped it, and
    // that was noticed first.
    transport.unregister(replica);
    if let Some(started) = replicas.quarantine(shard, replica, marked.quarantine_reason) {
        started.control.stop().await;
    }
    replicas.forget_failure(replica);
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::Duration};

    use tokio::{sync::Notify, time::timeout};

    use super::*;

    /// What the test waits for at most.
    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_replica_that_does_not_end_holds_no_other_back() {
        let (found, findings) = mpsc::unbounded_channel();
        for id in [1, 1, 2, 3, 2] {
            found.send(Finding { replica: ReplicaId(id), reason: String::new() }).expect("heard");
        }
        let (stuck, last, begun) = (Notify::new(), Notify::new(), Mutex::new(Vec::new()));
        let handling = side_by_side(findings, |finding| {
            let (id, stuck, last, begun) = (finding.replica.get(), &stuck, &last, &begun);
            async move {
                begun.lock().expect("sound").push(id);
                match id {
                    1 => stuck.notified().await,
                    3 => last.notify_one(),
                    _ => {}
                }
            }
        });
        let checking = async {
            timeout(PATIENCE, last.notified()).await.expect("the third is not held back by the first");
            let first = begun.lock().expect("sound").iter().filter(|id| **id == 1).count();
            assert_eq!(first, 1, "one finding of a replica at a time");
            drop(found);
            stuck.notify_one();
        };
        tokio::join!(handling, checking);
        let handled: BTreeSet<u64> = begun.into_inner().expect("sound").into_iter().collect();
        assert_eq!(handled, BTreeSet::from([1, 2, 3]));
    }
}
