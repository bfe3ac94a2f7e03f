//! Scans and downloads whose caller does not read on.

use std::time::Duration;

use kv_client::{DownloadOptions, KeyRange, UploadOptions};

use crate::{
    client,
    fake::{Connections, FakeCluster},
    until,
};

/// The client's window of a stream, bytes.
const STREAM_WINDOW: usize = 2 << 20;
/// Bytes of a message of a download at the cluster of pretence.
const PIECE: usize = 1000;
const READERS: usize = 8;

#[tokio::test]
async fn readers_that_stand_still_hold_back_neither_writes_nor_each_other() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster).with_timeout(Duration::from_secs(60));
    let value = vec![7; STREAM_WINDOW + (1 << 20)];
    client.upload("large", value.clone(), UploadOptions::default()).await.unwrap();
    for number in 0..10 {
        client.put(format!("page-{number}"), vec![7; 600_000]).await.unwrap();
    }

    let (mut downloads, mut scans) = (Vec::new(), Vec::new());
    for _ in 0..READERS {
        let mut download = client.download("large", DownloadOptions::default()).await.unwrap().unwrap();
        download.next_piece().await.unwrap();
        downloads.push(download);
        let mut scan = client.scan(KeyRange::prefix("page"));
        scan.next_page().await.unwrap();
        scans.push(scan);
    }
    // Each has as much as its window takes, whatever the others have not read.
    until("all windows are full", || {
        let taken = cluster.state().taken.clone();
        taken["Download"] >= READERS * (STREAM_WINDOW / (PIECE + 20)) && taken["Scan"] >= READERS * 2
    })
    .await;

    let soon = Duration::from_secs(2);
    let put = tokio::time::timeout(soon, client.put("k", "v")).await;
    assert!(put.expect("a put waits for nobody who reads").unwrap().applied);
    let get = tokio::time::timeout(soon, client.get("page-1")).await;
    assert!(get.expect("a large answer has room too").unwrap().kv.is_some());

    let mut sink = Vec::new();
    downloads.pop().unwrap().write_to(&mut sink).await.unwrap();
    assert_eq!(sink.len() + PIECE, value.len());
    let mut scan = scans.pop().unwrap();
    let mut keys = 2;
    while let Some(page) = scan.next_page().await.unwrap() {
        keys += page.kvs.len();
    }
    assert_eq!(keys, 10);
}

#[tokio::test]
async fn readers_that_stand_still_take_no_place_of_operations() {
    let calls = 4;
    let cluster =
        FakeCluster::with_connections(1, Connections { calls: Some(calls), ..Default::default() }).await;
    let client = client(&cluster);
    client.upload("large", vec![7; 2 * STREAM_WINDOW], UploadOptions::default()).await.unwrap();
    let mut downloads = Vec::new();
    for _ in 0..calls {
        downloads.push(client.download("large", DownloadOptions::default()).await.unwrap().unwrap());
    }
    assert!(client.put("k", "v").await.unwrap().applied);
    assert!(client.get("k").await.unwrap().kv.is_some());
}
