//! What happened, and what came of it, for people to read.

use super::model::World;
use crate::{ReplicaId, ShardId, growth::Step, map::ReplicaPlacement};

impl World {
    /// The steps that people want to see; replicas by their nodes.
    pub fn told(&self, id: ShardId, step: &Step) -> String {
        let group = &self.groups[&id];
        let node = |replica: &ReplicaId| {
            let placed = group.placements.iter().find(|placed| placed.replica == *replica);
            placed.map_or_else(|| replica.to_string(), |placed| placed.node.to_string())
        };
        match step {
            Step::SetVoters { voters } => {
                let voters: Vec<String> = voters.iter().map(node).collect();
                format!("{id}: voters {}\n", voters.join(" "))
            }
            Step::EndMove => format!("{id}: has moved\n"),
            Step::AddReplica { node } => format!("{id}: gains {node}\n"),
            Step::TransferLeader(placed) => format!("{id}: {} leads\n", placed.node),
            Step::RemoveLearner(replica) | Step::DropPlacement(replica) => {
                format!("{id}: leaves {}\n", node(replica))
            }
            Step::FinishJoint { .. } | Step::AddLearner(_) => String::new(),
        }
    }

    /// Where everything is: `*` leads, `'` learns.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for (id, group) in &self.groups {
            let mut placed = group.placements.clone();
            placed.sort_by_key(|placed| placed.node);
            let mark = |placed: &ReplicaPlacement| {
                if group.leader == Some(placed.replica) {
                    "*"
                } else if group.membership.is_voter(placed.replica) {
                    ""
                } else {
                    "'"
                }
            };
            let placed: Vec<String> =
                placed.iter().map(|placed| format!("{}{}", placed.node, mark(placed))).collect();
            text += &format!("{id}: {}\n", placed.join(" "));
        }
        let held: Vec<String> =
            self.hosts.iter().map(|host| format!("{} {}", host.node, self.held_by(host.node))).collect();
        text + &format!("replicas: {}; moved: {}\n", held.join(", "), self.begun.len())
    }
}
