//! What is refused, and under which name.

use bytes::Bytes;
use kv_proto::kv::v1::WriteOperation;

use super::*;

fn bytes(length: usize) -> Bytes {
    vec![b'x'; length].into()
}

fn a_put(key: usize, value: usize) -> PutRequest {
    PutRequest { key: bytes(key), value: bytes(value), ..PutRequest::default() }
}

fn condition(condition: Option<precondition::Condition>) -> Option<Precondition> {
    Some(Precondition { condition })
}

fn txn_put(key: &'static str, value: usize) -> TxnOperation {
    let put = PutRequest { key: key.into(), value: bytes(value), ..PutRequest::default() };
    TxnOperation { operation: Some(txn_operation::Operation::Put(put)) }
}

fn txn_get(key: &'static str) -> TxnOperation {
    let get = GetRequest { key: key.into(), ..GetRequest::default() };
    TxnOperation { operation: Some(txn_operation::Operation::Get(get)) }
}

fn stale() -> ReadOptions {
    ReadOptions {
        consistency: Consistency::Stale.into(),
        max_staleness_ms: 5,
        min_revision: 7,
        serve_at_node: true,
    }
}

fn field(checked: Checked) -> String {
    checked.expect_err("a violation").field
}

#[test]
fn keys_and_values_have_their_limits() {
    assert_eq!(put(&a_put(1, 0)), Ok(()));
    assert_eq!(put(&a_put(KEY_BYTES_MAX, INLINE_VALUE_BYTES_MAX)), Ok(()));
    assert_eq!(field(put(&a_put(0, 0))), "key");
    assert_eq!(field(put(&a_put(KEY_BYTES_MAX + 1, 0))), "key");
    assert_eq!(field(put(&a_put(1, INLINE_VALUE_BYTES_MAX + 1))), "value");
    assert_eq!(field(get(&GetRequest::default())), "key");
    assert_eq!(field(delete(&DeleteRequest::default())), "key");
    assert_eq!(field(download(&DownloadRequest::default())), "key");
}

#[test]
fn a_violation_shows_no_content() {
    let secret = PutRequest {
        key: "secret".into(),
        value: bytes(INLINE_VALUE_BYTES_MAX + 1),
        ..PutRequest::default()
    };
    let text = put(&secret).expect_err("too long").to_string();
    assert!(!text.contains("secret") && text.len() < 200, "{text}");
}

#[test]
fn a_precondition_says_something_that_can_hold() {
    use precondition::Condition;
    let table = [
        (None, Some("precondition")),
        (Some(Condition::Absent(true)), None),
        (Some(Condition::Absent(false)), Some("precondition.absent")),
        (Some(Condition::Present(true)), None),
        (Some(Condition::Present(false)), Some("precondition.present")),
        (Some(Condition::ModRevision(1)), None),
        (Some(Condition::ModRevision(0)), Some("precondition.mod_revision")),
        (Some(Condition::Version(1)), None),
        (Some(Condition::Version(0)), Some("precondition.version")),
    ];
    for (given, wrong) in table {
        let request =
            DeleteRequest { key: "k".into(), precondition: condition(given), ..DeleteRequest::default() };
        assert_eq!(delete(&request).err().map(|violation| violation.field).as_deref(), wrong, "{given:?}");
    }
}

#[test]
fn staleness_is_for_stale_reads() {
    let read =
        |options| get(&GetRequest { key: "k".into(), options: Some(options), ..GetRequest::default() });
    let fresh = ReadOptions::default();
    assert_eq!(read(stale()), Ok(()));
    assert_eq!(read(ReadOptions { serve_at_node: true, ..fresh }), Ok(()));
    assert_eq!(field(read(ReadOptions { max_staleness_ms: 1, ..fresh })), "options.max_staleness_ms");
    assert_eq!(field(read(ReadOptions { min_revision: 1, ..fresh })), "options.min_revision");
    assert_eq!(field(read(ReadOptions { consistency: 9, ..fresh })), "options.consistency");
}

