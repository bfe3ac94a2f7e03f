//! Takes a node out of the cluster for good.

use kv_proto::{
    admin::v1::{RemoveNodeRequest, RemoveNodeResponse},
    disk::v1::{
        NodeState,
        meta_command::{self, Command},
    },
    peer::v1::Refusal,
};
use tokio::time::Instant;

use super::{Reach, names, order::Order};

/// Removes a node that is empty, or one that will not come back.
///
/// # Errors
/// It holds replicas and is not said to be lost; it is, and is alive; it holds the last replica of a shard.
pub async fn remove(
    reach: &impl Reach,
    request: RemoveNodeRequest,
    deadline: Instant,
) -> Result<RemoveNodeResponse, Refusal> {
    let RemoveNodeRequest { node, lost, accept_data_loss, actor, reason } = request;
    let record = reach.record(deadline).await?;
    let found = names::node_ever(&record, "node", &node)?;
    let node_id = found.node_id;
    if found.state() == NodeState::Removed {
        return Ok(RemoveNodeResponse { node_id });
    }
    // Who is empty may be alive: it is told that it was removed.
    let alive = lost && reach.is_alive(found, deadline).await;
    let remove = meta_command::RemoveNode { node_id, lost, accept_data_loss, alive };
    let command = Order::by(actor, reason).to(Command::RemoveNode(remove));
    reach.propose(command, deadline).await?;
    Ok(RemoveNodeResponse { node_id })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::operations::model::{LONG, Model};

    fn request(node: &str, lost: bool) -> RemoveNodeRequest {
        RemoveNodeRequest { node: node.to_owned(), lost, ..RemoveNodeRequest::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_lives_is_removed_only_when_it_is_empty() {
        let mut model = Model::of(4);
        model.alive = [3, 4].into();
        let until = Instant::now() + LONG;
        let refused = remove(&model, request("n3", false), until).await.expect_err("it holds replicas");
        assert_eq!(refused.reason, "NODE_NOT_EMPTY");
        let refused = remove(&model, request("n3", true), until).await.expect_err("it is alive");
        assert_eq!(refused.reason, "NODE_IS_ALIVE");
        let removed = remove(&model, request("n4", false), until).await.expect("it holds nothing");
        assert_eq!(removed.node_id, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_will_not_come_back_is_removed_once() {
        let model = Model::of(4);
        model.change(|record| record.nodes[2].name = "data-2".to_owned());
        for name in ["data-2", "data-2", "3"] {
            let removed = remove(&model, request(name, true), Instant::now() + LONG).await.expect(name);
            assert_eq!(removed.node_id, 3, "{name}");
        }
        assert_eq!(model.record_now().nodes[2].state(), NodeState::Removed);
        let refused = remove(&model, request("data-9", true), Instant::now() + LONG).await;
        assert_eq!(refused.expect_err("there was none").reason, "NODE_UNKNOWN");
    }
}
