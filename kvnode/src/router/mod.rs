//! From a request to the replica that answers it: key → slot → shard → leader or local replica.
//!
//! Any node takes any request. A write goes to the shard's leader, here or over the peer stream; a read is served by
//! this node's replica after ReadIndex, or by another node's. What surely did not happen is tried again until the
//! deadline, and so are writes in sessions; what else may have happened is the caller's to know. The decisions are in
//! [`route`]; this is their shell.

pub mod route;
pub mod store;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use kv_proto::{
    disk::v1::{MetaRecord, Operation},
    peer::v1::{
        Outcome, ReadRequest, ReadResponse, Refusal, ReplyContext, WriteRequest, read_request, refusal::Kind,
    },
};
use kv_topology::{ClusterMap, NodeId, ShardId};
use tokio::time::{Instant, sleep_until};

use crate::{group::replica::Replica, refusal};
use route::{Known, Lessons, Next, Target};

/// The node's replicas, by shard.
pub trait Replicas: Send + Sync + 'static {
    /// The running replica of `shard` on this node.
    fn replica(&self, shard: ShardId) -> Option<Replica>;

    /// Why the replica of `shard` on this node is quarantined, if it is.
    fn quarantined(&self, _shard: ShardId) -> Option<String> {
        None
    }

    /// Why this node cannot answer for a shard that no replica here serves.
    fn absence(&self, shard: ShardId) -> Refusal {
        match self.quarantined(shard) {
            Some(reason) => refusal::quarantined(reason),
            None => refusal::not_applied(
                refusal::NO_REPLICA,
                format!("this node has no replica of shard {shard}"),
            ),
        }
    }
}

/// Requests to other nodes.
pub trait Peers: Send + Sync + 'static {
    /// Lets `node` propose the operations.
    fn write(
        &self,
        node: NodeId,
        request: WriteRequest,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Vec<Outcome>, Refusal>>;

    /// Lets `node` serve the read from its replica.
    fn read(
        &self,
        node: NodeId,
        request: ReadRequest,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<ReadResponse, Refusal>>;

    /// Whether the node was heard of once, and not lately: an answer of it is unlikely.
    fn is_silent(&self, _node: NodeId) -> bool {
        false
    }
}

/// The registry and map as this node knows them.
pub trait Maps: Send + Sync + 'static {
    /// The map.
    fn map(&self) -> Arc<ClusterMap>;
    /// The record that it was made of.
    fn meta(&self) -> Arc<MetaRecord>;
    /// Asks for a newer map soon.
    fn refresh(&self);
}

/// The router of one node.
pub struct Router {
    me: NodeId,
    replicas: Arc<dyn Replicas>,
    peers: Arc<dyn Peers>,
    maps: Arc<dyn Maps>,
    /// Who led a shard without a local replica when it was last asked.
    hints: Mutex<BTreeMap<ShardId, NodeId>>,
}

/// The state of one request between attempts.
struct Course {
    shard: ShardId,
    deadline: Instant,
    attempt: u32,
    hint: Option<NodeId>,
    last: Option<Target>,
    lessons: Lessons,
}

impl Router {
    /// A router for this node.
    pub fn new(me: NodeId, replicas: Arc<dyn Replicas>, peers: Arc<dyn Peers>, maps: Arc<dyn Maps>) -> Self {
        Self { me, replicas, peers, maps, hints: Mutex::default() }
    }

    fn hint(&self, shard: ShardId) -> Option<NodeId> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner).get(&shard).copied()
    }

    fn remember(&self, shard: ShardId, context: Option<&ReplyContext>) {
        let Some(context) = context.filter(|context| context.node_id != self.me.get()) else { return };
        let mut hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
        hints.insert(shard, NodeId(context.node_id));
    }

    fn course(&self, shard: ShardId, deadline: Instant) -> Course {
        let hint = self.hint(shard);
        Course { shard, deadline, attempt: 0, hint, last: None, lessons: Lessons::default() }
    }

    fn target(
        &self,
        course: &Course,
        local: Option<&Replica>,
        map: &ClusterMap,
        choose: impl FnOnce(&Known<'_>) -> Target,
    ) -> Target {
        choose(&Known {
            me: self.me,
            local: local.map(|replica| replica.control.leader()),
            hint: course.hint,
            shard: map.shards.get(&course.shard),
            attempt: course.attempt,
            last: course.last,
            lessons: &course.lessons,
            // Asked only when it matters: most requests have a local replica that knows its leader.
            silent: &|node| self.peers.is_silent(node),
        })
    }

    /// Waits as the decision says. False: there is no time for another attempt.
    async fn again(&self, course: &mut Course, tried: Target, next: Next) -> bool {
        let (pause, hint) = match next {
            Next::Final => return false,
            Next::Again { pause, hint } => (pause, hint),
            Next::RefreshMap => {
                self.maps.refresh();
                (route::pause(course.attempt), None)
            }
        };
        course.attempt += 1;
        course.hint = hint;
        course.last = Some(tried);
        let at = Instant::now() + pause;
        if at >= course.deadline {
            return false;
        }
        if pause > Duration::ZERO {
            sleep_until(at).await;
        }
        true
    }

    fn nobody(&self, course: &Course) -> Refusal {
        let shard = course.shard;
        if self.maps.map().shards.contains_key(&shard) {
            return refusal::not_leader(shard, None);
        }
        refusal::not_applied(refusal::STARTING, format!("this node does not know shard {shard} yet"))
    }

    fn in_epoch(&self, context: Option<&mut ReplyContext>) {
        if let Some(context) = context {
            context.map_epoch = self.maps.map().epoch;
        }
    }
}

