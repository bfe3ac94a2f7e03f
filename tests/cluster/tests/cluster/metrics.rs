//! Every metric that is listed is fed.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::StreamExt;
use kv_cluster_tests::{
    Cluster, DEADLINE, Load, LoadPlan, Plan, api::Api, metrics::scrape, operations::PERMIT_TTL,
    patient::repeat, seed, status::replica, wait_until,
};
use kv_proto::kv::v1::{
    BatchOperation, BatchRequest, BatchResponse, DownloadRequest, GetRequest, OpenSessionRequest, PutRequest,
    ScanRequest, UploadRequest, batch_operation, open_session_request, upload_request,
};
use tonic::{Code, Status, Streaming};

/// The list that operators read; generated from the code.
const REFERENCE: &str = include_str!("../../../../docs/metrics.md");

/// Metrics that a healthy cluster may leave at zero, and why.
const MAY_REST: [(&str, &str); 12] = [
    ("kv_node_quarantined_replicas", "no bytes are damaged"),
    ("kv_storage_corruptions_total", "no bytes are damaged"),
    ("kv_node_disk_level", "there is room: the tests of disks move it"),
    ("kv_raft_apply_lag_entries", "entries are applied within milliseconds of their commit"),
    ("kv_queue_length", "the queues are empty when they are looked at"),
    ("kv_queue_refused_total", "no queue is full"),
    ("kv_api_refused_total", "no client holds too much"),
    ("kv_sessions_expired_total", "what has expired is swept once a minute"),
    ("kv_sessions_evicted_total", "a shard takes thousands of sessions"),
    ("kv_batch_window_refused_total", "no window is exceeded"),
    ("kv_meta_moves", "three replicas on three nodes: the tests of moves move it"),
    ("kv_meta_moves_begun_total", "three replicas on three nodes: the tests of moves move it"),
];

/// All queues, each with its bound.
const QUEUES: [&str; 10] = [
    "proposals",
    "log_commits",
    "applies",
    "replica_inbox",
    "peer_outbox",
    "forwarded",
    "forwarded_bytes",
    "read_index",
    "pins",
    "disk_reads",
];

/// All limits of the API, each with its bound.
const LIMITS: [&str; 6] =
    ["connections", "requests", "request_bytes", "large_replies", "streams", "health_checks"];

/// The greatest value that each series had, in any node.
#[derive(Default)]
struct Seen(BTreeMap<String, f64>);

impl Seen {
    fn look(&mut self, cluster: &Cluster) {
        for node in &cluster.nodes {
            // A node that is away shows nothing.
            for (series, value) in scrape(node.ports.http_address()).unwrap_or_default() {
                let seen = self.0.entry(series).or_default();
                *seen = seen.max(value);
            }
        }
    }

    /// Of all series of a metric.
    fn greatest(&self, series: &str) -> Option<f64> {
        let of = self.0.iter().filter(|(name, _)| name.split('{').next() == Some(series));
        of.map(|(_, value)| *value).reduce(f64::max)
    }

    fn of(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or_default()
    }
}

