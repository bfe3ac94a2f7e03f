//! Requests that are not Raft's, over the loopback, in simulated time.

use std::time::Duration;

use kv_proto::peer::v1::{
    AddLearner, ChangeVoters, ControlRequest, CreateReplica, DescribeGroup, DescribeNode, FetchMap, HandOver,
    InitializeGroup, ReadIndexResponse, ReadRequest, RemoveLearner, TransferLeader, VoteRequest,
    WriteRequest, control_request::Request, frame::Body, refusal,
};
use kv_topology::{GroupId, NodeId};
use kvnode::{
    runtime::Tasks,
    transport::{
        CallError, Identity, Lane, Limits, NotSent,
        loopback::{Calm, Loopback},
    },
};
use tokio::time::Instant;

use crate::cluster::{CLUSTER, Node, SILENCE, eventually, question, within};

fn pair(limits: &Limits) -> (Tasks, Loopback, Node, Node) {
    let tasks = Tasks::new("network");
    let network = Loopback::new(tasks.spawner(), Calm);
    let (one, two) = (Node::on(&network, 1, limits.clone()), Node::on(&network, 2, limits.clone()));
    (tasks, network, one, two)
}

async fn ask(from: &Node, to: u64, body: Body, seconds: u64) -> Result<Body, CallError> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    from.transport.call(NodeId(to), Lane::Raft, GroupId(7), body, deadline).await
}

#[tokio::test(start_paused = true)]
async fn a_question_is_answered_on_both_lanes() {
    let (_tasks, _network, one, two) = pair(&Limits::default());
    let answer = Body::ReadIndexResponse(ReadIndexResponse { index: 5, term: 1 });
    assert_eq!(ask(&one, 2, question(5), 1).await.as_ref(), Ok(&answer));
    let deadline = Instant::now() + Duration::from_secs(1);
    let bulk = one.transport.call(NodeId(2), Lane::Bulk, GroupId(7), question(5), deadline).await;
    assert_eq!(bulk, Ok(answer));
    assert!(one.transport.heard_from(two.id).is_some() && two.transport.heard_from(one.id).is_some());
    assert_eq!(ask(&one, 1, question(5), 1).await, Err(CallError::NotSent(NotSent::OwnNode)));
}

