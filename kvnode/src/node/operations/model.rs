//! A cluster of pretence for tests of operations: the real machine of meta, and nodes that answer as they are told to.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kv_proto::{
    disk::v1::{
        JournalEntry, LogId, Member, Membership, MetaCommand, MetaRecord, NodeRecord, NodeState,
        ReplicaPlacement, ShardRecord, SlotRange, StoredMembership, VoterSet,
    },
    peer::v1::{
        GroupDescription, JournalEntries, JournalPage, MetaOutcome, Refusal, control_request::Request,
        control_response::Response,
    },
};
use kv_topology::{NodeId, SLOT_COUNT, ShardId};
use tokio::time::Instant;

use super::Reach;
use crate::{meta::machine, refusal};

/// For an operation, in virtual time.
pub const LONG: Duration = Duration::from_secs(10);
/// Nodes with replicas: the first ones.
const HOLDERS: u64 = 3;

type Answers = Box<dyn Fn(NodeId, &Request) -> Result<Response, Refusal> + Send + Sync>;
type Change = Box<dyn FnOnce(&mut MetaRecord) + Send>;

/// The cluster.
pub struct Model {
    state: Mutex<State>,
    /// What nodes answer. Without more being said none answers.
    pub answers: Answers,
    /// Nodes that are heard of.
    pub alive: BTreeSet<u64>,
}

#[derive(Default)]
struct State {
    record: MetaRecord,
    commands: Vec<MetaCommand>,
    journal: Vec<JournalEntry>,
    before_next: Vec<Change>,
    /// Of the next proposals: they happen, and nobody learns of it.
    lost_answers: usize,
    pages: Vec<JournalPage>,
    tokens: usize,
    /// `None`: without end.
    reads_left: Option<usize>,
}

/// A record of so many active nodes, n1 and so on. Meta and shard 1 have replicas 1 to 3 and 101 to 103 on the first three of them.
pub fn record(nodes: u64) -> MetaRecord {
    let node = |node_id: u64| NodeRecord {
        node_id,
        name: format!("n{node_id}"),
        disk_uuid: u128::from(node_id).to_be_bytes().to_vec().into(),
        client_address: format!("h{node_id}:50051"),
        peer_address: format!("h{node_id}:50061"),
        state: NodeState::Active.into(),
        ..NodeRecord::default()
    };
    let holders = nodes.min(HOLDERS);
    let shard = |shard_id: u32| {
        let first = u64::from(shard_id) * 100;
        let replicas: Vec<u64> = (first + 1..=first + holders).collect();
        let placement = |replica: &u64| ReplicaPlacement { replica_id: *replica, node_id: replica - first };
        ShardRecord {
            shard_id,
            group_id: shard_id.into(),
            replicas: replicas.iter().map(placement).collect(),
            observed: Some(stored(&replicas)),
            ..ShardRecord::default()
        }
    };
    let slots = vec![SlotRange { first: 0, last: u32::from(SLOT_COUNT) - 1 }];
    MetaRecord {
        cluster_id: "c".to_owned(),
        epoch: 7,
        replication_factor: 3,
        shard_count: 1,
        next_node_id: nodes + 1,
        next_replica_id: 1_000,
        next_group_id: 2,
        nodes: (1..=nodes).map(node).collect(),
        shards: vec![shard(0), ShardRecord { slots, ..shard(1) }],
        ..MetaRecord::default()
    }
}

/// These vote. Replica 100 · S + N is on node N.
fn stored(replicas: &[u64]) -> StoredMembership {
    let members = replicas.iter().map(|replica| Member { replica_id: *replica, node_id: replica % 100 });
    let membership =
        Membership { voters: vec![VoterSet { replica_ids: replicas.to_vec() }], members: members.collect() };
    StoredMembership {
        log_id: Some(LogId { term: 1, replica_id: 1, index: 1 }),
        membership: Some(membership),
    }
}

