//! Lets another replica of a shard lead.
//!
//! The leader is asked, which checks the target; then it is waited for the target to lead. A request may get lost, and somebody
//! else may win an election meanwhile: so it is asked again until the deadline. In the end the choice is written down, or the
//! balance of leaders would undo it; also when the target led already.

use std::time::Duration;

use kv_proto::{
    admin::v1::{TransferLeaderRequest, TransferLeaderResponse},
    disk::v1::{
        NodeState, ShardRecord,
        meta_command::{Command, Note, PreferLeaders, PreferredLeader},
    },
    peer::v1::{
        DescribeGroup, GroupDescription, Refusal, TransferLeader, control_request::Request,
        control_response::Response, refusal::Kind,
    },
};
use kv_topology::{NodeId, ReplicaId};
use tokio::time::{Instant, sleep};

use super::{
    ATTEMPTS, Reach,
    leaders::{Led, leader_of},
    names,
    order::Order,
};
use crate::{
    meta::view,
    refusal::{self, EPOCH_MOVED_ON, TARGET_NOT_READY},
};

/// For the answers of those that may lead.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// A target that has not taken over by then did not hear of it, or could not: longer than a sync of its log and a vote take.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// For writing down what was done: it is done, whether or not that succeeds.
const NOTE_TIMEOUT: Duration = Duration::from_secs(2);

/// Transfers the leadership of a shard; returns when the target leads.
///
/// # Errors
/// The target has no voter of the shard that has caught up and was heard of, or did not take over in time.
pub async fn transfer(
    reach: &impl Reach,
    request: TransferLeaderRequest,
    deadline: Instant,
) -> Result<TransferLeaderResponse, Refusal> {
    let TransferLeaderRequest { shard_id, to_node, actor, reason } = request;
    let record = reach.record(deadline).await?;
    let node = names::node(&record, "to_node", &to_node)?;
    let target = NodeId(node.node_id);
    let shard = names::shard(&record, shard_id)?;
    if node.state() != NodeState::Active {
        // It would be taken away again at once.
        return Err(unfit(format!("node {target} is not active, and leads nothing for long")));
    }
    let before = give(reach, shard, target, deadline).await?;
    let order = Order::by(actor, reason);
    if let Err(refused) = write_down(reach, &order, shard_id, before, target).await {
        let (reason, message) = (refused.reason, refused.message);
        tracing::warn!(
            shard = shard_id,
            node = target.get(),
            reason,
            message,
            "a transfer was not written down"
        );
    }
    Ok(TransferLeaderResponse { leader_node_id: target.get() })
}

/// Asks until the target leads. Who led before.
async fn give(
    reach: &impl Reach,
    shard: &ShardRecord,
    target: NodeId,
    deadline: Instant,
) -> Result<NodeId, Refusal> {
    let mut before = None;
    let mut last = refusal::not_leader(kv_topology::ShardId(shard.shard_id), None);
    while Instant::now() < deadline {
        match leader_of(reach, shard, deadline.min(Instant::now() + ANSWER_TIMEOUT)).await {
            Some(Led { node, .. }) if node == target => return Ok(before.unwrap_or(target)),
            Some(led) => {
                before = before.or(Some(led.node));
                let asked = Request::TransferLeader(TransferLeader {
                    group_id: shard.group_id,
                    to_replica: voter_on(&led.group, target, shard.shard_id)?.get(),
                });
                match reach.control(led.node, asked, deadline).await {
                    Ok(_) => await_lead(reach, shard, target, deadline).await,
                    Err(refused) if refused.reason == TARGET_NOT_READY => return Err(unfit(refused.message)),
                    Err(refused) => last = refused,
                }
            }
            None => {}
        }
        sleep(LOOK_EVERY).await;
    }
    match before {
        None => Err(last),
        Some(_) => {
            let message = format!("node {target} does not lead shard {} in time", shard.shard_id);
            Err(refusal::of(Kind::DeadlineExceeded, refusal::DEADLINE_EXCEEDED, message))
        }
    }
}

/// The replica on `node` that votes; of two, one of which takes the other's place, the newer one.
fn voter_on(group: &GroupDescription, node: NodeId, shard: u32) -> Result<ReplicaId, Refusal> {
    let stored = group.membership.clone().unwrap_or_default();
    let membership = view::membership(&stored);
    let members = stored.membership.iter().flat_map(|membership| &membership.members);
    let there = members.filter(|member| member.node_id == node.get());
    let voters = there.map(|member| ReplicaId(member.replica_id)).filter(|id| membership.is_voter(*id));
    voters.max().ok_or_else(|| unfit(format!("node {node} has no voter of shard {shard}")))
}

/// What the target lacks now it will not have in a moment: unlike a refusal on the way this one is final.
fn unfit(message: String) -> Refusal {
    refusal::of(Kind::FailedPrecondition, TARGET_NOT_READY, message)
}

