//! Downloads of values that are overwritten, deleted, or lose the replica that keeps them, while a client takes them.

use bytes::Bytes;
use kv_cluster_tests::{Cluster, DEADLINE, Plan, api::Read, seed, status::replica, wait_until};
use kv_proto::kv::v1::{
    DownloadRequest, DownloadResponse, ReadOptions, UploadRequest, download_response, key_value,
    upload_request,
};
use rand::{Rng, rngs::SmallRng};
use tonic::{Status, Streaming};

/// Far more than what client, connection and node hold of a download that nobody reads.
const VALUE_BYTES: usize = 24 << 20;
const PIECE_BYTES: usize = 1 << 20;
const KEY: &str = "film";

fn random_value(random: &mut SmallRng) -> Bytes {
    let mut value = vec![0; VALUE_BYTES];
    random.fill_bytes(&mut value);
    value.into()
}

/// Tries again until it is done: where many tests run on few cores, a shard may lose its leader at any moment.
async fn upload(cluster: &Cluster, node: usize, value: &Bytes) {
    let uploaded = wait_until("an upload", DEADLINE, || try_upload(cluster, node, value));
    uploaded.await.unwrap_or_else(|error| panic!("{error}"));
}

async fn try_upload(cluster: &Cluster, node: usize, value: &Bytes) -> Result<(), Status> {
    let header = upload_request::Header { key: KEY.into(), ..upload_request::Header::default() };
    let pieces = (0..VALUE_BYTES / PIECE_BYTES)
        .map(|piece| upload_request::Part::Data(value.slice(piece * PIECE_BYTES..(piece + 1) * PIECE_BYTES)));
    let parts: Vec<_> = std::iter::once(upload_request::Part::Header(header)).chain(pieces).collect();
    let messages = parts.into_iter().map(|part| UploadRequest { part: Some(part) });
    let mut api = cluster.api(node);
    api.kv.upload(futures::stream::iter(messages)).await?;
    Ok(())
}

/// A download of which the beginning was taken.
struct Slow {
    messages: Streaming<DownloadResponse>,
    header: download_response::Header,
    received: Vec<u8>,
}

impl Slow {
    async fn begin(cluster: &Cluster, node: usize, serve_at_node: bool) -> Self {
        let begun = wait_until("a download", DEADLINE, || Self::try_begin(cluster, node, serve_at_node));
        begun.await.unwrap_or_else(|error| panic!("{error}"))
    }

    async fn try_begin(cluster: &Cluster, node: usize, serve_at_node: bool) -> Result<Self, Status> {
        let options = ReadOptions { serve_at_node, ..ReadOptions::default() };
        let request =
            DownloadRequest { key: KEY.into(), options: Some(options), ..DownloadRequest::default() };
        let mut messages = cluster.api(node).kv.download(request).await?.into_inner();
        let first = messages.message().await?.expect("a header");
        let Some(download_response::Part::Header(header)) = first.part else { panic!("the header is first") };
        let mut slow = Self { messages, header, received: Vec::new() };
        assert!(slow.next().await?, "the first bytes");
        Ok(slow)
    }

    /// Takes a message; false at the end.
    async fn next(&mut self) -> Result<bool, Status> {
        let Some(message) = self.messages.message().await? else { return Ok(false) };
        let Some(download_response::Part::Data(data)) = message.part else { panic!("one header only") };
        self.received.extend_from_slice(&data);
        Ok(true)
    }

    async fn takes_the_rest(mut self, value: &Bytes, what: &str) {
        assert!(self.received.len() < VALUE_BYTES / 2, "{what}: the value was not large enough to be slow");
        loop {
            match self.next().await {
                Ok(true) => {}
                Ok(false) => break,
                Err(status) => panic!("{what}, after {} B: {status}", self.received.len()),
            }
        }
        assert!(self.received == value[..], "{what}: other bytes than were uploaded");
    }

    /// The node that answered the read of the key.
    fn keeper(&self) -> u64 {
        self.header.header.as_ref().expect("every reply has one").node_id
    }
}

/// Written once, as a further write would be one more that a follower has yet to hear of; a write of which nothing is known
/// is tried again.
async fn change(cluster: &Cluster, writer: usize, overwrite: bool) {
    let written = wait_until("the key to be changed", DEADLINE, || async {
        let mut api = cluster.api(writer);
        match overwrite {
            true => api.put(KEY, "small".into(), None).await.map(drop),
            false => api.delete(KEY).await.map(drop),
        }
    });
    written.await.unwrap_or_else(|error| panic!("{error}"));
    cluster.wait_caught_up().await;
    let got = wait_until("a read of the changed key", DEADLINE, || async {
        cluster.api(writer).get(KEY, Read::Linearizable).await
    });
    let value = got.await.unwrap_or_else(|error| panic!("{error}")).kv.and_then(|kv| kv.value);
    let is_changed = match value {
        Some(key_value::Value::Inline(_)) => overwrite,
        Some(key_value::Value::Blob(_)) => false,
        None => !overwrite,
    };
    assert!(is_changed, "it has its old value");
}

#[tokio::test(flavor = "multi_thread")]
async fn value_that_is_overwritten_or_deleted_meanwhile_is_downloaded_whole_from_every_node() {
    let mut random = seed::generator("value_that_is_overwritten_or_deleted_meanwhile");
    let plan = Plan::nodes(3).with_shards(1).with_flag("--flush-interval", "1s");
    let Some(cluster) = Cluster::start(plan).await else { return };
    let shard = cluster.shard_of(KEY).await;
    for node in 0..3 {
        for overwrite in [true, false] {
            let value = random_value(&mut random);
            upload(&cluster, (node + 1) % 3, &value).await;
            let slow = Slow::begin(&cluster, node, true).await;
            let leads = cluster.wait_leader(shard, &[0, 1, 2]).await == node;
            change(&cluster, (node + 2) % 3, overwrite).await;
            let what = format!("node {node}, leader {leads}, overwritten {overwrite}");
            slow.takes_the_rest(&value, &what).await;
        }
    }
}

/// Four nodes have three replicas of a shard: the node without one, and the id of each.
async fn outsider(cluster: &Cluster, shard: u32) -> (usize, Vec<u64>) {
    let statuses = cluster.statuses().await;
    let statuses: Vec<_> = statuses.into_iter().map(|status| status.expect("it answers")).collect();
    let without = statuses.iter().position(|status| replica(status, shard).is_none());
    let ids = statuses.iter().map(|status| status.node.as_ref().expect("it has an id").node_id);
    (without.expect("one of four has no replica"), ids.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn download_through_a_node_without_a_replica_is_pinned_and_outlives_its_keeper() {
    let mut random = seed::generator("download_through_a_node_without_a_replica");
    let Some(mut cluster) = Cluster::start(Plan::nodes(4).with_shards(1)).await else { return };
    let shard = cluster.shard_of(KEY).await;
    let (outsider, ids) = outsider(&cluster, shard).await;

    let value = random_value(&mut random);
    upload(&cluster, 0, &value).await;
    let slow = Slow::begin(&cluster, outsider, false).await;
    let keeper = slow.keeper();
    assert_ne!(keeper, ids[outsider]);
    change(&cluster, 1, true).await;
    slow.takes_the_rest(&value, "overwritten").await;

    upload(&cluster, 0, &value).await;
    let slow = Slow::begin(&cluster, outsider, false).await;
    let keeper = ids.iter().position(|id| *id == slow.keeper()).expect("one of the four");
    cluster.nodes[keeper].kill();
    slow.takes_the_rest(&value, "the keeper of its pin was killed").await;
}
