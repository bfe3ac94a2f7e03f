//! Uploads and downloads through gRPC on loopback, over the fake store.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use kv_proto::{
    disk::v1::operation,
    kv::v1::{
        DeleteRequest, DownloadRequest, DownloadResponse, GetRequest, Precondition, PutRequest,
        UploadRequest, download_response, key_value, kv_client::KvClient, precondition, upload_request,
    },
    peer::v1::{read_request, refusal::Kind},
};
use kv_topology::{KeyspaceId, Slot};
use kvnode::api::limits::{CHUNK_BYTES, Limit, STREAM_WINDOW_BYTES, UPLOAD_WINDOW_CHUNKS};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::fake::{Asked, map_of, refusal};
use crate::support::{Harness, field, metadata, told, until, upload, upload_messages, value_of, within};

fn header(key: &'static str) -> upload_request::Header {
    upload_request::Header { key: key.into(), ..upload_request::Header::default() }
}

fn at(position: u64) -> usize {
    usize::try_from(position).expect("values of tests are small")
}

fn sha256(value: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&Sha256::digest(value))
}

/// A whole download: its header and its bytes.
async fn download(
    client: &mut KvClient<Channel>,
    request: DownloadRequest,
) -> Result<(download_response::Header, Vec<u8>), Status> {
    let mut messages = within("a download", client.download(request)).await?.into_inner();
    let first = within("the header", messages.message()).await?;
    let Some(DownloadResponse { part: Some(download_response::Part::Header(header)) }) = first else {
        panic!("the header comes first: {first:?}");
    };
    let mut value = Vec::new();
    while let Some(message) = within("bytes", messages.message()).await? {
        let Some(download_response::Part::Data(data)) = message.part else { panic!("one header only") };
        assert!(!data.is_empty() && data.len() <= CHUNK_BYTES);
        value.extend_from_slice(&data);
    }
    assert_eq!(header.length_bytes, value.len() as u64);
    Ok((header, value))
}

fn whole(key: &'static str) -> DownloadRequest {
    DownloadRequest { key: key.into(), ..DownloadRequest::default() }
}

async fn nothing_is_visible(harness: &Harness) {
    until("the abort of the upload", || harness.store.open_uploads() == 0).await;
    assert!(harness.store.keys().is_empty());
}

#[tokio::test]
async fn values_of_all_sizes_come_back_as_they_were() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    for size in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 77, 12 << 20] {
        for piece in [1000, CHUNK_BYTES, (4 << 20) - 100] {
            if size / piece > 2_000 {
                continue;
            }
            let value = value_of(size);
            let wanted = upload_request::Header {
                size_bytes: Some(size as u64),
                sha256: sha256(&value),
                ..header("k")
            };
            let uploaded = upload(&mut client, wanted, &value, piece).await.expect("an upload");
            assert!(uploaded.applied && uploaded.header.is_some_and(|header| header.cluster_id == "fake"));
            let (header, got) = download(&mut client, whole("k")).await.expect("a download");
            assert!(got == value, "{size} B in messages of {piece} B");
            let blob = header.blob.expect("described");
            assert_eq!((blob.size_bytes, blob.sha256), (size as u64, sha256(&value)));
        }
    }
    let got = client
        .get(GetRequest { key: "k".into(), ..GetRequest::default() })
        .await
        .expect("a get")
        .into_inner();
    assert!(
        matches!(got.kv.and_then(|kv| kv.value), Some(key_value::Value::Blob(_))),
        "described, not shown"
    );
}

