use kv_proto::disk::v1::{LogId, Membership, SlotRange, VoterSet, meta_command::PreferredLeader};
use proptest::prelude::*;

use super::*;
use crate::meta::world::{World, command, node};

fn register(record: &mut MetaRecord, node: NodeRecord, name_holder_alive: bool) -> Result<u64, String> {
    let register = RegisterNode { node: Some(node), name_holder_alive };
    let outcome = apply(record, &command(Command::RegisterNode(register)));
    outcome.map(|outcome| outcome.node_id).map_err(|refusal| refusal.reason)
}

fn reason(outcome: Result<MetaOutcome, Refusal>) -> String {
    outcome.map_or_else(|refusal| refusal.reason, |_| "applied".to_owned())
}

/// Three active nodes, no data shards.
fn three_nodes() -> MetaRecord {
    let mut world = World::founded(2, 3);
    for number in 2..=3 {
        let node_id = world.register(number);
        let (from, to) = (NodeState::Joining.into(), NodeState::Active.into());
        world.propose(&command(Command::SetNodeState(SetNodeState { node_id, from, to }))).unwrap();
    }
    world.record
}

fn shards(record: &MetaRecord) -> CreateShards {
    let shard = |shard_id: u32, first: u32, last: u32| ShardRecord {
        shard_id,
        slots: vec![SlotRange { first, last }],
        replicas: (1..=3).map(|node_id| ReplicaPlacement { replica_id: 0, node_id }).collect(),
        preferred_leader_node_id: 1,
        initializer_node_id: 1,
        ..ShardRecord::default()
    };
    CreateShards { shards: vec![shard(1, 0, 2047), shard(2, 2048, 4095)], expected_epoch: record.epoch }
}

fn observation(
    shard_id: u32,
    group_id: u64,
    index: u64,
    voters: &[u64],
    members: &[(u64, u64)],
) -> MetaCommand {
    let members =
        members.iter().map(|(replica_id, node_id)| Member { replica_id: *replica_id, node_id: *node_id });
    let membership =
        Membership { voters: vec![VoterSet { replica_ids: voters.to_vec() }], members: members.collect() };
    let log_id = Some(LogId { term: 1, replica_id: 1, index });
    let membership = Some(StoredMembership { log_id, membership: Some(membership) });
    command(Command::ObserveMembership(ObserveMembership { shard_id, group_id, membership }))
}

#[test]
fn bootstrap_happens_once_and_its_retry_is_harmless() {
    let mut record = MetaRecord::default();
    let bootstrap = |token: &str, number: u8, shards: u32, replication_factor: u32| {
        command(Command::Bootstrap(Bootstrap {
            cluster_id: "c".to_owned(),
            token: token.to_owned(),
            shards,
            replication_factor,
            node: Some(node(number)),
        }))
    };
    assert_eq!(reason(apply(&mut record, &bootstrap("t", 1, 0, 3))), "SHARD_COUNT_OUT_OF_RANGE");
    assert_eq!(reason(apply(&mut record, &bootstrap("t", 1, 8, 2))), "REPLICATION_FACTOR_OUT_OF_RANGE");
    assert_eq!(register(&mut record, node(1), false), Err("NOT_BOOTSTRAPPED".to_owned()));
    assert_eq!(record, MetaRecord::default());
    let first = apply(&mut record, &bootstrap("t", 1, 8, 3)).unwrap();
    let kept = record.clone();
    assert_eq!(apply(&mut record, &bootstrap("t", 1, 8, 3)).map(|again| again.node_id), Ok(first.node_id));
    assert_eq!(reason(apply(&mut record, &bootstrap("other", 1, 8, 3))), "ALREADY_BOOTSTRAPPED");
    assert_eq!(reason(apply(&mut record, &bootstrap("t", 2, 8, 3))), "ALREADY_BOOTSTRAPPED");
    assert_eq!(record, kept);
}

#[test]
fn a_disk_keeps_its_node_id_and_its_changes_are_noted() {
    let mut record = World::founded(1, 3).record;
    assert_eq!(register(&mut record, node(2), false), Ok(2));
    let epoch = record.epoch;
    assert_eq!(register(&mut record, node(2), true), Ok(2), "its own name is no obstacle");
    assert_eq!(record.epoch, epoch, "nothing changed");
    let moved = NodeRecord { boot_counter: 2, client_address: "elsewhere:1".to_owned(), ..node(2) };
    assert_eq!(register(&mut record, moved, false), Ok(2));
    assert_eq!((record.epoch, record.nodes[1].client_address.as_str()), (epoch + 1, "elsewhere:1"));
}

