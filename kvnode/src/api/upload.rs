//! Upload: a stream of bytes becomes begin, chunks, commit.
//!
//! The bytes are re-cut to chunks and hashed as they come, with a window of chunks in flight. Size and SHA-256 are
//! checked before the commit, which alone makes the value visible. What went wrong before it left nothing visible:
//! the upload is aborted, unless its caller named it; then the abort is left to the sweep of old uploads, so that it
//! can be resumed. A client chooses the id of an upload that it may want to resume, or takes it from the error.
//!
//! To resume, the stored chunks are read again: only so is the SHA-256 that of the whole value.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt, future::BoxFuture, stream::FuturesOrdered};
use kv_proto::{
    disk::v1::{UploadAbort, UploadBegin, UploadChunk, UploadCommit, operation},
    kv::v1::{UploadRequest, UploadResponse, upload_request},
    peer::v1::{ReplyContext, UploadOutcome, outcome},
};
use kv_topology::ShardId;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::{
    chunk_reader::ChunkReader,
    chunker::{Chunk, Chunker, Sum},
    context::{Context, shard_of, unexpected},
    deadline::Deadline,
    error::Refused,
    header,
    limits::{CHUNK_BYTES, DEADLINE_DEFAULT, UPLOAD_BYTES_MAX, UPLOAD_WINDOW_CHUNKS},
    validate::{self, Violation},
};
use crate::router::store::Store;

/// A chunk on its way: itself again, and what became of it.
type Written = (Chunk, Result<UploadOutcome, Refused>);

/// An upload that was begun. Dropped before its commit, it is aborted.
struct Upload<S: Store> {
    context: Arc<Context<S>>,
    deadline: Deadline,
    key: Bytes,
    shard: ShardId,
    id: [u8; 16],
    /// The caller may resume it.
    is_named: bool,
    /// The abort on drop is wanted.
    is_open: bool,
    /// The store has all bytes before.
    stored_bytes: u64,
    ready: VecDeque<Chunk>,
    window: FuturesOrdered<BoxFuture<'static, Written>>,
}

/// Receives a value.
///
/// # Errors
/// See the table of errors; nothing is visible then, unless the outcome is unknown.
pub async fn upload<S, M>(
    context: Arc<Context<S>>,
    mut messages: M,
    deadline: Deadline,
) -> Result<UploadResponse, Refused>
where
    S: Store,
    M: Stream<Item = Result<UploadRequest, Status>> + Send + Unpin,
{
    let wanted = first(&mut messages).await?;
    validate::upload(&wanted)?;
    let map = context.map()?;
    let shard = shard_of(&map, &wanted.key)?;
    let id = <[u8; 16]>::try_from(&wanted.upload_id[..]).unwrap_or_else(|_| context.fresh_id());
    let mut upload = Upload {
        is_named: !wanted.upload_id.is_empty(),
        is_open: true,
        key: wanted.key.clone(),
        stored_bytes: 0,
        ready: VecDeque::new(),
        window: FuturesOrdered::new(),
        context,
        deadline,
        shard,
        id,
    };
    let respond = |(context, outcome): (Option<ReplyContext>, UploadOutcome)| UploadResponse {
        header: Some(header::of(context.as_ref(), &map.cluster_id)),
        applied: outcome.applied,
        kv: outcome.kv,
    };
    let (begun_by, begun) = upload.begin(&wanted).await.map_err(|cause| upload.failed(cause))?;
    if !begun.applied {
        upload.is_open = false;
        return Ok(respond((begun_by, begun)));
    }
    let sum = upload.receive(&wanted, &begun, &mut messages).await.map_err(|cause| upload.failed(cause))?;
    upload.commit(sum).await.map(respond)
}

async fn first<M>(messages: &mut M) -> Result<upload_request::Header, Refused>
where
    M: Stream<Item = Result<UploadRequest, Status>> + Unpin,
{
    match messages.next().await {
        Some(Ok(UploadRequest { part: Some(upload_request::Part::Header(header)) })) => Ok(header),
        Some(Ok(_)) | None => Err(Violation::new("header", "must be the first message").into()),
        Some(Err(status)) => Err(Refused::Interrupted(status.message().to_owned())),
    }
}

impl<S: Store> Upload<S> {
    fn failed(&self, cause: Refused) -> Refused {
        Refused::Upload { cause: Box::new(cause), upload_id: self.id, stored_bytes: self.stored_bytes }
    }

