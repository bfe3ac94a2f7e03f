//! Changes of voters: when they are finished, when they are given up, and what permits have to do with it.

use super::*;

/// A cluster of four where #2 drains and changes of voters have begun; their shards.
fn changing() -> (Script, Vec<ShardId>) {
    let mut script = static_start(4, 3, 2);
    script.world.drain(2).expect("three are enough");
    script.run_to("begins to change");
    let shards = script.world.record.shards.iter().filter(|shard| shard.change.is_some());
    let changing: Vec<ShardId> = shards.map(|shard| ShardId(shard.shard_id)).collect();
    assert!(changing.iter().any(|shard| !shard.is_meta()), "{}", script.text);
    (script, changing)
}

/// The same, and one data shard among them with its group.
fn one_changing() -> (Script, ShardId, u64) {
    let (script, changing) = changing();
    let data = changing.into_iter().find(|shard| !shard.is_meta()).expect("a data shard changes");
    let shard = script.world.record.shards.iter().find(|shard| shard.shard_id == data.0);
    let group = shard.expect("it is there").group_id;
    (script, data, group)
}

/// The steps of these shards.
fn steps_of(plan: &Plan, shards: &[ShardId]) -> Vec<Planned> {
    let is_theirs = |step: &&Planned| shards.iter().any(|shard| step.subject == Subject::Shard(*shard));
    plan.steps.iter().filter(is_theirs).cloned().collect()
}

fn words(steps: &[Planned]) -> Vec<String> {
    steps.iter().map(ToString::to_string).collect()
}

fn unasked(shards: &[ShardId], seconds: u64) -> BTreeMap<ShardId, Duration> {
    shards.iter().map(|shard| (*shard, Duration::from_secs(seconds))).collect()
}

/// Its leader died between the two halves of a change to these voters.
fn leave_joint(script: &mut Script, group: u64, replica_ids: Vec<u64>) {
    let group = script.world.groups.get_mut(&group).expect("it was formed");
    let told = group.membership.membership.as_mut().expect("it has one");
    told.voters.push(VoterSet { replica_ids });
    group.membership.log_id.as_mut().expect("formed").index += 1;
}

#[test]
fn a_joint_configuration_left_behind_is_finished() {
    let mut script = Script::new(World::founded(1, 3), ALONE);
    script.world.register(2);
    script.world.register(3);
    script.world.stay_joint = true;
    script.run();
    assert!(script.text.contains("was left joint"), "{}", script.text);
    assert!(script.memberships().iter().all(|membership| !membership.is_joint()));
}

#[test]
fn a_joint_configuration_that_nobody_began_takes_the_lock_first() {
    let mut script = static_start(3, 3, 1);
    leave_joint(&mut script, 1, vec![4, 5, 6]);
    script.text.clear();
    script.round();
    assert!(script.text.contains("s1: meta begins to change the voters to r4 r5 r6"), "{}", script.text);
    script.run();
    assert!(script.world.record.shards[1].change.is_none());
    assert!(script.memberships().iter().all(|membership| !membership.is_joint()));
}

#[test]
fn a_joint_configuration_is_finished_before_a_replica_is_created() {
    let mut script = static_start(3, 5, 1);
    script.world.register(4);
    script.run_to("s1: meta adds a replica");
    let next = |script: &mut Script| words(&steps_of(&script.plan(), &[ShardId(1)]));
    assert!(next(&mut script)[0].contains("creates"), "{:?}", next(&mut script));
    leave_joint(&mut script, 1, vec![4, 5, 6]);
    assert!(next(&mut script)[0].contains("begins to change"), "{:?}", next(&mut script));
    script.run();
    assert!(script.memberships().iter().all(|membership| !membership.is_joint()));
}

#[test]
fn a_replica_is_created_while_a_joint_configuration_cannot_be_finished() {
    let mut script = static_start(3, 5, 1);
    script.world.register(4);
    script.run_to("s1: meta adds a replica");
    leave_joint(&mut script, 1, vec![4, 5, 6]);
    script.world.grant(2, 60_000).expect("nothing was begun");
    let next = words(&steps_of(&script.plan(), &[ShardId(1)]));
    assert!(next.len() == 1 && next[0].contains("creates"), "{next:?}");
}

#[test]
fn a_change_that_is_needed_no_more_ends_when_no_request_can_be_on_its_way() {
    let (mut script, changing) = changing();
    // The new replicas are away before their groups were asked.
    script.world.down.insert(4);
    script.seen.unasked = unasked(&changing, 9);
    assert_eq!(steps_of(&script.plan(), &changing), [], "a request may be on its way");
    script.seen.unasked = unasked(&changing, 10);
    let ended = words(&steps_of(&script.plan(), &changing));
    assert!(ended.iter().all(|step| step.contains("forgets the change")), "{ended:?}");
    assert_eq!(ended.len(), changing.len());
    script.run();
    assert!(script.world.record.shards.iter().all(|shard| shard.change.is_none()));
}