#[test]
fn a_clone_or_a_restored_volume_is_refused() {
    let mut record = World::founded(1, 3).record;
    let started = |boot_counter| NodeRecord { boot_counter, ..node(2) };
    assert_eq!(register(&mut record, started(5), false), Ok(2));
    let kept = record.clone();
    assert_eq!(register(&mut record, started(4), false), Err("DISK_CLONED_OR_RESTORED".to_owned()));
    let elsewhere = NodeRecord { peer_address: "elsewhere:1".to_owned(), ..started(5) };
    assert_eq!(register(&mut record, elsewhere, false), Err("DISK_CLONED_OR_RESTORED".to_owned()));
    let renamed = NodeRecord { name: "n9".to_owned(), ..started(6) };
    assert_eq!(register(&mut record, renamed, false), Err("DISK_OF_ANOTHER_NODE".to_owned()));
    assert_eq!(record, kept);
}

#[test]
fn two_starts_with_one_counter_are_those_of_a_disk_and_its_copy() {
    let mut record = World::founded(1, 3).record;
    assert_eq!(register(&mut record, node(2), false), Ok(2));
    let start = |boot_id: &'static [u8]| NodeRecord { boot_counter: 2, boot_id: boot_id.into(), ..node(2) };
    assert_eq!(register(&mut record, start(b""), false), Ok(2), "a join does not tell its start");
    assert_eq!(register(&mut record, start(b"one"), false), Ok(2));
    assert_eq!(register(&mut record, start(b""), false), Ok(2), "a join that comes again");
    assert_eq!(register(&mut record, start(b"one"), false), Ok(2), "the same start again");
    let copy = register(&mut record, start(b"two"), false);
    assert_eq!(copy, Err("DISK_CLONED_OR_RESTORED".to_owned()));
    let next = NodeRecord { boot_counter: 3, ..start(b"three") };
    assert_eq!(register(&mut record, next, false), Ok(2));
}

#[test]
fn a_new_disk_supersedes_a_silent_holder_of_its_name() {
    let mut record = World::founded(1, 3).record;
    register(&mut record, node(2), false).unwrap();
    let new_disk = NodeRecord { disk_uuid: vec![22; 16].into(), ..node(2) };
    assert_eq!(register(&mut record, new_disk.clone(), true), Err("NODE_NAME_IN_USE".to_owned()));
    assert_eq!(register(&mut record, new_disk, false), Ok(3));
    assert_eq!(record.nodes[1].state(), NodeState::Removed);
    assert_eq!(register(&mut record, node(2), false), Err("NODE_REMOVED".to_owned()), "the old disk returns");
}

#[test]
fn malformed_nodes_are_refused_by_field() {
    let mut record = World::founded(1, 3).record;
    let cases = [
        (NodeRecord { name: "2n".to_owned(), ..node(2) }, "node.name"),
        (NodeRecord { name: String::new(), ..node(2) }, "node.name"),
        (NodeRecord { name: "a/b".to_owned(), ..node(2) }, "node.name"),
        (NodeRecord { disk_uuid: vec![1; 15].into(), ..node(2) }, "node.disk_uuid"),
        (NodeRecord { client_address: "host".to_owned(), ..node(2) }, "node.client_address"),
        (NodeRecord { peer_address: ":50061".to_owned(), ..node(2) }, "node.peer_address"),
        (NodeRecord { peer_address: "host:70000".to_owned(), ..node(2) }, "node.peer_address"),
        (NodeRecord { zone: "z".repeat(1_000), ..node(2) }, "node.zone"),
    ];
    for (node, field) in cases {
        let register = RegisterNode { node: Some(node), name_holder_alive: false };
        let refusal = apply(&mut record, &command(Command::RegisterNode(register))).unwrap_err();
        assert_eq!((refusal.kind(), refusal.field.as_str()), (Kind::InvalidArgument, field), "{refusal:?}");
    }
}

