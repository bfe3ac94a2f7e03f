//! Scans of values as large as they may be: a scan has a page of each shard at hand, which holds one of them at least.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use kv_cluster_tests::{Cluster, Plan};
use kv_proto::kv::v1::{KeyRange, ScanRequest, key_value::Value, kv_client::KvClient};
use tonic::{Status, transport::Channel};

use crate::{
    memory::{self, Memory},
    pressure::{alone, connect_narrow},
    standing::{Gate, Standing},
};

const CONNECTIONS: usize = 2;
/// All together: with a page of each shard and two messages on their way, 320 MiB if nothing bounds them.
const SCANS: usize = 64;
const SHARDS: usize = 3;
/// Of each shard: a page, and what the next one is read for.
const VALUES_PER_SHARD: usize = 2;
/// The largest value of a unary write.
const VALUE_BYTES: usize = 1 << 20;
const PREFIX: &str = "scanned/";

/// Values by key, as many in each shard.
type Values = BTreeMap<String, Bytes>;

async fn fill(cluster: &Cluster) -> Values {
    let (mut values, mut shards) = (Values::new(), BTreeMap::<u32, usize>::new());
    for number in 0.. {
        let key = format!("{PREFIX}{number}");
        let count = shards.entry(cluster.shard_of(&key).await).or_default();
        if *count < VALUES_PER_SHARD {
            *count += 1;
            let byte = u8::try_from(values.len()).expect("few");
            let value = Bytes::from(vec![byte; VALUE_BYTES]);
            cluster.api(0).put(&key, value.clone(), None).await.expect("a put");
            values.insert(key, value);
        }
        if values.len() == SHARDS * VALUES_PER_SHARD {
            break;
        }
    }
    values
}

async fn scan(channel: Channel, values: Arc<Values>, gate: Gate) -> Result<(), Status> {
    let range = KeyRange { prefix: PREFIX.into(), ..KeyRange::default() };
    let request = ScanRequest { range: Some(range), ..ScanRequest::default() };
    let mut replies = KvClient::new(channel).scan(request).await?.into_inner();
    gate.opened().await;
    let mut expected = values.iter();
    while let Some(reply) = replies.message().await? {
        for kv in reply.kvs {
            let (key, value) = expected.next().expect("no more than was written");
            assert_eq!(kv.key, key.as_bytes(), "keys come in their order");
            assert!(kv.value == Some(Value::Inline(value.clone())), "{key} arrives as it was written");
        }
    }
    assert!(expected.next().is_none(), "all that was written");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_of_large_values_that_nobody_reads_take_a_share_of_the_memory() {
    let _alone = alone().await;
    let plan = memory::bounded(Plan::nodes(3).with_shards(SHARDS));
    let Some(cluster) = Cluster::start(plan).await else { return };
    let values = Arc::new(fill(&cluster).await);
    let memory = Memory::watch(&cluster);
    let mut scans = Standing::begin();
    for _ in 0..CONNECTIONS {
        let channel = connect_narrow(cluster.addresses()[0]).await;
        for _ in 0..SCANS / CONNECTIONS {
            scans.add(|gate| scan(channel.clone(), values.clone(), gate));
        }
    }
    let ends = scans.check(&cluster, &memory, "streams").await;
    assert_eq!(ends.all(), SCANS as u64, "each scan has one end: {ends}");
}
