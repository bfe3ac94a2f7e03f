//! What must hold at every moment and at the end, seen from inside; the clients' histories are checked beside it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kv_history::FinalState;
use kv_proto::{
    admin::v1::Role,
    kv::v1::{Consistency, ReadOptions},
};
use kv_topology::NodeId;
use kvnode::{log::codec::LogId, router::Replicas};
use tokio::time::{Instant, sleep};

use crate::{
    clients::{KEYS, observed, question, read_all},
    world::{SHARD, World, replica_of},
};

/// Between two looks at all replicas.
pub const WATCH_EVERY: Duration = Duration::from_millis(50);
/// In calm all replicas must have caught up after this.
const AGREE_WITHIN: Duration = Duration::from_secs(30);
const AGREE_POLL: Duration = Duration::from_millis(100);

/// What was seen of the group so far.
#[derive(Default)]
pub struct Oracles {
    /// Which life of a node led which term.
    leaders: BTreeMap<(u64, NodeId), u64>,
    /// What was applied where.
    applied: BTreeMap<u64, LogId>,
    /// How far the log of each life was compared.
    compared: BTreeMap<u64, u64>,
}

impl Oracles {
    /// Terms and leaders seen.
    pub fn leaders(&self) -> usize {
        self.leaders.len()
    }

    /// Entries whose ids were compared.
    pub fn applied(&self) -> usize {
        self.applied.len()
    }

    /// Compares what every replica has applied, and who leads.
    pub fn look(&mut self, world: &World) {
        for node in world.node_ids() {
            let Some(running) = world.running(node) else { continue };
            let Some(replica) = running.replicas.replica(SHARD) else { continue };
            let status = replica.control.status();
            if status.role() == Role::Leader {
                let life = *self.leaders.entry((status.term, node)).or_insert(running.number);
                if life != running.number {
                    world.violated(format!("two lives of {node} lead term {}", status.term));
                }
            }
            let Some(log) = running.log.view(replica_of(node)) else { continue };
            let from = self.compared.entry(running.number).or_default();
            for index in *from..=status.applied_index {
                let Some(id) = log.log_id(index) else { continue };
                let known = self.applied.entry(index).or_insert(id);
                if *known != id {
                    world.violated(format!("log matching: {node} applied {id}, others {known}"));
                }
            }
            *from = status.applied_index;
        }
    }
}

/// Waits until all replicas are at the same state, and returns it as a client sees it. `None`: that did not come.
pub async fn agreement(world: &Arc<World>) -> Option<FinalState> {
    let deadline = Instant::now() + AGREE_WITHIN;
    while Instant::now() < deadline {
        if let Some(found) = read_all(world, world.any_node()).await {
            let states: Vec<_> = world.node_ids().into_iter().map(|node| local_state(world, node)).collect();
            if states.iter().all(|state| state.as_ref().is_some_and(|(_, keys)| *keys == found))
                && states.windows(2).all(|pair| pair[0] == pair[1])
            {
                return Some(found);
            }
        }
        sleep(AGREE_POLL).await;
    }
    let states: Vec<_> = world.node_ids().into_iter().map(|node| local_state(world, node)).collect();
    world.violated(format!("replicas do not agree in calm: {states:?}"));
    None
}

/// Revision, sessions with their outcomes, and keys of one replica.
type LocalState = ((u64, (usize, usize)), FinalState);

fn local_state(world: &World, node: NodeId) -> Option<LocalState> {
    let replica = world.running(node)?.replicas.replica(SHARD)?;
    let mut found = FinalState::new();
    for key in KEYS {
        let mut question = question(key);
        question.options =
            Some(ReadOptions { consistency: Consistency::Stale.into(), ..ReadOptions::default() });
        found.insert(key.to_owned(), observed(replica.state.read(&question).ok()?));
    }
    Some(((replica.state.revision(), replica.state.sessions()), found))
}