#[tokio::test(start_paused = true)]
async fn the_round_trip_is_measured() {
    let tasks = Tasks::new("network");
    let network = Loopback::new(tasks.spawner(), crate::weather::Distance(Duration::from_millis(20)));
    let (one, _two) = (Node::on(&network, 1, Limits::default()), Node::on(&network, 2, Limits::default()));
    ask(&one, 2, question(5), 1).await.unwrap();
    let measured = eventually("a measured round trip", || one.transport.round_trip(NodeId(2))).await;
    assert_eq!(measured.last, Duration::from_millis(40));
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_question_ends_at_its_deadline() {
    let (_tasks, _network, one, _two) = pair(&Limits::default());
    let start = Instant::now();
    assert_eq!(ask(&one, 2, question(SILENCE), 20).await, Err(CallError::Deadline));
    assert_eq!(start.elapsed().as_secs(), 20);
    let (_, counters) = one.transport.counters().remove(0);
    assert_eq!((counters.expired, counters.breaks), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_tells_sent_from_unsent() {
    let (_tasks, network, one, _two) = pair(&Limits::default());
    ask(&one, 2, question(1), 1).await.unwrap();
    let severing = async {
        eventually("the question is written", || {
            (one.transport.counters()[0].1.frames_sent >= 2).then_some(())
        })
        .await;
        network.detach(NodeId(2));
    };
    let (answer, ()) = tokio::join!(ask(&one, 2, question(SILENCE), 60), severing);
    assert_eq!(answer, Err(CallError::OutcomeUnknown));
    // The node is gone: nothing can be written, and once that is known nothing waits.
    let start = Instant::now();
    assert_eq!(ask(&one, 2, question(1), 60).await, Err(CallError::NotSent(NotSent::Unreachable)));
    assert_eq!(ask(&one, 2, question(1), 60).await, Err(CallError::NotSent(NotSent::Unreachable)));
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_stalled_peer_is_failed_by_the_idle_time_out() {
    let (_tasks, network, one, _two) = pair(&Limits::default());
    ask(&one, 2, question(1), 1).await.unwrap();
    network.cut(NodeId(2), NodeId(1));
    let start = Instant::now();
    assert_eq!(ask(&one, 2, question(2), 60).await, Err(CallError::OutcomeUnknown));
    assert!((2..=3).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    network.heal();
    let answered = async {
        while ask(&one, 2, question(3), 5).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(20, "an answer after the cut", answered).await;
}

#[tokio::test(start_paused = true)]
async fn another_cluster_is_refused() {
    let tasks = Tasks::new("network");
    let network = Loopback::new(tasks.spawner(), Calm);
    let limits = Limits::default();
    let stranger = Node::new(1, Some("another cluster"), network.conduit(NodeId(1)), limits.clone());
    let native = Node::on(&network, 2, limits);
    network.attach(stranger.id, stranger.transport.acceptor());
    for (from, to) in [(&stranger, 2), (&native, 1)] {
        assert_eq!(ask(from, to, question(1), 5).await, Err(CallError::NotSent(NotSent::Unreachable)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_without_a_cluster_refuses_until_it_has_one() {
    let tasks = Tasks::new("network");
    let network = Loopback::new(tasks.spawner(), Calm);
    let one = Node::on(&network, 1, Limits::default());
    let two = Node::new(2, None, network.conduit(NodeId(2)), Limits::default());
    network.attach(two.id, two.transport.acceptor());
    assert_eq!(ask(&one, 2, question(1), 5).await, Err(CallError::NotSent(NotSent::Unreachable)));
    assert_eq!(ask(&two, 1, question(1), 5).await, Err(CallError::NotSent(NotSent::NoClusterYet)));
    assert!(two.transport.identify(&Identity { cluster_id: CLUSTER.into(), node: NodeId(2) }));
    assert!(!two.transport.identify(&Identity { cluster_id: "other".into(), node: NodeId(2) }));
    assert!(ask(&two, 1, question(1), 5).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_not_there_is_answered_removed() {
    let (_tasks, _network, one, _two) = pair(&Limits::default());
    let vote = Body::VoteRequest(VoteRequest::default());
    assert_eq!(ask(&one, 2, vote, 5).await, Err(CallError::Removed));
    assert_eq!(one.transport.counters()[0].1.removed_answers, 1);
}

/// The reason of the refusal with which a node answers.
async fn refused(from: &Node, to: u64, body: Body) -> String {
    match ask(from, to, body, 5).await {
        Err(CallError::Refused(refused)) => refused.reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_has_not_heard_of_a_recovery_decides_nothing_at_those_who_have() {
    const BEHIND: &str = "META_WAS_RECOVERED";
    let (_tasks, _network, one, two) = pair(&Limits::default());
    let control = |request| Body::ControlRequest(ControlRequest { request: Some(request) });
    let steps = || {
        [
            Request::CreateReplica(CreateReplica::default()),
            Request::InitializeGroup(InitializeGroup::default()),
            Request::AddLearner(AddLearner::default()),
            Request::ChangeVoters(ChangeVoters::default()),
            Request::RemoveLearner(RemoveLearner::default()),
            Request::TransferLeader(TransferLeader::default()),
            Request::HandOver(HandOver::default()),
        ]
    };
    for step in steps() {
        assert_eq!(refused(&one, 2, control(step)).await, "", "the handler is asked");
    }
    two.transport.set_recoveries(1);
    for step in steps() {
        assert_eq!(refused(&one, 2, control(step.clone())).await, BEHIND, "{step:?}");
    }
    for question in [
        Request::FetchMap(FetchMap::default()),
        Request::DescribeGroup(DescribeGroup::default()),
        Request::DescribeNode(DescribeNode::default()),
    ] {
        assert_eq!(refused(&one, 2, control(question)).await, "", "it may ask, and hears of it");
    }
    assert_eq!(one.transport.ahead(), Some(two.id));
    one.transport.set_recoveries(1);
    assert_eq!(one.transport.ahead(), None);
    for step in steps() {
        assert_eq!(refused(&one, 2, control(step)).await, "");
    }
}

/// What runs there may be of groups that were given up: a write that such a one acknowledged would be lost.
#[tokio::test(start_paused = true)]
async fn a_node_that_has_not_heard_of_a_recovery_answers_nothing_for_its_shards_to_those_who_have() {
    let (_tasks, _network, one, two) = pair(&Limits::default());
    let requests = || {
        [question(5), Body::WriteRequest(WriteRequest::default()), Body::ReadRequest(ReadRequest::default())]
    };
    one.transport.set_recoveries(1);
    for request in requests() {
        assert_eq!(refused(&one, 2, request.clone()).await, "NOT_APPLIED_STARTING", "{request:?}");
    }
    two.transport.set_recoveries(1);
    assert!(ask(&one, 2, question(5), 5).await.is_ok());
    // And the other way round: what was not given up answers everybody.
    two.transport.set_recoveries(2);
    assert!(ask(&one, 2, question(5), 5).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn more_requests_than_the_bound_are_refused_and_the_rest_goes_on() {
    let (_tasks, _network, one, _two) = pair(&Limits { questions_in_hand: 1, ..Limits::default() });
    let (silent, refused) = tokio::join!(ask(&one, 2, question(SILENCE), 5), ask(&one, 2, question(1), 5));
    assert_eq!(silent, Err(CallError::Deadline));
    let Err(CallError::Refused(refusal)) = refused else { panic!("{refused:?}") };
    assert_eq!(refusal.kind(), refusal::Kind::ResourceExhausted);
    assert!(!CallError::Refused(refusal).may_have_happened());
    // A frame that nobody asks for is refused as well, and harms nothing.
    let odd = ask(&one, 2, Body::ReadIndexResponse(ReadIndexResponse::default()), 5).await;
    assert!(matches!(odd, Err(CallError::Refused(_))), "{odd:?}");
}

#[tokio::test(start_paused = true)]
async fn questions_are_answered_while_all_places_for_requests_are_taken() {
    let (_tasks, _network, one, _two) = pair(&Limits { requests_in_hand: 1, ..Limits::default() });
    let silence = || Body::WriteRequest(WriteRequest { shard_id: SILENCE, ..WriteRequest::default() });
    let (silent, refused, answered) =
        tokio::join!(ask(&one, 2, silence(), 5), ask(&one, 2, silence(), 5), ask(&one, 2, question(1), 5));
    assert_eq!(silent, Err(CallError::Deadline));
    let Err(CallError::Refused(refusal)) = refused else { panic!("{refused:?}") };
    assert_eq!(refusal.kind(), refusal::Kind::ResourceExhausted);
    assert!(answered.is_ok(), "{answered:?}");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_one_request() {
    let (_tasks, network, one, _two) = pair(&Limits { queued_frames: 2, ..Limits::default() });
    network.cut(NodeId(1), NodeId(2));
    let asked = (0..3).map(|number| ask(&one, 2, question(number), 1));
    let answers = futures::future::join_all(asked).await;
    let (full, expired) = (CallError::NotSent(NotSent::QueueFull), CallError::NotSent(NotSent::Expired));
    assert_eq!(answers, [Err(expired.clone()), Err(expired), Err(full)]);
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_no_message_holds_is_not_sent() {
    let (_tasks, _network, one, _two) = pair(&Limits { message_bytes: 2000, ..Limits::default() });
    let large = Body::SnapshotChunk(kv_proto::peer::v1::SnapshotChunk {
        data: vec![0; 3000].into(),
        ..kv_proto::peer::v1::SnapshotChunk::default()
    });
    let refused = ask(&one, 2, large, 1).await;
    assert!(matches!(refused, Err(CallError::NotSent(NotSent::TooLarge { .. }))), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stopped_transport_tells_everybody_and_ends_its_tasks() {
    let (_tasks, _network, one, two) = pair(&Limits::default());
    ask(&one, 2, question(1), 1).await.unwrap();
    let stopping = async {
        eventually("the question is written", || {
            (one.transport.counters()[0].1.frames_sent >= 2).then_some(())
        })
        .await;
        one.transport.stop();
    };
    let (answer, ()) = tokio::join!(ask(&one, 2, question(SILENCE), 60), stopping);
    assert_eq!(answer, Err(CallError::OutcomeUnknown));
    assert_eq!(ask(&one, 2, question(1), 60).await, Err(CallError::NotSent(NotSent::Stopped)));
    let idle = || one.tasks.spawner().running().is_empty().then_some(());
    eventually("no task is left", idle).await;
    // The other side notices the end of the stream.
    let gone = || two.tasks.spawner().running().is_empty().then_some(());
    eventually("the accepted connection is gone", gone).await;
}
