//! The way back: answers to the requests of one accepted connection.
//!
//! Whoever holds a request of a peer holds its [`Reply`], and every request is answered: a reply that is dropped unused
//! says so to the asker. Answers collect in an outbox and go out in batches like requests do. A peer that asks
//! and does not read ends its own connection.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kv_proto::peer::v1::{Frame, FrameBatch, frame::Body, refusal};
use kv_topology::NodeId;
use prost::Message;
use tokio::sync::{Notify, mpsc};

use super::{
    call::refusal,
    conduit::{Broken, Lane},
    identity::{Identity, Refused},
    limits::Limits,
    outbox::{Class, Outbox},
    peers::Peer,
    session::{Sequence, answer_to},
};

/// Collects the answers of one connection.
pub(super) struct Answers {
    limits: Arc<Limits>,
    state: Mutex<State>,
    wake: Notify,
}

struct State {
    outbox: Outbox,
    /// Keep-alive questions to answer.
    alive: usize,
    overflowed: bool,
}

impl Answers {
    pub(super) fn new(limits: Arc<Limits>) -> Self {
        let outbox = Outbox::new(limits.queued_frames, limits.queued_bytes);
        let state = State { outbox, alive: 0, overflowed: false };
        Self { limits, state: Mutex::new(state), wake: Notify::new() }
    }

    /// Answers that this node is alive.
    pub(super) fn alive(&self) {
        self.state().alive += 1;
        self.wake.notify_one();
    }

    fn put(&self, class: Class, mut frame: Frame) {
        if frame.sequence == Sequence::NONE.0 {
            return;
        }
        let mut bytes = frame.encoded_len();
        if bytes > self.limits.largest_frame() {
            frame.body = Some(too_large(frame.body.as_ref(), bytes));
            bytes = frame.encoded_len();
        }
        let mut state = self.state();
        state.overflowed |= state.outbox.push(class, frame, bytes).is_err();
        drop(state);
        self.wake.notify_one();
    }

    /// Writes answers to `to` until the connection ends.
    pub(super) async fn write(
        &self,
        outbound: &mpsc::Sender<Result<FrameBatch, Refused>>,
        (identity, to): (&Identity, NodeId),
        (peer, lane): (&Peer, Lane),
    ) -> Broken {
        loop {
            self.something_waits().await;
            let Ok(permit) = outbound.reserve().await else { return Broken::Ended };
            let frames = {
                let mut state = self.state();
                if state.overflowed {
                    return Broken::Stream("the peer does not read its answers".into());
                }
                if state.alive > 0 {
                    state.alive -= 1;
                    vec![]
                } else {
                    state.outbox.take(self.limits.batch_bytes, |_| true)
                }
            };
            permit.send(Ok(peer.sends(lane, identity.seal(to, frames))));
        }
    }

    async fn something_waits(&self) {
        loop {
            let wake = self.wake.notified();
            {
                let state = self.state();
                if state.alive > 0 || state.overflowed || !state.outbox.is_empty() {
                    return;
                }
            }
            wake.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers one request, exactly once.
pub(super) struct Reply {
    answers: Arc<Answers>,
    class: Class,
    /// The answer without its body; `None` once it was given.
    frame: Option<Frame>,
}

impl Reply {
    pub(super) fn to(request: &Frame, class: Class, answers: &Arc<Answers>) -> Self {
        Self { answers: answers.clone(), class, frame: Some(answer_to(request)) }
    }

    pub(super) fn send(mut self, body: Body) {
        self.give(body);
    }

    pub(super) fn refuse(self, kind: refusal::Kind, reason: &str, message: impl Into<String>) {
        self.send(refusal(kind, reason, message));
    }

    fn give(&mut self, body: Body) {
        if let Some(mut frame) = self.frame.take() {
            frame.body = Some(body);
            self.answers.put(self.class, frame);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.give(refusal(
            refusal::Kind::OutcomeUnknown,
            "OUTCOME_UNKNOWN",
            "given up before it was answered",
        ));
    }
}
/// Instead of an answer that fits into no frame. Writes were applied: who hears that they were refused sends them again.
fn too_large(body: Option<&Body>, bytes: usize) -> Body {
    let kind = match body {
        Some(Body::WriteResponse(_)) => refusal::Kind::OutcomeUnknown,
        _ => refusal::Kind::ResourceExhausted,
    };
    refusal(kind, "ANSWER_TOO_LARGE", format!("an answer of {bytes} B"))
}

#[cfg(test)]
mod tests {
    use kv_proto::peer::v1::{ReadResponse, WriteResponse};

    use super::*;

    #[test]
    fn a_write_whose_answer_is_too_large_is_not_told_as_refused() {
        let kind = |body: Body| match too_large(Some(&body), 9_000_000) {
            Body::Refusal(refusal) => refusal.kind(),
            other => panic!("{other:?}"),
        };
        assert_eq!(kind(Body::WriteResponse(WriteResponse::default())), refusal::Kind::OutcomeUnknown);
        assert_eq!(kind(Body::ReadResponse(ReadResponse::default())), refusal::Kind::ResourceExhausted);
    }
}