#[tokio::test]
async fn any_slice_of_a_value_can_be_read() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    let value = value_of(3 * CHUNK_BYTES + 5);
    upload(&mut client, header("blob"), &value, CHUNK_BYTES).await.expect("an upload");
    let small = value.slice(..1_000);
    let put = PutRequest { key: "inline".into(), value: small.clone(), ..PutRequest::default() };
    client.put(put).await.expect("a put");
    let chunk = CHUNK_BYTES as u64;
    for (key, value) in [("blob", &value), ("inline", &small)] {
        let size = value.len() as u64;
        for (offset, length) in
            [(0, 0), (1, 1), (chunk - 1, 2), (chunk, chunk), (size - 1, 10), (size, 0), (7, size * 2)]
        {
            let request = DownloadRequest { offset, length, ..whole(key) };
            if offset > size {
                assert_eq!(
                    field(&download(&mut client, request).await.expect_err("behind the end")),
                    "offset"
                );
                continue;
            }
            let end = if length == 0 { size } else { size.min(offset + length) };
            let (header, got) = download(&mut client, request).await.expect("a download");
            assert!(got == value[at(offset)..at(end)], "{key} {offset} {length}");
            assert_eq!(header.blob.map(|blob| blob.sha256), Some(sha256(value)));
        }
    }
    let status = download(&mut client, whole("none")).await.expect_err("absent");
    assert_eq!(told(&status), (Code::NotFound, "KEY_NOT_FOUND".to_owned()));
}

/// The messages of a value of 4 MiB, and how many bytes of it were taken by the transport.
fn counted_upload(key: &'static str) -> (impl Stream<Item = UploadRequest>, Arc<AtomicUsize>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = taken.clone();
    let messages = upload_messages(header(key), &value_of(4 << 20), 16 << 10);
    let messages = tokio_stream::iter(messages).inspect(move |message| {
        if let Some(upload_request::Part::Data(data)) = &message.part {
            counted.fetch_add(data.len(), Ordering::Relaxed);
        }
    });
    (messages, taken)
}

#[tokio::test]
async fn uploads_to_a_shard_that_stands_still_hold_up_no_other_on_their_connection() {
    const UPLOADS: usize = 8;
    let harness = Harness::start().await;
    let shard_of = |key: &str| map_of(5).shard_of(Slot::of(KeyspaceId(0), key.as_bytes()));
    let slow = shard_of("{slow}").expect("all slots are owned");
    harness.store.slow([slow]);
    let fast = (0..).map(|number| format!("k{number}")).find(|key| shard_of(key) != Some(slow));
    let fast = Bytes::from(fast.expect("there are many"));
    let mut client = harness.client().await;
    let mut uploads = Vec::new();
    for _ in 0..UPLOADS {
        let (messages, taken) = counted_upload("{slow}");
        let mut client = client.clone();
        uploads.push(tokio::spawn(async move { client.upload(messages).await }));
        // As far as the node lets it, or nearly: each of them has its window.
        let most = STREAM_WINDOW_BYTES as usize / 4 * 3;
        until("most of a window", || taken.load(Ordering::Relaxed) >= most).await;
    }
    until("their places", || harness.taken(Limit::Streams) == UPLOADS).await;
    let counted = harness.taken(Limit::RequestBytes);
    assert!(counted >= UPLOADS * STREAM_WINDOW_BYTES as usize, "{counted} B counted");
    for _ in 0..20 {
        let put = PutRequest { key: fast.clone(), value: value_of(64 << 10), ..PutRequest::default() };
        within("a put beside them", client.put(put)).await.expect("a put");
    }
    harness.store.slow([]);
    for upload in uploads {
        within("an upload", upload).await.expect("no panic").expect("an upload");
    }
    until("what they held", || harness.taken(Limit::RequestBytes) == 0).await;
}

#[tokio::test]
async fn an_upload_that_does_not_match_its_header_leaves_nothing() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    let value = value_of(2 * CHUNK_BYTES + 9);
    let size = value.len() as u64;
    let table: [(upload_request::Header, &str); 3] = [
        (upload_request::Header { sha256: sha256(b"other"), ..header("k") }, "header.sha256"),
        (upload_request::Header { size_bytes: Some(size + 1), ..header("k") }, "header.size_bytes"),
        (upload_request::Header { size_bytes: Some(size - 1), ..header("k") }, "header.size_bytes"),
    ];
    for (wanted, name) in table {
        let status = upload(&mut client, wanted, &value, 100_000).await.expect_err(name);
        assert_eq!(field(&status), name);
        nothing_is_visible(&harness).await;
    }
    assert!(harness.store.chunks_taken.load(Ordering::Relaxed) > 0, "the checks came after chunks");
}

