//! A client that asks for much and reads nothing: it stands still and holds little, all others go on, and when it reads
//! after all, everything that it asked for is there.

use std::time::Instant;

use bytes::Bytes;
use kv_cluster_tests::{Cluster, Plan, api::Read, metrics::scrape};
use kv_proto::kv::v1::{BatchResponse, GetRequest, GetResponse, batch_result, key_value::Value};
use tokio::{sync::watch, task::JoinSet};
use tonic::{
    Request, Response, Status, Streaming, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel,
};
use tonic_prost::ProstCodec;

use crate::pressure::{self, DEADLINE, Ends, MIB, Memory, alone, read_all, steady, stream_of};

/// Different values, few enough that nobody's cache counts.
const VALUES: u64 = 8;
/// What goes in an answer without the share of a large one.
const VALUE_BYTES: usize = 60 << 10;
/// On a connection, each with 60 MiB of answers.
const STREAMS: usize = 4;
const GETS: u64 = 1_024;
/// The largest value that a unary get answers with.
const LARGE_VALUE_BYTES: usize = 1 << 20;
/// On another connection.
const LARGE_GETS: usize = 200;

/// By how much the node may grow, where 440 MiB are asked for: on each of two connections eight large replies of 4 MiB; on
/// each stream a message of up to 4 MiB that waits for the transport, and 1 MiB beside it; as much again for copies that
/// are freed, and given back to the system later.
const GROWTH_MAX: u64 = 2 * (2 * 8 * 4 + STREAMS as u64 * (4 + 1)) * MIB;

fn value(number: u64, length: usize) -> Bytes {
    vec![u8::try_from(number % 251).expect("a byte"); length].into()
}

fn small(number: u64) -> String {
    format!("small/{}", number % VALUES)
}

fn large(number: usize) -> String {
    format!("large/{}", number as u64 % VALUES)
}

async fn fill(cluster: &Cluster) {
    let mut api = cluster.api(0);
    for number in 0..VALUES {
        for (key, length) in [(small(number), VALUE_BYTES), (format!("large/{number}"), LARGE_VALUE_BYTES)] {
            api.put(&key, value(number, length), None).await.expect("a put");
        }
    }
}

/// A unary get as far as the head of its reply; the value is read when somebody reads it.
async fn begin_get(channel: Channel, key: String) -> Result<Streaming<GetResponse>, Status> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.expect("a connection");
    let mut request = Request::new(GetRequest { key: key.into(), ..GetRequest::default() });
    request.set_timeout(DEADLINE);
    let path = PathAndQuery::from_static("/kv.v1.Kv/Get");
    let codec = ProstCodec::<GetRequest, GetResponse>::default();
    grpc.server_streaming(request, path, codec).await.map(Response::into_inner)
}

/// Asks for a large value and does not read it until it is told to.
async fn large_get(channel: Channel, number: usize, mut reads: watch::Receiver<bool>) -> Result<(), Status> {
    let mut reply = begin_get(channel, large(number)).await?;
    reads.wait_for(|reads| *reads).await.expect("the test goes on");
    let got = reply.message().await?.expect("a reply");
    let found = got.kv.and_then(|kv| kv.value);
    let expected = value(number as u64 % VALUES, LARGE_VALUE_BYTES);
    assert!(found == Some(Value::Inline(expected)), "a value arrives as it was written");
    Ok(())
}

/// Reads all answers of a stream.
async fn read_gets(mut replies: Streaming<BatchResponse>, begun: Instant) -> Ends {
    let (mut ends, mut answered) = (Ends::default(), vec![false; usize::try_from(GETS).expect("few")]);
    read_all(&mut replies, |id, result| {
        let place = &mut answered[usize::try_from(id).expect("one of ours")];
        assert!(!std::mem::replace(place, true), "operation {id} is answered twice");
        if let Some(batch_result::Result::Get(got)) = &result {
            let found = got.kv.as_ref().and_then(|kv| kv.value.clone());
            let expected = Value::Inline(value(id % VALUES, VALUE_BYTES));
            assert!(found == Some(expected), "the value of {id} arrives as it was written");
        }
        ends.streamed(result.as_ref(), begun.elapsed());
    })
    .await
    .expect("the stream ends in order");
    assert!(answered.iter().all(|answered| *answered), "every operation is answered: {ends}");
    ends
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stands_still_holds_little_and_loses_nothing_and_others_go_on() {
    let _alone = alone().await;
    let Some(cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    fill(&cluster).await;
    steady(&cluster, "before").await;
    let memory = Memory::watch(&cluster.nodes[0]);
    let address = cluster.addresses()[0];

    let begun = Instant::now();
    let (reads, told) = watch::channel(false);
    let (slow, other) = (pressure::connect_narrow(address).await, pressure::connect_narrow(address).await);
    let gets: Vec<_> = (0..GETS).map(|id| pressure::get(id, small(id))).collect();
    let mut unread = Vec::new();
    for _ in 0..STREAMS {
        unread.push(stream_of(slow.clone(), &gets).await.expect("a stream"));
    }
    let mut large_gets = JoinSet::new();
    for number in 0..LARGE_GETS {
        large_gets.spawn(large_get(other.clone(), number, told.clone()));
    }

    // Others of the same address are served, large values included.
    steady(&cluster, "beside").await;
    for number in 0..20 {
        let got = cluster.api(0).get(&large(number), Read::Linearizable).await.expect("a large value");
        let expected = value(number as u64 % VALUES, LARGE_VALUE_BYTES);
        assert!(got.kv.and_then(|kv| kv.value) == Some(Value::Inline(expected)));
    }
    let shown = scrape(cluster.nodes[0].ports.http_address()).expect("metrics");
    let shows = |series: &str| shown.get(series).copied().unwrap_or_default();
    let (streams, large) = (shows("kv_batch_streams"), shows("kv_api_in_use{limit=\"large_replies\"}"));
    println!("{streams} streams stand still, {large} large replies wait");
    assert!(streams >= STREAMS as f64 && large > 0.0, "{streams} streams, {large} large replies");

    reads.send(true).expect("somebody waits");
    let mut ends = Ends::default();
    while let Some(got) = large_gets.join_next().await {
        ends.unary(got.expect("it is told nothing else"), begun.elapsed());
    }
    println!("large values: {ends}");
    assert_eq!(ends.done(), LARGE_GETS as u64, "large values: {ends}");
    // All at once: they share the window of their connection.
    let mut streams: JoinSet<Ends> = unread.into_iter().map(|replies| read_gets(replies, begun)).collect();
    let mut ends = Ends::default();
    while let Some(read) = streams.join_next().await {
        ends.add(read.expect("a stream is told nothing else"));
    }
    println!("streams: {ends}");
    assert_eq!(ends.done(), GETS * STREAMS as u64, "streams: {ends}");
    if let Some(memory) = memory {
        println!("the node grew by {} MiB", memory.growth() / MIB);
        assert!(memory.growth() <= GROWTH_MAX, "the node grew by {} MiB", memory.growth() / MIB);
    }
}
