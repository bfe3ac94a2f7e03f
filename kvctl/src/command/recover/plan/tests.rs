//! Tables of survivors: what becomes of each shard, who decides it, and what is refused.

use kv_client::admin::{
    InspectResponse, MemberOnDisk, RecordedNode, ReplacedShardGroup, ReplicaOnDisk, VoterReplicas,
};

use super::{
    super::{
        evidence::Survivor,
        steps::{self, Envelope},
        words,
    },
    *,
};

mod decided;

/// Of replica 1: only its place counts.
fn at(term: u64, index: u64) -> Option<LogPosition> {
    Some(LogPosition { term, replica_id: 1, index })
}

fn membership(sets: &[&[u64]]) -> Option<MembershipOnDisk> {
    let set = |ids: &&[u64]| VoterReplicas { replica_ids: ids.to_vec() };
    let members = sets.iter().flat_map(|ids| ids.iter());
    let members = members.map(|id| MemberOnDisk { replica_id: *id, node_id: id % 10 });
    Some(MembershipOnDisk {
        at: at(1, 0),
        voters: sets.iter().map(set).collect(),
        members: members.collect(),
    })
}

/// A replica of a shard on a node: its id is ten times the shard's number and the node's.
fn replica(shard_id: u32, node: u64, group_id: u64, last: (u64, u64)) -> ReplicaOnDisk {
    let base = u64::from(shard_id) * 10;
    ReplicaOnDisk {
        shard_id,
        group_id,
        replica_id: base + node,
        vote_term: last.0,
        last: at(last.0, last.1),
        committed: at(last.0, last.1.saturating_sub(5)),
        applied: at(last.0, last.1.saturating_sub(10)),
        membership: membership(&[&[base + 1, base + 2, base + 3]]),
        applied_membership: membership(&[&[base + 1, base + 2, base + 3]]),
        ..ReplicaOnDisk::default()
    }
}

fn record(epoch: u64, groups: &[(u32, u64)]) -> RecordOnDisk {
    let node = |node_id: u64| RecordedNode {
        node_id,
        name: format!("n{node_id}"),
        client_address: format!("h{node_id}:1"),
        removed: false,
    };
    let shards = groups.iter().map(|(shard_id, group_id)| RecordedShard {
        shard_id: *shard_id,
        group_id: *group_id,
        ..RecordedShard::default()
    });
    RecordOnDisk {
        epoch,
        of_replica: true,
        nodes: (1..=3).map(node).collect(),
        shards: shards.collect(),
        ..RecordOnDisk::default()
    }
}

fn survivor(node_id: u64, recovering: bool, replicas: Vec<ReplicaOnDisk>, record: RecordOnDisk) -> Survivor {
    Survivor {
        address: format!("h{node_id}:1").parse().unwrap(),
        disk: InspectResponse {
            node_id,
            node_name: format!("n{node_id}"),
            cluster_id: "c".to_owned(),
            recovering,
            replicas,
            record: Some(record),
            ..InspectResponse::default()
        },
    }
}

const GROUPS: &[(u32, u64)] = &[(0, 0), (1, 1)];

/// One node of three, with meta and shard 1.
fn lonely() -> Evidence {
    let replicas = vec![replica(0, 1, 0, (4, 90)), replica(1, 1, 1, (5, 1234))];
    Evidence::of(vec![survivor(1, true, replicas, record(7, GROUPS))]).unwrap()
}

fn two(other: Vec<ReplicaOnDisk>) -> Evidence {
    let mut evidence = lonely();
    evidence.survivors.push(survivor(
        2,
        true,
        other,
        RecordOnDisk { of_replica: false, ..record(6, GROUPS) },
    ));
    evidence
}

