//! What an operation can do: read and change the record of meta, ask nodes. The node implements it; tests do with a model.

use std::{future::Future, time::Duration};

use kv_proto::{
    disk::v1::{MetaCommand, MetaRecord, NodeRecord},
    peer::v1::{
        ControlRequest, JournalEntries, JournalPage, MetaOutcome, ReadRequest, Refusal,
        control_request::Request, control_response::Response, read_request, read_response,
    },
};
use kv_topology::{NodeId, ShardId};
use tokio::time::{Instant, timeout_at};

use crate::{
    meta::planner::Action,
    node::{
        admin,
        core::Core,
        hands::{meta_outcome, operation_of},
        record::read_record,
    },
    refusal,
    router::{Maps, store::Store},
};

/// How long an operation that has happened waits until this node knows of it, so that who asks here next is not told what was
/// before. A node without a replica of meta looks once a second.
const KNOWN_WITHIN: Duration = Duration::from_millis(1_500);

/// The cluster and this node, for operations.
pub trait Reach: Send + Sync {
    /// The record of meta, read linearizably.
    fn record(&self, deadline: Instant) -> impl Future<Output = Result<MetaRecord, Refusal>> + Send;

    /// Proposes to the meta group. Afterwards this node knows what came of it, or does soon.
    fn propose(
        &self,
        command: MetaCommand,
        deadline: Instant,
    ) -> impl Future<Output = Result<MetaOutcome, Refusal>> + Send;

    /// A page of the journal, read linearizably.
    fn journal(
        &self,
        page: JournalPage,
        deadline: Instant,
    ) -> impl Future<Output = Result<JournalEntries, Refusal>> + Send;

    /// Asks a node, this one included.
    fn control(
        &self,
        node: NodeId,
        request: Request,
        deadline: Instant,
    ) -> impl Future<Output = Result<Response, Refusal>> + Send;

    /// Whether the node of this record was heard of lately, or answers at its address.
    fn is_alive(&self, node: &NodeRecord, deadline: Instant) -> impl Future<Output = bool> + Send;

    /// A text that nobody guesses.
    fn token(&self) -> String;

    /// Between two heartbeats of a leader.
    fn heartbeat(&self) -> Duration;
}

impl Reach for Core {
    async fn record(&self, deadline: Instant) -> Result<MetaRecord, Refusal> {
        read_record(&*self.store, deadline).await
    }

    async fn propose(&self, command: MetaCommand, deadline: Instant) -> Result<MetaOutcome, Refusal> {
        let (actor, reason) = (command.actor.clone(), command.reason.clone());
        let action = Action::Propose(command.clone()).to_string();
        let written = self.store.write(ShardId::META, vec![operation_of(command)], deadline).await;
        let outcome = meta_outcome(written?)?;
        tracing::info!(actor, reason, action, "order carried out");
        self.maps.refresh();
        let known = self.maps.registry.newer_than(outcome.epoch.saturating_sub(1));
        timeout_at(deadline.min(Instant::now() + KNOWN_WITHIN), known).await.ok();
        Ok(outcome)
    }

    async fn journal(&self, page: JournalPage, deadline: Instant) -> Result<JournalEntries, Refusal> {
        let request = ReadRequest { read: Some(read_request::Read::Journal(page)), ..ReadRequest::default() };
        match self.store.read(request, deadline).await?.read {
            Some(read_response::Read::Journal(entries)) => Ok(entries),
            Some(read_response::Read::Refusal(refused)) => Err(refused),
            _ => Err(something_else()),
        }
    }

    async fn control(&self, node: NodeId, request: Request, deadline: Instant) -> Result<Response, Refusal> {
        let member = self.member.get().ok_or_else(|| {
            refusal::not_applied(refusal::STARTING, "this node does not belong to a cluster yet")
        })?;
        let asked = member.control(node, ControlRequest { request: Some(request) }, deadline);
        let answer = timeout_at(deadline, asked).await.unwrap_or_else(|_| {
            Err(refusal::outcome_unknown(format!("node {node} has not answered in time")))
        })?;
        answer.response.ok_or_else(something_else)
    }

    async fn is_alive(&self, node: &NodeRecord, deadline: Instant) -> bool {
        self.was_heard_lately(NodeId(node.node_id)) || admin::answers(node, deadline).await
    }

    fn token(&self) -> String {
        format!("{:016x}{:016x}", self.randomness.next(), self.randomness.next())
    }

    fn heartbeat(&self) -> Duration {
        self.config.raft.heartbeat
    }
}

/// Neither what was asked for nor a refusal.
pub fn something_else() -> Refusal {
    refusal::internal("the answer is to another question")
}
