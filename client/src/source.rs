//! What an upload reads: bytes, a file, any reader or stream. The first two can be read again, so that an upload
//! that surely did not happen is repeated. An observer learns how far it has come, and when it goes back.

use std::{io, path::PathBuf, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream, stream::BoxStream};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Bytes of one upload message, as many as an entry of the store holds.
pub(crate) const PIECE_BYTES: usize = 256 * 1024;

/// Learns of a position in the value.
pub(crate) type Observer = Arc<dyn Fn(u64) + Send + Sync>;

/// Where the bytes of an upload come from.
pub struct UploadSource {
    origin: Origin,
    observer: Option<Observer>,
}

enum Origin {
    Bytes(Bytes),
    File(PathBuf),
    Once(Option<Pieces>),
}

/// Non-empty pieces in order.
pub(crate) type Pieces = BoxStream<'static, io::Result<Bytes>>;

impl UploadSource {
    fn of(origin: Origin) -> Self {
        Self { origin, observer: None }
    }

    /// A file, opened when the upload begins.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::of(Origin::File(path.into()))
    }

    /// A reader. Its upload is not repeated when it fails.
    pub fn reader(reader: impl AsyncRead + Send + Unpin + 'static) -> Self {
        Self::of(Origin::Once(Some(read(reader))))
    }

    /// A stream. Its upload is not repeated when it fails.
    pub fn stream(stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        Self::of(Origin::Once(Some(stream.boxed())))
    }

    /// Calls `observer` with the position in the value, bytes, up to which the store has it or it is on its way there:
    /// when an attempt begins, and with every piece. It goes back when an attempt has to send again what was lost.
    /// The observer must not block.
    #[must_use]
    pub fn observed_by(self, observer: impl Fn(u64) + Send + Sync + 'static) -> Self {
        Self { observer: Some(Arc::new(observer)), ..self }
    }

    /// Who wants to learn of the position.
    pub(crate) fn observer(&self) -> Option<Observer> {
        self.observer.clone()
    }

    /// Whether it can be read again from the beginning.
    pub(crate) fn is_repeatable(&self) -> bool {
        match self.origin {
            Origin::Bytes(_) | Origin::File(_) => true,
            Origin::Once(_) => false,
        }
    }

    /// The pieces from the beginning.
    pub(crate) async fn open(&mut self) -> io::Result<Pieces> {
        match &mut self.origin {
            Origin::Bytes(bytes) => {
                let bytes = bytes.clone();
                Ok(cut(stream::once(async move { Ok(bytes) }).boxed()))
            }
            Origin::File(path) => Ok(read(tokio::fs::File::open(path).await?)),
            Origin::Once(pieces) => {
                let pieces = pieces.take().ok_or_else(|| io::Error::other("the stream was read before"))?;
                Ok(cut(pieces))
            }
        }
    }
}

impl<B: Into<Bytes>> From<B> for UploadSource {
    fn from(bytes: B) -> Self {
        Self::of(Origin::Bytes(bytes.into()))
    }
}

impl std::fmt::Debug for UploadSource {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.origin {
            Origin::Bytes(bytes) => write!(formatter, "{} bytes", bytes.len()),
            Origin::File(path) => write!(formatter, "file {}", path.display()),
            Origin::Once(_) => formatter.write_str("stream"),
        }
    }
}

/// Reads whole pieces, however little each read gives.
fn read(reader: impl AsyncRead + Send + Unpin + 'static) -> Pieces {
    stream::try_unfold(reader, |mut reader| async move {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        while piece.len() < PIECE_BYTES {
            let room = PIECE_BYTES - piece.len();
            if (&mut reader).take(room as u64).read_buf(&mut piece).await? == 0 {
                break;
            }
        }
        Ok((!piece.is_empty()).then(|| (piece.freeze(), reader)))
    })
    .boxed()
}

/// Cuts pieces that are too long and leaves out empty ones.
fn cut(pieces: Pieces) -> Pieces {
    pieces
        .flat_map(|piece| {
            let (mut rest, error) = match piece {
                Ok(bytes) => (bytes, None),
                Err(error) => (Bytes::new(), Some(error)),
            };
            let cuts = std::iter::from_fn(move || {
                (!rest.is_empty()).then(|| Ok(rest.split_to(rest.len().min(PIECE_BYTES))))
            });
            stream::iter(error.map(Err).into_iter().chain(cuts))
        })
        .boxed()
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;

    async fn lengths(mut source: UploadSource) -> Vec<usize> {
        source.open().await.unwrap().map_ok(|piece| piece.len()).try_collect().await.unwrap()
    }

    #[tokio::test]
    async fn pieces_have_one_size_except_the_last() {
        let bytes = vec![7; PIECE_BYTES * 2 + 5];
        let expected = vec![PIECE_BYTES, PIECE_BYTES, 5];
        assert_eq!(lengths(bytes.clone().into()).await, expected);
        assert_eq!(lengths(UploadSource::reader(io::Cursor::new(bytes.clone()))).await, expected);
        let empty = stream::iter([Ok(Bytes::new()), Ok(bytes.into())]);
        assert_eq!(lengths(UploadSource::stream(empty)).await, expected);
        assert_eq!(lengths(Vec::new().into()).await, Vec::<usize>::new());
    }

    #[tokio::test]
    async fn a_stream_is_read_once_and_its_error_passes() {
        let mut source = UploadSource::stream(stream::iter([Err(io::Error::other("broken"))]));
        let pieces: Vec<_> = source.open().await.unwrap().collect().await;
        assert!(matches!(&pieces[..], [Err(_)]));
        assert!(source.open().await.is_err());
        assert!(!source.is_repeatable());
    }
}
