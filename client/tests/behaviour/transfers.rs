//! Uploads and downloads: whole or not at all, verified, resumed.

use std::{
    io,
    sync::mpsc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use kv_client::{Client, Code, DownloadOptions, Error, Precondition, UploadOptions, UploadSource};
use sha2::{Digest, Sha256};

use crate::{
    client,
    fake::{
        FakeCluster,
        script::{Fault, lost, no_leader, refusal},
    },
};

/// Bytes that differ everywhere, so that a piece in the wrong place is seen.
fn bytes(length: usize) -> Bytes {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

async fn download(client: &Client, options: DownloadOptions) -> Result<Vec<u8>, Error> {
    let mut sink = Vec::new();
    client.download("k", options).await?.expect("the key is there").write_to(&mut sink).await?;
    Ok(sink)
}

/// An uploaded value of 10,000 bytes: eleven download messages.
async fn uploaded(nodes: usize) -> (FakeCluster, Client, Bytes) {
    let cluster = FakeCluster::start(nodes).await;
    let client = client(&cluster);
    let value = bytes(10_000);
    client.upload("k", value.clone(), UploadOptions::default()).await.unwrap();
    (cluster, client, value)
}

/// More than all windows and buffers on the way hold: a stream that breaks early has surely not been sent to its end.
const LARGE: usize = 16_000_000;

#[tokio::test]
async fn what_is_uploaded_is_downloaded() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster);
    let value = bytes(1_000_000);
    let source = UploadSource::reader(io::Cursor::new(value.clone()));
    let reply = client.upload("k", source, UploadOptions::default()).await.unwrap();
    assert!(reply.applied);
    assert_eq!((reply.size_bytes, &reply.sha256[..]), (1_000_000, &Sha256::digest(&value)[..]));
    assert_eq!(download(&client, DownloadOptions::default()).await.unwrap(), value);
    let part = DownloadOptions { offset: 500_000, length: 10, ..Default::default() };
    assert_eq!(download(&client, part).await.unwrap(), value[500_000..500_010]);
    assert!(client.download("absent", DownloadOptions::default()).await.unwrap().is_none());
}

/// A reader can be sent once only: nothing of it may be lost on a connection that has ended.
#[tokio::test]
async fn an_upload_takes_no_connection_that_its_node_has_ended() {
    let age = Duration::from_millis(200);
    let cluster = FakeCluster::with_connections_of_age(1, Some(age)).await;
    let client = client(&cluster);
    for _ in 0..3 {
        let source = UploadSource::reader(io::Cursor::new(bytes(1_000)));
        client.upload("k", source, UploadOptions::default()).await.unwrap();
        tokio::time::sleep(2 * age).await;
    }
    assert_eq!(cluster.count("Upload"), 3);
}

#[tokio::test]
async fn inline_and_empty_values_are_downloaded_too() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster);
    for value in ["hello", ""] {
        client.put("k", value).await.unwrap();
        assert_eq!(download(&client, DownloadOptions::default()).await.unwrap(), value.as_bytes());
        client.upload("k", value, UploadOptions::default()).await.unwrap();
        assert_eq!(download(&client, DownloadOptions::default()).await.unwrap(), value.as_bytes());
    }
}

#[tokio::test]
async fn an_upload_with_a_precondition_that_does_not_hold_is_a_reply() {
    let (_cluster, client, value) = uploaded(1).await;
    let options = UploadOptions { precondition: Some(Precondition::Absent), ..Default::default() };
    assert!(!client.upload("k", "other", options.clone()).await.unwrap().applied);
    let large = Bytes::from(vec![7; 8 << 20]);
    assert!(!client.upload("k", large, options).await.unwrap().applied, "told before all bytes were sent");
    assert_eq!(download(&client, DownloadOptions::default()).await.unwrap(), value);
}

#[tokio::test]
async fn an_upload_that_was_damaged_on_the_way_is_noticed() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster);
    cluster.script(1, [Fault::FlipBit]);
    let error = client.upload("k", bytes(10), UploadOptions::default()).await.unwrap_err();
    assert!(matches!(error, Error::ChecksumMismatch { operation: "Upload", .. }), "{error}");
    // Told before, the store refuses it itself.
    cluster.script(1, [Fault::FlipBit]);
    let sha256 = Some(Sha256::digest(bytes(10)).into());
    let options = UploadOptions { sha256, ..Default::default() };
    let error = client.upload("l", bytes(10), options).await.unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    assert!(client.get("l").await.unwrap().kv.is_none());
}

#[tokio::test]
async fn a_source_that_breaks_leaves_nothing_visible() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster);
    // Breaks once the node has some of it.
    let shared = cluster.shared.clone();
    let broken = stream::once(async move {
        while shared.state().store.received_bytes == 0 {
            tokio::task::yield_now().await;
        }
        Err(io::Error::other("disk on fire"))
    });
    let source = UploadSource::stream(stream::iter([Ok(bytes(1000))]).chain(broken));
    // With its length: a server may take the reset of a stream for its end.
    let options = UploadOptions { size_bytes: Some(2000), ..Default::default() };
    let error = client.upload("k", source, options).await.unwrap_err();
    assert!(matches!(error, Error::Source(_)), "{error}");
    assert!(!error.may_have_happened());
    // The node sees a stream that broke, not one that ended.
    let deadline = Instant::now() + Duration::from_secs(5);
    while cluster.state().store.interrupted_uploads == 0 {
        assert!(Instant::now() < deadline, "waited for the node to see a broken stream");
        tokio::task::yield_now().await;
    }
    let options = UploadOptions { size_bytes: Some(999), ..Default::default() };
    let error = client.upload("k", bytes(1000), options).await.unwrap_err();
    assert!(matches!(error, Error::Source(_)), "{error}");
    assert!(client.get("k").await.unwrap().kv.is_none());
}

