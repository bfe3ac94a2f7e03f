//! Any commands in any order, most of them near to possible, and what holds after each of them.

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::{
    disk::v1::{
        MoveReason,
        meta_command::{
            AddReplica, BeginChange, BeginMove, DropReplica, EndChange, EndMove, EndPermit, GrantPermit,
            Note, PreferLeaders, PreferredLeader, RemoveNode, SetPolicy, SetZone,
        },
    },
    peer::v1::refusal::Kind,
};
use proptest::prelude::*;

use super::*;

/// What a command is made of, together with the record that it is asked of.
#[derive(Clone, Copy, Debug)]
struct Dice {
    /// In ms: how much later it is.
    later: u64,
    kind: Kinds,
    a: u64,
    b: u64,
    yes: bool,
    /// Decided on the record as it is; otherwise on one that may be older.
    fresh: bool,
}

#[derive(Clone, Copy, Debug)]
enum Kinds {
    Register,
    State,
    Add,
    Create,
    Prefer,
    Observe,
    BeginMove,
    EndMove,
    BeginChange,
    EndChange,
    Drop,
    Remove,
    Zone,
    Policy,
    Grant,
    End,
    Note,
}

fn kinds() -> impl Strategy<Value = Kinds> {
    prop_oneof![
        3 => Just(Kinds::Register),
        6 => Just(Kinds::State),
        2 => Just(Kinds::Add),
        1 => Just(Kinds::Create),
        1 => Just(Kinds::Prefer),
        6 => Just(Kinds::Observe),
        4 => Just(Kinds::BeginMove),
        3 => Just(Kinds::EndMove),
        3 => Just(Kinds::BeginChange),
        1 => Just(Kinds::EndChange),
        2 => Just(Kinds::Drop),
        1 => Just(Kinds::Remove),
        1 => Just(Kinds::Zone),
        1 => Just(Kinds::Policy),
        3 => Just(Kinds::Grant),
        1 => Just(Kinds::End),
        1 => Just(Kinds::Note),
    ]
}

prop_compose! {
    fn dice()(
        later in prop_oneof![4 => Just(0_u64), 1 => 0..3_000_u64], kind in kinds(), a: u64, b: u64, yes: bool,
        fresh in prop::bool::weighted(0.9),
    ) -> Dice {
        Dice { later, kind, a, b, yes, fresh }
    }
}

/// One of them, or the default of none.
fn one_of<T: Copy + Default>(these: &[T], number: u64) -> T {
    let count = u64::try_from(these.len()).unwrap().max(1);
    these.get(usize::try_from(number % count).unwrap()).copied().unwrap_or_default()
}

