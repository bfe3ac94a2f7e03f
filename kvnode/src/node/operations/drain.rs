//! Drain and undrain: wishes about a node, as its state. The controller carries them out.

use kv_proto::{
    admin::v1::{DrainNodeRequest, DrainNodeResponse, UndrainNodeRequest, UndrainNodeResponse},
    disk::v1::{
        NodeRecord, NodeState,
        meta_command::{Command, SetNodeState},
    },
    peer::v1::{Refusal, refusal::Kind},
};
use tokio::time::Instant;

use super::{ATTEMPTS, Reach, names, order::Order};
use crate::refusal::{self, NODE_IS_GONE, NODE_STATE_CHANGED};

/// Begins a drain.
///
/// # Errors
/// The node is not one that can be drained, or too few would stay.
pub async fn drain(
    reach: &impl Reach,
    request: DrainNodeRequest,
    deadline: Instant,
) -> Result<DrainNodeResponse, Refusal> {
    let DrainNodeRequest { node, actor, reason } = request;
    let (node_id, state) = bring(reach, &node, &Order::by(actor, reason), to_drain, deadline).await?;
    Ok(DrainNodeResponse { node_id, state: state.into() })
}

/// Cancels a drain, or takes a drained node back.
///
/// # Errors
/// The node is neither draining nor drained nor active.
pub async fn undrain(
    reach: &impl Reach,
    request: UndrainNodeRequest,
    deadline: Instant,
) -> Result<UndrainNodeResponse, Refusal> {
    let UndrainNodeRequest { node, actor, reason } = request;
    let (node_id, state) = bring(reach, &node, &Order::by(actor, reason), to_undrain, deadline).await?;
    Ok(UndrainNodeResponse { node_id, state: state.into() })
}

/// What is to be done about a node in this state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing.
    Done,
    /// It goes to this state.
    To(NodeState),
    /// It cannot be done now.
    NotNow(&'static str),
    /// It is not part of the cluster any more.
    Gone,
}

fn to_drain(state: NodeState) -> Step {
    match state {
        NodeState::Draining | NodeState::Drained => Step::Done,
        NodeState::Active => Step::To(NodeState::Draining),
        NodeState::Joining => Step::NotNow("is joining: ask again when it is active"),
        NodeState::Lost => Step::NotNow("is lost: its replicas are rebuilt elsewhere already"),
        NodeState::Unspecified => Step::NotNow("is in a state that this node does not know"),
        NodeState::Removed => Step::Gone,
    }
}

fn to_undrain(state: NodeState) -> Step {
    match state {
        NodeState::Active => Step::Done,
        NodeState::Draining | NodeState::Drained => Step::To(NodeState::Active),
        NodeState::Joining => Step::NotNow("is joining: nobody drains it"),
        NodeState::Lost => Step::NotNow("is lost: it is active again when it is heard of"),
        NodeState::Unspecified => Step::NotNow("is in a state that this node does not know"),
        NodeState::Removed => Step::Gone,
    }
}

/// Takes the step; decides again when the node has changed its state meanwhile, as a drain that comes to its end. The node
/// and its state then.
async fn bring(
    reach: &impl Reach,
    name: &str,
    order: &Order,
    step: fn(NodeState) -> Step,
    deadline: Instant,
) -> Result<(u64, NodeState), Refusal> {
    let mut attempt = 1;
    loop {
        let record = reach.record(deadline).await?;
        let node = names::node(&record, "node", name)?;
        let (node_id, from) = (node.node_id, node.state());
        let to = match step(from) {
            Step::Done => return Ok((node_id, from)),
            Step::To(to) => to,
            Step::NotNow(why) => {
                return Err(failed(NODE_STATE_CHANGED, format!("{} {why}", called(node))));
            }
            Step::Gone => return Err(failed(NODE_IS_GONE, format!("{} was removed", called(node)))),
        };
        let set = SetNodeState { node_id, from: from.into(), to: to.into() };
        let command = order.to(Command::SetNodeState(set));
        match reach.propose(command, deadline).await {
            Ok(_) => return Ok((node_id, to)),
            Err(refused) if refused.reason == NODE_STATE_CHANGED && attempt < ATTEMPTS => attempt += 1,
            Err(refused) => return Err(refused),
        }
    }
}

fn failed(reason: &str, message: String) -> Refusal {
    refusal::of(Kind::FailedPrecondition, reason, message)
}

/// For people.
fn called(node: &NodeRecord) -> String {
    format!("{} (#{})", node.name, node.node_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::operations::model::{LONG, Model};

    fn request(node: &str) -> DrainNodeRequest {
        DrainNodeRequest { node: node.to_owned(), actor: "kvctl".to_owned(), reason: "old disk".to_owned() }
    }

    fn back(node: &str) -> UndrainNodeRequest {
        UndrainNodeRequest { node: node.to_owned(), ..UndrainNodeRequest::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_is_begun_once_and_cancelled_once() {
        let model = Model::of(4);
        let until = Instant::now() + LONG;
        for _ in 0..2 {
            let drained = drain(&model, request("n4"), until).await.expect("enough nodes stay");
            assert_eq!(drained, DrainNodeResponse { node_id: 4, state: NodeState::Draining.into() });
        }
        let record = model.record_now();
        assert_eq!(record.nodes[3].state_reason, "old disk");
        assert_eq!(model.proposed(), 1, "done already is done");
        for _ in 0..2 {
            let undrained = undrain(&model, back("4"), until).await.expect("it was draining");
            assert_eq!(undrained, UndrainNodeResponse { node_id: 4, state: NodeState::Active.into() });
        }
        assert_eq!(model.proposed(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_that_leaves_too_few_nodes_is_refused_with_the_reason() {
        let model = Model::of(3);
        let refused = drain(&model, request("n3"), Instant::now() + LONG).await.expect_err("two would stay");
        assert_eq!((refused.kind(), refused.reason.as_str()), (Kind::FailedPrecondition, "TOO_FEW_NODES"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_undrain_finds_the_drain_that_ended_meanwhile() {
        let model = Model::of(4);
        model.change(|record| record.nodes[3].state = NodeState::Draining.into());
        // The controller is faster.
        model.before_next_proposal(|record| record.nodes[3].state = NodeState::Drained.into());
        let undrained = undrain(&model, back("n4"), Instant::now() + LONG).await.expect("taken back");
        assert_eq!(undrained.state(), kv_proto::admin::v1::NodeState::Active);
        assert_eq!(model.record_now().nodes[3].state(), NodeState::Active);
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_in_other_states_are_refused_by_name() {
        let model = Model::of(4);
        let until = Instant::now() + LONG;
        for (state, reason) in [
            (NodeState::Joining, NODE_STATE_CHANGED),
            (NodeState::Lost, NODE_STATE_CHANGED),
            (NodeState::Removed, NODE_IS_GONE),
        ] {
            model.change(|record| record.nodes[3].state = state.into());
            let refused = [
                drain(&model, request("4"), until).await.expect_err("not active"),
                undrain(&model, back("4"), until).await.expect_err("not drained"),
            ];
            for refused in refused {
                assert_eq!(refused.reason, reason, "{state:?}");
                assert!(refused.message.starts_with("n4 (#4) "), "{}", refused.message);
            }
        }
        let refused = drain(&model, request("n9"), until).await.expect_err("there is none");
        assert_eq!((refused.reason.as_str(), refused.field.as_str()), ("NODE_UNKNOWN", "node"));
    }
}
