//! `admin.v1.Recovery` of nodes of pretence: disks that are shown, and rewritten as they are asked to be.

use std::{collections::BTreeMap, time::Duration};

use kv_proto::admin::v1::{self as proto, recovery_server::Recovery};
use tonic::{Request, Response, Status};

use super::FakeNode;

/// The disks, and what was asked of them.
#[derive(Default)]
pub struct Disks {
    /// By node id. A node without one has an empty disk.
    pub by_node: BTreeMap<u64, proto::InspectResponse>,
    /// What a disk becomes once it was looked at.
    pub then: BTreeMap<u64, proto::InspectResponse>,
    /// Who was asked to rewrite what, in order.
    pub rewrites: Vec<(u64, proto::RewriteRequest)>,
    /// Who was asked to let meta decide what, in order.
    pub decisions: Vec<(u64, proto::ReplaceGroupRequest)>,
}

/// The new group of a shard.
pub const fn new_group(shard: u32) -> u64 {
    50 + shard as u64
}

/// How long a node may look for a leader before it lets meta decide.
const DECISION_TAKES: Duration = Duration::from_secs(7);

/// As the caller's library writes it.
fn timeout_of<T>(request: &Request<T>) -> Duration {
    let told = request.metadata().get("grpc-timeout").and_then(|told| told.to_str().ok()).unwrap_or("0S");
    let (digits, unit) = told.split_at(told.len() - 1);
    let number: u64 = digits.parse().unwrap_or(0);
    match unit {
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        other => panic!("a unit of time: {other}"),
    }
}

fn alone(replica_id: u64) -> Option<proto::MembershipOnDisk> {
    let voters = vec![proto::VoterReplicas { replica_ids: vec![replica_id] }];
    Some(proto::MembershipOnDisk { voters, ..proto::MembershipOnDisk::default() })
}

/// The replica goes on alone, in this group.
fn rewrite(disk: &mut proto::InspectResponse, replica_id: u64, group_id: u64) {
    for replica in disk.replicas.iter_mut().filter(|replica| replica.replica_id == replica_id) {
        replica.group_id = group_id;
        replica.membership = alone(replica_id);
    }
}

/// The record names the new groups.
fn decide(record: &mut proto::RecordOnDisk, groups: &BTreeMap<u32, u64>) {
    record.epoch += 1;
    for shard in &mut record.shards {
        shard.group_id = groups.get(&shard.shard_id).copied().unwrap_or(shard.group_id);
    }
}

#[tonic::async_trait]
impl Recovery for FakeNode {
    async fn inspect(
        &self,
        _: Request<proto::InspectRequest>,
    ) -> Result<Response<proto::InspectResponse>, Status> {
        let mut state = self.shared.state();
        let disk = state.disks.by_node.get(&self.id).cloned();
        if let Some(then) = state.disks.then.remove(&self.id) {
            state.disks.by_node.insert(self.id, then);
        }
        Ok(Response::new(disk.unwrap_or_default()))
    }

    async fn rewrite(
        &self,
        request: Request<proto::RewriteRequest>,
    ) -> Result<Response<proto::RewriteResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.shared.state();
        state.disks.rewrites.push((self.id, request.clone()));
        let Some(disk) = state.disks.by_node.get_mut(&self.id) else {
            return Err(Status::not_found("no disk"));
        };
        if !disk.recovering || disk.cluster_id != request.cluster_id {
            return Err(Status::failed_precondition("it runs, or is of another cluster"));
        }
        let given = |group: u64, shard: u32| if group == 0 { new_group(shard) } else { group };
        let mut groups = BTreeMap::new();
        for order in &request.replicas {
            let group = given(order.new_group_id, order.shard_id);
            rewrite(disk, order.replica_id, group);
            groups.insert(order.shard_id, group);
        }
        if let Some(meta) = &request.meta {
            groups.insert(0, new_group(0));
            groups.extend(meta.replace.iter().map(|ask| (ask.shard_id, new_group(ask.shard_id))));
            rewrite(disk, meta.replica_id, new_group(0));
            decide(disk.record.get_or_insert_default(), &groups);
        }
        let groups =
            groups.into_iter().map(|(shard_id, group_id)| proto::GroupOfShard { shard_id, group_id });
        Ok(Response::new(proto::RewriteResponse { groups: groups.collect(), epoch: 1 }))
    }

    async fn replace_group(
        &self,
        request: Request<proto::ReplaceGroupRequest>,
    ) -> Result<Response<proto::ReplaceGroupResponse>, Status> {
        let time = timeout_of(&request);
        if time < DECISION_TAKES {
            return Err(Status::failed_precondition(format!("{time:?} are too short for a decision")));
        }
        let request = request.into_inner();
        let shard = request.replace.map_or(0, |replace| replace.shard_id);
        self.shared.state().disks.decisions.push((self.id, request));
        Ok(Response::new(proto::ReplaceGroupResponse { group_id: new_group(shard), epoch: 9 }))
    }
}
