//! What the controller finds out before it plans: what the groups' leaders and the nodes say, and who is there.

use std::collections::{BTreeMap, BTreeSet};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use kv_proto::{
    disk::v1::{self as disk, MetaRecord, ShardRecord},
    peer::v1::{
        DescribeGroup, DescribeNode, GroupDescription, NodeDescription, control_request::Request,
        control_response::Response,
    },
};
use kv_topology::{GroupId, NodeId, ReplicaId};
use tokio::time::Instant;

use super::{CALLS_AT_ONCE, Controller, Hands, memory::Sight};
use crate::meta::{
    planner::Seen,
    view::{placements, some_node},
};

/// Nodes asked for one group in one round: its last leader, the one that a refusal hints at, and another.
const ASKED_PER_GROUP: usize = 4;

impl<H: Hands> Controller<H> {
    /// What the groups' leaders say, and who is there.
    pub(super) async fn look(&mut self, record: &MetaRecord) -> Seen {
        let nodes = record.nodes.iter().map(|node| NodeId(node.node_id));
        let heard: BTreeSet<NodeId> = nodes.filter(|node| self.hands.heard_recently(*node)).collect();
        let full = heard.iter().copied().filter(|node| self.hands.disk_is_low(*node)).collect();
        let (found, nodes) = tokio::join!(self.groups(record, &heard), self.nodes(&heard));
        let mut groups = BTreeMap::new();
        for (group, node, description) in found {
            self.memory.leaders.insert(group, node);
            groups.insert(group, description);
        }
        let now = Instant::now();
        let sight = Sight { record, heard: &heard, groups: &groups, nodes: &nodes };
        self.memory.look(now, &sight);
        // Whoever does not answer may be stopping.
        let stays = |node: &NodeId| nodes.get(node).is_some_and(|told| !told.stopping);
        let stopping = heard.iter().copied().filter(|node| !stays(node)).collect();
        Seen {
            me: self.hands.me(),
            groups,
            nodes,
            created: self.memory.created.clone(),
            unfit: self.memory.unfit.clone(),
            formed: self.memory.formed.clone(),
            heard,
            silent: self.memory.silent(),
            full,
            stopping,
            stalled: self.memory.stalled(),
            unasked: self.memory.unasked(),
            avoided: self.memory.avoided(self.pace.target_pause),
            held: self.tries.held(now),
        }
    }

    /// The groups that have a leader, with the node of each.
    async fn groups(
        &self,
        record: &MetaRecord,
        heard: &BTreeSet<NodeId>,
    ) -> Vec<(GroupId, NodeId, GroupDescription)> {
        // Boxed: a stream of borrowed closures is not `Send` enough for the spawner.
        let mut questions: Vec<BoxFuture<'_, Option<(GroupId, NodeId, GroupDescription)>>> = Vec::new();
        for shard in &record.shards {
            let created = |placement: &disk::ReplicaPlacement| {
                self.memory.created.contains(&ReplicaId(placement.replica_id))
            };
            if shard.observed.is_some() || shard.shard_id == 0 || shard.replicas.iter().any(created) {
                questions.push(self.describe(shard, heard).boxed());
            }
        }
        stream::iter(questions).buffered(CALLS_AT_ONCE).filter_map(std::future::ready).collect().await
    }

    /// What the nodes say of themselves.
    async fn nodes(&self, heard: &BTreeSet<NodeId>) -> BTreeMap<NodeId, NodeDescription> {
        let mut questions: Vec<BoxFuture<'_, Option<(NodeId, NodeDescription)>>> = Vec::new();
        for node in heard.iter().copied() {
            let question = async move {
                match self.ask(node, Request::DescribeNode(DescribeNode {})).await {
                    Ok(Response::Node(described)) => Some((node, described)),
                    Ok(_) | Err(_) => None,
                }
            };
            questions.push(question.boxed());
        }
        stream::iter(questions).buffered(CALLS_AT_ONCE).filter_map(std::future::ready).collect().await
    }

    /// Finds the leader of a group and lets it describe the group.
    async fn describe(
        &self,
        shard: &ShardRecord,
        heard: &BTreeSet<NodeId>,
    ) -> Option<(GroupId, NodeId, GroupDescription)> {
        let group = GroupId(shard.group_id);
        let holders = placements(shard).into_iter().map(|placement| placement.node);
        let mut open: Vec<NodeId> = self
            .memory
            .leaders
            .get(&group)
            .copied()
            .into_iter()
            .chain(some_node(shard.preferred_leader_node_id))
            .chain(holders)
            .filter(|node| heard.contains(node))
            .rev()
            .collect();
        let mut asked = BTreeSet::new();
        while let Some(node) = open.pop() {
            if asked.len() == ASKED_PER_GROUP {
                break;
            }
            if !asked.insert(node) {
                continue;
            }
            let request = Request::DescribeGroup(DescribeGroup { group_id: group.0 });
            match self.ask(node, request).await {
                Ok(Response::Group(description)) => return Some((group, node, description)),
                Ok(_) => {}
                Err(refusal) => {
                    open.extend(some_node(refusal.leader_node_id).filter(|hint| heard.contains(hint)));
                }
            }
        }
        None
    }
}
