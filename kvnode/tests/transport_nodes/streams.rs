//! Append streams seen from the leader's side, without a leader.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use kv_topology::{GroupId, ReplicaId};
use kvnode::{
    group::type_config::{Member, Proposal, TokioConfig},
    runtime::Tasks,
    transport::{Limits, NetworkFactory, codec, loopback::Loopback},
};
use openraft::async_runtime::WatchReceiver;
use openraft::{
    Config, EntryPayload, RaftNetworkFactory,
    errors::RPCError,
    network::{RPCOption, v2::RaftNetworkV2},
    raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult},
};
use openraft_rt_tokio::TokioRuntime;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::time::{Instant, sleep};

use crate::{
    cluster::{Node, Replica, eventually, question},
    memory::Snapshots,
    weather::Distance,
};

type Request = AppendEntriesRequest<TokioConfig>;
type Answers = Vec<Result<StreamAppendResult<TokioConfig>, RPCError<TokioConfig>>>;

fn passive() -> Arc<Config> {
    let config = Config { enable_tick: false, ..Config::default() };
    Arc::new(config.validate().unwrap())
}

fn log_id(index: u64) -> codec::LogId {
    codec::LogId { leader_id: codec::LeaderId { term: 1, node_id: 99 }, index }
}

/// Entries 0, 1, 2 … one in each request, of a leader 99 in term 1.
fn requests(count: u64) -> Vec<Request> {
    let vote = codec::Vote { leader_id: codec::LeaderId { term: 1, node_id: 99 }, committed: true };
    let request = |index: u64| Request {
        vote,
        prev_log_id: index.checked_sub(1).map(log_id),
        entries: vec![codec::Entry {
            log_id: log_id(index),
            payload: EntryPayload::Normal(Proposal(Bytes::from(index.to_string()))),
        }],
        leader_commit: None,
    };
    (0..count).map(request).collect()
}

async fn send(from: &Node, group: GroupId, to: &Replica, requests: Vec<Request>) -> Answers {
    let snapshots = Arc::new(Snapshots::default());
    let mut factory: NetworkFactory<TokioRuntime, Snapshots> =
        NetworkFactory::new(from.transport.clone(), group, ReplicaId(99), snapshots);
    let mut network = factory.new_client(to.id.0, &Member { node: to.node.0 }).await;
    // The input stays open after the last request, as openraft's does.
    let input = stream::iter(requests).chain(stream::pending());
    let mut answers = vec![];
    let option = RPCOption::new(Duration::from_millis(150));
    match network.stream_append(input, option).await {
        Err(error) => answers.push(Err(error)),
        Ok(mut stream) => {
            let read = async {
                while let Some(answer) = stream.next().await {
                    answers.push(answer);
                }
            };
            let _ = tokio::time::timeout(Duration::from_secs(10), read).await;
        }
    }
    answers
}

async fn node_with(network: &Loopback, id: u64, group: GroupId, limits: &Limits) -> (Node, Replica) {
    let node = Node::on(network, id, limits.clone());
    let replica = node.replica(group, ReplicaId(id + 10), passive()).await;
    (node, replica)
}

#[tokio::test(start_paused = true)]
async fn several_requests_are_in_flight_and_answered_in_order() {
    let tasks = Tasks::new("network");
    let network = Loopback::new(tasks.spawner(), Distance(Duration::from_millis(50)));
    let leader = Node::on(&network, 1, Limits::default());
    let (_follower, replica) = node_with(&network, 2, GroupId(7), &Limits::default()).await;
    let start = Instant::now();
    let sending = send(&leader, GroupId(7), &replica, requests(200));
    let arrival = async {
        let last = || replica.raft.metrics().borrow_watched().last_log_index.filter(|index| *index == 199);
        eventually("the last entry", last).await;
        start.elapsed()
    };
    let (answers, elapsed) = tokio::join!(sending, arrival);
    let answers: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().unwrap()).collect();
    assert_eq!(answers, (0..200).map(|index| Some(log_id(index))).collect::<Vec<_>>());
    // One at a time would take 200 round trips of 100 ms.
    assert!(elapsed < Duration::from_secs(1), "{elapsed:?}");
}

/// Requests as openraft hands them over, each after a pause; half of them only tell of a commit.
fn restless(seed: u64, count: usize) -> Vec<(Duration, Request)> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut entries = VecDeque::from(requests(count as u64));
    let vote = entries[0].vote;
    let mut last = None;
    let request = |_| {
        let pause = Duration::from_millis(random.random_range(0..12) * random.random_range(0..4));
        let request = if random.random_bool(0.5) {
            let back = random.random_range(0..2);
            let leader_commit = last.map(|last: codec::LogId| log_id(last.index.saturating_sub(back)));
            Request { vote, prev_log_id: last, entries: vec![], leader_commit }
        } else {
            let request = entries.pop_front().expect("enough of them");
            last = request.entries.last().map(|entry| entry.log_id);
            request
        };
        (pause, request)
    };
    (0..count).map(request).collect()
}