#[tokio::test]
async fn the_messages_of_an_upload_come_in_order() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    let send = async |messages: Vec<UploadRequest>, client: &mut KvClient<Channel>| {
        client.upload(tokio_stream::iter(messages)).await.expect_err("wrong messages")
    };
    let data = upload_messages(header("k"), &value_of(5), 5).pop().expect("data");
    assert_eq!(field(&send(Vec::new(), &mut client).await), "header");
    assert_eq!(field(&send(vec![data.clone()], &mut client).await), "header");
    assert_eq!(field(&send(vec![UploadRequest::default()], &mut client).await), "header");
    let twice =
        [upload_messages(header("k"), &value_of(5), 5), upload_messages(header("k"), &value_of(5), 5)]
            .concat();
    assert_eq!(field(&send(twice, &mut client).await), "data");
    nothing_is_visible(&harness).await;
}

#[tokio::test]
async fn a_precondition_that_fails_is_a_reply() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    let absent = Some(Precondition { condition: Some(precondition::Condition::Absent(true)) });
    let wanted = upload_request::Header { precondition: absent, ..header("k") };
    assert!(upload(&mut client, wanted.clone(), &value_of(10), 10).await.expect("an upload").applied);
    let second = upload(&mut client, wanted, &value_of(1 << 20), 1 << 18).await.expect("a reply");
    assert!(!second.applied);
    assert_eq!(second.kv.map(|kv| kv.version), Some(1));
    let (_, got) = download(&mut client, whole("k")).await.expect("a download");
    assert!(got == value_of(10));
    assert_eq!(harness.store.open_uploads(), 0);
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing() {
    let harness = Harness::start().await;
    let mut taken = 0;
    for keeps_its_connection in [true, false] {
        let mut client = harness.client().await;
        let kept = keeps_its_connection.then(|| client.clone());
        let (messages, stream) = mpsc::channel(1);
        let uploading = tokio::spawn(async move { client.upload(ReceiverStream::new(stream)).await });
        for message in upload_messages(header("k"), &value_of(3 * CHUNK_BYTES), CHUNK_BYTES) {
            messages.send(message).await.expect("the upload is running");
        }
        taken += 3;
        until("all chunks", || harness.store.chunks_taken.load(Ordering::Relaxed) == taken).await;
        assert_eq!(harness.store.open_uploads(), 1);
        // A reset of the stream, or of the connection with it. The sender lives on: were it dropped, the stream of
        // messages would end as it does when all was said.
        uploading.abort();
        nothing_is_visible(&harness).await;
        drop((messages, kept));
    }
}

#[tokio::test]
async fn chunks_that_overtake_each_other_arrive_in_order() {
    let harness = Harness::start().await;
    harness.store.overtakes.store(true, Ordering::Relaxed);
    let mut client = harness.client().await;
    let value = value_of(9 * CHUNK_BYTES + 1);
    upload(&mut client, header("k"), &value, 3 << 20).await.expect("an upload");
    let (_, got) = download(&mut client, whole("k")).await.expect("a download");
    assert!(got == value);
    let taken = harness.store.chunks_taken.load(Ordering::Relaxed);
    assert!(taken > 10, "some had to be sent again: {taken}");
    assert!(taken <= 10 + UPLOAD_WINDOW_CHUNKS * 3, "each at most once: {taken}");
}

