//! Many keys in few messages.

use kv_client::{BulkOperation, BulkOutcome, Error, GetOptions, Precondition, WriteOptions};

use crate::{
    builder, client,
    fake::{
        FakeCluster,
        script::{Fault, lost},
    },
};

fn put(key: &str) -> BulkOperation {
    BulkOperation::put(key, "v", WriteOptions::default())
}

#[tokio::test]
async fn a_full_reply_is_asked_for_the_rest() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster);
    client.bulk_write(["a", "b", "c"].map(put)).await;
    let replies = client.batch_get(["a", "x", "b", "c", "y"], GetOptions::default()).await.unwrap();
    let found: Vec<bool> = replies.iter().map(|reply| reply.kv.is_some()).collect();
    assert_eq!(found, [true, false, true, true, false]);
    assert_eq!(cluster.count("BatchGet"), 3);
}

#[tokio::test]
async fn only_what_was_surely_not_applied_is_sent_again() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster);
    cluster.script(1, [Fault::EndAfter(1)]);
    let outcomes = client
        .bulk_write([
            put("a"),
            put("b"),
            BulkOperation::put("a", "w", Precondition::Absent.into()),
            BulkOperation::delete("none", WriteOptions::default()),
        ])
        .await;
    let [
        BulkOutcome::Put(first),
        BulkOutcome::Put(second),
        BulkOutcome::Put(third),
        BulkOutcome::Delete(fourth),
    ] = &outcomes[..]
    else {
        panic!("{outcomes:?}")
    };
    assert!(first.applied && second.applied && !third.applied && !fourth.applied);
    assert_eq!(cluster.count("BulkWrite"), 2);
    assert_eq!(cluster.state().store.revision, 3, "each was applied once");
}

#[tokio::test]
async fn a_bulk_without_sessions_whose_reply_is_lost_is_unknown_as_a_whole() {
    let cluster = FakeCluster::start(2).await;
    cluster.script(1, [Fault::Lose(lost())]);
    let outcomes = builder(&cluster).sessions(false).build().unwrap().bulk_write(["a", "b"].map(put)).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, BulkOutcome::Failed(Error::OutcomeUnknown(_)))));
    assert_eq!(cluster.count("BulkWrite"), 1);
}

#[tokio::test]
async fn a_long_bulk_is_split_into_messages() {
    let cluster = FakeCluster::start(1).await;
    let keys: Vec<String> = (0..2500).map(|number| format!("k{number}")).collect();
    let outcomes = client(&cluster).bulk_write(keys.iter().map(|key| put(key))).await;
    assert_eq!(outcomes.len(), 2500);
    assert_eq!((cluster.count("BulkWrite"), cluster.state().store.records.len()), (3, 2500));
}
