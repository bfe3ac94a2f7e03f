use kv_proto::disk::v1::{
    NodeState, Policy,
    meta_command::{Command, SetPolicy},
};

use super::{super::policy, *};

fn factor(factor: u32) -> Command {
    Command::SetPolicy(SetPolicy { replication_factor: Some(factor), ..SetPolicy::default() })
}

#[test]
fn what_was_never_set_has_its_default() {
    let mut cluster = Cluster::of(1, 3);
    assert_eq!(policy(&cluster.record), Policy { lost_node_grace_ms: 600_000, moves_at_once: 4 });
    cluster.nothing(Command::SetPolicy(SetPolicy { moves_at_once: Some(4), ..SetPolicy::default() }));
    cluster.done(Command::SetPolicy(SetPolicy { moves_at_once: Some(9), ..SetPolicy::default() }));
    assert_eq!(policy(&cluster.record), Policy { lost_node_grace_ms: 600_000, moves_at_once: 9 });
    let grace = SetPolicy { lost_node_grace_ms: Some(10_000), ..SetPolicy::default() };
    cluster.done(Command::SetPolicy(grace));
    assert_eq!(policy(&cluster.record), Policy { lost_node_grace_ms: 10_000, moves_at_once: 9 });
    let shown = view::policy(&cluster.record);
    assert_eq!((shown.replication_factor, shown.lost_node_grace_ms, shown.moves_at_once), (3, 10_000, 9));
}

#[test]
fn the_replication_factor_grows_no_further_than_there_are_active_nodes() {
    let mut cluster = Cluster::of(3, 1);
    cluster.nothing(factor(1));
    cluster.done(factor(3));
    assert_eq!(cluster.refused(factor(5)), "TOO_FEW_NODES");
    cluster.done(factor(1));
    cluster.done(state(3, NodeState::Active, NodeState::Draining));
    assert_eq!(cluster.refused(factor(3)), "TOO_FEW_NODES", "a draining node does not count");
    let mut founded = Cluster::of(1, 5);
    founded.done(factor(3));
    assert_eq!(founded.record.replication_factor, 3, "it may shrink to what is still too much");
}

#[test]
fn impossible_policies_are_refused_whole() {
    let mut cluster = Cluster::of(3, 3);
    for (set, reason) in [
        (
            SetPolicy { replication_factor: Some(2), ..SetPolicy::default() },
            "REPLICATION_FACTOR_OUT_OF_RANGE",
        ),
        (
            SetPolicy { replication_factor: Some(9), ..SetPolicy::default() },
            "REPLICATION_FACTOR_OUT_OF_RANGE",
        ),
        (
            SetPolicy { lost_node_grace_ms: Some(9_999), ..SetPolicy::default() },
            "LOST_NODE_GRACE_OUT_OF_RANGE",
        ),
        (
            SetPolicy { lost_node_grace_ms: Some(604_800_001), ..SetPolicy::default() },
            "LOST_NODE_GRACE_OUT_OF_RANGE",
        ),
        (SetPolicy { moves_at_once: Some(0), ..SetPolicy::default() }, "MOVES_AT_ONCE_OUT_OF_RANGE"),
        (
            SetPolicy { moves_at_once: Some(65), replication_factor: Some(1), ..SetPolicy::default() },
            "MOVES_AT_ONCE_OUT_OF_RANGE",
        ),
    ] {
        assert_eq!(cluster.refused(Command::SetPolicy(set)), reason);
    }
}
