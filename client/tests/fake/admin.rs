//! `admin.v1` of a node of pretence.

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use kv_proto::admin::v1::{self as proto, admin_server::Admin};
use tonic::{Request, Response, Status};

use super::{FakeNode, Shared, State, kv::Messages, membership::UNIX_MS, script::Fault};

impl FakeNode {
    fn info(&self, state: &State, node: u64) -> proto::NodeInfo {
        let membership = &state.membership;
        let told = if node == 1 { "a" } else { "" };
        let label = membership.zones.get(&node);
        proto::NodeInfo {
            node_id: node,
            name: format!("n{node}"),
            disk_uuid: format!("00000000-0000-0000-0000-00000000000{node}"),
            client_address: self.shared.address(node),
            peer_address: format!("127.0.0.1:{}", 9000 + node),
            zone: label.map_or(told, String::as_str).to_owned(),
            version: "0.1.0".to_owned(),
            state: membership.state(node).into(),
            boot_counter: 1,
            state_reason: membership.reasons.get(&node).cloned().unwrap_or_default(),
            state_since_unix_ms: UNIX_MS,
            zone_labelled: label.is_some(),
        }
    }

    fn infos(&self, state: &State) -> Vec<proto::NodeInfo> {
        (1..=self.shared.nodes()).map(|node| self.info(state, node)).collect()
    }

    fn shards(&self, state: &State) -> Vec<proto::ShardStatus> {
        let placements = |shard_id: u32| {
            let nodes = (1..=self.shared.nodes()).filter(|node| state.membership.holds(shard_id, *node));
            nodes
                .map(|node_id| proto::ReplicaPlacement {
                    replica_id: replica_id(shard_id, node_id),
                    node_id,
                    voter: true,
                })
                .collect()
        };
        let shard = |shard_id: u32, slots: Option<(u32, u32)>, leader_node_id: u64| proto::ShardStatus {
            shard_id,
            group_id: shard_id.into(),
            leader_node_id,
            replicas: placements(shard_id),
            slots: slots.map(|(first, last)| proto::SlotRange { first, last }).into_iter().collect(),
            max_lag_entries: u64::from(shard_id) * 3,
            revision: if slots.is_some() { state.store.revision } else { 0 },
            fault_tolerance: 0,
        };
        vec![
            shard(0, None, 1),
            shard(1, Some((0, 2047)), state.leaders[0]),
            shard(2, Some((2048, 4095)), state.leaders[1]),
        ]
    }

    fn status(&self, state: &State, node: u64) -> proto::NodeStatus {
        let others = || (1..=self.shared.nodes()).filter(move |other| *other != node);
        let replica = |shard_id: u32| {
            let leader = if shard_id == 0 { 1 } else { state.leaders[shard_id as usize - 1] };
            let leads = leader == node;
            let role = if leads { proto::Role::Leader } else { proto::Role::Follower };
            let lag = |node_id| proto::ReplicaLag {
                node_id,
                replica_id: replica_id(shard_id, node_id),
                entries: u64::from(shard_id) * node_id,
            };
            proto::ReplicaStatus {
                shard_id,
                group_id: shard_id.into(),
                replica_id: replica_id(shard_id, node),
                role: role.into(),
                lags: if leads { others().map(lag).collect() } else { Vec::new() },
                state_bytes: 1 << 30,
                ..Default::default()
            }
        };
        proto::NodeStatus {
            node: Some(self.info(state, node)),
            cluster_id: "fake".to_owned(),
            phase: proto::Phase::Running.into(),
            ready: true,
            map_epoch: state.epoch,
            replicas: (0..3).filter(|shard| state.membership.holds(*shard, node)).map(replica).collect(),
            disk_used_bytes: 5 << 30,
            disk_total_bytes: 10 << 30,
            uptime_ms: 61_000,
            ..Default::default()
        }
    }

    fn event(&self, state: &State) -> proto::ClusterEvent {
        proto::ClusterEvent {
            epoch: state.epoch,
            nodes: self.infos(state),
            shards: self.shards(state),
            moves: state.membership.moves.clone(),
            permits: state.membership.permits.clone(),
            policy: Some(state.membership.policy),
        }
    }

    /// The next state that is newer than this.
    async fn newer(&self, epoch: u64) -> proto::ClusterEvent {
        loop {
            let changed = self.shared.changed.notified();
            {
                let state = self.shared.state();
                if state.epoch > epoch {
                    return self.event(&state);
                }
            }
            changed.await;
        }
    }

    /// Carries out what is asked for, as the scripted fault allows.
    async fn wished<A>(
        &self,
        method: &'static str,
        done: impl FnOnce(&mut State, u64) -> Result<A, Status>,
    ) -> Result<Response<A>, Status> {
        let shared: Arc<Shared> = self.shared.clone();
        let done = || {
            let answer = done(&mut shared.state(), shared.nodes());
            shared.changed.notify_waiters();
            answer
        };
        self.unary(method, b"", done).await?.map(Response::new)
    }
}

