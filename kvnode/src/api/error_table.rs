//! The table of errors, row by row.

use kv_topology::map::{NodeEntry, NodeState};

use super::*;

fn map() -> ClusterMap {
    let node = NodeEntry {
        name: "n2".to_owned(),
        client_address: "n2:50051".to_owned(),
        peer_address: "n2:50061".to_owned(),
        zone: String::new(),
        version: String::new(),
        state: NodeState::Active,
    };
    ClusterMap { epoch: 9, nodes: [(NodeId(2), node)].into(), ..ClusterMap::default() }
}

fn refusal(kind: Kind, reason: &str) -> Refused {
    let refusal = Refusal {
        kind: kind.into(),
        reason: reason.to_owned(),
        message: "why".to_owned(),
        ..Refusal::default()
    };
    Refused::Store(refusal)
}

fn with(refused: Refused, change: impl FnOnce(&mut Refusal)) -> Refused {
    let Refused::Store(mut refusal) = refused else { panic!("only refusals are changed") };
    change(&mut refusal);
    Refused::Store(refusal)
}

/// Situation, code, reason, retry after ms (0: no `RetryInfo`), metadata.
type Row = (Refused, Code, &'static str, u64, &'static [(&'static str, &'static str)]);

#[allow(clippy::too_many_lines, reason = "a table")]
fn rows() -> Vec<Row> {
    let violation = || Violation::new("key", "must not be empty");
    let leader =
        with(refusal(Kind::NotApplied, "NOT_APPLIED_NOT_LEADER"), |refusal| refusal.leader_node_id = 2);
    let stranger =
        with(refusal(Kind::NotApplied, "NOT_APPLIED_NOT_LEADER"), |refusal| refusal.leader_node_id = 7);
    let patient =
        with(refusal(Kind::ResourceExhausted, "PROPOSAL_QUEUE_FULL"), |refusal| refusal.retry_after_ms = 40);
    let of_field = with(refusal(Kind::InvalidArgument, ""), |refusal| refusal.field = "value".to_owned());
    let upload = |cause| Refused::Upload { cause: Box::new(cause), upload_id: [0xab; 16], stored_bytes: 512 };
    let begun: &[_] = &[("upload_id", "abababababababababababababababab"), ("stored_bytes", "512")];
    vec![
        (violation().into(), Code::InvalidArgument, "INVALID_ARGUMENT", 0, &[]),
        (of_field, Code::InvalidArgument, "INVALID_ARGUMENT", 0, &[]),
        (
            refusal(Kind::NotApplied, "NOT_APPLIED_NO_LEADER"),
            Code::Unavailable,
            "NOT_APPLIED_NO_LEADER",
            100,
            &[("epoch", "9")],
        ),
        (refusal(Kind::NotApplied, ""), Code::Unavailable, "NOT_APPLIED_UNAVAILABLE", 100, &[("epoch", "9")]),
        (
            leader,
            Code::Unavailable,
            "NOT_APPLIED_NOT_LEADER",
            100,
            &[("epoch", "9"), ("leader_node_id", "2"), ("leader_address", "n2:50051")],
        ),
        (
            stranger,
            Code::Unavailable,
            "NOT_APPLIED_NOT_LEADER",
            100,
            &[("epoch", "9"), ("leader_node_id", "7")],
        ),
        (Refused::Starting, Code::Unavailable, "NOT_APPLIED_STARTING", 100, &[]),
        (refusal(Kind::WrongShard, "anything"), Code::Unavailable, "WRONG_SHARD", 100, &[("epoch", "9")]),
        (patient, Code::ResourceExhausted, "PROPOSAL_QUEUE_FULL", 40, &[]),
        (refusal(Kind::ResourceExhausted, ""), Code::ResourceExhausted, "LIMIT_REACHED", 100, &[]),
        (Refused::Limit("STREAMS"), Code::ResourceExhausted, "STREAMS", 100, &[]),
        (refusal(Kind::OutcomeUnknown, ""), Code::Unknown, "OUTCOME_UNKNOWN", 0, &[]),
        (
            refusal(Kind::DeadlineExceeded, "NOT_APPLIED_EXPIRED"),
            Code::DeadlineExceeded,
            "NOT_APPLIED_EXPIRED",
            0,
            &[],
        ),
        (refusal(Kind::DeadlineExceeded, ""), Code::DeadlineExceeded, "DEADLINE_EXCEEDED", 0, &[]),
        (Refused::Expired, Code::DeadlineExceeded, "NOT_APPLIED_EXPIRED", 0, &[]),
        (refusal(Kind::DataLoss, "REPLICA_QUARANTINED"), Code::DataLoss, "REPLICA_QUARANTINED", 0, &[]),
        (Refused::Damaged(ShardId(3)), Code::DataLoss, "DATA_LOSS", 0, &[("shards", "3")]),
        (
            refusal(Kind::FailedPrecondition, "SESSION_EXPIRED"),
            Code::FailedPrecondition,
            "SESSION_EXPIRED",
            0,
            &[],
        ),
        (
            refusal(Kind::FailedPrecondition, "SEQUENCE_ACKNOWLEDGED"),
            Code::FailedPrecondition,
            "SEQUENCE_ACKNOWLEDGED",
            0,
            &[],
        ),
        (
            refusal(Kind::ResourceExhausted, "SESSIONS_FULL"),
            Code::ResourceExhausted,
            "SESSIONS_FULL",
            100,
            &[],
        ),
        (
            refusal(Kind::ResourceExhausted, "SESSION_WINDOW_FULL"),
            Code::ResourceExhausted,
            "SESSION_WINDOW_FULL",
            100,
            &[],
        ),
        (
            Refused::SpansShards { shards: vec![ShardId(1), ShardId(4)], tag: "{a}".to_owned() },
            Code::FailedPrecondition,
            "TXN_SPANS_SHARDS",
            0,
            &[("shards", "1,4"), ("tag", "{a}")],
        ),
        (
            Refused::UploadOffset { stored_bytes: 7 },
            Code::FailedPrecondition,
            "UPLOAD_OFFSET",
            0,
            &[("stored_bytes", "7")],
        ),
        (refusal(Kind::NotFound, "X"), Code::NotFound, "X", 0, &[]),
        (Refused::KeyNotFound, Code::NotFound, "KEY_NOT_FOUND", 0, &[]),
        (Refused::ValueReplaced, Code::Unavailable, "VALUE_REPLACED", 100, &[]),
        (
            Refused::Interrupted("reset".to_owned()),
            Code::Unavailable,
            "NOT_APPLIED_UPLOAD_INTERRUPTED",
            100,
            &[],
        ),
        (
            upload(refusal(Kind::OutcomeUnknown, "")),
            Code::Unavailable,
            "NOT_APPLIED_UPLOAD_INTERRUPTED",
            100,
            begun,
        ),
        (upload(violation().into()), Code::InvalidArgument, "INVALID_ARGUMENT", 0, begun),
    ]
}

