//! A burst of many times of what a node can do: all that is too much is refused at once, with a time to come again; memory
//! stays within its limits, and when the burst is over all is as before.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_cluster_tests::{Cluster, Plan, metrics::scrape};
use kv_proto::kv::v1::{GetRequest, PutRequest, kv_client::KvClient};
use tokio::task::JoinSet;
use tonic::{Request, transport::Channel};

use crate::{
    memory::{self, Memory},
    pressure::{self, DEADLINE, Ends, alone, read_all, steady, stream_of},
};

/// Each takes 256 calls at once, all together 6,144: three times of what one address may have in flight at a node.
const CONNECTIONS: usize = 24;
const CALLERS_PER_CONNECTION: usize = 256;
/// One after the other, by each caller, without a pause.
const CALLS: usize = 2;
/// Streams with full windows: 4,096 operations, 7 MiB. All together half a gigabyte, where one address may have 13 MiB of
/// requests in flight: half of what a node with 256 MiB has for all.
const STREAMS: usize = 64;
const STREAM_CONNECTIONS: usize = 4;
const STREAM_OPERATIONS: u64 = 4_096;
const VALUE_BYTES: usize = 1_700;

/// The p99 of what was admitted: half of its deadline. Two busy cores took 0.5 to 1.9 s for calls, and 1.1 to 3.0 s for
/// operations of streams; a queue without a bound would take all of the deadline.
const P99_MAX: Duration = Duration::from_secs(10);
/// The small load after the burst takes no more than so many times what it took before, and [`SLACK`].
const SLOWER_MAX: u32 = 2;
/// What neighbours of the machine may add to a load of 0.2 to 0.7 s.
const SLACK: Duration = Duration::from_millis(500);

fn value() -> Bytes {
    vec![7; VALUE_BYTES].into()
}

/// A caller: puts, and a get of what it put every other time.
async fn call(mut client: KvClient<Channel>, name: String) -> Ends {
    let mut ends = Ends::default();
    let key = Bytes::from(name);
    for number in 0..CALLS {
        let begun = Instant::now();
        if number % 2 == 0 {
            let mut put = Request::new(PutRequest { key: key.clone(), value: value(), ..Default::default() });
            put.set_timeout(DEADLINE);
            ends.unary(client.put(put).await, begun.elapsed());
        } else {
            let mut get = Request::new(GetRequest { key: key.clone(), ..Default::default() });
            get.set_timeout(DEADLINE);
            ends.unary(client.get(get).await, begun.elapsed());
        }
    }
    ends
}

/// A stream whose window is full at once.
async fn stream(channel: Channel, number: usize, value: Bytes) -> Ends {
    let mut ends = Ends::default();
    let key = |id| format!("burst/stream/{number}/{id}");
    let operations: Vec<_> =
        (0..STREAM_OPERATIONS).map(|id| pressure::put(id, key(id), value.clone())).collect();
    let begun = Instant::now();
    let ended = match stream_of(channel, &operations).await {
        Ok(mut replies) => {
            read_all(&mut replies, |_, result| ends.streamed(result.as_ref(), begun.elapsed())).await
        }
        Err(refused) => Err(refused),
    };
    if let Err(status) = ended {
        ends.stream(&status, STREAM_OPERATIONS - ends.all());
    }
    assert_eq!(ends.all(), STREAM_OPERATIONS, "each operation has one answer: {ends}");
    ends
}

/// What the small load takes: the faster of two, since one may meet a hiccup of the machine.
async fn steady_after(cluster: &Cluster) -> Duration {
    let first = steady(cluster, "after/first").await;
    first.min(steady(cluster, "after/second").await)
}

async fn total(mut clients: JoinSet<Ends>) -> Ends {
    let mut ends = Ends::default();
    while let Some(client) = clients.join_next().await {
        ends.add(client.expect("a client is told nothing else"));
    }
    ends
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_is_refused_with_advice_within_bounds_and_over_when_it_is_over() {
    let _alone = alone().await;
    let Some(cluster) = Cluster::start(memory::bounded(Plan::nodes(3))).await else { return };
    let before = steady(&cluster, "before").await;
    let memory = Memory::watch(&cluster);
    let address = cluster.addresses()[0];

    let (mut calls, mut streams) = (JoinSet::new(), JoinSet::new());
    for connection in 0..STREAM_CONNECTIONS {
        let channel = pressure::connect(address).await;
        for number in 0..STREAMS / STREAM_CONNECTIONS {
            streams.spawn(stream(channel.clone(), connection * STREAMS + number, value()));
        }
    }
    for connection in 0..CONNECTIONS {
        let client = KvClient::new(pressure::connect(address).await);
        for number in 0..CALLERS_PER_CONNECTION {
            calls.spawn(call(client.clone(), format!("burst/call/{connection}/{number}")));
        }
    }
    let (calls, streams) = tokio::join!(total(calls), total(streams));
    let after = steady_after(&cluster).await;

    println!("calls: {calls}");
    println!("streams: {streams}");
    println!("the small load took {before:?} before and {after:?} after");
    memory.check();
    for ends in [&calls, &streams] {
        assert!(ends.done() > 0, "nothing was admitted: {ends}");
        // Which limit is met first depends on how busy the machine is.
        assert!(ends.refusals() > 0, "the burst met no limit: {ends}");
        ends.assert_refused_by_places();
        assert!(ends.took_at(99) <= P99_MAX, "what was admitted took too long: {ends}");
    }
    let after_max = before * SLOWER_MAX + SLACK;
    assert!(after <= after_max, "the small load took {before:?} before and {after:?} after the burst");
    let shown = scrape(cluster.nodes[0].ports.http_address()).expect("metrics");
    let refused = shown.iter().filter(|(name, _)| name.starts_with("kv_api_refused_total"));
    assert!(refused.map(|(_, count)| count).sum::<f64>() > 0.0, "refusals are counted");
}
