//! A shard goes on without its group: that lost its quorum for good, and the shard continues in a new group, which begins
//! with one survivor of the old one.
//!
//! Who survived and that nobody better did is not checked here: a person decided it on the evidence that `kvctl recover`
//! showed. Here it is written down, once, and the old group is over with it: its id is less than the new one's, and by that
//! every node that hears of it knows that what it has of the old group must never vote or serve again.
//!
//! When meta itself goes on like this, the lost majority may have committed more than the survivor knows: records of later
//! epochs, and ids of nodes, replicas, groups and moves. So epoch and ids jump.

use kv_proto::{
    disk::v1::{
        MetaRecord, NodeIds, ReplacedGroup, ReplicaPlacement, ShardRecord, meta_command::ReplaceGroup,
    },
    peer::v1::Refusal,
};

use super::{
    Found, Told,
    check::{MAX_REPLICA_ID, check_group, invalid, node_index, shard_index},
};

/// How far the epoch jumps when meta is recovered: more changes than any cluster makes in its life, and few enough that it
/// can happen for ever.
pub const EPOCH_GAP: u64 = 1_000_000_000;

/// How far ids jump then: more than a lost majority may have given out since the survivor heard of it last.
pub const ID_GAP: u64 = 1_000_000;

pub(super) fn replace_group(
    record: &mut MetaRecord,
    replace: &ReplaceGroup,
    told: Told<'_>,
) -> Result<Found, Refusal> {
    let ReplaceGroup { shard_id, expected_group_id, replica_id, node_id, last } = *replace;
    let index = shard_index(record, shard_id)?;
    let found = Found { replica_id, ..Found::node(node_id) };
    if is_done(&record.shards[index], replace) {
        return Ok(found);
    }
    check_group(&record.shards[index], expected_group_id)?;
    node_index(record, node_id)?;
    if !(1..=MAX_REPLICA_ID).contains(&replica_id) {
        return Err(invalid("replica_id", "REPLICA_ID_MALFORMED", "the survivor has no replica id"));
    }
    if last.is_none() {
        return Err(invalid("last", "EVIDENCE_MISSING", "how far the survivor's log reaches is not said"));
    }
    // Raft is right: meta may not have heard of the survivor yet.
    record.next_replica_id = record.next_replica_id.max(replica_id + 1);
    if shard_id == 0 {
        jump(record);
    }
    let group_id = record.next_group_id;
    record.next_group_id += 1;
    let shard = &mut record.shards[index];
    *shard = ShardRecord {
        shard_id,
        group_id,
        slots: std::mem::take(&mut shard.slots),
        replicas: vec![ReplicaPlacement { replica_id, node_id }],
        preferred_leader_node_id: node_id,
        observed: None,
        // It forms nothing: the group is there when the survivor starts. But it is who is asked whether it is.
        initializer_node_id: node_id,
        r#move: None,
        change: None,
        replaced: Some(ReplacedGroup {
            group_id: expected_group_id,
            replica_id,
            node_id,
            last,
            unix_ms: told.unix_ms,
        }),
        leader_chosen: false,
    };
    record.epoch += 1;
    Ok(found)
}

/// The same was decided before. Who asks may have died before it heard of it.
fn is_done(shard: &ShardRecord, replace: &ReplaceGroup) -> bool {
    shard.replaced.is_some_and(|replaced| {
        let survivor = (replaced.replica_id, replaced.node_id);
        replaced.group_id == replace.expected_group_id
            && survivor == (replace.replica_id, replace.node_id)
            && shard.group_id != replace.expected_group_id
    })
}

fn jump(record: &mut MetaRecord) {
    record.recoveries += 1;
    record.epoch = record.epoch.saturating_add(EPOCH_GAP);
    // 0 counts as 1.
    record.next_move_id = record.next_move_id.max(1);
    let first = record.next_node_id;
    for id in [
        &mut record.next_node_id,
        &mut record.next_replica_id,
        &mut record.next_group_id,
        &mut record.next_move_id,
    ] {
        *id = id.saturating_add(ID_GAP);
    }
    record.lost_node_ids.push(NodeIds { first, end: record.next_node_id });
}

