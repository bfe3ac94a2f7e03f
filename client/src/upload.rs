//! Uploads: a value of any size as a stream, visible whole or not at all.
//!
//! The header goes first, then the bytes, whose SHA-256 is computed on the way and compared with what the store says
//! that it holds. A value whose last byte was not sent cannot have become visible: until then a failure is surely
//! without effect, whatever its status. A source that can be read again is then sent again under the same upload id,
//! from where the store got to (`stored_bytes` in its errors).

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use kv_proto::kv::v1 as proto;
use sha2::{Digest, Sha256};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};
use tonic::{Response, Status};

use crate::{
    call::Call,
    client::{Client, slot},
    error::{Error, Result},
    failure::Failure,
    options::Precondition,
    pool::Node,
    retry::{Cause, Decision, Kind, decide},
    routing::Route,
    source::{Observer, Pieces, UploadSource},
    value::{Header, KeyValue, Value},
};

/// How to upload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UploadOptions {
    /// What must hold at the end.
    pub precondition: Option<Precondition>,
    /// The length, when it is known: checked by both sides.
    pub size_bytes: Option<u64>,
    /// The SHA-256, when it is known: the store refuses other bytes before they are visible.
    pub sha256: Option<[u8; 32]>,
}

/// Answer to an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadReply {
    /// Where it was made.
    pub header: Header,
    /// False: the precondition did not hold and nothing is visible.
    pub applied: bool,
    /// The key as it is now.
    pub kv: Option<KeyValue>,
    /// Bytes of the source; 0 when the answer came before all were read, which only a failed precondition does.
    pub size_bytes: u64,
    /// Of the bytes that were read from the source; zeros when the answer came before all were read.
    pub sha256: [u8; 32],
}

/// A store that has another number of bytes than the upload goes on at refuses with this reason.
const UPLOAD_OFFSET: &str = "UPLOAD_OFFSET";

/// What the source had, known when its end was reached.
#[derive(Clone, Copy, Debug, Default)]
struct Digested {
    size_bytes: u64,
    sha256: [u8; 32],
}

/// What the sending stream tells the waiting call.
#[derive(Debug, Default)]
struct Progress {
    /// Bytes handed to the transport.
    sent_bytes: AtomicU64,
    /// The attempt has ended. Its stream may be asked for more yet, which nobody is to learn of.
    over: AtomicBool,
    /// Set before the end of the stream is: `None` means that the store cannot have committed.
    digested: Mutex<Option<Digested>>,
}

