//! Plans that are made again: after a decision, after half of the work, while somebody else is at it.

use super::*;

#[test]
fn what_was_decided_before_is_only_written() {
    let replaced = ReplacedShardGroup { group_id: 1, replica_id: 11, node_id: 1, last: at(5, 1234) };
    let mut evidence = lonely();
    let shard = &mut evidence.survivors[0].disk.record.as_mut().unwrap().shards[1];
    *shard = RecordedShard { group_id: 12, replaced: Some(replaced), ..shard.clone() };
    // Meta goes on alone already.
    evidence.survivors[0].disk.replicas[0].membership = membership(&[&[1]]);
    let plan = plan(&evidence, Scope::All, &without(&["n2", "n3"])).unwrap();
    assert_eq!(summary(&plan), ["0: keeps 1/1", "1: recover r11@n1 of g1, decided g12"]);
    assert_eq!(plan.seat, Seat::Idle);
    let [(1, request)] = &steps::disk_requests(&plan, &steps::decided(&plan), &envelope())[..] else {
        panic!()
    };
    assert_eq!((request.replicas[0].group_id, request.replicas[0].new_group_id), (1, 12));
}

/// The decision was lost with its survivor, and an older replica came to light.
#[test]
fn a_decision_for_a_survivor_that_is_lost_too_is_made_anew() {
    let replaced = ReplacedShardGroup { group_id: 1, replica_id: 13, node_id: 3, last: at(5, 2000) };
    let mut evidence = lonely();
    let shard = &mut evidence.survivors[0].disk.record.as_mut().unwrap().shards[1];
    *shard = RecordedShard { group_id: 12, replaced: Some(replaced), ..shard.clone() };
    let plan = plan(&evidence, Scope::All, &without(&["n2", "n3"])).unwrap();
    assert_eq!(summary(&plan)[1], "1: recover r11@n1 of g1");
    assert_eq!(steps::decisions(&plan)[0].expected_group_id, 12, "what meta knows now");
    let told = words::plan(&plan).join("\n");
    assert!(told.contains("group 12, of which nothing survives"), "{told}");
    assert!(told.contains("given up before: whatever was written since then is lost"), "{told}");
}

/// Another survivor came to light between the decision and the writing.
#[test]
fn a_longer_log_that_comes_to_light_after_the_decision_is_named() {
    let replaced = ReplacedShardGroup { group_id: 1, replica_id: 11, node_id: 1, last: at(5, 1234) };
    let mut evidence = two(vec![replica(1, 2, 1, (5, 2000))]);
    let shard = &mut evidence.survivors[0].disk.record.as_mut().unwrap().shards[1];
    *shard = RecordedShard { group_id: 12, replaced: Some(replaced), ..shard.clone() };
    evidence.survivors[0].disk.replicas[0].membership = membership(&[&[1]]);
    let plan = plan(&evidence, Scope::All, &without(&["n3"])).unwrap();
    assert_eq!(summary(&plan)[1], "1: recover r11@n1 of g1, decided g12");
    let told = words::plan(&plan).join("\n");
    assert!(told.contains("replica 12 on n2, whose log ends at term 5, index 2000: FURTHER"), "{told}");
}

/// Meta's leader wrote the decision into its log, and was gone before anybody agreed.
#[test]
fn a_decision_that_only_stands_at_the_end_of_a_log_was_not_taken() {
    let replaced = ReplacedShardGroup { group_id: 1, replica_id: 11, node_id: 1, last: at(5, 1234) };
    let mut evidence = two(vec![replica(0, 2, 0, (4, 88))]);
    evidence.survivors[1].disk.recovering = false;
    let disk = &mut evidence.survivors[0].disk;
    disk.settled = disk.record.clone();
    let record = disk.record.as_mut().unwrap();
    record.epoch += 1;
    record.shards[1] = RecordedShard { group_id: 12, replaced: Some(replaced), ..record.shards[1].clone() };
    let plan_of = |evidence: &Evidence| plan(evidence, Scope::Shard(1), &without(&["n3"])).unwrap();
    let plan = plan_of(&evidence);
    assert_eq!(summary(&plan), ["1: recover r11@n1 of g1"]);
    assert_eq!(plan.seat, Seat::Online("h2:1".parse().unwrap()), "whoever keeps the quorum is asked again");

    evidence.survivors[0].disk.settled = None;
    assert_eq!(summary(&plan_of(&evidence)), ["1: recover r11@n1 of g1, decided g12"]);
}

#[test]
fn a_plan_is_the_same_while_it_does_the_same() {
    let plan_of = |evidence: &Evidence| plan(evidence, Scope::All, &without(&["n3"])).unwrap();
    let evidence = two(Vec::new());
    let shown = plan_of(&evidence);
    let mut later = evidence.clone();
    later.survivors[1].disk.replicas.push(replica(2, 2, 2, (3, 3)));
    assert!(!plan_of(&later).does_as(&shown), "there is more to recover");
    let mut later = evidence.clone();
    later.survivors[0].disk.replicas[1].last = at(5, 1235);
    assert!(!plan_of(&later).does_as(&shown), "a log has grown");
    let mut later = evidence.clone();
    later.survivors[0].disk.replicas[0] =
        ReplicaOnDisk { membership: membership(&[&[1]]), ..replica(0, 1, 50, (5, 92)) };
    later.survivors[0].disk.record = Some(record(1_000_000_008, &[(0, 50), (1, 1)]));
    assert!(!plan_of(&later).does_as(&shown), "somebody else was first");
    let mut later = evidence;
    later.survivors[1].disk.version = "another".to_owned();
    assert!(plan_of(&later).does_as(&shown));
}
