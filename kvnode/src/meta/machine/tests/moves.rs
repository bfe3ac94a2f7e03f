use kv_proto::disk::v1::{
    MoveReason,
    meta_command::{BeginChange, BeginMove, Command, DropReplica, EndChange, EndMove, RemoveNode},
};

use super::*;

/// From r4 of s1, which lives on n3.
fn begin(cluster: &Cluster, to_node_id: u64, reason: MoveReason) -> BeginMove {
    let (shard_id, from_replica_id, expected_epoch) = (1, 4, cluster.record.epoch);
    BeginMove { shard_id, from_replica_id, to_node_id, reason: reason.into(), expected_epoch }
}

fn end(shard_id: u32, move_id: u64, abandoned: bool) -> Command {
    Command::EndMove(EndMove { shard_id, move_id, abandoned })
}

fn change(voters: &[u64], index: u64) -> BeginChange {
    let (shard_id, group_id) = (1, 1);
    let expected_membership = Some(log_id(index));
    BeginChange { shard_id, group_id, voter_replica_ids: voters.to_vec(), expected_membership }
}

#[test]
fn a_replica_moves_to_another_node() {
    let mut cluster = Cluster::with_a_spare_node();
    let asked = Command::BeginMove(begin(&cluster, 4, MoveReason::Drain));
    let begun = cluster.done(asked.clone());
    assert_eq!((begun.replica_id, begun.node_id), (8, 4));
    let again = cluster.nothing(asked);
    assert_eq!((again.replica_id, again.node_id), (8, 4), "a retry finds what it did");
    let known = cluster.shard(1).r#move.unwrap();
    assert_eq!((known.move_id, known.from_replica_id, known.from_node_id), (1, 4, 3));
    assert_eq!((known.reason(), known.begun_unix_ms), (MoveReason::Drain, 7_000));
    assert_eq!(cluster.placed(1), [(2, 1), (3, 2), (4, 3), (8, 4)], "the old one stays until it has left");
    assert_eq!(cluster.refused(end(1, 1, false)), "MOVE_UNDER_WAY");
    cluster.done(seen(1, 1, 2, &[2, 3, 4], &[(2, 1), (3, 2), (4, 3), (8, 4)]));
    assert_eq!(cluster.refused(end(1, 1, false)), "MOVE_UNDER_WAY");
    cluster.done(seen(1, 1, 3, &[2, 3, 8], &[(2, 1), (3, 2), (8, 4)]));
    assert_eq!(cluster.placed(1), [(2, 1), (3, 2), (8, 4)]);
    cluster.done(end(1, 1, false));
    assert_eq!(cluster.refused(end(1, 2, false)), "MOVE_MOVED_ON", "no such move was ever begun");
}

#[test]
fn a_move_that_is_given_up_leaves_its_new_replica_as_surplus() {
    let mut cluster = Cluster::with_a_spare_node();
    cluster.done(Command::BeginMove(begin(&cluster, 4, MoveReason::Balance)));
    cluster.done(end(1, 1, true));
    assert_eq!(cluster.placed(1), [(2, 1), (3, 2), (4, 3), (8, 4)]);
    cluster.done(Command::DropReplica(DropReplica { shard_id: 1, replica_id: 8 }));
    cluster.done(Command::BeginMove(begin(&cluster, 4, MoveReason::Balance)));
    assert_eq!(cluster.placed(1).last(), Some(&(9, 4)), "ids are never used again");
    assert_eq!(cluster.refused(end(1, 1, true)), "MOVE_MOVED_ON", "the second move is another one");
}

