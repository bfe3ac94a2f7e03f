//! Which moves begin, and which are given up.

use super::*;

/// A cluster of four where n2 drains and the first move has begun; its shard and target.
fn moving() -> (Script, ShardId, NodeId) {
    let mut script = static_start(4, 3, 2);
    script.world.drain(2).expect("three are enough");
    // Its target comes no further, or it would be over too soon.
    script.world.slow.extend(1..=4);
    script.run_to("begins to move");
    let moving = script.world.record.shards.iter().find_map(|shard| Some((shard.shard_id, shard.r#move?)));
    let (shard, under_way) = moving.expect("one moves");
    (script, ShardId(shard), NodeId(under_way.to_node_id))
}

fn gives_up(script: &mut Script, shard: ShardId) -> bool {
    let steps = script.plan().steps;
    steps.iter().any(|step| step.subject == Subject::Shard(shard) && step.to_string().contains("gives up"))
}

#[test]
fn a_move_to_a_silent_node_is_given_up() {
    let (mut script, shard, target) = moving();
    script.world.down.insert(target.0);
    script.silence = Duration::from_secs(29);
    assert!(!gives_up(&mut script, shard));
    script.silence = Duration::from_secs(30);
    assert!(gives_up(&mut script, shard));
    script.world.grant(target.0, 60_000).expect("nothing is under way");
    assert!(!gives_up(&mut script, shard), "it has leave to be away");
}

#[test]
fn a_move_that_comes_no_further_is_given_up() {
    let (mut script, shard, _) = moving();
    let id = script.world.record.shards.iter().find(|known| known.shard_id == shard.0);
    let id = id.and_then(|shard| shard.r#move).expect("it moves").move_id;
    script.seen.stalled = [(id, Duration::from_secs(119))].into();
    assert!(!gives_up(&mut script, shard));
    script.seen.stalled = [(id, Duration::from_secs(121))].into();
    assert!(gives_up(&mut script, shard));
    let slow = Patience { slowest_snapshot: 1, ..PATIENCE };
    let steps = plan(&script.world.record, &script.seen, ALONE, slow).steps;
    let given_up = steps.iter().any(|step| step.to_string().contains("gives up"));
    assert!(!given_up, "its snapshot may be under way still: {steps:?}");
}

#[test]
fn a_move_to_a_full_or_draining_node_is_given_up() {
    let (mut script, shard, target) = moving();
    script.seen.full.insert(target);
    assert!(gives_up(&mut script, shard));
    script.seen.full.clear();
    assert!(!gives_up(&mut script, shard));
    script.world.undrain(2).expect("it drains");
    script.world.drain(target.0).expect("three are enough");
    assert!(gives_up(&mut script, shard));
}

#[test]
fn a_move_whose_new_replica_is_placed_nowhere_is_given_up() {
    let (mut script, shard, target) = moving();
    assert!(!gives_up(&mut script, shard));
    let known = script.world.record.shards.iter_mut().find(|known| known.shard_id == shard.0);
    known.expect("it moves").replicas.retain(|placement| placement.node_id != target.0);
    assert!(gives_up(&mut script, shard));
    script.world.slow.clear();
    script.run();
    assert_eq!(
        script.world.state(2),
        NodeState::Drained,
        "another replica takes its place:\n{}",
        script.text
    );
}

#[test]
fn a_move_to_a_node_that_its_leader_does_not_hear_does_not_go_on() {
    let (mut script, shard, target) = moving();
    script.world.slow.clear();
    script.run_to(&format!("{shard}: meta observes"));
    script.look();
    let group = script.world.record.shards.iter().find(|known| known.shard_id == shard.0);
    let group = group.expect("it moves").group_id;
    let to = script.world.replica_on(target.0, group).expect("it was created");
    let changes = |script: &Script| {
        let plan = plan(&script.world.record, &script.seen, ALONE, PATIENCE);
        let steps = plan.steps.iter().filter(|step| step.subject == Subject::Shard(shard));
        steps.map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(changes(&script).len(), 1, "it has caught up: {}", script.text);
    let told = script.seen.groups.get_mut(&GroupId(group)).expect("it has a leader");
    told.progress.iter_mut().filter(|known| known.replica_id == to).for_each(|known| {
        known.heard_ms_ago = Some(60_000);
    });
    assert_eq!(changes(&script), Vec::<String>::new());
}

#[test]
fn a_target_that_was_given_up_is_chosen_again_only_when_there_is_no_other() {
    let (mut script, shard, target) = moving();
    script.world.register(5);
    let end = |script: &mut Script| {
        let mut steps = script.plan().steps.into_iter();
        let ends = steps.find(|step| step.to_string().contains("gives up"));
        script.take(&ends.expect("it is full"));
        script.seen.full.clear();
        script.seen.avoided.insert((shard, target));
    };
    script.seen.full.insert(target);
    end(&mut script);
    script.world.slow.clear();
    let goals = |script: &Script| -> Vec<u64> {
        let moves = script.world.record.shards.iter().filter(|known| known.shard_id == shard.0);
        moves.filter_map(|shard| Some(shard.r#move?.to_node_id)).collect()
    };
    script.run_to("begins to move");
    while goals(&script).is_empty() {
        assert!(script.round(), "{}", script.text);
    }
    assert_eq!(goals(&script), [5], "{}", script.text);

    let (mut script, shard, target) = moving();
    script.seen.full.insert(target);
    let mut steps = script.plan().steps.into_iter();
    let ends = steps.find(|step| step.to_string().contains("gives up")).expect("it is full");
    script.take(&ends);
    script.seen.full.clear();
    script.seen.avoided.insert((shard, target));
    script.world.slow.clear();
    script.run();
    assert_eq!(script.world.state(2), NodeState::Drained, "there is no other:\n{}", script.text);
}

#[test]
fn a_move_given_up_leaves_nothing_behind() {
    let (mut script, _, target) = moving();
    script.run();
    script.world.undrain(2).expect("it drains");
    script.world.slow.clear();
    script.run();
    for shard in &script.world.record.shards {
        assert!(shard.r#move.is_none() && shard.replicas.len() == 3, "{shard:?}");
        let replica = script.world.replica_on(target.0, shard.group_id);
        let placed = shard.replicas.iter().any(|placement| Some(placement.replica_id) == replica);
        assert!(replica.is_none() || placed, "#{target} keeps {replica:?}");
    }
}

#[test]
fn a_replica_that_leaves_is_not_created_again() {
    let mut script = static_start(4, 3, 2);
    script.world.drain(2).expect("three are enough");
    script.run_to("begins to move");
    script.world.undrain(2).expect("it drains");
    script.run_to("gives up");
    // A new controller does not know that its node never made it.
    script.seen = Seen::default();
    let steps: Vec<String> = script.plan().steps.iter().map(ToString::to_string).collect();
    assert!(steps.iter().all(|step| !step.contains("creates")), "{steps:?}");
    assert!(steps.iter().any(|step| step.contains("drops")), "{steps:?}");
}

#[test]
fn a_move_given_up_does_not_stand_in_the_way_of_the_next() {
    let mut script = static_start(5, 3, 1);
    script.world.down.insert(2);
    script.silence = Duration::from_secs(600);
    script.run_to("begins to move");
    let shard = script.world.record.shards.iter().find(|shard| shard.r#move.is_some()).expect("one moves");
    let (id, target) = (shard.shard_id, NodeId(shard.r#move.expect("it moves").to_node_id));
    // It comes no further, and there is no room for what it lacks.
    script.world.slow.insert(target.0);
    script.seen.full.insert(target);
    script.run();
    let shard = script.world.record.shards.iter().find(|shard| shard.shard_id == id).expect("it is there");
    let holders: BTreeSet<u64> = shard.replicas.iter().map(|placement| placement.node_id).collect();
    assert!(holders.len() == 3 && !holders.contains(&2) && !holders.contains(&target.0), "{}", script.text);
}

#[test]
fn a_shard_whose_bytes_do_not_fit_waits() {
    let mut script = static_start(4, 3, 2);
    script.world.drain(2).expect("three are enough");
    script.look();
    let begins = |script: &Script| {
        let plan = plan(&script.world.record, &script.seen, ALONE, PATIENCE);
        plan.steps.iter().filter(|step| step.to_string().contains("begins to move")).count()
    };
    assert!(begins(&script) > 0);
    for told in script.seen.nodes.values_mut() {
        told.disk_total_bytes = told.disk_used_bytes + 1;
    }
    assert_eq!(begins(&script), 0);
}