    async fn begin(
        &mut self,
        wanted: &upload_request::Header,
    ) -> Result<(Option<ReplyContext>, UploadOutcome), Refused> {
        let begin = UploadBegin {
            key: self.key.clone(),
            upload_id: Bytes::copy_from_slice(&self.id),
            precondition: wanted.precondition,
        };
        self.write(operation::Kind::UploadBegin(begin)).await
    }

    // Exclusive, although it changes nothing: the window is not `Sync`.
    async fn write(
        &mut self,
        kind: operation::Kind,
    ) -> Result<(Option<ReplyContext>, UploadOutcome), Refused> {
        let now = Instant::now();
        if self.deadline.has_passed(now) {
            return Err(Refused::Expired);
        }
        write(&self.context, self.shard, kind, self.deadline.step(now)).await
    }

    /// Takes all bytes, and stores all of them.
    async fn receive<M>(
        &mut self,
        wanted: &upload_request::Header,
        begun: &UploadOutcome,
        messages: &mut M,
    ) -> Result<Sum, Refused>
    where
        M: Stream<Item = Result<UploadRequest, Status>> + Unpin,
    {
        let mut chunker = self.resume(wanted, begun).await?;
        while let Some(data) = self.next_bytes(messages).await? {
            check_growth(wanted, &chunker, &data)?;
            chunker.push(data, &mut self.ready).map_err(|error| Violation::new("data", error.to_string()))?;
        }
        let (last, sum) = chunker.finish().map_err(|error| Violation::new("data", error.to_string()))?;
        check_sum(wanted, &sum)?;
        self.ready.extend(last);
        while let Some(written) = self.advance().await {
            self.written(written).await?;
        }
        Ok(sum)
    }

    /// The next bytes of the client, while chunks are being written. `None`: all came.
    async fn next_bytes<M>(&mut self, messages: &mut M) -> Result<Option<Bytes>, Refused>
    where
        M: Stream<Item = Result<UploadRequest, Status>> + Unpin,
    {
        loop {
            self.send_ready();
            // Not more than a message and a window are held.
            let message = if self.ready.is_empty() {
                tokio::select! {
                    biased;
                    Some(written) = self.window.next(), if !self.window.is_empty() => Err(written),
                    message = until(self.deadline, messages.next()) => Ok(message?),
                }
            } else {
                self.window.next().await.map_or(Ok(None), Err)
            };
            match message {
                Err(written) => self.written(written).await?,
                Ok(None) => return Ok(None),
                Ok(Some(Ok(UploadRequest { part: Some(upload_request::Part::Data(data)) }))) => {
                    return Ok(Some(data));
                }
                Ok(Some(Ok(_))) => {
                    return Err(Violation::new("data", "must be in every message but the first").into());
                }
                Ok(Some(Err(status))) => return Err(Refused::Interrupted(status.message().to_owned())),
            }
        }
    }

    fn send_ready(&mut self) {
        while self.window.len() < UPLOAD_WINDOW_CHUNKS
            && let Some(chunk) = self.ready.pop_front()
        {
            let (context, shard, operation) = (self.context.clone(), self.shard, self.proposal(&chunk));
            let deadline = self.deadline.step(Instant::now());
            self.window.push_back(Box::pin(async move {
                let written = write(&context, shard, operation, deadline).await;
                (chunk, written.map(|(_, outcome)| outcome))
            }));
        }
    }

    async fn advance(&mut self) -> Option<Written> {
        self.send_ready();
        self.window.next().await
    }

    fn proposal(&self, chunk: &Chunk) -> operation::Kind {
        operation::Kind::UploadChunk(UploadChunk {
            upload_id: Bytes::copy_from_slice(&self.id),
            number: chunk.number,
            data: chunk.data.clone(),
            crc32c: chunk.crc32c,
            key: self.key.clone(),
        })
    }

    /// Looks at what became of a chunk. Those before it are stored.
    async fn written(&mut self, (chunk, written): Written) -> Result<(), Refused> {
        let end = u64::from(chunk.number) * CHUNK_BYTES as u64 + chunk.data.len() as u64;
        let has = |outcome: &UploadOutcome| outcome.next_chunk > chunk.number;
        match written {
            Ok(outcome) if has(&outcome) => {}
            // It has overtaken the one before it, and the store takes them in order: that one is there now.
            Ok(_) => {
                let (_, outcome) = self.write(self.proposal(&chunk)).await?;
                if !has(&outcome) {
                    return Err(Refused::UploadOffset { stored_bytes: outcome.stored_bytes });
                }
            }
            Err(refused) => return Err(refused),
        }
        self.stored_bytes = end;
        Ok(())
    }