#[test]
fn a_damaged_replica_is_replaced_on_its_own_node() {
    let mut cluster = Cluster::with_a_spare_node();
    let wrong = Command::BeginMove(begin(&cluster, 3, MoveReason::Balance));
    assert_eq!(cluster.refused(wrong), "NODE_HOLDS_REPLICA");
    cluster.done(Command::BeginMove(begin(&cluster, 3, MoveReason::Damaged)));
    assert_eq!(cluster.placed(1), [(2, 1), (3, 2), (8, 3)], "the old place is given up at once");
    cluster.done(seen(1, 1, 2, &[2, 3, 4], &[(2, 1), (3, 2), (4, 3), (8, 3)]));
    assert_eq!(cluster.placed(1), [(2, 1), (3, 2), (8, 3)], "and not taken again while the group has both");
    cluster.done(seen(1, 1, 3, &[2, 3, 8], &[(2, 1), (3, 2), (8, 3)]));
    cluster.done(end(1, 1, false));
}

#[test]
fn a_member_without_a_place_can_be_moved() {
    let mut cluster = Cluster::with_a_spare_node();
    cluster.done(Command::BeginMove(begin(&cluster, 3, MoveReason::Damaged)));
    cluster.done(end(1, 1, true));
    cluster.done(Command::DropReplica(DropReplica { shard_id: 1, replica_id: 8 }));
    let asked = Command::BeginMove(begin(&cluster, 4, MoveReason::Damaged));
    cluster.done(asked);
    assert_eq!(cluster.shard(1).r#move.unwrap().from_node_id, 3);
}

#[test]
fn impossible_moves_are_refused() {
    let mut cluster = Cluster::with_a_spare_node();
    let good = begin(&cluster, 4, MoveReason::Drain);
    let mut refused = |edit: &dyn Fn(&mut BeginMove)| {
        let mut begin = good;
        edit(&mut begin);
        cluster.refused(Command::BeginMove(begin))
    };
    assert_eq!(refused(&|begin| begin.shard_id = 9), "SHARD_UNKNOWN");
    assert_eq!(refused(&|begin| begin.expected_epoch -= 1), "EPOCH_MOVED_ON");
    assert_eq!(refused(&|begin| begin.reason = 0), "MOVE_REASON_UNKNOWN");
    assert_eq!(refused(&|begin| begin.reason = 99), "MOVE_REASON_UNKNOWN");
    assert_eq!(refused(&|begin| begin.from_replica_id = 5), "REPLICA_UNKNOWN", "of another shard");
    assert_eq!(refused(&|begin| begin.to_node_id = 9), "NODE_UNKNOWN");
    assert_eq!(refused(&|begin| begin.to_node_id = 2), "NODE_HOLDS_REPLICA");
    cluster.done(Command::BeginMove(good));
    let other = BeginMove { from_replica_id: 3, expected_epoch: cluster.record.epoch, ..good };
    assert_eq!(cluster.refused(Command::BeginMove(other)), "MOVE_UNDER_WAY");
    cluster.done(end(1, 1, true));
    cluster.done(Command::DropReplica(DropReplica { shard_id: 1, replica_id: 8 }));
    cluster.done(state(4, NodeState::Active, NodeState::Draining));
    let late = Command::BeginMove(begin(&cluster, 4, MoveReason::Drain));
    assert_eq!(cluster.refused(late), "NODE_TAKES_NO_REPLICAS");
}

#[test]
fn nothing_moves_in_a_group_that_was_not_seen() {
    let mut cluster = Cluster::of(4, 3);
    cluster.done(Command::CreateShards(shards(cluster.record.epoch)));
    let early = Command::BeginMove(begin(&cluster, 4, MoveReason::Drain));
    assert_eq!(cluster.refused(early), "GROUP_NOT_FORMED");
}

#[test]
fn the_place_of_a_new_replica_outlives_its_absence_from_the_group_and_its_node() {
    let mut cluster = Cluster::with_a_spare_node();
    cluster.done(Command::BeginMove(begin(&cluster, 4, MoveReason::Drain)));
    cluster.done(seen(1, 1, 2, &[2, 3, 4], &[(2, 1), (3, 2), (4, 3), (8, 4)]));
    cluster.done(seen(1, 1, 3, &[2, 3, 4], &[(2, 1), (3, 2), (4, 3)]));
    assert_eq!(cluster.placed(1).last(), Some(&(8, 4)), "it was a learner, is none now, and still to come");
    cluster.done(Command::RemoveNode(RemoveNode { node_id: 4, lost: true, ..RemoveNode::default() }));
    cluster.done(seen(1, 1, 4, &[2, 3, 4], &[(2, 1), (3, 2), (4, 3)]));
    assert_eq!(cluster.placed(1).last(), Some(&(8, 4)), "until the move is given up");
    cluster.done(end(1, 1, true));
    cluster.done(seen(1, 1, 5, &[2, 3, 4], &[(2, 1), (3, 2), (4, 3)]));
    assert_eq!(cluster.placed(1), [(2, 1), (3, 2), (4, 3)]);
}

#[test]
fn a_change_of_voters_ends_when_a_later_membership_is_seen() {
    let mut cluster = Cluster::formed();
    let asked = change(&[2, 3], 1);
    cluster.done(Command::BeginChange(asked.clone()));
    cluster.nothing(Command::BeginChange(asked));
    assert_eq!(cluster.shard(1).change.as_ref().unwrap().begun_unix_ms, 7_000);
    assert_eq!(cluster.refused(Command::BeginChange(change(&[2], 1))), "CHANGE_UNDER_WAY");
    cluster.nothing(seen(1, 1, 1, &[2, 3, 4], &[(2, 1), (3, 2), (4, 3)]));
    assert!(cluster.shard(1).change.is_some(), "what it goes out from does not end it");
    cluster.done(seen(1, 1, 2, &[2, 3], &[(2, 1), (3, 2)]));
    assert!(cluster.shard(1).change.is_none());
}

#[test]
fn a_change_that_goes_out_from_a_membership_not_seen_yet_waits_for_a_later_one() {
    let mut cluster = Cluster::formed();
    cluster.done(Command::BeginChange(change(&[2, 3, 4], 5)));
    cluster.done(seen(1, 1, 5, &[2, 3, 4], &[(2, 1), (3, 2), (4, 3)]));
    assert!(cluster.shard(1).change.is_some());
    cluster.done(seen(1, 1, 6, &[2, 3, 4], &[(2, 1), (3, 2), (4, 3)]));
    assert!(cluster.shard(1).change.is_none());
}

#[test]
fn a_change_that_did_not_happen_is_ended() {
    let mut cluster = Cluster::formed();
    let end =
        |index: u64| Command::EndChange(EndChange { shard_id: 1, expected_membership: Some(log_id(index)) });
    cluster.nothing(end(1));
    cluster.done(Command::BeginChange(change(&[2, 3], 1)));
    assert_eq!(cluster.refused(end(2)), "CHANGE_MOVED_ON");
    cluster.done(end(1));
}

#[test]
fn impossible_changes_are_refused() {
    let mut cluster = Cluster::formed();
    let mut refused = |edit: &dyn Fn(&mut BeginChange)| {
        let mut asked = change(&[2, 3], 1);
        edit(&mut asked);
        cluster.refused(Command::BeginChange(asked))
    };
    assert_eq!(refused(&|asked| asked.shard_id = 9), "SHARD_UNKNOWN");
    assert_eq!(refused(&|asked| asked.group_id = 2), "GROUP_REPLACED");
    assert_eq!(refused(&|asked| asked.expected_membership = None), "MEMBERSHIP_MALFORMED");
    assert_eq!(refused(&|asked| asked.expected_membership = Some(log_id(0))), "MEMBERSHIP_MOVED_ON");
    assert_eq!(refused(&|asked| asked.voter_replica_ids.clear()), "VOTERS_MALFORMED");
    assert_eq!(refused(&|asked| asked.voter_replica_ids.push(2)), "VOTERS_MALFORMED");
    assert_eq!(refused(&|asked| asked.voter_replica_ids.push(5)), "REPLICA_UNKNOWN");
    let mut unseen = Cluster::of(3, 3);
    unseen.done(Command::CreateShards(shards(unseen.record.epoch)));
    assert_eq!(unseen.refused(Command::BeginChange(change(&[2, 3], 1))), "GROUP_NOT_FORMED");
}
