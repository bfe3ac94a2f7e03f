//! Single scenes in simulated time, each aimed at one behaviour, without a nemesis.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use kv_proto::{
    disk::v1::{Operation, Put, Tick, UploadBegin, UploadChunk, operation::Kind},
    kv::v1::{Consistency, ReadOptions},
    peer::v1::{ReadBlob, ReadRequest, ReadResponse, Refusal, outcome, read_request::Read, read_response},
};
use kv_topology::NodeId;
use kvnode::{
    group::replica::{Replica, STALENESS_DEFAULT},
    log::PlantedBug,
    node::ticks::TICK_EVERY,
    refusal,
    router::{Replicas as _, store::Store},
    state_machine::limits::{CHUNK_BYTES, UPLOAD_IDLE_MS},
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::{
    clients::{Answer, KEYS, question, request},
    counters::open,
    dice::Dice,
    weather::Trace,
    world::{SHARD, World},
};

/// For what a group in calm does by itself: elections, and confirmations that its replicas are current.
pub const CALM: Duration = Duration::from_secs(5);
/// Looking again, in simulated time.
const LOOK: Duration = Duration::from_millis(5);

/// Plays a scene on this thread, in simulated time.
pub fn play<F: Future<Output = ()>>(seed: u64, nodes: u64, scene: impl FnOnce(Arc<World>) -> F) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (world, _aimed) = World::new(Dice::new(seed), nodes, PlantedBug::None, Trace::new(false));
        world.form().await;
        sleep(CALM).await;
        scene(world.clone()).await;
        assert!(!world.is_violated(), "{:?}", world.violations.lock().unwrap());
        world.node_ids().into_iter().for_each(|node| world.crash(node));
    });
}

pub fn replica(world: &World, node: NodeId) -> Replica {
    world.running(node).unwrap().replicas.replica(SHARD).unwrap()
}

/// The leader among `nodes` that all of them agree on.
pub async fn leader(world: &World, nodes: &[NodeId]) -> NodeId {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut known = nodes.iter().map(|node| replica(world, *node).control.leader());
        if let Some(first) = known.next().flatten()
            && nodes.contains(&first)
            && known.all(|other| other == Some(first))
        {
            return first;
        }
        assert!(Instant::now() < deadline, "{nodes:?} agree on no leader among them");
        sleep(LOOK).await;
    }
}

/// A STALE read by the node's own replica.
async fn stale(world: &World, node: NodeId, max_staleness_ms: u32) -> Result<ReadResponse, Refusal> {
    let (running, mut question) = (world.running(node).unwrap(), question(KEYS[0]));
    question.options = Some(ReadOptions {
        consistency: Consistency::Stale.into(),
        max_staleness_ms,
        serve_at_node: true,
        ..ReadOptions::default()
    });
    let (answer, answered) = oneshot::channel();
    let router = running.router.clone();
    running.tasks.spawner().spawn("stale read", async move {
        let deadline = Instant::now() + Duration::from_secs(3);
        answer.send(Store::read(&*router, question, deadline).await).ok();
    });
    answered.await.unwrap()
}

async fn refused_as_too_old(world: &World, node: NodeId, max_staleness_ms: u32) {
    let refused = stale(world, node, max_staleness_ms).await.unwrap_err();
    assert_eq!(refused.reason, refusal::TOO_STALE, "{node}: {refused:?}");
}

/// Cuts these nodes off from all others, not from one another.
fn cut_off(world: &World, nodes: &[NodeId]) {
    for one in world.node_ids() {
        for other in world.node_ids() {
            if nodes.contains(&one) != nodes.contains(&other) {
                world.network.cut(one, other);
            }
        }
    }
}

#[test]
fn a_leader_and_its_follower_without_a_quorum_answer_stale_reads_only_as_long_as_stated() {
    for seed in 0..8 {
        play(seed, 5, async |world| {
            let nodes = world.node_ids();
            let led_by = leader(&world, &nodes).await;
            let follower = *nodes.iter().find(|node| **node != led_by).unwrap();
            let rest: Vec<NodeId> =
                nodes.iter().copied().filter(|node| ![led_by, follower].contains(node)).collect();
            cut_off(&world, &[led_by, follower]);
            let cut = Instant::now();
            for node in [led_by, follower] {
                assert!(stale(&world, node, 0).await.is_ok(), "{node} was current a moment ago");
            }
            let next = leader(&world, &rest).await;
            assert!(rest.contains(&next));
            sleep(STALENESS_DEFAULT.saturating_sub(cut.elapsed())).await;
            for node in [led_by, follower] {
                refused_as_too_old(&world, node, 0).await;
                assert!(stale(&world, node, 3_600_000).await.is_ok(), "{node}: an hour is allowed");
            }
            for node in rest {
                assert!(stale(&world, node, 0).await.is_ok(), "{node} is with the majority");
            }
            world.network.heal();
            sleep(CALM).await;
            for node in nodes {
                assert!(stale(&world, node, 0).await.is_ok(), "{node} is back");
            }
        });
    }
}