impl store::Store for Router {
    async fn write(
        &self,
        shard: ShardId,
        operations: Vec<Operation>,
        deadline: Instant,
    ) -> Result<Vec<Outcome>, Refusal> {
        let mut course = self.course(shard, deadline);
        let repeatable = route::are_repeatable(&operations);
        // An earlier attempt may have happened.
        let mut in_doubt = false;
        loop {
            let replica = self.replicas.replica(shard);
            let map = self.maps.map();
            let target = self.target(&course, replica.as_ref(), &map, route::for_write);
            // Operations are counted references: a clone for the next attempt copies no values.
            let result = match (target, replica) {
                (Target::Here, Some(replica)) => replica.write(operations.clone(), deadline).await,
                (Target::At(node), _) => {
                    let request = WriteRequest {
                        shard_id: shard.get(),
                        operations: operations.clone(),
                        deadline_ms: left_ms(deadline),
                        group_id: group_of(&map, shard),
                    };
                    self.peers.write(node, request, deadline).await
                }
                (Target::Nobody | Target::Here, _) => Err(self.nobody(&course)),
            };
            let result = result.and_then(|outcomes| match route::refused_as_wrong_shard(&outcomes) {
                Some(refused) => Err(refused.clone()),
                None => Ok(outcomes),
            });
            match result {
                Ok(mut outcomes) => {
                    if in_doubt {
                        route::in_doubt_each(&mut outcomes);
                    }
                    self.remember(shard, outcomes.first().and_then(|outcome| outcome.context.as_ref()));
                    outcomes.iter_mut().for_each(|outcome| self.in_epoch(outcome.context.as_mut()));
                    return Ok(outcomes);
                }
                Err(refused) => {
                    let next = route::after_write(&refused, target, course.attempt, repeatable);
                    if !self.again(&mut course, target, next).await {
                        return Err(if in_doubt { route::in_doubt(refused) } else { refused });
                    }
                    in_doubt |= refused.kind() == Kind::OutcomeUnknown;
                }
            }
        }
    }

    async fn read(&self, request: ReadRequest, deadline: Instant) -> Result<ReadResponse, Refusal> {
        let shard = ShardId(request.shard_id);
        let here_only = request.options.is_some_and(|options| options.serve_at_node);
        let keeper = keeper(&request);
        let mut course = self.course(shard, deadline);
        loop {
            let replica = self.replicas.replica(shard);
            let map = self.maps.map();
            let target = match &replica {
                Some(_) if here_only => Target::Here,
                replica => self.target(&course, replica.as_ref(), &map, |known| match keeper {
                    Some(keeper) => route::for_pinned(known, keeper),
                    None => route::for_read(known),
                }),
            };
            let result = match (target, replica) {
                (Target::Here, Some(replica)) => replica.read(&request, deadline).await,
                (_, None) if here_only => return Err(self.replicas.absence(shard)),
                (Target::At(node), _) => {
                    let (deadline_ms, group_id) = (left_ms(deadline), group_of(&map, shard));
                    let request = ReadRequest { deadline_ms, group_id, ..request.clone() };
                    self.peers.read(node, request, deadline).await
                }
                (Target::Nobody | Target::Here, _) => Err(self.nobody(&course)),
            };
            match result {
                Ok(mut response) => {
                    if keeper.is_none() {
                        self.remember(shard, response.context.as_ref());
                    }
                    self.in_epoch(response.context.as_mut());
                    return Ok(response);
                }
                Err(refused) => {
                    course.lessons.learn(self.me, target, &refused);
                    let left = course.lessons.leave_a_replica(map.shards.get(&shard));
                    let next = route::after_read(&refused, target, course.attempt, here_only, left);
                    if !self.again(&mut course, target, next).await {
                        return Err(refused);
                    }
                }
            }
        }
    }

    fn map(&self) -> Arc<ClusterMap> {
        self.maps.map()
    }

    fn meta(&self) -> Arc<MetaRecord> {
        self.maps.meta()
    }
}

/// The node that keeps the moment which a read names.
fn keeper(request: &ReadRequest) -> Option<NodeId> {
    let pin = match request.read.as_ref()? {
        read_request::Read::Blob(blob) => blob.pin.as_ref(),
        read_request::Read::Unpin(unpin) => unpin.pin.as_ref(),
        read_request::Read::Get(_)
        | read_request::Read::Scan(_)
        | read_request::Read::Meta(_)
        | read_request::Read::Journal(_) => None,
    };
    pin.map(|pin| NodeId(pin.node_id))
}

/// The group in which a shard lives; 0: not known.
fn group_of(map: &ClusterMap, shard: ShardId) -> u64 {
    map.shards.get(&shard).map_or(0, |entry| entry.group.get())
}

/// Time left, ms, for a request to another node.
fn left_ms(deadline: Instant) -> u32 {
    let left = deadline.saturating_duration_since(Instant::now());
    u32::try_from(left.as_millis()).unwrap_or(u32::MAX)
}