#[test]
fn batches_have_one_to_a_thousand_members_and_name_the_wrong_one() {
    let gets = |count, last: &'static str| {
        let mut keys = vec![Bytes::from_static(b"k"); count];
        keys.push(last.into());
        batch_get(&BatchGetRequest { keys, ..BatchGetRequest::default() })
    };
    assert_eq!(gets(BATCH_OPERATIONS_MAX - 1, "k"), Ok(()));
    assert_eq!(field(gets(BATCH_OPERATIONS_MAX, "k")), "keys");
    assert_eq!(field(gets(4, "")), "keys[4]");
    assert_eq!(field(batch_get(&BatchGetRequest::default())), "keys");

    let writes = |operations| bulk_write(&BulkWriteRequest { operations });
    let write = |operation| WriteOperation { operation: Some(operation) };
    let good = write(write_operation::Operation::Put(a_put(1, 1)));
    assert_eq!(writes(vec![good.clone()]), Ok(()));
    assert_eq!(field(writes(Vec::new())), "operations");
    assert_eq!(field(writes(vec![good.clone(); BATCH_OPERATIONS_MAX + 1])), "operations");
    let long = write(write_operation::Operation::Put(a_put(1, INLINE_VALUE_BYTES_MAX + 1)));
    assert_eq!(field(writes(vec![good.clone(), long])), "operations[1].put.value");
    let keyless = write(write_operation::Operation::Delete(DeleteRequest::default()));
    assert_eq!(field(writes(vec![keyless])), "operations[0].delete.key");
    assert_eq!(field(writes(vec![good, WriteOperation::default()])), "operations[1]");
}

#[test]
fn a_transaction_is_small_and_writes_a_key_once() {
    let then = |then| txn(&TxnRequest { then, ..TxnRequest::default() });
    assert_eq!(then(vec![txn_put("a", 1), txn_get("a"), txn_put("b", 1)]), Ok(()));
    assert_eq!(field(then(Vec::new())), "then");
    assert_eq!(field(then(vec![txn_get("a"); TXN_OPERATIONS_MAX + 1])), "then");
    assert_eq!(field(then(vec![txn_put("a", 1), txn_put("a", 1)])), "then[1].put.key");
    assert_eq!(
        field(then(vec![txn_get("a"), txn_get("b"), txn_get("c"), txn_put("", 1)])),
        "then[3].put.key"
    );
    assert_eq!(field(then(vec![TxnOperation::default()])), "then[0]");
    let half = TXN_BYTES_MAX / 2;
    assert_eq!(then(vec![txn_put("a", half - 1), txn_put("b", half - 1)]), Ok(()));
    assert_eq!(field(then(vec![txn_put("a", half - 1), txn_put("b", half)])), "then[1]");
    // The same key once in each branch is one write.
    let both =
        TxnRequest { then: vec![txn_put("a", 1)], r#else: vec![txn_put("a", 1)], ..TxnRequest::default() };
    assert_eq!(txn(&both), Ok(()));
    let too_much = TxnRequest {
        then: vec![txn_put("a", half)],
        r#else: vec![txn_put("a", half)],
        ..TxnRequest::default()
    };
    assert_eq!(field(txn(&too_much)), "else[0]");
}

#[test]
fn inside_a_transaction_compare_replaces_preconditions_and_options() {
    let put = PutRequest {
        key: "k".into(),
        precondition: condition(Some(precondition::Condition::Absent(true))),
        ..PutRequest::default()
    };
    let operation = TxnOperation { operation: Some(txn_operation::Operation::Put(put)) };
    let request = TxnRequest { r#else: vec![operation], ..TxnRequest::default() };
    assert_eq!(field(txn(&request)), "else[0].put.precondition");
    let read = GetRequest { key: "k".into(), options: Some(stale()), ..GetRequest::default() };
    let operation = TxnOperation { operation: Some(txn_operation::Operation::Get(read)) };
    assert_eq!(
        field(txn(&TxnRequest { then: vec![operation], ..TxnRequest::default() })),
        "then[0].get.options"
    );
}

#[test]
fn a_comparison_names_a_target_and_an_order_that_it_has() {
    use compare::{Operator, Target};
    let compared = |key: &'static str, target, operator: i32| {
        let compare = Compare { key: key.into(), target, operator };
        txn(&TxnRequest { compare: vec![compare], ..TxnRequest::default() })
            .err()
            .map(|violation| violation.field)
    };
    let less = i32::from(Operator::Less);
    assert_eq!(compared("k", Some(Target::ModRevision(3)), less), None);
    assert_eq!(compared("k", Some(Target::Present(false)), 0), None);
    assert_eq!(compared("k", Some(Target::Present(true)), less).as_deref(), Some("compare[0].operator"));
    assert_eq!(compared("k", None, 0).as_deref(), Some("compare[0].target"));
    assert_eq!(compared("k", Some(Target::Version(1)), 77).as_deref(), Some("compare[0].operator"));
    assert_eq!(compared("", Some(Target::Version(1)), 0).as_deref(), Some("compare[0].key"));
    let long = Some(Target::Value(bytes(INLINE_VALUE_BYTES_MAX + 1)));
    assert_eq!(compared("k", long, 0).as_deref(), Some("compare[0].value"));
}

#[test]
fn a_range_is_a_prefix_or_runs_upwards() {
    let ranged = |start: &'static str, end: &'static str, prefix: &'static str| {
        let range = Some(KeyRange { start: start.into(), end: end.into(), prefix: prefix.into() });
        scan(&ScanRequest { range, ..ScanRequest::default() }).err().map(|violation| violation.field)
    };
    assert_eq!(scan(&ScanRequest::default()), Ok(()));
    assert_eq!(ranged("a", "b", ""), None);
    assert_eq!(ranged("a", "a", ""), None);
    assert_eq!(ranged("", "", "p"), None);
    assert_eq!(ranged("b", "a", "").as_deref(), Some("range.end"));
    assert_eq!(ranged("b", "", "p").as_deref(), Some("range.prefix"));
    let long = Some(KeyRange { start: bytes(KEY_BYTES_MAX + 2), ..KeyRange::default() });
    assert_eq!(field(scan(&ScanRequest { range: long, ..ScanRequest::default() })), "range.start");
    assert_eq!(field(delete_range(&DeleteRangeRequest::default())), "range");
    let token = ScanRequest { page_token: bytes(PAGE_TOKEN_BYTES_MAX + 1), ..ScanRequest::default() };
    assert_eq!(field(scan(&token)), "page_token");
    let both = ScanRequest { keys_only: true, count_only: true, ..ScanRequest::default() };
    assert_eq!(field(scan(&both)), "count_only");
}