#[cfg(test)]
mod tests {
    use kv_proto::{
        disk::v1::{
            LogId, Member, Membership, MetaCommand, NodeRecord, NodeState, StoredMembership, VoterSet,
            meta_command::{Command, ObserveMembership, RegisterNode, RemoveNode},
        },
        peer::v1::MetaOutcome,
    };

    use super::*;
    use crate::{
        meta::{machine, world},
        refusal::reason,
    };

    /// Three nodes; meta in group 0 and shard 1 in group 1, replicas 1 to 3 and 4 to 6.
    fn record() -> MetaRecord {
        let node = |node_id: u64| NodeRecord {
            node_id,
            name: format!("n{node_id}"),
            state: NodeState::Active.into(),
            ..NodeRecord::default()
        };
        let shard = |shard_id: u32| ShardRecord {
            shard_id,
            group_id: shard_id.into(),
            replicas: (1..=3)
                .map(|node_id| ReplicaPlacement { replica_id: u64::from(shard_id) * 3 + node_id, node_id })
                .collect(),
            observed: Some(StoredMembership::default()),
            ..ShardRecord::default()
        };
        MetaRecord {
            cluster_id: "c".to_owned(),
            epoch: 7,
            replication_factor: 3,
            shard_count: 1,
            next_node_id: 4,
            next_replica_id: 7,
            next_group_id: 2,
            nodes: (1..=3).map(node).collect(),
            shards: vec![shard(0), shard(1)],
            ..MetaRecord::default()
        }
    }

    fn replace(shard_id: u32, expected_group_id: u64, replica_id: u64, node_id: u64) -> ReplaceGroup {
        let last = Some(LogId { term: 3, replica_id, index: 90 });
        ReplaceGroup { shard_id, expected_group_id, replica_id, node_id, last }
    }

    fn apply(record: &mut MetaRecord, replace: ReplaceGroup) -> Result<MetaOutcome, Refusal> {
        ask(record, Command::ReplaceGroup(replace))
    }

    fn ask(record: &mut MetaRecord, asked: Command) -> Result<MetaOutcome, Refusal> {
        let command = MetaCommand { command: Some(asked), ..MetaCommand::default() };
        let applied = machine::apply(record, &command, 0)?;
        Ok(applied.outcome)
    }

    #[test]
    fn a_shard_goes_on_in_a_new_group_with_the_survivor_alone() {
        let mut record = record();
        let outcome = apply(&mut record, replace(1, 1, 5, 2)).expect("replaced");
        assert_eq!((outcome.epoch, outcome.node_id, outcome.replica_id), (8, 2, 5));
        let shard = &record.shards[1];
        assert_eq!((shard.group_id, record.next_group_id), (2, 3));
        assert_eq!(shard.replicas, [ReplicaPlacement { replica_id: 5, node_id: 2 }]);
        assert_eq!(shard.observed, None, "of the new group nothing was seen yet");
        assert_eq!(shard.replaced.map(|old| (old.group_id, old.replica_id)), Some((1, 5)));
        assert_eq!((record.recoveries, record.next_replica_id), (0, 7), "nothing jumps: meta is what it was");
    }

    #[test]
    fn the_same_decision_is_taken_once_and_another_one_is_refused() {
        let mut record = record();
        apply(&mut record, replace(1, 1, 5, 2)).expect("replaced");
        let before = record.clone();
        apply(&mut record, replace(1, 1, 5, 2)).expect("done already");
        assert_eq!(record, before);
        let refused = apply(&mut record, replace(1, 1, 6, 3)).expect_err("another survivor");
        assert_eq!(refused.reason, reason::GROUP_REPLACED);
        assert_eq!(record, before);
        apply(&mut record, replace(1, 2, 5, 2)).expect("the survivor was lost too, and came back");
        assert_eq!(record.shards[1].group_id, 3);
    }

    #[test]
    fn with_meta_everything_that_a_lost_majority_may_have_given_out_is_jumped_over() {
        let mut record = record();
        apply(&mut record, replace(0, 0, 2, 2)).expect("replaced");
        assert_eq!((record.recoveries, record.epoch), (1, 7 + EPOCH_GAP + 1));
        assert_eq!((record.next_node_id, record.next_replica_id), (4 + ID_GAP, 7 + ID_GAP));
        assert_eq!((record.shards[0].group_id, record.next_group_id), (2 + ID_GAP, 3 + ID_GAP));
        assert_eq!(record.next_move_id, 1 + ID_GAP);
        assert_eq!(record.shards[1].group_id, 1, "the data shards stay as they are");
    }

