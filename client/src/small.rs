//! The small operations: put, get, delete, txn. Each is one message there and one back, on the stream of the connection or
//! as a call of its own, in a session or not.

use std::sync::Arc;

use bytes::Bytes;
use kv_proto::kv::v1::{self as proto, batch_operation::Operation, batch_result};
use kv_topology::Slot;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};

use crate::{
    call::Call,
    error::{Error, Result},
    failure::Failure,
    pool::Node,
    retry::{Cause, Kind},
    session::Stamp,
    sessions::Ticket,
    stream::{Ended, NotTaken, Why, encoded_len},
};

/// Why an attempt gave no answer.
enum Miss {
    /// The failure has to be judged. The connection may be the reason.
    Failed(Box<Failure>, Blame),
    /// The stream, or the connection, ended before the operation was sent, or taken. Another one may take it at once.
    Moved(Box<Failure>, Blame),
    /// The node has no streams; nothing happened.
    UnaryOnly,
}

/// Whether a connection is still good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blame {
    Nobody,
    Connection,
}

impl Call {
    /// Runs a small operation to its end. `key` names the shard of a write in a session.
    pub(crate) async fn small(
        mut self,
        key: &Bytes,
        mut operation: Operation,
    ) -> Result<batch_result::Result> {
        self.check_size(encoded_len(&operation))?;
        let slot = self.plan.route.slot();
        let mut ticket: Option<Ticket> = None;
        loop {
            let node = self.node().await?;
            if let (Kind::Once, Some(slot)) = (self.plan.kind, slot) {
                let held = self.renewed(ticket.take(), slot, key).await?;
                stamp(&mut operation, held.stamp());
                ticket = Some(held);
            }
            match self.attempt(&node, slot, &operation).await {
                Ok(answer) => {
                    self.client.core().knowledge.answered(slot, header_of(&answer));
                    return Ok(answer);
                }
                Err(Miss::UnaryOnly) => node.has_no_streams(),
                Err(Miss::Moved(failure, blame)) => {
                    self.blame(blame, &node);
                    if !self.moves_on() {
                        self.failed(*failure).await?;
                    }
                }
                Err(Miss::Failed(failure, blame)) => {
                    self.blame(blame, &node);
                    if failure.cause() == Cause::NoSession {
                        self.without_session(ticket.take().as_ref(), slot, &failure);
                    }
                    self.failed(*failure).await?;
                }
            }
        }
    }

    fn blame(&self, blame: Blame, node: &Node) {
        if blame == Blame::Connection {
            self.client.core().pool.discard(node);
        }
    }

    /// The ticket for the next attempt: the same one, unless it is of another shard than the key by now.
    async fn renewed(&self, ticket: Option<Ticket>, slot: Slot, key: &Bytes) -> Result<Ticket> {
        match ticket {
            Some(ticket) if !self.may_have_happened() => {
                let shard = self.client.core().knowledge.shard_of(slot);
                if ticket.shard() == shard { Ok(ticket) } else { self.ticket(slot, key).await }
            }
            // Another session would not know of the earlier attempt: the shard of this one has to tell.
            Some(ticket) => Ok(ticket),
            None => self.ticket(slot, key).await,
        }
    }

    /// What follows from the refusal of a session.
    pub(crate) fn without_session(&self, ticket: Option<&Ticket>, slot: Option<Slot>, failure: &Failure) {
        if let Some(ticket) = ticket
            && failure.code != Code::InvalidArgument
        {
            ticket.expired();
        } else if let Some(slot) = slot {
            // It is one of another shard than the key's: opening by key tells which.
            self.client.core().knowledge.owns(slot, 0);
            self.client.core().knowledge.outdated();
        }
    }