    /// A chunker that has seen what the store has.
    async fn resume(
        &mut self,
        wanted: &upload_request::Header,
        begun: &UploadOutcome,
    ) -> Result<Chunker, Refused> {
        self.stored_bytes = begun.stored_bytes;
        if wanted.resume_from_bytes != begun.stored_bytes {
            return Err(Refused::UploadOffset { stored_bytes: begun.stored_bytes });
        }
        let mut chunker = Chunker::default();
        let reader = ChunkReader {
            context: self.context.clone(),
            shard: self.shard,
            key: self.key.clone(),
            upload_id: Bytes::copy_from_slice(&self.id),
            options: None,
            deadline: self.deadline,
            pin: None,
        };
        let mut chunks = std::pin::pin!(reader.read(0, begun.next_chunk));
        while let Some(chunk) = chunks.next().await {
            chunker.skip(&chunk?).map_err(|error| Violation::new("data", error.to_string()))?;
        }
        if chunker.size_bytes() != begun.stored_bytes {
            return Err(Refused::Bug("an upload whose chunks do not make up its size".to_owned()));
        }
        Ok(chunker)
    }

    /// Makes the value visible.
    async fn commit(&mut self, sum: Sum) -> Result<(Option<ReplyContext>, UploadOutcome), Refused> {
        let commit = UploadCommit {
            key: self.key.clone(),
            upload_id: Bytes::copy_from_slice(&self.id),
            size_bytes: sum.size_bytes,
            chunks: sum.chunks,
            sha256: sum.sha256,
        };
        // From here on it may be visible: who aborted it now could not tell what for.
        self.is_open = false;
        let committed = self.write(operation::Kind::UploadCommit(commit)).await;
        committed.map_err(|cause| {
            if !cause.is_without_effect() {
                return cause;
            }
            self.is_open = true;
            self.failed(cause)
        })
    }
}

impl<S: Store> Drop for Upload<S> {
    fn drop(&mut self) {
        if !self.is_open || self.is_named {
            return;
        }
        let (context, shard) = (self.context.clone(), self.shard);
        let upload_id = Bytes::copy_from_slice(&self.id);
        let abort = operation::Kind::UploadAbort(UploadAbort { key: self.key.clone(), upload_id });
        let task = async move {
            let aborted = write(&context, shard, abort, Instant::now() + DEADLINE_DEFAULT).await;
            if let Err(refused) = aborted {
                tracing::debug!(%shard, %refused, "an upload is left to the sweep");
            }
        };
        self.context.spawn("upload abort", Box::pin(task));
    }
}

async fn write<S: Store>(
    context: &Context<S>,
    shard: ShardId,
    kind: operation::Kind,
    deadline: Instant,
) -> Result<(Option<ReplyContext>, UploadOutcome), Refused> {
    match context.write(shard, kind, deadline).await? {
        (context, outcome::Result::Upload(outcome)) => Ok((context, outcome)),
        (context, outcome::Result::Done(_)) => Ok((context, UploadOutcome::default())),
        (_, other) => Err(unexpected("Upload", &other)),
    }
}

/// Waits for the client until its own deadline, if it named one.
async fn until<T>(deadline: Deadline, waiting: impl Future<Output = T>) -> Result<T, Refused> {
    match deadline.call() {
        Some(call) => timeout_at(call, waiting).await.map_err(|_| Refused::Expired),
        None => Ok(waiting.await),
    }
}

fn check_growth(wanted: &upload_request::Header, chunker: &Chunker, data: &Bytes) -> Result<(), Violation> {
    let size = chunker.size_bytes() + data.len() as u64;
    if let Some(promised) = wanted.size_bytes.filter(|promised| size > *promised) {
        return Err(Violation::new("header.size_bytes", format!("more than the promised {promised} B came")));
    }
    if size > UPLOAD_BYTES_MAX {
        return Err(Violation::new("data", format!("more than {UPLOAD_BYTES_MAX} B")));
    }
    Ok(())
}

fn check_sum(wanted: &upload_request::Header, sum: &Sum) -> Result<(), Violation> {
    if let Some(promised) = wanted.size_bytes.filter(|promised| sum.size_bytes != *promised) {
        let text = format!("{} B came, {promised} were promised", sum.size_bytes);
        return Err(Violation::new("header.size_bytes", text));
    }
    if !wanted.sha256.is_empty() && wanted.sha256 != sum.sha256 {
        return Err(Violation::new("header.sha256", "is not that of the bytes that came"));
    }
    Ok(())
}
