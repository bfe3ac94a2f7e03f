//! How many replicas meta has.

use super::*;

/// Voters of meta, and replicas of it in all.
fn of_meta(script: &Script) -> (usize, usize) {
    let shard = &script.world.record.shards[0];
    (view_of(&script.world.groups[&shard.group_id]).all_voters().len(), shard.replicas.len())
}

#[test]
fn with_one_copy_of_everything_nodes_drain_down_to_the_last_one() {
    let mut script = static_start(3, 1, 3);
    assert_eq!(of_meta(&script), (3, 3));
    for (node, left) in [(3, (1, 2)), (2, (1, 1))] {
        script.world.drain(node).expect("one is enough");
        script.run();
        assert_eq!(
            (script.world.state(node), of_meta(&script)),
            (NodeState::Drained, left),
            "{}",
            script.text
        );
    }
    for node in [2, 3] {
        script.world.undrain(node).expect("it is drained");
    }
    script.run();
    assert_eq!(of_meta(&script), (3, 3), "{}", script.text);
}

#[test]
fn the_only_voter_of_meta_leaves_a_draining_node() {
    let mut script = static_start(3, 1, 3);
    script.world.drain(3).expect("two stay");
    script.run();
    let voter = script.world.leader_node(0).expect("it has a leader");
    script.world.drain(voter).expect("one stays");
    script.run();
    assert_eq!(
        (script.world.state(voter), of_meta(&script)),
        (NodeState::Drained, (1, 1)),
        "{}",
        script.text
    );
}

#[test]
fn two_nodes_drain_at_once_with_one_copy_of_everything() {
    let mut script = static_start(3, 1, 3);
    for node in [1, 2] {
        script.world.drain(node).expect("one is enough");
    }
    script.run();
    assert_eq!((script.world.state(1), script.world.state(2)), (NodeState::Drained, NodeState::Drained));
    assert_eq!(of_meta(&script), (1, 1), "{}", script.text);
}

#[test]
fn with_one_copy_of_everything_meta_goes_on_without_a_lost_node() {
    let mut script = static_start(3, 1, 1);
    script.world.down.insert(3);
    script.run();
    assert_eq!(of_meta(&script), (3, 3), "it is silent");
    script.silence = Duration::from_secs(600);
    script.run();
    assert_eq!((script.world.state(3), of_meta(&script)), (NodeState::Lost, (1, 2)), "{}", script.text);
    script.world.down.clear();
    script.run();
    assert_eq!((script.world.state(3), of_meta(&script)), (NodeState::Active, (3, 3)), "{}", script.text);
}

#[test]
fn a_node_that_joins_in_the_place_of_another_is_waited_for() {
    let mut script = static_start(3, 1, 1);
    script.text.clear();
    script.world.wipe(3);
    script.run();
    assert_eq!(of_meta(&script), (3, 3), "{}", script.text);
    assert!(!script.text.contains("one too many"), "meta does not shrink meanwhile: {}", script.text);
}

#[test]
fn a_lost_node_takes_no_voter_of_meta_when_three_copies_are_wished_for() {
    let mut script = static_start(3, 3, 1);
    script.world.down.insert(3);
    script.silence = Duration::from_secs(600);
    script.run();
    assert_eq!((script.world.state(3), of_meta(&script)), (NodeState::Lost, (3, 3)), "{}", script.text);
}