/// Returns when the target leads, or has not for long.
async fn await_lead(reach: &impl Reach, shard: &ShardRecord, target: NodeId, deadline: Instant) {
    let give_up = deadline.min(Instant::now() + TAKE_OVER_TIMEOUT);
    while Instant::now() < give_up {
        let question = Request::DescribeGroup(DescribeGroup { group_id: shard.group_id });
        if let Ok(Response::Group(_)) = reach.control(target, question, give_up).await {
            return;
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The choice, for the balance of leaders, and a line of the journal about what was done.
async fn write_down(
    reach: &impl Reach,
    order: &Order,
    shard_id: u32,
    from: NodeId,
    to: NodeId,
) -> Result<(), Refusal> {
    let deadline = Instant::now() + NOTE_TIMEOUT;
    let node_id = to.get();
    for attempt in 1.. {
        let record = reach.record(deadline).await?;
        let shard = names::shard(&record, shard_id)?;
        if shard.leader_chosen && shard.preferred_leader_node_id == node_id {
            break;
        }
        let leaders = vec![PreferredLeader { shard_id, node_id }];
        let prefer = PreferLeaders { leaders, expected_epoch: record.epoch, chosen: true };
        match reach.propose(order.to(Command::PreferLeaders(prefer)), deadline).await {
            Ok(_) => break,
            Err(refused) if refused.reason == EPOCH_MOVED_ON && attempt < ATTEMPTS => {}
            Err(refused) => return Err(refused),
        }
    }
    if from == to {
        return Ok(());
    }
    let event = format!("leadership of shard {shard_id} given from {from} to {to}");
    let note = Note { shard_id: Some(shard_id), node_id, event };
    reach.propose(order.to(Command::Note(note)), deadline).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use kv_proto::peer::v1::Done;

    use super::*;
    use crate::node::operations::model::{LONG, Model, description};

    fn request(shard_id: u32, to_node: &str) -> TransferLeaderRequest {
        TransferLeaderRequest { shard_id, to_node: to_node.to_owned(), ..TransferLeaderRequest::default() }
    }

    /// Shard 1 has voters on n1, n2 and n3, the first of which leads; `obeys`: how many times it must be asked.
    fn led(obeys: usize) -> Model {
        let mut model = Model::of(4);
        let leader = Arc::new(Mutex::new((NodeId(1), obeys)));
        model.answers = Box::new(move |node, request| {
            let mut now = leader.lock().expect("no panic");
            if node != now.0 {
                return Err(refusal::not_leader(kv_topology::ShardId(1), Some(now.0)));
            }
            match request {
                Request::DescribeGroup(_) => Ok(Response::Group(description(node.get(), &[101, 102, 103]))),
                Request::TransferLeader(asked) if asked.to_replica == 103 => {
                    Err(refusal::not_applied(TARGET_NOT_READY, "replica 103 lags 5000 entries behind"))
                }
                Request::TransferLeader(asked) => {
                    now.1 -= 1;
                    if now.1 == 0 {
                        now.0 = NodeId(asked.to_replica - 100);
                    }
                    Ok(Response::Done(Done {}))
                }
                _ => Err(refusal::internal("not asked here")),
            }
        });
        model
    }

    #[tokio::test(start_paused = true)]
    async fn a_transfer_is_repeated_until_the_target_leads_and_is_then_wished_for() {
        for obeys in [1, 3] {
            let model = led(obeys);
            let done = transfer(&model, request(1, "n2"), Instant::now() + LONG).await.expect("transferred");
            assert_eq!(done.leader_node_id, 2);
            let shard = &model.record_now().shards[1];
            assert_eq!((shard.preferred_leader_node_id, shard.leader_chosen), (2, true));
            let noted = model.commands();
            let Some(Command::Note(note)) = noted.last().and_then(|last| last.command.clone()) else {
                panic!("not noted: {noted:?}");
            };
            assert_eq!(
                (note.shard_id, note.event.as_str()),
                (Some(1), "leadership of shard 1 given from #1 to #2")
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_leads_already_is_left_alone_and_stays() {
        let model = led(1);
        for _ in 0..2 {
            let done = transfer(&model, request(1, "n1"), Instant::now() + LONG).await.expect("it leads");
            assert_eq!((done.leader_node_id, model.proposed()), (1, 1), "it is chosen once");
            let shard = &model.record_now().shards[1];
            assert_eq!((shard.preferred_leader_node_id, shard.leader_chosen), (1, true));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_is_no_voter_or_lags_is_refused_at_once() {
        let model = led(1);
        let began = Instant::now();
        for target in ["n3", "n4"] {
            let refused = transfer(&model, request(1, target), began + LONG).await.expect_err(target);
            let told = (refused.kind(), refused.reason.as_str());
            assert_eq!(told, (Kind::FailedPrecondition, TARGET_NOT_READY), "{target}");
        }
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        model.change(|record| record.nodes[1].state = NodeState::Draining.into());
        let refused = transfer(&model, request(1, "n2"), began + LONG).await.expect_err("it drains");
        assert_eq!(refused.reason, TARGET_NOT_READY);
        let refused = transfer(&model, request(9, "n2"), began + LONG).await.expect_err("no such shard");
        assert_eq!((refused.reason.as_str(), refused.field.as_str()), ("SHARD_UNKNOWN", "shard_id"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_shard_without_a_leader_is_asked_until_the_deadline() {
        let mut model = Model::of(3);
        model.answers = Box::new(|_, _| Err(refusal::not_leader(kv_topology::ShardId(1), None)));
        let began = Instant::now();
        let refused = transfer(&model, request(1, "n2"), began + LONG).await.expect_err("nobody leads");
        assert_eq!((refused.kind(), refused.reason.as_str()), (Kind::NotApplied, refusal::NO_LEADER));
        assert!(began.elapsed() >= LONG);
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_never_takes_over_is_told_at_the_deadline() {
        let model = led(usize::MAX);
        let refused = transfer(&model, request(1, "n2"), Instant::now() + LONG).await.expect_err("never");
        assert_eq!(refused.kind(), Kind::DeadlineExceeded);
        assert_eq!(model.proposed(), 0, "nothing was done");
    }
}