/// Replicas of a shard that are placed or were seen, with their nodes.
fn replicas(shard: &ShardRecord) -> Vec<(u64, u64)> {
    let placed = shard.replicas.iter().map(|known| (known.replica_id, known.node_id));
    let observed = shard.observed.iter().flat_map(|stored| &stored.membership);
    let seen = observed.flat_map(|stored| &stored.members).map(|member| (member.replica_id, member.node_id));
    placed.chain(seen).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Those whose bit is set; at least one of them.
fn some_of<T: Copy>(these: &[T], bits: u64) -> Vec<T> {
    let chosen: Vec<T> =
        these.iter().enumerate().filter(|(at, _)| bits >> (at % 64) & 1 == 1).map(|(_, one)| *one).collect();
    if chosen.is_empty() { these.first().copied().into_iter().collect() } else { chosen }
}

impl Dice {
    fn command(self, record: &MetaRecord) -> Command {
        let Self { a, b, yes, .. } = self;
        let shard = record.shards[usize::try_from(a % 4).unwrap().min(record.shards.len() - 1)].clone();
        let shard_id = shard.shard_id;
        let node_id = b % 9;
        let expected_epoch = if self.fresh { record.epoch } else { record.epoch.saturating_sub(a % 3) };
        match self.kind {
            Kinds::Register | Kinds::State | Kinds::Remove | Kinds::Zone => self.of_nodes(record, node_id),
            Kinds::Create => Command::CreateShards(shards(expected_epoch)),
            Kinds::Add => Command::AddReplica(AddReplica { shard_id, node_id, expected_epoch }),
            Kinds::Prefer => {
                let leaders = vec![PreferredLeader { shard_id, node_id }];
                Command::PreferLeaders(PreferLeaders { leaders, expected_epoch, chosen: yes })
            }
            Kinds::Observe => self.observe(record, &shard),
            Kinds::BeginMove | Kinds::EndMove | Kinds::BeginChange | Kinds::EndChange | Kinds::Drop => {
                self.of_replicas(&shard, expected_epoch)
            }
            Kinds::Policy => {
                let replication_factor = yes.then_some(one_of(&[1, 3, 5, 4], b));
                let set = SetPolicy {
                    replication_factor,
                    lost_node_grace_ms: Some(b % 40_000),
                    moves_at_once: None,
                };
                Command::SetPolicy(set)
            }
            Kinds::Grant => {
                let token = format!("t{}", a % 50);
                let ttl_ms = 1_000 + b % 4_000;
                let outage_shard_ids = yes.then_some(shard_id).into_iter().collect();
                Command::GrantPermit(GrantPermit { token, node_id, ttl_ms, outage_shard_ids, expected_epoch })
            }
            Kinds::End => {
                let open = record.permits.first().filter(|_| self.fresh);
                let token = open.map_or("none".to_owned(), |permit| permit.token.clone());
                Command::EndPermit(EndPermit { token })
            }
            Kinds::Note => {
                Command::Note(Note { shard_id: Some(shard_id), node_id, event: "x".repeat((b % 3) as usize) })
            }
        }
    }

    fn of_replicas(self, shard: &ShardRecord, expected_epoch: u64) -> Command {
        let Self { b, yes, .. } = self;
        let (shard_id, group_id) = (shard.shard_id, shard.group_id);
        match self.kind {
            Kinds::BeginMove => {
                let (from_replica_id, from) = one_of(&replicas(shard), b);
                let there = yes && b % 3 == 0;
                let reason = if there { MoveReason::Damaged } else { MoveReason::Drain }.into();
                let to_node_id = if there { from } else { b / 8 % 9 };
                Command::BeginMove(BeginMove {
                    shard_id,
                    from_replica_id,
                    to_node_id,
                    reason,
                    expected_epoch,
                })
            }
            Kinds::EndMove => {
                let move_id = shard.r#move.filter(|_| self.fresh).map_or(b % 5, |known| known.move_id);
                Command::EndMove(EndMove { shard_id, move_id, abandoned: yes })
            }
            Kinds::BeginChange => {
                let ids: Vec<u64> = replicas(shard).into_iter().map(|(replica, _)| replica).collect();
                let seen = shard.observed.as_ref().and_then(|seen| seen.log_id);
                let expected_membership = seen.map(|seen| log_id(seen.index + u64::from(!self.fresh)));
                let voter_replica_ids = some_of(&ids, b);
                Command::BeginChange(BeginChange {
                    shard_id,
                    group_id,
                    voter_replica_ids,
                    expected_membership,
                })
            }
            Kinds::EndChange => {
                let expected_membership = shard.change.as_ref().and_then(|change| change.expected_membership);
                Command::EndChange(EndChange { shard_id, expected_membership })
            }
            _ => {
                let (replica_id, _) = one_of(&replicas(shard), b);
                Command::DropReplica(DropReplica { shard_id, replica_id })
            }
        }
    }

    fn of_nodes(self, record: &MetaRecord, node_id: u64) -> Command {
        use NodeState::{Active, Drained, Draining, Joining, Lost};
        const CHANGES: [(NodeState, NodeState); 9] = [
            (Joining, Active),
            (Active, Draining),
            (Draining, Active),
            (Draining, Drained),
            (Drained, Active),
            (Active, Lost),
            (Draining, Lost),
            (Lost, Active),
            (Active, Drained),
        ];
        let Self { kind, a, yes, fresh, .. } = self;
        match kind {
            Kinds::State => {
                let known = record.nodes.iter().find(|node| node.node_id == node_id && fresh);
                let near =
                    |(from, _): &&(NodeState, NodeState)| known.is_none_or(|node| node.state() == *from);
                let near: Vec<(i32, i32)> =
                    CHANGES.iter().filter(near).map(|(from, to)| ((*from).into(), (*to).into())).collect();
                let (from, to) = one_of(&near, a);
                Command::SetNodeState(SetNodeState { node_id, from, to })
            }
            Kinds::Remove => Command::RemoveNode(RemoveNode {
                node_id,
                lost: yes,
                accept_data_loss: a % 4 == 0,
                alive: !fresh,
            }),
            Kinds::Zone => Command::SetZone(SetZone { node_id, zone: yes.then(|| format!("z{}", a % 3)) }),
            _ => {
                let (name, disk) = (u8::try_from(1 + a % 6).unwrap(), u8::try_from(a / 6 % 3).unwrap());
                let disk_uuid = vec![name + 10 * disk; 16].into();
                let told = if fresh { 0 } else { node_id };
                let node = NodeRecord { node_id: told, boot_counter: a / 18 % 4, disk_uuid, ..node(name) };
                Command::RegisterNode(RegisterNode { node: Some(node), name_holder_alive: !fresh && yes })
            }
        }
    }

    /// A membership that the group may have come to: of replicas that meta knows, and sometimes of one that it does not.
    fn observe(self, record: &MetaRecord, shard: &ShardRecord) -> Command {
        let mut members = some_of(&replicas(shard), self.b);
        if self.yes && self.a.is_multiple_of(5) {
            let nodes: Vec<u64> = record.nodes.iter().map(|node| node.node_id).collect();
            members.push((record.next_replica_id, one_of(&nodes, self.b)));
        }
        let ids: Vec<u64> = members.iter().map(|(replica, _)| *replica).collect();
        let voters = some_of(&ids, self.b >> 8);
        let last = shard.observed.as_ref().and_then(|seen| seen.log_id).map_or(0, |id| id.index);
        let index = last + u64::from(self.fresh) * (1 + self.b % 3);
        seen(shard.shard_id, shard.group_id, index, &voters, &members)
    }
}

/// What was ever seen of ids.
#[derive(Default)]
struct Ids {
    /// Node → disk.
    nodes: BTreeMap<u64, bytes::Bytes>,
    removed: BTreeSet<u64>,
    /// Replica → shard and node.
    replicas: BTreeMap<u64, (u32, u64)>,
    /// Move → the replica that it brings.
    moves: BTreeMap<u64, u64>,
}

impl Ids {
    fn check(&mut self, record: &MetaRecord) -> Result<(), TestCaseError> {
        for node in &record.nodes {
            prop_assert!(node.node_id < record.next_node_id);
            let disk = self.nodes.entry(node.node_id).or_insert_with(|| node.disk_uuid.clone());
            prop_assert_eq!(&*disk, &node.disk_uuid, "a node id was reused");
            let was_removed = self.removed.contains(&node.node_id);
            prop_assert!(!was_removed || node.state() == NodeState::Removed, "#{} came back", node.node_id);
            if node.state() == NodeState::Removed {
                self.removed.insert(node.node_id);
            }
        }
        for shard in &record.shards {
            for placement in &shard.replicas {
                prop_assert!(placement.replica_id < record.next_replica_id);
                let place = (shard.shard_id, placement.node_id);
                let first = self.replicas.entry(placement.replica_id).or_insert(place);
                prop_assert_eq!(*first, place, "r{} was reused", placement.replica_id);
            }
            if let Some(known) = shard.r#move {
                prop_assert!(known.move_id < record.next_move_id);
                let brought = self.moves.entry(known.move_id).or_insert(known.to_replica_id);
                prop_assert_eq!(*brought, known.to_replica_id, "a move id was reused");
            }
        }
        Ok(())
    }
}