#[test]
fn a_change_ends_when_the_leader_that_it_leaves_out_cannot_hand_over() {
    let (mut script, shard, group) = one_changing();
    let leaving = script.world.replica_on(2, group).expect("it leaves");
    script.world.groups.get_mut(&group).expect("it was formed").leader = leaving;
    for (seconds, expected) in [(9, "hands over"), (10, "forgets the change")] {
        script.seen.unasked = unasked(&[shard], seconds);
        let next = words(&steps_of(&script.plan(), &[shard]));
        assert!(next.len() == 1 && next[0].contains(expected), "after {seconds} s: {next:?}");
    }
}

#[test]
fn a_change_of_a_group_that_nobody_leads_ends_when_no_request_can_be_on_its_way() {
    let (mut script, shard, group) = one_changing();
    let others = script.world.record.shards.iter_mut().filter(|known| known.shard_id != shard.0);
    others.for_each(|known| known.change = None);
    let planned = |script: &mut Script, seconds: u64| {
        script.look();
        script.seen.groups.remove(&GroupId(group));
        script.seen.unasked = unasked(&[shard], seconds);
        plan(&script.world.record, &script.seen, ALONE, PATIENCE)
    };
    assert_eq!(steps_of(&planned(&mut script, 9), &[shard]), [], "a request may be on its way");
    script.world.grant(3, 60_000).expect_err("it may change its voters");
    let ended = steps_of(&planned(&mut script, 10), &[shard]);
    assert!(ended.len() == 1 && words(&ended)[0].contains("forgets the change"), "{ended:?}");
    assert!(script.take(&ended[0]));
    script.world.grant(3, 60_000).expect("whether its node may go is asked of the groups that it hosts");
}

#[test]
fn a_change_that_began_unseen_takes_the_lock_again_and_is_finished() {
    let (mut script, shard, group) = one_changing();
    let known = script.world.record.shards.iter_mut().find(|known| known.shard_id == shard.0);
    let begun = known.and_then(|known| known.change.take()).expect("its voters change");
    script.world.record.shards.iter_mut().for_each(|known| known.change = None);
    script.world.grant(3, 60_000).expect("no change is known");
    leave_joint(&mut script, group, begun.voter_replica_ids);
    let plan = script.plan();
    assert_eq!(steps_of(&plan, &[shard]), []);
    let waits = |(subject, reason): &(Subject, String)| {
        *subject == Subject::Shard(shard) && reason.contains("held by the permit of #3")
    };
    assert!(plan.waits.iter().any(waits), "{:?}", plan.waits);
    script.world.pass(60_000);
    script.run();
    assert!(script.memberships().iter().all(|membership| !membership.is_joint()), "{}", script.text);
    assert_eq!(script.world.state(2), NodeState::Drained, "{}", script.text);
}

#[test]
fn a_change_of_a_group_that_nobody_leads_ends_also_when_a_node_refuses_a_replica() {
    let (mut script, shard, group) = one_changing();
    for (seconds, expected) in [(9, "creates"), (10, "forgets the change")] {
        script.look();
        script.seen.groups.remove(&GroupId(group));
        script.seen.created.clear();
        script.seen.unasked = unasked(&[shard], seconds);
        let plan = plan(&script.world.record, &script.seen, ALONE, PATIENCE);
        let next = words(&steps_of(&plan, &[shard]));
        assert!(next.len() == 1 && next[0].contains(expected), "after {seconds} s: {next:?}");
    }
}

#[test]
fn a_joint_configuration_that_its_leader_leaves_is_finished_by_another_one() {
    let (mut script, shard, group) = one_changing();
    let leaving = script.world.replica_on(2, group).expect("it leaves");
    let known = script.world.record.shards.iter().find(|known| known.shard_id == shard.0);
    let begun = known.and_then(|known| known.change.clone()).expect("its voters change");
    leave_joint(&mut script, group, begun.voter_replica_ids);
    script.world.groups.get_mut(&group).expect("it was formed").leader = leaving;
    for seconds in [0, 60] {
        script.seen.unasked = unasked(&[shard], seconds);
        let next = words(&steps_of(&script.plan(), &[shard]));
        assert!(next.len() == 1 && next[0].contains("hands over"), "after {seconds} s: {next:?}");
    }
    script.run();
    assert!(script.memberships().iter().all(|membership| !membership.is_joint()), "{}", script.text);
}
