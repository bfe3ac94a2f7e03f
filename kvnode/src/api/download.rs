//! Download: a stored value as a stream, verified chunk by chunk.
//!
//! The first read says what the key holds. An inline value is there already; of an uploaded one the chunks follow, by
//! the id that the key named at that moment. The read pins the moment at the replica that answers it, so that the chunks
//! are there although the key is overwritten or deleted meanwhile. A pin that is gone is no error as long as the key has
//! the value; when it has another one, the two are never mixed, and the stream ends with `VALUE_REPLACED`. Like a scan it
//! is pulled by its reply: a few chunks are held, whatever the size.

use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, future, stream};
use kv_proto::{
    kv::v1::{Blob, DownloadRequest, DownloadResponse, download_response, key_value},
    peer::v1::GetKeys,
};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::{
    chunk_reader::{ChunkReader, PinGuard},
    context::{Context, shard_of},
    deadline::Deadline,
    error::Refused,
    header,
    limits::CHUNK_BYTES,
    validate::{self, Violation},
};
use crate::router::store::Store;

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
    let pin_id = Bytes::copy_from_slice(&context.fresh_id());
    let get = GetKeys { keys: vec![key.clone()], pin_id: pin_id.clone(), ..GetKeys::default() };
    let (replied, got) = context.get_keys(shard, options, get, until).await?;
    let one = got.results.into_iter().next().unwrap_or_default();
    let upload_id = one.upload_id;
    let pin_id = (!upload_id.is_empty()).then_some(pin_id);
    let pin = PinGuard::of(&context, shard, options, pin_id, replied.as_ref());
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
            let reader = ChunkReader { context, shard, key, upload_id, options, deadline, pin };
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