fn check_locks(record: &MetaRecord) -> Result<(), TestCaseError> {
    let open = record.permits.iter().filter(|permit| !permit.overdue).count();
    let holders: BTreeSet<u64> = record.permits.iter().map(|permit| permit.node_id).collect();
    prop_assert!(open <= 1);
    prop_assert_eq!(holders.len(), record.permits.len(), "one permit for a node");
    let changing = record.shards.iter().any(|shard| shard.change.is_some());
    prop_assert!(!changing || open == 0, "voters change while a permit is open");
    Ok(())
}

fn check_places(record: &MetaRecord) -> Result<(), TestCaseError> {
    prop_assert!(view::cluster_map(record).is_ok());
    for node in &record.nodes {
        let holds = |shard: &ShardRecord| replicas(shard).iter().any(|(_, held)| *held == node.node_id);
        let is_empty = !record.shards.iter().any(holds);
        prop_assert!(node.state() != NodeState::Drained || is_empty, "#{} is not empty", node.node_id);
        let permitted = record.permits.iter().any(|permit| permit.node_id == node.node_id);
        prop_assert!(node.state() != NodeState::Removed || !permitted);
    }
    for shard in &record.shards {
        let moving = shard.r#move.map(|known| (known.to_replica_id, known.to_node_id));
        let placed = |to| shard.replicas.iter().any(|known| (known.replica_id, known.node_id) == to);
        prop_assert!(moving.is_none_or(placed), "a replica that comes has no place");
    }
    Ok(())
}

