use kv_proto::{
    disk::v1::{
        NodeRecord, NodeState,
        meta_command::{Bootstrap, Command, GrantPermit, RegisterNode, RemoveNode, SetZone},
    },
    peer::v1::refusal::Kind,
};

use super::*;

fn remove(node_id: u64) -> RemoveNode {
    RemoveNode { node_id, ..RemoveNode::default() }
}

fn lose(node_id: u64) -> RemoveNode {
    RemoveNode { node_id, lost: true, ..RemoveNode::default() }
}

/// A permit that is open for a minute.
fn permit(cluster: &Cluster, node_id: u64) -> Command {
    Command::GrantPermit(GrantPermit {
        token: format!("of n{node_id}"),
        node_id,
        ttl_ms: 60_000,
        outage_shard_ids: vec![],
        expected_epoch: cluster.record.epoch,
    })
}

#[test]
fn bootstrap_happens_once_and_its_retry_is_harmless() {
    let mut cluster = Cluster { record: MetaRecord::default(), now_ms: 0 };
    let bootstrap = |token: &str, number: u8, shards: u32, replication_factor: u32| {
        Command::Bootstrap(Bootstrap {
            cluster_id: "c".to_owned(),
            token: token.to_owned(),
            shards,
            replication_factor,
            node: Some(node(number)),
        })
    };
    assert_eq!(cluster.refused(bootstrap("t", 1, 0, 3)), "SHARD_COUNT_OUT_OF_RANGE");
    assert_eq!(cluster.refused(bootstrap("t", 1, 8, 2)), "REPLICATION_FACTOR_OUT_OF_RANGE");
    assert_eq!(cluster.register(node(1), false), Err("NOT_BOOTSTRAPPED".to_owned()));
    assert_eq!(cluster.record, MetaRecord::default());
    let first = cluster.done(bootstrap("t", 1, 8, 3));
    assert_eq!(cluster.nothing(bootstrap("t", 1, 8, 3)).node_id, first.node_id);
    assert_eq!(cluster.refused(bootstrap("other", 1, 8, 3)), "ALREADY_BOOTSTRAPPED");
    assert_eq!(cluster.refused(bootstrap("t", 2, 8, 3)), "ALREADY_BOOTSTRAPPED");
}

#[test]
fn a_disk_keeps_its_node_id_and_its_changes_are_noted() {
    let mut cluster = Cluster::of(1, 3);
    assert_eq!(cluster.register(node(2), false), Ok(2));
    let epoch = cluster.record.epoch;
    assert_eq!(cluster.register(node(2), true), Ok(2), "its own name is no obstacle");
    assert_eq!(cluster.record.epoch, epoch, "nothing changed");
    let moved = NodeRecord { boot_counter: 2, client_address: "elsewhere:1".to_owned(), ..node(2) };
    assert_eq!(cluster.register(moved, false), Ok(2));
    assert_eq!((cluster.record.epoch, cluster.node(2).client_address.as_str()), (epoch + 1, "elsewhere:1"));
}

#[test]
fn what_only_meta_knows_of_a_node_outlives_its_restart() {
    let mut cluster = Cluster::of(4, 3);
    let zone = Some("b".to_owned());
    cluster.done(Command::SetZone(SetZone { node_id: 2, zone: zone.clone() }));
    cluster.done(state(2, NodeState::Active, NodeState::Draining));
    let pretends = NodeRecord {
        boot_counter: 2,
        zone_label: Some("x".to_owned()),
        state_reason: "because".to_owned(),
        state_since_unix_ms: 9,
        ..node(2)
    };
    cluster.register(pretends, false).unwrap();
    let known = cluster.node(2);
    assert_eq!((known.boot_counter, known.state(), &known.zone_label), (2, NodeState::Draining, &zone));
    assert_eq!((known.state_reason.as_str(), known.state_since_unix_ms), ("to see", 7_000));
}

