//! Unary gets whose replies are too small to be held one by one as large ones, and far too many to be held together.

use bytes::Bytes;
use kv_cluster_tests::{Cluster, Plan};
use kv_proto::kv::v1::key_value::Value;
use tonic::{Status, transport::Channel};

use crate::{
    memory::{self, Memory},
    pressure::{alone, connect_narrow},
    standing::{Gate, Standing, begin_get},
};

/// A node takes 256 calls at once of each: as many connections as leave a place for others of their address, which may have
/// 2,048.
const CONNECTIONS: usize = 7;
/// All together 105 MiB of replies.
const CALLS_PER_CONNECTION: usize = 256;
/// Different values, few enough that nobody's cache counts.
const VALUES: usize = 8;
/// The reply is a small one still.
const VALUE_BYTES: usize = 60 << 10;

fn key(number: usize) -> String {
    format!("small/{}", number % VALUES)
}

fn value(number: usize) -> Bytes {
    vec![u8::try_from(number % VALUES).expect("few"); VALUE_BYTES].into()
}

async fn get(channel: Channel, number: usize, gate: Gate) -> Result<(), Status> {
    let mut reply = begin_get(channel, key(number)).await?;
    gate.opened().await;
    let got = reply.message().await?.expect("a reply");
    let found = got.kv.and_then(|kv| kv.value);
    assert!(found == Some(Value::Inline(value(number))), "a value arrives as it was written");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_small_replies_that_nobody_reads_take_a_share_of_the_memory() {
    let _alone = alone().await;
    let Some(cluster) = Cluster::start(memory::bounded(Plan::nodes(3))).await else { return };
    let mut api = cluster.api(0);
    for number in 0..VALUES {
        api.put(&key(number), value(number), None).await.expect("a put");
    }
    let memory = Memory::watch(&cluster);
    let mut gets = Standing::begin();
    for _ in 0..CONNECTIONS {
        let channel = connect_narrow(cluster.addresses()[0]).await;
        for number in 0..CALLS_PER_CONNECTION {
            gets.add(|gate| get(channel.clone(), number, gate));
        }
    }
    let ends = gets.check(&cluster, &memory, "requests").await;
    assert_eq!(ends.all(), (CONNECTIONS * CALLS_PER_CONNECTION) as u64, "each call has one end: {ends}");
}
