//! Scripts of what a controller does, step by step, with its reasons.

use super::*;

/// Compares with the golden file of this name; `UPDATE_GOLDEN=1` writes it.
fn assert_golden(name: &str, text: &str) {
    let path = format!("src/meta/golden/{name}.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == text, "{path} differs; UPDATE_GOLDEN=1 takes this:\n{text}");
}

/// A cluster that is at rest. How it came about is told by other scripts.
fn at_rest(nodes: u8, factor: u32, shards: u32) -> Script {
    let mut script = static_start(nodes, factor, shards);
    script.text = script.world.text();
    script
}

#[test]
fn one_node_and_two_that_join_later() {
    let mut script = Script::new(World::founded(2, 3), ALONE);
    script.say("#1 founds a cluster of two shards");
    script.run();
    script.say("#2 joins");
    script.world.register(2);
    script.run();
    script.say("#3 joins");
    script.world.register(3);
    script.run();
    assert_golden("one-then-three", &script.text);
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
    script.say("#3 registers and falls silent");
    script.world.register(2);
    script.world.register(3);
    script.world.down.insert(3);
    script.run();
    script.say("#3 comes back, #2 falls silent when the shards are placed");
    script.world.down.clear();
    while script.world.record.shards.len() == 1 {
        let planned = script.plan().steps;
        for step in planned {
            script.take(&step);
        }
    }
    script.world.down.insert(2);
    script.run();
    script.say("#2 comes back");
    script.world.down.clear();
    script.run();
    assert_golden("silent-node", &script.text);
}

#[test]
fn a_lost_disk_is_replaced() {
    let mut script = at_rest(3, 3, 2);
    script.say("#3 comes back with an empty disk");
    script.world.wipe(3);
    script.run();
    assert_golden("lost-disk", &script.text);
}

#[test]
fn a_drain_moves_everything_away() {
    let mut script = at_rest(4, 3, 3);
    script.say("#1 drains");
    script.world.drain(1).expect("three are enough");
    script.run();
    assert_golden("drain", &script.text);
}

#[test]
fn a_drain_is_cancelled_half_way() {
    let mut script = at_rest(4, 3, 3);
    script.say("#1 drains");
    script.world.drain(1).expect("three are enough");
    script.run_to("adds learner");
    script.say("#1 drains no more");
    script.world.undrain(1).expect("it drains");
    script.run();
    assert_golden("undrain", &script.text);
}

#[test]
fn a_lost_node_is_rebuilt_elsewhere_and_comes_back() {
    let mut script = at_rest(4, 3, 3);
    script.say("#2 is down for ten minutes");
    script.world.down.insert(2);
    script.run();
    script.say("ten minutes later");
    script.silence = Duration::from_secs(600);
    script.run_to("begins to change");
    script.run();
    script.say("#2 comes back");
    script.world.down.clear();
    script.run();
    assert_golden("lost", &script.text);
}

#[test]
fn a_node_that_is_removed_for_good() {
    let mut script = at_rest(4, 3, 3);
    script.say("#3 is removed: it will not come back");
    script.world.down.insert(3);
    script.world.remove_lost(3).expect("others hold what it holds");
    script.run();
    assert_golden("removed", &script.text);
}

#[test]
fn a_damaged_replica_is_replaced_on_its_own_node_when_there_is_no_other() {
    let mut script = at_rest(3, 3, 2);
    script.say("the replica of s1 on #2 is damaged");
    let damaged = script.world.replica_on(2, 1).expect("it holds one");
    script.world.damaged.insert(damaged);
    script.run();
    script.say("a fourth node joins");
    script.world.register(4);
    script.run();
    script.say("the replica of s2 on #3 is damaged");
    let damaged = script.world.replica_on(3, 2).expect("it holds one");
    script.world.damaged.insert(damaged);
    script.run();
    assert_golden("damaged", &script.text);
}

#[test]
fn three_nodes_become_five_and_three_again() {
    let mut script = at_rest(3, 3, 5);
    script.say("#4 and #5 join");
    script.world.register(4);
    script.world.register(5);
    script.run();
    script.say("#4 and #5 drain");
    script.world.drain(4).expect("four are enough");
    script.world.drain(5).expect("three are enough");
    script.run();
    assert_golden("three-five-three", &script.text);
}

#[test]
fn the_replication_factor_grows_and_shrinks() {
    let mut script = at_rest(5, 1, 2);
    for factor in [3, 5, 3] {
        script.say(&format!("the replication factor becomes {factor}"));
        script.world.set_factor(factor).expect("five nodes are there");
        script.run();
    }
    assert_golden("factor", &script.text);
}

#[test]
fn a_node_drains_with_one_copy_of_everything() {
    let mut script = at_rest(3, 1, 3);
    script.say("#3 drains");
    script.world.drain(3).expect("two stay");
    script.run();
    script.say("#1 drains");
    script.world.drain(1).expect("one stays");
    script.run();
    assert_golden("one-copy", &script.text);
}

#[test]
fn replicas_spread_over_zones() {
    let mut script = at_rest(5, 3, 2);
    script.say("#1 and #2 are in zone a, #3 and #4 in zone b, #5 in zone c");
    for (node, zone) in [(1, "a"), (2, "a"), (3, "b"), (4, "b"), (5, "c")] {
        script.world.label(node, zone);
    }
    script.run();
    assert_golden("zones", &script.text);
}

#[test]
fn a_permit_holds_changes_of_voters() {
    let mut script = at_rest(4, 3, 2);
    script.say("#1 has a permit for a minute, and #2 drains");
    script.world.grant(1, 60_000).expect("nothing is under way");
    script.world.drain(2).expect("three are enough");
    script.run();
    script.say("a minute later");
    script.world.pass(60_000);
    script.run();
    assert_golden("permit", &script.text);
}
