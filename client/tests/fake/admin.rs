//! `admin.v1` of a node of pretence.

use kv_proto::admin::v1::{self as proto, admin_server::Admin};
use tonic::{Request, Response, Status};

use super::{FakeNode, State};

impl FakeNode {
    fn info(&self, node: u64) -> proto::NodeInfo {
        proto::NodeInfo {
            node_id: node,
            name: format!("n{node}"),
            disk_uuid: format!("00000000-0000-0000-0000-00000000000{node}"),
            client_address: self.shared.address(node),
            peer_address: format!("127.0.0.1:{}", 9000 + node),
            zone: if node == 1 { "a".to_owned() } else { String::new() },
            version: "0.1.0".to_owned(),
            state: proto::NodeState::Active.into(),
            boot_counter: 1,
        }
    }

    fn infos(&self) -> Vec<proto::NodeInfo> {
        (1..=self.shared.nodes()).map(|node| self.info(node)).collect()
    }

    fn shards(&self, state: &State) -> Vec<proto::ShardStatus> {
        let placements: Vec<proto::ReplicaPlacement> = (1..=self.shared.nodes())
            .map(|node| proto::ReplicaPlacement { replica_id: node, node_id: node, voter: true })
            .collect();
        let shard = |shard_id: u32, slots: Option<(u32, u32)>, leader_node_id: u64| proto::ShardStatus {
            shard_id,
            group_id: shard_id.into(),
            leader_node_id,
            replicas: placements.clone(),
            slots: slots.map(|(first, last)| proto::SlotRange { first, last }).into_iter().collect(),
            max_lag_entries: u64::from(shard_id) * 3,
            revision: if slots.is_some() { state.store.revision } else { 0 },
        };
        vec![
            shard(0, None, 1),
            shard(1, Some((0, 2047)), state.leaders[0]),
            shard(2, Some((2048, 4095)), state.leaders[1]),
        ]
    }

    fn status(&self, state: &State, node: u64) -> proto::NodeStatus {
        let role = |shard: u32| {
            let leader = if shard == 0 { 1 } else { state.leaders[shard as usize - 1] };
            if leader == node { proto::Role::Leader } else { proto::Role::Follower }
        };
        let replica = |shard_id: u32| proto::ReplicaStatus {
            shard_id,
            group_id: shard_id.into(),
            replica_id: node,
            role: role(shard_id).into(),
            ..Default::default()
        };
        proto::NodeStatus {
            node: Some(self.info(node)),
            cluster_id: "fake".to_owned(),
            phase: proto::Phase::Running.into(),
            ready: true,
            map_epoch: state.epoch,
            replicas: (0..3).map(replica).collect(),
            disk_used_bytes: 5 << 30,
            disk_total_bytes: 10 << 30,
            uptime_ms: 61_000,
            ..Default::default()
        }
    }
}

#[tonic::async_trait]
impl Admin for FakeNode {
    async fn get_node_status(
        &self,
        _request: Request<proto::GetNodeStatusRequest>,
    ) -> Result<Response<proto::NodeStatus>, Status> {
        Ok(Response::new(self.status(&self.shared.state(), self.id)))
    }

    async fn get_cluster_status(
        &self,
        _request: Request<proto::GetClusterStatusRequest>,
    ) -> Result<Response<proto::ClusterStatus>, Status> {
        let state = self.shared.state();
        // The last of several nodes is silent.
        let silent = if self.shared.nodes() > 2 { self.shared.nodes() } else { 0 };
        let nodes = (1..=self.shared.nodes()).map(|node| proto::NodeView {
            info: Some(self.info(node)),
            status: (node != silent).then(|| self.status(&state, node)),
        });
        Ok(Response::new(proto::ClusterStatus {
            cluster_id: "fake".to_owned(),
            map_epoch: state.epoch,
            replication_factor: 3,
            nodes: nodes.collect(),
            shards: self.shards(&state),
            fault_tolerance: i32::from(silent == 0),
        }))
    }

    async fn get_shard_map(
        &self,
        request: Request<proto::GetShardMapRequest>,
    ) -> Result<Response<proto::ShardMap>, Status> {
        let mut state = self.shared.state();
        state.calls.push((self.id, "GetShardMap"));
        let newer = state.epoch > request.into_inner().newer_than_epoch;
        Ok(Response::new(proto::ShardMap {
            cluster_id: "fake".to_owned(),
            epoch: state.epoch,
            slot_count: 4096,
            shards: if newer { self.shards(&state) } else { Vec::new() },
            nodes: self.infos(),
        }))
    }

    async fn list_nodes(
        &self,
        _request: Request<proto::ListNodesRequest>,
    ) -> Result<Response<proto::ListNodesResponse>, Status> {
        Ok(Response::new(proto::ListNodesResponse { nodes: self.infos() }))
    }

    async fn bootstrap(
        &self,
        _request: Request<proto::BootstrapRequest>,
    ) -> Result<Response<proto::BootstrapResponse>, Status> {
        Err(Status::unimplemented("not in a cluster of pretence"))
    }

    async fn join(
        &self,
        _request: Request<proto::JoinRequest>,
    ) -> Result<Response<proto::JoinResponse>, Status> {
        Err(Status::unimplemented("not in a cluster of pretence"))
    }
}
