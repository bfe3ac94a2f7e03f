use kv_proto::disk::v1::{
    NodeState,
    meta_command::{BeginChange, Command, EndChange, EndPermit, GrantPermit, Note},
};

use super::{super::open_permit, *};

fn grant(cluster: &Cluster, token: &str, node_id: u64) -> GrantPermit {
    GrantPermit {
        token: token.to_owned(),
        node_id,
        ttl_ms: 60_000,
        outage_shard_ids: vec![],
        expected_epoch: cluster.record.epoch,
    }
}

fn end(token: &str) -> Command {
    Command::EndPermit(EndPermit { token: token.to_owned() })
}

fn change() -> BeginChange {
    let (shard_id, group_id, expected_membership) = (1, 1, Some(log_id(1)));
    BeginChange { shard_id, group_id, voter_replica_ids: vec![2, 3], expected_membership }
}

#[test]
fn one_permit_is_open_at_a_time() {
    let mut cluster = Cluster::formed();
    let asked = GrantPermit { outage_shard_ids: vec![1, 2], ..grant(&cluster, "a", 2) };
    assert_eq!(cluster.done(Command::GrantPermit(asked.clone())).node_id, 2);
    assert_eq!(cluster.nothing(Command::GrantPermit(asked)).node_id, 2, "a retry has its permit");
    let granted = open_permit(&cluster.record).unwrap();
    assert_eq!((granted.granted_log_ms, granted.expires_log_ms, granted.ttl_ms), (1_000, 61_000, 60_000));
    assert_eq!((granted.granted_unix_ms, granted.outage_shard_ids.as_slice()), (7_000, &[1, 2][..]));
    let other = Command::GrantPermit(grant(&cluster, "b", 3));
    assert_eq!(cluster.refused(other), "PERMIT_OPEN");
    let same = Command::GrantPermit(grant(&cluster, "b", 2));
    assert_eq!(cluster.refused(same), "PERMIT_OPEN");
    assert_eq!(cluster.refused(Command::GrantPermit(grant(&cluster, "a", 3))), "PERMIT_TOKEN_IN_USE");
    assert_eq!(cluster.refused(end("b")), "PERMIT_UNKNOWN", "a release must carry the token");
    assert_eq!(cluster.done(end("a")).node_id, 2);
    cluster.nothing(end("b"));
    cluster.done(Command::GrantPermit(grant(&cluster, "b", 3)));
}

#[test]
fn permits_and_changes_of_voters_keep_each_other_out() {
    let mut cluster = Cluster::formed();
    cluster.done(Command::BeginChange(change()));
    let asked = Command::GrantPermit(grant(&cluster, "a", 2));
    assert_eq!(cluster.refused(asked), "CHANGE_UNDER_WAY");
    cluster.done(Command::EndChange(EndChange { shard_id: 1, expected_membership: Some(log_id(1)) }));
    cluster.done(Command::GrantPermit(grant(&cluster, "a", 2)));
    assert_eq!(cluster.refused(Command::BeginChange(change())), "PERMIT_OPEN");
    cluster.done(end("a"));
    cluster.done(Command::BeginChange(change()));
}

#[test]
fn a_permit_expires_in_log_time_and_its_node_stays_noted() {
    let mut cluster = Cluster::formed();
    let asked = grant(&cluster, "a", 2);
    cluster.done(Command::GrantPermit(asked.clone()));
    let before = cluster.record.clone();
    assert_eq!(expire(&mut cluster.record, 60_999), []);
    assert_eq!(cluster.record, before);
    let entries = expire(&mut cluster.record, 61_000);
    assert_eq!(cluster.record.epoch, before.epoch + 1);
    let [entry] = &entries[..] else { panic!("{entries:?}") };
    assert_eq!((entry.sequence, entry.epoch), (before.next_journal_sequence, cluster.record.epoch));
    let command = entry.command.clone().unwrap();
    let note = Note { shard_id: None, node_id: 2, event: "permit of #2 is overdue".to_owned() };
    assert_eq!((command.actor.as_str(), command.unix_ms), ("meta", 67_000));
    assert_eq!(command.command, Some(Command::Note(note)));
    assert!(cluster.record.permits[0].overdue && open_permit(&cluster.record).is_none());
    assert_eq!(expire(&mut cluster.record, 99_000), [], "once");
    assert_eq!(cluster.refused(Command::GrantPermit(asked)), "PERMIT_UNKNOWN", "a late retry has none");
    cluster.clone().done(Command::BeginChange(change()));
    cluster.done(Command::GrantPermit(grant(&cluster, "b", 3)));
    assert_eq!(cluster.record.permits.len(), 2, "the overdue one is remembered");
    cluster.done(end("a"));
}

#[test]
fn a_new_permit_takes_the_place_of_the_overdue_one_of_its_node() {
    let mut cluster = Cluster::formed();
    cluster.done(Command::GrantPermit(grant(&cluster, "a", 2)));
    expire(&mut cluster.record, 61_000);
    cluster.done(Command::GrantPermit(grant(&cluster, "b", 2)));
    let tokens: Vec<&str> = cluster.record.permits.iter().map(|permit| permit.token.as_str()).collect();
    assert_eq!(tokens, ["b"]);
}

#[test]
fn impossible_permits_are_refused() {
    let mut cluster = Cluster::formed();
    let good = grant(&cluster, "a", 2);
    let mut refused = |edit: &dyn Fn(&mut GrantPermit)| {
        let mut asked = good.clone();
        edit(&mut asked);
        cluster.refused(Command::GrantPermit(asked))
    };
    assert_eq!(refused(&|asked| asked.token.clear()), "PERMIT_TOKEN_MALFORMED");
    assert_eq!(refused(&|asked| asked.token = "x".repeat(300)), "PERMIT_TOKEN_MALFORMED");
    assert_eq!(refused(&|asked| asked.ttl_ms = 999), "PERMIT_TTL_OUT_OF_RANGE");
    assert_eq!(refused(&|asked| asked.ttl_ms = 3_600_001), "PERMIT_TTL_OUT_OF_RANGE");
    assert_eq!(refused(&|asked| asked.outage_shard_ids.push(9)), "SHARD_UNKNOWN");
    assert_eq!(refused(&|asked| asked.node_id = 9), "NODE_UNKNOWN");
    assert_eq!(refused(&|asked| asked.expected_epoch -= 1), "EPOCH_MOVED_ON");
    cluster.done(state(2, NodeState::Active, NodeState::Lost));
    let asked = Command::GrantPermit(grant(&cluster, "a", 2));
    assert_eq!(cluster.refused(asked), "NODE_IS_GONE");
}
