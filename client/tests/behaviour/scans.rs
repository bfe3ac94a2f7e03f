//! Scans and deletions of ranges: tokens followed, broken streams resumed.

use futures::TryStreamExt;
use kv_client::{Client, Error, KeyRange, ReadOptions, ScanOptions};

use crate::{
    client,
    fake::{
        FakeCluster,
        script::{Fault, lost, no_leader},
    },
};

/// Keys k00 to k09.
async fn filled(nodes: usize) -> (FakeCluster, Client) {
    let cluster = FakeCluster::start(nodes).await;
    let client = client(&cluster);
    for number in 0..10 {
        client.put(format!("k{number:02}"), "v").await.unwrap();
    }
    client.put("other", "v").await.unwrap();
    (cluster, client)
}

async fn keys(client: &Client, options: impl Into<ScanOptions>) -> Result<Vec<String>, Error> {
    let keys = client.scan(options).into_stream().map_ok(|kv| String::from_utf8(kv.key.to_vec()).unwrap());
    keys.try_collect().await
}

fn expected(numbers: impl Iterator<Item = u32>) -> Vec<String> {
    numbers.map(|number| format!("k{number:02}")).collect()
}

#[tokio::test]
async fn pages_follow_each_other() {
    let (cluster, client) = filled(1).await;
    assert_eq!(keys(&client, KeyRange::prefix("k")).await.unwrap(), expected(0..10));
    assert_eq!(cluster.count("Scan"), 1);
    assert_eq!(keys(&client, KeyRange::between("k03", "k05")).await.unwrap(), expected(3..5));
    assert_eq!(keys(&client, KeyRange::prefix("none")).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_call_that_ends_with_a_token_is_continued() {
    let (cluster, client) = filled(1).await;
    cluster.state().pages_per_call = 2;
    assert_eq!(keys(&client, KeyRange::prefix("k")).await.unwrap(), expected(0..10));
    assert_eq!(cluster.count("Scan"), 3);
    let reverse = ScanOptions { reverse: true, ..KeyRange::prefix("k").into() };
    assert_eq!(keys(&client, reverse).await.unwrap(), expected((0..10).rev()));
    assert_eq!(client.count(KeyRange::all(), ReadOptions::default()).await.unwrap(), 11);
}

#[tokio::test]
async fn a_broken_scan_is_resumed_elsewhere_without_gaps_or_repeats() {
    let (cluster, client) = filled(3).await;
    cluster.script(1, [Fault::BreakAfter(2, lost())]);
    cluster.script(2, [Fault::BreakAfter(1, no_leader())]);
    assert_eq!(keys(&client, KeyRange::prefix("k")).await.unwrap(), expected(0..10));
    assert_eq!(cluster.count("Scan"), 3);
}

#[tokio::test]
async fn a_limit_holds_over_resumed_calls() {
    let (cluster, client) = filled(2).await;
    cluster.state().pages_per_call = 1;
    cluster.script(1, [Fault::BreakAfter(1, lost())]);
    let options = ScanOptions { limit: 5, ..KeyRange::prefix("k").into() };
    assert_eq!(keys(&client, options).await.unwrap(), expected(0..5));
    let mut scan = client.scan(ScanOptions { limit: 5, ..KeyRange::prefix("k").into() });
    while scan.next_page().await.unwrap().is_some() {}
    let rest = ScanOptions { page_token: scan.page_token().clone(), ..KeyRange::prefix("k").into() };
    assert_eq!(keys(&client, rest).await.unwrap(), expected(5..10));
}

#[tokio::test]
async fn a_range_is_deleted_in_steps() {
    let (cluster, client) = filled(1).await;
    let mut deletion = client.delete_range(KeyRange::prefix("k"));
    assert_eq!(deletion.finish().await.unwrap(), 10);
    assert_eq!(cluster.state().store.records.len(), 1);
    assert_eq!(client.delete_range(KeyRange::prefix("k")).finish().await.unwrap(), 0);
}

#[tokio::test]
async fn a_deletion_whose_reply_is_lost_is_not_repeated() {
    let (cluster, client) = filled(2).await;
    cluster.script(1, [Fault::BreakAfter(2, lost())]);
    let mut deletion = client.delete_range(KeyRange::prefix("k"));
    let error = deletion.finish().await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
    assert_eq!(deletion.deleted(), 4, "two steps were acknowledged");
    assert_eq!(deletion.page_token(), "k03");
    assert_eq!(cluster.count("DeleteRange"), 1);
}
