//! May this node be restarted now? Leave is granted by the meta group, on evidence from each group's leader.
//!
//! The evidence is gathered and judged here ([`kv_topology::permit`]); the meta group grants nothing when the record has changed
//! since it was read, and then all is asked again. That a permit is refused is an answer, with all that speaks against it.

use std::{collections::BTreeSet, time::Duration};

use kv_proto::{
    admin::v1::{
        Objection, ReleasePermitRequest, ReleasePermitResponse, RequestPermitRequest, RequestPermitResponse,
    },
    disk::v1::{
        MetaRecord, NodeRecord, NodeState,
        meta_command::{Command, EndPermit, GrantPermit},
    },
    peer::v1::{Refusal, refusal::Kind},
};
use kv_topology::{
    NodeId, ShardId,
    permit::{self, Verdict},
};
use tokio::time::Instant;

use super::{
    ATTEMPTS, Reach,
    evidence::{self, Gathered},
    names,
    order::Order,
};
use crate::{
    meta::machine::open_permit,
    refusal::{
        self, CHANGE_UNDER_WAY, EPOCH_MOVED_ON, NODE_IS_GONE, PERMIT_OPEN, PERMIT_UNKNOWN, QUORUM_AT_RISK,
    },
};

/// Of a request that names none, ms: a restart with its recovery takes less.
const TTL_DEFAULT_MS: u64 = 60_000;
/// For taking back what may have been granted. The caller's time may be over.
const TAKE_BACK_TIMEOUT: Duration = Duration::from_secs(2);
/// The reason of an objection: no leader of the shard answered.
const NO_LEADER: &str = "NO_LEADER";

/// Judges a request, and asks the meta group for the permit when nothing speaks against it.
///
/// # Errors
/// There is no such node, or the meta group cannot be asked. Then no permit is left behind that nobody knows the token of, or
/// only where meta could not be asked for that either: it ends with its time.
pub async fn request(
    reach: &impl Reach,
    request: RequestPermitRequest,
    deadline: Instant,
) -> Result<RequestPermitResponse, Refusal> {
    let RequestPermitRequest { node, ttl_ms, actor, reason, dry_run } = request;
    let ttl_ms = if ttl_ms == 0 { TTL_DEFAULT_MS } else { ttl_ms };
    let token = if dry_run { String::new() } else { reach.token() };
    let wish = Wish { node, ttl_ms, order: Order::by(actor, reason), token };
    let mut in_doubt = false;
    let answer = wish.answer(reach, &mut in_doubt, deadline).await;
    if !in_doubt || answer.as_ref().is_ok_and(|answer| answer.granted) {
        return answer;
    }
    wish.take_back(reach).await;
    answer.map_err(|refused| refusal::outcome_unknown(refused.message))
}

/// A permit as somebody wishes for it.
struct Wish {
    node: String,
    ttl_ms: u64,
    order: Order,
    /// One for all attempts: a grant whose answer was lost is found again by it. Empty: nothing is to be granted.
    token: String,
}

impl Wish {
    /// `in_doubt` becomes true when a grant may have happened of which nothing was heard.
    async fn answer(
        &self,
        reach: &impl Reach,
        in_doubt: &mut bool,
        deadline: Instant,
    ) -> Result<RequestPermitResponse, Refusal> {
        let mut attempt = 1;
        loop {
            let record = reach.record(deadline).await?;
            let found = names::node(&record, "node", &self.node)?;
            let node_id = found.node_id;
            let outages = match judge(reach, &record, found, &self.token, deadline).await {
                Ok(outages) => outages.into_iter().map(ShardId::get).collect(),
                Err(objections) => return Ok(refused_for(node_id, objections)),
            };
            let granted = self.granted(node_id, outages);
            if self.token.is_empty() {
                return Ok(granted);
            }
            let command = self.order.to(self.grant(&granted, record.epoch));
            let refused = match reach.propose(command, deadline).await {
                Ok(_) => return Ok(granted),
                Err(refused) => refused,
            };
            *in_doubt |= may_have_happened(&refused);
            match after(&refused) {
                Next::Again if attempt < ATTEMPTS => attempt += 1,
                Next::Again => return Err(too_restless(refused)),
                Next::Answer => {
                    let objection =
                        Objection { shard_id: None, reason: refused.reason, message: refused.message };
                    return Ok(refused_for(node_id, vec![objection]));
                }
                Next::Fail => return Err(refused),
            }
        }
    }