    #[test]
    fn a_node_that_joined_in_what_was_lost_is_not_taken_for_one_that_was_removed() {
        let mut record = record();
        let joins = |node_id: u64, number: u8| {
            let node = NodeRecord { node_id, ..world::node(number) };
            Command::RegisterNode(RegisterNode { node: Some(node), name_holder_alive: false })
        };
        record.next_node_id = 6;
        apply(&mut record, replace(0, 0, 2, 2)).expect("replaced");
        let refused =
            |record: &mut MetaRecord, asked| ask(record, asked).expect_err("not one of them").reason;
        assert_eq!(
            refused(&mut record, joins(5, 15)),
            reason::NODE_REMOVED,
            "given out before, and not known"
        );
        assert_eq!(refused(&mut record, joins(6, 16)), reason::NODE_FORGOTTEN);
        assert_eq!(refused(&mut record, joins(5 + ID_GAP, 17)), reason::NODE_FORGOTTEN);
        let remove = Command::RemoveNode(RemoveNode { node_id: 6, lost: true, ..RemoveNode::default() });
        assert_eq!(refused(&mut record, remove), reason::NODE_UNKNOWN);
        assert_eq!(ask(&mut record, joins(0, 18)).expect("a new one").node_id, 6 + ID_GAP);
    }

    #[test]
    fn a_group_with_a_member_on_a_node_that_was_lost_with_meta_is_seen_so_that_the_others_are_needed() {
        let seen = |term, members: [(u64, u64); 3]| {
            let members = members.map(|(replica_id, node_id)| Member { replica_id, node_id });
            let voters =
                vec![VoterSet { replica_ids: members.iter().map(|member| member.replica_id).collect() }];
            let log_id = Some(LogId { term, replica_id: members[0].replica_id, index: 40 });
            let membership = Some(Membership { voters, members: members.to_vec() });
            StoredMembership { log_id, membership }
        };
        let mut record = record();
        record.shards[1].observed = Some(seen(1, [(4, 1), (5, 2), (6, 3)]));
        apply(&mut record, replace(0, 0, 2, 2)).expect("replaced");
        // These replicas came after what meta's survivor knows, and so did node 4.
        let now = seen(3, [(30, 1), (31, 2), (32, 4)]);
        let observe = ObserveMembership { shard_id: 1, group_id: 1, membership: Some(now.clone()) };
        ask(&mut record, Command::ObserveMembership(observe)).expect("Raft is right");
        let shard = &record.shards[1];
        assert_eq!(shard.observed, Some(now));
        let placed: Vec<_> = shard.replicas.iter().map(|known| (known.replica_id, known.node_id)).collect();
        assert_eq!(placed, [(30, 1), (31, 2)], "no map shows a node that nobody knows");
    }

    #[test]
    fn a_survivor_that_meta_never_heard_of_is_believed() {
        let mut record = record();
        apply(&mut record, replace(1, 1, 40, 2)).expect("Raft is right");
        assert_eq!(record.next_replica_id, 41, "its id is not given out again");
    }

    #[test]
    fn a_decision_that_makes_no_sense_is_refused_and_changes_nothing() {
        let mut record = record();
        record.nodes[2].state = NodeState::Removed.into();
        let before = record.clone();
        for (wrong, expected) in [
            (replace(9, 1, 5, 2), reason::SHARD_UNKNOWN),
            (replace(1, 7, 5, 2), reason::GROUP_REPLACED),
            (replace(1, 1, 5, 9), reason::NODE_UNKNOWN),
            (replace(1, 1, 6, 3), reason::NODE_IS_GONE),
            (replace(1, 1, 0, 2), "REPLICA_ID_MALFORMED"),
            (replace(1, 1, u64::MAX, 2), "REPLICA_ID_MALFORMED"),
            (ReplaceGroup { last: None, ..replace(1, 1, 5, 2) }, "EVIDENCE_MISSING"),
        ] {
            let refused = apply(&mut record, wrong).expect_err("makes no sense");
            assert_eq!(refused.reason, expected, "{wrong:?}");
            assert_eq!(record, before);
        }
    }
}
