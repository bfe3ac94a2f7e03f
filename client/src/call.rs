//! The life of one operation: choose a node, connect, let the caller try, judge the failure, pause, try again,
//! until it succeeds, must not be repeated, or the deadline comes.

use std::time::Duration;

use kv_proto::kv::v1::ResponseHeader;
use prost::Message;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Request, Response, Status};

use crate::{
    address::Address,
    client::Client,
    error::{Error, Result},
    failure::{Failure, LeaderHint},
    pool::{Node, Purpose},
    retry::{Cause, Decision, Happened, Kind, NO_REPLICA, Turn, decide, is_lasting_absence, pause},
    routing::{Route, Wish},
    shard_map::ShardMap,
};

/// What is done, to what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// As in `kv.v1`.
    pub(crate) operation: &'static str,
    pub(crate) kind: Kind,
    pub(crate) route: Route,
}

/// A request over this is refused here: a transport's refusal does not tell whether anything happened.
const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024;
/// A quick read waits for one node at least this long before it asks another one.
const LEAST_PATIENCE: Duration = Duration::from_millis(500);
/// Connections and streams that are replaced before that counts as a failure.
const ENDED_MAX: u32 = 4;
/// One node's answer to the question for a newer map.
const MAP_TIMEOUT: Duration = Duration::from_secs(1);

/// One operation under way.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) client: Client,
    pub(crate) plan: Plan,
    deadline: Instant,
    purpose: Purpose,
    attempts: u32,
    wish: Wish,
    /// Whom no connection could be made to.
    unreachable: Vec<Address>,
    /// Who found damaged bytes.
    damaged: Vec<Address>,
    /// Refusals by a node that has no replica of the shard.
    absences: u32,
    /// Connections and streams that had ended before the request was sent.
    ended: u32,
    /// An attempt may have had its effect. Only what may be repeated goes on after that.
    perhaps: bool,
}

impl Call {
    pub(crate) fn new(client: Client, plan: Plan) -> Self {
        let deadline = Instant::now() + client.timeout();
        Self {
            client,
            plan,
            deadline,
            purpose: Purpose::Operations,
            attempts: 0,
            wish: Wish::None,
            unreachable: Vec::new(),
            damaged: Vec::new(),
            absences: 0,
            ended: 0,
            perhaps: false,
        }
    }

    /// The same on a connection apart: its messages come or go as fast as the caller takes or gives them.
    pub(crate) fn transfer(mut self) -> Self {
        self.purpose = Purpose::Transfers;
        self
    }

    /// Another operation on behalf of this one, within what is left of its time.
    pub(crate) fn another(&self, operation: &'static str, kind: Kind, route: Route) -> Self {
        let mut call = Self::new(self.client.clone(), Plan { operation, kind, route });
        call.deadline = self.deadline;
        call
    }

    /// The same operation with no more time than one attempt of it has.
    pub(crate) fn hurried(&self) -> Self {
        let mut call = self.another(self.plan.operation, self.plan.kind, self.plan.route);
        call.deadline = self.patience(true);
        call
    }

    /// Whether an attempt may have had its effect, for a caller who keeps that from here on.
    pub(crate) fn take_doubt(&mut self) -> bool {
        std::mem::take(&mut self.perhaps)
    }

    /// Whether an earlier attempt of a write may have had its effect.
    pub(crate) fn may_have_happened(&self) -> bool {
        self.perhaps
    }