/// The record but for the number of the next journal entry.
fn unnumbered(record: &MetaRecord) -> MetaRecord {
    MetaRecord { next_journal_sequence: 0, ..record.clone() }
}

fn check_step(cluster: &mut Cluster, command: &MetaCommand) -> Result<(), TestCaseError> {
    let before = cluster.record.clone();
    let outcome = apply(&mut cluster.record, command, cluster.now_ms);
    let record = &cluster.record;
    let is_note = matches!(command.command, Some(Command::Note(_)));
    let changed = unnumbered(record) != unnumbered(&before);
    prop_assert_eq!(record.epoch, before.epoch + u64::from(changed), "{:?}", command);
    prop_assert!(record.next_replica_id >= before.next_replica_id);
    match &outcome {
        Err(refusal) => {
            prop_assert_eq!(record, &before);
            let screaming = |c: char| c.is_ascii_uppercase() || c == '_';
            prop_assert!(!refusal.reason.is_empty() && refusal.reason.chars().all(screaming));
            prop_assert!(!refusal.message.is_empty());
            prop_assert_eq!(refusal.kind() == Kind::InvalidArgument, !refusal.field.is_empty());
        }
        Ok(applied) => {
            prop_assert_eq!(applied.outcome.epoch, record.epoch);
            let journaled = applied.journal.as_ref().map(|entry| (entry.sequence, entry.epoch));
            let expected = (before.next_journal_sequence, record.epoch);
            prop_assert_eq!(journaled, (changed || is_note).then_some(expected));
        }
    }
    let mut replay = before;
    prop_assert_eq!(&apply(&mut replay, command, cluster.now_ms), &outcome, "deterministic");
    prop_assert_eq!(&replay, record);
    let again = apply(&mut replay, command, cluster.now_ms);
    prop_assert!(is_note || replay == cluster.record, "a repetition changes nothing: {:?}", command);
    prop_assert!(is_note || !again.is_ok_and(|again| again.journal.is_some()));
    Ok(())
}

fn check_wait(cluster: &mut Cluster, later: u64) -> Result<(), TestCaseError> {
    cluster.now_ms += later;
    let before = cluster.record.clone();
    let entries = expire(&mut cluster.record, cluster.now_ms);
    prop_assert!(entries.len() <= 1, "one permit is open at most");
    let expired = u64::try_from(entries.len()).unwrap();
    prop_assert_eq!(cluster.record.epoch, before.epoch + expired);
    prop_assert_eq!(cluster.record.next_journal_sequence, before.next_journal_sequence + expired);
    Ok(())
}

proptest! {
    #[test]
    fn any_history_keeps_the_invariants(formed: bool, rolls in prop::collection::vec(dice(), 0..120)) {
        let mut cluster = if formed { Cluster::with_a_spare_node() } else { Cluster::of(3, 3) };
        let mut ids = Ids::default();
        for roll in rolls {
            check_wait(&mut cluster, roll.later)?;
            let command = envelope(roll.command(&cluster.record));
            check_step(&mut cluster, &command)?;
            ids.check(&cluster.record)?;
            check_locks(&cluster.record)?;
            check_places(&cluster.record)?;
        }
    }
}
