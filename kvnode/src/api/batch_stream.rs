//! The stream `Batch`: small operations, many in a message, answered out of order.
//!
//! A message is judged operation by operation ([`intake`]), what it asks of a shard becomes one call of the store, and
//! what is ready goes out together ([`outbox`]). Nothing is done for an operation that can be done for a message: there is
//! one task for a stream, one timer, and no channel but the one to the transport.
//!
//! All that is decided is decided in [`desk`], which is a value; [`engine`] carries it out. What is under way is bounded by
//! the [`window`], and by what connections, addresses and the node may hold; answers that the client does not take stop the
//! reading of its messages, and large values are let go and read again when there is room for them.
//!
//! A stream ends when its client has ended it and everything is answered; when it is idle, too old, or its node stops; when
//! it breaks the protocol; and when its client takes no answers. All but the last answer first what was taken: then what has
//! no answer surely did not happen, and the status says so by `NOT_APPLIED_` or `INVALID_ARGUMENT`.

pub mod answer;
pub mod desk;
pub mod detached;
pub mod engine;
pub mod intake;
pub mod ledger;
pub mod outbox;
pub mod tally;
pub mod window;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::{FutureExt, Stream, StreamExt, stream};
use kv_proto::kv::v1::{BatchRequest, BatchResponse, BatchWindow};
use tokio::sync::{mpsc, watch};
use tonic::Status;
use tracing::Instrument;

use super::{
    context::Context,
    error::Refused,
    kv::{Caller, Replies},
    limits::{
        BATCH_AGE_NOTICE, BATCH_DRAIN_MAX, BATCH_UNREAD_MAX, BATCH_WINDOW_BYTES, BATCH_WINDOW_OPERATIONS,
    },
    quota::{Sending, Share},
};
use crate::{metrics::BatchMetrics, refusal, router::store::Store};
use desk::Desk;
use engine::Engine;
use tally::{Counters, OpenStream};

/// Time limits of a stream.
#[derive(Clone, Copy, Debug)]
pub struct BatchTerms {
    /// For the client to take an answer.
    pub unread: Duration,
    /// For the answers to what was taken, once the node ends the stream.
    pub drain: Duration,
    /// Between the GOAWAY of the connection's age and the end of its streams.
    pub age_notice: Duration,
}

impl Default for BatchTerms {
    fn default() -> Self {
        Self { unread: BATCH_UNREAD_MAX, drain: BATCH_DRAIN_MAX, age_notice: BATCH_AGE_NOTICE }
    }
}

/// What all streams of a port share.
#[derive(Debug)]
pub struct Streams {
    terms: BatchTerms,
    /// Of a connection, at which its streams end; `None`: never.
    age_max: Option<Duration>,
    /// What may wait to be sent on each, bytes.
    reply_bytes: usize,
    counters: Arc<Counters>,
    draining: watch::Receiver<bool>,
}

impl Streams {
    /// Streams end when `draining` says so, and at the age of connections. So many bytes of answers may wait on each.
    pub fn new(
        terms: BatchTerms,
        connection_age_max: Duration,
        reply_bytes: usize,
        metrics: BatchMetrics,
        draining: watch::Receiver<bool>,
    ) -> Arc<Self> {
        let age_max = connection_age_max.checked_add(terms.age_notice);
        Arc::new(Self { terms, age_max, reply_bytes, counters: Arc::new(Counters::new(metrics)), draining })
    }
}

/// Messages that wait for the transport: it comes for the next one when the client has taken most of the last.
const MESSAGES_WAITING_MAX: usize = 1;

/// A message on its way to the transport.
#[derive(Debug)]
pub struct Parcel {
    /// As it is sent.
    pub message: BatchResponse,
    /// Held until it was sent.
    pub shares: Vec<Share>,
}

/// How a stream ended; unset while it has not.
type Verdict = Arc<OnceLock<Result<(), Status>>>;

/// Answers one stream.
///
/// # Errors
/// When there is no place for it, or while the map is not known.
pub fn batch_stream<S: Store>(
    context: &Arc<Context<S>>,
    streams: &Arc<Streams>,
    caller: &Caller,
    requests: impl Stream<Item = Result<BatchRequest, Status>> + Send + Unpin + 'static,
    sending: Sending,
) -> Result<Replies<BatchResponse>, Refused> {
    let map = context.map()?;
    let share = caller.stream_share()?;
    let (output, parcels) = mpsc::channel(MESSAGES_WAITING_MAX);
    let window = BatchWindow {
        operations: u32::try_from(BATCH_WINDOW_OPERATIONS).unwrap_or(u32::MAX),
        bytes: BATCH_WINDOW_BYTES as u64,
    };
    let first = BatchResponse {
        window: Some(window),
        cluster_id: map.cluster_id.clone(),
        ..BatchResponse::default()
    };
    let verdict = Verdict::default();
    let connection = caller.connection().cloned();
    let ends_at = connection.as_ref().and_then(|connection| connection.since.checked_add(streams.age_max?));
    let desk = Desk::new(map, caller.deadline.call(), streams.reply_bytes);
    // Open until the verdict is there: the transport asks for it when the last sender is gone.
    let open_until_told = output.clone();
    let engine = Engine::new(context.clone(), streams, desk, requests, output, connection, ends_at);
    let open = OpenStream::new(streams.counters.clone());
    let (told, asked) = (verdict.clone(), context.clone());
    let task = async move {
        let _held = (share, open);
        let ended = engine.run().await;
        told.set(ended.map_err(|end| end.status(&asked))).ok();
        drop(open_until_told);
    };
    context.spawn("batch stream", task.in_current_span().boxed());
    let replies =
        stream::once(std::future::ready(Ok(first))).chain(replies(parcels, verdict, context, sending));
    Ok(replies.boxed())
}

/// Why a stream ended other than in order.
#[derive(Debug)]
pub enum End {
    /// For a reason of ours.
    Refused(Refused),
    /// The request was garbage, or broke off: what the transport says of it.
    Request(Status),
}

impl End {
    fn status<S: Store>(self, context: &Context<S>) -> Status {
        match self {
            Self::Refused(refused) => context.status(&refused),
            Self::Request(status) => status,
        }
    }
}

fn replies<S: Store>(
    parcels: mpsc::Receiver<Parcel>,
    verdict: Verdict,
    context: &Arc<Context<S>>,
    sending: Sending,
) -> impl Stream<Item = Result<BatchResponse, Status>> + Send + use<S> {
    let context = context.clone();
    stream::unfold(Some(parcels), move |parcels| {
        let (verdict, context, sending) = (verdict.clone(), context.clone(), sending.clone());
        async move {
            let mut parcels = parcels?;
            sending.clear();
            if let Some(Parcel { message, shares }) = parcels.recv().await {
                sending.set(shares);
                return Some((Ok(message), Some(parcels)));
            }
            let ended = || {
                let refusal = refusal::outcome_unknown("the node has ended");
                Err(context.status(&Refused::Store(refusal)))
            };
            match verdict.get().cloned().unwrap_or_else(ended) {
                Ok(()) => None,
                Err(status) => Some((Err(status), None)),
            }
        }
    })
}