/// openraft takes an answer for one to all requests that end with the entry or before it, and relies on the moment when it handed
/// the newest of them over: the follower must have been heard of since. 30 seeds.
#[tokio::test(start_paused = true)]
async fn an_answer_never_speaks_for_a_request_that_was_not_answered() {
    const DISTANCE: Duration = Duration::from_millis(10);
    const COUNT: usize = 80;
    for seed in 0..30 {
        let tasks = Tasks::new("network");
        let network = Loopback::new(tasks.spawner(), Distance(DISTANCE));
        let leader = Node::on(&network, 1, Limits::default());
        let (_follower, replica) = node_with(&network, 2, GroupId(7), &Limits::default()).await;
        // As openraft keeps it: the last entry of each request, and when that was handed over.
        let under_way = Arc::new(Mutex::new(VecDeque::new()));
        let handed_over = under_way.clone();
        let input = stream::iter(restless(seed, COUNT)).then(move |(pause, request)| {
            let handed_over = handed_over.clone();
            async move {
                sleep(pause).await;
                let last = request.entries.last().map_or(request.prev_log_id, |entry| Some(entry.log_id));
                handed_over.lock().unwrap().push_back((last, Instant::now()));
                request
            }
        });
        let input = Box::pin(input.chain(stream::pending()));
        let mut factory: NetworkFactory<TokioRuntime, Snapshots> =
            NetworkFactory::new(leader.transport.clone(), GroupId(7), ReplicaId(99), Arc::default());
        let mut network = factory.new_client(replica.id.0, &Member { node: replica.node.0 }).await;
        let answers = network.stream_append(input, RPCOption::new(Duration::from_millis(150))).await;
        let mut answers = answers.expect("a stream");
        let mut answered = 0;
        while answered < COUNT {
            let answer = tokio::time::timeout(Duration::from_secs(1), answers.next()).await;
            let matching = answer.expect("every request is answered").expect("no end").unwrap().unwrap();
            let mut under_way = under_way.lock().unwrap();
            while let Some((_, handed_over)) = under_way.pop_front_if(|(last, _)| *last <= matching) {
                let ago = Instant::elapsed(&handed_over);
                assert!(ago >= DISTANCE * 2, "seed {seed}: {matching:?} for a request of {ago:?} ago");
                answered += 1;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_conflict_ends_the_stream_and_the_next_one_works() {
    let tasks = Tasks::new("network");
    let network = Loopback::new(tasks.spawner(), Distance(Duration::from_millis(1)));
    let leader = Node::on(&network, 1, Limits::default());
    let (_follower, replica) = node_with(&network, 2, GroupId(7), &Limits::default()).await;
    let beyond = requests(10).split_off(5);
    let answers = send(&leader, GroupId(7), &replica, beyond).await;
    assert!(
        matches!(&answers[..], [Ok(Err(StreamAppendError::Conflict(id)))] if *id == log_id(4)),
        "{answers:?}"
    );
    assert_eq!(send(&leader, GroupId(7), &replica, requests(10)).await.len(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_answers_ends_unreachable() {
    let tasks = Tasks::new("network");
    let network = Loopback::new(tasks.spawner(), Distance(Duration::from_millis(1)));
    let leader = Node::on(&network, 1, Limits::default());
    let (_follower, replica) = node_with(&network, 2, GroupId(7), &Limits::default()).await;
    assert_eq!(send(&leader, GroupId(7), &replica, requests(1)).await.len(), 1);
    replica.log.hold();
    let start = Instant::now();
    let answers = send(&leader, GroupId(7), &replica, requests(5)).await;
    assert!(matches!(answers.last(), Some(Err(RPCError::Unreachable(_)))), "{answers:?}");
    assert!((3..=4).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_wrong_group_is_refused_and_no_replica_is_made() {
    let tasks = Tasks::new("network");
    let network = Loopback::new(tasks.spawner(), Distance(Duration::from_millis(1)));
    let leader = Node::on(&network, 1, Limits::default());
    let (follower, mut replica) = node_with(&network, 2, GroupId(7), &Limits::default()).await;
    let answers = send(&leader, GroupId(8), &replica, requests(3)).await;
    assert!(matches!(&answers[..], [Err(RPCError::Unreachable(_))]), "{answers:?}");
    replica.id = ReplicaId(77);
    let answers = send(&leader, GroupId(7), &replica, requests(3)).await;
    assert!(matches!(&answers[..], [Err(RPCError::Unreachable(_))]), "{answers:?}");
    replica.id = ReplicaId(12);
    follower.transport.unregister(replica.id);
    let answers = send(&leader, GroupId(7), &replica, requests(3)).await;
    assert!(matches!(&answers[..], [Err(RPCError::Unreachable(_))]), "{answers:?}");
}

/// A replica that takes nothing fills its inbox: its stream is reset, and the other group on the same stream and
/// the questions to the node go on as if nothing had happened.
#[tokio::test(start_paused = true)]
async fn an_overflow_resets_its_own_stream_only() {
    let tasks = Tasks::new("network");
    let network = Loopback::new(tasks.spawner(), Distance(Duration::from_millis(1)));
    let limits = Limits { inbox_frames: 4, append_window_frames: 1000, ..Limits::default() };
    let leader = Node::on(&network, 1, limits.clone());
    let follower = Node::on(&network, 2, limits);
    let stuck = follower.replica(GroupId(7), ReplicaId(12), passive()).await;
    let well = follower.replica(GroupId(8), ReplicaId(13), passive()).await;
    stuck.log.hold();
    let deadline = Instant::now() + Duration::from_secs(5);
    let ask =
        leader.transport.call(follower.id, kvnode::transport::Lane::Raft, GroupId(8), question(3), deadline);
    let slowly = async {
        let mut answers = vec![];
        for part in requests(60).chunks(3) {
            answers.extend(send_and_end(&leader, GroupId(8), &well, part.to_vec()).await);
        }
        answers
    };
    let (overflowed, answers, answer) =
        tokio::join!(send(&leader, GroupId(7), &stuck, requests(500)), slowly, ask);
    assert!(matches!(overflowed.last(), Some(Err(RPCError::Unreachable(_)))), "{:?}", overflowed.last());
    assert!(answer.is_ok());
    assert_eq!(answers.len(), 60);
    assert!(answers.iter().all(|answer| matches!(answer, Ok(Ok(_)))), "{answers:?}");
    let counters = leader.transport.counters()[0].1;
    assert_eq!((counters.connects, counters.breaks), (1, 0));
    assert!(follower.transport.counters()[0].1.inbox_overflows >= 1);
}

/// A stream that ends after its last request.
async fn send_and_end(from: &Node, group: GroupId, to: &Replica, requests: Vec<Request>) -> Answers {
    let snapshots = Arc::new(Snapshots::default());
    let mut factory: NetworkFactory<TokioRuntime, Snapshots> =
        NetworkFactory::new(from.transport.clone(), group, ReplicaId(99), snapshots);
    let mut network = factory.new_client(to.id.0, &Member { node: to.node.0 }).await;
    let option = RPCOption::new(Duration::from_millis(150));
    network.stream_append(stream::iter(requests), option).await.unwrap().collect().await
}

/// What is sent on after a replica was taken out does not reach it, though its stream was opened before.
#[tokio::test(start_paused = true)]
async fn a_replica_that_was_taken_out_gets_nothing_more_on_an_open_stream() {
    let tasks = Tasks::new("network");
    let network = Loopback::new(tasks.spawner(), Distance(Duration::from_millis(1)));
    let leader = Node::on(&network, 1, Limits::default());
    let (follower, replica) = node_with(&network, 2, GroupId(7), &Limits::default()).await;
    let mut factory: NetworkFactory<TokioRuntime, Snapshots> =
        NetworkFactory::new(leader.transport.clone(), GroupId(7), ReplicaId(99), Arc::default());
    let mut client = factory.new_client(replica.id.0, &Member { node: replica.node.0 }).await;
    let mut requests = requests(10);
    let later = requests.split_off(5);
    let (more, input) = futures::channel::mpsc::unbounded();
    requests.into_iter().for_each(|request| more.unbounded_send(request).unwrap());
    let mut answers = client.stream_append(input, RPCOption::new(Duration::from_secs(1))).await.unwrap();
    for index in 0..5 {
        assert_eq!(answers.next().await.unwrap().unwrap().unwrap(), Some(log_id(index)));
    }
    follower.transport.unregister(replica.id);
    later.into_iter().for_each(|request| more.unbounded_send(request).unwrap());
    let answers: Vec<_> = answers.collect().await;
    assert!(matches!(&answers[..], [Err(_)]), "{answers:?}");
    // Whatever was on its way has arrived when this comes back.
    let deadline = Instant::now() + Duration::from_secs(5);
    let lane = kvnode::transport::Lane::Raft;
    leader.transport.call(follower.id, lane, GroupId(7), question(1), deadline).await.unwrap();
    assert_eq!(replica.raft.metrics().borrow_watched().last_log_index, Some(4));
}