    /// The operation's end with this failure, in the light of earlier attempts.
    pub(crate) fn end(&self, failure: Failure) -> Error {
        Error::end(self.plan.kind, failure, self.perhaps)
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// A stream moved on: the deadline starts anew, and so does the counting of attempts.
    pub(crate) fn progressed(&mut self) {
        self.deadline = Instant::now() + self.client.timeout();
        self.attempts = 0;
        self.ended = 0;
        self.unreachable.clear();
        self.wish = Wish::None;
    }

    /// A connected node for the next attempt.
    pub(crate) async fn node(&mut self) -> Result<Node> {
        loop {
            self.refresh_map().await;
            self.attempts += 1;
            let address = self.choose();
            let pool = &self.client.core().pool;
            if let Some(node) = pool.connected(&address, self.purpose) {
                return Ok(node);
            }
            let problem = match timeout_at(self.deadline, pool.node(&address, self.purpose)).await {
                Ok(Ok(node)) => return Ok(node),
                Ok(Err(error)) => full_message(&error),
                Err(_) => "no connection until the deadline".to_owned(),
            };
            let failure = Failure::local(self.plan.operation, Some(&address), Cause::NotSent, problem);
            self.failed(failure).await?;
        }
    }

    fn choose(&self) -> Address {
        match self.client.pinned() {
            Some(address) => address.clone(),
            None => self.client.core().knowledge.choose(self.plan.route, &self.wish),
        }
    }

    /// A request that forwards the deadline.
    pub(crate) fn request<Q>(&self, message: Q) -> Request<Q> {
        let mut request = Request::new(message);
        request.set_timeout(whole_ms(self.deadline.saturating_duration_since(Instant::now())));
        request
    }

    /// A request for an attempt that waits until `limit`. Of what administrators wish, a node is told a nearer one, so that it
    /// says what keeps it before somebody else is asked.
    fn request_until<Q>(&self, message: Q, limit: Instant) -> Request<Q> {
        let mut request = self.request(message);
        if self.plan.kind == Kind::Idempotent {
            request.set_timeout(whole_ms(limit.saturating_duration_since(Instant::now()).mul_f64(0.9)));
        }
        request
    }

    /// What the status of an attempt at `node` tells.
    pub(crate) fn failure_of(&self, node: &Node, status: &Status) -> Failure {
        Failure::of_status(self.plan.operation, node.address(), status)
    }

    /// No answer came in time.
    pub(crate) fn silence_of(&self, node: &Node) -> Failure {
        // Whoever comes next asks somebody else first.
        self.client.core().knowledge.failed(node.address());
        let message = "no answer until the deadline";
        Failure::local(self.plan.operation, Some(node.address()), Cause::Lost, message)
    }

    /// A connection, or a stream on it, ended before the request was sent. Whether the next attempt is made on a new one at once:
    /// a node asks for that now and then.
    pub(crate) fn moves_on(&mut self) -> bool {
        self.ended += 1;
        self.ended <= ENDED_MAX
    }

    /// Judges a status; returns when the next attempt may be made.
    pub(crate) async fn failed_at(&mut self, node: &Node, status: &Status) -> Result<()> {
        let failure = self.failure_of(node, status);
        if failure.reason.is_none() && matches!(failure.code, Code::Unavailable | Code::Unknown) {
            self.client.core().pool.discard(node);
        }
        if failure.cause() == Cause::NotSent && self.moves_on() {
            return Ok(());
        }
        self.failed(failure).await
    }

    /// Judges a failed attempt; returns when the next one may be made.
    ///
    /// # Errors
    /// The operation's end: it must not be repeated, or there is no time left to.
    pub(crate) async fn failed(&mut self, mut failure: Failure) -> Result<()> {
        failure.attempts = self.attempts;
        if failure.reason.is_some() {
            // Nobody else has words of ours.
            self.client.core().knowledge.met();
        }
        tracing::debug!(operation = self.plan.operation, attempt = self.attempts, error = %failure, "attempt failed");
        let Decision::Retry(turn) = decide(self.plan.kind, failure.cause()) else {
            return Err(self.end(failure));
        };
        if failure.cause() == Cause::NoSession && self.perhaps {
            // What became of the earlier attempt was kept in the session.
            let message = "the session is gone, and with it the outcome of an earlier attempt";
            return Err(self.end(failure.with_message(message)));
        }
        self.perhaps |= self.plan.kind.bears_doubt() && failure.cause().happened() == Happened::Perhaps;
        let hop = self.aim(turn, &failure);
        let hopeful = match failure.cause() {
            Cause::NotSent => self.hopeful(&failure),
            Cause::DataLoss => self.finds_somebody_whole(&failure),
            _ => !self.lacks_its_replica(&failure),
        };
        if !hopeful {
            return Err(self.end(failure));
        }
        let wait = match (hop, failure.retry_after) {
            (Hop::Elsewhere, None) => Duration::ZERO,
            (Hop::Elsewhere | Hop::Again, advice) => {
                pause(self.attempts + 1, advice, self.client.core().jitter())
            }
        };
        if Instant::now() + wait >= self.deadline {
            return Err(self.end(failure));
        }
        if !wait.is_zero() {
            sleep(wait).await;
        }
        Ok(())
    }

    /// Sets the wish for the next attempt. A first hop to somebody else needs no pause.
    fn aim(&mut self, turn: Turn, failure: &Failure) -> Hop {
        let knowledge = &self.client.core().knowledge;
        let failed = failure.node.clone();
        match turn {
            Turn::Leader => {
                let LeaderHint { node, address } = &failure.leader;
                let leader = address.clone().or_else(|| node.and_then(|node| knowledge.address_of(node)));
                let hop = if leader.is_some() && leader != failed && self.attempts == 1 {
                    Hop::Elsewhere
                } else {
                    Hop::Again
                };
                self.wish = leader.map_or(Wish::None, Wish::This);
                hop
            }
            Turn::Same => {
                self.wish = failed.map_or(Wish::None, Wish::This);
                // Another session is somebody else, in a way.
                let is_new = failure.cause() == Cause::NoSession && self.attempts == 1;
                if is_new { Hop::Elsewhere } else { Hop::Again }
            }
            Turn::Refreshed => {
                knowledge.outdated();
                self.wish = Wish::None;
                Hop::Again
            }
            Turn::Other => {
                let Some(failed) = failed else { return Hop::Again };
                if failure.cause() == Cause::NotSent {
                    knowledge.failed(&failed);
                    if !self.unreachable.contains(&failed) {
                        self.unreachable.push(failed.clone());
                    }
                }
                self.wish = Wish::Not(failed);
                let fresh = !self.unreachable.contains(&self.choose());
                if fresh && self.attempts == 1 { Hop::Elsewhere } else { Hop::Again }
            }
        }
    }

    /// Whether it makes sense to go on connecting. Failing fast is for addresses where nobody is, not for a node that starts
    /// again: one that has answered is waited for, and so is the outcome of an attempt that may have had its effect.
    fn hopeful(&mut self, failure: &Failure) -> bool {
        if !self.client.core().fail_fast || self.perhaps {
            return true;
        }
        let Some(failed) = &failure.node else { return false };
        if self.client.pinned().is_some() {
            return false;
        }
        let knowledge = &self.client.core().knowledge;
        let next = knowledge
            .everybody()
            .into_iter()
            .find(|address| !self.unreachable.contains(address) && address != failed);
        match next {
            Some(next) => {
                self.wish = Wish::This(next);
                true
            }
            None => knowledge.has_met(),
        }
    }

    /// Whether the only node that may answer this read has no replica to answer it from.
    fn lacks_its_replica(&mut self, failure: &Failure) -> bool {
        self.absences += u32::from(failure.reason.as_deref() == Some(NO_REPLICA));
        self.client.pinned().is_some() && is_lasting_absence(self.plan.kind, self.absences)
    }

    /// Whether there is a node left whose bytes may be whole, which is asked next. Bytes do not heal while one waits.
    fn finds_somebody_whole(&mut self, failure: &Failure) -> bool {
        self.damaged.extend(failure.node.clone());
        if self.client.pinned().is_some() {
            return false;
        }
        let everybody = self.client.core().knowledge.everybody();
        let next = everybody.into_iter().find(|address| !self.damaged.contains(address));
        let found = next.is_some();
        self.wish = next.map_or(Wish::None, Wish::This);
        found
    }

    /// Asks for a newer map when one is due. Failing changes nothing: the old map is a hint as well.
    async fn refresh_map(&self) {
        let core = self.client.core();
        if let Some(epoch) = core.knowledge.refresh_due(Instant::now()) {
            self.ask_for_map(epoch).await;
        }
    }

    /// Asks for a map that is newer than `epoch`.
    pub(crate) async fn ask_for_map(&self, epoch: u64) {
        let core = self.client.core();
        for address in core.knowledge.everybody() {
            let limit = self.deadline.min(Instant::now() + MAP_TIMEOUT);
            match timeout_at(limit, self.client.fetch_map(&address, epoch)).await {
                Ok(Ok(map)) if map.cluster.epoch > epoch => return core.knowledge.refreshed(map),
                Ok(Ok(_)) => {}
                Ok(Err(problem)) => tracing::debug!(node = %address, %problem, "no shard map"),
                Err(_) => tracing::debug!(node = %address, "no shard map in time"),
            }
        }
    }

    /// How long an attempt may wait. A quick one leaves time to ask somebody else.
    pub(crate) fn patience(&self, quick: bool) -> Instant {
        if !quick {
            return self.deadline;
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        self.deadline.min(Instant::now() + (left / 2).max(LEAST_PATIENCE))
    }

    /// Runs a unary operation to its end.
    pub(crate) async fn unary<Q, A, F, Fut>(mut self, message: Q, send: F) -> Result<(A, Address)>
    where
        Q: Message + Clone,
        A: Headed,
        F: Fn(Node, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<A>, Status>>,
    {
        self.check_size(message.encoded_len())?;
        loop {
            let node = self.node().await?;
            let limit = self.patience(self.plan.kind.is_quick());
            match timeout_at(limit, send(node.clone(), self.request_until(message.clone(), limit))).await {
                Ok(Ok(reply)) => {
                    let reply = reply.into_inner();
                    self.client.core().knowledge.answered(self.plan.route.slot(), reply.header());
                    return Ok((reply, node.address().clone()));
                }
                Ok(Err(status)) => self.failed_at(&node, &status).await?,
                Err(_) => {
                    let failure = self.silence_of(&node);
                    self.failed(failure).await?;
                }
            }
        }
    }

    /// Refuses what the transport would refuse.
    pub(crate) fn check_size(&self, bytes: usize) -> Result<()> {
        if bytes <= MAX_REQUEST_BYTES {
            return Ok(());
        }
        let message =
            format!("the request has {bytes} bytes, at most {MAX_REQUEST_BYTES} are sent in one message");
        let failure = Failure::local(self.plan.operation, None, Cause::Refused, message);
        Err(Error::InvalidArgument(Box::new(failure)))
    }
}

/// In whole milliseconds, up: the same header for most calls, which HTTP/2 then tells in one byte.
fn whole_ms(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX))
}

/// Whether the next attempt goes to somebody who was not asked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hop {
    Elsewhere,
    Again,
}