#[test]
fn an_upload_begins_with_a_header_that_fits_together() {
    let good = upload_request::Header { key: "k".into(), ..upload_request::Header::default() };
    assert_eq!(upload(&good), Ok(()));
    let chunk = CHUNK_BYTES as u64;
    type Spoil = fn(&mut upload_request::Header);
    let table: [(&str, Spoil); 7] = [
        ("header.key", |header| header.key = Bytes::new()),
        ("header.sha256", |header| header.sha256 = bytes(31)),
        ("header.upload_id", |header| header.upload_id = bytes(15)),
        ("header.upload_id", |header| header.resume_from_bytes = 5),
        ("header.size_bytes", |header| header.size_bytes = Some(UPLOAD_BYTES_MAX + 1)),
        ("header.resume_from_bytes", |header| {
            (header.upload_id, header.size_bytes, header.resume_from_bytes) = (bytes(16), Some(4), 5);
        }),
        ("header.precondition", |header| header.precondition = condition(None)),
    ];
    for (name, spoil) in table {
        let mut header = good.clone();
        spoil(&mut header);
        assert_eq!(field(upload(&header)), name);
    }
    let resumed = |size, from| {
        let (size_bytes, upload_id) = (Some(size), bytes(16));
        upload(&upload_request::Header { size_bytes, upload_id, resume_from_bytes: from, ..good.clone() })
    };
    assert_eq!(resumed(chunk * 3, chunk), Ok(()));
    assert_eq!(resumed(chunk + 5, chunk + 5), Ok(()));
    assert_eq!(field(resumed(chunk * 3, chunk + 5)), "header.resume_from_bytes");
}

#[test]
fn a_download_does_not_run_over_the_end_of_numbers() {
    let request =
        DownloadRequest { key: "k".into(), offset: u64::MAX, length: 1, ..DownloadRequest::default() };
    assert_eq!(field(download(&request)), "length");
}
