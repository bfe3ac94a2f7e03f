use super::*;
use crate::meta::{
    planner::groups::newer_membership,
    view::{membership, placements, some_node},
    world::World,
};
use kv_proto::{
    disk::v1::VoterSet,
    peer::v1::{Progress, control_response::Response},
};
use kv_topology::{Membership, quorum::odd_voters};

mod changes;
mod goldens;
mod meta;
mod moves;

const ALONE: Expectation = Expectation { nodes: 1, wait_for_all: true };

const PATIENCE: Patience = Patience {
    target_silence: Duration::from_secs(30),
    target_stall: Duration::from_secs(120),
    slowest_snapshot: 4 << 20,
    change: Duration::from_secs(10),
};

/// A controller as simple as can be: every plan is carried out at once, in full, and written down.
struct Script {
    world: World,
    seen: Seen,
    expectation: Expectation,
    /// Of nodes that are down.
    silence: Duration,
    text: String,
}

impl Script {
    fn new(world: World, expectation: Expectation) -> Self {
        let silence = Duration::from_secs(1);
        Self { world, seen: Seen::default(), expectation, silence, text: String::new() }
    }

    fn say(&mut self, line: &str) {
        self.text += &format!("> {line}\n");
    }

    fn look(&mut self) {
        let Self { world, seen, .. } = self;
        seen.me = NodeId(1);
        seen.heard = world.heard();
        seen.stopping = world.stopping.iter().copied().map(NodeId).collect();
        let all = world.record.nodes.iter().map(|node| NodeId(node.node_id));
        seen.silent =
            all.filter(|node| !seen.heard.contains(node)).map(|node| (node, self.silence)).collect();
        seen.nodes =
            seen.heard.iter().filter_map(|node| Some((*node, world.describe_node(node.0)?))).collect();
        let unfit = seen.nodes.values().flat_map(|told| &told.unfit_replica_ids);
        seen.unfit.extend(unfit.copied().map(ReplicaId));
        let groups: Vec<u64> = world.groups.keys().copied().collect();
        seen.groups =
            groups.into_iter().filter_map(|group| Some((GroupId(group), world.describe(group)?))).collect();
    }

    fn plan(&mut self) -> Plan {
        self.look();
        plan(&self.world.record, &self.seen, self.expectation, PATIENCE)
    }

    /// Takes one step; whether it was taken.
    fn take(&mut self, planned: &Planned) -> bool {
        match &planned.action {
            Action::Propose(command) => {
                let command = MetaCommand { reason: planned.reason.clone(), ..command.clone() };
                self.world.propose(&command).unwrap_or_else(|refusal| panic!("{planned}: {refusal:?}"));
                true
            }
            Action::Control { node, request } => {
                let answer = self.world.control(node.0, request).and_then(|answer| answer.response);
                let taken = matches!(answer, Some(Response::Done(_)));
                match &request.request {
                    Some(Request::CreateReplica(create)) if taken => {
                        self.seen.created.insert(ReplicaId(create.replica_id));
                    }
                    Some(Request::InitializeGroup(initialize)) if taken => {
                        self.seen.formed.insert(GroupId(initialize.group_id));
                    }
                    _ => {}
                }
                taken
            }
        }
    }

    /// One round; whether there was anything to do.
    fn round(&mut self) -> bool {
        let plan = self.plan();
        let mut subjects = BTreeSet::new();
        for step in &plan.steps {
            assert!(subjects.insert(step.subject), "two steps for {}: {:?}", step.subject, plan.steps);
            assert!(!step.reason.is_empty(), "{step} has no reason");
        }
        if plan.steps.is_empty() {
            for (subject, reason) in plan.waits {
                self.text += &format!("{subject} waits: {reason}\n");
            }
            return false;
        }
        self.text += &format!("epoch {}\n", self.world.record.epoch);
        for planned in plan.steps {
            self.text += &format!("  {planned}\n");
            self.take(&planned);
        }
        true
    }

