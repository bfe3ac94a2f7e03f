use super::*;
use crate::meta::world::World;

const ALONE: Expectation = Expectation { nodes: 1, wait_for_all: true };

/// A controller as simple as can be: every plan is carried out at once, in full, and written down.
struct Script {
    world: World,
    seen: Seen,
    expectation: Expectation,
    text: String,
}

impl Script {
    fn new(world: World, expectation: Expectation) -> Self {
        Self { world, seen: Seen::default(), expectation, text: String::new() }
    }

    fn say(&mut self, line: &str) {
        self.text += &format!("> {line}\n");
    }

    fn plan(&mut self) -> Plan {
        self.seen.heard = self.world.heard();
        self.seen.stopping = self.world.stopping.iter().copied().map(NodeId).collect();
        let groups: Vec<u64> = self.world.groups.keys().copied().collect();
        self.seen.groups = groups
            .into_iter()
            .filter_map(|group| Some((GroupId(group), self.world.describe(group)?)))
            .collect();
        plan(&self.world.record, &self.seen, self.expectation)
    }

    /// Takes one step; whether it was taken.
    fn take(&mut self, planned: &Planned) -> bool {
        match &planned.action {
            Action::Propose(command) => {
                self.world.propose(command).unwrap_or_else(|refusal| panic!("{planned}: {refusal:?}"));
                true
            }
            Action::Control { node, request } => {
                let answer = self.world.control(node.0, request).and_then(|answer| answer.response);
                let taken = matches!(answer, Some(kv_proto::peer::v1::control_response::Response::Done(_)));
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

    /// Rounds until there is nothing to do.
    fn run(&mut self) {
        for _ in 0..200 {
            let plan = self.plan();
            if plan.steps.is_empty() {
                for (shard, reason) in plan.waits {
                    self.text += &format!("{shard} waits: {reason}\n");
                }
                self.text += &self.world.text();
                return;
            }
            self.text += &format!("epoch {}\n", self.world.record.epoch);
            for planned in plan.steps {
                self.text += &format!("  {planned}\n");
                self.take(&planned);
            }
        }
        panic!("does not come to rest:\n{}", self.text);
    }
}

/// Compares with the golden file of this name; `UPDATE_GOLDEN=1` writes it.
fn assert_golden(name: &str, text: &str) {
    let path = format!("src/meta/golden/{name}.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == text, "{path} differs; UPDATE_GOLDEN=1 takes this:\n{text}");
}

#[test]
fn one_node_and_two_that_join_later() {
    let mut script = Script::new(World::founded(2, 3), ALONE);
    script.say("n1 founds a cluster of two shards");
    script.run();
    script.say("n2 joins");
    script.world.register(2);
    script.run();
    script.say("n3 joins");
    script.world.register(3);
    script.run();
    assert_golden("one-then-three", &script.text);
}

fn static_start(nodes: u8, factor: u32, shards: u32) -> Script {
    let expectation = Expectation { nodes: nodes.into(), wait_for_all: true };
    let mut script = Script::new(World::founded(shards, factor), expectation);
    script.say("n1 founds the cluster, alone so far");
    script.run();
    script.say("the others join");
    for number in 2..=nodes {
        script.world.register(number);
    }
    script.run();
    script
}

#[test]
fn static_start_of_three() {
    assert_golden("static-three", &static_start(3, 3, 3).text);
}

#[test]
fn static_start_of_five() {
    assert_golden("static-five", &static_start(5, 3, 5).text);
}

#[test]
fn a_node_that_does_not_answer() {
    let mut script = Script::new(World::founded(2, 3), Expectation { nodes: 3, wait_for_all: false });
    script.say("n3 registers and falls silent");
    script.world.register(2);
    script.world.register(3);
    script.world.down.insert(3);
    script.run();
    script.say("n3 comes back, n2 falls silent when the shards are placed");
    script.world.down.clear();
    while script.world.record.shards.len() == 1 {
        let planned = script.plan().steps;
        for step in planned {
            script.take(&step);
        }
    }
    script.world.down.insert(2);
    script.run();
    script.say("n2 comes back");
    script.world.down.clear();
    script.run();
    assert_golden("silent-node", &script.text);
}

#[test]
fn a_lost_disk_is_replaced() {
    let mut script = static_start(3, 3, 2);
    script.text.clear();
    script.say("n3 comes back with an empty disk");
    let node =
        kv_proto::disk::v1::NodeRecord { disk_uuid: vec![33; 16].into(), ..crate::meta::world::node(3) };
    script.world.down.insert(3);
    let register =
        kv_proto::disk::v1::meta_command::RegisterNode { node: Some(node), name_holder_alive: false };
    script.world.propose(&crate::meta::world::command(Command::RegisterNode(register))).unwrap();
    script.run();
    assert_golden("lost-disk", &script.text);
}

#[test]
fn a_joint_configuration_left_behind_is_finished() {
    let mut script = Script::new(World::founded(1, 3), ALONE);
    script.world.register(2);
    script.world.register(3);
    script.world.stay_joint = true;
    script.run();
    assert!(script.text.contains("was left joint"), "{}", script.text);
    assert!(script.world.groups.values().all(|group| view_of(group).voters.len() == 1));
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
        assert_eq!(leaders(&script), away, "while n{node} stops");
        script.world.stopping.clear();
        script.run();
        assert_eq!(leaders(&script), before, "n{node} is back");
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

fn view_of(group: &crate::meta::world::Group) -> Membership {
    membership(&group.membership)
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
    told.voters.push(kv_proto::disk::v1::VoterSet { replica_ids: vec![1, 2] });
    assert!(newer_membership(&shard, &description).is_none(), "joint");
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

#[test]
fn a_node_whose_disk_is_full_is_given_no_leadership_until_there_is_room() {
    let mut script = static_start(3, 3, 4);
    let shard = script.world.record.shards[1].clone();
    let preferred = NodeId(shard.preferred_leader_node_id);
    let other = placements(&shard).into_iter().find(|placement| placement.node != preferred);
    let other = other.expect("three nodes hold it").replica.0;
    script.world.groups.get_mut(&shard.group_id).expect("it was formed").leader = other;
    let transfers = |plan: &Plan| plan.steps.iter().filter(|step| is_transfer(step)).count();
    assert_eq!(transfers(&script.plan()), 1, "it should lead");
    script.seen.full = [preferred].into();
    assert!(script.plan().steps.is_empty(), "its disk is full");
    script.seen.full.clear();
    assert_eq!(transfers(&script.plan()), 1, "there is room again");
}