#[tokio::test]
async fn an_upload_that_surely_did_not_happen_is_sent_again() {
    let cluster = FakeCluster::start(2).await;
    let client = client(&cluster);
    // Lost in the middle: without its end it cannot have become visible.
    cluster.script(1, [Fault::Refuse(no_leader()), Fault::BreakAfter(2, lost())]);
    let value = bytes(LARGE);
    assert!(client.upload("k", value.clone(), UploadOptions::default()).await.unwrap().applied);
    assert_eq!(cluster.asked("Upload"), [1, 1, 1, 1]);
    assert_eq!(download(&client, DownloadOptions::default()).await.unwrap(), value);
}

#[tokio::test]
async fn an_upload_is_resumed_where_the_store_got_to() {
    let cluster = FakeCluster::start(1).await;
    let client = client(&cluster);
    // Of the two breaks, one names the place; after the other one it is asked for.
    let stored = (2 * 256 * 1024).to_string();
    let status = refusal(Code::Unavailable, "NOT_APPLIED_STOPPING", &[("stored_bytes", &stored)], None);
    cluster.script(1, [Fault::BreakAfter(2, status), Fault::BreakAfter(3, lost())]);
    let value = bytes(LARGE);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("value");
    std::fs::write(&file, &value).unwrap();
    let (observed, positions) = mpsc::channel();
    let source = UploadSource::file(&file).observed_by(move |position| observed.send(position).unwrap());
    let reply = client.upload("k", source, UploadOptions::default()).await.unwrap();
    assert_eq!(reply.sha256[..], Sha256::digest(&value)[..]);
    let positions: Vec<u64> = positions.try_iter().collect();
    assert_eq!((positions.first(), positions.last()), (Some(&0), Some(&(LARGE as u64))));
    // The third attempt surely goes back, behind what the second was seen to send; others may not have sent enough.
    let back: Vec<u64> = positions.windows(2).filter(|two| two[1] < two[0]).map(|two| two[1]).collect();
    let chunk = 256 * 1024;
    assert!(back.contains(&(2 * chunk)), "{back:?}");
    assert!(back.iter().all(|at| [2 * chunk, 5 * chunk].contains(at)), "where attempts go on: {back:?}");
    assert_eq!(cluster.count("Upload"), 4, "broken, broken, told where to go on, whole");
    assert!(cluster.state().store.received_bytes < (LARGE + 256 * 1024) as u64, "nothing was sent twice");
    assert_eq!(download(&client, DownloadOptions::default()).await.unwrap(), value);
}

#[tokio::test]
async fn an_upload_whose_reply_is_lost_is_not_sent_again() {
    let cluster = FakeCluster::start(2).await;
    cluster.script(1, [Fault::Lose(lost())]);
    let error = client(&cluster).upload("k", bytes(10), UploadOptions::default()).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
    assert_eq!(cluster.count("Upload"), 1);
}

#[tokio::test]
async fn a_stream_that_cannot_be_read_again_is_not_sent_again() {
    let cluster = FakeCluster::start(1).await;
    cluster.script(1, [Fault::Refuse(no_leader())]);
    let source = UploadSource::stream(stream::iter([Ok(bytes(10))]));
    let error = client(&cluster).upload("k", source, UploadOptions::default()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    assert_eq!(cluster.count("Upload"), 1);
}

#[tokio::test]
async fn a_broken_download_is_resumed_elsewhere() {
    let (cluster, client, value) = uploaded(3).await;
    cluster.script(1, [Fault::BreakAfter(4, lost())]);
    cluster.script(2, [Fault::BreakAfter(3, no_leader())]);
    assert_eq!(download(&client, DownloadOptions::default()).await.unwrap(), value);
    assert_eq!(cluster.count("Download"), 3);
}

#[tokio::test]
async fn a_value_that_was_replaced_meanwhile_is_not_mixed() {
    let (cluster, client, _) = uploaded(1).await;
    cluster.script(1, [Fault::BreakAfter(4, lost())]);
    let mut download = client.download("k", DownloadOptions::default()).await.unwrap().unwrap();
    client.upload("k", bytes(20_000), UploadOptions::default()).await.unwrap();
    let error = download.write_to(&mut Vec::new()).await.unwrap_err();
    assert!(matches!(error, Error::ValueReplaced), "{error}");
}

#[tokio::test]
async fn a_flipped_bit_is_noticed() {
    let (cluster, client, _) = uploaded(1).await;
    cluster.script(1, [Fault::FlipBit]);
    let error = download(&client, DownloadOptions::default()).await.unwrap_err();
    assert!(matches!(error, Error::ChecksumMismatch { operation: "Download", .. }), "{error}");
}

#[tokio::test]
async fn a_stream_that_ends_too_early_is_noticed() {
    let (cluster, client, _) = uploaded(1).await;
    for options in [DownloadOptions::default(), DownloadOptions { offset: 10, ..Default::default() }] {
        cluster.script(1, [Fault::EndAfter(5)]);
        let error = download(&client, options).await.unwrap_err();
        assert!(matches!(error, Error::LengthMismatch { operation: "Download", .. }), "{error}");
    }
}