    /// Rounds until there is nothing to do.
    fn run(&mut self) {
        for _ in 0..400 {
            if !self.round() {
                self.text += &self.world.text();
                return;
            }
        }
        panic!("does not come to rest:\n{}", self.text);
    }

    /// Rounds until a step of this kind was taken.
    fn run_to(&mut self, step: &str) {
        let begin = self.text.len();
        while !self.text[begin..].contains(step) {
            assert!(self.round(), "comes to rest before it {step}:\n{}", self.text);
        }
        self.text += "  ...\n";
    }

    /// The membership of each group.
    fn memberships(&self) -> Vec<Membership> {
        self.world.groups.values().map(view_of).collect()
    }
}

fn static_start(nodes: u8, factor: u32, shards: u32) -> Script {
    let expectation = Expectation { nodes: nodes.into(), wait_for_all: true };
    let mut script = Script::new(World::founded(shards, factor), expectation);
    script.say("#1 founds the cluster, alone so far");
    script.run();
    script.say("the others join");
    for number in 2..=nodes {
        script.world.register(number);
    }
    script.run();
    script
}

fn view_of(group: &crate::meta::world::Group) -> Membership {
    membership(&group.membership)
}

#[test]
fn a_node_that_stops_gets_its_leaderships_back_only_when_it_has_come_back() {
    let mut script = static_start(3, 3, 3);
    // Of the data groups: nobody has a preferred leader of meta.
    let leaders = |script: &Script| -> Vec<u64> {
        script.world.groups.iter().filter(|(group, _)| **group != 0).map(|(_, group)| group.leader).collect()
    };
    let before = leaders(&script);
    // It hands over what it leads, and lives on until its last request is answered.
    for node in 1..=3 {
        script.world.stopping.insert(node);
        for group in script.world.groups.keys().copied().collect::<Vec<_>>() {
            script.world.give_away(group);
        }
        let away = leaders(&script);
        script.run();
        assert_eq!(leaders(&script), away, "while #{node} stops");
        script.world.stopping.clear();
        script.run();
        assert_eq!(leaders(&script), before, "#{node} is back");
    }
}

#[test]
fn nothing_is_planned_when_all_are_stopping() {
    let mut script = static_start(3, 3, 3);
    script.world.give_away(1);
    assert!(!script.plan().steps.is_empty(), "its leader is not the preferred one");
    script.world.stopping.extend(1..=3);
    assert_eq!(script.plan(), Plan::default());
}

#[test]
fn an_uncommitted_or_joint_membership_is_not_observed() {
    let mut world = World::founded(1, 3);
    let shard = world.record.shards[0].clone();
    let mut description = world.describe(0).unwrap();
    assert!(newer_membership(&shard, &description).is_some());
    description.committed_index = 0;
    assert!(newer_membership(&shard, &description).is_none(), "not committed");
    description.committed_index = 9;
    let told = description.membership.as_mut().and_then(|stored| stored.membership.as_mut()).unwrap();
    told.voters.push(VoterSet { replica_ids: vec![1, 2] });
    assert!(newer_membership(&shard, &description).is_none(), "joint");
}

#[test]
fn a_replica_is_near_when_it_lags_little_and_its_leader_hears_of_it() {
    let near = Progress {
        replica_id: 1,
        matching_index: 9_000,
        heard_ms_ago: Some(5_000),
        lag_bytes: Some(8 << 20),
    };
    assert!(is_near(&near, 10_000));
    assert!(is_near(&Progress { heard_ms_ago: None, lag_bytes: None, ..near }, 10_000), "not told");
    assert!(!is_near(&near, 10_001), "too many entries");
    assert!(!is_near(&Progress { lag_bytes: Some((8 << 20) + 1), ..near }, 10_000), "too many bytes");
    assert!(
        !is_near(&Progress { heard_ms_ago: Some(5_001), ..near }, 10_000),
        "its leader does not hear of it"
    );
    assert!(!is_near(&Progress { matching_index: 0, ..near }, 1), "never reached");
}

fn transfers(plan: &Plan) -> usize {
    let is_transfer = |step: &&Planned| step.to_string().contains("hands over");
    plan.steps.iter().filter(is_transfer).count()
}

