//! Who leads a group now, and what it knows of it.

use std::collections::BTreeSet;

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use kv_proto::{
    disk::v1::ShardRecord,
    peer::v1::{DescribeGroup, GroupDescription, control_request::Request, control_response::Response},
};
use kv_topology::NodeId;
use tokio::time::Instant;

use super::Reach;

/// A group as its leader describes it.
#[derive(Clone, Debug)]
pub struct Led {
    /// The leader's node.
    pub node: NodeId,
    /// What it says.
    pub group: GroupDescription,
}

/// The nodes that have replicas of the shard, as far as meta knows: those that were placed and those that were seen.
pub fn holders(shard: &ShardRecord) -> BTreeSet<NodeId> {
    let placed = shard.replicas.iter().map(|placement| placement.node_id);
    let seen = shard.observed.iter().flat_map(|stored| &stored.membership);
    let seen = seen.flat_map(|membership| &membership.members).map(|member| member.node_id);
    placed.chain(seen).map(NodeId).collect()
}

/// Asks all nodes with replicas of the shard at once, and takes the first that leads: one that is away costs no time.
/// `None`: none of them leads.
///
/// One that was cut off and does not know yet that it leads no more may answer, too: it has not heard of the others, and says so.
pub async fn leader_of(reach: &impl Reach, shard: &ShardRecord, deadline: Instant) -> Option<Led> {
    let ask = |node: NodeId| {
        let question = Request::DescribeGroup(DescribeGroup { group_id: shard.group_id });
        async move {
            match reach.control(node, question, deadline).await {
                Ok(Response::Group(group)) => Some(Led { node, group }),
                Ok(_) | Err(_) => None,
            }
        }
        .boxed()
    };
    // Boxed: a stream of borrowed futures is not `Send` enough for who waits for it.
    let mut asked: FuturesUnordered<BoxFuture<'_, Option<Led>>> =
        holders(shard).into_iter().map(ask).collect();
    while let Some(answer) = asked.next().await {
        if answer.is_some() {
            return answer;
        }
    }
    None
}