#[test]
fn each_row_of_the_table_is_told_as_it_says() {
    for (refused, code, reason, retry_after_ms, metadata) in rows() {
        let status = describe(&refused, &map()).status();
        let details = status.get_error_details();
        let info = details.error_info().unwrap_or_else(|| panic!("{refused}: no ErrorInfo"));
        assert_eq!(
            (status.code(), info.reason.as_str(), info.domain.as_str()),
            (code, reason, DOMAIN),
            "{refused}"
        );
        let told: BTreeMap<_, _> =
            info.metadata.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(told, metadata.iter().copied().collect(), "{refused}");
        let retry = details.retry_info().and_then(|retry| retry.retry_delay);
        assert_eq!(retry.map_or(0, |delay| delay.as_millis()), u128::from(retry_after_ms), "{refused}");
        let violations = details.bad_request().map_or(0, |bad| bad.field_violations.len());
        assert_eq!(violations, usize::from(code == Code::InvalidArgument), "{refused}");
    }
}

#[test]
fn a_violation_names_its_field_in_the_details() {
    let details = describe(&Violation::new("then[3].put.value", "too long").into(), &map())
        .status()
        .get_error_details();
    let bad = details.bad_request().expect("a BadRequest");
    assert_eq!(bad.field_violations[0].field, "then[3].put.value");
}

#[test]
fn what_does_not_exist_is_told_with_the_field_that_names_it() {
    let unknown = with(refusal(Kind::NotFound, "NODE_UNKNOWN"), |refusal| refusal.field = "node".to_owned());
    let status = describe(&unknown, &map()).status();
    let details = status.get_error_details();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "why"));
    assert_eq!(details.error_info().expect("an ErrorInfo").reason, "NODE_UNKNOWN");
    assert_eq!(details.bad_request().expect("a BadRequest").field_violations[0].field, "node");
}

#[test]
fn a_bug_tells_the_client_an_id_and_the_log_the_rest() {
    for refused in [
        Refused::Bug("secret path".to_owned()),
        refusal(Kind::Internal, "X"),
        refusal(Kind::Unspecified, "X"),
    ] {
        let told = describe(&refused, &map());
        assert_eq!((told.code, told.reason.as_str()), (Code::Internal, "INTERNAL"));
        assert!(!told.message.contains("secret") && !told.message.contains("why"), "{}", told.message);
        assert!(told.message.contains(&told.metadata["log_id"]));
        assert!(!refused.is_without_effect());
    }
}

#[test]
fn only_what_surely_did_not_happen_is_told_so() {
    for (refused, code, reason, ..) in rows() {
        let promises = reason.starts_with("NOT_APPLIED_") || code == Code::ResourceExhausted;
        assert!(!promises || refused.is_without_effect(), "{refused}");
    }
    assert!(!refusal(Kind::OutcomeUnknown, "").is_without_effect());
    assert!(!refusal(Kind::DeadlineExceeded, "").is_without_effect());
}

#[test]
fn the_failure_of_one_operation_tells_the_same() {
    let refused =
        with(refusal(Kind::ResourceExhausted, "PROPOSAL_QUEUE_FULL"), |refusal| refusal.retry_after_ms = 40);
    let failure = describe(&refused, &map()).failure();
    assert_eq!(
        (failure.code, failure.reason.as_str(), failure.retry_after_ms),
        (8, "PROPOSAL_QUEUE_FULL", 40)
    );
    let failure = describe(&Violation::new("key", "must not be empty").into(), &map()).failure();
    assert_eq!((failure.code, failure.message.as_str()), (3, "key: must not be empty"));
}
