use kv_proto::disk::v1::{
    VoterChange,
    meta_command::{
        AddReplica, BeginChange, BeginMove, Command, CreateShards, DropReplica, PreferLeaders,
        PreferredLeader,
    },
};

use super::*;

fn drop_replica(shard_id: u32, replica_id: u64) -> Command {
    Command::DropReplica(DropReplica { shard_id, replica_id })
}

fn add(cluster: &Cluster, shard_id: u32, node_id: u64) -> Command {
    Command::AddReplica(AddReplica { shard_id, node_id, expected_epoch: cluster.record.epoch })
}

#[test]
fn shards_are_created_once_with_ids_of_their_own() {
    let mut cluster = Cluster::of(3, 3);
    let mut create = shards(cluster.record.epoch);
    create.shards[0].change = Some(VoterChange::default());
    cluster.done(Command::CreateShards(create));
    let minted: Vec<u64> =
        cluster.record.shards[1..].iter().flat_map(|shard| &shard.replicas).map(|r| r.replica_id).collect();
    assert_eq!(minted, [2, 3, 4, 5, 6, 7]);
    assert_eq!(cluster.record.shards[1..].iter().map(|shard| shard.group_id).collect::<Vec<_>>(), [1, 2]);
    assert!(cluster.record.shards.iter().all(|shard| shard.change.is_none()), "nothing goes on there yet");
    assert_eq!(cluster.refused(Command::CreateShards(shards(cluster.record.epoch))), "SHARDS_EXIST");
}