#[test]
fn a_stale_read_with_a_short_bound_is_refused_as_soon_as_the_quorum_is_gone_for_that_long() {
    play(1, 3, async |world| {
        let led_by = leader(&world, &world.node_ids()).await;
        assert!(stale(&world, led_by, 1).await.is_ok(), "confirmed by the leader itself");
        world.network.isolate(led_by);
        sleep(Duration::from_millis(600)).await;
        refused_as_too_old(&world, led_by, 500).await;
    });
}

#[test]
fn a_leader_hands_over_to_who_is_there_and_does_not_take_it_back() {
    for seed in 0..8 {
        play(seed, 3, async |world| {
            let nodes = world.node_ids();
            let led_by = leader(&world, &nodes).await;
            let others: Vec<NodeId> = nodes.iter().copied().filter(|node| *node != led_by).collect();
            // As far as the leader knows both have everything; the first one is gone.
            world.crash(others[0]);
            sleep(Duration::from_millis(400)).await;
            let leaving = replica(&world, led_by);
            let handing = Instant::now();
            leaving.control.hand_over().await;
            assert_eq!(leader(&world, &[led_by, others[1]]).await, others[1]);
            let taken = handing.elapsed();
            assert!(taken < Duration::from_millis(400), "no attempt was wasted on who is gone: {taken:?}");
            world.start(others[0]);
            sleep(CALM).await;
            world.crash(others[1]);
            let next = leader(&world, &[led_by, others[0]]).await;
            assert_eq!(next, others[0], "who leaves campaigns no more");
        });
    }
}

const KEY: &[u8] = b"photo";

fn upload_id(number: u8) -> Vec<u8> {
    vec![number; 16]
}

fn chunk(upload: u8, number: u32) -> Kind {
    // All but the last chunk of an upload are of this size.
    let data = vec![upload; CHUNK_BYTES];
    let crc32c = crc32c::crc32c(&data);
    let (key, upload_id) = (KEY.into(), upload_id(upload).into());
    Kind::UploadChunk(UploadChunk { upload_id, number, data: data.into(), crc32c, key })
}

/// Writes at a node; panics unless it was done.
pub async fn write(world: &World, node: NodeId, kind: Kind) {
    let running = world.running(node).unwrap();
    let (answer, answered) = oneshot::channel();
    let operation = Operation { kind: Some(kind), ..Operation::default() };
    let router = running.router.clone();
    running.tasks.spawner().spawn("write", async move {
        let deadline = Instant::now() + Duration::from_secs(10);
        answer.send(Store::write(&*router, SHARD, vec![operation], deadline).await).ok();
    });
    let outcomes = answered.await.unwrap().unwrap();
    let done = outcomes.into_iter().next().and_then(|outcome| outcome.result);
    assert!(!matches!(done, Some(outcome::Result::Refusal(_)) | None), "{done:?}");
}

/// Whether the first chunk of an upload is stored at a node.
fn is_stored(world: &World, node: NodeId, upload: u8) -> bool {
    let (key, upload_id) = (KEY.into(), upload_id(upload).into());
    let blob = ReadBlob { key, upload_id, chunks: 1, ..ReadBlob::default() };
    let read = Some(Read::Blob(blob));
    let request = ReadRequest { shard_id: SHARD.get(), read, ..ReadRequest::default() };
    match replica(world, node).state.read(&request).map(|response| response.read) {
        Ok(Some(read_response::Read::Blob(found))) => found.chunks.len() == 1,
        _ => false,
    }
}

