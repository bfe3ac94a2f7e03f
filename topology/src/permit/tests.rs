use proptest::prelude::*;

use super::*;

const HEARTBEAT_MS: u64 = 150;
const SHARD: ShardId = ShardId(7);

/// A voter with its number on the node of the same number, and nothing wrong with it.
fn good(number: u64) -> Evidence {
    let (replica, node) = (ReplicaId(number), NodeId(number));
    Evidence { replica, node, heard_ms_ago: Some(HEARTBEAT_MS), lag_entries: 3, lag_bytes: Some(400) }
}

fn voters(numbers: impl IntoIterator<Item = u64>) -> Membership {
    Membership::uniform(numbers.into_iter().map(ReplicaId))
}

fn asked(factor: usize, membership: &Membership, members: Vec<Evidence>) -> Asked<'_> {
    Asked { shard: SHARD, factor, group: Some(Group { membership, members }) }
}

/// May n1 be restarted?
fn verdict(asked: &[Asked<'_>], down: &[u64]) -> Verdict {
    let down = down.iter().copied().map(NodeId).collect();
    evaluate(NodeId(1), &down, asked, HEARTBEAT_MS)
}

fn granted(outages: &[ShardId]) -> Verdict {
    Verdict::Granted { outages: outages.iter().copied().collect() }
}

fn at_risk(staying: usize, needed: usize, why: &[&str]) -> Verdict {
    let why = why.iter().map(ToString::to_string).collect();
    Verdict::Refused(vec![(Some(SHARD), Objection::QuorumAtRisk { staying, needed, why })])
}

#[test]
fn a_quorum_of_voters_that_have_caught_up_must_stay() {
    let three = voters([1, 2, 3]);
    let refused = |told: &str| at_risk(1, 2, &["r1 on #1 would be away", told]);
    let cases = [
        (good(3), granted(&[])),
        (Evidence { lag_entries: 1_000, ..good(3) }, granted(&[])),
        (Evidence { lag_entries: 1_001, ..good(3) }, refused("r3 on #3 lags 1001 entries behind")),
        (Evidence { lag_bytes: Some(1 << 20), ..good(3) }, granted(&[])),
        (
            Evidence { lag_bytes: Some((1 << 20) + 1), ..good(3) },
            refused("r3 on #3 lags 1048577 bytes behind"),
        ),
        (Evidence { lag_bytes: None, ..good(3) }, granted(&[])),
        (
            Evidence { lag_bytes: None, lag_entries: 1_001, ..good(3) },
            refused("r3 on #3 lags 1001 entries behind"),
        ),
        (Evidence { heard_ms_ago: Some(450), ..good(3) }, granted(&[])),
        (Evidence { heard_ms_ago: Some(451), ..good(3) }, refused("r3 on #3 was last heard of 451 ms ago")),
        (Evidence { heard_ms_ago: None, ..good(3) }, refused("r3 on #3 was never heard of")),
        (Evidence { replica: ReplicaId(9), ..good(3) }, refused("r3 is not known to its leader")),
    ];
    for (third, expected) in cases {
        let asked = [asked(3, &three, vec![good(1), good(2), third])];
        assert_eq!(verdict(&asked, &[]), expected, "{third:?}");
    }
}

#[test]
fn a_node_that_is_down_does_not_stay_whatever_its_leader_says() {
    let (three, five) = (voters([1, 2, 3]), voters(1..=5));
    let of_three = [asked(3, &three, (1..=3).map(good).collect())];
    let down = "r3 on #3 counts as down: stopping, silent, or not back yet";
    assert_eq!(verdict(&of_three, &[3]), at_risk(1, 2, &["r1 on #1 would be away", down]));
    assert_eq!(verdict(&of_three, &[4]), granted(&[]));
    let of_five = [asked(5, &five, (1..=5).map(good).collect())];
    assert_eq!(verdict(&of_five, &[3]), granted(&[]));
}

#[test]
fn learners_do_not_count() {
    let mut membership = voters([1]);
    membership.learners = [ReplicaId(2)].into();
    let asked = [asked(3, &membership, vec![good(1), good(2)])];
    assert_eq!(verdict(&asked, &[]), at_risk(0, 1, &["r1 on #1 would be away"]));
}

#[test]
fn a_replica_that_does_not_vote_costs_no_quorum() {
    let mut membership = voters([2, 3, 4]);
    membership.learners = [ReplicaId(1)].into();
    assert_eq!(verdict(&[asked(3, &membership, (1..=4).map(good).collect())], &[]), granted(&[]));
}

#[test]
fn the_only_replica_may_be_restarted_and_the_outage_is_said() {
    let one = voters([1]);
    assert_eq!(verdict(&[asked(1, &one, vec![good(1)])], &[]), granted(&[SHARD]));
    let silent = Asked { shard: SHARD, factor: 1, group: None };
    assert_eq!(verdict(&[silent], &[]), granted(&[SHARD]), "nobody leads it anyway");
    let three = voters([1, 2, 3]);
    let shrinking = [asked(1, &three, (1..=3).map(good).collect())];
    assert_eq!(verdict(&shrinking, &[]), granted(&[]), "it still has three voters");
}

#[test]
fn a_group_without_a_leader_refuses() {
    let silent = [Asked { shard: SHARD, factor: 3, group: None }];
    assert_eq!(verdict(&silent, &[]), Verdict::Refused(vec![(Some(SHARD), Objection::NoLeader)]));
}

#[test]
fn a_change_of_voters_refuses_whatever_the_factor() {
    let joint = Membership { voters: vec![[ReplicaId(1)].into(), [ReplicaId(2)].into()], ..voters([]) };
    for factor in [1, 3] {
        let changes = [asked(factor, &joint, vec![good(1), good(2)])];
        let expected = Verdict::Refused(vec![(Some(SHARD), Objection::ChangeUnderWay)]);
        assert_eq!(verdict(&changes, &[]), expected);
    }
}

#[test]
fn every_shard_that_would_suffer_is_named() {
    let (one, three) = (voters([1]), voters([1, 2, 3]));
    let group = |shard, factor, membership, members| Asked {
        shard: ShardId(shard),
        factor,
        group: Some(Group { membership, members }),
    };
    let asked = [
        group(0, 3, &three, vec![good(1), good(2), good(3)]),
        group(1, 3, &three, vec![good(1), good(2)]),
        group(2, 1, &one, vec![good(1)]),
        Asked { shard: ShardId(3), factor: 3, group: None },
    ];
    let Verdict::Refused(objections) = verdict(&asked, &[]) else { panic!("granted") };
    let named: Vec<ShardId> = objections.into_iter().filter_map(|(shard, _)| shard).collect();
    assert_eq!(named, [ShardId(1), ShardId(3)]);
}

#[test]
fn a_node_that_hosts_nothing_may_be_restarted() {
    assert_eq!(verdict(&[], &[2, 3]), granted(&[]));
}

/// A group as it is, apart from what its leader knows: who of its members would answer, and how far it is.
#[derive(Clone, Debug)]
struct Truth {
    factor: usize,
    membership: Membership,
    members: Vec<Evidence>,
    led: bool,
}

impl Truth {
    /// Whether the group decides without the replicas on `failed`, and with those only that have what is committed.
    fn decides_without(&self, failed: &BTreeSet<NodeId>) -> bool {
        self.membership.has_quorum(|voter| {
            let member = self.members.iter().find(|member| member.replica == voter);
            member.is_some_and(|member| {
                let near = member.lag_entries <= 1_000 && member.lag_bytes.unwrap_or(0) <= 1 << 20;
                let heard = member.heard_ms_ago.is_some_and(|ago| ago <= 3 * HEARTBEAT_MS);
                near && heard && !failed.contains(&member.node)
            })
        })
    }
}

prop_compose! {
    fn evidence(number: u64)(
        known in prop::bool::weighted(0.95),
        heard_ms_ago in prop_oneof![4 => (0_u64..450).prop_map(Some), 1 => (450_u64..9_000).prop_map(Some), 1 => Just(None)],
        lag_entries in prop_oneof![4 => 0_u64..1_001, 1 => 1_001_u64..50_000],
        lag_bytes in prop_oneof![4 => (0_u64..1 << 20).prop_map(Some), 1 => (1_u64 << 20..1 << 30).prop_map(Some), 1 => Just(None)],
    ) -> Option<Evidence> {
        known.then_some(Evidence { heard_ms_ago, lag_entries, lag_bytes, ..good(number) })
    }
}

prop_compose! {
    fn truth()(
        factor in prop::sample::select(vec![1_usize, 3, 5]),
        voters in proptest::collection::btree_set(1_u64..8, 0..6),
        next in proptest::option::weighted(0.1, proptest::collection::btree_set(1_u64..8, 1..6)),
        members in (1_u64..8).map(evidence).collect::<Vec<_>>(),
        led in prop::bool::weighted(0.9),
    ) -> Truth {
        let ids = |set: BTreeSet<u64>| set.into_iter().map(ReplicaId).collect();
        let voters = [Some(voters), next].into_iter().flatten().map(ids).collect();
        let membership = Membership { voters, learners: BTreeSet::new() };
        Truth { factor, membership, members: members.into_iter().flatten().collect(), led }
    }
}

proptest! {
    /// What is granted survives the restart, whatever else was known to be down; what survives is granted.
    #[test]
    fn a_permit_is_granted_just_when_the_restart_costs_no_quorum(
        truths in proptest::collection::vec(truth(), 0..5),
        down in proptest::collection::btree_set((1_u64..8).prop_map(NodeId), 0..3),
    ) {
        let shard = |at: usize| ShardId(u32::try_from(at).unwrap());
        let asked: Vec<Asked<'_>> = truths.iter().enumerate().map(|(at, truth)| {
            let Truth { factor, membership, members, led } = truth;
            let group = Group { membership, members: members.clone() };
            Asked { shard: shard(at), factor: *factor, group: led.then_some(group) }
        }).collect();
        let failed: BTreeSet<NodeId> = down.iter().copied().chain([NodeId(1)]).collect();
        let suffers = |truth: &Truth| !truth.led || !truth.decides_without(&failed);
        let changes = |truth: &Truth| truth.led && truth.membership.is_joint();
        match evaluate(NodeId(1), &down, &asked, HEARTBEAT_MS) {
            Verdict::Granted { outages } => {
                for (at, truth) in truths.iter().enumerate() {
                    prop_assert!(!changes(truth));
                    prop_assert_eq!(outages.contains(&shard(at)), suffers(truth));
                    prop_assert!(truth.factor == 1 || !suffers(truth), "{:?}", truth);
                }
            }
            Verdict::Refused(objections) => {
                prop_assert!(!objections.is_empty());
                for (at, truth) in truths.iter().enumerate() {
                    let named = objections.iter().any(|(named, _)| *named == Some(shard(at)));
                    prop_assert_eq!(named, changes(truth) || (truth.factor > 1 && suffers(truth)), "{:?}", truth);
                }
            }
        }
    }
}
