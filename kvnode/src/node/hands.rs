//! The controller's hands: what it can do on this node and through it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kv_proto::{
    disk::v1::{MetaCommand, MetaRecord, Operation, operation},
    peer::v1::{ControlRequest, ControlResponse, MetaOutcome, Outcome, Refusal, outcome},
};
use kv_topology::{NodeId, ShardId};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use super::{
    map_feed::MapFeed,
    peers::OverTransport,
    points::{self, Points, Side},
    replicas::LocalReplicas,
    requests::Requests,
    space::{Disk, level},
};
use crate::{
    data_dir::Level,
    group::replica::Replica,
    meta::{controller::Hands, envelope},
    refusal,
    router::{Maps, Replicas},
    transport::Transport,
};

/// A node that was heard of within this time is there: several heartbeats, or two of its questions for the map.
const HEARD_WITHIN: Duration = Duration::from_secs(3);
/// How often the controller's surroundings are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the controller acts with.
pub struct NodeHands {
    me: NodeId,
    replicas: Arc<LocalReplicas>,
    maps: Arc<MapFeed>,
    requests: Arc<Requests>,
    transport: Transport,
    disk: Arc<Disk>,
    seen: Mutex<Option<Surroundings>>,
    points: Points,
}

/// What wakes the controller when it changes.
#[derive(PartialEq, Eq)]
struct Surroundings {
    leads: bool,
    epoch: u64,
    heard: BTreeSet<NodeId>,
}

impl NodeHands {
    /// Hands of this node.
    pub fn new(
        me: NodeId,
        replicas: Arc<LocalReplicas>,
        maps: Arc<MapFeed>,
        requests: Arc<Requests>,
        transport: Transport,
        disk: Arc<Disk>,
    ) -> Self {
        Self {
            me,
            replicas,
            maps,
            requests,
            transport,
            disk,
            seen: Mutex::new(None),
            points: points::nobody(),
        }
    }

    /// Tells what it passes.
    pub fn passing(self, points: Points) -> Self {
        Self { points, ..self }
    }

    fn meta(&self) -> Result<Replica, Refusal> {
        self.replicas.replica(ShardId::META).ok_or_else(|| refusal::not_leader(ShardId::META, None))
    }

    fn surroundings(&self) -> Surroundings {
        let map = self.maps.map();
        let heard = map.nodes.keys().copied().filter(|node| self.heard_recently(*node)).collect();
        Surroundings { leads: self.leads_meta(), epoch: map.epoch, heard }
    }
}

impl Hands for NodeHands {
    fn leads_meta(&self) -> bool {
        self.meta().is_ok_and(|meta| meta.control.leader() == Some(self.me))
    }

    async fn record(&self, deadline: Instant) -> Result<Arc<MetaRecord>, Refusal> {
        let meta = self.meta()?;
        let point = meta.gate.ready(deadline).await?;
        if point.leader_here {
            Ok(self.maps.meta())
        } else {
            Err(refusal::not_leader(ShardId::META, meta.control.leader()))
        }
    }

    async fn propose(&self, command: MetaCommand, deadline: Instant) -> Result<MetaOutcome, Refusal> {
        let [before, after] = [Side::Before, Side::After].map(|side| points::of_command(&command, side));
        points::pass(&self.points, before);
        let outcomes = self.meta()?.write(vec![operation_of(command)], deadline).await?;
        points::pass(&self.points, after);
        meta_outcome(outcomes)
    }

    async fn control(
        &self,
        node: NodeId,
        request: ControlRequest,
        deadline: Instant,
    ) -> Result<ControlResponse, Refusal> {
        if node == self.me {
            self.requests.control(request).await
        } else {
            OverTransport(self.transport.clone()).control(node, request, deadline).await
        }
    }

    fn heard_recently(&self, node: NodeId) -> bool {
        let heard = || self.transport.heard_from(node).is_some_and(|at| at.elapsed() <= HEARD_WITHIN);
        node == self.me || heard()
    }

    fn disk_is_low(&self, node: NodeId) -> bool {
        let told = if node == self.me { self.disk.level() } else { level(self.transport.disk_level(node)) };
        told != Level::Enough
    }

    fn me(&self) -> NodeId {
        self.me
    }

    fn unix_ms(&self) -> u64 {
        envelope::unix_ms()
    }

    async fn changed(&self) {
        let mut seen = self.seen.lock().await;
        loop {
            let now = self.surroundings();
            if seen.as_ref() != Some(&now) {
                *seen = Some(now);
                return;
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// The operation that carries a command of the meta group.
pub fn operation_of(command: MetaCommand) -> Operation {
    Operation { kind: Some(operation::Kind::Meta(command)), ..Operation::default() }
}

/// The outcome of a single command.
///
/// # Errors
/// The command was refused.
pub fn meta_outcome(outcomes: Vec<Outcome>) -> Result<MetaOutcome, Refusal> {
    match outcomes.into_iter().next().and_then(|outcome| outcome.result) {
        Some(outcome::Result::Meta(done)) => Ok(done),
        Some(outcome::Result::Refusal(refused)) => Err(refused),
        _ => Err(refusal::internal("the meta group answered with something else")),
    }
}