#[test]
fn a_node_whose_disk_is_full_is_given_no_leadership_until_there_is_room() {
    let mut script = static_start(3, 3, 4);
    let shard = script.world.record.shards[1].clone();
    let preferred = NodeId(shard.preferred_leader_node_id);
    let other = placements(&shard).into_iter().find(|placement| placement.node != preferred);
    let other = other.expect("three nodes hold it").replica.0;
    script.world.groups.get_mut(&shard.group_id).expect("it was formed").leader = other;
    assert_eq!(transfers(&script.plan()), 1, "it should lead");
    script.seen.full = [preferred].into();
    assert!(script.plan().steps.is_empty(), "its disk is full");
    script.seen.full.clear();
    assert_eq!(transfers(&script.plan()), 1, "there is room again");
}

#[test]
fn leaderships_leave_a_draining_node_before_its_replicas_do() {
    let mut script = static_start(4, 3, 8);
    script.world.drain(2).expect("three are enough");
    script.run_to("prefers leaders");
    let wishes = |script: &Script| -> Vec<u64> {
        script.world.record.shards[1..].iter().map(|shard| shard.preferred_leader_node_id).collect()
    };
    assert!(wishes(&script).iter().all(|node| *node != 2), "{}", script.text);
    script.round();
    let led = |script: &mut Script| -> Vec<Option<u64>> {
        let groups: Vec<u64> = script.world.groups.keys().copied().filter(|group| *group != 0).collect();
        groups.into_iter().map(|group| script.world.leader_node(group)).collect()
    };
    assert!(led(&mut script).iter().all(|node| *node != Some(2)), "{}", script.text);
    script.run();
    assert!(!script.text.contains("makes #2 Lost") && script.text.contains("makes #2 Drained"));
}

#[test]
fn a_leader_that_a_person_chose_stays_for_as_long_as_it_can_and_the_others_are_spread_around_it() {
    let mut script = static_start(4, 3, 4);
    let chosen = &mut script.world.record.shards[1];
    let other =
        placements(chosen).iter().find(|known| known.node.0 != chosen.preferred_leader_node_id).copied();
    let other = other.expect("three nodes hold it").node;
    (chosen.preferred_leader_node_id, chosen.leader_chosen) = (other.0, true);
    let wishes = |script: &Script| -> Vec<u64> {
        script.world.record.shards[1..].iter().map(|shard| shard.preferred_leader_node_id).collect()
    };
    script.run();
    assert_eq!(wishes(&script)[0], other.0);
    assert_eq!(wishes(&script).iter().collect::<BTreeSet<_>>().len(), 4, "{:?}", wishes(&script));
    // Whoever leads meta next knows nothing but the record.
    script.world.down.insert(other.0);
    script.seen = Seen::default();
    script.run();
    script.world.down.clear();
    script.seen = Seen::default();
    script.run();
    assert_eq!(wishes(&script)[0], other.0, "it was restarted");
    assert!(script.world.record.shards[1].leader_chosen);
    script.world.drain(other.0).expect("three are enough");
    script.run();
    assert_ne!(wishes(&script)[0], other.0, "it drains");
    assert!(!script.world.record.shards[1].leader_chosen);
}

#[test]
fn a_drained_node_that_was_silent_for_longer_than_the_grace_comes_back_drained() {
    let mut script = static_start(5, 3, 3);
    script.silence = Duration::from_secs(3_600);
    script.world.drain(5).expect("four are enough");
    script.run();
    assert_eq!(script.world.state(5), NodeState::Drained);
    script.world.down.insert(5);
    script.run();
    script.world.drain(4).expect("three are enough");
    script.world.down.insert(4);
    script.run();
    assert_eq!(
        script.world.state(4),
        NodeState::Drained,
        "it drained although it was silent: {}",
        script.text
    );
    script.world.down.clear();
    script.run();
    assert_eq!((script.world.state(4), script.world.state(5)), (NodeState::Drained, NodeState::Drained));
}

