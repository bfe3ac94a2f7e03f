//! The requests that carry a plan out. Pure.
//!
//! First it is decided in which groups the shards go on: in meta's own log, together with everything else that is written on
//! that disk, or by meta where it runs. Then the other disks are rewritten, each with one request. Every request may be sent
//! again, and a plan that is made again after some of them plans the rest.

use std::collections::{BTreeMap, BTreeSet};

use kv_client::admin::{
    FenceReplica, MembershipOnDisk, ReplaceGroupRequest, ReplaceShardGroup, RewriteMeta, RewriteReplica,
    RewriteRequest, SeenMembership,
};

use super::{
    evidence::{Evidence, settled_membership},
    plan::{Group, META, Plan, Recovery, Seat, Seen},
};

/// Who asks, and why.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// For the journal.
    pub actor: String,
    /// For the journal.
    pub reason: String,
}

/// New groups, by shard.
pub type Groups = BTreeMap<u32, u64>;

/// What was decided before this plan.
pub fn decided(plan: &Plan) -> Groups {
    let of = |(group, recovery): (&Group, &Recovery)| Some((group.shard, recovery.decided?));
    plan.recoveries().filter_map(of).collect()
}

/// What is to be decided, but for meta itself.
pub fn decisions(plan: &Plan) -> Vec<ReplaceShardGroup> {
    let open =
        plan.recoveries().filter(|(group, recovery)| group.shard != META && recovery.decided.is_none());
    open.map(|(group, recovery)| ReplaceShardGroup {
        shard_id: group.shard,
        expected_group_id: recovery.expected_group_id,
        replica_id: recovery.chosen.replica_id,
        node_id: recovery.chosen.node_id,
        last: recovery.chosen.last,
    })
    .collect()
}

/// The same, for meta where it runs.
pub fn questions(plan: &Plan, envelope: &Envelope) -> Vec<ReplaceGroupRequest> {
    let ask = |replace| ReplaceGroupRequest {
        cluster_id: plan.cluster_id.clone(),
        replace: Some(replace),
        actor: envelope.actor.clone(),
        reason: envelope.reason.clone(),
    };
    decisions(plan).into_iter().map(ask).collect()
}

/// What is written on the disk where meta decides: all of it at once.
pub fn seat_request(plan: &Plan, evidence: &Evidence, envelope: &Envelope) -> Option<(u64, RewriteRequest)> {
    let Seat::Offline(seat) = plan.seat else { return None };
    let meta = RewriteMeta {
        replica_id: seat.replica_id,
        group_id: seat.group_id,
        last: seat.last,
        replace: decisions(plan),
        seen: memberships(plan, evidence),
    };
    let request = disk_request(plan, seat.node_id, &decided(plan), envelope);
    Some((seat.node_id, RewriteRequest { meta: Some(meta), ..request }))
}

/// What is written on the other disks, once it is decided.
pub fn disk_requests(plan: &Plan, groups: &Groups, envelope: &Envelope) -> Vec<(u64, RewriteRequest)> {
    let written = match plan.seat {
        Seat::Offline(seat) => Some(seat.node_id),
        Seat::Idle | Seat::Online(_) | Seat::Nobody(_) => None,
    };
    let others = plan.sites.iter().filter(|(node, site)| site.recovering && Some(**node) != written);
    let requests = others.map(|(node, _)| (*node, disk_request(plan, *node, groups, envelope)));
    requests.filter(|(_, request)| !request.replicas.is_empty() || !request.fences.is_empty()).collect()
}

/// What is written on one disk. A group that is not known yet is the one that meta decides on in the same request.
fn disk_request(plan: &Plan, node_id: u64, groups: &Groups, envelope: &Envelope) -> RewriteRequest {
    let group_of = |shard: u32| groups.get(&shard).copied().unwrap_or_default();
    let (mut replicas, mut fences) = (Vec::new(), Vec::new());
    for (group, recovery) in plan.recoveries() {
        let shard_id = group.shard;
        let new_group_id = group_of(shard_id);
        for seen in group.survivors.iter().filter(|seen| seen.node_id == node_id) {
            let Seen { replica_id, group_id, last, .. } = *seen;
            if replica_id != recovery.chosen.replica_id {
                fences.push(FenceReplica { shard_id, replica_id, group_id, new_group_id });
            } else if shard_id != META {
                replicas.push(RewriteReplica { shard_id, replica_id, group_id, new_group_id, last });
            }
        }
    }
    RewriteRequest {
        cluster_id: plan.cluster_id.clone(),
        meta: None,
        replicas,
        fences,
        actor: envelope.actor.clone(),
        reason: envelope.reason.clone(),
    }
}

/// What the survivors know of groups that are not replaced now: a meta that goes on from an older record would take replicas
/// that it does not know for ones that nobody needs.
fn memberships(plan: &Plan, evidence: &Evidence) -> Vec<SeenMembership> {
    let replaced: BTreeSet<u32> = plan.recoveries().map(|(group, _)| group.shard).collect();
    let shards =
        evidence.shards(None).into_iter().filter(|shard| *shard != META && !replaced.contains(shard));
    shards.filter_map(|shard| newest_settled(evidence, shard)).collect()
}

fn newest_settled(evidence: &Evidence, shard: u32) -> Option<SeenMembership> {
    let held = evidence.of_shard(shard);
    let group_id = held.iter().filter(|held| held.is_sound()).map(|held| held.replica.group_id).max()?;
    let of_group = held.iter().filter(|held| held.is_sound() && held.replica.group_id == group_id);
    let settled = of_group.filter_map(|held| settled_membership(held.replica));
    let position = |membership: &&MembershipOnDisk| membership.at.as_ref().map(|at| (at.term, at.index));
    let membership = settled.max_by_key(position)?.clone();
    Some(SeenMembership { shard_id: shard, group_id, membership: Some(membership) })
}