/// A group of these voters that the one on `leader` leads. Nothing is known of the others' progress.
pub fn description(leader: u64, replicas: &[u64]) -> GroupDescription {
    let leads = replicas.iter().find(|replica| **replica % 100 == leader);
    GroupDescription {
        membership: Some(stored(replicas)),
        term: 1,
        leader_replica_id: leads.copied().unwrap_or_default(),
        ..GroupDescription::default()
    }
}

impl Model {
    /// With this many nodes; see [`record`].
    pub fn of(nodes: u64) -> Self {
        Self {
            state: Mutex::new(State { record: record(nodes), ..State::default() }),
            answers: Box::new(|node, _| {
                Err(refusal::not_applied(refusal::UNREACHABLE, format!("{node} is away")))
            }),
            alive: BTreeSet::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record as it is.
    pub fn record_now(&self) -> MetaRecord {
        self.state().record.clone()
    }

    /// Something else changes the record.
    pub fn change(&self, change: impl FnOnce(&mut MetaRecord)) {
        let mut state = self.state();
        change(&mut state.record);
        state.record.epoch += 1;
    }

    /// The same just before the next proposal that has none yet.
    pub fn before_next_proposal(&self, change: impl FnOnce(&mut MetaRecord) + Send + 'static) {
        self.state().before_next.push(Box::new(change));
    }

    /// The answers of so many proposals get lost.
    pub fn lose_answers(&self, count: usize) {
        self.state().lost_answers = count;
    }

    /// The record can be read so many times; then meta has no leader for reads.
    pub fn refuse_reads_after(&self, count: usize) {
        self.state().reads_left = Some(count);
    }

    /// What was proposed and not refused.
    pub fn commands(&self) -> Vec<MetaCommand> {
        self.state().commands.clone()
    }

    /// How often that was.
    pub fn proposed(&self) -> usize {
        self.state().commands.len()
    }

    /// Pages of the journal that were asked for.
    pub fn pages(&self) -> Vec<JournalPage> {
        self.state().pages.clone()
    }
}

impl Reach for Model {
    async fn record(&self, _: Instant) -> Result<MetaRecord, Refusal> {
        let mut state = self.state();
        if let Some(left) = state.reads_left {
            let left = left.checked_sub(1).ok_or_else(|| refusal::not_leader(ShardId::META, None))?;
            state.reads_left = Some(left);
        }
        Ok(state.record.clone())
    }

    async fn propose(&self, command: MetaCommand, _: Instant) -> Result<MetaOutcome, Refusal> {
        let mut state = self.state();
        if !state.before_next.is_empty() {
            let change = state.before_next.remove(0);
            change(&mut state.record);
            state.record.epoch += 1;
        }
        let applied = machine::apply(&mut state.record, &command, 1_000)?;
        state.journal.extend(applied.journal);
        state.commands.push(command);
        if state.lost_answers > 0 {
            state.lost_answers -= 1;
            return Err(refusal::outcome_unknown("the answer got lost"));
        }
        Ok(applied.outcome)
    }

    async fn journal(&self, page: JournalPage, _: Instant) -> Result<JournalEntries, Refusal> {
        let mut state = self.state();
        state.pages.push(page);
        let entries: Vec<_> = state.journal.iter().rev().cloned().collect();
        Ok(JournalEntries { entries, next_before: 9 })
    }

    async fn control(&self, node: NodeId, request: Request, _: Instant) -> Result<Response, Refusal> {
        (self.answers)(node, &request)
    }

    async fn is_alive(&self, node: &NodeRecord, _: Instant) -> bool {
        self.alive.contains(&node.node_id)
    }

    fn token(&self) -> String {
        let mut state = self.state();
        state.tokens += 1;
        match state.tokens {
            1 => "secret".to_owned(),
            more => format!("secret {more}"),
        }
    }

    fn heartbeat(&self) -> Duration {
        Duration::from_millis(150)
    }
}