    fn granted(&self, node_id: u64, outage_shard_ids: Vec<u32>) -> RequestPermitResponse {
        RequestPermitResponse {
            granted: true,
            token: self.token.clone(),
            ttl_ms: self.ttl_ms,
            outage_shard_ids,
            objections: Vec::new(),
            node_id,
        }
    }

    fn grant(&self, granted: &RequestPermitResponse, expected_epoch: u64) -> Command {
        let (node_id, outage_shard_ids) = (granted.node_id, granted.outage_shard_ids.clone());
        let (token, ttl_ms) = (self.token.clone(), self.ttl_ms);
        Command::GrantPermit(GrantPermit { token, node_id, ttl_ms, outage_shard_ids, expected_epoch })
    }

    /// Ends the permit that may have been granted: whoever asked hears of no token, and all changes of voters would wait for
    /// it.
    async fn take_back(&self, reach: &impl Reach) {
        let command = self.order.to(Command::EndPermit(EndPermit { token: self.token.clone() }));
        if let Err(refused) = reach.propose(command, Instant::now() + TAKE_BACK_TIMEOUT).await
            && refused.reason != PERMIT_UNKNOWN
        {
            let (reason, message) = (refused.reason, refused.message);
            tracing::warn!(reason, message, "a permit that may have been granted was not taken back");
        }
    }
}

fn refused_for(node_id: u64, objections: Vec<Objection>) -> RequestPermitResponse {
    RequestPermitResponse { objections, node_id, ..RequestPermitResponse::default() }
}

/// Whether a command that was refused like this may be carried out all the same.
fn may_have_happened(refused: &Refusal) -> bool {
    match refused.kind() {
        Kind::Unspecified | Kind::OutcomeUnknown | Kind::DeadlineExceeded | Kind::Internal => true,
        Kind::NotApplied
        | Kind::WrongShard
        | Kind::ResourceExhausted
        | Kind::InvalidArgument
        | Kind::DataLoss
        | Kind::FailedPrecondition
        | Kind::NotFound => false,
    }
}

/// What to do when the meta group did not grant what nothing spoke against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Something else happened first, or nobody knows: all is looked at again.
    Again,
    /// Somebody else was faster: that is the answer.
    Answer,
    /// There is no answer.
    Fail,
}

fn after(refused: &Refusal) -> Next {
    match refused.reason.as_str() {
        EPOCH_MOVED_ON => Next::Again,
        PERMIT_OPEN | CHANGE_UNDER_WAY | NODE_IS_GONE => Next::Answer,
        _ if refused.kind() == Kind::OutcomeUnknown => Next::Again,
        _ => Next::Fail,
    }
}

/// Nothing happened, and later it may: unless the outcome is not known, the caller may repeat it by itself.
fn too_restless(refused: Refusal) -> Refusal {
    let kind = if refused.kind() == Kind::OutcomeUnknown { Kind::OutcomeUnknown } else { Kind::NotApplied };
    Refusal { kind: kind.into(), ..refused }
}

/// The shards that will be away with the node, or all that speaks against it. `token` is that of this very request, which an
/// earlier attempt may have been granted.
async fn judge(
    reach: &impl Reach,
    record: &MetaRecord,
    node: &NodeRecord,
    token: &str,
    deadline: Instant,
) -> Result<BTreeSet<ShardId>, Vec<Objection>> {
    if let Some(permit) = open_permit(record).filter(|permit| permit.token == token) {
        return Ok(permit.outage_shard_ids.iter().copied().map(ShardId).collect());
    }
    let known = in_record(record, node);
    let decides = |known: &Objection| known.shard_id.is_none();
    if known.iter().any(decides) {
        return Err(known);
    }
    let id = NodeId(node.node_id);
    let Gathered { shards, stopping } = evidence::gather(reach, record, id, deadline).await;
    let down = stopping.into_iter().chain(overdue(record)).collect();
    let asked: Vec<_> = shards.iter().map(evidence::Known::asked).collect();
    let heartbeat_ms = u64::try_from(reach.heartbeat().as_millis()).unwrap_or(u64::MAX);
    match permit::evaluate(id, &down, &asked, heartbeat_ms) {
        Verdict::Granted { outages } if known.is_empty() => Ok(outages),
        Verdict::Granted { .. } => Err(known),
        Verdict::Refused(found) => Err(merged(known, id, found)),
    }
}

