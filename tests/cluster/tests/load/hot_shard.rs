//! All load on one shard: the others are answered, also those whose operations travel on the same streams; the hot one
//! refuses what is too much, with a time to come again, and what it says is true.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use kv_cluster_tests::{Cluster, Plan};
use kv_proto::kv::v1::{BatchGetRequest, BatchOperation, batch_result};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::pressure::{self, Ends, alone, read_all, steady, stream_of};

const SHARDS: usize = 3;
/// Each asks for twice of what may be under way on a stream, four times of what one shard may have of it.
const STREAMS: usize = 4;
const STREAMS_PER_CONNECTION: usize = 2;
const OPERATIONS: u64 = 8_192;
/// One in so many is for another shard.
const LIGHT_ONE_IN: u64 = 64;
const VALUE_BYTES: usize = 1_800;
/// Keys of one question at the end.
const KEYS_AT_ONCE: usize = 1_000;

/// The load on the hot shard, beside which a few operations are for the others.
struct Heat {
    hot: String,
    others: Vec<String>,
    stopped: Arc<AtomicBool>,
}

/// What it was told.
#[derive(Default)]
struct Told {
    ends: Ends,
    /// Revisions of the writes that are said to be done.
    done: BTreeMap<String, u64>,
    /// Keys of which all writes were refused.
    refused: Vec<String>,
}

impl Heat {
    fn key(&self, name: &str, id: u64) -> String {
        let tag = if id.is_multiple_of(LIGHT_ONE_IN) {
            &self.others[usize::try_from(id / LIGHT_ONE_IN).expect("few") % self.others.len()]
        } else {
            &self.hot
        };
        format!("{tag}/{name}/{id}")
    }

    /// Full windows, one after the other, until it is stopped.
    async fn run(self: Arc<Self>, channel: Channel, number: usize) -> Told {
        let value = Bytes::from(vec![7; VALUE_BYTES]);
        let mut told = Told::default();
        for round in 0.. {
            if self.stopped.load(Ordering::Relaxed) && round > 0 {
                break;
            }
            let name = format!("{number}/{round}");
            let put = |id| pressure::put(id, self.key(&name, id), value.clone());
            let operations: Vec<_> = (0..OPERATIONS).map(put).collect();
            self.fill_a_window(channel.clone(), &name, &operations, &mut told).await;
        }
        told
    }

    async fn fill_a_window(&self, channel: Channel, name: &str, puts: &[BatchOperation], told: &mut Told) {
        let (begun, answered) = (Instant::now(), told.ends.all());
        let mut replies = stream_of(channel, puts).await.expect("a stream");
        read_all(&mut replies, |id, result| {
            told.ends.streamed(result.as_ref(), begun.elapsed());
            let key = self.key(name, id);
            match result {
                Some(batch_result::Result::Put(put)) => {
                    assert!(put.applied, "a put without a precondition");
                    told.done.insert(key, put.mod_revision);
                }
                Some(batch_result::Result::Failure(failure)) => {
                    assert!(!id.is_multiple_of(LIGHT_ONE_IN), "a write to another shard: {failure:?}");
                    if failure.reason != "OUTCOME_UNKNOWN" {
                        told.refused.push(key);
                    }
                }
                result => panic!("an answer of another kind: {result:?}"),
            }
        })
        .await
        .expect("the stream ends in order");
        assert_eq!(told.ends.all(), answered + OPERATIONS, "each operation has one answer");
    }
}

/// A tag of each data shard: keys with it are there.
async fn tags(cluster: &Cluster) -> BTreeMap<u32, String> {
    let mut tags = BTreeMap::new();
    for number in 0.. {
        let tag = format!("{{t{number}}}");
        tags.entry(cluster.shard_of(&tag).await).or_insert(tag);
        if tags.len() == SHARDS {
            break;
        }
    }
    tags
}

/// The revision of each of these keys; `None`: it is absent.
async fn revisions(cluster: &Cluster, keys: &[&String]) -> Vec<Option<u64>> {
    let mut found = Vec::new();
    for keys in keys.chunks(KEYS_AT_ONCE) {
        let keys = keys.iter().map(|key| Bytes::copy_from_slice(key.as_bytes())).collect();
        let request = BatchGetRequest { keys, metadata_only: true, ..BatchGetRequest::default() };
        let reply = cluster.api(1).kv.batch_get(request).await.expect("a read of many keys").into_inner();
        found.extend(reply.results.into_iter().map(|result| result.kv.map(|kv| kv.mod_revision)));
    }
    assert_eq!(found.len(), keys.len(), "each key is told of");
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_shard_refuses_with_advice_is_not_wrong_and_harms_no_other() {
    let _alone = alone().await;
    let Some(cluster) = Cluster::start(Plan::nodes(3).with_shards(SHARDS)).await else { return };
    let mut tags = tags(&cluster).await;
    let (shard, hot) = tags.pop_first().expect("as many tags as shards");
    let leader = cluster.wait_leader(shard, &[0, 1, 2]).await;
    let others: Vec<String> = tags.into_values().collect();
    let stopped = Arc::new(AtomicBool::new(false));
    let heat = Arc::new(Heat { hot, others, stopped: stopped.clone() });

    let mut clients = JoinSet::new();
    for connection in 0..STREAMS / STREAMS_PER_CONNECTION {
        let channel = pressure::connect(cluster.addresses()[leader]).await;
        for number in 0..STREAMS_PER_CONNECTION {
            let number = connection * STREAMS_PER_CONNECTION + number;
            clients.spawn(heat.clone().run(channel.clone(), number));
        }
    }
    for tag in &heat.others {
        let took = steady(&cluster, tag).await;
        println!("a small load on another shard took {took:?}");
        assert_eq!(clients.len(), STREAMS, "the heat ended before");
    }
    stopped.store(true, Ordering::Relaxed);
    let (mut ends, mut done, mut refused) = (Ends::default(), BTreeMap::new(), Vec::new());
    while let Some(told) = clients.join_next().await {
        let told = told.expect("a client is told nothing else");
        ends.add(told.ends);
        done.extend(told.done);
        refused.extend(told.refused);
    }

    println!("hot: {ends}");
    assert!(ends.refused.contains_key("BATCH_WINDOW"), "nothing was too much: {ends}");
    let found = revisions(&cluster, &done.keys().collect::<Vec<_>>()).await;
    for ((key, told), found) in done.iter().zip(found) {
        assert_eq!(found, Some(*told), "{key} is there as it was acknowledged");
    }
    let found = revisions(&cluster, &refused.iter().collect::<Vec<_>>()).await;
    for (key, found) in refused.iter().zip(found) {
        assert_eq!(found, None, "{key} was refused and is not there");
    }
}
