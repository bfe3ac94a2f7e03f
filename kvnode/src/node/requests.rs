//! What other nodes ask of this one: read indexes, forwarded writes and reads, and the controller's steps.
//!
//! Nothing is forwarded a second time: a node that was asked wrongly says who leads, and the asker decides.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use kv_proto::{
    disk::v1::{Operation, OwnSlots, ReplicaDescriptor, operation},
    peer::v1::{
        ControlRequest, ControlResponse, CreateReplica, Done, InitializeGroup, NodeDescription,
        ReadIndexRequest, ReadIndexResponse, ReadRequest, Refusal, WriteRequest, WriteResponse,
        control_request::Request, control_response::Response, frame::Body, outcome, refusal::Kind,
    },
};
use kv_topology::{GroupId, NodeId, ReplicaId, ShardId};
use tokio::time::Instant;

use super::{
    forwarded::Forwarded,
    points::{self, Points, Side},
    replicas::LocalReplicas,
    sweep::is_superfluous,
};
use crate::{
    group::replica::Replica,
    recovery::fence::replaced_by,
    refusal,
    router::{Maps, Replicas, Router, store::Store},
};

/// Time for a step of the controller: longer than an election.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts replicas that the meta group committed.
pub trait Hosting: Send + Sync + 'static {
    /// Writes the replica's descriptor durably and starts it. Done already is done.
    fn create(self: Arc<Self>, replica: CreateReplica) -> BoxFuture<'static, Result<(), Refusal>>;
}

/// What a node can say of itself as a whole, and do.
pub trait Oneself: Send + Sync + 'static {
    /// How it is.
    fn describe(&self) -> NodeDescription;

    /// Gives its leaderships away, and takes none until the permit with this token is over. Returns when they are gone.
    fn hand_over(&self, token: String) -> BoxFuture<'static, Result<(), Refusal>>;
}

/// Answers requests of other nodes.
pub struct Requests {
    replicas: Arc<LocalReplicas>,
    hosting: Arc<dyn Hosting>,
    oneself: Arc<dyn Oneself>,
    maps: Arc<dyn Maps>,
    router: Arc<Router>,
    forwarded: Forwarded,
    points: Points,
}

impl Requests {
    /// Answers for these replicas.
    pub fn new(
        replicas: Arc<LocalReplicas>,
        hosting: Arc<dyn Hosting>,
        oneself: Arc<dyn Oneself>,
        maps: Arc<dyn Maps>,
        router: Arc<Router>,
        forwarded: Forwarded,
    ) -> Self {
        Self { replicas, hosting, oneself, maps, router, forwarded, points: points::nobody() }
    }

    /// Tells what it passes.
    pub fn passing(self, points: Points) -> Self {
        Self { points, ..self }
    }

    /// Answers one request of a node. Raft frames and snapshots never come here.
    pub async fn answer(&self, from: NodeId, body: Body) -> Body {
        let answered = match body {
            Body::ReadIndexRequest(request) => self.read_index(from, request).await,
            Body::WriteRequest(request) => self.write(request).await,
            Body::ReadRequest(request) => self.read(request).await,
            Body::ControlRequest(request) => self.control(request).await.map(Body::ControlResponse),
            _ => Err(refusal::internal("a frame that is no request")),
        };
        answered.unwrap_or_else(Body::Refusal)
    }

    async fn read_index(&self, from: NodeId, request: ReadIndexRequest) -> Result<Body, Refusal> {
        let ReadIndexRequest { shard_id: shard, group_id } = request;
        let replica = self.replica(ShardId(shard))?;
        self.check_group(&replica, group_id)?;
        let given_up = group_id != 0 && GroupId(group_id) < replica.group;
        if given_up || !replica.control.has_member_on(from) {
            // What its replica lacks will not come any more: it reads elsewhere at once instead of waiting for it.
            let message = format!("node {from} has no replica in the group of shard {shard} any more");
            let leader_node_id = replica.control.leader().map_or(0, NodeId::get);
            let refused = refusal::not_applied(refusal::NO_REPLICA, message);
            return Err(Refusal { leader_node_id, ..refused });
        }
        let point = replica.gate.index(Instant::now() + CONTROL_TIMEOUT).await?;
        Ok(Body::ReadIndexResponse(ReadIndexResponse { index: point.index, term: point.term }))
    }

    async fn write(&self, request: WriteRequest) -> Result<Body, Refusal> {
        let replica = self.replica(ShardId(request.shard_id))?;
        self.check_group(&replica, request.group_id)?;
        let _share = self.forwarded.admit(&request.operations)?;
        let outcomes = replica.write(request.operations, deadline(request.deadline_ms)).await?;
        Ok(Body::WriteResponse(WriteResponse { outcomes }))
    }

    async fn read(&self, request: ReadRequest) -> Result<Body, Refusal> {
        let shard = ShardId(request.shard_id);
        // A read learns of damaged bytes, and asks nobody else here. Writes and read indexes are asked of the leader,
        // which is elsewhere by now.
        let replica = self.replicas.replica(shard).ok_or_else(|| self.replicas.absence(shard))?;
        self.check_group(&replica, request.group_id)?;
        let response = replica.read(&request, deadline(request.deadline_ms)).await?;
        Ok(Body::ReadResponse(response))
    }