fn without(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn envelope() -> Envelope {
    Envelope { actor: "test".to_owned(), reason: "gone".to_owned() }
}

/// `0: recover r1@n1 of g0`, `1: keeps 2/2`.
fn summary(plan: &Plan) -> Vec<String> {
    let fate = |group: &Group| match &group.fate {
        Fate::Keeps { present, needed } => format!("{}: keeps {present}/{needed}", group.shard),
        Fate::Unformed => format!("{}: unformed", group.shard),
        Fate::Gone => format!("{}: gone", group.shard),
        Fate::Recover(recovery) => {
            let Seen { replica_id, node_id, group_id, .. } = recovery.chosen;
            let decided = recovery.decided.map(|group| format!(", decided g{group}")).unwrap_or_default();
            format!("{}: recover r{replica_id}@n{node_id} of g{group_id}{decided}", group.shard)
        }
    };
    plan.groups.iter().map(fate).collect()
}

#[test]
fn the_only_survivor_goes_on_with_everything_and_decides_it_itself() {
    let evidence = lonely();
    let plan = plan(&evidence, Scope::All, &without(&["n2", "#3"])).unwrap();
    assert_eq!(summary(&plan), ["0: recover r1@n1 of g0", "1: recover r11@n1 of g1"]);
    assert_eq!(plan.lost, [2, 3]);
    assert!(matches!(plan.seat, Seat::Offline(seat) if seat.replica_id == 1), "{:?}", plan.seat);

    let (node, request) = steps::seat_request(&plan, &evidence, &envelope()).unwrap();
    let meta = request.meta.unwrap();
    assert_eq!((node, meta.replica_id, meta.group_id, meta.last), (1, 1, 0, at(4, 90)));
    let asked: Vec<_> = meta.replace.iter().map(|ask| (ask.shard_id, ask.replica_id, ask.last)).collect();
    assert_eq!(asked, [(1, 11, at(5, 1234))]);
    let written: Vec<_> =
        request.replicas.iter().map(|order| (order.replica_id, order.new_group_id)).collect();
    assert_eq!(written, [(11, 0)], "in the group that is decided with it");
    assert_eq!(request.fences, []);
    assert_eq!(steps::disk_requests(&plan, &steps::Groups::new(), &envelope()), [], "all in one request");
}

#[test]
fn whoever_is_missing_must_be_given_up_by_name() {
    let refused =
        |names: &[&str]| plan(&lonely(), Scope::All, &without(names)).expect_err("not all are given up");
    assert!(refused(&["n2"]).contains("n3 (h3:1) did not answer"), "{}", refused(&["n2"]));
    assert!(refused(&[]).contains("n2 (h2:1), n3 (h3:1) did not answer"));
    assert!(refused(&["n2", "n3", "n9"]).contains("no such node"));
    assert!(refused(&["n1", "n2", "n3"]).contains("--without n1: it answers, and is not lost"));
}

#[test]
fn a_quorum_that_survives_is_left_alone() {
    let evidence = two(vec![replica(0, 2, 0, (4, 88)), replica(1, 2, 1, (5, 1000))]);
    let plan = plan(&evidence, Scope::All, &without(&["n3"])).unwrap();
    assert_eq!(summary(&plan), ["0: keeps 2/2", "1: keeps 2/2"]);
    assert_eq!(plan.seat, Seat::Idle);
    assert_eq!(words::conditions(&plan), Vec::<String>::new());
}

#[test]
fn a_damaged_replica_does_not_count_for_a_quorum_and_is_not_chosen() {
    let damaged = ReplicaOnDisk { quarantine_reason: "a bit".to_owned(), ..replica(1, 2, 1, (9, 9999)) };
    let evidence = two(vec![replica(0, 2, 0, (4, 88)), damaged]);
    let plan = plan(&evidence, Scope::All, &without(&["n3"])).unwrap();
    assert_eq!(summary(&plan), ["0: keeps 2/2", "1: recover r11@n1 of g1"]);
    assert!(
        plan.warnings.iter().any(|warning| warning.contains("replica 12 of shard 1 cannot be used: a bit"))
    );
}

#[test]
fn both_halves_of_a_joint_membership_need_their_majority() {
    let joint = |node: u64| ReplicaOnDisk {
        membership: membership(&[&[11, 12, 13], &[11, 14, 15]]),
        ..replica(1, node, 1, (5, 1234))
    };
    let mut evidence = two(vec![replica(0, 2, 0, (4, 88)), joint(2)]);
    evidence.survivors[0].disk.replicas[1] = joint(1);
    let plan = plan(&evidence, Scope::All, &without(&["n3"])).unwrap();
    assert_eq!(summary(&plan), ["0: keeps 2/2", "1: recover r11@n1 of g1"]);
    let recovery = plan.groups[1].recovery().unwrap();
    assert_eq!((recovery.present, recovery.needed), (1, 2), "of the set that lacks most");
}

/// Five voters, of which two survive.
#[test]
fn the_later_term_wins_then_the_longer_log_then_the_voter() {
    let of_five = |node: u64, last: (u64, u64), learns: bool| {
        let voters: &[u64] = if learns { &[11, 13, 14, 15, 16] } else { &[11, 12, 13, 14, 15] };
        ReplicaOnDisk { membership: membership(&[voters]), ..replica(1, node, 1, last) }
    };
    for (first, second, second_learns, expected) in [
        ((5, 100), (5, 90), false, "r11@n1"),
        ((5, 100), (5, 110), false, "r12@n2"),
        ((5, 100), (6, 7), false, "r12@n2"),
        ((5, 100), (5, 100), false, "r11@n1"),
        ((5, 100), (5, 100), true, "r11@n1"),
        ((5, 100), (5, 101), true, "r12@n2"),
    ] {
        let mut evidence = two(vec![replica(0, 2, 0, (4, 88)), of_five(2, second, second_learns)]);
        evidence.survivors[0].disk.replicas[1] = of_five(1, first, second_learns);
        let plan = plan(&evidence, Scope::All, &without(&["n3"])).unwrap();
        assert_eq!(summary(&plan)[1], format!("1: recover {expected} of g1"), "{first:?} {second:?}");
    }
}

#[test]
fn the_survivors_that_are_not_chosen_are_fenced_on_their_disks() {
    let of_five = |node: u64, index: u64| ReplicaOnDisk {
        membership: membership(&[&[11, 12, 13, 14, 15]]),
        ..replica(1, node, 1, (5, index))
    };
    let of_meta = |node: u64, index: u64| ReplicaOnDisk {
        membership: membership(&[&[1, 2, 3, 4, 5]]),
        ..replica(0, node, 0, (4, index))
    };
    let mut evidence = two(vec![of_meta(2, 80), of_five(2, 2000)]);
    evidence.survivors[0].disk.replicas = vec![of_meta(1, 90), of_five(1, 1000)];
    let plan = plan(&evidence, Scope::All, &without(&["n3"])).unwrap();
    assert_eq!(summary(&plan), ["0: recover r1@n1 of g0", "1: recover r12@n2 of g1"]);

    let (_, first) = steps::seat_request(&plan, &evidence, &envelope()).unwrap();
    let fenced: Vec<_> = first.fences.iter().map(|fence| (fence.shard_id, fence.replica_id)).collect();
    assert_eq!((fenced, first.replicas.len()), (vec![(1, 11)], 0));
    let groups = steps::Groups::from([(0, 50), (1, 51)]);
    let others = steps::disk_requests(&plan, &groups, &envelope());
    let [(2, request)] = &others[..] else { panic!("{others:?}") };
    assert_eq!((request.meta.clone(), request.replicas[0].new_group_id), (None, 51));
    let fenced: Vec<_> = request.fences.iter().map(|fence| (fence.replica_id, fence.new_group_id)).collect();
    assert_eq!(fenced, [(2, 50)]);
}

#[test]
fn a_shard_is_decided_by_meta_where_it_runs_and_then_written() {
    let mut evidence = two(vec![replica(0, 2, 0, (4, 88))]);
    evidence.survivors[1].disk.recovering = false;
    let plan_of = |evidence: &Evidence| plan(evidence, Scope::Shard(1), &without(&["n3"])).unwrap();
    let plan = plan_of(&evidence);
    assert_eq!(summary(&plan), ["1: recover r11@n1 of g1"]);
    assert_eq!(plan.seat, Seat::Online("h2:1".parse().unwrap()));
    let asked = steps::questions(&plan, &envelope());
    assert_eq!(
        asked[0].replace.map(|ask| (ask.shard_id, ask.expected_group_id, ask.node_id)),
        Some((1, 1, 1))
    );
    let groups = steps::Groups::from([(1, 12)]);
    let [(1, request)] = &steps::disk_requests(&plan, &groups, &envelope())[..] else { panic!() };
    assert_eq!(request.replicas[0].new_group_id, 12);

    // The survivor runs: it is decided now, and written when it was started with --recovery.
    evidence.survivors[0].disk.recovering = false;
    assert_eq!(plan_of(&evidence).to_restart(), BTreeSet::from([1]));
    assert_eq!(steps::disk_requests(&plan_of(&evidence), &groups, &envelope()), []);
}

#[test]
fn meta_that_is_alone_already_decides_offline_and_nowhere_else() {
    let mut evidence = lonely();
    evidence.survivors[0].disk.replicas[0].membership = membership(&[&[1]]);
    let names = without(&["n2", "n3"]);
    let plan_of = |evidence: &Evidence| plan(evidence, Scope::Shard(1), &names).unwrap();
    assert!(matches!(plan_of(&evidence).seat, Seat::Offline(seat) if seat.replica_id == 1));
    evidence.survivors[0].disk.recovering = false;
    assert_eq!(plan_of(&evidence).seat, Seat::Online("h1:1".parse().unwrap()));
}

#[test]
fn meta_comes_first() {
    let refused = plan(&lonely(), Scope::Shard(1), &without(&["n2", "n3"])).expect_err("meta is lost");
    assert!(refused.contains("`kvctl recover meta` first"), "{refused}");
    let of_meta = plan(&lonely(), Scope::Meta, &without(&["n2", "n3"])).unwrap();
    assert_eq!(summary(&of_meta), ["0: recover r1@n1 of g0"]);
    let seen = steps::seat_request(&of_meta, &lonely(), &envelope()).unwrap().1.meta.unwrap().seen;
    assert_eq!(seen.iter().map(|seen| (seen.shard_id, seen.group_id)).collect::<Vec<_>>(), [(1, 1)]);
}

#[test]
fn meta_with_a_quorum_under_recovery_must_be_started_to_decide() {
    let evidence = two(vec![replica(0, 2, 0, (4, 88))]);
    let plan = plan(&evidence, Scope::All, &without(&["n3"])).unwrap();
    assert_eq!(summary(&plan), ["0: keeps 2/2", "1: recover r11@n1 of g1"]);
    assert!(
        matches!(&plan.seat, Seat::Nobody(why) if why.contains("start as many nodes")),
        "{:?}",
        plan.seat
    );
}

#[test]
fn disks_of_a_side_that_was_given_up_are_refused() {
    let mut evidence = two(Vec::new());
    let news = RecordOnDisk { of_replica: false, ..record(1_000_000_008, &[(0, 1_000_009), (1, 1_000_010)]) };
    evidence.survivors[1].disk.record = Some(news);
    let refused = plan(&evidence, Scope::All, &without(&["n3"])).expect_err("the cluster goes on elsewhere");
    assert!(refused.contains("goes on in group 1000009"), "{refused}");
}

#[test]
fn a_group_that_meta_lost_track_of_goes_on_even_with_a_quorum() {
    let of_later_group = |node: u64| replica(1, node, 30, (8, 50));
    let mut evidence = two(vec![replica(0, 2, 0, (4, 88)), of_later_group(2)]);
    evidence.survivors[0].disk.replicas[1] = of_later_group(1);
    evidence.survivors[0].disk.replicas[0].membership = membership(&[&[1]]);
    let plan = plan(&evidence, Scope::All, &without(&["n3"])).unwrap();
    assert_eq!(summary(&plan)[1], "1: recover r11@n1 of g30");
    assert_eq!(steps::decisions(&plan)[0].expected_group_id, 1);
    assert!(words::plan(&plan).iter().any(|line| line.contains("meta has lost track of that group")));
}

#[test]
fn a_shard_of_which_nothing_survives_is_named() {
    let mut evidence = lonely();
    evidence.survivors[0].disk.replicas.truncate(1);
    let of_all = plan(&evidence, Scope::All, &without(&["n2", "n3"])).unwrap();
    assert_eq!(summary(&of_all), ["0: recover r1@n1 of g0", "1: gone"]);
    assert!(words::plan(&of_all).iter().any(|line| line.contains("NOTHING SURVIVES")));
    evidence.survivors[0].disk.replicas.clear();
    let refused = plan(&evidence, Scope::All, &without(&["n2", "n3"])).expect_err("no meta");
    assert!(refused.contains("no replica of meta survives"), "{refused}");
}

#[test]
fn a_group_that_was_never_formed_has_nothing_to_lose() {
    let mut evidence = lonely();
    let placed =
        ReplicaOnDisk { last: None, membership: None, applied_membership: None, ..replica(1, 1, 1, (0, 0)) };
    evidence.survivors[0].disk.replicas[1] = placed;
    let plan = plan(&evidence, Scope::All, &without(&["n2", "n3"])).unwrap();
    assert_eq!(summary(&plan)[1], "1: unformed");
}

#[test]
fn an_empty_replica_of_a_group_that_was_at_work_is_no_survivor() {
    let mut evidence = lonely();
    let placed =
        ReplicaOnDisk { last: None, membership: None, applied_membership: None, ..replica(1, 1, 1, (0, 0)) };
    let disk = &mut evidence.survivors[0].disk;
    disk.replicas[1] = placed;
    disk.record.as_mut().unwrap().shards[1].formed = true;
    let plan = plan(&evidence, Scope::All, &without(&["n2", "n3"])).unwrap();
    assert_eq!(summary(&plan)[1], "1: gone");
    assert_eq!(plan.gone().collect::<Vec<_>>(), [1]);
}

/// Meta would refuse to see its membership, and could never mend it.
#[test]
fn a_quorum_with_replicas_on_nodes_that_meta_has_forgotten_goes_on_anew() {
    let on_later_node = |node: u64| ReplicaOnDisk {
        membership: membership(&[&[11, 12, 19]]),
        ..replica(1, node, 1, (5, 90))
    };
    let of_meta = |node: u64, index: u64| ReplicaOnDisk {
        membership: membership(&[&[1, 2, 3, 4, 5]]),
        ..replica(0, node, 0, (4, index))
    };
    let mut evidence = two(vec![of_meta(2, 80), on_later_node(2)]);
    evidence.survivors[0].disk.replicas = vec![of_meta(1, 90), on_later_node(1)];
    let of_all = plan(&evidence, Scope::All, &without(&["n3"])).unwrap();
    assert_eq!(summary(&of_all), ["0: recover r1@n1 of g0", "1: recover r11@n1 of g1"]);
    let told = words::plan(&of_all).join("\n");
    assert!(told.contains("replicas on nodes that meta does not know any more"), "{told}");

    // A meta that works knows them, or will.
    let meta = |node: u64| replica(0, node, 0, (4, 90));
    evidence.survivors[0].disk.replicas[0] = meta(1);
    evidence.survivors[1].disk.replicas[0] = meta(2);
    let of_all = plan(&evidence, Scope::All, &without(&["n3"])).unwrap();
    assert_eq!(summary(&of_all), ["0: keeps 2/2", "1: keeps 2/2"]);
}

#[test]
fn a_node_that_meta_does_not_know_any_more_counts_for_nothing() {
    let mut evidence = two(vec![replica(1, 2, 1, (5, 1000))]);
    evidence.survivors[1].disk.node_id = 9;
    evidence.survivors[1].disk.node_name = "n9".to_owned();
    let plan = plan(&evidence, Scope::All, &without(&["n2", "n3"])).unwrap();
    assert_eq!(summary(&plan), ["0: recover r1@n1 of g0", "1: recover r11@n1 of g1"]);
    assert!(plan.warnings[0].contains("n9 (node 9) is not among the nodes"), "{:?}", plan.warnings);
    assert!(!plan.sites.contains_key(&9));
}

#[test]
fn a_survivor_that_heard_more_than_meta_goes_on_with_is_a_warning() {
    let mut evidence = two(Vec::new());
    evidence.survivors[1].disk.record = Some(RecordOnDisk { of_replica: false, ..record(9, GROUPS) });
    let plan = plan(&evidence, Scope::All, &without(&["n3"])).unwrap();
    assert!(
        plan.warnings.iter().any(|warning| warning.contains("n2 last heard of epoch 9")),
        "{:?}",
        plan.warnings
    );
}

#[test]
fn what_is_kept_and_what_may_be_lost_is_said_exactly() {
    let plan = plan(&lonely(), Scope::All, &without(&["n2", "n3"])).unwrap();
    let told = words::plan(&plan).join("\n");
    for expected in [
        "shard 1: 1 of its voters survive, 2 are needed: its quorum is lost. It goes on with replica 11 on n1 alone",
        "Kept: everything up to term 5, index 1234. Lost: whatever was acknowledged after that",
        "n1 knew entries up to index 1229 to be committed: those from 1230 to 1234 may never have been acknowledged",
    ] {
        assert!(told.contains(expected), "{expected}\nis missing in\n{told}");
    }
    let conditions = words::conditions(&plan).join("\n");
    assert!(conditions.contains("Given up for good: n2, n3"), "{conditions}");
    assert!(conditions.contains("a majority of them goes on as the cluster that it was"), "{conditions}");
}

#[test]
fn answers_that_cannot_be_of_one_clusters_survivors_are_refused() {
    let with = |change: &dyn Fn(&mut InspectResponse)| {
        let mut survivors = two(Vec::new()).survivors;
        change(&mut survivors[1].disk);
        Evidence::of(survivors).expect_err("refused")
    };
    assert!(with(&|disk| disk.cluster_id = "d".to_owned()).contains("of cluster d"));
    assert!(with(&|disk| disk.cluster_id = String::new()).contains("belongs to no cluster"));
    assert!(with(&|disk| disk.node_id = 1).contains("a copy of its disk"));
    assert!(with(&|disk| disk.fenced = "a copy".to_owned()).contains("is fenced: a copy"));
    assert_eq!(Evidence::of(Vec::new()).expect_err("nobody"), "no node answered");
}