#[test]
fn a_clone_or_a_restored_volume_is_refused() {
    let mut cluster = Cluster::of(1, 3);
    let started = |boot_counter| NodeRecord { boot_counter, ..node(2) };
    assert_eq!(cluster.register(started(5), false), Ok(2));
    let kept = cluster.record.clone();
    assert_eq!(cluster.register(started(4), false), Err("DISK_CLONED_OR_RESTORED".to_owned()));
    let elsewhere = NodeRecord { peer_address: "elsewhere:1".to_owned(), ..started(5) };
    assert_eq!(cluster.register(elsewhere, false), Err("DISK_CLONED_OR_RESTORED".to_owned()));
    let renamed = NodeRecord { name: "n9".to_owned(), ..started(6) };
    assert_eq!(cluster.register(renamed, false), Err("DISK_OF_ANOTHER_NODE".to_owned()));
    assert_eq!(cluster.record, kept);
}

#[test]
fn two_starts_with_one_counter_are_those_of_a_disk_and_its_copy() {
    let mut cluster = Cluster::of(1, 3);
    assert_eq!(cluster.register(node(2), false), Ok(2));
    let start = |boot_id: &'static [u8]| NodeRecord { boot_counter: 2, boot_id: boot_id.into(), ..node(2) };
    assert_eq!(cluster.register(start(b""), false), Ok(2), "a join does not tell its start");
    assert_eq!(cluster.register(start(b"one"), false), Ok(2));
    assert_eq!(cluster.register(start(b""), false), Ok(2), "a join that comes again");
    assert_eq!(cluster.register(start(b"one"), false), Ok(2), "the same start again");
    let copy = cluster.register(start(b"two"), false);
    assert_eq!(copy, Err("DISK_CLONED_OR_RESTORED".to_owned()));
    let next = NodeRecord { boot_counter: 3, ..start(b"three") };
    assert_eq!(cluster.register(next, false), Ok(2));
}

#[test]
fn a_new_disk_supersedes_a_silent_holder_of_its_name() {
    let mut cluster = Cluster::of(2, 1);
    cluster.done(Command::SetZone(SetZone { node_id: 2, zone: Some("b".to_owned()) }));
    cluster.done(permit(&cluster, 2));
    let new_disk = NodeRecord { disk_uuid: vec![22; 16].into(), ..node(2) };
    assert_eq!(cluster.register(new_disk.clone(), true), Err("NODE_NAME_IN_USE".to_owned()));
    assert_eq!(cluster.register(new_disk, false), Ok(3));
    let old = cluster.node(2);
    assert_eq!(
        (old.state(), old.state_reason.as_str()),
        (NodeState::Removed, "a new disk took its name (#3)")
    );
    assert_eq!(cluster.node(3).zone_label.as_deref(), Some("b"), "it stands where the old one stood");
    assert!(cluster.record.permits.is_empty(), "a removed node needs no permit");
    assert_eq!(cluster.register(node(2), false), Err("NODE_REMOVED".to_owned()), "the old disk returns");
}

#[test]
fn malformed_nodes_are_refused_by_field() {
    let mut cluster = Cluster::of(1, 3);
    let cases = [
        (NodeRecord { name: "2n".to_owned(), ..node(2) }, "node.name"),
        (NodeRecord { name: String::new(), ..node(2) }, "node.name"),
        (NodeRecord { name: "a/b".to_owned(), ..node(2) }, "node.name"),
        (NodeRecord { disk_uuid: vec![1; 15].into(), ..node(2) }, "node.disk_uuid"),
        (NodeRecord { client_address: "host".to_owned(), ..node(2) }, "node.client_address"),
        (NodeRecord { peer_address: ":50061".to_owned(), ..node(2) }, "node.peer_address"),
        (NodeRecord { peer_address: "host:70000".to_owned(), ..node(2) }, "node.peer_address"),
        (NodeRecord { zone: "z".repeat(1_000), ..node(2) }, "node.zone"),
    ];
    for (node, field) in cases {
        let register = Command::RegisterNode(RegisterNode { node: Some(node), name_holder_alive: false });
        let refusal = apply(&mut cluster.record, &envelope(register), 0).unwrap_err();
        assert_eq!((refusal.kind(), refusal.field.as_str()), (Kind::InvalidArgument, field), "{refusal:?}");
    }
}

#[test]
fn a_node_goes_through_its_states_with_reason_and_time() {
    use NodeState::{Active, Drained, Draining, Joining, Lost};
    let mut cluster = Cluster::of(4, 3);
    for (from, to) in [
        (Active, Draining),
        (Draining, Active),
        (Active, Draining),
        (Draining, Drained),
        (Drained, Active),
        (Active, Lost),
        (Lost, Active),
        (Active, Draining),
        (Draining, Lost),
    ] {
        cluster.done(state(4, from, to));
        let known = cluster.node(4);
        assert_eq!((known.state(), known.state_since_unix_ms), (to, 7_000));
        assert_eq!(known.state_reason, "to see");
    }
    let joining = cluster.register(node(5), false).unwrap();
    cluster.done(state(joining, Joining, Lost));
}

