//! Append requests of one stream on their way into a local replica.
//!
//! Bounded in frames and bytes: a request that does not fit resets its stream, and nothing else. The replica takes
//! them in order through openraft's own stream, so that several flushes of its log overlap; answers go back in
//! the same order.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use futures::{Stream, StreamExt, stream};
use kv_proto::peer::v1::{AppendRequest, frame::Body, refusal};
use openraft::{Raft, raft::AppendEntriesRequest, storage::RaftStateMachine};
use openraft_rt::AsyncRuntime;
use prometheus_client::metrics::gauge::Gauge;
use prost::Message;
use tokio::sync::mpsc;

use super::{
    answers::Reply,
    codec::{LogId, decode_append_request, encode_append_result, last_of},
    replica::Gone,
    session::{Sequence, StreamNumber},
};
use crate::group::type_config::TypeConfig;

/// The sending end, in the hands of the connection.
pub(super) struct Inbox {
    stream: StreamNumber,
    newest: Sequence,
    requests: Option<mpsc::Sender<(Reply, AppendRequest)>>,
    bytes: Arc<AtomicUsize>,
    bound_bytes: usize,
    waiting: Gauge,
}

/// The receiving end, in the hands of the replica.
pub(super) struct Requests {
    queue: mpsc::Receiver<(Reply, AppendRequest)>,
    bytes: Arc<AtomicUsize>,
    waiting: Gauge,
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.queue.close();
        while self.queue.try_recv().is_ok() {
            self.waiting.dec();
        }
    }
}

/// What became of a request that was put into an inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    Taken,
    /// It came twice, or too late.
    Stale,
    /// The inbox is full: the stream is reset.
    Overflow,
    /// The stream was reset, or has failed.
    Ended,
}

impl Inbox {
    /// An inbox for a stream, and what its replica reads.
    #[cfg(test)]
    fn open(stream: StreamNumber, bound_frames: usize, bound_bytes: usize) -> (Self, Requests) {
        Self::open_counted(stream, (bound_frames, bound_bytes), Gauge::default())
    }

    /// An inbox for a stream, and what its replica reads. It holds at most so many frames and bytes; `waiting` counts
    /// the frames in all of them.
    pub(super) fn open_counted(
        stream: StreamNumber,
        (bound_frames, bound_bytes): (usize, usize),
        waiting: Gauge,
    ) -> (Self, Requests) {
        let (requests, queue) = mpsc::channel(bound_frames.max(1));
        let bytes = Arc::new(AtomicUsize::new(0));
        let inbox = Self {
            stream,
            newest: Sequence::NONE,
            requests: Some(requests),
            bytes: bytes.clone(),
            bound_bytes,
            waiting: waiting.clone(),
        };
        (inbox, Requests { queue, bytes, waiting })
    }

    pub(super) fn stream(&self) -> StreamNumber {
        self.stream
    }

    /// Lets the replica finish what is there; nothing more comes.
    pub(super) fn close(&mut self) {
        self.requests = None;
    }

    /// Puts a request at the end. `reply` makes its reply, unless it is stale.
    pub(super) fn put(
        &mut self,
        sequence: Sequence,
        request: AppendRequest,
        reply: impl FnOnce() -> Reply,
    ) -> Put {
        if sequence <= self.newest {
            return Put::Stale;
        }
        self.newest = sequence;
        let bytes = request.encoded_len();
        let waiting = self.bytes.load(Relaxed);
        let fits = waiting == 0 || waiting + bytes <= self.bound_bytes;
        let put = match self.requests.as_ref().map(mpsc::Sender::try_reserve) {
            Some(Ok(permit)) if fits => {
                self.bytes.fetch_add(bytes, Relaxed);
                self.waiting.inc();
                permit.send((reply(), request));
                return Put::Taken;
            }
            Some(Ok(_) | Err(mpsc::error::TrySendError::Full(()))) => Put::Overflow,
            Some(Err(mpsc::error::TrySendError::Closed(()))) | None => Put::Ended,
        };
        self.close();
        let (kind, reason) = match put {
            Put::Overflow => (refusal::Kind::ResourceExhausted, "REPLICA_INBOX"),
            Put::Taken | Put::Stale | Put::Ended => (refusal::Kind::NotApplied, "STREAM_ENDED"),
        };
        reply().refuse(kind, reason, "the stream takes no more requests");
        put
    }
}