#[tokio::test]
async fn a_named_upload_is_resumed_where_the_store_stands() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    let value = value_of(5 * CHUNK_BYTES + 3);
    let named =
        upload_request::Header { upload_id: vec![9; 16].into(), sha256: sha256(&value), ..header("k") };
    let lost = refusal(Kind::OutcomeUnknown, "OUTCOME_UNKNOWN");
    harness.store.refuse(is_chunk(3), lost);
    let status = upload(&mut client, named.clone(), &value, CHUNK_BYTES).await.expect_err("scripted");
    assert_eq!(told(&status), (Code::Unavailable, "NOT_APPLIED_UPLOAD_INTERRUPTED".to_owned()));
    assert_eq!(metadata(&status, "upload_id").as_deref(), Some("09".repeat(16).as_str()));
    let stored: u64 =
        metadata(&status, "stored_bytes").and_then(|bytes| bytes.parse().ok()).expect("a number");
    assert_eq!(stored, 3 * CHUNK_BYTES as u64);
    assert_eq!((harness.store.open_uploads(), harness.store.keys().len()), (1, 0), "kept, and not visible");

    // From the wrong byte: told the right one.
    let wrong = upload_request::Header { resume_from_bytes: CHUNK_BYTES as u64, ..named.clone() };
    let status = upload(&mut client, wrong, &value, CHUNK_BYTES).await.expect_err("another byte");
    assert_eq!(told(&status), (Code::FailedPrecondition, "UPLOAD_OFFSET".to_owned()));
    assert_eq!(metadata(&status, "stored_bytes"), Some(stored.to_string()));

    let resumed = upload_request::Header { resume_from_bytes: stored, ..named };
    let rest = value.slice(at(stored)..);
    assert!(upload(&mut client, resumed, &rest, 1 << 20).await.expect("an upload").applied);
    let (_, got) = download(&mut client, whole("k")).await.expect("a download");
    assert!(got == value);
}

fn is_chunk(number: u32) -> impl Fn(&Asked<'_>) -> bool + Send {
    move |asked| {
        match asked {
        Asked::Write(_, operations) => operations.iter().any(
            |operation| matches!(&operation.kind, Some(operation::Kind::UploadChunk(chunk)) if chunk.number == number),
        ),
        Asked::Read(_) => false,
    }
    }
}

fn is_commit(asked: &Asked<'_>) -> bool {
    let Asked::Write(_, operations) = asked else { return false };
    operations.iter().any(|operation| matches!(operation.kind, Some(operation::Kind::UploadCommit(_))))
}

#[tokio::test]
async fn only_the_commit_of_an_upload_can_have_an_unknown_outcome() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    harness.store.refuse(is_commit, refusal(Kind::OutcomeUnknown, "OUTCOME_UNKNOWN"));
    let status = upload(&mut client, header("k"), &value_of(10), 10).await.expect_err("scripted");
    assert_eq!(told(&status), (Code::Unknown, "OUTCOME_UNKNOWN".to_owned()));
    assert_eq!(
        harness.store.open_uploads(),
        1,
        "an abort could hit a committed value: the sweep knows better"
    );
    harness.store.refuse(is_commit, refusal(Kind::NotApplied, "NOT_APPLIED_NO_LEADER"));
    let status = upload(&mut client, header("k"), &value_of(10), 10).await.expect_err("scripted");
    assert_eq!(told(&status), (Code::Unavailable, "NOT_APPLIED_NO_LEADER".to_owned()));
    until("the abort of the second upload", || harness.store.open_uploads() == 1).await;
}

/// A download whose client has taken the header and the first bytes: the rest waits for it.
struct Slow {
    messages: Streaming<DownloadResponse>,
    value: Bytes,
    received: usize,
}

impl Slow {
    async fn begin(harness: &Harness) -> Self {
        let mut client = harness.client().await;
        let value = value_of(40 * CHUNK_BYTES);
        upload(&mut client, header("k"), &value, 1 << 20).await.expect("an upload");
        let messages = client.download(whole("k")).await.expect("a download").into_inner();
        let mut slow = Self { messages, value, received: 0 };
        for _ in 0..3 {
            assert!(slow.next().await.expect("no refusal"), "it goes on");
        }
        slow
    }

    /// Takes a message; false at the end.
    async fn next(&mut self) -> Result<bool, Status> {
        let Some(message) = within("a message", self.messages.message()).await? else { return Ok(false) };
        if let Some(download_response::Part::Data(data)) = message.part {
            assert!(data == self.value.slice(self.received..self.received + data.len()), "the old value");
            self.received += data.len();
        }
        Ok(true)
    }