#[test]
fn a_node_does_not_jump_between_states() {
    use NodeState::{Active, Drained, Draining, Joining, Lost, Removed, Unspecified};
    let mut cluster = Cluster::of(4, 3);
    for (from, to) in [
        (Joining, Draining),
        (Active, Drained),
        (Drained, Draining),
        (Lost, Draining),
        (Lost, Drained),
        (Active, Removed),
        (Removed, Active),
        (Active, Joining),
        (Active, Active),
        (Unspecified, Active),
        (Active, Unspecified),
    ] {
        assert_eq!(cluster.refused(state(2, from, to)), "NODE_STATE_CHANGE_UNKNOWN", "{from:?} to {to:?}");
    }
    assert_eq!(cluster.refused(state(2, Draining, Drained)), "NODE_STATE_CHANGED");
    assert_eq!(cluster.refused(state(9, Active, Draining)), "NODE_UNKNOWN");
    cluster.done(Command::RemoveNode(remove(4)));
    assert_eq!(cluster.refused(state(4, Lost, Active)), "NODE_IS_GONE");
}

#[test]
fn as_many_active_nodes_stay_as_the_replication_factor_asks_for() {
    use NodeState::{Active, Draining, Lost};
    let mut cluster = Cluster::of(5, 3);
    cluster.done(state(5, Active, Lost));
    cluster.done(state(4, Active, Draining));
    assert_eq!(
        cluster.refused(state(3, Active, Draining)),
        "TOO_FEW_NODES",
        "draining and lost ones do not stay"
    );
    let mut single = Cluster::of(3, 1);
    single.done(state(3, Active, Draining));
    single.done(state(2, Active, Draining));
    assert_eq!(single.refused(state(1, Active, Draining)), "TOO_FEW_NODES");
}

#[test]
fn a_node_is_drained_when_it_hosts_nothing() {
    use NodeState::{Active, Drained, Draining};
    let mut cluster = Cluster::with_a_spare_node();
    cluster.done(state(3, Active, Draining));
    assert_eq!(cluster.refused(state(3, Draining, Drained)), "NODE_NOT_EMPTY");
    cluster.done(seen(1, 1, 2, &[2], &[(2, 1)]));
    cluster.done(seen(2, 2, 2, &[5], &[(5, 1)]));
    cluster.done(state(3, Draining, Drained));
}

#[test]
fn a_drained_node_that_turns_out_to_host_something_drains_again() {
    use NodeState::{Active, Drained, Draining};
    let mut cluster = Cluster::with_a_spare_node();
    cluster.done(state(4, Active, Draining));
    cluster.done(state(4, Draining, Drained));
    cluster.done(seen(1, 1, 2, &[2, 3, 4], &[(2, 1), (3, 2), (4, 3), (77, 4)]));
    let known = cluster.node(4);
    assert_eq!((known.state(), known.state_reason.as_str()), (Draining, "s1 was seen with a replica there"));
    assert_eq!(cluster.refused(state(4, Draining, Drained)), "NODE_NOT_EMPTY");
}

#[test]
fn a_node_with_an_open_permit_is_not_lost() {
    use NodeState::{Active, Lost};
    let mut cluster = Cluster::of(3, 3);
    cluster.done(permit(&cluster, 2));
    assert_eq!(cluster.refused(state(2, Active, Lost)), "PERMIT_OPEN");
    cluster.clone().done(state(3, Active, Lost));
    assert_eq!(expire(&mut cluster.record, cluster.now_ms + 60_000).len(), 1);
    cluster.done(state(2, Active, Lost));
}

