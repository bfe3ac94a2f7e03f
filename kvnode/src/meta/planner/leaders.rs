//! Who should lead which shard.
//!
//! Wishes that cannot stand are replaced at once, also while replicas move: those for nodes that drain or are lost, and
//! for replicas that leave. So leaderships leave a draining node first of all. Only when all has come to rest are they
//! spread evenly anew. What a person has chosen stays for as long as it can stand, whoever leads meta, and the others are
//! spread around it, until a node becomes active (see [`crate::meta::machine`]).

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::{
    disk::v1::{
        NodeState, ShardRecord,
        meta_command::{Command, PreferLeaders, PreferredLeader},
    },
    peer::v1::{ControlRequest, control_request::Request},
};
use kv_topology::{
    NodeId, ReplicaId, ShardId,
    placement::{Placement, spread_leaders},
};

use super::{Action, Planned, Planner, Subject};
use crate::meta::view::{membership, placements, some_node};

/// What is wished of the leader of a shard, and who could be.
struct Lead {
    shard: ShardId,
    /// The wish, if it can stand.
    stands: Option<NodeId>,
    /// A person's.
    chosen: bool,
    /// Nodes that a new wish may go to.
    able: BTreeSet<NodeId>,
}

impl Planner<'_> {
    /// Plans who should lead.
    pub(super) fn choose_leaders(&mut self) {
        let at_rest = self.is_at_rest();
        let data = || self.record.shards.iter().filter(|shard| shard.shard_id != 0);
        if data().any(|shard| shard.observed.is_none()) || self.seen.held.contains(&Subject::Shards) {
            return;
        }
        let leads: Vec<Lead> = data().map(|shard| self.lead(shard)).collect();
        let spread = if at_rest { spread(&leads) } else { replace_fallen(&leads) };
        let wishes: BTreeMap<ShardId, NodeId> = data()
            .filter_map(|shard| Some((ShardId(shard.shard_id), some_node(shard.preferred_leader_node_id)?)))
            .collect();
        let changed: BTreeMap<ShardId, NodeId> =
            spread.into_iter().filter(|(shard, node)| wishes.get(shard) != Some(node)).collect();
        if changed.is_empty() {
            return;
        }
        // A transfer planned for the old wish would be undone at once.
        let undone = |step: &Planned| {
            is_transfer(step) && changed.keys().any(|shard| step.subject == Subject::Shard(*shard))
        };
        self.plan.steps.retain(|step| !undone(step));
        let reason = if at_rest {
            format!("leaders of {} shards spread evenly over their voters", changed.len())
        } else {
            let old = |shard: &ShardId| {
                wishes.get(shard).map_or_else(|| format!("{shard}@nobody"), |node| format!("{shard}@{node}"))
            };
            let old: Vec<String> = changed.keys().map(old).collect();
            format!("of these the node drains, is gone or loses its replica: {}", old.join(" "))
        };
        let leaders =
            changed.into_iter().map(|(shard, node)| PreferredLeader { shard_id: shard.0, node_id: node.0 });
        let (leaders, expected_epoch) = (leaders.collect(), self.epoch());
        let command = PreferLeaders { leaders, expected_epoch, chosen: false };
        self.propose(Subject::Shards, Command::PreferLeaders(command), reason);
    }

    /// Whether nothing is under way, and nothing else is planned.
    fn is_at_rest(&self) -> bool {
        let idle = |shard: &ShardRecord| shard.r#move.is_none() && shard.change.is_none();
        self.plan.steps.iter().all(is_transfer)
            && self.seen.held.is_empty()
            // Whoever stops usually comes back in a moment: its wishes wait for it.
            && self.seen.stopping.is_empty()
            && self.permit_holder().is_none()
            && self.record.shards.iter().all(idle)
    }

    fn lead(&self, shard: &ShardRecord) -> Lead {
        let seen = shard.observed.as_ref().map(membership).unwrap_or_default();
        let leaves = |replica: ReplicaId| {
            shard.r#move.is_some_and(|under_way| under_way.from_replica_id == replica.0)
                || self.layout.surplus_of(ShardId(shard.shard_id)).contains(&replica)
        };
        let may_lead: BTreeSet<NodeId> = placements(shard)
            .into_iter()
            .filter(|placement| seen.is_voter(placement.replica) && !leaves(placement.replica))
            .filter(|placement| !self.seen.unfit.contains(&placement.replica))
            .map(|placement| placement.node)
            .filter(|node| self.state(*node) == NodeState::Active)
            .collect();
        let stands = some_node(shard.preferred_leader_node_id).filter(|node| may_lead.contains(node));
        let ready = |node: &NodeId| self.is_there(*node) && !self.seen.full.contains(node);
        let able = may_lead.into_iter().filter(ready).collect();
        Lead { shard: ShardId(shard.shard_id), stands, chosen: shard.leader_chosen, able }
    }
}

/// All leaders, spread evenly. A wish for a node that is silent or has no room waits for it.
fn spread(leads: &[Lead]) -> BTreeMap<ShardId, NodeId> {
    let choices = |lead: &Lead| {
        let fixed = lead.stands.filter(|node| lead.chosen || !lead.able.contains(node));
        fixed.map_or_else(|| lead.able.clone(), |node| [node].into())
    };
    let placement: Placement = leads.iter().map(|lead| (lead.shard, choices(lead))).collect();
    spread_leaders(&placement, &standing(leads))
}

fn standing(leads: &[Lead]) -> BTreeMap<ShardId, NodeId> {
    leads.iter().filter_map(|lead| Some((lead.shard, lead.stands?))).collect()
}

/// New wishes for shards whose wish cannot stand; all others stay.
fn replace_fallen(leads: &[Lead]) -> BTreeMap<ShardId, NodeId> {
    let choices = |lead: &Lead| lead.stands.map_or_else(|| lead.able.clone(), |node| [node].into());
    let placement: Placement = leads.iter().map(|lead| (lead.shard, choices(lead))).collect();
    spread_leaders(&placement, &standing(leads))
}

fn is_transfer(step: &Planned) -> bool {
    matches!(
        &step.action,
        Action::Control { request: ControlRequest { request: Some(Request::TransferLeader(_)) }, .. }
    )
}
