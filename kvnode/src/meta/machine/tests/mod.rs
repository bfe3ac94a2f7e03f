//! Commands one by one, in a file for each noun, and any of them in any order ([`history`]).

mod history;
mod journal;
mod moves;
mod nodes;
mod permits;
mod policy;
mod shards;

use kv_proto::{
    disk::v1::{
        LogId, Member, Membership, MetaCommand, MetaRecord, NodeRecord, NodeState, ReplicaPlacement,
        ShardRecord, SlotRange, StoredMembership, VoterSet,
        meta_command::{Bootstrap, Command, CreateShards, ObserveMembership, RegisterNode, SetNodeState},
    },
    peer::v1::MetaOutcome,
};

use super::{apply, expire};
use crate::meta::{view, world::node};

/// A record and the commands that are thrown at it, at one log time.
#[derive(Clone)]
struct Cluster {
    record: MetaRecord,
    now_ms: u64,
}

impl Cluster {
    /// This many active nodes, the first of which founded the cluster. Its two data shards are not created yet.
    fn of(nodes: u8, replication_factor: u32) -> Self {
        let mut cluster = Self { record: MetaRecord::default(), now_ms: 1_000 };
        let (cluster_id, token) = ("c".to_owned(), "t".to_owned());
        let bootstrap = Bootstrap { cluster_id, token, shards: 2, replication_factor, node: Some(node(1)) };
        cluster.done(Command::Bootstrap(bootstrap));
        cluster.done(seen(0, 0, 1, &[1], &[(1, 1)]));
        for number in 2..=nodes {
            let node_id = cluster.register(node(number), false).unwrap();
            cluster.done(state(node_id, NodeState::Joining, NodeState::Active));
        }
        cluster
    }

    /// Three active nodes with two data shards of three voters each, r2 to r4 and r5 to r7; meta has r1 alone.
    fn formed() -> Self {
        let mut cluster = Self::of(3, 3);
        cluster.done(Command::CreateShards(shards(cluster.record.epoch)));
        cluster.done(seen(1, 1, 1, &[2, 3, 4], &[(2, 1), (3, 2), (4, 3)]));
        cluster.done(seen(2, 2, 1, &[5, 6, 7], &[(5, 1), (6, 2), (7, 3)]));
        cluster
    }

    /// The same with a fourth node, which hosts nothing.
    fn with_a_spare_node() -> Self {
        let mut cluster = Self::formed();
        let node_id = cluster.register(node(4), false).unwrap();
        cluster.done(state(node_id, NodeState::Joining, NodeState::Active));
        cluster
    }

    /// A command that changes the record by one epoch, is journaled, and does nothing when it is repeated.
    #[track_caller]
    fn done(&mut self, asked: Command) -> MetaOutcome {
        let before = self.record.clone();
        let command = envelope(asked);
        let applied = apply(&mut self.record, &command, self.now_ms).unwrap();
        assert_eq!(self.record.epoch, before.epoch + 1, "{command:?}");
        assert_eq!(applied.outcome.epoch, self.record.epoch);
        let entry = applied.journal.unwrap();
        assert_eq!((entry.sequence, entry.epoch), (before.next_journal_sequence.max(1), self.record.epoch));
        let once = self.record.clone();
        let again = apply(&mut self.record, &command, self.now_ms);
        assert_eq!(self.record, once, "a repetition changes nothing: {command:?}");
        assert!(!again.is_ok_and(|again| again.journal.is_some()));
        view::cluster_map(&self.record).unwrap();
        applied.outcome
    }

    /// A command that has nothing to do, and says what it found.
    #[track_caller]
    fn nothing(&mut self, asked: Command) -> MetaOutcome {
        let before = self.record.clone();
        let applied = apply(&mut self.record, &envelope(asked), self.now_ms).unwrap();
        assert_eq!((&self.record, applied.journal), (&before, None));
        applied.outcome
    }

    /// Why a command is refused, which leaves the record as it was.
    #[track_caller]
    fn refused(&mut self, asked: Command) -> String {
        let before = self.record.clone();
        let refusal = apply(&mut self.record, &envelope(asked), self.now_ms).unwrap_err();
        assert_eq!(self.record, before, "{refusal:?}");
        refusal.reason
    }

    fn register(&mut self, node: NodeRecord, name_holder_alive: bool) -> Result<u64, String> {
        let register = RegisterNode { node: Some(node), name_holder_alive };
        let outcome = apply(&mut self.record, &envelope(Command::RegisterNode(register)), self.now_ms);
        outcome.map(|applied| applied.outcome.node_id).map_err(|refusal| refusal.reason)
    }

    fn node(&self, id: u64) -> &NodeRecord {
        self.record.nodes.iter().find(|node| node.node_id == id).unwrap()
    }

    fn shard(&self, id: u32) -> &ShardRecord {
        self.record.shards.iter().find(|shard| shard.shard_id == id).unwrap()
    }

    /// Replicas of a shard in the order of their ids, with their nodes.
    fn placed(&self, shard: u32) -> Vec<(u64, u64)> {
        let mut placed: Vec<_> =
            self.shard(shard).replicas.iter().map(|known| (known.replica_id, known.node_id)).collect();
        placed.sort_unstable();
        placed
    }
}

fn envelope(asked: Command) -> MetaCommand {
    MetaCommand {
        command: Some(asked),
        actor: "a test".to_owned(),
        reason: "to see".to_owned(),
        unix_ms: 7_000,
    }
}

fn state(node_id: u64, from: NodeState, to: NodeState) -> Command {
    Command::SetNodeState(SetNodeState { node_id, from: from.into(), to: to.into() })
}

/// Two shards on n1 to n3.
fn shards(expected_epoch: u64) -> CreateShards {
    let shard = |shard_id: u32, first: u32, last: u32| ShardRecord {
        shard_id,
        slots: vec![SlotRange { first, last }],
        replicas: (1..=3).map(|node_id| ReplicaPlacement { replica_id: 0, node_id }).collect(),
        preferred_leader_node_id: 1,
        initializer_node_id: 1,
        ..ShardRecord::default()
    };
    CreateShards { shards: vec![shard(1, 0, 2047), shard(2, 2048, 4095)], expected_epoch }
}

fn log_id(index: u64) -> LogId {
    LogId { term: 1, replica_id: 1, index }
}

/// A membership of replicas and their nodes that was committed at `index`.
fn seen(shard_id: u32, group_id: u64, index: u64, voters: &[u64], members: &[(u64, u64)]) -> Command {
    let members =
        members.iter().map(|(replica_id, node_id)| Member { replica_id: *replica_id, node_id: *node_id });
    let membership =
        Membership { voters: vec![VoterSet { replica_ids: voters.to_vec() }], members: members.collect() };
    let membership = Some(StoredMembership { log_id: Some(log_id(index)), membership: Some(membership) });
    Command::ObserveMembership(ObserveMembership { shard_id, group_id, membership })
}
