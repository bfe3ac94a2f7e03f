//! Reads of a replica that pin a moment, read from it, and let go of it: how a download keeps its value.
//!
//! The read of the key opens the pin, so that nothing can happen between the two. Whoever asks for chunks with the pin
//! gets those of its moment; without one that is kept here the caller reads the present state.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use kv_proto::peer::v1::{
    Done, GetKeys, ReadRequest, ReadResponse, ReplyContext, read_request::Read, read_response,
};
use kv_topology::ReplicaId;

use super::{
    hub::{ReplicaReader, busy},
    pins::{Full, Opening, PinId, Pins},
};
use crate::state_machine::reads;

impl ReplicaReader {
    /// Answers a read of a key, and keeps its moment when the value is an uploaded one and there is a place for it.
    pub(super) async fn answer_pinning(&self, id: PinId, request: ReadRequest) -> ReadResponse {
        // Looked at first, since most values need no pin.
        let answer = self.answer_now(request.clone()).await;
        let (pins, replica) = (&self.shared.pins, self.replica.id);
        if !names_an_upload(&answer) {
            return answer;
        }
        let opening = pins.open(replica, id, &self.shared.engine, &self.shared.workers);
        if opening == Opening::Refused {
            return answer;
        }
        // Until somebody hears of it, who then lets go of it.
        let mut unheard = Unheard { opened: opening == Opening::Opened, pins: pins.clone(), replica, id };
        let Some(pinned) = self.read_pinned(id, request) else { return answer };
        let answer = pinned.await;
        unheard.opened &= !names_an_upload(&answer);
        answer
    }

    /// Answers a read that names a pinned moment: from that moment, or that it is given up. `None`: it names none that is
    /// kept here.
    pub fn pinned(&self, request: &ReadRequest) -> Option<BoxFuture<'static, ReadResponse>> {
        match request.read.as_ref()? {
            Read::Blob(blob) => {
                let id = PinId::try_from(blob.pin.as_ref()?.id.as_ref()).ok()?;
                self.read_pinned(id, request.clone())
            }
            Read::Unpin(unpin) => {
                let id = unpin.pin.as_ref().and_then(|pin| PinId::try_from(pin.id.as_ref()).ok());
                if let Some(id) = id {
                    self.shared.pins.close(self.replica.id, id);
                }
                let context = ReplyContext { shard_id: self.replica.shard.get(), ..ReplyContext::default() };
                let done = Some(read_response::Read::Done(Done {}));
                Some(std::future::ready(ReadResponse { context: Some(context), read: done }).boxed())
            }
            Read::Get(_) | Read::Scan(_) | Read::Meta(_) | Read::Journal(_) => None,
        }
    }

    fn read_pinned(&self, id: PinId, request: ReadRequest) -> Option<BoxFuture<'static, ReadResponse>> {
        let (replica, shard) = (self.replica.id, self.replica.shard);
        let read = move |view: &dyn super::View| reads::Reader::new(view, replica, shard)?.read(&request);
        let answer = self.shared.pins.read(replica, id, read)?;
        let this = self.clone();
        let judged = async move {
            match answer.await {
                Ok(answer) => this.judge(answer),
                Err(full @ Full) => {
                    let refused = read_response::Read::Refusal(busy(full.to_string()));
                    ReadResponse { context: None, read: Some(refused) }
                }
            }
        };
        Some(judged.boxed())
    }
}

/// A pin that nobody has heard of yet. Dropping it gives up what was opened.
struct Unheard {
    opened: bool,
    pins: Arc<Pins>,
    replica: ReplicaId,
    id: PinId,
}

impl Drop for Unheard {
    fn drop(&mut self) {
        if self.opened {
            self.pins.close(self.replica, self.id);
        }
    }
}

/// The id under which the moment of the read shall be kept.
pub(super) fn wanted_pin(request: &ReadRequest) -> Option<PinId> {
    match request.read.as_ref()? {
        Read::Get(GetKeys { keys, pin_id, .. }) if keys.len() == 1 => PinId::try_from(pin_id.as_ref()).ok(),
        Read::Get(_) | Read::Scan(_) | Read::Blob(_) | Read::Unpin(_) | Read::Meta(_) | Read::Journal(_) => {
            None
        }
    }
}

fn names_an_upload(answer: &ReadResponse) -> bool {
    match &answer.read {
        Some(read_response::Read::Get(got)) => got.results.iter().any(|found| !found.upload_id.is_empty()),
        _ => false,
    }
}
