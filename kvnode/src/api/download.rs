//! Download: a stored value as a stream, verified chunk by chunk.
//!
//! The first read says what the key holds. An inline value is there already; of an uploaded one the chunks follow,
//! by the id that the key named at that moment: a value that is overwritten meanwhile is never mixed with its
//! successor, the stream ends with `VALUE_REPLACED` instead. Like a scan it is pulled by its reply: a few chunks are
//! held, whatever the size.

use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, future, stream};
use kv_proto::{
    disk::v1::ChunkRecord,
    kv::v1::{Blob, DownloadRequest, DownloadResponse, ReadOptions, download_response, key_value},
    peer::v1::{ReadBlob, read_request, read_response, refusal::Kind},
};
use kv_topology::ShardId;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::{
    context::{Context, shard_of, unexpected},
    deadline::Deadline,
    error::{Refused, reason},
    header,
    limits::{CHUNK_BYTES, DOWNLOAD_PAGE_CHUNKS, DOWNLOAD_PAGES_AT_ONCE},
    validate::{self, Violation},
};
use crate::router::store::Store;

/// Reads the chunks of one upload.
pub struct ChunkReader<S> {
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
        let read = read_request::Read::Blob(ReadBlob { key, upload_id, first_chunk, chunks });
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

/// The bytes that are asked for, as positions in the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slice {
    from: u64,
    to: u64,
}

impl Slice {
    fn of(request: &DownloadRequest, size_bytes: u64) -> Result<Self, Violation> {
        if request.offset > size_bytes {
            return Err(Violation::new(
                "offset",
                format!("behind the end of the value, which has {size_bytes} B"),
            ));
        }
        let to = match request.length {
            0 => size_bytes,
            length => size_bytes.min(request.offset.saturating_add(length)),
        };
        Ok(Self { from: request.offset, to })
    }

    fn length(self) -> u64 {
        self.to - self.from
    }

    /// The chunks that hold it: first, and one behind the last.
    fn chunks(self) -> Result<(u32, u32), Refused> {
        let number =
            |chunk| u32::try_from(chunk).map_err(|_| Refused::Bug("a value of too many chunks".to_owned()));
        let first = number(self.from / CHUNK_BYTES as u64)?;
        if self.length() == 0 {
            return Ok((first, first));
        }
        Ok((first, number(self.to.div_ceil(CHUNK_BYTES as u64))?))
    }

    /// What of a piece that begins at `start` is inside.
    fn cut(self, start: u64, piece: &Bytes) -> Bytes {
        let clamp = |position: u64| {
            usize::try_from(position.saturating_sub(start)).unwrap_or(usize::MAX).min(piece.len())
        };
        piece.slice(clamp(self.from)..clamp(self.to))
    }
}

type Messages = stream::BoxStream<'static, Result<DownloadResponse, Refused>>;

/// The messages of a download: the header, then bytes.
///
/// # Errors
/// When the key is absent or the read was refused; later refusals end the stream.
pub async fn download<S: Store>(
    context: Arc<Context<S>>,
    request: DownloadRequest,
    deadline: Deadline,
) -> Result<Messages, Refused> {
    validate::download(&request)?;
    let map = context.map()?;
    let shard = shard_of(&map, &request.key)?;
    let (key, options) = (request.key.clone(), request.options);
    let until = deadline.step(Instant::now());
    let (replied, got) = context.read_keys(shard, options, vec![key.clone()], false, until).await?;
    let one = got.results.into_iter().next().unwrap_or_default();
    let upload_id = one.upload_id;
    let mut kv = one.kv.ok_or(Refused::KeyNotFound)?;
    let (blob, inline) = match kv.value.take() {
        Some(key_value::Value::Inline(value)) => (described(&value), Some(value)),
        Some(key_value::Value::Blob(blob)) => {
            kv.value = Some(key_value::Value::Blob(blob.clone()));
            (blob, None)
        }
        None => return Err(Refused::Bug("a key without a value".to_owned())),
    };
    let slice = Slice::of(&request, blob.size_bytes)?;
    let header = download_response::Part::Header(download_response::Header {
        header: Some(header::of(replied.as_ref(), &map.cluster_id)),
        kv: Some(kv),
        blob: Some(blob),
        length_bytes: slice.length(),
    });
    let data = match inline {
        Some(value) => cut_small(slice.cut(0, &value)).boxed(),
        None => {
            let (first, end) = slice.chunks()?;
            let reader = ChunkReader { context, shard, key, upload_id, options, deadline };
            sliced(reader.read(first, end), slice, first).boxed()
        }
    };
    let data = data.map_ok(|data| DownloadResponse { part: Some(download_response::Part::Data(data)) });
    let header = stream::once(future::ready(Ok(DownloadResponse { part: Some(header) })));
    Ok(header.chain(data).boxed())
}

fn described(value: &Bytes) -> Blob {
    Blob { size_bytes: value.len() as u64, sha256: Bytes::copy_from_slice(&Sha256::digest(value)) }
}

fn cut_small(mut value: Bytes) -> impl Stream<Item = Result<Bytes, Refused>> + Send {
    stream::iter(std::iter::from_fn(move || {
        let piece = value.split_to(CHUNK_BYTES.min(value.len()));
        (!piece.is_empty()).then_some(Ok(piece))
    }))
}

/// Cuts the first and the last chunk, and sees that every other one is whole.
fn sliced(
    chunks: impl Stream<Item = Result<Bytes, Refused>> + Send,
    slice: Slice,
    first: u32,
) -> impl Stream<Item = Result<Bytes, Refused>> + Send {
    let numbered = chunks.enumerate().map(move |(number, chunk)| {
        let chunk = chunk?;
        let start = (u64::from(first) + number as u64) * CHUNK_BYTES as u64;
        let piece = slice.cut(start, &chunk);
        let due = slice.to.min(start + CHUNK_BYTES as u64) - slice.from.max(start);
        if piece.len() as u64 != due {
            return Err(Refused::Bug("a chunk of the wrong length".to_owned()));
        }
        Ok(piece)
    });
    numbered.try_filter(|piece| future::ready(!piece.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(offset: u64, length: u64, size: u64) -> Result<Slice, Violation> {
        Slice::of(&DownloadRequest { offset, length, ..DownloadRequest::default() }, size)
    }

    #[test]
    fn a_slice_ends_with_the_value_and_begins_inside_of_it() {
        assert_eq!(slice(0, 0, 10), Ok(Slice { from: 0, to: 10 }));
        assert_eq!(slice(3, 4, 10), Ok(Slice { from: 3, to: 7 }));
        assert_eq!(slice(3, 40, 10), Ok(Slice { from: 3, to: 10 }));
        assert_eq!(slice(10, 0, 10), Ok(Slice { from: 10, to: 10 }));
        assert_eq!(slice(11, 0, 10).expect_err("behind the end").field, "offset");
    }

    #[test]
    fn a_slice_reads_no_chunk_more_than_it_needs() {
        let chunk = CHUNK_BYTES as u64;
        let table = [
            ((0, 0), (0, 0)),
            ((0, 1), (0, 1)),
            ((0, chunk), (0, 1)),
            ((0, chunk + 1), (0, 2)),
            ((chunk - 1, chunk + 1), (0, 2)),
            ((chunk, chunk + 1), (1, 2)),
            ((chunk, chunk), (1, 1)),
        ];
        for ((from, to), chunks) in table {
            assert_eq!(Slice { from, to }.chunks().expect("few chunks"), chunks, "{from}..{to}");
        }
    }
}