/// The error with what caused it; a transport's own text is only "transport error".
pub(crate) fn full_message(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        source = cause.source();
    }
    message
}

/// Asks one node for its map; empty when it knows none newer than `epoch`.
impl Client {
    async fn fetch_map(&self, address: &Address, epoch: u64) -> Result<ShardMap, String> {
        let node = self
            .core()
            .pool
            .node(address, Purpose::Operations)
            .await
            .map_err(|error| full_message(&error))?;
        let request = kv_proto::admin::v1::GetShardMapRequest { newer_than_epoch: epoch };
        let map =
            node.admin().get_shard_map(request).await.map_err(|status| status.to_string())?.into_inner();
        if map.shards.is_empty() {
            return Ok(ShardMap::default());
        }
        ShardMap::from_proto(map).map_err(|error| error.to_string())
    }
}

/// A reply that says where it was made.
pub(crate) trait Headed {
    fn header(&self) -> Option<&ResponseHeader>;
}

macro_rules! headed {
    ($($reply:ident),*) => {$(
        impl Headed for kv_proto::kv::v1::$reply {
            fn header(&self) -> Option<&ResponseHeader> {
                self.header.as_ref()
            }
        }
    )*};
}

headed!(OpenSessionResponse, CloseSessionResponse);

macro_rules! headless {
    ($($reply:path),*) => {$(
        impl Headed for $reply {
            fn header(&self) -> Option<&ResponseHeader> {
                None
            }
        }
    )*};
}

headless!(
    kv_proto::kv::v1::BatchGetResponse,
    kv_proto::kv::v1::BulkWriteResponse,
    kv_proto::admin::v1::ShardMap,
    kv_proto::admin::v1::NodeStatus,
    kv_proto::admin::v1::ClusterStatus,
    kv_proto::admin::v1::ListNodesResponse,
    kv_proto::admin::v1::DrainNodeResponse,
    kv_proto::admin::v1::UndrainNodeResponse,
    kv_proto::admin::v1::RemoveNodeResponse,
    kv_proto::admin::v1::TransferLeaderResponse,
    kv_proto::admin::v1::RequestPermitResponse,
    kv_proto::admin::v1::ReleasePermitResponse,
    kv_proto::admin::v1::HandOverResponse,
    kv_proto::admin::v1::SetNodeLabelsResponse,
    kv_proto::admin::v1::SetPolicyResponse,
    kv_proto::admin::v1::GetJournalResponse,
    kv_proto::admin::v1::InspectResponse,
    kv_proto::admin::v1::RewriteResponse,
    kv_proto::admin::v1::ReplaceGroupResponse
);
