//! How data groups come to life: `CreateShards` places them → `CreateReplica` at each node → `InitializeGroup` at one
//! of them, always with all placed replicas, so that a second call elsewhere is harmless → its membership is observed.

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::{
    disk::v1::{
        Member, NodeState, ReplicaPlacement as PlacedReplica, ShardRecord, SlotRange,
        meta_command::{Command, CreateShards},
    },
    peer::v1::{GroupDescription, InitializeGroup, control_request::Request},
};
use kv_topology::{
    NodeId, ShardId,
    map::ReplicaPlacement,
    placement::{Candidate, Placement, place, spread_leaders},
    quorum::{majority, odd_voters},
    slot::contiguous_runs,
};

use super::{Expectation, Planner, Subject, factor_of};
use crate::meta::view::{membership, placements, zone_of};

impl Planner<'_> {
    /// Lets one replica call the group to life, once a majority is there and the rest is silent.
    pub(super) fn form(&mut self, shard: &ShardRecord, description: Option<&GroupDescription>) {
        let id = ShardId(shard.shard_id);
        let placed = placements(shard);
        let ready = |placement: &&ReplicaPlacement| {
            self.seen.created.contains(&placement.replica) && self.is_there(placement.node)
        };
        let able: Vec<ReplicaPlacement> = placed.iter().filter(ready).copied().collect();
        let reason = format!("{} of {} replicas are there", able.len(), placed.len());
        if able.len() < majority(placed.len()) {
            self.wait(Subject::Shard(id), reason);
            return;
        }
        let leads = |placement: &&ReplicaPlacement| {
            description.is_some_and(|description| description.leader_replica_id == placement.replica.0)
        };
        let initializes = |placement: &&ReplicaPlacement| placement.node.0 == shard.initializer_node_id;
        let chosen =
            able.iter().find(leads).or_else(|| able.iter().find(initializes)).or_else(|| able.first());
        let Some(chosen) = chosen else { return };
        let members = placed
            .iter()
            .map(|placement| Member { replica_id: placement.replica.0, node_id: placement.node.0 });
        let request = InitializeGroup {
            shard_id: shard.shard_id,
            group_id: shard.group_id,
            members: members.collect(),
            slots: shard.slots.clone(),
        };
        self.control(id, chosen.node, Request::InitializeGroup(request), reason);
    }

    /// Places the data groups, once: when meta stands and the nodes to come have come.
    pub(super) fn create_shards(&mut self, expectation: Expectation) {
        let exist = self.record.shards.iter().any(|shard| shard.shard_id != 0);
        if exist || self.seen.held.contains(&Subject::Shards) {
            return;
        }
        let candidates = self.candidates();
        let factor = self.record.replication_factor as usize;
        let expected = expectation.nodes.max(1);
        let enough = if expectation.wait_for_all { expected } else { expected.min(factor) };
        if candidates.len() < enough {
            let reason = format!("data groups wait for {enough} nodes; {} are there", candidates.len());
            self.wait(Subject::Shards, reason);
            return;
        }
        let meta = self.record.shards.iter().find(|shard| shard.shard_id == 0);
        let observed = meta.and_then(|shard| shard.observed.as_ref()).map(membership).unwrap_or_default();
        let voters = observed.goal().map_or(0, BTreeSet::len);
        let wished = odd_voters(enough, meta.map_or(factor, |meta| factor_of(self.record, meta)));
        if (expectation.wait_for_all && !self.plan.steps.is_empty()) || voters < wished {
            let reason = format!("data groups wait for {wished} voters of meta; it has {voters}");
            self.wait(Subject::Shards, reason);
            return;
        }
        let Some(shards) = new_shards(self.record.shard_count, factor, &candidates) else { return };
        let reason = format!(
            "{} nodes are there; {} voters for each of {} shards",
            candidates.len(),
            odd_voters(candidates.len(), factor),
            shards.len()
        );
        let command = CreateShards { shards, expected_epoch: self.epoch() };
        self.propose(Subject::Shards, Command::CreateShards(command), reason);
    }

    /// Active nodes that are there: a silent node is not given anything new.
    fn candidates(&self) -> Vec<Candidate> {
        let active = self.record.nodes.iter().filter(|node| node.state() == NodeState::Active);
        let there = active.filter(|node| self.is_there(NodeId(node.node_id)));
        there.map(|node| Candidate { node: NodeId(node.node_id), zone: zone_of(node).to_owned() }).collect()
    }
}

/// The data shards, evenly placed. `None`: there are more than the slots can be dealt out to.
fn new_shards(count: u32, factor: usize, candidates: &[Candidate]) -> Option<Vec<ShardRecord>> {
    let count = u16::try_from(count).ok()?;
    let shards = (1..=u32::from(count)).map(ShardId);
    let replicas = odd_voters(candidates.len(), factor);
    let placement = place(shards, replicas, candidates, &Placement::new());
    let leaders = spread_leaders(&placement, &BTreeMap::new());
    let shard = |((shard, nodes), range): ((&ShardId, &BTreeSet<NodeId>), kv_topology::SlotRange)| {
        let leader = leaders.get(shard).map_or(0, |node| node.0);
        let (first, last) = (range.first.get().into(), range.last.get().into());
        ShardRecord {
            shard_id: shard.0,
            slots: vec![SlotRange { first, last }],
            replicas: nodes.iter().map(|node| PlacedReplica { replica_id: 0, node_id: node.0 }).collect(),
            preferred_leader_node_id: leader,
            // Whoever calls a group to life usually becomes its first leader.
            initializer_node_id: leader,
            ..ShardRecord::default()
        }
    };
    Some(placement.iter().zip(contiguous_runs(count)).map(shard).collect())
}
