//! The sending side of a snapshot.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, PoisonError},
    time::Duration,
};

use kv_proto::peer::v1::{SnapshotAccept, SnapshotChunk, frame::Body, refusal};
use kv_topology::{Generation, ReplicaId};
use prometheus_client::metrics::counter::Counter;
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, sleep_until, timeout},
};

use super::{
    call::{CallError, refusal},
    codec::{CodecError, Vote, decode_done, encode_offer},
    limits::Limits,
    link::{Address, Answer, Link, Request},
    outbox::Class,
    pace::Pace,
    session::StreamNumber,
    snapshot::SnapshotOut,
};

/// What the snapshots that a node sends share.
pub(super) struct Outgoing {
    pub(super) places: Arc<Semaphore>,
    pub(super) pace: std::sync::Mutex<Pace>,
    sent_bytes: Counter,
}

impl Outgoing {
    pub(super) fn new(limits: &Limits, sent_bytes: Counter) -> Self {
        let places = Arc::new(Semaphore::new(limits.snapshots_out));
        let pace = std::sync::Mutex::new(Pace::new(limits.snapshot_bytes_per_second));
        Self { places, pace, sent_bytes }
    }

    async fn paced(&self, bytes: usize) {
        let at = {
            let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.book(Instant::now(), bytes as u64)
        };
        sleep_until(at).await;
        self.sent_bytes.inc_by(bytes as u64);
    }
}

/// Why a snapshot did not arrive.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the snapshot cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("the snapshot ended without its last chunk")]
    Incomplete,
    #[error("the snapshot made no progress for {0:?}")]
    Idle(Duration),
    #[error("the receiver answered with something else")]
    Unexpected,
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// A transfer to one replica. Dropping it tells the receiver that it is given up.
pub(super) struct Sending {
    link: Arc<Link>,
    limits: Arc<Limits>,
    address: Address,
    stream: StreamNumber,
    over: bool,
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.over {
            let body = refusal(refusal::Kind::NotApplied, "TRANSFER_ENDED", "the sender gave it up");
            self.link.tell(self.request(body, Duration::ZERO));
        }
    }
}

impl Sending {
    pub(super) fn new(link: Arc<Link>, limits: Arc<Limits>, address: Address) -> Self {
        let stream = link.new_stream();
        Self { link, limits, address, stream, over: false }
    }

    /// Sends the whole snapshot and returns the receiver's vote.
    pub(super) async fn send<S: SnapshotOut>(
        mut self,
        outgoing: &Outgoing,
        vote: &Vote,
        snapshots: &S,
        data: S::Data,
    ) -> Result<Vote, SendError> {
        let offer = self.ask(Body::SnapshotOffer(encode_offer(vote)), self.limits.snapshot_idle)?;
        let generation = match answered(offer).await? {
            Body::SnapshotAccept(SnapshotAccept { generation }) => Generation(generation),
            Body::SnapshotDone(done) => return Ok(decode_done(&done)?),
            _ => return Err(SendError::Unexpected),
        };
        let mut chunks = snapshots.stream(data, ReplicaId(self.address.to_replica), generation);
        let mut acks: VecDeque<Answer> = VecDeque::new();
        loop {
            let chunk = self.next_chunk(&mut chunks).await?;
            outgoing.paced(chunk.data.len()).await;
            if acks.len() >= self.limits.snapshot_window
                && let Some(ack) = acks.pop_front()
                && let Some(vote) = acknowledged(ack).await?
            {
                return Ok(vote);
            }
            let is_last = chunk.end.is_some();
            let patience = if is_last { self.limits.snapshot_install } else { self.limits.snapshot_idle };
            acks.push_back(self.ask(Body::SnapshotChunk(chunk), patience)?);
            if is_last {
                break;
            }
        }
        for ack in acks {
            if let Some(vote) = acknowledged(ack).await? {
                self.over = true;
                return Ok(vote);
            }
        }
        Err(SendError::Unexpected)
    }

    async fn next_chunk(
        &self,
        chunks: &mut mpsc::Receiver<io::Result<SnapshotChunk>>,
    ) -> Result<SnapshotChunk, SendError> {
        match timeout(self.limits.snapshot_idle, chunks.recv()).await {
            Ok(Some(chunk)) => Ok(chunk?),
            Ok(None) => Err(SendError::Incomplete),
            Err(_) => Err(SendError::Idle(self.limits.snapshot_idle)),
        }
    }

    fn ask(&self, body: Body, patience: Duration) -> Result<Answer, CallError> {
        self.link.ask(self.request(body, patience))
    }

    fn request(&self, body: Body, patience: Duration) -> Request {
        Request {
            address: self.address,
            stream: self.stream,
            class: Class::Request,
            deadline: Instant::now() + patience,
            body,
        }
    }
}

async fn answered(answer: Answer) -> Result<Body, CallError> {
    answer.await.unwrap_or(Err(CallError::OutcomeUnknown))
}

/// The receiver's vote, once it is done.
async fn acknowledged(answer: Answer) -> Result<Option<Vote>, SendError> {
    match answered(answer).await? {
        Body::SnapshotChunkAck(_) => Ok(None),
        Body::SnapshotDone(done) => Ok(Some(decode_done(&done)?)),
        _ => Err(SendError::Unexpected),
    }
}
