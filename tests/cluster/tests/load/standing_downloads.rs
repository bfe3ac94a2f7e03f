//! Downloads of an uploaded value: each has some chunks at hand, whatever the size.

use bytes::Bytes;
use futures::stream;
use kv_cluster_tests::{Cluster, Plan};
use kv_proto::kv::v1::{
    DownloadRequest, UploadRequest, download_response, kv_client::KvClient, upload_request,
};
use tonic::{Status, transport::Channel};

use crate::{
    memory::{self, Memory},
    pressure::{alone, connect_narrow},
    standing::{Gate, Standing},
};

/// On one connection.
const DOWNLOADS: usize = 32;
/// All together 256 MiB.
const VALUE_BYTES: usize = 8 << 20;
/// Of one message of the upload.
const PIECE_BYTES: usize = 1 << 20;
const KEY: &str = "film";

/// Each KiB differs from the next.
fn value() -> Bytes {
    (0..VALUE_BYTES).map(|at| u8::try_from((at >> 10) % 251).expect("a byte")).collect()
}

async fn upload(cluster: &Cluster, value: &Bytes) {
    let header = upload_request::Header { key: KEY.into(), ..upload_request::Header::default() };
    let pieces = (0..VALUE_BYTES).step_by(PIECE_BYTES).map(|from| value.slice(from..from + PIECE_BYTES));
    let parts: Vec<_> = std::iter::once(upload_request::Part::Header(header))
        .chain(pieces.map(upload_request::Part::Data))
        .map(|part| UploadRequest { part: Some(part) })
        .collect();
    let uploaded = cluster.api(0).kv.upload(stream::iter(parts)).await.expect("an upload");
    assert!(uploaded.into_inner().applied, "an upload without a precondition");
}

async fn download(channel: Channel, value: Bytes, gate: Gate) -> Result<(), Status> {
    let request = DownloadRequest { key: KEY.into(), ..DownloadRequest::default() };
    let mut messages = KvClient::new(channel).download(request).await?.into_inner();
    gate.opened().await;
    let mut missing = value;
    while let Some(message) = messages.message().await? {
        if let Some(download_response::Part::Data(data)) = message.part {
            assert!(missing.starts_with(&data), "bytes arrive as they were uploaded");
            missing = missing.slice(data.len()..);
        }
    }
    assert!(missing.is_empty(), "{} B were not downloaded", missing.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_that_nobody_reads_take_a_share_of_the_memory() {
    let _alone = alone().await;
    let Some(cluster) = Cluster::start(memory::bounded(Plan::nodes(3))).await else { return };
    let value = value();
    upload(&cluster, &value).await;
    let memory = Memory::watch(&cluster);
    let mut downloads = Standing::begin();
    let channel = connect_narrow(cluster.addresses()[0]).await;
    for _ in 0..DOWNLOADS {
        downloads.add(|gate| download(channel.clone(), value.clone(), gate));
    }
    let ends = downloads.check(&cluster, &memory, "streams").await;
    assert_eq!(ends.all(), DOWNLOADS as u64, "each download has one end: {ends}");
}