    /// Carries out a step of the meta leader's controller; also called directly by a controller on this node.
    ///
    /// # Errors
    /// What kept the step from being taken.
    pub async fn control(&self, request: ControlRequest) -> Result<ControlResponse, Refusal> {
        let Some(request) = request.request else {
            return Err(refusal::internal("an empty control request"));
        };
        let [before, after] = [Side::Before, Side::After].map(|side| points::of_step(&request, side));
        points::pass(&self.points, before);
        let response = self.carry_out(request).await?;
        points::pass(&self.points, after);
        Ok(ControlResponse { response: Some(response) })
    }

    async fn carry_out(&self, request: Request) -> Result<Response, Refusal> {
        let response = match request {
            Request::CreateReplica(create) => done(self.create(create).await?),
            Request::InitializeGroup(group) => done(self.initialize(group).await?),
            Request::AddLearner(add) => {
                let member = add.member.unwrap_or_default();
                done(self.of_group(add.group_id)?.control.add_learner(member).await?)
            }
            Request::ChangeVoters(change) => {
                let voters: BTreeSet<u64> = change.voter_replica_ids.into_iter().collect();
                let control = self.of_group(change.group_id)?.control;
                done(control.change_voters(voters, change.expected_membership).await?)
            }
            Request::RemoveLearner(remove) => {
                let (control, replica) =
                    (self.of_group(remove.group_id)?.control, ReplicaId(remove.replica_id));
                done(control.remove_learner(replica, remove.expected_membership).await?)
            }
            Request::TransferLeader(transfer) => {
                let control = self.of_group(transfer.group_id)?.control;
                done(control.transfer_leader(ReplicaId(transfer.to_replica)).await?)
            }
            Request::DescribeGroup(group) => {
                Response::Group(self.of_group(group.group_id)?.control.describe()?)
            }
            Request::DescribeNode(_) => Response::Node(self.oneself.describe()),
            Request::HandOver(hand_over) => done(self.oneself.hand_over(hand_over.permit_token).await?),
            Request::FetchMap(fetch) => {
                let meta = self.maps.meta();
                if meta.epoch > fetch.newer_than_epoch { Response::Map((*meta).clone()) } else { done(()) }
            }
        };
        Ok(response)
    }

    /// Creates a replica, unless it is known that the cluster goes on without it: who asks was told so long ago. What was
    /// removed must never come back under its id: it has forgotten what it voted, and a group that has not heard of its
    /// removal would count it.
    async fn create(&self, create: CreateReplica) -> Result<(), Refusal> {
        let CreateReplica { shard_id, group_id, replica_id } = create;
        let replica = ReplicaDescriptor { replica_id, shard_id, group_id, ..ReplicaDescriptor::default() };
        if is_superfluous(&self.maps.meta(), &replica) {
            let message = format!("r{replica_id} of shard {shard_id} is placed nowhere any more");
            return Err(refusal::of(Kind::FailedPrecondition, refusal::REPLICA_UNKNOWN, message));
        }
        if let Some(later) = replaced_by(&self.maps.map(), &replica) {
            let message = format!("shard {shard_id} goes on in {later}, {} was given up", GroupId(group_id));
            return Err(refusal::of(Kind::FailedPrecondition, refusal::GROUP_REPLACED, message));
        }
        self.hosting.clone().create(create).await
    }

    /// Forms the group, and tells it its slots: it is usable when it knows them. Both are done once only.
    async fn initialize(&self, group: InitializeGroup) -> Result<(), Refusal> {
        let replica = self.of_group(group.group_id)?;
        replica.control.initialize(group.members).await?;
        if replica.shard.is_meta() || replica.state.owns_slots() {
            return Ok(());
        }
        let own = OwnSlots { shard_id: group.shard_id, slots: group.slots };
        let operation = Operation { kind: Some(operation::Kind::OwnSlots(own)), ..Operation::default() };
        let deadline = Instant::now() + CONTROL_TIMEOUT;
        let outcomes = self.router.write(replica.shard, vec![operation], deadline).await?;
        match outcomes.into_iter().next().and_then(|outcome| outcome.result) {
            Some(outcome::Result::Refusal(refused)) => Err(refused),
            _ => Ok(()),
        }
    }

    /// Who asks knows of a later group than the replica here is of: that one was given up, and this node has not heard of it.
    /// What it acknowledged would be lost.
    fn check_group(&self, replica: &Replica, asked: u64) -> Result<(), Refusal> {
        if replica.group >= GroupId(asked) {
            return Ok(());
        }
        self.maps.refresh();
        let message =
            format!("{} of {} was given up: the shard lives in group {asked}", replica.id, replica.group);
        Err(refusal::not_applied(refusal::STARTING, message))
    }

    fn replica(&self, shard: ShardId) -> Result<Replica, Refusal> {
        self.replicas.replica(shard).ok_or_else(|| no_replica(&format!("shard {shard}")))
    }

    fn of_group(&self, group: u64) -> Result<Replica, Refusal> {
        let group = GroupId(group);
        self.replicas.of_group(group).ok_or_else(|| no_replica(&format!("group {group}")))
    }
}

fn done((): ()) -> Response {
    Response::Done(Done {})
}

fn no_replica(of: &str) -> Refusal {
    refusal::not_applied(refusal::NO_REPLICA, format!("this node has no replica of {of}"))
}

fn deadline(left_ms: u32) -> Instant {
    Instant::now() + Duration::from_millis(u64::from(left_ms))
}