#[test]
fn a_silent_node_is_lost_only_after_the_grace_and_never_while_it_has_leave() {
    let mut script = static_start(4, 3, 2);
    let lost = |script: &mut Script| -> bool {
        script.plan().steps.iter().any(|step| step.to_string().contains("makes #2 Lost"))
    };
    script.world.grant(2, 3_600_000).expect("nothing is under way");
    script.world.down.insert(2);
    script.silence = Duration::from_secs(599);
    assert!(!lost(&mut script), "the grace time is ten minutes");
    script.silence = Duration::from_secs(600);
    assert!(!lost(&mut script), "it has a permit");
    script.world.pass(3_600_000);
    assert!(lost(&mut script), "the permit is overdue");
    script.seen.me = NodeId(2);
    let told = Seen { me: NodeId(2), ..script.seen.clone() };
    let plan = plan(&script.world.record, &told, ALONE, PATIENCE);
    assert!(plan.steps.iter().all(|step| step.subject != Subject::Node(NodeId(2))), "nobody loses itself");
}

#[test]
fn an_overdue_permit_ends_when_its_node_has_caught_up() {
    let mut script = static_start(3, 3, 2);
    let ends = |script: &mut Script| -> bool {
        script.plan().steps.iter().any(|step| step.subject == Subject::Permit(NodeId(2)))
    };
    script.world.grant(2, 60_000).expect("nothing is under way");
    assert!(!ends(&mut script), "it is open");
    script.world.down.insert(2);
    script.world.pass(60_000);
    assert!(!ends(&mut script), "it is away");
    script.world.down.clear();
    script.world.slow.insert(2);
    assert!(!ends(&mut script), "it lags");
    assert!(script.plan().waits[0].1.contains("overdue"));
    script.world.slow.clear();
    assert!(ends(&mut script));
    script.run();
    assert!(script.world.record.permits.is_empty(), "{}", script.text);
}

/// The controller dies after any step and forgets what was confirmed; nodes go down and come back in between.
mod killed_anywhere {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn the_cluster_comes_to_its_rest(
            nodes in 1_u8..6,
            factor in prop::sample::select(vec![1_u32, 3, 5]),
            shards in 1_u32..5,
            is_static: bool,
            kills in proptest::collection::vec((0_usize..6, proptest::option::of(1_u64..6), any::<bool>()), 0..40),
        ) {
            let expected = if is_static { usize::from(nodes) } else { 1 };
            let expectation = Expectation { nodes: expected, wait_for_all: true };
            let mut script = Script::new(World::founded(shards, factor), expectation);
            let mut joined = 1;
            for (steps, down, joint) in kills {
                if joined < nodes {
                    joined += 1;
                    script.world.register(joined);
                }
                script.world.down = down.into_iter().filter(|_| joined >= 3).collect();
                script.world.stay_joint = joint;
                let planned = script.plan().steps;
                for step in planned.into_iter().take(steps) {
                    if !script.take(&step) {
                        break;
                    }
                }
                script.seen = Seen::default();
            }
            for number in joined + 1..=nodes {
                script.world.register(number);
            }
            script.world.down.clear();
            script.world.stay_joint = false;
            script.run();
            let data = usize::from(nodes).min(factor as usize);
            for shard in script.world.record.shards.clone() {
                let id = ShardId(shard.shard_id);
                let wished = if id.is_meta() { usize::from(nodes).min(3.max(factor as usize)) } else { data };
                let seen = view_of(&script.world.groups[&shard.group_id]);
                prop_assert_eq!(seen.voters.len(), 1);
                prop_assert!(shard.replicas.len() >= odd_voters(wished, wished), "{}", script.text);
                prop_assert_eq!(seen.all_voters().len(), odd_voters(wished, wished), "{}", script.text);
                if !id.is_meta() {
                    let preferred = some_node(shard.preferred_leader_node_id);
                    let leader = script.world.leader_node(shard.group_id).map(NodeId);
                    prop_assert_eq!(preferred, leader, "{}", script.text);
                }
            }
        }
    }
}