#[test]
fn impossible_shards_are_refused() {
    let mut cluster = Cluster::of(3, 3);
    let mut refused = |edit: &dyn Fn(&mut CreateShards)| {
        let mut create = shards(cluster.record.epoch);
        edit(&mut create);
        cluster.refused(Command::CreateShards(create))
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
    let mut cluster = Cluster::of(3, 3);
    cluster.done(Command::CreateShards(shards(cluster.record.epoch)));
    cluster.register(node(4), false).unwrap();
    cluster.done(state(4, NodeState::Joining, NodeState::Active));
    let early = add(&cluster, 1, 4);
    assert_eq!(cluster.refused(early.clone()), "GROUP_NOT_FORMED");
    cluster.done(seen(1, 1, 1, &[2, 3, 4], &[(2, 1), (3, 2), (4, 3)]));
    assert_eq!(cluster.refused(early), "EPOCH_MOVED_ON");
    let fresh = add(&cluster, 1, 4);
    let added = cluster.done(fresh.clone());
    assert_eq!(cluster.nothing(fresh).replica_id, added.replica_id, "a retry finds what it did");
    let unknown = add(&cluster, 1, 9);
    assert_eq!(cluster.refused(unknown), "NODE_UNKNOWN");
}

#[test]
fn membership_only_advances_and_placements_follow_it() {
    let mut cluster = Cluster::formed();
    cluster.done(seen(1, 1, 5, &[2, 3, 4], &[(2, 1), (3, 2), (4, 3)]));
    cluster.nothing(seen(1, 1, 5, &[2], &[(2, 1)]));
    cluster.nothing(seen(1, 1, 4, &[2], &[(2, 1)]));
    assert_eq!(cluster.refused(seen(1, 9, 6, &[2], &[(2, 1)])), "GROUP_REPLACED");
    assert_eq!(cluster.refused(seen(1, 1, 6, &[2, 9], &[(2, 1)])), "MEMBERSHIP_MALFORMED");
    assert_eq!(cluster.refused(seen(1, 1, 6, &[2], &[(2, 9)])), "MEMBERSHIP_MALFORMED");
    let leaders = vec![PreferredLeader { shard_id: 1, node_id: 3 }];
    let prefer = PreferLeaders { leaders, expected_epoch: cluster.record.epoch, chosen: true };
    cluster.done(Command::PreferLeaders(prefer));
    cluster.done(seen(1, 1, 6, &[2], &[(2, 1), (3, 2)]));
    assert_eq!(cluster.placed(1), [(2, 1), (3, 2)], "the one that was named before and is no more has gone");
    assert_eq!(cluster.shard(1).preferred_leader_node_id, 0);
    assert!(!cluster.shard(1).leader_chosen, "nobody leads where no replica is");
}

#[test]
fn what_a_person_chose_is_kept_apart_from_what_the_controller_wishes() {
    let mut cluster = Cluster::with_a_spare_node();
    let prefer = |cluster: &Cluster, node_id, chosen| {
        let leaders = vec![PreferredLeader { shard_id: 1, node_id }];
        let expected_epoch = cluster.record.epoch;
        Command::PreferLeaders(PreferLeaders { leaders, expected_epoch, chosen })
    };
    let wish = |cluster: &Cluster| {
        let shard = cluster.shard(1);
        (shard.preferred_leader_node_id, shard.leader_chosen)
    };
    assert_eq!(wish(&cluster), (1, false));
    cluster.done(prefer(&cluster, 1, true));
    assert_eq!(wish(&cluster), (1, true), "it leads already, and is to stay");
    cluster.nothing(prefer(&cluster, 1, false));
    assert_eq!(wish(&cluster), (1, true), "both wish for it");
    cluster.done(prefer(&cluster, 2, false));
    assert_eq!(wish(&cluster), (2, false), "it could not stay");
    cluster.done(prefer(&cluster, 3, true));
    cluster.done(state(4, NodeState::Active, NodeState::Draining));
    assert_eq!(wish(&cluster), (3, true), "another node drains");
    cluster.done(state(4, NodeState::Draining, NodeState::Active));
    assert_eq!(wish(&cluster), (3, false), "leaders are spread anew");
}

#[test]
fn a_member_on_a_node_that_is_forgotten_is_seen_and_gets_no_place() {
    let mut cluster = Cluster::of(3, 3);
    cluster.record.nodes.retain(|node| node.node_id != 3);
    cluster.done(seen(0, 0, 2, &[1], &[(1, 1), (77, 3)]));
    assert_eq!(cluster.placed(0), [(1, 1)]);
    assert_eq!(cluster.record.next_replica_id, 78);
    let beyond = seen(0, 0, 3, &[1], &[(1, 1), (u64::MAX - 1, 2)]);
    assert_eq!(cluster.refused(beyond), "MEMBERSHIP_MALFORMED", "the ids after it must exist");
}

#[test]
fn a_replica_that_was_not_added_to_its_group_yet_keeps_its_place() {
    let mut cluster = Cluster::of(3, 3);
    let added = cluster.done(add(&cluster, 0, 2));
    cluster.done(seen(0, 0, 2, &[1], &[(1, 1)]));
    assert_eq!(cluster.placed(0), [(1, 1), (added.replica_id, 2)]);
    cluster.done(seen(0, 0, 3, &[1], &[(1, 1), (77, 3)]));
    assert_eq!(cluster.placed(0), [(1, 1), (added.replica_id, 2), (77, 3)], "a member gets a place");
    assert_eq!(cluster.record.next_replica_id, 78);
}

#[test]
fn a_member_gets_no_place_where_another_replica_of_its_shard_has_one() {
    let mut cluster = Cluster::of(3, 3);
    let added = cluster.done(add(&cluster, 0, 2));
    cluster.done(seen(0, 0, 2, &[1], &[(1, 1), (77, 2)]));
    assert_eq!(cluster.placed(0), [(1, 1), (added.replica_id, 2)]);
}

#[test]
fn a_place_that_nobody_needs_is_given_up() {
    let mut cluster = Cluster::with_a_spare_node();
    let added = cluster.done(add(&cluster, 1, 4)).replica_id;
    assert_eq!(cluster.refused(drop_replica(1, 2)), "REPLICA_IS_MEMBER");
    assert_eq!(cluster.refused(drop_replica(7, 2)), "SHARD_UNKNOWN");
    cluster.nothing(drop_replica(1, 99));
    let dropped = cluster.done(drop_replica(1, added));
    assert_eq!((dropped.replica_id, dropped.node_id), (added, 4));
    assert_eq!(cluster.placed(1), [(2, 1), (3, 2), (4, 3)]);
}

#[test]
fn places_of_a_group_that_was_not_seen_are_kept() {
    let mut cluster = Cluster::of(3, 3);
    cluster.done(Command::CreateShards(shards(cluster.record.epoch)));
    assert_eq!(cluster.refused(drop_replica(1, 2)), "GROUP_NOT_FORMED");
}

#[test]
fn the_place_of_a_replica_that_may_become_a_voter_or_that_moves_is_kept() {
    let mut cluster = Cluster::with_a_spare_node();
    let added = cluster.done(add(&cluster, 1, 4)).replica_id;
    let begin = BeginChange {
        shard_id: 1,
        group_id: 1,
        voter_replica_ids: vec![2, 3, added],
        expected_membership: Some(log_id(1)),
    };
    cluster.done(Command::BeginChange(begin));
    assert_eq!(cluster.refused(drop_replica(1, added)), "CHANGE_UNDER_WAY", "it may vote by now");
    let begin = BeginMove {
        shard_id: 2,
        from_replica_id: 5,
        to_node_id: 4,
        reason: kv_proto::disk::v1::MoveReason::Balance.into(),
        expected_epoch: cluster.record.epoch,
    };
    let moving = cluster.done(Command::BeginMove(begin)).replica_id;
    assert_eq!(cluster.refused(drop_replica(2, moving)), "MOVE_UNDER_WAY");
}
