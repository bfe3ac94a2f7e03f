//! Tells the meta group who this node is now: its addresses, zone, version and boot counter may have changed.
//!
//! The meta group may answer that it goes on without this folder: a later start of the same disk is known, so that this
//! is a copy or was restored; or the node was removed. The registry may say so later, too, when the copy is started
//! while this node runs. Then no replica here may vote any more.

use std::{sync::Arc, time::Duration};

use kv_proto::{
    disk::v1::{NodeRecord, NodeState, meta_command},
    peer::v1::{MetaOutcome, Refusal},
};
use kv_topology::ShardId;
use tokio::time::{Instant, sleep};

use super::{
    hands::{meta_outcome, operation_of},
    map_feed::MapFeed,
};
use crate::{
    meta::envelope,
    refusal::reason,
    router::{Maps, Router, store::Store},
};

/// Between two attempts: the meta group may be electing.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// For one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the cluster goes on without this folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CutOff {
    /// Another start of the same disk counts: a person must say which of the two is to be used.
    Fenced(String),
    /// The node was removed: what it holds is of no use, and it may join as a new one.
    Removed(String),
}

impl CutOff {
    /// What a refusal of the meta group says about this folder; `None`: nothing that lasts.
    fn said_by(refused: &Refusal) -> Option<Self> {
        match refused.reason.as_str() {
            reason::DISK_CLONED_OR_RESTORED | reason::NODE_FORGOTTEN => {
                Some(Self::Fenced(refused.message.clone()))
            }
            reason::NODE_REMOVED => Some(Self::Removed(refused.message.clone())),
            _ => None,
        }
    }

    /// What the registry says about this folder by what it knows of its disk; `None`: all is well.
    fn seen_in(known: &NodeRecord, own: &NodeRecord) -> Option<Self> {
        if known.state() == NodeState::Removed {
            return Some(Self::Removed(format!("#{} was removed from the cluster", known.node_id)));
        }
        let told = !known.boot_id.is_empty() && !own.boot_id.is_empty();
        let another = known.boot_counter == own.boot_counter && told && known.boot_id != own.boot_id;
        let superseded = known.boot_counter > own.boot_counter || another;
        superseded.then(|| {
            let (start, own, at) = (known.boot_counter, own.boot_counter, &known.client_address);
            Self::Fenced(format!(
                "start {start} of this disk is known at {at}, and this is start {own}: one is a copy"
            ))
        })
    }
}

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
    let (actor, reason) = (node.name.clone(), format!("start {} of its data folder", node.boot_counter));
    let register = meta_command::RegisterNode { node: Some(node), name_holder_alive };
    let command = envelope::command(actor, reason, meta_command::Command::RegisterNode(register));
    meta_outcome(store.write(ShardId::META, vec![operation_of(command)], deadline).await?)
}

/// Registers this node, again and again until the meta group has it as it is, and then watches what the registry says
/// of it. Ends with the reason when the cluster goes on without this folder.
pub async fn run(own: NodeRecord, maps: Arc<MapFeed>, router: Arc<Router>) -> CutOff {
    loop {
        // Before there is a cluster there is nobody to tell.
        if maps.meta().epoch > 0 {
            match register(&*router, own.clone(), false, Instant::now() + ATTEMPT_TIMEOUT).await {
                Ok(known) if known.node_id != own.node_id => return forgotten(&own, known.node_id),
                Ok(known) => match watch(&own, &maps, known.epoch).await {
                    Some(cut_off) => return cut_off,
                    None => tracing::warn!("meta has forgotten this start, as after a recovery"),
                },
                Err(refused) => match CutOff::said_by(&refused) {
                    Some(cut_off) => return cut_off,
                    None => {
                        tracing::info!(
                            reason = refused.reason,
                            message = refused.message,
                            "not registered yet"
                        );
                    }
                },
            }
        }
        sleep(RETRY_AFTER).await;
    }
}

/// Watches the registry from the epoch of the registration on. `None`: it does not know this start any more, because meta was
/// recovered from a record of before.
async fn watch(own: &NodeRecord, maps: &MapFeed, registered: u64) -> Option<CutOff> {
    let mut epoch = registered.saturating_sub(1);
    loop {
        let view = maps.registry.newer_than(epoch).await;
        epoch = view.epoch();
        let known = view.record.nodes.iter().find(|known| known.disk_uuid == own.disk_uuid);
        if let Some(cut_off) = known.and_then(|known| CutOff::seen_in(known, own)) {
            return Some(cut_off);
        }
        if known.is_none_or(|known| known.boot_counter < own.boot_counter) {
            return None;
        }
    }
}

/// The cluster took this disk for a new one. Its replicas are not thrown away without a word: they may be all that is left.
fn forgotten(own: &NodeRecord, now: u64) -> CutOff {
    CutOff::Fenced(format!(
        "meta was recovered from a time before this disk joined as #{}: to the cluster it would be #{now}",
        own.node_id
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(boot_counter: u64, boot_id: &'static [u8]) -> NodeRecord {
        NodeRecord { node_id: 3, boot_counter, boot_id: boot_id.into(), ..NodeRecord::default() }
    }

    #[test]
    fn a_node_that_the_cluster_has_forgotten_waits_for_a_person() {
        let CutOff::Fenced(reason) = forgotten(&start(1, b""), 1_000_004) else { panic!("it is set aside") };
        assert!(reason.contains("joined as #3") && reason.contains("#1000004"), "{reason}");
    }

    #[test]
    fn only_refusals_that_last_cut_a_node_off() {
        let said = |reason: &str| {
            CutOff::said_by(&Refusal {
                reason: reason.to_owned(),
                message: "why".to_owned(),
                ..Refusal::default()
            })
        };
        assert_eq!(said("DISK_CLONED_OR_RESTORED"), Some(CutOff::Fenced("why".to_owned())));
        assert_eq!(
            said("NODE_FORGOTTEN"),
            Some(CutOff::Fenced("why".to_owned())),
            "it may be all that is left"
        );
        assert_eq!(said("NODE_REMOVED"), Some(CutOff::Removed("why".to_owned())));
        assert_eq!(said("NOT_APPLIED_NO_LEADER"), None);
    }

    #[test]
    fn a_later_start_of_the_disk_or_a_removal_is_seen_in_the_registry() {
        let seen = |known: NodeRecord| CutOff::seen_in(&known, &start(5, b"own"));
        for known in [start(5, b"own"), start(4, b"before"), start(5, b"")] {
            assert_eq!(seen(known.clone()), None, "{known:?}");
        }
        for known in [start(6, b"later"), start(5, b"other")] {
            assert!(matches!(seen(known.clone()), Some(CutOff::Fenced(_))), "{known:?}");
        }
        let removed = NodeRecord { state: NodeState::Removed.into(), ..start(5, b"own") };
        assert!(matches!(seen(removed), Some(CutOff::Removed(_))));
    }
}
