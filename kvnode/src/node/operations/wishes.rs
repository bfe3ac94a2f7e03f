//! What is wished of a node or of the whole cluster: labels and policy.

use kv_proto::{
    admin::v1::{SetNodeLabelsRequest, SetNodeLabelsResponse, SetPolicyRequest, SetPolicyResponse},
    disk::v1::meta_command::{Command, SetPolicy, SetZone},
    peer::v1::Refusal,
};
use tokio::time::Instant;

use super::{Reach, names, order::Order};
use crate::{meta::view, refusal};

/// Labels a node with its zone, or takes the label away.
///
/// # Errors
/// There is no such node.
pub async fn label(
    reach: &impl Reach,
    request: SetNodeLabelsRequest,
    deadline: Instant,
) -> Result<SetNodeLabelsResponse, Refusal> {
    let SetNodeLabelsRequest { node, zone, actor } = request;
    let record = reach.record(deadline).await?;
    let node_id = names::node(&record, "node", &node)?.node_id;
    let command = Command::SetZone(SetZone { node_id, zone });
    reach.propose(Order::by(actor, String::new()).to(command), deadline).await?;
    Ok(SetNodeLabelsResponse { node_id })
}

/// Changes what is given, and tells the whole policy as it is then.
///
/// # Errors
/// There are too few nodes for it; or it is done, and what the policy is then cannot be read.
pub async fn policy(
    reach: &impl Reach,
    request: SetPolicyRequest,
    deadline: Instant,
) -> Result<SetPolicyResponse, Refusal> {
    let SetPolicyRequest { replication_factor, lost_node_grace_ms, moves_at_once, actor, reason } = request;
    let set = SetPolicy { replication_factor, lost_node_grace_ms, moves_at_once };
    let changes = set != SetPolicy::default();
    if changes {
        let command = Order::by(actor, reason).to(Command::SetPolicy(set));
        reach.propose(command, deadline).await?;
    }
    // That it could not be read must not sound like that nothing was done.
    let unread = |refused: Refusal| {
        let message = format!("the policy is changed; what it is now could not be read: {}", refused.message);
        if changes { refusal::outcome_unknown(message) } else { refused }
    };
    let record = reach.record(deadline).await.map_err(unread)?;
    Ok(SetPolicyResponse { policy: Some(view::policy(&record)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::operations::model::{LONG, Model};

    #[tokio::test(start_paused = true)]
    async fn a_label_is_set_and_taken_away() {
        let model = Model::of(3);
        for zone in [Some("b"), Some(""), None] {
            let request = SetNodeLabelsRequest {
                node: "n2".to_owned(),
                zone: zone.map(str::to_owned),
                actor: String::new(),
            };
            let labelled = label(&model, request, Instant::now() + LONG).await.expect("labelled");
            assert_eq!(labelled.node_id, 2);
            assert_eq!(model.record_now().nodes[1].zone_label.as_deref(), zone);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_given_stays_and_the_whole_policy_is_told() {
        let model = Model::of(3);
        let until = Instant::now() + LONG;
        let told = policy(&model, SetPolicyRequest::default(), until).await.expect("told").policy;
        assert_eq!(
            (told.expect("a policy").moves_at_once, model.proposed()),
            (4, 0),
            "nothing was asked for"
        );
        let request = SetPolicyRequest { moves_at_once: Some(9), ..SetPolicyRequest::default() };
        let told = policy(&model, request, until).await.expect("set").policy.expect("a policy");
        assert_eq!((told.replication_factor, told.moves_at_once), (3, 9));
        let request = SetPolicyRequest { replication_factor: Some(5), ..SetPolicyRequest::default() };
        let refused = policy(&model, request, until).await.expect_err("three nodes");
        assert_eq!(refused.reason, "TOO_FEW_NODES");
        model.refuse_reads_after(0);
        let request = SetPolicyRequest { moves_at_once: Some(2), ..SetPolicyRequest::default() };
        let unread = policy(&model, request, until).await.expect_err("it cannot be read");
        assert_eq!(unread.reason, refusal::OUTCOME_UNKNOWN, "it is done: {}", unread.message);
        let unread = policy(&model, SetPolicyRequest::default(), until).await.expect_err("nor this");
        assert_eq!(unread.reason, refusal::NO_LEADER, "nothing was to be done");
    }
}