/// What the record alone says against it.
fn in_record(record: &MetaRecord, node: &NodeRecord) -> Vec<Objection> {
    let mut objections = Vec::new();
    let mut object = |shard_id, reason: &str, message| {
        objections.push(Objection { shard_id, reason: reason.to_owned(), message });
    };
    let id = node.node_id;
    match node.state() {
        NodeState::Removed => object(None, NODE_IS_GONE, format!("#{id} was removed from the cluster")),
        NodeState::Lost => object(None, NODE_IS_GONE, format!("#{id} is lost: it needs no permit")),
        NodeState::Unspecified
        | NodeState::Joining
        | NodeState::Active
        | NodeState::Draining
        | NodeState::Drained => {}
    }
    if let Some(open) = open_permit(record) {
        let message = format!("#{} has a permit of {} ms to be restarted", open.node_id, open.ttl_ms);
        object(None, PERMIT_OPEN, message);
    }
    for shard in record.shards.iter().filter(|shard| shard.change.is_some()) {
        object(Some(shard.shard_id), CHANGE_UNDER_WAY, changing(shard.shard_id));
    }
    objections
}

/// Nodes whose permits are over and that have not come back whole.
fn overdue(record: &MetaRecord) -> impl Iterator<Item = NodeId> {
    record.permits.iter().filter(|permit| permit.overdue).map(|permit| NodeId(permit.node_id))
}

/// All that speaks against it, each thing once.
fn merged(
    mut known: Vec<Objection>,
    node: NodeId,
    found: Vec<(Option<ShardId>, permit::Objection)>,
) -> Vec<Objection> {
    for (shard, objection) in found {
        let objection = told(node, shard, &objection);
        let same =
            |known: &Objection| (known.shard_id, &known.reason) == (objection.shard_id, &objection.reason);
        if !known.iter().any(same) {
            known.push(objection);
        }
    }
    known
}

fn told(node: NodeId, shard: Option<ShardId>, objection: &permit::Objection) -> Objection {
    let shard_id = shard.map(ShardId::get);
    let of = shard_id.unwrap_or_default();
    let (reason, message) = match objection {
        permit::Objection::NoLeader => {
            (NO_LEADER, format!("no leader of shard {of} answers: its state is not known"))
        }
        permit::Objection::ChangeUnderWay => (CHANGE_UNDER_WAY, changing(of)),
        permit::Objection::QuorumAtRisk { staying, needed, why } => {
            let why = if why.is_empty() { String::new() } else { format!(": {}", why.join(", ")) };
            let text =
                format!("without {node} shard {of} keeps {staying} of the {needed} voters it needs{why}");
            (QUORUM_AT_RISK, text)
        }
    };
    Objection { shard_id, reason: reason.to_owned(), message }
}

fn changing(shard: u32) -> String {
    format!("the voters of shard {shard} are changing")
}

/// Gives a permit back. One that nobody has is no error, since this may be asked again; the answer tells it apart.
///
/// # Errors
/// The meta group cannot be asked.
pub async fn release(
    reach: &impl Reach,
    request: ReleasePermitRequest,
    deadline: Instant,
) -> Result<ReleasePermitResponse, Refusal> {
    let ReleasePermitRequest { token, actor } = request;
    let order = Order::by(actor, String::new());
    let command = order.to(Command::EndPermit(EndPermit { token }));
    match reach.propose(command, deadline).await {
        // Of no node: there was no permit at all.
        Ok(outcome) => Ok(ReleasePermitResponse { released: outcome.node_id != 0 }),
        Err(refused) if refused.reason == PERMIT_UNKNOWN => Ok(ReleasePermitResponse { released: false }),
        Err(refused) => Err(refused),
    }
}

#[cfg(test)]
#[path = "permits_tests.rs"]
mod tests;
