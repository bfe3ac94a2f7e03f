//! Where the frames of one accepted connection go.
//!
//! Never waits: a frame is handed on or refused, so that the shared stream goes on whatever one replica does. Votes
//! and heartbeats are answered side by side and never queue behind appends; the appends of a stream go to one
//! inbox, in order; the chunks of a snapshot to its transfer; everything else to the handler.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use kv_proto::disk::v1::log_entry::Payload;
use kv_proto::peer::v1::{
    AppendRequest, Frame, SnapshotChunk, SnapshotOffer, control_request, frame::Body, refusal,
};
use kv_topology::{GroupId, NodeId, ReplicaId};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Semaphore, mpsc};

use super::{
    answers::{Answers, Reply},
    codec::decode_offer,
    crew::Crew,
    handler::DynHandler,
    inbox::{Inbox, Put},
    limits::Limits,
    outbox::Class,
    peers::Peer,
    replica::Registry,
    session::{Seen, Sequence, StreamNumber},
    snapshot_in::Transfer,
};
use crate::{metrics::LinkMetrics, runtime::Spawner};

/// What all connections share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) limits: Arc<Limits>,
    pub(super) registry: Arc<Registry>,
    pub(super) handler: Arc<dyn DynHandler>,
    pub(super) snapshots_in: Arc<Semaphore>,
    pub(super) metrics: LinkMetrics,
}

/// The frames of one connection.
pub(super) struct Dispatch {
    from: NodeId,
    peer: Arc<Peer>,
    shared: Shared,
    spawner: Spawner,
    answers: Arc<Answers>,
    urgent: Crew,
    requests: Crew,
    questions: Crew,
    seen: Seen,
    /// By sender and receiver: a newer stream takes the place of an older one.
    inboxes: BTreeMap<(ReplicaId, ReplicaId), Inbox>,
    transfers: BTreeMap<StreamNumber, mpsc::Sender<(Reply, SnapshotChunk)>>,
}

/// A request while it is handled, counted until it is dropped.
struct InHand(Gauge);