#[test]
fn an_empty_node_is_removed_and_never_comes_back() {
    let mut cluster = Cluster::with_a_spare_node();
    cluster.done(permit(&cluster, 4));
    assert_eq!(cluster.refused(Command::RemoveNode(remove(3))), "NODE_NOT_EMPTY");
    cluster.done(Command::RemoveNode(RemoveNode { alive: true, ..remove(4) }));
    assert_eq!(cluster.node(4).state(), NodeState::Removed);
    assert_eq!(cluster.node(4).state_reason, "to see");
    assert!(cluster.record.permits.is_empty());
    assert_eq!(cluster.nothing(Command::RemoveNode(lose(4))).node_id, 4, "removed is removed");
    assert_eq!(cluster.register(node(4), false), Err("NODE_REMOVED".to_owned()));
    assert_eq!(cluster.refused(Command::RemoveNode(remove(9))), "NODE_UNKNOWN");
}

#[test]
fn a_lost_node_is_removed_unless_it_lives_or_has_the_last_replica() {
    let mut cluster = Cluster::with_a_spare_node();
    assert_eq!(cluster.refused(Command::RemoveNode(RemoveNode { alive: true, ..lose(2) })), "NODE_IS_ALIVE");
    assert_eq!(
        cluster.refused(Command::RemoveNode(lose(1))),
        "DATA_LOSS_NOT_ACCEPTED",
        "meta lives there alone"
    );
    cluster.done(Command::RemoveNode(lose(2)));
    cluster.done(Command::RemoveNode(lose(3)));
    assert_eq!(cluster.placed(1), [(2, 1), (3, 2), (4, 3)], "what its groups have of it stays placed");
    cluster.done(seen(0, 0, 2, &[1], &[(1, 1), (99, 4)]));
    assert_eq!(
        cluster.refused(Command::RemoveNode(lose(1))),
        "DATA_LOSS_NOT_ACCEPTED",
        "neither a removed node nor a learner keeps the data"
    );
    cluster.done(Command::RemoveNode(RemoveNode { accept_data_loss: true, ..lose(1) }));
}

#[test]
fn nodes_that_were_removed_long_ago_are_forgotten_and_stay_removed() {
    let mut cluster = Cluster::formed();
    cluster.done(Command::RemoveNode(lose(3)));
    let numbered = |number: u64| NodeRecord {
        name: format!("x{number}"),
        disk_uuid: u128::from(number).to_be_bytes().to_vec().into(),
        ..node(4)
    };
    for number in 4..300 {
        let node_id = cluster.register(numbered(number), false).unwrap();
        assert_eq!(node_id, number);
        cluster.done(Command::RemoveNode(remove(node_id)));
    }
    let known: Vec<u64> = cluster.record.nodes.iter().map(|node| node.node_id).collect();
    let left: Vec<u64> = [1, 2, 3].into_iter().chain(45..300).collect();
    assert_eq!(known, left, "#3 is named by groups");
    let back = NodeRecord { node_id: 4, ..numbered(4) };
    assert_eq!(
        cluster.register(back, false),
        Err("NODE_REMOVED".to_owned()),
        "its disk is not known any more"
    );
    assert_eq!(cluster.nothing(Command::RemoveNode(remove(4))).node_id, 4);
    assert_eq!(cluster.register(numbered(300), false), Ok(300));
}

#[test]
fn a_label_wins_over_the_zone_that_a_node_tells() {
    let mut cluster = Cluster::of(2, 1);
    cluster.register(NodeRecord { boot_counter: 2, zone: "a".to_owned(), ..node(2) }, false).unwrap();
    let zone = |cluster: &Cluster| view::zone_of(cluster.node(2)).to_owned();
    let label =
        |label: Option<&str>| Command::SetZone(SetZone { node_id: 2, zone: label.map(str::to_owned) });
    assert_eq!(zone(&cluster), "a");
    cluster.nothing(label(None));
    cluster.done(label(Some("b")));
    assert_eq!(zone(&cluster), "b");
    assert!(view::node_info(cluster.node(2)).zone_labelled);
    cluster.done(label(Some("")));
    assert_eq!(zone(&cluster), "");
    cluster.done(label(None));
    assert_eq!(zone(&cluster), "a");
    assert_eq!(cluster.refused(label(Some(&"z".repeat(300)))), "TEXT_TOO_LONG");
    cluster.done(Command::RemoveNode(remove(2)));
    assert_eq!(cluster.refused(label(Some("b"))), "NODE_IS_GONE");
    assert_eq!(cluster.refused(Command::SetZone(SetZone { node_id: 7, zone: None })), "NODE_UNKNOWN");
}
