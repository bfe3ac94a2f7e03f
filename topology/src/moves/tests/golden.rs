//! The interesting ones, as people would tell them.

use super::model::{World, n};
use crate::map::NodeState;

/// Compares with the golden file of this name; `UPDATE_GOLDEN=1` writes it.
fn assert_golden(name: &str, world: &World) {
    let (path, text) = (format!("golden/moves-{name}.txt"), &world.text);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == *text, "{path} differs; UPDATE_GOLDEN=1 takes this:\n{text}");
}

impl World {
    fn scene(&mut self, line: &str) {
        self.say(line);
        self.settle();
        self.text += &self.table();
        self.begun.clear();
    }
}

#[test]
fn three_nodes_become_five_and_three_again() {
    let mut world = World::new(&[""; 3], 8, 3);
    world.scene("eight shards on three nodes");
    world.add_node("");
    world.add_node("");
    world.scene("#4 and #5 join");
    assert!(world.drain(n(2)));
    world.scene("#2 drains");
    assert!(world.drain(n(4)));
    world.scene("#4 drains");
    assert!(!world.drain(n(1)), "two nodes would stay");
    world.scene("#1 may not drain");
    assert_golden("three-five-three", &world);
}

#[test]
fn zones_appear() {
    let mut world = World::new(&[""; 6], 6, 3);
    world.scene("six shards on six nodes");
    for (node, zone) in (1..).zip(["a", "a", "b", "b", "c", "c"]) {
        world.host(n(node)).zone = zone.to_owned();
    }
    world.scene("#1 and #2 are in zone a, #3 and #4 in b, #5 and #6 in c");
    assert_golden("zones", &world);
}

#[test]
fn a_node_is_silent_then_lost_then_back() {
    let mut world = World::new(&[""; 4], 6, 3);
    world.scene("six shards on four nodes");
    world.host(n(2)).there = false;
    world.scene("#2 is silent");
    world.host(n(2)).state = NodeState::Lost;
    world.scene("#2 is lost");
    world.host(n(2)).state = NodeState::Active;
    world.host(n(2)).there = true;
    world.scene("#2 is back");
    assert_golden("lost", &world);
}

#[test]
fn the_factor_goes_up_and_down() {
    let mut world = World::new(&[""; 5], 5, 3);
    world.scene("five shards on five nodes, three replicas of each");
    world.factor = 5;
    world.scene("five replicas of each");
    world.factor = 3;
    world.scene("three again");
    world.factor = 1;
    world.scene("one of each");
    world.factor = 3;
    world.scene("three again");
    assert_golden("factor", &world);
}

#[test]
fn with_one_copy_of_everything_nodes_drain_down_to_the_last_one() {
    let mut world = World::new(&[""; 3], 3, 1);
    world.scene("three shards on three nodes, one replica of each; three of meta");
    for number in [3, 1] {
        assert!(world.drain(n(number)));
        world.scene(&format!("#{number} drains"));
        assert_eq!(world.host_of(n(number)).state, NodeState::Drained);
    }
    assert!(!world.drain(n(2)), "no node would stay");
    for number in [1, 3] {
        world.host(n(number)).state = NodeState::Active;
    }
    world.scene("#1 and #3 drain no more");
    assert_golden("one-copy", &world);
}

#[test]
fn a_drain_is_cancelled_half_way() {
    let mut world = World::new(&[""; 4], 8, 3);
    world.scene("eight shards on four nodes");
    assert!(world.drain(n(3)));
    world.say("#3 drains");
    for _ in 0..7 {
        world.round(&mut || false);
    }
    world.host(n(3)).state = NodeState::Active;
    world.scene("#3 drains no more");
    assert_golden("undrain", &world);
}

#[test]
fn a_disk_is_replaced() {
    let mut world = World::new(&[""; 3], 4, 3);
    world.scene("four shards on three nodes");
    world.host(n(3)).state = NodeState::Removed;
    world.add_node("");
    world.scene("the disk of #3 is empty: it is #4 now");
    let group = world.groups.values_mut().nth(2).unwrap();
    group.unfit.insert(group.placements[0].replica);
    world.scene("a replica of s2 is damaged");
    assert_golden("disk", &world);
}