#[test]
fn an_abandoned_upload_is_gone_after_its_time_and_an_active_one_is_not() {
    play(1, 3, async |world| {
        let nodes = world.node_ids();
        let (abandoned, active) = (1, 2);
        for upload in [abandoned, active] {
            let begin = UploadBegin {
                key: KEY.into(),
                upload_id: upload_id(upload).into(),
                ..UploadBegin::default()
            };
            write(&world, nodes[0], Kind::UploadBegin(begin)).await;
            write(&world, nodes[0], chunk(upload, 0)).await;
        }
        for minutes in [4, 8] {
            sleep(Duration::from_secs(4 * 60)).await;
            assert!(is_stored(&world, nodes[0], abandoned), "after {minutes} minutes");
            write(&world, nodes[0], chunk(active, minutes / 4)).await;
        }
        sleep(Duration::from_millis(UPLOAD_IDLE_MS) + 2 * TICK_EVERY - Duration::from_secs(8 * 60)).await;
        for node in &nodes {
            assert!(!is_stored(&world, *node, abandoned), "{node}: ten minutes and two ticks are over");
            assert!(is_stored(&world, *node, active), "{node}: the other was touched four minutes ago");
        }
        sleep(Duration::from_millis(UPLOAD_IDLE_MS) + TICK_EVERY).await;
        assert!(!is_stored(&world, nodes[0], active), "now it is abandoned too");
        let applied = || replica(&world, nodes[0]).control.status().applied_index;
        let before = applied();
        sleep(10 * TICK_EVERY).await;
        assert_eq!(applied(), before, "an idle group writes nothing");
    });
}

/// The increment of a key in a session, asked of a node. Whether it was a replay; `None`: the session is gone.
async fn increment(world: &World, node: NodeId, session_id: u64) -> Option<bool> {
    let value = Bytes::from_static(b"v");
    let value_crc32c = crc32c::crc32c(&value);
    let put = Put { key: KEY.into(), value, value_crc32c, ..Put::default() };
    let (sequence, lowest_outstanding) = (1, 1);
    let kind = Some(Kind::Put(put));
    let operation = Operation { session_id, sequence, lowest_outstanding, kind, ..Operation::default() };
    let outcomes = request(world, node, |router, deadline| async move {
        router.write(SHARD, vec![operation], deadline).await
    });
    let Answer::Heard(outcomes) = outcomes.await else { panic!("no answer") };
    match outcomes[0].result.as_ref().unwrap() {
        outcome::Result::Put(_) => Some(outcomes[0].replayed),
        outcome::Result::Refusal(refused) if refused.reason == refusal::SESSION_EXPIRED => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_session_that_nobody_uses_is_swept_and_an_idle_group_writes_nothing() {
    play(1, 3, async |world| {
        let nodes = world.node_ids();
        let ttl = 4 * TICK_EVERY;
        let sessions =
            || nodes.iter().map(|node| replica(&world, *node).state.sessions()).collect::<Vec<_>>();
        let used = open(&world, u32::try_from(ttl.as_millis()).unwrap()).await.unwrap();
        open(&world, 1_000).await.unwrap();
        assert_eq!(increment(&world, nodes[0], used).await, Some(false));
        sleep(CALM).await;
        assert_eq!(sessions(), [(2, 1); 3]);
        sleep(2 * TICK_EVERY).await;
        assert_eq!(sessions(), [(1, 1); 3], "the other one was not used for a second");
        // All lose their power, and others lead.
        nodes.iter().for_each(|node| world.crash(*node));
        nodes.iter().for_each(|node| world.start(*node));
        sleep(CALM).await;
        for node in &nodes {
            assert_eq!(increment(&world, *node, used).await, Some(true));
        }
        sleep(ttl + 2 * TICK_EVERY).await;
        assert_eq!(sessions(), [(0, 0); 3]);
        assert_eq!(increment(&world, nodes[0], used).await, None);
        // Followers learn a little later that what was refused is committed.
        sleep(CALM).await;
        let applied = || replica(&world, nodes[0]).control.status().applied_index;
        let before = applied();
        sleep(10 * TICK_EVERY).await;
        assert_eq!(applied(), before, "an idle group writes nothing");
    });
}

#[test]
fn a_write_to_a_replica_that_has_stopped_surely_did_not_happen() {
    play(1, 3, async |world| {
        let led_by = leader(&world, &world.node_ids()).await;
        let stopped = replica(&world, led_by);
        stopped.control.stop().await;
        let operation = Operation { kind: Some(Kind::Tick(Tick {})), ..Operation::default() };
        let deadline = Instant::now() + Duration::from_secs(3);
        let refused = stopped.write(vec![operation], deadline).await.unwrap_err();
        assert!(refusal::surely_not_applied(&refused), "{refused:?}");
    });
}