impl Requests {
    async fn next(&mut self) -> Option<(Reply, AppendRequest)> {
        let (reply, request) = self.queue.recv().await?;
        self.waiting.dec();
        self.bytes.fetch_sub(request.encoded_len(), Relaxed);
        Some((reply, request))
    }
}

/// Replies in the order of their requests, with the last entry of each.
type Waiting = Arc<Mutex<VecDeque<(Reply, Option<LogId>)>>>;

/// Feeds the requests of one stream to a replica, until either ends or the replica is `gone`: then it neither gets
/// nor says anything more. Both ends are cut, since openraft reads the requests in a task of its own.
pub(super) async fn feed<RT, SM>(raft: Raft<TypeConfig<RT>, SM>, requests: Requests, gone: Gone)
where
    RT: AsyncRuntime,
    SM: RaftStateMachine<TypeConfig<RT>>,
{
    let waiting = Waiting::default();
    let requests = decoded::<RT>(requests, waiting.clone()).take_until(gone.clone());
    let mut results = pin!(raft.stream_append(requests).take_until(gone));
    while let Some(result) = results.next().await {
        let first = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some((reply, last)) = first else { return };
        match result {
            Ok(result) => reply.send(Body::AppendResponse(encode_append_result::<RT>(&result, last))),
            Err(fatal) => {
                return reply.refuse(refusal::Kind::NotApplied, "REPLICA_STOPPED", fatal.to_string());
            }
        }
    }
}

/// The requests as openraft reads them. One that no leader can have sent is refused and ends the stream.
fn decoded<RT: AsyncRuntime>(
    requests: Requests,
    waiting: Waiting,
) -> impl Stream<Item = AppendEntriesRequest<TypeConfig<RT>>> + Send + 'static {
    stream::unfold((requests, waiting), |(mut requests, waiting)| async move {
        let (reply, request) = requests.next().await?;
        let last = last_of(&request);
        match decode_append_request::<RT>(request) {
            Ok(request) => {
                waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back((reply, last));
                Some((request, (requests, waiting)))
            }
            Err(error) => {
                reply.refuse(refusal::Kind::InvalidArgument, "INVALID_APPEND", error.to_string());
                None
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use kv_proto::peer::v1::Frame;

    use super::*;
    use crate::transport::{answers::Answers, limits::Limits, outbox::Class};

    fn reply() -> Reply {
        let answers = Arc::new(Answers::new(Arc::new(Limits::default())));
        Reply::to(&Frame { sequence: 1, ..Frame::default() }, Class::Append, &answers)
    }

    #[test]
    fn an_overflow_resets_the_stream_for_good() {
        let (mut inbox, _requests) = Inbox::open(StreamNumber(1), 2, usize::MAX);
        let mut put = |sequence| inbox.put(Sequence(sequence), AppendRequest::default(), reply);
        assert_eq!([put(1), put(2), put(3), put(4)], [Put::Taken, Put::Taken, Put::Overflow, Put::Ended]);
    }

    #[tokio::test]
    async fn bytes_are_bounded_and_given_back() {
        let large = || {
            let entry = kv_proto::disk::v1::LogEntry {
                log_id: None,
                payload: Some(kv_proto::disk::v1::log_entry::Payload::Proposal(vec![0; 600].into())),
            };
            AppendRequest { entries: vec![entry], ..AppendRequest::default() }
        };
        let (mut inbox, mut requests) = Inbox::open(StreamNumber(1), 10, 1000);
        assert_eq!(inbox.put(Sequence(1), large(), reply), Put::Taken);
        assert!(requests.next().await.is_some());
        assert_eq!(inbox.put(Sequence(2), large(), reply), Put::Taken);
        assert_eq!(inbox.put(Sequence(3), large(), reply), Put::Overflow);
    }

    #[test]
    fn what_came_before_is_stale() {
        let (mut inbox, requests) = Inbox::open(StreamNumber(1), 10, 1000);
        assert_eq!(inbox.put(Sequence(5), AppendRequest::default(), reply), Put::Taken);
        assert_eq!(inbox.put(Sequence(5), AppendRequest::default(), reply), Put::Stale);
        assert_eq!(inbox.put(Sequence(4), AppendRequest::default(), reply), Put::Stale);
        drop(requests);
        assert_eq!(inbox.put(Sequence(6), AppendRequest::default(), reply), Put::Ended);
    }
}