    async fn rest(&mut self) -> Result<(), Status> {
        while self.next().await? {}
        Ok(())
    }
}

/// The key is overwritten, or deleted.
async fn change(harness: &Harness, overwrite: bool) {
    let mut client = harness.client().await;
    if overwrite {
        let put = PutRequest { key: "k".into(), value: "new".into(), ..PutRequest::default() };
        client.put(put).await.expect("a put");
    } else {
        let delete = DeleteRequest { key: "k".into(), ..DeleteRequest::default() };
        client.delete(delete).await.expect("a delete");
    }
}

#[tokio::test]
async fn a_value_that_is_overwritten_or_deleted_under_a_download_is_downloaded_whole() {
    for overwrite in [true, false] {
        let harness = Harness::start().await;
        let mut slow = Slow::begin(&harness).await;
        change(&harness, overwrite).await;
        slow.rest().await.expect("the value was pinned");
        assert_eq!(slow.received, slow.value.len());
        until("the end of the pin", || harness.store.pins() == 0).await;
    }
}

#[tokio::test]
async fn a_download_whose_client_goes_away_pins_nothing() {
    let harness = Harness::start().await;
    let slow = Slow::begin(&harness).await;
    assert_eq!(harness.store.pins(), 1);
    drop(slow);
    until("the end of the pin", || harness.store.pins() == 0).await;
    let behind = DownloadRequest { offset: 1 << 40, ..whole("k") };
    let mut client = harness.client().await;
    assert_eq!(field(&download(&mut client, behind).await.expect_err("behind the end")), "offset");
    until("the end of the pin", || harness.store.pins() == 0).await;
}

#[tokio::test]
async fn a_download_whose_pin_is_gone_goes_on_as_long_as_the_key_has_the_value() {
    let harness = Harness::start().await;
    let mut slow = Slow::begin(&harness).await;
    harness.store.forget_pins();
    slow.rest().await.expect("nothing was overwritten");
    assert_eq!(slow.received, slow.value.len());
}

#[tokio::test]
async fn a_value_that_is_overwritten_under_a_download_without_a_pin_is_never_mixed() {
    for refused in [true, false] {
        let harness = Harness::start().await;
        harness.store.refuses_pins.store(refused, Ordering::Relaxed);
        let mut slow = Slow::begin(&harness).await;
        harness.store.forget_pins();
        change(&harness, true).await;
        let status = slow.rest().await.expect_err("neither pinned nor there");
        assert_eq!(told(&status), (Code::Unavailable, "VALUE_REPLACED".to_owned()));
        assert!(slow.received < slow.value.len());
    }
}

#[tokio::test]
async fn damaged_chunks_are_found_before_they_are_served() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    upload(&mut client, header("k"), &value_of(100), 100).await.expect("an upload");
    harness.store.damage_chunks();
    let status = download(&mut client, whole("k")).await.expect_err("damaged");
    assert_eq!(told(&status), (Code::DataLoss, "DATA_LOSS".to_owned()));
}

#[tokio::test]
async fn every_read_of_a_download_has_the_callers_options() {
    let harness = Harness::start().await;
    let mut client = harness.client().await;
    upload(&mut client, header("k"), &value_of(CHUNK_BYTES * 2), CHUNK_BYTES).await.expect("an upload");
    let options = kv_proto::kv::v1::ReadOptions {
        consistency: kv_proto::kv::v1::Consistency::Stale.into(),
        max_staleness_ms: 77,
        min_revision: 0,
        serve_at_node: true,
    };
    // A read without them is refused: it would end the download.
    for blob in [true, false] {
        harness.store.refuse(
            move |asked| {
                let Asked::Read(request) = asked else { return false };
                let is_blob = matches!(request.read, Some(read_request::Read::Blob(_)));
                is_blob == blob && request.options != Some(options)
            },
            refusal(Kind::Internal, "WITHOUT_OPTIONS"),
        );
    }
    download(&mut client, DownloadRequest { options: Some(options), ..whole("k") })
        .await
        .expect("a download");
    assert!(download(&mut client, whole("k")).await.is_err(), "the script works");
}