/// Name and type of each listed metric.
fn listed() -> Vec<(&'static str, &'static str)> {
    let cells = |row: &'static str| -> Option<(&'static str, &'static str)> {
        let mut cells = row.strip_prefix("| `")?.split('|').map(str::trim);
        Some((cells.next()?.trim_end_matches('`'), cells.next()?))
    };
    REFERENCE.lines().filter_map(cells).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_listed_metric_moves_when_a_cluster_works() {
    let mut random = seed::generator("every_listed_metric_moves_when_a_cluster_works");
    let plan = Plan::nodes(3).with_shards(1).with_flag("--log-retention-bytes", "64Ki");
    let Some(mut cluster) = Cluster::start(plan.with_flag("--flush-interval", "1s")).await else { return };
    let mut seen = Seen::default();
    let load_plan = LoadPlan { value_bytes: 4_000, deletes: 0, ..LoadPlan::default() };
    let load = Load::start(load_plan, cluster.addresses(), &mut random);
    for _ in 0..10 {
        load.must_progress(50).await;
        seen.look(&cluster);
    }
    transfer_and_scan(&cluster).await;
    repeat("writes in a session".to_owned(), || writes_in_a_session(cluster.api(0))).await;
    let streams = streams(&cluster).await;
    seen.look(&cluster);
    drop(streams);
    see_a_permit(&cluster, &mut seen).await;

    let shard = cluster.shard_of("load/0").await;
    let away = (cluster.wait_leader(shard, &[0, 1, 2]).await + 1) % 3;
    let had = replica(&cluster.status(away).await, shard).expect("it has one").last_log_index;
    cluster.nodes[away].kill();
    let purged = wait_until("a log that begins after what the follower has", DEADLINE, || async {
        load.progress(50, DEADLINE).await.map_err(|error| error.to_string())?;
        let statuses = cluster.statuses().await;
        let replicas = statuses.iter().flatten().filter_map(|status| replica(status, shard));
        match replicas.map(|replica| replica.purged_index).min() {
            Some(purged) if purged > had => Ok(()),
            purged => Err(format!("purged up to {purged:?}, the follower has {had}")),
        }
    });
    purged.await.unwrap_or_else(|error| panic!("{error}"));
    cluster.nodes[away].start();
    cluster.wait_whole().await;
    load.must_progress(50).await;
    seen.look(&cluster);
    load.finish().await;
    cluster.wait_caught_up().await;
    seen.look(&cluster);

    let listed = listed();
    assert!(listed.len() > 30, "{listed:?}");
    for (name, kind) in listed {
        let series = match kind {
            "histogram" => format!("{name}_count"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        };
        let greatest = seen.greatest(&series);
        let may_rest = MAY_REST.iter().any(|(resting, _)| *resting == name);
        assert!(greatest.is_some(), "{name} is never shown");
        assert!(may_rest || greatest > Some(0.0), "{name} never moves");
    }
    for queue in QUEUES {
        assert!(seen.of(&format!("kv_queue_limit{{queue=\"{queue}\"}}")) > 0.0, "{queue} has no bound");
    }
    for limit in LIMITS {
        assert!(seen.of(&format!("kv_api_limit{{limit=\"{limit}\"}}")) > 0.0, "{limit} has no bound");
    }
    for method in ["Put", "Get", "Scan", "Upload", "Download"] {
        let count = seen.of(&format!("kv_requests_total{{method=\"kv.v1.Kv/{method}\",status=\"OK\"}}"));
        assert!(count > 0.0, "{method} is not counted");
    }
}

/// While one is open.
async fn see_a_permit(cluster: &Cluster, seen: &mut Seen) {
    let token = cluster.wait_permit(0, 1, PERMIT_TTL).await.token;
    let shown = wait_until("the open permit", DEADLINE, || {
        seen.look(cluster);
        let open = seen.greatest("kv_meta_permits_open");
        async move { if open > Some(0.0) { Ok(()) } else { Err(format!("{open:?}")) } }
    });
    shown.await.unwrap_or_else(|error| panic!("{error}"));
    cluster.release(0, &token).await;
}

/// An upload, its download and a scan, at each node.
async fn transfer_and_scan(cluster: &Cluster) {
    let value = Bytes::from(vec![7; 3 << 20]);
    for node in 0..3 {
        let key: Bytes = format!("photo{node}").into();
        let upload = || upload(cluster.api(node), key.clone(), value.clone());
        repeat(format!("an upload to node {node}"), upload).await;
        repeat(format!("its download from node {node}"), || download(cluster.api(node), key.clone())).await;
        repeat(format!("a scan at node {node}"), || scan(cluster.api(node))).await;
    }
}

/// A write that is sent twice, and one that its session has acknowledged.
async fn writes_in_a_session(mut api: Api) -> Result<(), Status> {
    let shard = Some(open_session_request::Shard::Key("k".into()));
    let session = api.kv.open_session(OpenSessionRequest { shard, ttl_ms: 0 }).await?.into_inner();
    let put = |sequence| PutRequest {
        key: "k".into(),
        session_id: session.session_id,
        sequence,
        lowest_outstanding: sequence,
        ..PutRequest::default()
    };
    api.kv.put(put(2)).await?;
    assert!(api.kv.put(put(2)).await?.into_inner().replayed);
    let refused = api.kv.put(put(1)).await.expect_err("acknowledged");
    if refused.code() == Code::FailedPrecondition { Ok(()) } else { Err(refused) }
}

/// An open stream to each node, on which a key was written and read.
async fn streams(cluster: &Cluster) -> Vec<Streaming<BatchResponse>> {
    let mut streams = Vec::new();
    for node in 0..3 {
        streams.push(repeat(format!("a stream to node {node}"), || stream(cluster.api(node))).await);
    }
    streams
}

async fn stream(mut api: Api) -> Result<Streaming<BatchResponse>, Status> {
    let put = PutRequest { key: "streamed".into(), ..PutRequest::default() };
    let get = GetRequest { key: "streamed".into(), ..GetRequest::default() };
    let one = |id, operation| BatchOperation { id, operation: Some(operation), ..BatchOperation::default() };
    let operations =
        vec![one(1, batch_operation::Operation::Put(put)), one(2, batch_operation::Operation::Get(get))];
    // It never ends, and with it the stream.
    let requests = futures::stream::iter([BatchRequest { operations }]).chain(futures::stream::pending());
    let mut replies = api.kv.batch(requests).await?.into_inner();
    let mut answered = 0;
    while answered < 2 {
        let reply = replies.message().await?.ok_or_else(|| Status::unavailable("the stream has ended"))?;
        answered += reply.results.len();
    }
    Ok(replies)
}

async fn upload(mut api: Api, key: Bytes, value: Bytes) -> Result<(), Status> {
    let header = upload_request::Header { key, ..Default::default() };
    let data = (0..3).map(|part| upload_request::Part::Data(value.slice(part << 20..(part + 1) << 20)));
    let parts: Vec<_> = std::iter::once(upload_request::Part::Header(header)).chain(data).collect();
    let messages = parts.into_iter().map(|part| UploadRequest { part: Some(part) });
    api.kv.upload(futures::stream::iter(messages)).await.map(drop)
}

async fn download(mut api: Api, key: Bytes) -> Result<(), Status> {
    let request = DownloadRequest { key, ..DownloadRequest::default() };
    let mut messages = api.kv.download(request).await?.into_inner();
    while let Some(message) = messages.next().await {
        message?;
    }
    Ok(())
}

async fn scan(mut api: Api) -> Result<(), Status> {
    let mut pages = api.kv.scan(ScanRequest::default()).await?.into_inner();
    while let Some(page) = pages.next().await {
        page?;
    }
    Ok(())
}
