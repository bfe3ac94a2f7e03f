//! What the meta leader does about nodes: their states, and permits that are over.
//!
//! Joining and lost nodes become active when they are heard of, draining ones drained when nothing is left on them, and
//! an active one that is silent for longer than the grace time is lost. Draining begins and ends because a person or the
//! operator says so, and so does the removal of a node: a drained machine that is switched off for a day comes back drained.

use std::time::Duration;

use kv_proto::disk::v1::{
    NodeRecord, NodeState,
    meta_command::{Command, EndPermit, SetNodeState},
};
use kv_topology::NodeId;

use super::{Planner, Subject, spell};
use crate::meta::machine;

impl Planner<'_> {
    /// Brings the states of nodes in step with what is seen of them.
    pub(super) fn settle_nodes(&mut self) {
        for node in &self.record.nodes {
            let id = NodeId(node.node_id);
            if self.seen.held.contains(&Subject::Node(id)) {
                continue;
            }
            if let Some((to, reason)) = self.next_state(node) {
                let (from, to) = (node.state, to.into());
                let command = Command::SetNodeState(SetNodeState { node_id: id.0, from, to });
                self.propose(Subject::Node(id), command, reason);
            }
        }
    }

    /// The state that a node should be in instead of its own, and why.
    fn next_state(&self, node: &NodeRecord) -> Option<(NodeState, String)> {
        let id = NodeId(node.node_id);
        let there = self.is_there(id);
        match node.state() {
            NodeState::Joining if there => Some((NodeState::Active, format!("{id} joined and was heard of"))),
            NodeState::Lost if there => Some((NodeState::Active, format!("{id} was heard of again"))),
            NodeState::Draining if self.is_empty(id) => {
                Some((NodeState::Drained, format!("no shard has a replica on {id} any more")))
            }
            NodeState::Joining | NodeState::Active => {
                self.why_lost(id).map(|reason| (NodeState::Lost, reason))
            }
            // All that is on a draining node moves away also when it is silent; as a lost one it would be active when it is back.
            NodeState::Draining
            | NodeState::Drained
            | NodeState::Lost
            | NodeState::Removed
            | NodeState::Unspecified => None,
        }
    }

    /// Why a node counts as lost: it was silent for too long, and nobody gave it leave to be.
    fn why_lost(&self, node: NodeId) -> Option<String> {
        let grace = Duration::from_millis(machine::policy(self.record).lost_node_grace_ms);
        let silent = *self.seen.silent.get(&node)?;
        let has_leave = self.permit_holder() == Some(node);
        (silent >= grace && !has_leave && node != self.seen.me).then(|| {
            format!("{node} has been silent for {}, and the grace time is {}", spell(silent), spell(grace))
        })
    }

    fn is_empty(&self, node: NodeId) -> bool {
        self.record.shards.iter().all(|shard| !machine::is_hosted(shard, node.0))
    }

    /// The node whose permit is open.
    pub(super) fn permit_holder(&self) -> Option<NodeId> {
        machine::open_permit(self.record).map(|permit| NodeId(permit.node_id))
    }

    /// Overdue permits are over once their nodes say that they have caught up.
    pub(super) fn end_permits(&mut self) {
        for permit in self.record.permits.iter().filter(|permit| permit.overdue) {
            let node = NodeId(permit.node_id);
            let told = self.seen.nodes.get(&node).filter(|_| self.is_there(node));
            let Some(told) = told.filter(|told| told.caught_up) else {
                self.wait(
                    Subject::Permit(node),
                    format!("the permit of {node} is overdue, and it has not caught up"),
                );
                continue;
            };
            if self.seen.held.contains(&Subject::Permit(node)) {
                continue;
            }
            let reason = format!("{node} has caught up again, in start {} of its disk", told.boot_counter);
            let command = Command::EndPermit(EndPermit { token: permit.token.clone() });
            self.propose(Subject::Permit(node), command, reason);
        }
    }
}
