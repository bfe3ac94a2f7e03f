//! A client that asks for much and reads nothing: it stands still and no node takes more than its memory, all others go on,
//! and when it reads after all, everything that it asked for is there.

use std::time::Instant;

use bytes::Bytes;
use kv_cluster_tests::{Cluster, Plan, api::Read, metrics::scrape};
use kv_proto::kv::v1::{BatchResponse, batch_result, key_value::Value};
use tokio::task::JoinSet;
use tonic::{Status, Streaming, transport::Channel};

use crate::{
    memory::{self, Memory},
    pressure::{self, Ends, alone, read_all, steady, stream_of, write_and_read},
    standing::{self, Gate, begin_get},
};

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

/// Asks for a large value and does not read it until the gate opens.
async fn large_get(channel: Channel, number: usize, gate: Gate) -> Result<(), Status> {
    let mut reply = begin_get(channel, large(number)).await?;
    gate.opened().await;
    let got = reply.message().await?.expect("a reply");
    let found = got.kv.and_then(|kv| kv.value);
    let expected = value(number as u64 % VALUES, LARGE_VALUE_BYTES);
    assert!(found == Some(Value::Inline(expected)), "a value arrives as it was written");
    Ok(())
}

/// Reads all answers of a stream as soon as the gate opens.
async fn read_gets(mut replies: Streaming<BatchResponse>, begun: Instant, gate: Gate) -> Ends {
    gate.opened().await;
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

/// Small calls of the same address, and large values of another one: what a node has for large replies is shared out by
/// address.
async fn serves_others(cluster: &Cluster) {
    steady(cluster, "beside").await;
    let neighbour = pressure::connect_beside_readers(cluster.addresses()[0]).await;
    for number in 0..20 {
        write_and_read(neighbour.clone(), &format!("neighbour/{number}")).await;
        let got = cluster.api(0).get(&large(number), Read::Linearizable).await.expect("a large value");
        let expected = value(number as u64 % VALUES, LARGE_VALUE_BYTES);
        assert!(got.kv.and_then(|kv| kv.value) == Some(Value::Inline(expected)));
    }
}

fn assert_standing(cluster: &Cluster) {
    let shown = scrape(cluster.nodes[0].ports.http_address()).expect("metrics");
    let shows = |series: &str| shown.get(series).copied().unwrap_or_default();
    let (streams, large) = (shows("kv_batch_streams"), shows("kv_api_in_use{limit=\"large_replies\"}"));
    println!("{streams} streams stand still, {large} large replies wait");
    assert!(streams >= STREAMS as f64 && large > 0.0, "{streams} streams, {large} large replies");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stands_still_holds_little_and_loses_nothing_and_others_go_on() {
    let _alone = alone().await;
    let Some(cluster) = Cluster::start(memory::bounded(Plan::nodes(3))).await else { return };
    fill(&cluster).await;
    steady(&cluster, "before").await;
    let memory = Memory::watch(&cluster);
    let address = cluster.addresses()[0];

    let begun = Instant::now();
    let (opens, gate) = standing::gate();
    let (slow, other) = (pressure::connect_narrow(address).await, pressure::connect_narrow(address).await);
    let gets: Vec<_> = (0..GETS).map(|id| pressure::get(id, small(id))).collect();
    // Whatever is read is read at once: streams share the window of their connection, and all share large replies.
    let (mut streams, mut large_gets) = (JoinSet::new(), JoinSet::new());
    for _ in 0..STREAMS {
        let replies = stream_of(slow.clone(), &gets).await.expect("a stream");
        streams.spawn(read_gets(replies, begun, gate.clone()));
    }
    for number in 0..LARGE_GETS {
        large_gets.spawn(large_get(other.clone(), number, gate.clone()));
    }
    serves_others(&cluster).await;
    assert_standing(&cluster);
    memory.check();

    opens.send(true).expect("somebody waits");
    let mut ends = Ends::default();
    while let Some(got) = large_gets.join_next().await {
        ends.unary(got.expect("it is told nothing else"), begun.elapsed());
    }
    println!("large values: {ends}");
    assert_eq!(ends.done(), LARGE_GETS as u64, "large values: {ends}");
    let mut ends = Ends::default();
    while let Some(read) = streams.join_next().await {
        ends.add(read.expect("a stream is told nothing else"));
    }
    println!("streams: {ends}");
    assert_eq!(ends.done(), GETS * STREAMS as u64, "streams: {ends}");
    memory.check();
}
