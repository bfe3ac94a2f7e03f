//! All load on one shard: the others are answered, also those whose operations travel on the same streams, and no later than
//! beside the same load on all shards; the hot one refuses what is too much, with a time to come again, and what it says is
//! true. No node takes more than its memory.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use kv_cluster_tests::{Cluster, Plan};
use kv_proto::kv::v1::{BatchGetRequest, BatchOperation, batch_result};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::{
    memory::{self, Memory},
    pressure::{self, Ends, alone, read_all, steady, stream_of},
};

const SHARDS: usize = 3;
const STREAMS: usize = 4;
const STREAMS_PER_CONNECTION: usize = 2;
/// Of each stream for the hot shard: twice of what may be under way on it, four times of what one shard may have of it.
const HOT_OPERATIONS: u64 = 8_192;
/// Of each stream for all shards: as many as the hot one may have under way, so that all are taken.
const EVEN_OPERATIONS: u64 = 2_048;
/// One in so many is for another shard.
const LIGHT_ONE_IN: u64 = 64;
/// Small: what all streams have under way is less than the 13 MiB that one address may have of a node with 256 MiB, so that
/// nothing but the shard's part of the window is met.
const VALUE_BYTES: usize = 256;
/// The small load on the other shards takes no more than so many times what it takes beside the even load, and [`SLACK`]: the
/// machine is as busy with both.
const SLOWER_MAX: u32 = 2;
const SLACK: Duration = Duration::from_millis(500);
/// Keys of one question at the end.
const KEYS_AT_ONCE: usize = 1_000;

/// A load on some shards, beside which a few operations are for others.
struct Heat {
    name: &'static str,
    /// Tags of the shards that are loaded, in turn.
    heated: Vec<String>,
    /// Tags of those that must be answered whatever happens.
    others: Vec<String>,
    /// Of one window.
    operations: u64,
    stopped: AtomicBool,
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

impl Told {
    fn add(&mut self, other: Self) {
        self.ends.add(other.ends);
        self.done.extend(other.done);
        self.refused.extend(other.refused);
    }
}

impl Heat {
    fn of(name: &'static str, heated: Vec<String>, others: Vec<String>, operations: u64) -> Self {
        Self { name, heated, others, operations, stopped: AtomicBool::new(false) }
    }

    fn key(&self, name: &str, id: u64) -> String {
        let (tags, turn) = if id.is_multiple_of(LIGHT_ONE_IN) {
            (&self.others, id / LIGHT_ONE_IN)
        } else {
            (&self.heated, id)
        };
        let tag = &tags[usize::try_from(turn).expect("few") % tags.len()];
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
            let name = format!("{}/{number}/{round}", self.name);
            let put = |id| pressure::put(id, self.key(&name, id), value.clone());
            let operations: Vec<_> = (0..self.operations).map(put).collect();
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
        assert_eq!(told.ends.all(), answered + puts.len() as u64, "each operation has one answer");
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

/// Loads a node, and tells how long the small load on all other shards took beside it.
async fn beside(cluster: &Cluster, node: usize, heat: Heat) -> (Duration, Told) {
    let (heat, mut clients) = (Arc::new(heat), JoinSet::new());
    for connection in 0..STREAMS / STREAMS_PER_CONNECTION {
        let channel = pressure::connect(cluster.addresses()[node]).await;
        for number in 0..STREAMS_PER_CONNECTION {
            let number = connection * STREAMS_PER_CONNECTION + number;
            clients.spawn(heat.clone().run(channel.clone(), number));
        }
    }
    let mut took = Duration::ZERO;
    for tag in &heat.others {
        took += steady(cluster, &format!("{tag}/beside/{}", heat.name)).await;
        assert!(clients.try_join_next().is_none(), "the load ended before");
    }
    heat.stopped.store(true, Ordering::Relaxed);
    let mut told = Told::default();
    while let Some(client) = clients.join_next().await {
        told.add(client.expect("a client is told nothing else"));
    }
    println!("{}: {}; the small load on other shards took {took:?}", heat.name, told.ends);
    (took, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_shard_refuses_with_advice_is_not_wrong_and_harms_no_other() {
    let _alone = alone().await;
    let plan = memory::bounded(Plan::nodes(3).with_shards(SHARDS));
    let Some(cluster) = Cluster::start(plan).await else { return };
    let mut tags = tags(&cluster).await;
    let all: Vec<String> = tags.values().cloned().collect();
    let (shard, hot) = tags.pop_first().expect("as many tags as shards");
    let leader = cluster.wait_leader(shard, &[0, 1, 2]).await;
    let others: Vec<String> = tags.into_values().collect();
    let memory = Memory::watch(&cluster);

    let even = Heat::of("even", all, others.clone(), EVEN_OPERATIONS);
    let (beside_even, mut told) = beside(&cluster, leader, even).await;
    let hot = Heat::of("hot", vec![hot], others, HOT_OPERATIONS);
    let (beside_hot, told_hot) = beside(&cluster, leader, hot).await;
    memory.check();
    assert!(told_hot.ends.refused.contains_key("BATCH_WINDOW"), "nothing was too much: {}", told_hot.ends);
    assert!(
        beside_hot <= beside_even * SLOWER_MAX + SLACK,
        "the small load on other shards took {beside_hot:?}, and {beside_even:?} beside an even load"
    );

    told.add(told_hot);
    let found = revisions(&cluster, &told.done.keys().collect::<Vec<_>>()).await;
    for ((key, told), found) in told.done.iter().zip(found) {
        assert_eq!(found, Some(*told), "{key} is there as it was acknowledged");
    }
    let found = revisions(&cluster, &told.refused.iter().collect::<Vec<_>>()).await;
    for (key, found) in told.refused.iter().zip(found) {
        assert_eq!(found, None, "{key} was refused and is not there");
    }
}
