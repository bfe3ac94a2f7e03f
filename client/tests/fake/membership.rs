//! What persons have wished of a cluster of pretence, and what became of it.

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::admin::v1 as proto;
use tonic::{Code, Status};

use super::{State, script::refusal};

/// States, labels, permits and the journal. Nothing moves by itself but what drains.
#[derive(Default)]
pub struct Membership {
    /// Nodes that are not active.
    pub states: BTreeMap<u64, proto::NodeState>,
    /// Why they are not.
    pub reasons: BTreeMap<u64, String>,
    pub zones: BTreeMap<u64, String>,
    /// Shard and node of replicas that have moved away.
    pub gone: BTreeSet<(u32, u64)>,
    pub moves: Vec<proto::Move>,
    pub permits: Vec<proto::Permit>,
    tokens: BTreeMap<String, u64>,
    pub policy: proto::Policy,
    /// The oldest first.
    pub journal: Vec<proto::JournalEntry>,
    /// What a question for a permit is answered with.
    pub objections: Vec<proto::Objection>,
    /// A drain stands still.
    pub holds_drains: bool,
    /// Who asked for what, and why, in order.
    pub asked: Vec<(&'static str, String, String)>,
}

/// When everything in this cluster happened.
pub const UNIX_MS: u64 = 1_795_366_468_000;

impl Membership {
    /// With the defaults of a real one.
    pub fn new() -> Self {
        let policy = proto::Policy { replication_factor: 3, lost_node_grace_ms: 600_000, moves_at_once: 4 };
        Self { policy, ..Self::default() }
    }

    pub fn state(&self, node: u64) -> proto::NodeState {
        self.states.get(&node).copied().unwrap_or(proto::NodeState::Active)
    }

    pub fn holds(&self, shard: u32, node: u64) -> bool {
        !self.gone.contains(&(shard, node))
    }

    /// The nodes that take part.
    pub fn members(&self, nodes: u64) -> impl Iterator<Item = u64> {
        (1..=nodes).filter(|node| self.state(*node) != proto::NodeState::Removed)
    }

    /// The node of this name or id.
    pub fn find(&self, nodes: u64, name: &str) -> Result<u64, Status> {
        let id = name.strip_prefix(['n', '#']).unwrap_or(name).parse().ok();
        let found = id.filter(|id| (1..=nodes).contains(id));
        found.ok_or_else(|| refusal(Code::NotFound, "NODE_UNKNOWN", &[], None))
    }

    fn enter(&mut self, node: u64, state: proto::NodeState, reason: &str) {
        self.states.insert(node, state);
        self.reasons.insert(node, reason.to_owned());
    }

    /// Each look at the cluster finds one replica fewer on nodes that drain.
    pub fn proceed(&mut self) {
        if self.holds_drains {
            return;
        }
        let is_draining = |node: &u64| self.state(*node) == proto::NodeState::Draining;
        let draining: Vec<u64> = self.states.keys().copied().filter(is_draining).collect();
        for node in draining {
            match (0..3).find(|shard| self.holds(*shard, node)) {
                Some(shard) => {
                    self.gone.insert((shard, node));
                }
                None => self.enter(node, proto::NodeState::Drained, "nothing is left"),
            }
        }
    }
}

/// What is asked for, done at once. The epoch moves on with each change.
impl State {
    pub fn drain(
        &mut self,
        nodes: u64,
        asked: &proto::DrainNodeRequest,
    ) -> Result<proto::DrainNodeResponse, Status> {
        let node = self.membership.find(nodes, &asked.node)?;
        self.asked("DrainNode", &asked.actor, &asked.reason);
        let state = self.membership.state(node);
        if state == proto::NodeState::Active {
            let active = (1..=nodes).filter(|node| self.membership.state(*node) == proto::NodeState::Active);
            if active.count() as u32 <= self.membership.policy.replication_factor {
                return Err(refusal(Code::FailedPrecondition, "TOO_FEW_NODES", &[], None));
            }
            self.membership.enter(node, proto::NodeState::Draining, &asked.reason);
            self.epoch += 1;
        }
        Ok(proto::DrainNodeResponse { node_id: node, state: self.membership.state(node).into() })
    }

    pub fn undrain(
        &mut self,
        nodes: u64,
        asked: &proto::UndrainNodeRequest,
    ) -> Result<proto::UndrainNodeResponse, Status> {
        let node = self.membership.find(nodes, &asked.node)?;
        self.asked("UndrainNode", &asked.actor, &asked.reason);
        self.membership.states.remove(&node);
        self.epoch += 1;
        Ok(proto::UndrainNodeResponse { node_id: node, state: self.membership.state(node).into() })
    }

    pub fn remove(
        &mut self,
        nodes: u64,
        asked: &proto::RemoveNodeRequest,
    ) -> Result<proto::RemoveNodeResponse, Status> {
        let node = self.membership.find(nodes, &asked.node)?;
        self.asked("RemoveNode", &asked.actor, &asked.reason);
        let failed = |reason| Err(refusal(Code::FailedPrecondition, reason, &[], None));
        match (asked.lost, asked.accept_data_loss) {
            (false, _) if (0..3).any(|shard| self.membership.holds(shard, node)) => {
                return failed("NODE_NOT_EMPTY");
            }
            // The last one of several is silent.
            (true, _) if node != nodes => return failed("NODE_IS_ALIVE"),
            (true, false) => return failed("DATA_LOSS_NOT_ACCEPTED"),
            (true, true) | (false, _) => {}
        }
        self.membership.enter(node, proto::NodeState::Removed, &asked.reason);
        self.epoch += 1;
        Ok(proto::RemoveNodeResponse { node_id: node })
    }

