//! What a permit is judged by: what the leaders of a node's groups say of their members at this moment, and which nodes are
//! about to go.

use std::collections::BTreeSet;

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use kv_proto::{
    disk::v1::{MetaRecord, NodeState, ShardRecord},
    peer::v1::{DescribeNode, GroupDescription, control_request::Request, control_response::Response},
};
use kv_topology::{
    Membership, NodeId, ReplicaId, ShardId,
    permit::{Asked, Evidence, Group},
    quorum::odd_voters,
};
use tokio::time::{Duration, Instant};

use super::{
    Reach,
    leaders::{holders, leader_of},
};
use crate::meta::{machine, planner, view};

/// For one answer: longer than a pause of a busy node, and a few of them fit into a request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Questions under way at once.
const QUESTIONS_AT_ONCE: usize = 16;

/// What is known of one shard.
#[derive(Debug)]
pub struct Known {
    shard: ShardId,
    factor: usize,
    /// `None`: no leader answered.
    group: Option<(Membership, Vec<Evidence>)>,
}

impl Known {
    /// As it is judged.
    pub fn asked(&self) -> Asked<'_> {
        let Self { shard, factor, group } = self;
        let group =
            group.as_ref().map(|(membership, members)| Group { membership, members: members.clone() });
        Asked { shard: *shard, factor: *factor, group }
    }
}

/// All that counts for a permit of one node.
#[derive(Debug)]
pub struct Gathered {
    /// The shards that it hosts.
    pub shards: Vec<Known>,
    /// Other nodes that say that they are stopping, or say nothing.
    pub stopping: BTreeSet<NodeId>,
}

/// Asks the leaders of all groups that `node` hosts, and the other nodes, at once.
pub async fn gather(reach: &impl Reach, record: &MetaRecord, node: NodeId, deadline: Instant) -> Gathered {
    let deadline = deadline.min(Instant::now() + ANSWER_TIMEOUT);
    let hosted = record.shards.iter().filter(|shard| holders(shard).contains(&node));
    let question = |shard| known(reach, record, shard, deadline).boxed();
    // Boxed: a stream of borrowed futures is not `Send` enough for who waits for it.
    let questions: Vec<BoxFuture<'_, Known>> = hosted.map(question).collect();
    let shards = stream::iter(questions).buffered(QUESTIONS_AT_ONCE).collect();
    let (shards, stopping) = tokio::join!(shards, stopping(reach, record, node, deadline));
    Gathered { shards, stopping }
}

async fn known(reach: &impl Reach, record: &MetaRecord, shard: &ShardRecord, deadline: Instant) -> Known {
    let led = leader_of(reach, shard, deadline).await;
    let group = led.map(|led| members_of(&led.group));
    Known { shard: ShardId(shard.shard_id), factor: factor_of(record, shard), group }
}

/// How many voters are wished for. Where one copy of everything is wished for and not enough nodes stay for a meta group of
/// three, it is away with its only voter as the other shards are.
fn factor_of(record: &MetaRecord, shard: &ShardRecord) -> usize {
    let replicas = planner::factor_of(record, shard);
    odd_voters(replicas, replicas)
}

/// The membership as the leader describes it, and what it knows of each member, itself included.
fn members_of(group: &GroupDescription) -> (Membership, Vec<Evidence>) {
    let Some(stored) = &group.membership else { return (Membership::default(), Vec::new()) };
    let members = stored.membership.iter().flat_map(|membership| &membership.members);
    let evidence = members.map(|member| {
        let progress = group.progress.iter().find(|progress| progress.replica_id == member.replica_id);
        let leads = member.replica_id == group.leader_replica_id;
        let matching = progress.map_or(0, |progress| progress.matching_index);
        Evidence {
            replica: ReplicaId(member.replica_id),
            node: NodeId(member.node_id),
            heard_ms_ago: if leads { Some(0) } else { progress.and_then(|progress| progress.heard_ms_ago) },
            lag_entries: if leads { 0 } else { group.committed_index.saturating_sub(matching) },
            lag_bytes: if leads { Some(0) } else { progress.and_then(|progress| progress.lag_bytes) },
        }
    });
    (view::membership(stored), evidence.collect())
}

/// Which of the other nodes say that they give their leaderships away, or do not answer: one that is about to stop is still
/// heard of, and will not be in a moment.
async fn stopping(
    reach: &impl Reach,
    record: &MetaRecord,
    but: NodeId,
    deadline: Instant,
) -> BTreeSet<NodeId> {
    let others = record.nodes.iter().filter(|node| node.state() != NodeState::Removed);
    let others = others.map(|node| NodeId(node.node_id)).filter(|node| *node != but);
    let question = |node: NodeId| {
        async move {
            match reach.control(node, Request::DescribeNode(DescribeNode {}), deadline).await {
                Ok(Response::Node(described)) => described.stopping.then_some(node),
                // It may have stopped since its leaders heard of it.
                Ok(_) | Err(_) => Some(node),
            }
        }
        .boxed()
    };
    let questions: Vec<BoxFuture<'_, Option<NodeId>>> = others.map(question).collect();
    // All at once: those that are switched off must not keep the others from being asked in time.
    let answers = stream::iter(questions).buffer_unordered(machine::MAX_NODES);
    answers.filter_map(std::future::ready).collect().await
}

#[cfg(test)]
mod tests {
    use kv_proto::peer::v1::Progress;

    use super::*;
    use crate::node::operations::model::{description, record};

    #[test]
    fn members_lag_behind_the_commit_and_the_leader_does_not() {
        let mut group = description(1, &[101, 102, 103]);
        group.committed_index = 50;
        group.progress = vec![
            Progress { replica_id: 101, matching_index: 40, ..Progress::default() },
            Progress { replica_id: 102, matching_index: 60, heard_ms_ago: Some(9), lag_bytes: Some(0) },
        ];
        let (membership, members) = members_of(&group);
        assert_eq!(membership.to_string(), "{r101 r102 r103}");
        let told: Vec<_> =
            members.iter().map(|one| (one.node.get(), one.heard_ms_ago, one.lag_entries)).collect();
        assert_eq!(told, [(1, Some(0), 0), (2, Some(9), 0), (3, None, 50)]);
    }

    #[test]
    fn one_node_for_one_copy_of_everything_has_one_copy_of_meta_too() {
        let factors = |nodes, replication_factor| {
            let mut record = record(nodes);
            record.replication_factor = replication_factor;
            record.shards.iter().map(|shard| factor_of(&record, shard)).collect::<Vec<_>>()
        };
        assert_eq!(factors(1, 1), [1, 1]);
        assert_eq!(factors(2, 1), [1, 1], "of two one votes");
        assert_eq!(factors(3, 1), [3, 1]);
        assert_eq!(factors(3, 3), [3, 3]);
        assert_eq!(factors(7, 5), [5, 5]);
        assert_eq!(factors(1, 3), [3, 3], "what is wished for is not there");
    }
}