fn replica_id(shard: u32, node: u64) -> u64 {
    u64::from(shard) * 10 + node
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
        let mut state = self.shared.state();
        state.calls.push((self.id, "GetClusterStatus"));
        // The last of several nodes is silent.
        let silent = if self.shared.nodes() > 2 { self.shared.nodes() } else { 0 };
        let nodes = state.membership.members(self.shared.nodes()).map(|node| proto::NodeView {
            info: Some(self.info(&state, node)),
            status: (node != silent).then(|| self.status(&state, node)),
        });
        let status = proto::ClusterStatus {
            cluster_id: "fake".to_owned(),
            map_epoch: state.epoch,
            replication_factor: state.membership.policy.replication_factor,
            nodes: nodes.collect(),
            shards: self.shards(&state),
            fault_tolerance: i32::from(silent == 0),
            moves: state.membership.moves.clone(),
            permits: state.membership.permits.clone(),
            policy: Some(state.membership.policy),
        };
        state.membership.proceed();
        Ok(Response::new(status))
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
            nodes: self.infos(&state),
        }))
    }

    async fn list_nodes(
        &self,
        _request: Request<proto::ListNodesRequest>,
    ) -> Result<Response<proto::ListNodesResponse>, Status> {
        Ok(Response::new(proto::ListNodesResponse { nodes: self.infos(&self.shared.state()) }))
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

    async fn drain_node(
        &self,
        request: Request<proto::DrainNodeRequest>,
    ) -> Result<Response<proto::DrainNodeResponse>, Status> {
        self.wished("DrainNode", |state, nodes| state.drain(nodes, request.get_ref())).await
    }

    async fn undrain_node(
        &self,
        request: Request<proto::UndrainNodeRequest>,
    ) -> Result<Response<proto::UndrainNodeResponse>, Status> {
        self.wished("UndrainNode", |state, nodes| state.undrain(nodes, request.get_ref())).await
    }

    async fn remove_node(
        &self,
        request: Request<proto::RemoveNodeRequest>,
    ) -> Result<Response<proto::RemoveNodeResponse>, Status> {
        self.wished("RemoveNode", |state, nodes| state.remove(nodes, request.get_ref())).await
    }

    async fn transfer_leader(
        &self,
        request: Request<proto::TransferLeaderRequest>,
    ) -> Result<Response<proto::TransferLeaderResponse>, Status> {
        self.wished("TransferLeader", |state, nodes| state.transfer(nodes, request.get_ref())).await
    }

    async fn request_permit(
        &self,
        request: Request<proto::RequestPermitRequest>,
    ) -> Result<Response<proto::RequestPermitResponse>, Status> {
        self.wished("RequestPermit", |state, nodes| state.permit(nodes, request.get_ref())).await
    }

    async fn release_permit(
        &self,
        request: Request<proto::ReleasePermitRequest>,
    ) -> Result<Response<proto::ReleasePermitResponse>, Status> {
        self.wished("ReleasePermit", |state, _| Ok(state.release(request.get_ref()))).await
    }

    async fn hand_over(
        &self,
        request: Request<proto::HandOverRequest>,
    ) -> Result<Response<proto::HandOverResponse>, Status> {
        self.wished("HandOver", |state, nodes| state.hand_over(nodes, request.get_ref())).await
    }

    async fn set_node_labels(
        &self,
        request: Request<proto::SetNodeLabelsRequest>,
    ) -> Result<Response<proto::SetNodeLabelsResponse>, Status> {
        self.wished("SetNodeLabels", |state, nodes| state.label(nodes, request.get_ref())).await
    }

    async fn set_policy(
        &self,
        request: Request<proto::SetPolicyRequest>,
    ) -> Result<Response<proto::SetPolicyResponse>, Status> {
        self.wished("SetPolicy", |state, _| Ok(state.wish(request.get_ref()))).await
    }

    async fn get_journal(
        &self,
        request: Request<proto::GetJournalRequest>,
    ) -> Result<Response<proto::GetJournalResponse>, Status> {
        self.wished("GetJournal", |state, nodes| state.journal(nodes, request.get_ref())).await
    }

    type WatchClusterStream = Messages<proto::ClusterEvent>;

    async fn watch_cluster(
        &self,
        request: Request<proto::WatchClusterRequest>,
    ) -> Result<Response<Self::WatchClusterStream>, Status> {
        let (count, end) = match self.called("WatchCluster") {
            None | Some(Fault::None) => (usize::MAX, None),
            Some(Fault::Refuse(status)) => return Err(status),
            Some(Fault::BreakAfter(count, status)) => (count, Some(Err(status))),
            Some(Fault::EndAfter(count)) => (count, None),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Lose(_) | Fault::FlipBit) => panic!("not for a watch"),
        };
        let watch = (self.clone(), request.into_inner().newer_than_epoch);
        let events = stream::unfold(watch, |(node, epoch)| async move {
            let event = node.newer(epoch).await;
            let epoch = event.epoch;
            Some((Ok(event), (node, epoch)))
        });
        Ok(Response::new(events.take(count).chain(stream::iter(end)).boxed()))
    }
}