    async fn attempt(
        &self,
        node: &Node,
        slot: Option<Slot>,
        operation: &Operation,
    ) -> std::result::Result<batch_result::Result, Miss> {
        let limit = self.attempt_deadline();
        if self.client.core().streams
            && let Some(stream) = node.stream()
        {
            let shard = slot.map_or(0, |slot| self.client.core().knowledge.shard_of(slot));
            let ended = match stream.send(operation, shard, limit) {
                Ok(answer) => {
                    drop(stream);
                    answer.await.unwrap_or(Ended::GONE)
                }
                Err(NotTaken::Full(place)) => {
                    drop(stream);
                    place.send(operation, limit, || self.attempt_deadline()).await
                }
                Err(NotTaken::Over) => return Err(Miss::Moved(Box::new(self.not_sent(node)), Blame::Nobody)),
            };
            return self.judge(node, ended);
        }
        match timeout_at(limit, self.unary_attempt(node, operation.clone())).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => {
                let failure = self.failure_of(node, &status);
                Err(blamed(failure))
            }
            Err(_) => Err(Miss::Failed(Box::new(self.silence_of(node)), Blame::Nobody)),
        }
    }

    fn judge(&self, node: &Node, ended: Ended) -> std::result::Result<batch_result::Result, Miss> {
        let of = |status: &Arc<Status>| self.failure_of(node, status);
        let local =
            |cause, message| Failure::local(self.plan.operation, Some(node.address()), cause, message);
        match ended {
            Ended::Answered(batch_result::Result::Failure(part)) => {
                let failure = Failure::of_part(self.plan.operation, node.address(), part);
                Err(Miss::Failed(Box::new(failure), Blame::Nobody))
            }
            Ended::Answered(answer) => Ok(answer),
            Ended::Late { sent: true } => Err(Miss::Failed(Box::new(self.silence_of(node)), Blame::Nobody)),
            Ended::Late { sent: false } => {
                let failure = local(Cause::NotApplied, "not sent until the deadline: too much was under way");
                Err(Miss::Failed(Box::new(failure), Blame::Nobody))
            }
            Ended::Broken { why: Why::NotOpened(status), .. } if status.code() == Code::Unimplemented => {
                Err(Miss::UnaryOnly)
            }
            // What the node said of the stream holds for everything that was meant for it.
            Ended::Broken { why: Why::NotOpened(status), sent: true } => Err(blamed(of(&status))),
            Ended::Broken { why: Why::NotOpened(status), sent: false } => {
                let failure = of(&status);
                match failure.cause() {
                    Cause::Lost | Cause::OutcomeUnknown | Cause::Bug | Cause::DataLoss => {
                        Err(blamed(failure.with_cause(Cause::NotSent)))
                    }
                    _ => Err(blamed(failure)),
                }
            }
            Ended::Broken { sent: false, .. } => {
                Err(Miss::Moved(Box::new(self.not_sent(node)), Blame::Nobody))
            }
            Ended::Broken { why: Why::Broke(status), sent: true } => {
                let failure = of(&status);
                match failure.cause() {
                    // A node that ends a stream by itself answers first what it took, and says so.
                    Cause::NotApplied => Err(Miss::Moved(Box::new(failure), Blame::Nobody)),
                    _ => Err(blamed(failure.with_cause(Cause::Lost))),
                }
            }
            Ended::Broken { why: Why::Over, sent: true } => {
                let failure = local(Cause::Lost, "the stream ended before the answer came");
                Err(Miss::Failed(Box::new(failure), Blame::Nobody))
            }
        }
    }

    fn not_sent(&self, node: &Node) -> Failure {
        let message = "the stream ended before this was sent";
        Failure::local(self.plan.operation, Some(node.address()), Cause::NotSent, message)
    }

    /// A call of its own.
    async fn unary_attempt(
        &self,
        node: &Node,
        operation: Operation,
    ) -> std::result::Result<batch_result::Result, Status> {
        use batch_result::Result as Answer;
        let mut kv = node.kv();
        Ok(match operation {
            Operation::Put(put) => Answer::Put(kv.put(self.request(put)).await?.into_inner()),
            Operation::Get(get) => Answer::Get(kv.get(self.request(get)).await?.into_inner()),
            Operation::Delete(delete) => Answer::Delete(kv.delete(self.request(delete)).await?.into_inner()),
            Operation::Txn(txn) => Answer::Txn(kv.txn(self.request(txn)).await?.into_inner()),
        })
    }

    /// How long this attempt may wait. What may be repeated leaves time to ask somebody else.
    fn attempt_deadline(&self) -> Instant {
        self.patience(self.plan.kind != Kind::Write)
    }
}

/// A failure without a word of ours is the connection's.
fn blamed(failure: Failure) -> Miss {
    if failure.cause() == Cause::NotSent {
        return Miss::Moved(Box::new(failure), Blame::Connection);
    }
    let is_foreign = failure.reason.is_none() && matches!(failure.code, Code::Unavailable | Code::Unknown);
    Miss::Failed(Box::new(failure), if is_foreign { Blame::Connection } else { Blame::Nobody })
}

/// Writes the stamp of an attempt into a write.
fn stamp(operation: &mut Operation, stamp: Stamp) {
    let Stamp { session_id, sequence, lowest_outstanding } = stamp;
    let fields = match operation {
        Operation::Put(put) => (&mut put.session_id, &mut put.sequence, &mut put.lowest_outstanding),
        Operation::Delete(delete) => {
            (&mut delete.session_id, &mut delete.sequence, &mut delete.lowest_outstanding)
        }
        Operation::Txn(txn) => (&mut txn.session_id, &mut txn.sequence, &mut txn.lowest_outstanding),
        Operation::Get(_) => return,
    };
    (*fields.0, *fields.1, *fields.2) = (session_id, sequence, lowest_outstanding);
}

fn header_of(answer: &batch_result::Result) -> Option<&proto::ResponseHeader> {
    match answer {
        batch_result::Result::Put(put) => put.header.as_ref(),
        batch_result::Result::Get(get) => get.header.as_ref(),
        batch_result::Result::Delete(delete) => delete.header.as_ref(),
        batch_result::Result::Txn(txn) => txn.header.as_ref(),
        batch_result::Result::Failure(_) => None,
    }
}

/// The node answered another question.
pub(crate) fn mismatch(operation: &'static str) -> Error {
    Error::protocol(operation, "the answer is one to another operation")
}