#[test]
fn shards_are_created_once_with_ids_of_their_own() {
    let mut record = three_nodes();
    let create = shards(&record);
    apply(&mut record, &command(Command::CreateShards(create.clone()))).unwrap();
    let minted: Vec<u64> =
        record.shards[1..].iter().flat_map(|shard| &shard.replicas).map(|r| r.replica_id).collect();
    assert_eq!(minted, [2, 3, 4, 5, 6, 7]);
    assert_eq!(record.shards[1..].iter().map(|shard| shard.group_id).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(reason(apply(&mut record, &command(Command::CreateShards(create)))), "SHARDS_EXIST");
    assert!(crate::meta::view::cluster_map(&record).is_ok());
}

#[test]
fn impossible_shards_are_refused() {
    let record = three_nodes();
    let refused = |edit: &dyn Fn(&mut CreateShards)| {
        let mut create = shards(&record);
        edit(&mut create);
        let mut after = record.clone();
        let reason = reason(apply(&mut after, &command(Command::CreateShards(create))));
        assert_eq!(after, record);
        reason
    };
    assert_eq!(refused(&|create| create.expected_epoch -= 1), "EPOCH_MOVED_ON");
    assert_eq!(refused(&|create| drop(create.shards.pop())), "SHARD_COUNT_MISMATCH");
    assert_eq!(refused(&|create| create.shards[1].slots[0].first = 2047), "SLOTS_NOT_COVERED_ONCE");
    assert_eq!(refused(&|create| create.shards[1].slots[0].first = 2049), "SLOTS_NOT_COVERED_ONCE");
    assert_eq!(refused(&|create| create.shards[1].slots[0].last = u32::MAX), "SLOTS_NOT_COVERED_ONCE");
    assert_eq!(refused(&|create| create.shards[1].slots.clear()), "SLOTS_NOT_COVERED_ONCE");
    assert_eq!(refused(&|create| create.shards[1].shard_id = 3), "SHARD_IDS_NOT_IN_ORDER");
    assert_eq!(refused(&|create| create.shards[0].replicas[0].node_id = 2), "REPLICAS_NOT_PLACEABLE");
    assert_eq!(refused(&|create| create.shards[0].replicas.truncate(2)), "REPLICAS_NOT_PLACEABLE");
    assert_eq!(refused(&|create| create.shards[0].replicas[0].node_id = 9), "NODE_UNKNOWN");
    assert_eq!(refused(&|create| create.shards[0].initializer_node_id = 9), "NODE_HOLDS_NO_REPLICA");
}

#[test]
fn a_replica_is_added_once_and_only_to_a_group_that_was_seen() {
    let mut record = three_nodes();
    let add = |record: &MetaRecord, node_id| {
        command(Command::AddReplica(AddReplica { shard_id: 0, node_id, expected_epoch: record.epoch }))
    };
    let early = add(&record, 2);
    assert_eq!(reason(apply(&mut record, &early)), "GROUP_NOT_FORMED");
    apply(&mut record, &observation(0, 0, 1, &[1], &[(1, 1)])).unwrap();
    assert_eq!(reason(apply(&mut record, &early)), "EPOCH_MOVED_ON");
    let fresh = add(&record, 2);
    let added = apply(&mut record, &fresh).unwrap();
    let epoch = record.epoch;
    let again = apply(&mut record, &fresh).unwrap();
    assert_eq!((again.replica_id, record.epoch), (added.replica_id, epoch), "a retry finds what it did");
    let unknown = add(&record, 9);
    assert_eq!(reason(apply(&mut record, &unknown)), "NODE_UNKNOWN");
}

#[test]
fn membership_only_advances_and_placements_follow_it() {
    let mut record = three_nodes();
    let create = shards(&record);
    apply(&mut record, &command(Command::CreateShards(create))).unwrap();
    let all = [(2, 1), (3, 2), (4, 3)];
    apply(&mut record, &observation(1, 1, 5, &[2, 3, 4], &all)).unwrap();
    let kept = record.clone();
    apply(&mut record, &observation(1, 1, 5, &[2], &[(2, 1)])).unwrap();
    apply(&mut record, &observation(1, 1, 4, &[2], &[(2, 1)])).unwrap();
    assert_eq!(record, kept, "not newer");
    assert_eq!(reason(apply(&mut record, &observation(1, 9, 6, &[2], &[(2, 1)]))), "GROUP_REPLACED");
    assert_eq!(reason(apply(&mut record, &observation(1, 1, 6, &[2, 9], &[(2, 1)]))), "MEMBERSHIP_MALFORMED");
    assert_eq!(record, kept);
    let prefer = PreferLeaders {
        leaders: vec![PreferredLeader { shard_id: 1, node_id: 3 }],
        expected_epoch: record.epoch,
    };
    apply(&mut record, &command(Command::PreferLeaders(prefer))).unwrap();
    apply(&mut record, &observation(1, 1, 6, &[2], &[(2, 1), (3, 2)])).unwrap();
    let placed: Vec<u64> = record.shards[1].replicas.iter().map(|known| known.replica_id).collect();
    assert_eq!(placed, [2, 3], "the one that was named before and is no more has gone");
    assert_eq!(record.shards[1].preferred_leader_node_id, 0);
}

#[test]
fn a_replica_that_was_not_added_to_its_group_yet_keeps_its_place() {
    let mut record = three_nodes();
    apply(&mut record, &observation(0, 0, 1, &[1], &[(1, 1)])).unwrap();
    let add = AddReplica { shard_id: 0, node_id: 2, expected_epoch: record.epoch };
    let added = apply(&mut record, &command(Command::AddReplica(add))).unwrap();
    apply(&mut record, &observation(0, 0, 2, &[1], &[(1, 1)])).unwrap();
    assert!(record.shards[0].replicas.iter().any(|known| known.replica_id == added.replica_id));
    apply(&mut record, &observation(0, 0, 3, &[1], &[(1, 1), (77, 3)])).unwrap();
    assert!(record.shards[0].replicas.iter().any(|known| known.replica_id == 77), "a member gets a place");
    assert_eq!(record.next_replica_id, 78);
}

/// Any command, most of them near to possible.
fn any_command() -> impl Strategy<Value = MetaCommand> {
    let node_ids = || 0_u64..7;
    let registered =
        (1_u8..6, 0_u8..3, 0_u64..4, any::<bool>()).prop_map(|(name, disk, boot_counter, alive)| {
            let disk_uuid = vec![name + 10 * disk; 16].into();
            let node = NodeRecord { boot_counter, disk_uuid, ..node(name) };
            Command::RegisterNode(RegisterNode { node: Some(node), name_holder_alive: alive })
        });
    let activated = node_ids().prop_map(|node_id| {
        let (from, to) = (NodeState::Joining.into(), NodeState::Active.into());
        Command::SetNodeState(SetNodeState { node_id, from, to })
    });
    let added = (0_u32..4, node_ids(), 0_u64..30).prop_map(|(shard_id, node_id, expected_epoch)| {
        Command::AddReplica(AddReplica { shard_id, node_id, expected_epoch })
    });
    let created = (0_u64..30).prop_map(|expected_epoch| {
        Command::CreateShards(CreateShards { expected_epoch, ..shards(&MetaRecord::default()) })
    });
    let preferred = (0_u32..4, node_ids(), 0_u64..30).prop_map(|(shard_id, node_id, expected_epoch)| {
        let leaders = vec![PreferredLeader { shard_id, node_id }];
        Command::PreferLeaders(PreferLeaders { leaders, expected_epoch })
    });
    let members = proptest::collection::btree_map(1_u64..12, 1_u64..6, 1..4);
    let observed = (0_u32..3, 1_u64..20, members).prop_filter_map("kind", |(shard, index, members)| {
        let voters: Vec<u64> = members.keys().copied().collect();
        let members: Vec<(u64, u64)> = members.into_iter().collect();
        observation(shard, shard.into(), index, &voters, &members).command
    });
    prop_oneof![3 => registered, 3 => activated, 2 => added, 1 => created, 1 => preferred, 3 => observed]
        .prop_map(command)
}

proptest! {
    #[test]
    fn any_history_keeps_the_invariants(commands in proptest::collection::vec(any_command(), 0..60)) {
        let mut record = World::founded(2, 3).record;
        let mut minted = std::collections::BTreeMap::new();
        for command in commands {
            // Half of them would be refused for their epoch alone.
            let mut command = command;
            match &mut command.command {
                Some(Command::AddReplica(add)) if add.expected_epoch % 2 == 0 => add.expected_epoch = record.epoch,
                Some(Command::CreateShards(create)) => create.expected_epoch = record.epoch,
                Some(Command::PreferLeaders(prefer)) => prefer.expected_epoch = record.epoch,
                _ => {}
            }
            let before = record.clone();
            let outcome = apply(&mut record, &command);
            prop_assert_eq!(record != before, record.epoch == before.epoch + 1, "{:?}", command);
            prop_assert!(record.epoch == before.epoch || record.epoch == before.epoch + 1);
            prop_assert!(record.next_replica_id >= before.next_replica_id);
            match &outcome {
                Err(refusal) => {
                    prop_assert_eq!(&record, &before);
                    let screaming = |c: char| c.is_ascii_uppercase() || c == '_';
                    prop_assert!(!refusal.reason.is_empty() && refusal.reason.chars().all(screaming));
                    prop_assert!(!refusal.message.is_empty());
                    prop_assert_eq!(refusal.kind() == Kind::InvalidArgument, !refusal.field.is_empty());
                }
                Ok(outcome) => prop_assert_eq!(outcome.epoch, record.epoch),
            }
            for node in &record.nodes {
                prop_assert!(node.node_id < record.next_node_id);
                let owner = minted.entry(node.node_id).or_insert_with(|| node.disk_uuid.clone());
                prop_assert_eq!(&*owner, &node.disk_uuid, "a node id was reused");
            }
            let placed: Vec<u64> = record.shards.iter().flat_map(|s| &s.replicas).map(|r| r.replica_id).collect();
            prop_assert!(placed.iter().all(|replica| *replica < record.next_replica_id));
            let mut replay = before.clone();
            prop_assert_eq!(apply(&mut replay, &command), outcome, "deterministic");
            prop_assert_eq!(&replay, &record);
            let once = record.clone();
            let _ = apply(&mut record, &command);
            prop_assert_eq!(&record, &once, "a repetition changes nothing");
            prop_assert!(crate::meta::view::cluster_map(&record).is_ok());
        }
    }
}