impl InHand {
    fn new(length: Gauge) -> Self {
        length.inc();
        Self(length)
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Streams of appends that one connection may have: a leader opens one to each replica that it feeds.
const INBOXES: usize = 4096;

/// The asker knows only of a meta group that was given up.
const META_WAS_RECOVERED: &str = "META_WAS_RECOVERED";

/// Whether it asks for something that a replica here answers.
fn is_for_a_shard(frame: &Frame) -> bool {
    matches!(&frame.body, Some(Body::ReadIndexRequest(_) | Body::WriteRequest(_) | Body::ReadRequest(_)))
}

/// Whether it asks for a change that only meta may wish.
fn is_step(frame: &Frame) -> bool {
    let Some(Body::ControlRequest(request)) = &frame.body else { return false };
    match &request.request {
        Some(
            control_request::Request::CreateReplica(_)
            | control_request::Request::InitializeGroup(_)
            | control_request::Request::AddLearner(_)
            | control_request::Request::ChangeVoters(_)
            | control_request::Request::RemoveLearner(_)
            | control_request::Request::TransferLeader(_)
            | control_request::Request::HandOver(_),
        ) => true,
        // By asking it hears of it.
        Some(
            control_request::Request::FetchMap(_)
            | control_request::Request::DescribeGroup(_)
            | control_request::Request::DescribeNode(_),
        )
        | None => false,
    }
}

impl Dispatch {
    pub(super) fn new(
        (from, peer): (NodeId, Arc<Peer>),
        shared: Shared,
        spawner: Spawner,
        answers: Arc<Answers>,
    ) -> Self {
        let urgent = Crew::hire(&spawner, "peer votes", shared.limits.urgent_in_hand);
        let requests = Crew::hire(&spawner, "peer requests", shared.limits.requests_in_hand);
        let questions = Crew::hire(&spawner, "peer questions", shared.limits.questions_in_hand);
        let (seen, inboxes, transfers) = Default::default();
        Self { from, peer, shared, spawner, answers, urgent, requests, questions, seen, inboxes, transfers }
    }

    /// Hands one frame on.
    pub(super) fn deliver(&mut self, mut frame: Frame) {
        let alone = frame.stream == StreamNumber::ALONE.0;
        match frame.body.take() {
            Some(body @ (Body::VoteRequest(_) | Body::PreVoteRequest(_) | Body::TransferRequest(_))) => {
                self.answer_urgent(&frame, body);
            }
            Some(body @ Body::AppendRequest(_)) if alone => self.answer_urgent(&frame, body),
            Some(Body::AppendRequest(request)) => self.append(&frame, request),
            Some(
                body @ (Body::ReadIndexRequest(_)
                | Body::WriteRequest(_)
                | Body::ReadRequest(_)
                | Body::ControlRequest(_)),
            ) => {
                frame.body = Some(body);
                self.handle(frame);
            }
            Some(Body::SnapshotOffer(offer)) if !alone => self.offer(&frame, &offer),
            Some(Body::SnapshotChunk(chunk)) if !alone => self.chunk(&frame, chunk),
            Some(Body::Refusal(_)) if !alone => self.give_up(&frame),
            _ => {
                let (kind, reason) = (refusal::Kind::InvalidArgument, "UNEXPECTED_FRAME");
                self.reply(&frame, Class::Request).refuse(
                    kind,
                    reason,
                    "not a request that this version knows",
                );
            }
        }
    }

    fn reply(&self, request: &Frame, class: Class) -> Reply {
        Reply::to(request, class, &self.answers)
    }

    fn answer_urgent(&self, frame: &Frame, body: Body) {
        let reply = self.reply(frame, Class::Urgent);
        let replica = match self.shared.registry.find(GroupId(frame.group_id), ReplicaId(frame.to_replica)) {
            Ok(replica) => replica,
            Err(answer) => return reply.send(*answer),
        };
        if let Some(refused) = self.shared.registry.refusal_to_lead(ReplicaId(frame.to_replica), &body) {
            return reply.send(refused);
        }
        match self.urgent.place() {
            Ok(place) => place.run(async move { reply.send(replica.answer(body).await) }),
            Err(_) => {
                reply.refuse(refusal::Kind::ResourceExhausted, "URGENT_IN_HAND", "too many votes at once");
            }
        }
    }

    fn handle(&mut self, frame: Frame) {
        // Done twice, a forwarded write would be applied twice.
        if !self.seen.is_new(frame.session, Sequence(frame.sequence)) {
            tracing::debug!(node = self.from.0, sequence = frame.sequence, "a repeated request is dropped");
            return;
        }
        let reply = self.reply(&frame, Class::Request);
        if self.peer.is_behind() && is_step(&frame) {
            let message =
                "meta was recovered, and this node has not heard of it: it decides nothing any more";
            return reply.refuse(refusal::Kind::FailedPrecondition, META_WAS_RECOVERED, message);
        }
        if self.peer.is_ahead() && is_for_a_shard(&frame) {
            let message = "meta was recovered, and this node has not heard what of its replicas was given up";
            return reply.refuse(refusal::Kind::NotApplied, crate::refusal::STARTING, message);
        }
        let (handler, from) = (self.shared.handler.clone(), self.from);
        let (crew, length) = match &frame.body {
            Some(Body::ReadIndexRequest(_)) => (&self.questions, None),
            _ => (&self.requests, Some(self.shared.metrics.requests.length.clone())),
        };
        match crew.place() {
            Ok(place) => {
                let (in_hand, peer) = (length.map(InHand::new), self.peer.clone());
                place.run(async move {
                    let _in_hand = in_hand;
                    let answer = handler.handle(from, frame).await;
                    let is_index = matches!(answer, Body::ReadIndexResponse(_));
                    reply.send(answer);
                    if is_index {
                        // It goes on when it has applied what it was told of.
                        peer.wishes.make();
                    }
                });
            }
            Err(_) => {
                self.shared.metrics.requests.refused.inc();
                reply.refuse(
                    refusal::Kind::ResourceExhausted,
                    "REQUESTS_IN_HAND",
                    "too many requests at once",
                );
            }
        }
    }

    fn append(&mut self, frame: &Frame, request: AppendRequest) {
        let (stream, sequence) = (StreamNumber(frame.stream), Sequence(frame.sequence));
        let key = (ReplicaId(frame.from_replica), ReplicaId(frame.to_replica));
        if self.peer.own_disk_is_full() && self.brings_proposals(frame, &request) {
            // The stream ends here: what comes after in it does not follow what is on disk.
            if let Some(inbox) = self.inboxes.get_mut(&key).filter(|inbox| inbox.stream() <= stream) {
                inbox.close();
            }
            return self.refuse_for_space(frame, Class::Append);
        }
        let current = self.inboxes.get(&key).map(Inbox::stream);
        if current.is_none_or(|current| current < stream)
            && let Err(answer) = self.open_inbox(key, GroupId(frame.group_id), stream)
        {
            return self.reply(frame, Class::Append).send(*answer);
        }
        let answers = &self.answers;
        let reply = || Reply::to(frame, Class::Append, answers);
        match self.inboxes.get_mut(&key).filter(|inbox| inbox.stream() == stream) {
            None => {
                reply().refuse(refusal::Kind::NotApplied, "STREAM_ENDED", "a newer stream took its place");
            }
            Some(inbox) => {
                if inbox.put(sequence, request, reply) == Put::Overflow {
                    self.peer.inbox_overflows.fetch_add(1, Relaxed);
                    self.shared.metrics.inbox.refused.inc();
                }
            }
        }
    }

    /// Whether there are writes in it that the replica does not have yet. What a group needs to find a leader and its
    /// members is small, and without it reads would end too; a new leader looks for the end of the log from behind.
    fn brings_proposals(&self, frame: &Frame, request: &AppendRequest) -> bool {
        let replica = self.shared.registry.find(GroupId(frame.group_id), ReplicaId(frame.to_replica));
        let last = replica.map_or(0, |replica| replica.last_index());
        request.entries.iter().any(|entry| {
            let is_new = entry.log_id.is_none_or(|id| id.index > last);
            is_new && matches!(entry.payload, Some(Payload::Proposal(_)))
        })
    }

    fn refuse_for_space(&self, frame: &Frame, class: Class) {
        let kind = refusal::Kind::ResourceExhausted;
        self.reply(frame, class).refuse(kind, crate::refusal::DISK_FULL, "the disk of this node is full");
    }

    fn open_inbox(
        &mut self,
        key: (ReplicaId, ReplicaId),
        group: GroupId,
        stream: StreamNumber,
    ) -> Result<(), Box<Body>> {
        let replica = self.shared.registry.find(group, key.1)?;
        if self.inboxes.len() >= INBOXES && !self.inboxes.contains_key(&key) {
            let kind = refusal::Kind::ResourceExhausted;
            return Err(Box::new(super::call::refusal(kind, "INBOXES", "too many append streams")));
        }
        let limits = &self.shared.limits;
        let bounds = (limits.inbox_frames, limits.inbox_bytes);
        let waiting = self.shared.metrics.inbox.length.clone();
        let (inbox, requests) = Inbox::open_counted(stream, bounds, waiting);
        self.spawner.spawn("replica appends", replica.append(requests));
        self.inboxes.insert(key, inbox);
        Ok(())
    }

    fn offer(&mut self, frame: &Frame, offer: &SnapshotOffer) {
        self.transfers.retain(|_, chunks| !chunks.is_closed());
        let stream = StreamNumber(frame.stream);
        if self.transfers.contains_key(&stream) {
            return;
        }
        if self.peer.own_disk_is_full() {
            return self.refuse_for_space(frame, Class::Request);
        }
        let reply = self.reply(frame, Class::Request);
        let replica = match self.shared.registry.find(GroupId(frame.group_id), ReplicaId(frame.to_replica)) {
            Ok(replica) => replica,
            Err(answer) => return reply.send(*answer),
        };
        let vote = match decode_offer(offer) {
            Ok(vote) => vote,
            Err(error) => {
                return reply.refuse(refusal::Kind::InvalidArgument, "MALFORMED", error.to_string());
            }
        };
        let Ok(permit) = self.shared.snapshots_in.clone().try_acquire_owned() else {
            let (kind, reason) = (refusal::Kind::ResourceExhausted, "SNAPSHOTS_IN");
            return reply.refuse(kind, reason, "this node receives as many snapshots as it may");
        };
        let (chunks, queue) = mpsc::channel(self.shared.limits.snapshot_window + 1);
        let idle = self.shared.limits.snapshot_idle;
        let received_bytes = self.shared.metrics.transport.snapshot_received_bytes.clone();
        let transfer = Transfer { offer: reply, chunks: queue, idle, permit, received_bytes };
        self.spawner.spawn("snapshot in", replica.receive(vote, transfer));
        self.transfers.insert(stream, chunks);
    }

    fn chunk(&mut self, frame: &Frame, chunk: SnapshotChunk) {
        let reply = self.reply(frame, Class::Request);
        let Some(chunks) = self.transfers.get(&StreamNumber(frame.stream)) else {
            return reply.refuse(refusal::Kind::NotApplied, "TRANSFER_ENDED", "no such transfer");
        };
        match chunks.try_send((reply, chunk)) {
            Ok(()) => {}
            // Dropping the queue's sending end resets the transfer.
            Err(mpsc::error::TrySendError::Full((reply, _))) => {
                self.transfers.remove(&StreamNumber(frame.stream));
                reply.refuse(
                    refusal::Kind::ResourceExhausted,
                    "SNAPSHOT_WINDOW",
                    "more chunks than the window",
                );
            }
            Err(mpsc::error::TrySendError::Closed((reply, _))) => {
                reply.refuse(refusal::Kind::NotApplied, "TRANSFER_ENDED", "the receiver gave it up");
            }
        }
    }

    /// The asker gave up a stream: its inbox takes nothing more, its transfer ends.
    fn give_up(&mut self, frame: &Frame) {
        let (stream, key) =
            (StreamNumber(frame.stream), (ReplicaId(frame.from_replica), ReplicaId(frame.to_replica)));
        self.transfers.remove(&stream);
        if let Some(inbox) = self.inboxes.get_mut(&key).filter(|inbox| inbox.stream() == stream) {
            inbox.close();
        }
    }
}
