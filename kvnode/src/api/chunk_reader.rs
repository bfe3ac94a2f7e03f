//! The chunks of an uploaded value, page by page: what a download sends, and what a resumed upload hashes again.
//!
//! With a pin they are those of the moment at which it was opened. Whoever reads lets go of it at the end, whatever the
//! end was; that is a courtesy, since a pin that nobody reads from ends by itself.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt, TryStreamExt, stream};
use kv_proto::{
    disk::v1::ChunkRecord,
    kv::v1::ReadOptions,
    peer::v1::{Pin, ReadBlob, ReplyContext, Unpin, read_request, read_response, refusal::Kind},
};
use kv_topology::ShardId;
use tokio::time::Instant;

use super::{
    context::{Context, unexpected},
    deadline::Deadline,
    error::{Refused, reason},
    limits::{DOWNLOAD_PAGE_CHUNKS, DOWNLOAD_PAGES_AT_ONCE},
};
use crate::router::store::Store;

/// Time for the word that a pin is not needed any more.
const UNPIN_DEADLINE: Duration = Duration::from_secs(1);

/// Reads the chunks of one upload.
pub struct ChunkReader<S: Store> {
    /// Of the services.
    pub context: Arc<Context<S>>,
    /// That owns the key.
    pub shard: ShardId,
    /// That the upload is for.
    pub key: Bytes,
    /// Of the upload.
    pub upload_id: Bytes,
    /// Of the caller.
    pub options: Option<ReadOptions>,
    /// Of the call.
    pub deadline: Deadline,
    /// Of the read that found the upload.
    pub pin: Option<PinGuard<S>>,
}

impl<S: Store> ChunkReader<S> {
    /// The chunks from `first` up to but not including `end`, in order, each verified.
    pub fn read(self, first: u32, end: u32) -> impl Stream<Item = Result<Bytes, Refused>> + Send {
        let reader = Arc::new(self);
        let pages = (first..end).step_by(DOWNLOAD_PAGE_CHUNKS as usize);
        let read = move |first| {
            let reader = reader.clone();
            async move { reader.page(first, DOWNLOAD_PAGE_CHUNKS.min(end - first)).await }
        };
        let pages = stream::iter(pages).map(read).buffered(DOWNLOAD_PAGES_AT_ONCE);
        pages.map_ok(|chunks| stream::iter(chunks).map(Ok)).try_flatten()
    }

    async fn page(&self, first: u32, count: u32) -> Result<Vec<Bytes>, Refused> {
        let mut chunks = Vec::with_capacity(count as usize);
        // The store may answer fewer than asked for.
        while let Some(missing) =
            u32::try_from(chunks.len()).ok().and_then(|had| count.checked_sub(had)).filter(|n| *n > 0)
        {
            let from = first + (count - missing);
            let more = self.ask(from, missing).await?;
            if more.is_empty() || more.len() > missing as usize {
                return Err(Refused::Bug("a page of chunks that is empty or too long".to_owned()));
            }
            for chunk in more {
                chunks.push(self.verified(chunk)?);
            }
        }
        Ok(chunks)
    }

    async fn ask(&self, first_chunk: u32, chunks: u32) -> Result<Vec<ChunkRecord>, Refused> {
        let now = Instant::now();
        if self.deadline.has_passed(now) {
            return Err(Refused::Expired);
        }
        let (key, upload_id) = (self.key.clone(), self.upload_id.clone());
        let pin = self.pin.as_ref().map(|guard| guard.pin.clone());
        let read = read_request::Read::Blob(ReadBlob { key, upload_id, first_chunk, chunks, pin });
        match self.context.read(self.shard, self.options, read, self.deadline.step(now)).await {
            Ok((_, read_response::Read::Blob(blob))) => Ok(blob.chunks),
            Ok((_, other)) => Err(unexpected("ReadBlob", &other)),
            Err(Refused::Store(refusal))
                if refusal.kind() == Kind::NotFound || refusal.reason == reason::VALUE_REPLACED =>
            {
                Err(Refused::ValueReplaced)
            }
            Err(refused) => Err(refused),
        }
    }

    fn verified(&self, chunk: ChunkRecord) -> Result<Bytes, Refused> {
        if crc32c::crc32c(&chunk.data) == chunk.crc32c {
            Ok(chunk.data)
        } else {
            Err(Refused::Damaged(self.shard))
        }
    }
}

/// A pinned moment. Dropping it lets go of the moment.
pub struct PinGuard<S: Store> {
    context: Arc<Context<S>>,
    shard: ShardId,
    options: Option<ReadOptions>,
    pin: Pin,
}

impl<S: Store> PinGuard<S> {
    /// The pin `id` at the node that answered. `None` without an id, or when nobody says who answered.
    pub fn of(
        context: &Arc<Context<S>>,
        shard: ShardId,
        options: Option<ReadOptions>,
        id: Option<Bytes>,
        answered: Option<&ReplyContext>,
    ) -> Option<Self> {
        let pin = Pin { id: id?, node_id: answered?.node_id };
        Some(Self { context: context.clone(), shard, options, pin })
    }
}

impl<S: Store> Drop for PinGuard<S> {
    fn drop(&mut self) {
        let (context, shard, options) = (self.context.clone(), self.shard, self.options);
        let unpin = Unpin { pin: Some(std::mem::take(&mut self.pin)) };
        let tell = async move {
            let deadline = Instant::now() + UNPIN_DEADLINE;
            // Unheard, the pin ends when it has been idle for its time.
            drop(context.read(shard, options, read_request::Read::Unpin(unpin), deadline).await);
        };
        self.context.spawn("end of a pin", tell.boxed());
    }
}