impl Progress {
    fn digested(&self) -> Option<Digested> {
        *self.digested.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Resume {
    /// 16 bytes; empty: not to be resumed.
    upload_id: Bytes,
    /// The store has the bytes before.
    from_bytes: u64,
}

impl Client {
    /// Uploads a value. The timeout bounds each standstill, not the whole transfer.
    ///
    /// # Errors
    /// See [`Error`]. [`Error::Source`] and everything that [`Error::may_have_happened`] denies left nothing visible.
    pub async fn upload(
        &self,
        key: impl AsRef<[u8]>,
        source: impl Into<UploadSource>,
        options: UploadOptions,
    ) -> Result<UploadReply> {
        let key = Bytes::copy_from_slice(key.as_ref());
        let call = self.call("Upload", Kind::Write, Route::Leader(slot(&key))).transfer();
        let source = source.into();
        // Named, so that the store keeps what it has when the stream breaks.
        let upload_id = if source.is_repeatable() { self.core().upload_id() } else { Bytes::new() };
        let resume = Resume { upload_id, from_bytes: 0 };
        let upload = Upload { call, key, options, source, resume };
        upload.run().await
    }
}

/// An upload under way.
struct Upload {
    call: Call,
    key: Bytes,
    options: UploadOptions,
    source: UploadSource,
    resume: Resume,
}

/// How an attempt ended without an answer.
enum Broken {
    Refused(Status),
    /// The source failed, or had another length than promised.
    Unreadable(Error),
    Silent,
}

impl Upload {
    async fn run(mut self) -> Result<UploadReply> {
        loop {
            let node = self.call.node().await?;
            let pieces = self.source.open().await.map_err(Error::Source)?;
            let progress = Arc::new(Progress::default());
            let ended = self.attempt(&node, pieces, &progress).await;
            progress.over.store(true, Ordering::Relaxed);
            let failure = match ended {
                Ok(reply) => return self.verify(reply, &progress),
                Err(Broken::Unreadable(error)) => return Err(error),
                Err(Broken::Refused(status)) => self.call.failure_of(&node, &status),
                Err(Broken::Silent) => self.call.silence_of(&node),
            };
            self.failed(failure, &progress).await?;
        }
    }

    async fn attempt(
        &mut self,
        node: &Node,
        pieces: Pieces,
        progress: &Arc<Progress>,
    ) -> Result<proto::UploadResponse, Broken> {
        let (broken, mut unreadable) = oneshot::channel();
        let header = stream::iter([self.header()]);
        let observer = self.source.observer();
        if let Some(observer) = &observer {
            observer(self.resume.from_bytes);
        }
        let body = body(Body {
            pieces,
            skip_bytes: self.resume.from_bytes,
            promised_bytes: self.options.size_bytes,
            progress: progress.clone(),
            broken,
            observer,
            hasher: Sha256::new(),
            read_bytes: 0,
        });
        let mut kv = node.kv();
        let mut answer = std::pin::pin!(kv.upload(header.chain(body)));
        let mut seen_bytes = 0;
        let mut standstill = Instant::now() + self.call.client.timeout();
        let mut source_ended = false;
        loop {
            tokio::select! {
                biased;
                // The body ends without an error on success, and then the sender is dropped unused.
                error = &mut unreadable, if !source_ended => match error {
                    Ok(error) => return Err(Broken::Unreadable(error)),
                    Err(_) => source_ended = true,
                },
                answer = &mut answer => return answer.map(Response::into_inner).map_err(Broken::Refused),
                () = sleep_until(standstill) => {
                    let sent_bytes = progress.sent_bytes.load(Ordering::Relaxed);
                    if sent_bytes == seen_bytes {
                        return Err(Broken::Silent);
                    }
                    seen_bytes = sent_bytes;
                    standstill = Instant::now() + self.call.client.timeout();
                }
            }
        }
    }

    fn header(&self) -> proto::UploadRequest {
        let header = proto::upload_request::Header {
            key: self.key.clone(),
            size_bytes: self.options.size_bytes,
            sha256: self.options.sha256.map(|hash| Bytes::copy_from_slice(&hash)).unwrap_or_default(),
            precondition: self.options.precondition.map(Into::into),
            upload_id: self.resume.upload_id.clone(),
            resume_from_bytes: self.resume.from_bytes,
        };
        proto::UploadRequest { part: Some(proto::upload_request::Part::Header(header)) }
    }

    /// Judges a failed attempt; returns when the next one may be made.
    async fn failed(&mut self, failure: Failure, progress: &Progress) -> Result<()> {
        let unfinished = progress.digested().is_none();
        let asks_elsewhere = failure.reason.as_deref() == Some(UPLOAD_OFFSET);
        let failure = match failure.cause() {
            // Without its end, nothing can have become visible.
            Cause::Lost | Cause::OutcomeUnknown if unfinished => failure.with_cause(Cause::NotApplied),
            // Nothing happened, and it tells where to go on.
            Cause::Refused if asks_elsewhere => failure.with_cause(Cause::NotApplied),
            _ => failure,
        };
        if !self.source.is_repeatable() && matches!(decide(Kind::Write, failure.cause()), Decision::Retry(_))
        {
            return Err(Error::of(Kind::Write, failure));
        }
        if let Some(stored_bytes) = failure.metadata.get("stored_bytes").and_then(|text| text.parse().ok()) {
            if stored_bytes > self.resume.from_bytes {
                self.call.progressed();
            }
            self.resume.from_bytes = stored_bytes;
        }
        self.call.failed(failure).await
    }

    fn verify(&self, reply: proto::UploadResponse, progress: &Progress) -> Result<UploadReply> {
        // A precondition that does not hold is told before the bytes are there.
        let digested = match progress.digested() {
            Some(digested) => digested,
            None if !reply.applied => Digested::default(),
            None => return Err(Error::protocol("Upload", "the node answered before it had all bytes")),
        };
        let reply = UploadReply {
            header: reply.header.into(),
            applied: reply.applied,
            kv: reply.kv.map(Into::into),
            size_bytes: digested.size_bytes,
            sha256: digested.sha256,
        };
        self.call.client.core().learn(&reply.header);
        let stored = reply.kv.as_ref().filter(|_| reply.applied);
        if let Some(KeyValue { value: Value::Blob(blob), .. }) = stored {
            if blob.size_bytes != digested.size_bytes {
                return Err(Error::LengthMismatch {
                    operation: "Upload",
                    expected_bytes: digested.size_bytes,
                    found_bytes: blob.size_bytes,
                });
            }
            if !blob.sha256.is_empty() && blob.sha256 != digested.sha256[..] {
                return Err(Error::ChecksumMismatch {
                    operation: "Upload",
                    expected: hex(&digested.sha256),
                    found: hex(&blob.sha256),
                });
            }
        }
        Ok(reply)
    }
}

/// The messages behind the header. When the source fails, the error goes through `broken` and the stream neither
/// ends nor goes on: an end would be taken for the end of the value.
fn body(body: Body) -> impl Stream<Item = proto::UploadRequest> + Send + 'static {
    stream::unfold(body, |mut body| async move {
        match body.next().await {
            Ok(Some(data)) => {
                Some((proto::UploadRequest { part: Some(proto::upload_request::Part::Data(data)) }, body))
            }
            Ok(None) => None,
            Err(error) => {
                // The receiver is gone only when the call is, and then nobody polls this any more.
                let _gone = body.broken.send(error);
                std::future::pending().await
            }
        }
    })
}

struct Body {
    pieces: Pieces,
    /// The store has these already: hashed, not sent.
    skip_bytes: u64,
    promised_bytes: Option<u64>,
    progress: Arc<Progress>,
    broken: oneshot::Sender<Error>,
    /// Learns how far it has come.
    observer: Option<Observer>,
    hasher: Sha256,
    read_bytes: u64,
}

impl Body {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let Some(piece) = self.pieces.next().await else { return self.end().map(|()| None) };
            let mut piece: Bytes = piece.map_err(Error::Source)?;
            self.hasher.update(&piece);
            let begins_at = self.read_bytes;
            self.read_bytes += piece.len() as u64;
            if self.promised_bytes.is_some_and(|promised| self.read_bytes > promised) {
                return self.end().map(|()| None);
            }
            let skip = self.skip_bytes.saturating_sub(begins_at).min(piece.len() as u64);
            piece = piece.slice(usize::try_from(skip).unwrap_or(piece.len())..);
            if !piece.is_empty() {
                self.sends(piece.len());
                return Ok(Some(piece));
            }
        }
    }

    /// A piece goes to the transport, up to what was read.
    fn sends(&self, bytes: usize) {
        self.progress.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let is_over = self.progress.over.load(Ordering::Relaxed);
        if let Some(observer) = self.observer.as_ref().filter(|_| !is_over) {
            observer(self.read_bytes);
        }
    }

    /// The source is at its end: only now may the store make the value visible.
    fn end(&mut self) -> Result<()> {
        if let Some(promised) = self.promised_bytes.filter(|promised| *promised != self.read_bytes) {
            let problem = format!("it has {} bytes or more, {promised} were announced", self.read_bytes);
            return Err(Error::Source(io::Error::other(problem)));
        }
        let digested = Digested {
            size_bytes: self.read_bytes,
            sha256: std::mem::take(&mut self.hasher).finalize().into(),
        };
        *self.progress.digested.lock().unwrap_or_else(PoisonError::into_inner) = Some(digested);
        Ok(())
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