    pub fn permit(
        &mut self,
        nodes: u64,
        asked: &proto::RequestPermitRequest,
    ) -> Result<proto::RequestPermitResponse, Status> {
        let node = self.membership.find(nodes, &asked.node)?;
        self.asked("RequestPermit", &asked.actor, &asked.reason);
        let membership = &mut self.membership;
        let mut answer =
            proto::RequestPermitResponse { ttl_ms: asked.ttl_ms, node_id: node, ..Default::default() };
        answer.objections.clone_from(&membership.objections);
        if !membership.tokens.is_empty() {
            let message = "n1 has one".to_owned();
            answer.objections.push(proto::Objection {
                shard_id: None,
                reason: "PERMIT_OPEN".to_owned(),
                message,
            });
        }
        answer.granted = answer.objections.is_empty();
        if answer.granted && !asked.dry_run {
            self.epoch += 1;
            answer.token = format!("permit-{}", self.epoch);
            membership.tokens.insert(answer.token.clone(), node);
            membership.permits.push(proto::Permit {
                node_id: node,
                ttl_ms: asked.ttl_ms,
                granted_unix_ms: UNIX_MS,
                ..Default::default()
            });
        }
        Ok(answer)
    }

    pub fn release(&mut self, asked: &proto::ReleasePermitRequest) -> proto::ReleasePermitResponse {
        self.asked("ReleasePermit", &asked.actor, "");
        let open = self.membership.tokens.remove(&asked.token);
        if let Some(node) = open {
            self.membership.permits.retain(|permit| permit.node_id != node);
            self.epoch += 1;
        }
        proto::ReleasePermitResponse { released: open.is_some() }
    }

    pub fn hand_over(
        &mut self,
        nodes: u64,
        asked: &proto::HandOverRequest,
    ) -> Result<proto::HandOverResponse, Status> {
        let node = self.membership.find(nodes, &asked.node)?;
        if self.membership.tokens.get(&asked.permit_token) != Some(&node) {
            return Err(refusal(Code::FailedPrecondition, "PERMIT_UNKNOWN", &[], None));
        }
        self.leaders = self.leaders.map(|leader| if leader == node { node % nodes + 1 } else { leader });
        Ok(proto::HandOverResponse {})
    }

    pub fn label(
        &mut self,
        nodes: u64,
        asked: &proto::SetNodeLabelsRequest,
    ) -> Result<proto::SetNodeLabelsResponse, Status> {
        let node = self.membership.find(nodes, &asked.node)?;
        self.asked("SetNodeLabels", &asked.actor, "");
        match &asked.zone {
            Some(zone) => self.membership.zones.insert(node, zone.clone()),
            None => self.membership.zones.remove(&node),
        };
        self.epoch += 1;
        Ok(proto::SetNodeLabelsResponse { node_id: node })
    }

    pub fn wish(&mut self, asked: &proto::SetPolicyRequest) -> proto::SetPolicyResponse {
        self.asked("SetPolicy", &asked.actor, &asked.reason);
        let policy = &mut self.membership.policy;
        policy.replication_factor = asked.replication_factor.unwrap_or(policy.replication_factor);
        policy.lost_node_grace_ms = asked.lost_node_grace_ms.unwrap_or(policy.lost_node_grace_ms);
        policy.moves_at_once = asked.moves_at_once.unwrap_or(policy.moves_at_once);
        self.epoch += 1;
        proto::SetPolicyResponse { policy: Some(*policy) }
    }

    pub fn transfer(
        &mut self,
        nodes: u64,
        asked: &proto::TransferLeaderRequest,
    ) -> Result<proto::TransferLeaderResponse, Status> {
        let node = self.membership.find(nodes, &asked.to_node)?;
        self.asked("TransferLeader", &asked.actor, &asked.reason);
        if asked.shard_id > 2 {
            return Err(refusal(Code::NotFound, "SHARD_UNKNOWN", &[], None));
        }
        if !self.membership.holds(asked.shard_id, node) {
            return Err(refusal(Code::Unavailable, "NOT_APPLIED_TARGET_NOT_READY", &[], None));
        }
        if let Some(index) = (asked.shard_id as usize).checked_sub(1) {
            self.leaders[index] = node;
        }
        Ok(proto::TransferLeaderResponse { leader_node_id: node })
    }

    /// A page of the journal, of at most three entries.
    pub fn journal(
        &self,
        nodes: u64,
        asked: &proto::GetJournalRequest,
    ) -> Result<proto::GetJournalResponse, Status> {
        let node = match asked.node.as_str() {
            "" => None,
            name => Some(self.membership.find(nodes, name)?),
        };
        let is_asked_for = |entry: &&proto::JournalEntry| {
            (asked.before == 0 || entry.sequence < asked.before)
                && node.is_none_or(|node| entry.node_ids.contains(&node))
                && asked.shard_id.is_none_or(|shard| entry.shard_id == Some(shard))
        };
        let all: Vec<_> = self.membership.journal.iter().rev().filter(is_asked_for).cloned().collect();
        let entries: Vec<_> = all.iter().take(asked.limit.min(3) as usize).cloned().collect();
        let is_last = entries.len() == all.len();
        let next_before = if is_last { 0 } else { entries.last().map_or(0, |entry| entry.sequence) };
        Ok(proto::GetJournalResponse { entries, next_before })
    }

    fn asked(&mut self, what: &'static str, actor: &str, reason: &str) {
        self.membership.asked.push((what, actor.to_owned(), reason.to_owned()));
    }
}
